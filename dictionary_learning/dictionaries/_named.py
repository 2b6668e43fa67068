"""Autoencoders by the names that people know: a nonlinearity each, and the extras of the name."""

import logging
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dictionary_learning.dictionaries._base import DICTIONARIES, Dictionary, Reconstruction
from dictionary_learning.dictionaries._folding import fold_decoder_norm_
from dictionary_learning.dictionaries._named_base import HasThreshold, KeepsK, NamedAutoencoder
from dictionary_learning.dictionaries._wirings import SparseAutoencoder
from dictionary_learning.dictionaries.nonlinearities import (
    AbsTopK,
    BatchTopK,
    Gated,
    GroupMax,
    JumpReLU,
    MatchingPursuit,
    Nonlinearity,
    ReLU,
    TopK,
)
from dictionary_learning.errors import ConfigError
from dictionary_learning.ops._straight_through import KernelName

logger = logging.getLogger(__name__)


@DICTIONARIES.register("AutoEncoder")
class AutoEncoder(NamedAutoencoder):
    """An autoencoder with ReLU (Bricken et al. 2023, Towards Monosemanticity)."""

    nonlinearity_class = ReLU

    @classmethod
    def from_pretrained(
        cls, path: Any, device: Any = None, *older: Any, normalize_decoder: bool | None = None, **options: Any
    ) -> Any:
        """Loads one; `normalize_decoder` gives its decoder rows unit norm."""
        if len(older) > 1:  # (path, dtype, device, normalize_decoder)
            older, normalize_decoder = older[:-1], older[-1]
        loaded = super().from_pretrained(path, device, *older, **options)
        if normalize_decoder is None:
            from dictionary_learning.compat._dictionary_names import warn_of_norms

            warn_of_norms(loaded)
        elif normalize_decoder:
            fold_decoder_norm_(loaded)
        return loaded


@DICTIONARIES.register("AutoEncoderNew")
class AutoEncoderNew(NamedAutoencoder):
    """An autoencoder with ReLU that does not subtract b_dec, with decoder rows of any norm.

    Conerly et al. 2024, Anthropic's April update.
    """

    nonlinearity_class = ReLU
    subtracts_b_dec: ClassVar[bool] = False
    has_decoder_bias: ClassVar[bool] = True

    def forward(
        self, x: Float[Tensor, "*batch activation_dim"], output_features: bool = False, *older: Any, **flags: Any
    ) -> Any:
        """Returns x_hat, or (x_hat, latents times decoder norms) with `output_features`."""
        if not output_features or older or flags:
            return super().forward(x, output_features, *older, **flags)
        latents = self.encode(x)
        return self.decode(latents), latents * self.decoder_norms()


@DICTIONARIES.register("GatedAutoEncoder")
class GatedAutoEncoder(NamedAutoencoder):
    """An autoencoder with gates (Rajamanoharan et al. 2024, https://arxiv.org/abs/2404.16014)."""

    nonlinearity: Gated
    nonlinearity_class = Gated

    def __init__(
        self, activation_dim: int, dict_size: int, initialization: Any = "default", device: Any = None, **wiring: Any
    ):
        super().__init__(activation_dim, dict_size, device=device, **wiring)
        if callable(initialization):  # of dictionary-learning: a function that sets the weights
            initialization(self)
        elif initialization != "default":
            raise ConfigError(
                f"Got initialization={initialization!r}; give 'default', or a function of the dictionary."
            )


