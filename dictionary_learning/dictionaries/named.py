"""Dictionaries by the names that people know."""

from typing import Any

import torch
from einops import pack, unpack
from jaxtyping import Float
from torch import Tensor, nn

from dictionary_learning.dictionaries.autoencoder import SparseAutoencoder
from dictionary_learning.dictionaries.base import DICTIONARIES, Dictionary, Reconstruction
from dictionary_learning.dictionaries.nonlinearities import BatchTopK, ReLU, TopK
from dictionary_learning.latents import to_dense


@DICTIONARIES.register("AutoEncoder")
class AutoEncoder(SparseAutoencoder):
    """An autoencoder with a rectifier (Bricken et al. 2023, Towards Monosemanticity)."""

    def __init__(self, activation_dim: int, dict_size: int, *, generator: torch.Generator | None = None):
        super().__init__(activation_dim, dict_size, ReLU(), generator=generator)

    def options(self) -> dict[str, Any]:
        return {"activation_dim": self.activation_dim, "dict_size": self.dict_size}


@DICTIONARIES.register("AutoEncoderTopK")
class AutoEncoderTopK(SparseAutoencoder):
    """An autoencoder that keeps the k largest latents of each token (Gao et al. 2024, https://arxiv.org/abs/2406.04093)."""

    nonlinearity: TopK

    def __init__(self, activation_dim: int, dict_size: int, k: int, *, generator: torch.Generator | None = None):
        super().__init__(activation_dim, dict_size, TopK(k), generator=generator)

    @property
    def k(self) -> int:
        """How many latents of a token may be non-zero."""
        return self.nonlinearity.k

    @property
    def threshold(self) -> Tensor:
        """The threshold learnt for inference without top-k; -1 if there is none."""
        return self.nonlinearity.threshold

    def encode(
        self, x: Float[Tensor, "*batch activation_dim"], return_topk: bool = False, use_threshold: bool = False
    ) -> Any:
        """Returns the latents, dense.

        Args:
            x: the activations.
            return_topk: returns (latents, kept values, kept indices, relu of all pre-activations) instead.
            use_threshold: latents fire above the learnt threshold, each on its own.
        """
        if use_threshold:
            return self.nonlinearity.above_threshold(self.pre_activations(x))
        if not return_topk:
            return super().encode(x)
        flat, lead = pack([x], "* dim")
        kept = self.encode_sparse(flat)
        values, order = kept.values.sort(dim=-1, descending=True)
        dense, values, indices = (
            unpack(tensor, lead, "* latents")[0] for tensor in (to_dense(kept), values, kept.indices.gather(-1, order))
        )
        return dense, values, indices, self.pre_activations(x).relu()

    def options(self) -> dict[str, Any]:
        return {"activation_dim": self.activation_dim, "dict_size": self.dict_size, "k": self.k}


@DICTIONARIES.register("BatchTopKSAE")
class BatchTopKSAE(SparseAutoencoder):
    """An autoencoder that keeps the k * batch largest latents of a batch (Bussmann et al. 2024, https://arxiv.org/abs/2412.06410).

    Outside training, latents fire above the learnt threshold, so that a token's do not depend on its batch.
    """

    nonlinearity: BatchTopK

    def __init__(self, activation_dim: int, dict_size: int, k: int, *, generator: torch.Generator | None = None):
        super().__init__(activation_dim, dict_size, BatchTopK(k), generator=generator)

    @property
    def k(self) -> int:
        """How many latents of a token may be non-zero, on average over a batch."""
        return self.nonlinearity.k

    @property
    def threshold(self) -> Tensor:
        """The threshold learnt for inference; -1 if there is none."""
        return self.nonlinearity.threshold

    def encode(
        self, x: Float[Tensor, "*batch activation_dim"], return_active: bool = False, use_threshold: bool = True
    ) -> Any:
        """Returns the latents, dense.

        Args:
            x: the activations.
            return_active: returns (latents, which latents fire on any token, relu of all pre-activations) instead.
            use_threshold: latents fire above the learnt threshold; else the k * tokens largest are kept.

        Raises:
            ConfigError: no threshold was learnt, and it is to be used.
        """
        if use_threshold:
            dense = super().encode(x)
        else:
            flat, lead = pack([x], "* dim")
            (dense,) = unpack(to_dense(self.encode_sparse(flat)), lead, "* latents")
        if not return_active:
            return dense
        return dense, (dense > 0).flatten(0, -2).any(0), self.pre_activations(x).relu()

    def options(self) -> dict[str, Any]:
        return {"activation_dim": self.activation_dim, "dict_size": self.dict_size, "k": self.k}


@DICTIONARIES.register("IdentityDict")
class IdentityDict(Dictionary):
    """Latents are the activations: the baseline that loses nothing.

    Args:
        activation_dim: width of the activations.
    """

    def __init__(self, activation_dim: int):
        super().__init__(activation_dim, activation_dim)
        self.anchor = nn.Parameter(torch.zeros(0), requires_grad=False)  # gives the module a device and a dtype

    def encode(self, x: Float[Tensor, "*batch activation_dim"]) -> Float[Tensor, "*batch dict_size"]:
        return x

    def decode(self, latents: Float[Tensor, "*batch dict_size"]) -> Float[Tensor, "*batch activation_dim"]:
        return latents

    def reconstruct(self, x: Float[Tensor, "batch activation_dim"]) -> Reconstruction:
        return Reconstruction(x, x)

    def scale_(self, inputs: float, outputs: float | None = None) -> None:
        pass

    def options(self) -> dict[str, Any]:
        return {"activation_dim": self.activation_dim}
