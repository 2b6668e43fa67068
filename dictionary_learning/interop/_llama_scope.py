"""Llama Scope, and OpenMOSS's autoencoders of DeepSeek-R1: files of before `llamascopium`.

They were trained on scaled activations. The scale is folded into the weights, so that dictionaries
take activations as the model gives them.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dictionary_learning.dictionaries import Dictionary, Normalized
from dictionary_learning.errors import CheckpointError
from dictionary_learning.interop._archives import read_names
from dictionary_learning.interop._base import Facts, Format, Loaded, choice, label, latents_kept, positive, setting
from dictionary_learning.interop._files import Files
from dictionary_learning.interop._llamascopium import Scales, check_encoder, normalization_of, scaled
from dictionary_learning.interop._safe import read_json
from dictionary_learning.interop._tensors import Tensors, coder, jump_thresholds, read_tensors, without_threshold

_PARTS = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight.T", "b_dec": "decoder.bias"}
_CONFIG = "config.json"
_SETTINGS = "hyperparams.json"
_FINAL = "final.safetensors"
_R1 = "sae_weights.safetensors"
_LOG_THRESHOLD = "log_jumprelu_threshold"
_NORMS = "dataset_average_activation_norm"


class LlamaScope(Format):
    """Reads `hyperparams.json` with `checkpoints/final.safetensors`, or with the weights beside it.

    s = sqrt(d_model) / mean norm of the activations, of a transcoder one for the input and one for
    the output; its one threshold is multiplied by s.
    """

    name = "llama_scope"
    needed = (_SETTINGS, _FINAL, f"checkpoints/{_FINAL}")

    def recognizes(self, files: Files) -> bool:
        is_asked = files.chosen in (None, _FINAL, _SETTINGS) and (files.has(_SETTINGS) or files.has(_FINAL))
        return is_asked and bool(files.settings(_SETTINGS))

    def read(self, files: Files, facts: Facts) -> Loaded:
        config = files.settings(_SETTINGS)
        if not config:
            raise CheckpointError(
                f"'{files}' has no {_SETTINGS}, without which its scale is not known. Get the whole folder."
            )
        _check_kind(config, files)
        tensors = read_tensors((files if files.has(_FINAL) else files.at("checkpoints")).path(_FINAL))
        parts, scales = _parts(tensors, config, files), Scales(1.0, 1.0)
        if normalization_of(config, files) == "dataset-wise":
            scales = Scales(*(math.sqrt(tensors["dim"]) / norm for norm in _norms(config, files)))
        threshold = None
        if choice(config, "act_fn", ("relu", "jumprelu", "topk"), "jumprelu", files) == "jumprelu":
            threshold = setting(config, "jump_relu_threshold", float, None, files)
            if threshold is None:
                raise CheckpointError(f"'{files}' is a JumpReLU, and says no jump_relu_threshold. Get the whole file.")
            threshold = torch.full((tensors["dict_size"],), threshold * scales.read)
        return Loaded(_built(parts, tensors, config, threshold, scales, files), _known(self, config, files))


class LlamaScopeR1(Format):
    """Reads `config.json` and `sae_weights.safetensors`, which hold no scale."""

    name = "llama_scope_r1"
    facts = ("scale",)
    needed = (_R1, _CONFIG)

    def recognizes(self, files: Files) -> bool:
        return files.wants(_R1) and not files.has("cfg.json") and _LOG_THRESHOLD in read_names(files, _R1)

    def read(self, files: Files, facts: Facts) -> Loaded:
        config = read_json(files.path(_CONFIG))
        _check_kind(config, files)
        tensors = read_tensors(files.path(_R1))
        choice(config, "act_fn", ("jumprelu",), "jumprelu", files)
        choice(config, "norm_activation", ("dataset-wise", "inference"), "dataset-wise", files)
        if _predicts(config):
            raise CheckpointError(
                f"'{files}' says hook_point_out={config['hook_point_out']!r}, another than hook_point_in, and holds "
                "neither of their scales. Only autoencoders of this format are read."
            )
        parts = _parts(tensors, config, files)
        thresholds = tensors.take(_LOG_THRESHOLD, "dict_size").float().exp()
        if "scale" not in facts:
            raise CheckpointError(
                f"'{files}' does not hold the factor that activations are multiplied by before encoding. Give scale= "
                "as the release of the dictionary says it, or scale=1 for activations that are scaled already."
            )
        scale = positive(facts["scale"], "scale", files)
        made = _built(parts, tensors, config, thresholds, Scales(scale, scale), files)
        return Loaded(made, _known(self, config, files))


def _predicts(config: Mapping[str, Any]) -> bool:
    return config.get("hook_point_out") not in (None, config.get("hook_point_in"))


def _check_kind(config: Mapping[str, Any], files: Files) -> None:
    """Checks that it is a dictionary of one site, or of two that are named."""
    choice(config, "sae_type", ("sae",), "sae", files)
    read, written = (label(config, name, files) for name in ("hook_point_in", "hook_point_out"))
    if read is None and written is not None:
        raise CheckpointError(
            f"The config of '{files}' says hook_point_out={written!r} and no hook_point_in, so that it may be of one "
            "site or of two. Add hook_point_in."
        )


def _norms(config: Mapping[str, Any], files: Files) -> tuple[float, float]:
    """Returns the mean norms of what is read and written."""
    norms = setting(config, _NORMS, dict, {}, files)
    read = positive(norms.get("in"), f"{_NORMS}.in", files)
    written = read if norms.get("out") is None else positive(norms["out"], f"{_NORMS}.out", files)
    if written != read and not _predicts(config):
        raise CheckpointError(
            f"'{files}' has {_NORMS}.in={read} and {_NORMS}.out={written}, and reads and writes one site, which has "
            "one norm. Correct one of them."
        )
    return read, written


def _known(format: Format, config: Mapping[str, Any], files: Files) -> dict[str, Any]:
    known = format.known(files, config, site="hook_point_in", target_site="hook_point_out")
    if not _predicts(config):
        known.pop("target_site", None)
    return known


def _parts(tensors: Tensors, config: Mapping[str, Any], files: Files) -> dict[str, Tensor]:
    check_encoder(config, files)
    has_bias = setting(config, "use_decoder_bias", bool, True, files)
    names = {part: name for part, name in _PARTS.items() if part != "b_dec" or has_bias}
    return tensors.parts(names, wide="output_dim" if _predicts(config) else "dim")


def _built(
    parts: Mapping[str, Tensor],
    tensors: Tensors,
    config: Mapping[str, Any],
    thresholds: Tensor | None,
    scales: Scales,
    files: Files,
) -> Dictionary:
    """Returns the dictionary of raw activations; with thresholds it is a JumpReLU."""
    tensors.finish(config, dim="d_model", dict_size="d_sae")
    tensors.check_expansion(config, "expansion_factor")
    predicts, name = _predicts(config), "relu"
    centered = setting(config, "apply_decoder_bias_to_pre_encoder", bool, False, files)
    if centered and predicts:
        raise CheckpointError(
            f"'{files}' says apply_decoder_bias_to_pre_encoder, and predicts another site than it reads; no "
            "transcoder here subtracts b_dec from its input."
        )
    by_norm = setting(config, "sparsity_include_decoder_norm", bool, False, files)
    state: Mapping[str, Tensor] = {}
    options: dict[str, Any] = {}
    if thresholds is not None:
        # pre-activations times decoder norms are compared there
        norms = parts["W_dec"].float().norm(dim=1) if by_norm else 1.0
        name, state = "jump_relu", jump_thresholds(thresholds / norms)
    elif config.get("act_fn") == "topk":
        name, state, options = "top_k", without_threshold(), {"k": latents_kept({"k": config.get("top_k")}, files)}
    made = coder(scaled(parts, scales), name, state, centered=centered, predicts=predicts, **options)
    made.rank_by_norm = by_norm and name == "top_k"
    if normalization_of(config, files) != "token-wise":
        return made
    if predicts:
        raise CheckpointError(f"'{files}' says norm_activation='token-wise' of two sites, which is not read.")
    return Normalized(made, "constant_norm_rescale")


LLAMA_SCOPE: tuple[Format, ...] = (LlamaScope(), LlamaScopeR1())
