"""Dictionaries as SAELens 6 saves them for inference."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dictionary_learning._disk import write_json
from dictionary_learning.capture._hook_names import hook_name, is_hook, model_name
from dictionary_learning.dictionaries import (
    Coder,
    Dictionary,
    DictionaryInfo,
    Normalized,
    SparseAutoencoder,
    Transcoder,
)
from dictionary_learning.dictionaries._serialization import write_tensors
from dictionary_learning.dictionaries.nonlinearities import (
    AbsTopK,
    BatchTopK,
    Gated,
    JumpReLU,
    ReLU,
    StoppedPursuit,
    TopK,
)
from dictionary_learning.errors import CheckpointError
from dictionary_learning.experimental.temporal import TemporalAutoencoder
from dictionary_learning.interop._sae_lens import CONFIG, GATED, NORMALIZATIONS, PARTS, SCALED_OUTSIDE, UNIT, WEIGHTS
from dictionary_learning.interop._tensors import stored_parts

logger = logging.getLogger(__name__)

_VERSION = "6.0.0"
"""The version of the form that is written; readers take a config without one for that of 5.x."""
SAE_LENS = "sae_lens"
"""Where the record of a run has the fields of SAELens that it was started with."""
SITE = "site"
"""The field of this package's among them: the site that the hook was found to be."""
_GIVEN = ("model_name", "model_class_name", "exclude_special_tokens", "sequence_separator_token")
_OF_THE_SITE = ("hook_name", "hook_layer", "hook_head_index")
NORMALIZATIONS_THERE = {ours: theirs for theirs, ours in NORMALIZATIONS.items() if ours is not None}
"""Normalizations of each token by their names here, and in SAELens."""
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


def write(dictionary: Dictionary, folder: Path, config: Mapping[str, Any]) -> None:
    """Writes `cfg.json` and `sae_weights.safetensors`; BatchTopK as JumpReLU, as SAELens does."""
    normalization, inner = config.get(SCALED_OUTSIDE) or "none", dictionary
    if isinstance(dictionary, Normalized):
        name, scales = dictionary.normalization, dictionary.scales
        if name not in NORMALIZATIONS_THERE or scales != (1.0,):
            raise CheckpointError(
                f"SAELens normalizes tokens by {', '.join(NORMALIZATIONS_THERE)}, at one site and without a scale; "
                f"this dictionary has {name} with scales {scales}. Convert it to own."
            )
        normalization, inner = NORMALIZATIONS_THERE[name], dictionary.dictionary
    if isinstance(inner, TemporalAutoencoder) and inner is dictionary:
        own, tensors = temporal_settings(inner), _temporal_tensors(inner)
    elif isinstance(inner, (SparseAutoencoder, Transcoder)):
        own, tensors = _coder(inner)
    else:
        raise CheckpointError(
            f"SAELens has autoencoders and transcoders of one site; this is a {type(inner).__name__}. Convert it to "
            "own, which holds every class."
        )
    settings = {
        "d_in": inner.activation_dim,
        "d_sae": inner.dict_size,
        "dtype": str(inner.dtype).removeprefix("torch."),
        "device": "cpu",
        "normalize_activations": normalization,
        "reshape_activations": "hook_z" if config.get("reshape_activations") == "hook_z" else "none",
        "metadata": _metadata(config),
        **own,
    }
    write_tensors(folder / WEIGHTS, tensors)
    write_json(folder / CONFIG, settings)


def architecture_of(dictionary: Dictionary) -> str:
    """Returns the architecture's name in SAELens, or the nonlinearity's here if it has none."""
    if not isinstance(dictionary, Coder):
        return "temporal" if isinstance(dictionary, TemporalAutoencoder) else type(dictionary).__name__.lower()
    known = _TRANSCODERS if isinstance(dictionary, Transcoder) else _ARCHITECTURES
    kind = type(dictionary.nonlinearity)
    found = known.get(kind, kind.__name__.lower())
    return found if dictionary.W_skip is None else found.replace("transcoder", "skip_transcoder")


