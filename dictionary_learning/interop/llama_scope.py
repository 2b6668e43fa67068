"""Llama Scope (`hyperparams.json` and `final.safetensors`) and Llama Scope R1 (`config.json` and `sae_weights.safetensors`).

Both are of activations divided by their scale, which is folded into the weights: the dictionary takes activations as the model gives
them. b_dec is not subtracted from the input.
"""

import math
from typing import Any

import torch

from dictionary_learning.errors import CheckpointError
from dictionary_learning.interop.base import FORMATS, Facts, Format, Loaded, positive, setting
from dictionary_learning.interop.building import Weights, jump_thresholds
from dictionary_learning.interop.files import Files
from dictionary_learning.interop.keys import keys_in
from dictionary_learning.interop.safe import read_json, read_safetensors
from dictionary_learning.interop.tensors import Tensors

_SETTINGS = "hyperparams.json"
_FINAL = "final.safetensors"
_R1 = "sae_weights.safetensors"


class LlamaScope(Format):
    """Reads `<folder>/hyperparams.json` with `<folder>/checkpoints/final.safetensors`, or with the weights beside it.

    s = sqrt(d_model) / mean norm of the activations; its one threshold is multiplied by s.
    """

    name = "llama_scope"
    about = "Llama Scope: hyperparams.json and checkpoints/final.safetensors"
    needed = (_SETTINGS, _FINAL, f"checkpoints/{_FINAL}")

    def recognizes(self, files: Files) -> bool:
        return _hyperparams(files) is not None

    def read(self, files: Files, facts: Facts) -> Loaded:
        settings = _hyperparams(files)
        if settings is None:
            raise CheckpointError(
                f"'{files}' has no {_SETTINGS}, without which its scale is not known. Get the whole folder."
            )
        config = read_json(settings.path(_SETTINGS))
        place = settings if settings.has(_FINAL) else settings.at("checkpoints")
        path = place.path(_FINAL)
        tensors = Tensors(read_safetensors(path), str(path))
        norms = setting(config, "dataset_average_activation_norm", dict, {}, files)
        norm = positive(norms.get("in"), "dataset_average_activation_norm.in", files)
        weights = _linear(tensors)
        tensors.finish()
        tensors.check(config.get("d_model"), "dim", "d_model")
        tensors.check(config.get("d_sae"), "dict_size", "d_sae")
        scale = math.sqrt(tensors["dim"]) / norm
        threshold = setting(config, "jump_relu_threshold", float, 0.0, files) * scale
        state = jump_thresholds(torch.full((tensors["dict_size"],), threshold))
        made = Weights(**_scaled(weights, scale), nonlinearity="jump_relu", state=state, centered=False)
        known: dict[str, Any] = {"format": self.name, "peer": config}
        if isinstance(config.get("hook_point_in"), str):
            known["site"] = config["hook_point_in"]
        return Loaded(made.dictionary(), known)


class LlamaScopeR1(Format):
    """Reads `config.json` and `sae_weights.safetensors`, which hold no scale: `scale` gives it; thresholds are not scaled."""

    name = "llama_scope_r1"
    about = "Llama Scope R1: config.json and sae_weights.safetensors with log_jumprelu_threshold"
    facts = ("scale",)
    needed = (_R1, "config.json")

    def recognizes(self, files: Files) -> bool:
        return files.wants(_R1) and not files.has("cfg.json") and "log_jumprelu_threshold" in keys_in(files, _R1)

    def read(self, files: Files, facts: Facts) -> Loaded:
        config = read_json(files.path("config.json"))
        path = files.path(_R1)
        tensors = Tensors(read_safetensors(path), str(path))
        weights = _linear(tensors)
        state = jump_thresholds(tensors.take("log_jumprelu_threshold", "dict_size").float().exp())
        tensors.finish()
        tensors.check(config.get("d_model"), "dim", "d_model")
        if "scale" not in facts:
            raise CheckpointError(
                f"'{files}' does not hold the factor by which activations are multiplied before encoding. Give scale=, which the release "
                "of the dictionary says, or scale=1 and activations that are scaled already."
            )
        scaled = _scaled(weights, positive(facts["scale"], "scale", files))
        made = Weights(**scaled, nonlinearity="jump_relu", state=state, centered=False)
        known: dict[str, Any] = {"format": self.name, "peer": config}
        if isinstance(config.get("hook_point_in"), str):
            known["site"] = config["hook_point_in"]
        return Loaded(made.dictionary(), known)


FORMATS.register("llama_scope")(LlamaScope())
FORMATS.register("llama_scope_r1")(LlamaScopeR1())


def _hyperparams(files: Files) -> Files | None:
    """Returns the folder of the settings: this one, or that above the weights."""
    if files.chosen not in (None, _FINAL, _SETTINGS):
        return None
    if files.has(_SETTINGS):
        return files
    if files.folder.name == "checkpoints" and files.has(_FINAL) and files.above().has(_SETTINGS):
        return files.above()
    return None


def _linear(tensors: Tensors) -> dict[str, Any]:
    return {
        "W_enc": tensors.take("encoder.weight", "dict_size dim"),
        "b_enc": tensors.take("encoder.bias", "dict_size"),
        "W_dec": tensors.take("decoder.weight", "dim dict_size").T,
        "b_dec": tensors.take("decoder.bias", "dim"),
    }


def _scaled(weights: dict[str, Any], scale: float) -> dict[str, Any]:
    """Returns the weights for activations that are not yet multiplied by the scale."""
    factors = {"W_enc": scale, "b_enc": 1.0, "W_dec": 1 / scale, "b_dec": 1 / scale}
    return {name: tensor.float() * factors[name] for name, tensor in weights.items()}
