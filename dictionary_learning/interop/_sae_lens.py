"""SAELens: `cfg.json` and `sae_weights.safetensors` of versions 2 to 6, checkpoints too.

Where latents are compared after multiplication with the norm of their decoder row
(`rescale_acts_by_decoder_norm`), the norms are folded into the encoder, which changes neither
latents nor output.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dictionary_learning.dictionaries import Coder, Dictionary, Normalized, Transcoder
from dictionary_learning.errors import CheckpointError
from dictionary_learning.experimental.temporal import TemporalAutoencoder
from dictionary_learning.interop._base import (
    Facts,
    Format,
    Loaded,
    choice,
    latents_kept,
    positive,
    setting,
    warn_unknown,
    whole_number,
)
from dictionary_learning.interop._files import Files
from dictionary_learning.interop._safe import read_json
from dictionary_learning.interop._temporal import read_temporal
from dictionary_learning.interop._tensors import Tensors, coder, jump_thresholds, read_tensors, without_threshold

logger = logging.getLogger(__name__)

WEIGHTS = "sae_weights.safetensors"
CONFIG = "cfg.json"
SCALER = "activation_scaler.json"
_WHITENING = "activation_whitening.safetensors"
PARTS = {"W_enc": "W_enc.T", "W_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec", "W_skip": "W_skip"}
GATED = {"gate_bias": "b_gate", "mag_bias": "b_mag", "r_mag": "r_mag"}
_KINDS = {
    **{kind: kind for kind in ("standard", "topk", "abstopk", "jumprelu", "gated", "batchtopk", "matching_pursuit")},
    "matryoshka_batchtopk": "batchtopk",
    "transcoder": "standard",
    "skip_transcoder": "standard",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
}
"""The autoencoder that each is like. BatchTopK is in checkpoints only, and JumpReLU at the end."""
NORMALIZATIONS = {
    "none": None,
    "layer_norm": "layer_norm_eps_in",
    "constant_norm_rescale": "constant_norm_rescale",
    "expected_average_only_in": None,
    "covariance_whitening": None,
    "constant_scalar_rescale": None,
}
"""How tokens are normalized. The fourth and fifth are for training; final saves fold them."""
_OUTSIDE = ("expected_average_only_in", "covariance_whitening")
SCALED_OUTSIDE = "scaled_outside"
"""Section of the config that names how activations are scaled outside of a dictionary."""
UNIT = 1e-5
"""How far from 1 norms may be that were normalized in float32."""
_NAMES = {
    "hook_point": "hook_name",
    "hook_point_layer": "hook_layer",
    "hook_point_head_index": "hook_head_index",
    "activation_fn": "activation_fn_str",
}
"""Settings by their names before 3.0, and since then."""
_METADATA = (
    *("model_name", "hook_name", "hook_layer", "hook_head_index", "context_size", "prepend_bos", "dataset_path"),
    *("seqpos_slice", "neuronpedia_id", "hook_name_out", "hook_layer_out", "hook_head_index_out"),
)

_FIELDS = {
    *("architecture", "d_in", "d_sae", "d_out", "dtype", "device", "apply_b_dec_to_input", "normalize_activations"),
    *("reshape_activations", "metadata", "k", "rescale_acts_by_decoder_norm", "activation", "sae_lens_version"),
    *("max_iterations", "residual_threshold", "stop_on_duplicate_support", "tied_weights", "n_attn_layers", "n_heads"),
    *(
        "sae_diff_type",
        "kval_topk",
        "bottleneck_factor",
        "activation_normalization_factor",
        "sae_lens_training_version",
    ),
    # of checkpoints, and without effect on what is computed
    *("l0_coefficient", "l0_warm_up_steps", "l1_coefficient", "l1_warm_up_steps", "lp_norm", "decoder_init_norm"),
    *("mse_loss_normalization", "jumprelu_init_threshold", "jumprelu_bandwidth", "jumprelu_sparsity_loss_mode"),
    *("jumprelu_tanh_scale", "pre_act_loss_coefficient", "use_sparse_activations", "aux_loss_coefficient"),
    *("topk_threshold_lr", "matryoshka_widths", "decoder_init", "noise_scale", "use_matryoshka_aux_loss"),
}
"""Fields of `cfg.json` of 6.x. Those of earlier versions are those of whole runs."""


class SAELens(Format):
    """Reads all architectures of 6.x and 5.x, and their training checkpoints."""

    name = "sae_lens"
    facts = ("scale",)
    needed = (WEIGHTS, CONFIG, SCALER)
    writes = True

    def recognizes(self, files: Files) -> bool:
        return files.wants(WEIGHTS) and (files.has(CONFIG) or not files.has("config.json"))

    def read(self, files: Files, facts: Facts) -> Loaded:
        given = read_json(files.path(CONFIG))
        # settings were flat before 6.0
        config = modernized(given, files) if given.get("metadata") is None else given
        metadata = setting(config, "metadata", dict, {}, files)
        if config.get("reshape_activations") is not None:
            choice(config, "reshape_activations", ("none", "hook_z"), None, files)
        if config is given:
            warn_unknown(config, _FIELDS, files)
        tensors = read_tensors(files.path(WEIGHTS))
        architecture = choice(config, "architecture", (*_KINDS, "temporal"), "standard", files)
        read = _temporal if architecture == "temporal" else read_coder
        dictionary = read(tensors, config, architecture, files)
        tensors.finish(config, dim="d_in", dict_size="d_sae", output_dim="d_out")
        tensors.check_expansion(config, "expansion_factor")
        known = self.known(files, given, metadata, model="model_name", site="hook_name", target_site="hook_name_out")
        if config.get("reshape_activations") == "hook_z":
            known["reshape_activations"] = "hook_z"  # heads one after another, as in sites of this package
        for section, end in (("site", ""), ("target_site", "_out")):
            if section in known and _is_of_one_head(metadata, f"hook_head_index{end}", files):
                del known[section]
        beside = read_json(files.path(SCALER)) if files.has(SCALER) else {}
        if (scale := beside.get("scaling_factor")) is not None:
            known |= {"activation_scale": positive(scale, "scaling_factor", files)}
        scaled = config.get("normalize_activations")
        if scaled not in _OUTSIDE and (files.has(_WHITENING) or beside.get("has_whitening")):
            logger.warning(
                "'%s' has a whitening of activations (%s) and says normalize_activations=%r: whether it belongs to "
                "this dictionary is not known, and it is not applied.",
                *(files, _WHITENING, scaled),
            )
        if scaled in _OUTSIDE and "scale" not in facts:
            known[SCALED_OUTSIDE] = scaled
        return Loaded(_normalized(dictionary, config, facts, files), known)

    def write(self, dictionary: Dictionary, folder: Path, config: Mapping[str, Any]) -> None:
        from dictionary_learning.interop._sae_lens_writing import write

        write(dictionary, folder, config)


def _is_of_one_head(metadata: Mapping[str, Any], name: str, files: Files) -> bool:
    """Returns whether a dictionary is of one attention head, for which there is no site here."""
    head = whole_number(metadata, name, files)
    if head is not None:
        logger.warning(
            "'%s' is of one attention head (%s=%d), and sites here are of all heads: give it the activations of that "
            "head. Its info has no site.",
            *(files, name, head),
        )
    return head is not None


def modernized(config: Mapping[str, Any], where: object) -> dict[str, Any]:
    """Returns settings of before 6.0 in the form of 6.x.

    The activation decides before the architecture, which says "standard" of TopK, too. `hook_z`
    follows from the hook's name.
    """
    old = {_NAMES.get(name, name): value for name, value in config.items()}
    activation = choice(old, "activation_fn_str", ("relu", "tanh-relu", "topk"), "relu", where)
    architecture = old.get("architecture", "standard")
    new = {name: value for name, value in old.items() if not name.startswith("activation_fn")}
    if activation == "topk":
        if architecture not in ("standard", "topk"):
            raise CheckpointError(
                f"The config of '{where}' says architecture={architecture!r} and activation topk; one of both is "
                "needed."
            )
        arguments = setting(old, "activation_fn_kwargs", dict, {}, where)
        architecture, new["k"] = "topk", arguments.get("k", old.get("k"))
    else:
        new["activation"] = activation
    hook = old.get("hook_name")
    if setting(old, "is_transcoder", bool, False, where):
        raise CheckpointError(f"'{where}' says is_transcoder; of transcoders, those of 6.x of SAELens are read.")
    return {
        **new,
        "architecture": architecture,
        "metadata": {name: old[name] for name in _METADATA if name in old},
        "reshape_activations": "hook_z" if isinstance(hook, str) and hook.endswith("_z") else "none",
    }


def read_coder(tensors: Tensors, config: Mapping[str, Any], architecture: str, files: Files) -> Coder:
    """Returns a dictionary of one encoder and one decoder."""
    kind, predicts = _KINDS[architecture], "transcoder" in architecture
    centered = setting(config, "apply_b_dec_to_input", bool, not predicts, files)
    if predicts and centered:
        raise CheckpointError(
            f"'{files}' says architecture={architecture!r} and apply_b_dec_to_input, which no transcoder of SAELens "
            "has. Correct one of them."
        )
    absent = {
        "W_enc": kind == "matching_pursuit",
        "b_enc": kind in ("gated", "matching_pursuit"),  # the nonlinearity of gated ones has the biases
        "W_skip": "skip" not in architecture,  # of the raw input
    }
    names = {part: name for part, name in PARTS.items() if not absent.get(part)}
    parts = tensors.parts(names, wide="output_dim" if predicts else "dim")
    nonlinearity, state, options = _nonlinearity(kind, tensors, config, files)
    if not predicts:
        parts["W_dec"] = _finetuned(parts["W_dec"], tensors, config, files)
    default = kind == "batchtopk"
    if kind.endswith("topk") and setting(config, "rescale_acts_by_decoder_norm", bool, default, files):
        parts |= _folded(parts)
    if kind == "matching_pursuit" and not centered:
        del parts["b_dec"]  # without the subtraction, SAELens does not add b_dec either
    return coder(parts, nonlinearity, state, centered=centered, predicts=predicts, **options)


def _folded(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the parts with unit decoder rows, and latents multiplied by the norms of the rows."""
    W_dec = parts["W_dec"].float()  # (dict_size, dim)
    norms = W_dec.norm(dim=1)  # (dict_size,)
    if bool(((norms - 1).abs() <= UNIT).all()):
        return {}
    rows = torch.where(norms > 0, norms, 1.0).unsqueeze(1)  # a latent that writes nothing becomes zero
    W_enc = parts["W_enc"].float() * norms.unsqueeze(1)
    return {"W_enc": W_enc, "b_enc": parts["b_enc"].float() * norms, "W_dec": W_dec / rows}