@DICTIONARIES.register("JumpReluAutoEncoder")
class JumpReluAutoEncoder(NamedAutoencoder):
    """An autoencoder with a threshold for each latent.

    Rajamanoharan et al. 2024, https://arxiv.org/abs/2407.14435.

    Args: those of `JumpReLU`, and in `wiring` further ones of `SparseAutoencoder`.
    """

    nonlinearity: JumpReLU
    nonlinearity_class = JumpReLU
    subtracts_b_dec: ClassVar[bool] = False

    def __init__(
        self,
        activation_dim: int,
        dict_size: int,
        initial_threshold: Any = 0.001,
        bandwidth: float = 0.001,
        kernel: KernelName = "rectangle",
        gradient_to_input: bool = False,
        **wiring: Any,
    ):
        if isinstance(initial_threshold, (str, torch.device)):  # the third argument of dictionary-learning
            wiring.setdefault("device", initial_threshold)
            initial_threshold = 0.001
        options = (initial_threshold, bandwidth, kernel, gradient_to_input)
        super().__init__(activation_dim, dict_size, *options, **wiring)
        _warn_of_square(self)

    @classmethod
    def from_pretrained(cls, path: Any = None, *older: Any, load_from_sae_lens: bool = False, **options: Any) -> Any:
        """Loads one; with `load_from_sae_lens`, by `release` and `sae_id`."""
        if older and isinstance(older[0], bool):  # (path, load_from_sae_lens, dtype, device)
            named = dict(zip(("dtype", "device"), older[1:], strict=False))
            load_from_sae_lens, older, options = older[0], older[3:], {**named, **options}
        if not load_from_sae_lens:
            return super().from_pretrained(path, *older, **options)
        from dictionary_learning.compat._dictionary_names import of_release

        return of_release(cls, *older, **options)

    @property
    def threshold(self) -> nn.Parameter:
        """The threshold of each latent."""
        return self.nonlinearity.threshold


@DICTIONARIES.register("AutoEncoderTopK")
class AutoEncoderTopK(HasThreshold):
    """An autoencoder that keeps the k largest latents of each token.

    Gao et al. 2024, https://arxiv.org/abs/2406.04093.
    """

    nonlinearity_class = TopK


@DICTIONARIES.register("BatchTopKSAE")
class BatchTopKSAE(HasThreshold):
    """An autoencoder that keeps the k * batch largest latents of a batch in training.

    For inference, latents above the estimated threshold are kept, so that those of a token do not
    depend on its batch. Bussmann et al. 2024, https://arxiv.org/abs/2412.06410.
    """

    nonlinearity_class = BatchTopK


@DICTIONARIES.register("MatryoshkaBatchTopKSAE")
class MatryoshkaBatchTopKSAE(HasThreshold):
    """BatchTopK with groups of latents, each prefix of which is a dictionary.

    Bussmann et al. 2025, https://arxiv.org/abs/2503.17547. `group_sizes` has the number of latents
    of each group.

    Raises:
        ConfigError: The groups do not add up to dict_size.
    """

    nonlinearity_class = BatchTopK

    def __init__(self, activation_dim: int, dict_size: int, k: int, group_sizes: Sequence[int], **wiring: Any):
        super().__init__(activation_dim, dict_size, k, **wiring)
        self.group_sizes = tuple(int(size) for size in group_sizes)
        if sum(self.group_sizes) != dict_size or min(self.group_sizes) < 1:
            raise ConfigError(
                f"group_sizes={self.group_sizes} add up to {sum(self.group_sizes)}; positive sizes with the sum "
                f"dict_size={dict_size} are needed."
            )
        _warn_of_square(self)
        self.active_groups = len(self.group_sizes)
        """Number of groups that `encode` and `decode` use, from the first."""

    @property
    def group_indices(self) -> list[int]:
        """The first latent of each group, and dict_size."""
        return [0, *torch.tensor(self.group_sizes).cumsum(0).tolist()]

    def encode_dense(self, x: Float[Tensor, "*batch activation_dim"]) -> Float[Tensor, "*batch dict_size"]:
        return self.in_use(super().encode_dense(x))

    def in_use(self, latents: Float[Tensor, "*batch dict_size"]) -> Float[Tensor, "*batch dict_size"]:
        """Returns the latents with those of groups that are not in use at zero."""
        if self.active_groups == len(self.group_sizes):
            return latents
        return latents * (torch.arange(self.dict_size, device=latents.device) < self.group_indices[self.active_groups])

    def decode_dense(
        self, latents: Float[Tensor, "*batch dict_size"], x: Float[Tensor, "*batch activation_dim"] | None = None
    ) -> Float[Tensor, "*batch output_dim"]:
        return super().decode_dense(self.in_use(latents), x)

    def options(self) -> dict[str, Any]:
        return {**super().options(), "group_sizes": list(self.group_sizes)}


