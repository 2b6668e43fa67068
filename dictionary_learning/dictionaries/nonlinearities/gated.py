"""Whether a latent fires, and how strongly, decided apart."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dictionary_learning.dictionaries.nonlinearities.base import NONLINEARITIES, Elementwise


@NONLINEARITIES.register("gated")
class Gated(Elementwise):
    """latents = 1[pre + gate_bias > 0] * relu(exp(r_mag) * pre + mag_bias), where pre has no bias yet.

    Rajamanoharan et al. 2024, https://arxiv.org/abs/2404.16014, equations 4 to 7: gate and magnitude share the encoder's directions.
    No gradient passes the gate; it learns from `gate` in the auxiliary loss.
    """

    has_bias = True
    gate_bias: nn.Parameter
    mag_bias: nn.Parameter
    r_mag: nn.Parameter

    def setup(self, dict_size: int) -> None:
        self.gate_bias = nn.Parameter(torch.zeros(dict_size))
        self.mag_bias = nn.Parameter(torch.zeros(dict_size))
        self.r_mag = nn.Parameter(torch.zeros(dict_size))

    def activate(self, pre: Tensor, latents: Tensor | None = None) -> Tensor:
        magnitude = self.of(self.r_mag.exp(), latents) * pre + self.of(self.mag_bias, latents)
        return (pre + self.of(self.gate_bias, latents).detach() > 0) * magnitude.relu()

    def gate(self, pre: Tensor, latents: Tensor | None = None) -> Tensor:
        """Returns relu(pre + gate_bias): what the sparsity penalty and the auxiliary reconstruction see."""
        return (pre + self.of(self.gate_bias, latents)).relu()

    def margin(self, pre: Tensor, latents: Tensor | None = None) -> Tensor:
        return pre + self.of(self.gate_bias, latents)

    def support_mask(self, pre: Float[Tensor, "batch dict_size"]) -> Tensor:
        return pre + self.gate_bias > 0

    @torch.no_grad()
    def scale_(self, factor: float) -> None:
        self.gate_bias.mul_(factor)
        self.mag_bias.mul_(factor)

    @torch.no_grad()
    def scale_latents_(self, factors: Float[Tensor, "dict_size"]) -> None:
        self.gate_bias.mul_(factors)
        self.mag_bias.mul_(factors)