def _finetuned(W_dec: Tensor, tensors: Tensors, config: Mapping[str, Any], files: Files) -> Tensor:
    """Returns the decoder with the factor of each latent that fine-tuning in 5.x learned."""
    names = ("scaling_factor", "finetuning_scaling_factor")
    factors = [tensors.take(name, "dict_size") for name in names if name in tensors]
    is_one = not factors or bool((factors[0] == 1).all())  # files of a while have factors of 1 without need
    said = setting(config, "finetuning_scaling_factor", bool, bool(factors), files)
    if said != bool(factors) and not (factors and is_one):
        raise CheckpointError(
            f"'{files}' says finetuning_scaling_factor={said}, and {'has' if factors else 'lacks'} the factors: config "
            "and weights do not belong together."
        )
    return W_dec if is_one else W_dec.float() * factors[0].float().unsqueeze(1)


def _nonlinearity(
    kind: str, tensors: Tensors, config: Mapping[str, Any], files: Files
) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    """Returns the name of the nonlinearity, its tensors, and its options."""
    if kind != "standard":
        choice(config, "activation", ("relu",), "relu", files)
    if kind in ("topk", "abstopk"):
        options = {"k": latents_kept(config, files, "Add it to the config.")}
        return ("top_k", without_threshold(), options) if kind == "topk" else ("abs_top_k", {}, options)
    if kind == "batchtopk":
        # the threshold is of latents times norms; with norms folded in, it is one of latents
        k = max(round(positive(config.get("k"), "k", files)), 1)
        return "batch_top_k", jump_thresholds(tensors.take("topk_threshold", "")), {"k": k}
    if kind == "gated":
        return "gated", {ours: tensors.take(theirs, "dict_size") for ours, theirs in GATED.items()}, {}
    if kind == "jumprelu":
        # early training files hold the logarithms
        if "threshold" not in tensors and "log_threshold" in tensors:
            return "jump_relu", jump_thresholds(tensors.take("log_threshold", "dict_size").exp()), {}
        tensors.drop("log_threshold")
        return "jump_relu", jump_thresholds(tensors.take("threshold", "dict_size")), {}
    if kind == "matching_pursuit":
        options = {
            "k": setting(config, "max_iterations", int, None, files) or tensors["dim"],
            "residual_threshold": setting(config, "residual_threshold", float, 0.01, files),
            "stop_on_duplicate_support": setting(config, "stop_on_duplicate_support", bool, True, files),
        }
        return "stopped_pursuit", {}, options
    if choice(config, "activation", ("relu", "tanh-relu"), "relu", files) == "relu":
        return "relu", {}, {}
    return "tanh_relu", {"limit": torch.ones(tensors["dict_size"])}, {}


