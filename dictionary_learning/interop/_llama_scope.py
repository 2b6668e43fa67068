"""Llama Scope (`hyperparams.json`, `final.safetensors`) and Llama Scope R1 (`config.json`).

Both were trained on scaled activations. The scale is folded into the weights, so that the
dictionary takes activations as the model gives them. b_dec is not subtracted from the input.
"""

import math

import torch

from dictionary_learning.errors import CheckpointError
from dictionary_learning.interop._archives import read_names
from dictionary_learning.interop._base import FORMATS, Facts, Format, Loaded, positive, setting
from dictionary_learning.interop._building import Weights, jump_thresholds
from dictionary_learning.interop._files import Files
from dictionary_learning.interop._safe import read_json
from dictionary_learning.interop._tensors import Parts, read_tensors

_SETTINGS = "hyperparams.json"
_FINAL = "final.safetensors"
_R1 = "sae_weights.safetensors"
_PARTS = ("encoder.weight", "encoder.bias", "decoder.weight.T", "decoder.bias")


class LlamaScope(Format):
    """Reads `hyperparams.json` with `checkpoints/final.safetensors`, or with the weights beside it.

    s = sqrt(d_model) / mean norm of the activations; its one threshold is multiplied by s.
    """

    name = "llama_scope"
    about = "Llama Scope: hyperparams.json and checkpoints/final.safetensors"
    needed = (_SETTINGS, _FINAL, f"checkpoints/{_FINAL}")

    def recognizes(self, files: Files) -> bool:
        return _settings_folder(files) is not None

    def read(self, files: Files, facts: Facts) -> Loaded:
        folder = _settings_folder(files)
        if folder is None:
            raise CheckpointError(
                f"'{files}' has no {_SETTINGS}, without which its scale is not known. Get the whole folder."
            )
        config = read_json(folder.path(_SETTINGS))
        tensors = read_tensors((folder if folder.has(_FINAL) else folder.at("checkpoints")).path(_FINAL))
        norms = setting(config, "dataset_average_activation_norm", dict, {}, files)
        norm = positive(norms.get("in"), "dataset_average_activation_norm.in", files)
        weights = tensors.parts(*_PARTS)
        tensors.finish(config, dim="d_model", dict_size="d_sae")
        scale = math.sqrt(tensors["dim"]) / norm  # activations had the norm sqrt(dim) in training
        threshold = setting(config, "jump_relu_threshold", float, 0.0, files) * scale
        state = jump_thresholds(torch.full((tensors["dict_size"],), threshold))
        made = Weights(**_scaled(weights, scale), nonlinearity="jump_relu", state=state, centered=False)
        return Loaded(made.dictionary(), self.known(config, site="hook_point_in"))


class LlamaScopeR1(Format):
    """Reads `config.json` and `sae_weights.safetensors`, which hold no scale."""

    name = "llama_scope_r1"
    about = "Llama Scope R1: config.json and sae_weights.safetensors with log_jumprelu_threshold"
    facts = ("scale",)
    needed = (_R1, "config.json")

    def recognizes(self, files: Files) -> bool:
        return files.wants(_R1) and not files.has("cfg.json") and "log_jumprelu_threshold" in read_names(files, _R1)

    def read(self, files: Files, facts: Facts) -> Loaded:
        config = read_json(files.path("config.json"))
        tensors = read_tensors(files.path(_R1))
        weights = tensors.parts(*_PARTS)
        state = jump_thresholds(tensors.take("log_jumprelu_threshold", "dict_size").float().exp())
        tensors.finish(config, dim="d_model")
        if "scale" not in facts:
            raise CheckpointError(
                f"'{files}' does not hold the factor that activations are multiplied by before encoding. Give scale= as the release "
                "of the dictionary says it, or scale=1 for activations that are scaled already."
            )
        scaled = _scaled(weights, positive(facts["scale"], "scale", files))
        made = Weights(**scaled, nonlinearity="jump_relu", state=state, centered=False)
        return Loaded(made.dictionary(), self.known(config, site="hook_point_in"))


FORMATS.register("llama_scope")(LlamaScope())
FORMATS.register("llama_scope_r1")(LlamaScopeR1())


def _settings_folder(files: Files) -> Files | None:
    """Returns the folder of the settings: this one, or the one above the weights."""
    if files.chosen not in (None, _FINAL, _SETTINGS):
        return None
    if files.has(_SETTINGS):
        return files
    is_below = files.folder.name == "checkpoints" and files.has(_FINAL) and files.above().has(_SETTINGS)
    return files.above() if is_below else None


def _scaled(weights: Parts, scale: float) -> Parts:
    """Returns the weights for activations that are not yet multiplied by the scale."""
    return {  # W_enc (s x) + b_enc, and x_hat / s
        "W_enc": weights["W_enc"].float() * scale,
        "b_enc": weights["b_enc"].float(),
        "W_dec": weights["W_dec"].float() * (1 / scale),
        "b_dec": weights["b_dec"].float() * (1 / scale),
    }
