"""Dictionaries as SAELens 6 saves them for use."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from dictionary_learning.dictionaries import (
    Coder,
    Dictionary,
    Normalized,
    SparseAutoencoder,
    Transcoder,
)
from dictionary_learning.dictionaries.nonlinearities import (
    AbsTopK,
    BatchTopK,
    Gated,
    JumpReLU,
    ReLU,
    StoppedPursuit,
    TopK,
)
from dictionary_learning.disk import write_atomically, write_json
from dictionary_learning.errors import CheckpointError
from dictionary_learning.experimental.temporal import TemporalAutoencoder

_VERSION = "6.0.0"
"""The version whose form it is; readers take a config without one for that of 5.x."""
_NORMALIZATIONS = {"layer_norm_eps_in": "layer_norm", "constant_norm_rescale": "constant_norm_rescale"}
_ARCHITECTURES = {
    ReLU: "standard",
    TopK: "topk",
    AbsTopK: "abstopk",
    JumpReLU: "jumprelu",
    BatchTopK: "jumprelu",
    Gated: "gated",
    StoppedPursuit: "matching_pursuit",
}
_TRANSCODERS = {ReLU: "transcoder", JumpReLU: "jumprelu_transcoder", BatchTopK: "jumprelu_transcoder"}
_UNIT = 1e-5
"""How far from 1 norms may be that were made 1 in float32."""


class _Saved(NamedTuple):
    settings: dict[str, Any]
    tensors: dict[str, Tensor]


def write(dictionary: Dictionary, folder: Path, config: Mapping[str, Any]) -> None:
    """Writes `cfg.json` and `sae_weights.safetensors`; BatchTopK as JumpReLU with its threshold, as SAELens saves its own.

    Raises:
        CheckpointError: SAELens has no such dictionary; nothing has been written then.
    """
    normalization, inner = _unwrapped(dictionary)
    if isinstance(inner, TemporalAutoencoder) and normalization == "none":
        saved = _temporal(inner)
    elif isinstance(inner, (SparseAutoencoder, Transcoder)):
        saved = _coder(inner)
    else:
        raise CheckpointError(
            f"SAELens has autoencoders and transcoders of one site; this is a {type(inner).__name__}. Convert it to own, which "
            "holds every class."
        )
    metadata = {"sae_lens_version": _VERSION, "sae_lens_training_version": None}
    peer = config.get("peer")
    if isinstance(peer, Mapping) and isinstance(peer.get("metadata"), Mapping):
        metadata |= dict(peer["metadata"])
    for theirs, ours in (("model_name", "model"), ("hook_name", "site")):
        if isinstance(config.get(ours), str):
            metadata.setdefault(theirs, config[ours])
    settings = {
        "d_in": inner.activation_dim,
        "d_sae": inner.dict_size,
        "dtype": str(inner.dtype).removeprefix("torch."),
        "device": "cpu",
        "normalize_activations": normalization,
        "reshape_activations": "hook_z" if config.get("reshape_activations") == "hook_z" else "none",
        "metadata": metadata,
        **saved.settings,
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in saved.tensors.items()}
    write_atomically(folder / "sae_weights.safetensors", lambda temporary: save_file(tensors, temporary))
    write_json(folder / "cfg.json", settings)


def _unwrapped(dictionary: Dictionary) -> tuple[str, Dictionary]:
    """Returns the dictionary, and the name of what is done to each token around it."""
    if not isinstance(dictionary, Normalized):
        return "none", dictionary
    name = dictionary.normalization
    if name not in _NORMALIZATIONS or len(dictionary.scales) > 1 or dictionary.scales != (1.0,):
        raise CheckpointError(
            f"SAELens normalizes tokens by {', '.join(_NORMALIZATIONS.values())}, at one site and without a scale; this dictionary has "
            f"{name} with scales {dictionary.scales}"
            + (", which returns the deviation with 1e-5 added. " if name == "layer_norm" else ". ")
            + "Convert it to own."
        )
    return _NORMALIZATIONS[name], dictionary.dictionary


def _coder(coder: Coder) -> _Saved:
    nonlinearity = coder.nonlinearity
    predicts = isinstance(coder, Transcoder)
    known = _TRANSCODERS if predicts else _ARCHITECTURES
    architecture = known.get(type(nonlinearity))
    if architecture is None:
        raise CheckpointError(
            f"SAELens has no {'transcoder' if predicts else 'autoencoder'} with {type(nonlinearity).__name__}; it has "
            f"{', '.join(kind.__name__ for kind in known)}. Convert it to own, or to one of these by expand_or_convert(..., nonlinearity=...)."
        )
    if coder.rank_by_norm and bool(((coder.decoder_norms() - 1).abs() > _UNIT).any()):
        raise CheckpointError(
            "This dictionary compares latents by value times the norm of what they write and gives the values; SAELens gives both "
            "multiplied. Apply fold_decoder_norm_ to a copy first: then they are the same."
        )
    settings: dict[str, Any] = {"architecture": architecture, "apply_b_dec_to_input": coder.centered}
    tensors: dict[str, Tensor | None] = {"W_dec": coder.W_dec, "b_dec": coder.b_dec, "b_enc": coder.b_enc}
    if not coder.is_tied:
        tensors["W_enc"] = coder.W_enc.T
    if predicts:
        settings["d_out"] = coder.output_dim
    if coder.W_skip is not None:
        tensors["W_skip"] = coder.W_skip
        settings["architecture"] = architecture.replace("transcoder", "skip_transcoder")
    _add_nonlinearity(coder, settings, tensors)
    return _Saved(settings, {name: tensor for name, tensor in tensors.items() if tensor is not None})


def _add_nonlinearity(coder: Coder, settings: dict[str, Any], tensors: dict[str, Tensor | None]) -> None:
    nonlinearity = coder.nonlinearity
    if isinstance(nonlinearity, (TopK, AbsTopK)):
        settings |= {"k": nonlinearity.k, "rescale_acts_by_decoder_norm": False}
    elif isinstance(nonlinearity, JumpReLU):
        tensors["threshold"] = nonlinearity.threshold
    elif isinstance(nonlinearity, BatchTopK):
        if float(nonlinearity.threshold) < 0:
            raise CheckpointError(
                "SAELens saves BatchTopK with its learnt threshold, and this one has learnt none. Train it for a step, or set "
                "dictionary.nonlinearity.threshold."
            )
        tensors["threshold"] = torch.full((coder.dict_size,), float(nonlinearity.threshold))
    elif isinstance(nonlinearity, Gated):
        tensors |= {"b_gate": nonlinearity.gate_bias, "b_mag": nonlinearity.mag_bias, "r_mag": nonlinearity.r_mag}
    elif isinstance(nonlinearity, StoppedPursuit):
        own = nonlinearity.options()
        settings |= {"max_iterations": own.pop("k"), **own}


def _temporal(dictionary: TemporalAutoencoder) -> _Saved:
    if dictionary.has_output_bias != (dictionary.subtracts_b_dec or not dictionary.tied):
        raise CheckpointError("SAELens adds b_dec where it subtracts it; this dictionary does not. Convert it to own.")
    settings = {
        "architecture": "temporal",
        "apply_b_dec_to_input": dictionary.subtracts_b_dec,
        "normalize_activations": "constant_scalar_rescale",
        "activation_normalization_factor": 1 / dictionary.scale,
        "n_heads": dictionary.n_heads,
        "n_attn_layers": dictionary.n_layers,
        "bottleneck_factor": dictionary.bottleneck_factor,
        "sae_diff_type": "relu" if dictionary.k is None else "topk",
        "kval_topk": dictionary.k,
        "tied_weights": dictionary.tied,
    }
    tensors = dict(dictionary.state_dict())
    if not dictionary.tied:
        tensors["W_enc"] = dictionary.W_enc.T
    return _Saved(settings, tensors)