def _temporal(tensors: Tensors, config: Mapping[str, Any], architecture: str, files: Files) -> Dictionary:
    is_scaled = config.get("normalize_activations") == "constant_scalar_rescale"
    scale = config.get("activation_normalization_factor", 1.0) if is_scaled else 1.0
    scale = 1 / positive(scale, "activation_normalization_factor", files)
    subtracts = setting(config, "apply_b_dec_to_input", bool, True, files)
    adds = subtracts or not setting(config, "tied_weights", bool, True, files)
    return read_temporal(tensors, config, files, PARTS, scale=scale, subtracts_b_dec=subtracts, has_output_bias=adds)


def fold_activation_scale_(dictionary: Dictionary, scale: float) -> None:
    """Converts a dictionary of x * scale into one of x, in place; latents stay.

    Raises:
        CheckpointError: it has no encoder and decoder of one scale.
    """
    if not isinstance(dictionary, Coder) or dictionary.is_tied or dictionary.W_skip is not None:
        raise CheckpointError(f"A scale of activations cannot be folded into a {type(dictionary).__name__} that is "
                              "tied, or has no encoder and decoder. Scale the activations instead.")  # fmt: skip
    with torch.no_grad():
        dictionary.W_enc.mul_(scale)
        dictionary.W_dec.div_(scale)
        if dictionary.b_dec is not None:
            dictionary.b_dec.div_(scale)


