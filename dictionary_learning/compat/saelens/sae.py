"""A dictionary with the interface of SAELens: its names, its orientation, its files."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning._coercion import StandIn
from dictionary_learning.compat.saelens._names import SAE_ATTRIBUTES
from dictionary_learning.compat.saelens._sae_config import SAEConfig, config_of
from dictionary_learning.dictionaries import Coder, Dictionary, DictionaryInfo, Normalized, fold_decoder_norm_
from dictionary_learning.dictionaries._serialization import write_tensors
from dictionary_learning.dictionaries._views import transposed, write_
from dictionary_learning.dictionaries._wrapper import Wrapper, innermost
from dictionary_learning.dictionaries.nonlinearities import BatchTopK
from dictionary_learning.errors import CheckpointError, ConfigError
from dictionary_learning.interop import write_dictionary
from dictionary_learning.interop._loading import load_dictionary
from dictionary_learning.interop._releases import load_release
from dictionary_learning.interop._sae_lens import CONFIG, GATED, SCALED_OUTSIDE, WEIGHTS, fold_activation_scale_
from dictionary_learning.interop._safe import read_json, read_safetensors

_PLACES = {
    **{name: name for name in ("W_enc", "W_dec", "b_enc", "b_dec", "W_skip")},
    "threshold": "nonlinearity.threshold",
    **{theirs: f"nonlinearity.{ours}" for ours, theirs in GATED.items()},
}
"""Tensors by their names in SAELens, and where they are here."""


_SPARSITY = "sparsity.safetensors"


class SAE(Wrapper, StandIn):
    """A dictionary by the names of SAELens.

    W_enc is (d_in, d_sae) as there, which is the transpose of every other dictionary's here; W_dec
    is (d_sae, d_in) in both. Nothing is copied: what is written into a weight is written into the
    dictionary inside (`sae.dictionary`). Functions of this package take that one when they are
    given this object.

    Args:
        dictionary: The dictionary inside.
    """

    def __init__(self, dictionary: Any):
        if not isinstance(dictionary, Dictionary):
            raise ConfigError(
                f"Got SAE({type(dictionary).__name__}); SAE takes a dictionary of this package. For one of SAELens' "
                "files use SAE.load_from_disk(path), or SAE.from_pretrained(release, sae_id)."
            )
        super().__init__(dictionary.stands_for() if isinstance(dictionary, SAE) else dictionary)
        self.cfg: SAEConfig = config_of(self.dictionary)
        self.hook_z_reshaping_mode = self.cfg.reshape_activations == "hook_z"
        self._of: Tensor | None = None  # what was encoded last, where its scale is needed to decode
        self._d_head: int | None = None

    @property
    def info(self) -> DictionaryInfo:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What is known about the dictionary inside."""
        return self.dictionary.info

    @info.setter
    def info(self, info: DictionaryInfo) -> None:
        self.dictionary.info = info

    def stands_for(self) -> Dictionary:
        return self.dictionary

    @classmethod
    def load_from_disk(
        cls,
        path: str | os.PathLike[str],
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype | None = None,
        *,
        fold_W_dec_norm: bool = False,
        **options: Any,
    ) -> "SAE":
        """Loads a dictionary from a folder, in SAELens' format or in any other.

        Args:
            path: The folder.
            device: Where to.
            dtype: By default that of `cfg.json`, as there.
            fold_W_dec_norm: Whether decoder rows get unit norm.
            options: Further ones of `load_dictionary`, such as facts that the files do not hold
                (`k=`, `scale=`).

        Raises:
            CheckpointError: There is no dictionary, or it cannot be read.
        """
        loaded = load_dictionary(path, device, dtype=_dtype(dtype) or _stored_dtype(Path(path)), **options)
        return cls(loaded)._folded_if(fold_W_dec_norm)

    @classmethod
    def load_from_pretrained(
        cls,
        path: str | os.PathLike[str],
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype | None = None,
        **options: Any,
    ) -> "SAE":
        """Loads a dictionary from a folder, as `load_from_disk` does; the name in 3 to 5."""
        return cls.load_from_disk(path, device, dtype, **options)

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]  # a release, as there
        cls,
        release: str,
        sae_id: str | None = None,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = "float32",
        *,
        fold_W_dec_norm: bool = False,
        **options: Any,
    ) -> "SAE":
        """Loads a published dictionary, and returns it, as SAELens 6 does.

        SAELens 3 to 5 returned three things: `from_pretrained_with_cfg_and_sparsity` does.

        Args:
            release: A name of `list_pretrained`, or a repository of the hub.
            sae_id: Which of its dictionaries, as SAELens names it, or its path in the repository.
            device: Where to.
            dtype: Of the weights.
            fold_W_dec_norm: Whether decoder rows get unit norm.
            options: Further ones of `load_dictionary`, such as `revision`.

        Raises:
            CheckpointError: There is no such release, or no such dictionary in it.
        """
        loaded = load_release(release, sae_id, device, dtype=_dtype(dtype), **options)
        return cls(loaded)._folded_if(fold_W_dec_norm)

    @classmethod
    def from_pretrained_with_cfg_and_sparsity(
        cls, release: str, sae_id: str | None = None, device: str | torch.device = "cpu", **options: Any
    ) -> tuple["SAE", dict[str, Any], Tensor | None]:
        """Loads a published dictionary: `sae, cfg_dict, sparsity`, as 3 to 5 returned.

        `sparsity` is log10 of each latent's frequency, where the files are on this machine and have
        it, and None elsewhere.
        """
        sae = cls.from_pretrained(release, sae_id, device, **options)
        return sae, sae.cfg.to_dict(), _sparsity_beside(sae.info.source)

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any]) -> "SAE":
        """Refuses: a config alone has no weights."""
        raise ConfigError(
            "SAE.from_dict makes weights at random. SAE.load_from_disk(path) loads trained ones; a dictionary to be "
            "trained is made by SAETrainingRunner(cfg), or by trainSAE."
        )

    def save_model(self, path: str | os.PathLike[str], sparsity: Tensor | None = None) -> tuple[Path, Path]:
        """Writes weights and config in SAELens' format, and returns the paths of both.

        Raises:
            CheckpointError: SAELens has no such dictionary, or does not know its hook.
        """
        folder, known = Path(path), self.cfg.metadata
        said = {**self.info.to_config(), "reshape_activations": self.cfg.reshape_activations}
        peer = said.get("peer")
        said["peer"] = {**(peer if isinstance(peer, Mapping) else {}), "metadata": known.to_dict()}
        names = {name: known[name] for name in ("hook_name", "hook_name_out", "model_name") if known[name]}
        write_dictionary(self.dictionary, folder, "sae_lens", said, **names)
        if sparsity is not None:
            write_tensors(folder / _SPARSITY, {"sparsity": sparsity})
        return folder / WEIGHTS, folder / CONFIG

    save_inference_model = save_model

    def encode(self, x: Float[Tensor, "..."]) -> Float[Tensor, "*batch d_sae"]:
        """Returns the latents, dense, in the dtype of the weights. Heads are put side by side."""
        x = self._flat(x)
        if self._needs_inputs:
            self._of = x
        return self.dictionary.encode(x).to(self.dtype)

    def decode(  # pyright: ignore[reportIncompatibleMethodOverride]  # the name there
        self, feature_acts: Float[Tensor, "*batch d_sae"], x: Float[Tensor, "*batch d_in"] | None = None
    ) -> Float[Tensor, "..."]:
        """Returns the reconstruction, without W_skip x, as SAELens does.

        Where tokens are normalized one by one, that of what was encoded last; or of x.

        Raises:
            ConfigError: Tokens are normalized one by one, and none were encoded before.
        """
        inner: Any = self.dictionary
        if self._needs_inputs:
            x, self._of = (self._of if x is None else x), None
            out = inner.decode(feature_acts, x)
        elif getattr(inner, "W_skip", None) is not None:
            nothing = feature_acts.new_zeros(*feature_acts.shape[:-1], self.activation_dim)
            out = inner.decode(feature_acts, nothing if x is None else x)
        else:
            out = inner.decode(feature_acts)
        return self._in_heads(out.to(self.dtype))

    def forward(self, x: Float[Tensor, "..."], output_features: bool = False) -> Any:
        """Returns the reconstruction, or (reconstruction, latents) with `output_features`."""
        flat = self._flat(x)
        if output_features:
            latents = self.dictionary.encode(flat)
            return self._in_heads(self.dictionary.decode_with(latents, flat).to(self.dtype)), latents.to(self.dtype)
        return self._in_heads(self.dictionary(flat).to(self.dtype))

    def decode_with(
        self, latents: Float[Tensor, "*batch d_sae"], x: Float[Tensor, "*batch d_in"]
    ) -> Float[Tensor, "*batch d_out"]:
        return self.dictionary.decode_with(latents, x)

    def reconstruct(self, x: Float[Tensor, "batch d_in"]) -> Any:
        return self.dictionary.reconstruct(x)

    def fold_W_dec_norm(self) -> None:
        """Gives decoder rows unit norm, and multiplies latents by their norms.

        Raises:
            ConfigError: Other latents would be kept.
        """
        fold_decoder_norm_(innermost(self))

    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        """Converts a dictionary of x * scaling_factor into one of x; latents stay."""
        fold_activation_scale_(innermost(self), scaling_factor)
        known = {name: value for name, value in self.info.config.items() if name != SCALED_OUTSIDE}
        self.info = dataclasses.replace(self.info, config=known)
        vars(self.cfg)["normalize_activations"] = "none"  # what was set by hand of the others stays

    def get_name(self) -> str:
        """Returns a name made of model, hook and number of latents."""
        return f"sae_{self.cfg.model_name}_{self.cfg.hook_name}_{self.dict_size}"

    def turn_off_forward_pass_hook_z_reshaping(self) -> None:
        """Takes heads side by side only."""
        self.hook_z_reshaping_mode, self._d_head = False, None

    def turn_on_forward_pass_hook_z_reshaping(self) -> None:
        """Takes activations (..., n_heads, d_head) too."""
        self.hook_z_reshaping_mode = True

    @property
    def W_enc(self) -> Float[Tensor, "d_in d_sae"]:
        """Columns are the encoder's directions, as in SAELens. A view of the dictionary's own."""
        return transposed(innermost(self).W_enc)

    def state_dict(self, *arguments: Any, **options: Any) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Returns the tensors by their names and in their orientation in SAELens."""
        inner = innermost(self)
        further: dict[str, Tensor] = {} if isinstance(inner, Coder) else inner.state_dict()
        found = {**further, **{name: self._tensor(name) for name in self._tensors()}}
        return {name: tensor.detach() for name, tensor in found.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Writes tensors of SAELens into the dictionary.

        Raises:
            CheckpointError: One is missing, or is not one of this dictionary.
        """
        own = self._tensors()
        wrong = sorted({*own} ^ {*state_dict}) if strict else []
        if wrong:
            raise CheckpointError(f"Got tensors {', '.join(state_dict)}; this SAE has {', '.join(own)}. Give these, or "
                                  "load the folder by SAE.load_from_disk.")  # fmt: skip
        for name in own:
            if name in state_dict:
                setattr(self, name, state_dict[name])
        return torch.nn.modules.module._IncompatibleKeys([], [])

    def __getattr__(self, name: str) -> Any:
        if name in _PLACES and "dictionary" in self._modules:
            if name in self._tensors():
                return self._tensor(name)
            if name == "threshold" and isinstance(getattr(innermost(self), "nonlinearity", None), BatchTopK):
                inner = innermost(self)  # one for all latents, as SAELens saves them
                return inner.nonlinearity.threshold.expand(inner.dict_size)
        if name in SAE_ATTRIBUTES:
            raise AttributeError(f"SAE.{name} of SAELens is not here (docs/migrating.md). {SAE_ATTRIBUTES[name]}.")
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _PLACES and isinstance(value, Tensor):
            if name not in self._tensors():
                raise ConfigError(f"A {self.cfg.architecture} SAE has no {name}; it has {', '.join(self._tensors())}.")
            write_(self._tensor(name), value, name)
        elif name == "use_error_term" and value:
            raise ConfigError(f"use_error_term=True of SAELens is not here. {SAE_ATTRIBUTES[name]}.")
        else:
            super().__setattr__(name, value)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        moved = super()._apply(fn, recurse)
        self.cfg.device, self.cfg.dtype = str(self.device), str(self.dtype).removeprefix("torch.")
        return moved

    def _tensors(self) -> list[str]:
        inner: Any = innermost(self.dictionary)
        is_tied = getattr(inner, "is_tied", getattr(inner, "tied", False))
        found: list[str] = []
        for name, place in _PLACES.items():
            part, _, last = place.rpartition(".")
            owner = getattr(inner, part, None) if part else inner
            held = getattr(owner, last, None)
            if isinstance(held, Tensor) and not (name == "W_enc" and is_tied) and held.ndim:
                found.append(name)
        return found

    def _tensor(self, name: str) -> Tensor:
        inner: Any = innermost(self.dictionary)
        part, _, last = _PLACES[name].rpartition(".")
        return self.W_enc if name == "W_enc" else getattr(getattr(inner, part) if part else inner, last)

    @property
    def _needs_inputs(self) -> bool:
        return isinstance(self.dictionary, Normalized) and self.dictionary.normalization is not None

    def _folded_if(self, wanted: bool) -> "SAE":
        if wanted:
            self.fold_W_dec_norm()
        return self

    def _flat(self, x: Tensor) -> Tensor:
        heads = self.hook_z_reshaping_mode and x.ndim > 2 and x.shape[-1] != self.activation_dim
        self._d_head = x.shape[-1] if heads else None
        return x.flatten(-2) if heads else x

    def _in_heads(self, out: Tensor) -> Tensor:
        return out if self._d_head is None else out.unflatten(-1, (-1, self._d_head))


def _dtype(given: str | torch.dtype | None) -> torch.dtype | None:
    if not isinstance(given, str):
        return given
    found = getattr(torch, given.removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise ConfigError(f"Got dtype={given!r}; give one of torch, such as 'float32'.")
    return found


def _sparsity_beside(source: str | None) -> Tensor | None:
    file = Path(source or "") / _SPARSITY
    return read_safetensors(file)["sparsity"] if file.is_file() else None


def _stored_dtype(folder: Path) -> torch.dtype | None:
    if not (folder / CONFIG).is_file():
        return None
    said: Any = read_json(folder / CONFIG)
    return _dtype(said.get("dtype")) if isinstance(said, Mapping) and isinstance(said.get("dtype"), str) else None
