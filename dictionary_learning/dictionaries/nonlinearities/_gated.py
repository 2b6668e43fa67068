"""Gates: whether a latent fires, and how strongly, are separate."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from dictionary_learning.dictionaries.nonlinearities._base import NONLINEARITIES, Elementwise, ThresholdForm


@NONLINEARITIES.register("gated")
class Gated(Elementwise):
    """latents = 1[pre + gate_bias > 0] * relu(exp(r_mag) * pre + mag_bias), where pre has no bias.

    Rajamanoharan et al. 2024, https://arxiv.org/abs/2404.16014, equations 4 to 7: gate and
    magnitude share the encoder's directions. No gradient passes the gate; it learns from `gate` in
    the auxiliary loss.
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
        """Returns relu(pre + gate_bias), for sparsity penalty and auxiliary reconstruction."""
        return (pre + self.of(self.gate_bias, latents)).relu()

    def margin(self, pre: Tensor, latents: Tensor | None = None) -> Tensor:
        return pre + self.of(self.gate_bias, latents)

    def support_mask(self, pre: Float[Tensor, "batch dict_size"]) -> Bool[Tensor, "batch dict_size"]:
        return pre + self.gate_bias > 0

    def biases(self) -> list[nn.Parameter]:
        return [self.gate_bias, self.mag_bias]

    def threshold_form(self) -> ThresholdForm:
        # pre + gate_bias > 0 where scale * pre + mag_bias > mag_bias - scale * gate_bias
        gate, magnitude, scale = (p.float() for p in (self.gate_bias, self.mag_bias, self.r_mag.exp()))
        return ThresholdForm(scale, magnitude, (magnitude - scale * gate).clamp_min(0))

    def from_threshold_form(self, bias: Tensor, threshold: Tensor | None) -> dict[str, Tensor | None]:
        return {"mag_bias": bias, "gate_bias": bias if threshold is None else bias - threshold}

    @torch.no_grad()
    def scale_latents_(self, factors: Float[Tensor, "dict_size"] | float) -> None:
        for bias in self.biases():
            bias.mul_(factors)

    def scale_(self, factor: float) -> None:
        self.scale_latents_(factor)
