"""DeepMind's Gemma Scope, and Llama Scope: JumpReLU that does not subtract b_dec from its input.

Llama Scope was trained on scaled activations. The scale is folded into the weights, so that the
dictionary takes activations as the model gives them.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from dictionary_learning.dictionaries import Coder
from dictionary_learning.errors import CheckpointError
from dictionary_learning.interop._archives import read_names
from dictionary_learning.interop._base import Facts, Format, Loaded, choice, positive, setting
from dictionary_learning.interop._building import coder, jump_thresholds
from dictionary_learning.interop._files import Files
from dictionary_learning.interop._safe import read_json
from dictionary_learning.interop._tensors import Tensors, read_tensors

_GEMMA = {"W_enc": "W_enc.T", "b_enc": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
_GEMMA_LOWER = {**_GEMMA, "W_enc": "w_enc.T", "W_dec": "w_dec"}
_LLAMA = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight.T", "b_dec": "decoder.bias"}
_LAYOUT = 3
"""Levels of folders in a release, such as layer_20/width_16k/average_l0_71."""
_SETTINGS = "hyperparams.json"
_FINAL = "final.safetensors"
_R1 = "sae_weights.safetensors"


class GemmaScope(Format):
    """Reads autoencoders and transcoders; only the path says which, and which of the embedding."""

    name = "gemma_scope"
    facts = ("embedding", "transcoder")
    needed = ("params.npz",)

    def read(self, files: Files, facts: Facts) -> Loaded:
        tensors, folders = read_tensors(files.path("params.npz")), _folders(files)
        predicts = bool(facts.get("transcoder", any("transcoder" in name for name in folders)))
        parts = _gemma_parts(tensors, predicts)
        thresholds = tensors.take("threshold", "dict_size")
        if facts.get("embedding", "embedding" in folders):
            # Gemma multiplies embeddings by this factor after they were read
            root = math.sqrt(tensors["dim"])
            parts |= {"W_enc": parts["W_enc"] / root, "W_dec": parts["W_dec"] * root}
        tensors.finish()
        return Loaded(_jump_relu(parts, thresholds, predicts), self.known({}))


class GemmaScope2(Format):
    """Reads autoencoders and transcoders, also with an affine part."""

    name = "gemma_scope_2"
    facts = ("transcoder",)
    needed = ("params.safetensors", "config.json")

    def read(self, files: Files, facts: Facts) -> Loaded:
        config = read_json(files.path("config.json")) if files.has("config.json") else {}
        choice(config, "architecture", ("jump_relu",), "jump_relu", files)
        tensors = read_tensors(files.path("params.safetensors"))
        hook_in, hook_out = config.get("hf_hook_point_in"), config.get("hf_hook_point_out")
        skip = {"W_skip": "affine_skip_connection.T"} if "affine_skip_connection" in tensors else {}
        by_name = any("transcoder" in name for name in _folders(files))
        predicts = bool(facts.get("transcoder", hook_out not in (None, hook_in) or by_name or bool(skip)))
        parts = _gemma_parts(tensors, predicts, skip)
        thresholds = tensors.take("threshold", "dict_size")
        if setting(config, "affine_connection", bool, bool(skip), files) != bool(skip):
            raise CheckpointError(
                f"The config of '{files}' says affine_connection={config['affine_connection']}, and its tensors are otherwise: they do "
                "not belong together."
            )
        tensors.finish()
        known = self.known(config, model="model_name", site="hf_hook_point_in", target_site="hf_hook_point_out")
        return Loaded(_jump_relu(parts, thresholds, predicts), known)


class LlamaScope(Format):
    """Reads `hyperparams.json` with `checkpoints/final.safetensors`, or with the weights beside it.

    s = sqrt(d_model) / mean norm of the activations; its one threshold is multiplied by s.
    """

    name = "llama_scope"
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
        parts = tensors.parts(_LLAMA)
        tensors.finish(config, dim="d_model", dict_size="d_sae")
        scale = math.sqrt(tensors["dim"]) / norm  # activations had the norm sqrt(dim) in training
        threshold = setting(config, "jump_relu_threshold", float, 0.0, files) * scale
        thresholds = torch.full((tensors["dict_size"],), threshold)
        return Loaded(_jump_relu(_scaled(parts, scale), thresholds), self.known(config, site="hook_point_in"))


class LlamaScopeR1(Format):
    """Reads `config.json` and `sae_weights.safetensors`, which hold no scale."""

    name = "llama_scope_r1"
    facts = ("scale",)
    needed = (_R1, "config.json")

    def recognizes(self, files: Files) -> bool:
        return files.wants(_R1) and not files.has("cfg.json") and "log_jumprelu_threshold" in read_names(files, _R1)

    def read(self, files: Files, facts: Facts) -> Loaded:
        config = read_json(files.path("config.json"))
        tensors = read_tensors(files.path(_R1))
        parts = tensors.parts(_LLAMA)
        thresholds = tensors.take("log_jumprelu_threshold", "dict_size").float().exp()
        tensors.finish(config, dim="d_model")
        if "scale" not in facts:
            raise CheckpointError(
                f"'{files}' does not hold the factor that activations are multiplied by before encoding. Give scale= as the release "
                "of the dictionary says it, or scale=1 for activations that are scaled already."
            )
        scaled = _scaled(parts, positive(facts["scale"], "scale", files))
        return Loaded(_jump_relu(scaled, thresholds), self.known(config, site="hook_point_in"))


def _jump_relu(parts: Mapping[str, Tensor], thresholds: Tensor, predicts: bool = False) -> Coder:
    return coder(parts, "jump_relu", jump_thresholds(thresholds), centered=False, predicts=predicts)


def _gemma_parts(tensors: Tensors, predicts: bool, skip: Mapping[str, str] | None = None) -> dict[str, Tensor]:
    names = _GEMMA if "W_enc" in tensors else _GEMMA_LOWER
    return tensors.parts({**(skip or {}), **names}, wide="output_dim" if predicts else "dim")


def _folders(files: Files) -> tuple[str, ...]:
    return files.folder.absolute().parts[-_LAYOUT:]


def _settings_folder(files: Files) -> Files | None:
    """Returns the folder of the settings: this one, or the one above the weights."""
    if files.chosen not in (None, _FINAL, _SETTINGS):
        return None
    if files.has(_SETTINGS):
        return files
    is_below = files.folder.name == "checkpoints" and files.has(_FINAL) and files.above().has(_SETTINGS)
    return files.above() if is_below else None


def _scaled(parts: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Returns the weights for activations that are not yet multiplied by the scale."""
    # W_enc (s x) + b_enc, and x_hat / s
    factors = {"W_enc": scale, "W_dec": 1 / scale, "b_dec": 1 / scale}
    return {name: tensor.float() * factors.get(name, 1.0) for name, tensor in parts.items()}