def _normalized(dictionary: Dictionary, config: Mapping[str, Any], facts: Facts, files: Files) -> Dictionary:
    """Returns the dictionary with the normalization of each token around it."""
    name = config.get("normalize_activations", "none")
    if name is None or isinstance(name, bool):
        name = "expected_average_only_in" if name else "none"
    name = choice({"normalize_activations": name}, "normalize_activations", NORMALIZATIONS, "none", files)
    if "scale" in facts:
        if name != "expected_average_only_in":
            raise CheckpointError(
                f"Got scale={facts['scale']!r}, and '{files}' says normalize_activations={name}: its activations are "
                "not scaled. Leave scale out."
            )
        fold_activation_scale_(dictionary, positive(facts["scale"], "scale", files))
        return dictionary
    if name in _OUTSIDE:
        logger.warning(
            "'%s' was trained on activations that were scaled outside of it (%s). Give it activations scaled in the "
            "same way, or, where the config has activation_scale, call dictionary.scale_(1 / "
            "dictionary.info.config['activation_scale']).",
            files,
            name,
        )
    if name == "constant_scalar_rescale" and not isinstance(dictionary, TemporalAutoencoder):
        raise CheckpointError(f"'{files}' says normalize_activations={name}, which temporal dictionaries alone have.")
    token = NORMALIZATIONS[name]
    if token is not None and isinstance(dictionary, Transcoder):
        raise CheckpointError(
            f"'{files}' is a transcoder and says normalize_activations={name!r}: SAELens normalizes its input and not "
            "its output, which no dictionary here does."
        )
    return dictionary if token is None else Normalized(dictionary, token)
