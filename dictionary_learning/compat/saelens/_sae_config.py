"""What `sae.cfg` says in SAELens, by the names of 3 to 5 and of 6."""

from collections.abc import ItemsView, KeysView, Mapping
from typing import Any

from dictionary_learning.capture._hook_names import hook_name, layer_of, model_name
from dictionary_learning.compat.saelens._fields import RENAMED
from dictionary_learning.dictionaries import Coder, Dictionary, DictionaryInfo, Normalized
from dictionary_learning.dictionaries._wrapper import innermost
from dictionary_learning.dictionaries.nonlinearities import SparseSelection
from dictionary_learning.errors import ConfigError
from dictionary_learning.experimental.temporal import TemporalAutoencoder
from dictionary_learning.interop._sae_lens import SCALED_OUTSIDE
from dictionary_learning.interop._sae_lens_writing import (
    NORMALIZATIONS_THERE,
    architecture_of,
    coder_settings,
    of_run,
    temporal_settings,
)

OF_METADATA = (
    "model_name", "hook_name", "hook_name_out", "hook_layer", "hook_head_index", "context_size", "prepend_bos",
    "dataset_path", "seqpos_slice", "neuronpedia_id", "sae_lens_training_version",
    "model_from_pretrained_kwargs", "dataset_trust_remote_code", "model_class_name", "exclude_special_tokens",
    "sequence_separator_token", "disable_concat_sequences",
)  # fmt: skip
"""Fields that stand beside the others in 3 to 5, and in `metadata` in 6."""


_MAY_BE_SET = ("device", "dtype")
"""Fields that scripts set beside moving the weights themselves."""


class Architecture(str):
    """A word that is also called: `cfg.architecture` in 3 to 5, `cfg.architecture()` in 6."""

    def __call__(self) -> str:
        return str(self)


class SAEMetadata:
    """What is known of the model and the hook. A name that is not known is None."""

    def __init__(self, **known: Any):
        vars(self).update(known)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)

    def __setitem__(self, name: str, value: Any) -> None:
        setattr(self, name, value)

    def __contains__(self, name: str) -> bool:
        return name in vars(self)

    def __repr__(self) -> str:
        return f"SAEMetadata({', '.join(f'{name}={value!r}' for name, value in self.items())})"

    def get(self, name: str, default: Any = None) -> Any:
        """Returns what is known by a name, or the default."""
        return vars(self).get(name, default)

    def keys(self) -> KeysView[str]:
        """Returns the names that are known."""
        return vars(self).keys()

    def items(self) -> ItemsView[str, Any]:
        """Returns what is known."""
        return vars(self).items()

    def to_dict(self) -> dict[str, Any]:
        """Returns what is known as plain data."""
        return dict(vars(self))


class SAEConfig:
    """The settings of a dictionary. They say what it is: only names of the model and hook are set.

    Raises:
        ConfigError: A setting that the weights have already would get another value.
    """

    def __init__(self, metadata: SAEMetadata, **settings: Any):
        vars(self).update(settings, metadata=metadata)

    def __getattr__(self, name: str) -> Any:
        known, own = vars(self), RENAMED.get(name, name)
        if own in OF_METADATA and "metadata" in known:  # which a copy does not have at first
            return known["metadata"][own]
        if own in known:
            return known[own]
        raise AttributeError(f"The cfg of this SAE has no field {name!r}; it has: {', '.join(known)}.")

    def __setattr__(self, name: str, value: Any) -> None:
        own = RENAMED.get(name, name)
        if own in OF_METADATA:
            vars(self)["metadata"][own] = value
        elif own in _MAY_BE_SET or own not in vars(self) or vars(self)[own] == value:
            vars(self)[own] = value
        else:
            raise ConfigError(
                f"Got cfg.{name} = {value!r}, and this SAE has {vars(self)[own]!r}: its cfg says what it is, and does "
                "not change what it computes. Change the dictionary itself (sae.dictionary), or the file before it is "
                "loaded."
            )

    def __repr__(self) -> str:
        return f"SAEConfig({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings as `cfg.json` of SAELens 6 has them."""
        found = {name: value for name, value in vars(self).items() if name != "activation_fn"}
        return {**found, "architecture": str(self.architecture), "metadata": self.metadata.to_dict()}


def config_of(dictionary: Dictionary) -> SAEConfig:
    """Returns the settings that a dictionary has."""
    inner: Any = innermost(dictionary)
    own: dict[str, Any] = {
        "d_in": dictionary.activation_dim,
        "d_sae": dictionary.dict_size,
        "dtype": str(dictionary.dtype).removeprefix("torch."),
        "device": str(dictionary.device),
        "architecture": architecture_of(inner),
        "apply_b_dec_to_input": bool(getattr(inner, "centered", False)),
        "normalize_activations": dictionary.info.config.get(SCALED_OUTSIDE) or "none",
        "reshape_activations": "none",
    }
    if isinstance(dictionary, Normalized):
        own["normalize_activations"] = NORMALIZATIONS_THERE.get(str(dictionary.normalization), dictionary.normalization)
    if dictionary.info.config.get("reshape_activations") == "hook_z":
        own["reshape_activations"] = "hook_z"
    if isinstance(inner, Coder):
        own |= coder_settings(inner)
    elif isinstance(inner, TemporalAutoencoder):
        own |= temporal_settings(inner)
    own["architecture"] = Architecture(own["architecture"])
    if isinstance(inner, Coder) and isinstance(inner.nonlinearity, SparseSelection):
        own["k"] = inner.nonlinearity.k
        own["activation_fn_kwargs"] = {"k": inner.nonlinearity.k}
    own["activation_fn"] = "topk" if str(own["architecture"]) == "topk" else "relu"
    return SAEConfig(_metadata_of(dictionary.info), **own)


def _metadata_of(info: DictionaryInfo) -> SAEMetadata:
    peer = info.config.get("peer")
    settings: Mapping[str, Any] = peer if isinstance(peer, Mapping) else {}
    nested, told = settings.get("metadata"), of_run(info)
    older = {RENAMED.get(name, name): value for name, value in settings.items()}
    known = {**told, **{name: value for name, value in older.items() if name in OF_METADATA}}
    known |= dict(nested) if isinstance(nested, Mapping) else {}
    found = {"model_name": told.get("model_name") or (info.model and (model_name(info.model) or info.model))}
    for key, sites in (("hook_name", info.sites), ("hook_name_out", info.target_sites)):
        if len(sites) == 1:
            found[key] = told.get(key) or hook_name(sites[0], info.model) or sites[0]
    known |= {name: value for name, value in found.items() if value is not None}
    if known.get("hook_layer") is None and known.get("hook_name") is not None:
        known["hook_layer"] = layer_of(known["hook_name"])
    return SAEMetadata(**known)
