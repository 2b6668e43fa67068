"""Autoencoders by the names that people know: each is a nonlinearity, and the arguments and extras of its name."""

from collections.abc import Sequence
from typing import Any

import torch
from einops import pack, unpack
from jaxtyping import Float
from torch import Tensor, nn

from dictionary_learning.dictionaries.autoencoder import SparseAutoencoder
from dictionary_learning.dictionaries.base import DICTIONARIES, Dictionary, Reconstruction
from dictionary_learning.dictionaries.nonlinearities import (
    AbsTopK,
    BatchTopK,
    Gated,
    GroupMax,
    JumpReLU,
    MatchingPursuit,
    Nonlinearity,
    ReLU,
    SparseSelection,
    ThresholdedTopK,
    TopK,
)
from dictionary_learning.errors import ConfigError
from dictionary_learning.latents import to_dense


class _Named(SparseAutoencoder):
    """An autoencoder whose class says which nonlinearity it has."""

    def options(self) -> dict[str, Any]:
        own = {"activation_dim": self.activation_dim, "dict_size": self.dict_size, **self.nonlinearity.options()}
        return {**own, **({"rank_by_norm": True} if self.rank_by_norm else {}), **self._centering()}

    def _centering(self) -> dict[str, Any]:
        return {} if self.centered else {"apply_b_dec_to_input": False}


@DICTIONARIES.register("AutoEncoder")
class AutoEncoder(_Named):
    """An autoencoder with a rectifier (Bricken et al. 2023, Towards Monosemanticity)."""

    def __init__(self, activation_dim: int, dict_size: int, **wiring: Any):
        super().__init__(activation_dim, dict_size, ReLU(), **wiring)


@DICTIONARIES.register("AutoEncoderNew")
class AutoEncoderNew(_Named):
    """An autoencoder with a rectifier, no bias before the encoder, and decoder rows of any norm (Anthropic, April 2024 update)."""

    def __init__(self, activation_dim: int, dict_size: int, *, apply_b_dec_to_input: bool = False, **wiring: Any):
        super().__init__(activation_dim, dict_size, ReLU(), apply_b_dec_to_input=apply_b_dec_to_input, **wiring)

    def forward(self, x: Float[Tensor, "*batch activation_dim"], output_features: bool = False) -> Any:
        """Returns x_hat, or (x_hat, latents times the norms of the rows that they write) with `output_features`."""
        if not output_features:
            return super().forward(x)
        latents = self.encode(x)
        return self.decode(latents), latents * self.decoder_norms()

    def _centering(self) -> dict[str, Any]:
        return {"apply_b_dec_to_input": True} if self.centered else {}


@DICTIONARIES.register("GatedAutoEncoder")
class GatedAutoEncoder(_Named):
    """An autoencoder with gates (Rajamanoharan et al. 2024, https://arxiv.org/abs/2404.16014)."""

    nonlinearity: Gated

    def __init__(self, activation_dim: int, dict_size: int, **wiring: Any):
        super().__init__(activation_dim, dict_size, Gated(), **wiring)

    def encode(self, x: Float[Tensor, "*batch activation_dim"], return_gate: bool = False) -> Any:
        """Returns the latents, dense; with `return_gate` also relu of the gates' pre-activations."""
        latents = super().encode(x)
        return (latents, self.nonlinearity.gate(self.pre_activations(x))) if return_gate else latents