@DICTIONARIES.register("GroupMaxSAE")
class GroupMaxSAE(KeepsK):
    """An autoencoder that keeps the largest latent of each of k groups (EleutherAI's sparsify)."""

    nonlinearity_class = GroupMax


@DICTIONARIES.register("AbsTopKSAE")
class AbsTopKSAE(KeepsK):
    """An autoencoder that keeps the k latents of largest absolute value (arXiv:2510.00404)."""

    nonlinearity_class = AbsTopK


@DICTIONARIES.register("MatchingPursuitSAE")
class MatchingPursuitSAE(KeepsK):
    """An autoencoder that chooses latents one after another (arXiv:2506.03093)."""

    nonlinearity_class = MatchingPursuit


@DICTIONARIES.register("IdentityDict")
class IdentityDict(Dictionary):
    """Latents are the activations: the baseline that loses nothing."""

    def __init__(self, activation_dim: int | None = None, dtype: torch.dtype | None = None, device: Any = None):
        super().__init__(activation_dim, activation_dim)
        if activation_dim is None:  # of any width
            self.activation_dim = self.dict_size = None  # pyright: ignore[reportAttributeAccessIssue]
        # gives the module a device and a dtype
        self.anchor = nn.Parameter(torch.zeros(0, dtype=dtype, device=device), requires_grad=False)
        self._to: dict[str, Any] = {
            name: value for name, value in (("dtype", dtype), ("device", device)) if value is not None
        }

    def encode(self, x: Float[Tensor, "*batch activation_dim"]) -> Float[Tensor, "*batch dict_size"]:
        return x.to(**self._to) if self._to else x

    def decode(self, latents: Float[Tensor, "*batch dict_size"]) -> Float[Tensor, "*batch activation_dim"]:
        return self.encode(latents)

    def forward(
        self, x: Float[Tensor, "*batch activation_dim"], output_features: bool = False, ghost_mask: Any = None
    ) -> Any:
        """Returns x, or (x, x) with `output_features`; a `ghost_mask` has no effect."""
        return super().forward(x, output_features)

    def check_width(self, x: Any, width: int | None = None, what: str = "activations") -> None:
        if self.activation_dim is not None:  # pyright: ignore[reportUnnecessaryComparison]
            super().check_width(x, width, what)

    @classmethod
    def from_pretrained(cls, path: Any, device: Any = None, *older: Any, **options: Any) -> Any:
        """Loads one; or, as in dictionary-learning, makes one of (activation_dim, path)."""
        if isinstance(path, int):
            names = ("dtype", "device")
            return cls(path, **{**dict(zip(names, older, strict=False)), **options})
        return super().from_pretrained(path, device, *older, **options)

    def reconstruct(self, x: Float[Tensor, "batch activation_dim"]) -> Reconstruction:
        return Reconstruction(x, x)

    def scale_(self, inputs: float, outputs: float | None = None) -> None:
        pass

    def options(self) -> dict[str, Any]:
        return {"activation_dim": self.activation_dim}


def _warn_of_square(ae: SparseAutoencoder) -> None:
    """Says which way W_enc lies, where its shape does not."""
    if ae.activation_dim == ae.dict_size:
        logger.warning(
            "W_enc of this %s is (dict_size, activation_dim), as of every class; dictionary-learning 0.1 had its "
            "transpose, and here both have the same shape.",
            type(ae).__name__,
        )


def autoencoder_class(nonlinearity: type[Nonlinearity]) -> type[SparseAutoencoder]:
    """Returns the class known for autoencoders with a nonlinearity, or else `SparseAutoencoder`."""
    for _, known in DICTIONARIES.items():  # the first one, so that variants stand after the plain class
        if issubclass(known, NamedAutoencoder) and known.nonlinearity_class is nonlinearity:
            return known
    return SparseAutoencoder