def _metadata(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the metadata by which SAELens finds model and hook."""
    info = DictionaryInfo.from_config(config)
    peer = config.get("peer")
    peers = peer.get("metadata") if isinstance(peer, Mapping) else None
    told = of_run(info)
    metadata = {"sae_lens_version": _VERSION, "sae_lens_training_version": None, **told, **(peers or {})}
    is_given = isinstance(config.get("model"), str)  # to whom writes it, or by other files
    if info.model is not None and (is_given or "model_name" not in told) and (name := model_name(info.model)):
        metadata["model_name"] = name
    elif info.sites and "model_name" not in metadata:
        logger.warning(
            "SAELens finds the language model by its name, and none is known for certain (%s). It is left out; give "
            "model_name= to have it.",
            info.model or "the model was given as an object, or the files do not say it",
        )
    for key, sites in (("hook_name", info.sites), ("hook_name_out", info.target_sites)):
        hooks = [hook_name(site, info.model) for site in sites]
        if key in told and not any(map(is_hook, sites)):
            hooks = [told[key]]
        if sites and (len(hooks) != 1 or hooks[0] is None):
            # with an unknown hook, SAELens says "No hook found" and goes on without the dictionary
            raise CheckpointError(
                f"SAELens finds a dictionary's place by the name of a TransformerLens hook, and none is known for "
                f"{', '.join(sites)}. Give {key}=, such as 'blocks.10.hook_resid_post'."
            )
        if hooks:
            metadata[key] = hooks[0]
    return metadata


def of_run(info: DictionaryInfo) -> dict[str, Any]:
    """Returns the metadata in the record of a training: as given, or as it read the text."""
    config = info.config
    run, buffer = (part if isinstance(part := config.get(name), Mapping) else {} for name in ("run", "buffer"))
    rule: Any = buffer.get("filter")
    begins = buffer.get("begins_with_bos")
    known = {
        "context_size": buffer.get("ctx_len"),
        # before that was recorded, only a run without special tokens tells it
        "prepend_bos": False if begins is None and buffer.get("add_special_tokens") is False else begins,
        "dataset_path": run.get("data"),
        "seqpos_slice": rule.get("seqpos_slice") if isinstance(rule, Mapping) else None,
        "disable_concat_sequences": not buffer["pack"] if "pack" in buffer else None,
    }
    given: Any = _converted(config) or run.get(SAE_LENS)
    if isinstance(given, Mapping):
        is_there = info.sites in ((given.get(SITE),), (given.get("hook_name"),))
        names = (*known, *_GIVEN, *(_OF_THE_SITE if is_there else ()))
        known |= {name: value for name in names if (value := given.get(name)) not in (None, "")}
        if not is_hook(str(known.get("hook_name"))):  # a site may be named there too
            known.pop("hook_name", None)
    return {name: value for name, value in known.items() if value is not None}


def _converted(config: Mapping[str, Any]) -> Any:
    """Returns the metadata of the files of SAELens that a dictionary was converted from."""
    for part in ("converted_from", "config", "metadata"):
        found: Any = config.get(part)
        if not isinstance(found, Mapping) or (part == "converted_from" and found.get("format") != "sae_lens"):
            return None
        config = found
    return config


def _coder(coder: Coder) -> tuple[dict[str, Any], dict[str, Tensor]]:
    nonlinearity = coder.nonlinearity
    predicts = isinstance(coder, Transcoder)
    known = _TRANSCODERS if predicts else _ARCHITECTURES
    if type(nonlinearity) not in known:
        raise CheckpointError(
            f"SAELens has no {'transcoder' if predicts else 'autoencoder'} with {type(nonlinearity).__name__}; it has "
            f"{', '.join(kind.__name__ for kind in known)}. Convert it to own, or to one of these by "
            "expand_or_convert(..., nonlinearity=...)."
        )
    if coder.rank_by_norm and not _has_unit_rows(coder):
        raise CheckpointError(
            "This dictionary ranks latents by value times the norm of their decoder row and returns the values; "
            "SAELens returns the products. Apply fold_decoder_norm_ to a copy first, which makes both the same."
        )
    names = {part: name for part, name in PARTS.items() if part != "W_enc" or not coder.is_tied}
    tensors = stored_parts(coder, names)
    if isinstance(nonlinearity, JumpReLU):
        tensors["threshold"] = nonlinearity.threshold
    elif isinstance(nonlinearity, BatchTopK):
        if float(nonlinearity.threshold) < 0:
            raise CheckpointError(
                "SAELens saves BatchTopK with its learned threshold, and this one has learned none. Train it for a "
                "step, or set dictionary.nonlinearity.threshold."
            )
        # one threshold for all latents is a JumpReLU with equal thresholds
        tensors["threshold"] = torch.full((coder.dict_size,), float(nonlinearity.threshold))
    elif isinstance(nonlinearity, Gated):
        tensors |= {theirs: getattr(nonlinearity, ours) for ours, theirs in GATED.items()}
    return coder_settings(coder), tensors


def coder_settings(coder: Coder) -> dict[str, Any]:
    """Returns the settings of a dictionary beside its sizes, as `cfg.json` has them."""
    settings: dict[str, Any] = {"architecture": architecture_of(coder), "apply_b_dec_to_input": coder.centered}
    settings |= {"d_out": coder.output_dim} if isinstance(coder, Transcoder) else {}
    if isinstance(coder.nonlinearity, (TopK, AbsTopK)):
        # with unit rows both values mean the same, and SAEDashboard folds norms, which needs True
        settings |= {"k": coder.nonlinearity.k, "rescale_acts_by_decoder_norm": _has_unit_rows(coder)}
    elif isinstance(coder.nonlinearity, StoppedPursuit):
        own = coder.nonlinearity.options()
        settings |= {"max_iterations": own.pop("k"), **own}
    return settings


def _has_unit_rows(coder: Coder) -> bool:
    return bool(((coder.decoder_norms() - 1).abs() <= UNIT).all())


def temporal_settings(dictionary: TemporalAutoencoder) -> dict[str, Any]:
    """Returns the same of a dictionary that reads whole contexts, with its scale."""
    return {
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


def _temporal_tensors(dictionary: TemporalAutoencoder) -> dict[str, Tensor]:
    if dictionary.has_output_bias != (dictionary.subtracts_b_dec or not dictionary.tied):
        raise CheckpointError("SAELens adds b_dec where it subtracts it; this dictionary does not. Convert it to own.")
    # dim 0 is the latent axis here, and the last axis there
    turned = {} if dictionary.tied else {"W_enc": dictionary.W_enc.T}
    return {**dictionary.state_dict(), **turned}