@DICTIONARIES.register("JumpReluAutoEncoder")
class JumpReluAutoEncoder(_Named):
    """An autoencoder with a threshold for each latent (Rajamanoharan et al. 2024, https://arxiv.org/abs/2407.14435).

    Args:
        activation_dim: width of the activations.
        dict_size: number of latents.
        initial_threshold: see `JumpReLU`.
        bandwidth: see `JumpReLU`.
        kernel: see `JumpReLU`.
        gradient_to_input: see `JumpReLU`.
        apply_b_dec_to_input: whether b_dec is subtracted before encoding.
        wiring: further arguments of `SparseAutoencoder`.
    """

    nonlinearity: JumpReLU

    def __init__(
        self,
        activation_dim: int,
        dict_size: int,
        initial_threshold: float = 0.001,
        bandwidth: float = 0.001,
        kernel: Any = "rectangle",
        gradient_to_input: bool = False,
        *,
        apply_b_dec_to_input: bool = False,
        **wiring: Any,
    ):
        nonlinearity = JumpReLU(initial_threshold, bandwidth, kernel, gradient_to_input)
        super().__init__(activation_dim, dict_size, nonlinearity, apply_b_dec_to_input=apply_b_dec_to_input, **wiring)

    @property
    def threshold(self) -> nn.Parameter:
        """The threshold of each latent."""
        return self.nonlinearity.threshold

    def encode(self, x: Float[Tensor, "*batch activation_dim"], output_pre_jump: bool = False) -> Any:
        """Returns the latents, dense; with `output_pre_jump` also relu of the pre-activations."""
        latents = super().encode(x)
        return (latents, self.pre_activations(x).relu()) if output_pre_jump else latents

    def _centering(self) -> dict[str, Any]:
        return {"apply_b_dec_to_input": True} if self.centered else {}


class _KeepsK(_Named):
    nonlinearity: SparseSelection

    @property
    def k(self) -> int:
        """How many latents of a token may be non-zero; with a batch's together, on average."""
        return self.nonlinearity.k


class _HasThreshold(_KeepsK):
    nonlinearity: ThresholdedTopK  # pyright: ignore[reportIncompatibleVariableOverride]

    @property
    def threshold(self) -> Tensor:
        """The threshold learnt for inference; -1 if there is none."""
        return self.nonlinearity.threshold

    def by_threshold(self, x: Float[Tensor, "*batch activation_dim"]) -> Float[Tensor, "*batch dict_size"]:
        """Returns the latents that exceed the learnt threshold."""
        pre = self.pre_activations(x)
        if not self.rank_by_norm:
            return self.nonlinearity.above_threshold(pre)
        norms = self.ranking_norms()
        return self.nonlinearity.above_threshold(pre * norms) / norms


@DICTIONARIES.register("AutoEncoderTopK")
class AutoEncoderTopK(_HasThreshold):
    """An autoencoder that keeps the k largest latents of each token (Gao et al. 2024, https://arxiv.org/abs/2406.04093)."""

    nonlinearity: TopK  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, activation_dim: int, dict_size: int, k: int, **wiring: Any):
        super().__init__(activation_dim, dict_size, TopK(k), **wiring)

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
            return self.by_threshold(x)
        if not return_topk:
            return super().encode(x)
        flat, lead = pack([x], "* dim")
        kept = self.encode_sparse(flat)
        values, order = kept.values.sort(dim=-1, descending=True)
        dense, values, indices = (
            unpack(tensor, lead, "* latents")[0] for tensor in (to_dense(kept), values, kept.indices.gather(-1, order))
        )
        return dense, values, indices, self.pre_activations(x).relu()


class _BatchTopK(_HasThreshold):
    nonlinearity: BatchTopK  # pyright: ignore[reportIncompatibleVariableOverride]

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
            dense = self.by_threshold(x)
        else:
            flat, lead = pack([x], "* dim")
            (dense,) = unpack(to_dense(self.encode_sparse(flat)), lead, "* latents")
        dense = self.shown(dense)
        if not return_active:
            return dense
        return dense, (dense > 0).reshape(-1, self.dict_size).any(0), self.pre_activations(x).relu()

    def shown(self, latents: Float[Tensor, "*batch dict_size"]) -> Float[Tensor, "*batch dict_size"]:
        """Returns the latents that are in use."""
        return latents


@DICTIONARIES.register("BatchTopKSAE")
class BatchTopKSAE(_BatchTopK):
    """An autoencoder that keeps the k * batch largest latents of a batch (Bussmann et al. 2024, https://arxiv.org/abs/2412.06410).

    Outside training, latents fire above the learnt threshold, so that a token's do not depend on its batch.
    """

    def __init__(self, activation_dim: int, dict_size: int, k: int, **wiring: Any):
        super().__init__(activation_dim, dict_size, BatchTopK(k), **wiring)


