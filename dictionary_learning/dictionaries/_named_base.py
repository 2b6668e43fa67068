"""What autoencoders of a known name have in common: one nonlinearity, and older ways to call."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from dictionary_learning.dictionaries._coder import build_nonlinearity
from dictionary_learning.dictionaries._views import LinearView
from dictionary_learning.dictionaries._wirings import SparseAutoencoder
from dictionary_learning.dictionaries.nonlinearities import Nonlinearity, SparseSelection, ThresholdedTopK


class NamedAutoencoder(SparseAutoencoder):
    """An autoencoder whose class determines its nonlinearity."""

    nonlinearity_class: ClassVar[type[Nonlinearity]]
    has_decoder_bias: ClassVar[bool] = False
    """Whether `decoder`, as dictionary-learning has it, adds b_dec."""

    def __init__(self, activation_dim: int, dict_size: int, *options: Any, device: Any = None, **wiring: Any):
        super().__init__(activation_dim, dict_size, self.nonlinearity_class(*options), **wiring)
        if device is not None:
            self.to(device)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_"):
                raise
        from dictionary_learning.compat._dictionary_names import older_attribute

        return older_attribute(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, Tensor) and "nonlinearity" in self._modules:
            from dictionary_learning.compat._dictionary_names import write_older_attribute

            if write_older_attribute(self, name, value):
                return
        super().__setattr__(name, value)

    def options(self) -> dict[str, Any]:
        own = {"activation_dim": self.activation_dim, "dict_size": self.dict_size, **self.nonlinearity.options()}
        if self.rank_by_norm != self.ranks_by_norm:
            own["rank_by_norm"] = self.rank_by_norm
        if self.apply_b_dec_to_input != self.subtracts_b_dec:
            own["apply_b_dec_to_input"] = self.apply_b_dec_to_input
        return own

    def encode(self, x: Float[Tensor, "*batch activation_dim"], *older: bool, **flags: bool) -> Any:
        """Returns the latents, dense; or what flags of dictionary-learning ask for (`compat`)."""
        if not older and not flags:
            return self.encode_dense(x)
        from dictionary_learning.compat._encode_flags import encode_with_flags

        return encode_with_flags(self, x, older, flags)

    def encode_dense(self, x: Float[Tensor, "*batch activation_dim"]) -> Float[Tensor, "*batch dict_size"]:
        """Returns the latents, dense."""
        return super().encode(x)

    def decode(self, latents: Any = None, x: Any = None, **older: Any) -> Float[Tensor, "*batch output_dim"]:
        """Returns the reconstruction; also by arguments of dictionary-learning (`compat`)."""
        if latents is not None and not older and not isinstance(x, bool):
            return self.decode_dense(latents, x)
        from dictionary_learning.compat._encode_flags import decode_with_flags

        return decode_with_flags(self, latents, x, older)

    def decode_dense(
        self, latents: Float[Tensor, "*batch dict_size"], x: Float[Tensor, "*batch activation_dim"] | None = None
    ) -> Float[Tensor, "*batch output_dim"]:
        """Returns the reconstruction from dense latents."""
        return super().decode(latents, x)

    def forward(
        self, x: Float[Tensor, "*batch activation_dim"], output_features: bool = False, *older: Any, **flags: Any
    ) -> Any:
        """Returns x_hat, or (x_hat, latents); flags are those of dictionary-learning (`compat`)."""
        if not older and not flags:
            return super().forward(x, output_features)
        from dictionary_learning.compat._encode_flags import forward_with_flags

        return forward_with_flags(self, x, output_features, older, flags)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads tensors by this package's names, or by those of dictionary-learning's `ae.pt`."""
        if not any(name.startswith("nonlinearity.") for name in state_dict):
            from dictionary_learning.compat._dictionary_names import own_state

            state_dict = own_state(self, state_dict)
        return super().load_state_dict(state_dict, strict, assign)

    @property
    def decoder(self) -> LinearView:
        """`decoder.weight` (output_dim, dict_size) and, where its class has one, `decoder.bias`."""
        return LinearView(self.W_dec, self.b_dec if self.has_decoder_bias else None, transposed=True)


class Count(int):
    """A whole number that is also read and written as a tensor of one is, by `item` and `fill_`."""

    write: Callable[[int], None]

    def item(self) -> int:
        """Returns the number."""
        return int(self)

    def fill_(self, value: Any) -> "Count":
        """Writes the number that the dictionary keeps; this one stays."""
        self.write(value)
        return self

    copy_ = fill_

    def __reduce__(self) -> Any:
        return int, (int(self),)  # a copy is a number


class KeepsK(NamedAutoencoder):
    """One that keeps a set number of latents, `k`, which may be read and set."""

    nonlinearity: SparseSelection

    def __init__(self, activation_dim: int, dict_size: int, k: int, **wiring: Any):
        super().__init__(activation_dim, dict_size, k, **wiring)

    @property
    def k(self) -> "Count":
        """Latents per token that may be non-zero; with BatchTopK, on average."""
        k = Count(self.nonlinearity.k)
        k.write = self._keep
        return k

    @k.setter
    def k(self, k: Any) -> None:
        self._keep(k)

    def _keep(self, k: Any) -> None:
        asked = k.item() if isinstance(k, Tensor) and k.numel() == 1 else k
        made = build_nonlinearity({**self.nonlinearity_options(), "k": asked})  # refuses what is no k
        made.setup(self.dict_size)
        self.nonlinearity.k = made.options()["k"]


class HasThreshold(KeepsK):
    """One that also has a threshold for inference."""

    nonlinearity: ThresholdedTopK

    @property
    def threshold(self) -> Tensor:
        """The threshold estimated for inference; -1 if there is none."""
        return self.nonlinearity.threshold