@DICTIONARIES.register("MatryoshkaBatchTopKSAE")
class MatryoshkaBatchTopKSAE(_BatchTopK):
    """BatchTopK whose latents stand in groups, each prefix of which is a dictionary (Bussmann et al. 2025, https://arxiv.org/abs/2503.17547).

    Args:
        activation_dim: width of the activations.
        dict_size: number of latents.
        k: how many latents of a token may be non-zero, on average over a batch.
        group_sizes: how many latents each group has.
        wiring: further arguments of `SparseAutoencoder`.

    Raises:
        ConfigError: the groups do not add up to dict_size.
    """

    def __init__(self, activation_dim: int, dict_size: int, k: int, group_sizes: Sequence[int], **wiring: Any):
        super().__init__(activation_dim, dict_size, BatchTopK(k), **wiring)
        self.group_sizes = tuple(int(size) for size in group_sizes)
        if sum(self.group_sizes) != dict_size or min(self.group_sizes) < 1:
            raise ConfigError(
                f"group_sizes={self.group_sizes} add up to {sum(self.group_sizes)}; positive sizes with the sum dict_size={dict_size} "
                "are needed."
            )
        self.active_groups = len(self.group_sizes)
        """How many groups `encode` and `decode` use: the first so many."""

    @property
    def group_indices(self) -> list[int]:
        """Where each group begins, and dict_size."""
        return [0, *torch.tensor(self.group_sizes).cumsum(0).tolist()]

    def shown(self, latents: Float[Tensor, "*batch dict_size"]) -> Float[Tensor, "*batch dict_size"]:
        if self.active_groups == len(self.group_sizes):
            return latents
        return latents * (torch.arange(self.dict_size, device=latents.device) < self.group_indices[self.active_groups])

    def decode(
        self, latents: Float[Tensor, "*batch dict_size"], x: Float[Tensor, "*batch activation_dim"] | None = None
    ) -> Float[Tensor, "*batch output_dim"]:
        return super().decode(self.shown(latents), x)

    def options(self) -> dict[str, Any]:
        return {**super().options(), "group_sizes": list(self.group_sizes)}


@DICTIONARIES.register("GroupMaxSAE")
class GroupMaxSAE(_KeepsK):
    """An autoencoder that keeps the largest latent of each of k groups (as EleutherAI's sparsify)."""

    def __init__(self, activation_dim: int, dict_size: int, k: int, **wiring: Any):
        super().__init__(activation_dim, dict_size, GroupMax(k), **wiring)


@DICTIONARIES.register("AbsTopKSAE")
class AbsTopKSAE(_KeepsK):
    """An autoencoder that keeps the k latents of largest absolute value (https://arxiv.org/abs/2510.00404)."""

    def __init__(self, activation_dim: int, dict_size: int, k: int, **wiring: Any):
        super().__init__(activation_dim, dict_size, AbsTopK(k), **wiring)


@DICTIONARIES.register("MatchingPursuitSAE")
class MatchingPursuitSAE(_KeepsK):
    """An autoencoder that takes one latent after another (Costa et al. 2025, https://arxiv.org/abs/2506.03093)."""

    def __init__(self, activation_dim: int, dict_size: int, k: int, **wiring: Any):
        super().__init__(activation_dim, dict_size, MatchingPursuit(k), **wiring)


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


AUTOENCODERS: dict[type[Nonlinearity], type[SparseAutoencoder]] = {
    ReLU: AutoEncoder,
    Gated: GatedAutoEncoder,
    JumpReLU: JumpReluAutoEncoder,
    TopK: AutoEncoderTopK,
    BatchTopK: BatchTopKSAE,
    GroupMax: GroupMaxSAE,
    AbsTopK: AbsTopKSAE,
    MatchingPursuit: MatchingPursuitSAE,
}
"""The name of an autoencoder with each nonlinearity."""
