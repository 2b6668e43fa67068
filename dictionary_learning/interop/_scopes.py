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
from dictionary_learning.interop._base import Facts, Format, Loaded, check_fact, choice, positive, setting
from dictionary_learning.interop._files import Files
from dictionary_learning.interop._safe import read_json
from dictionary_learning.interop._tensors import coder, jump_thresholds, read_tensors

_GEMMA = {"W_enc": "W_enc.T", "b_enc": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
_GEMMA_LOWER = {**_GEMMA, "W_enc": "w_enc.T", "W_dec": "w_dec"}
_GEMMA_SKIP = {"W_skip": "affine_skip_connection.T"}
_LLAMA = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight.T", "b_dec": "decoder.bias"}
_LAYOUT = 3
"""Levels of folders in a release, such as layer_20/width_16k/average_l0_71."""
_CONFIG = "config.json"
_SETTINGS = "hyperparams.json"
_FINAL = "final.safetensors"
_R1 = "sae_weights.safetensors"


class GemmaScope(Format):
    """Reads autoencoders and transcoders, also with an affine part.

    In the first release only the path says which they are, and which are of the embedding.
    """

    def __init__(self, name: str, needed: tuple[str, ...], facts: tuple[str, ...]):
        self.name, self.needed, self.facts = name, needed, facts

    def read(self, files: Files, facts: Facts) -> Loaded:
        config = files.settings(_CONFIG) if _CONFIG in self.needed else {}
        choice(config, "architecture", ("jump_relu",), "jump_relu", files)
        tensors, folders = read_tensors(files.path(self.needed[0])), files.folder.absolute().parts[-_LAYOUT:]
        hook_in, hook_out = config.get("hf_hook_point_in"), config.get("hf_hook_point_out")
        has_skip = "affine_skip_connection" in tensors
        by_name = any("transcoder" in name for name in folders)
        predicts = bool(facts.get("transcoder", hook_out not in (None, hook_in) or by_name or has_skip))
        said = True if has_skip else None if hook_out is None else hook_out != hook_in
        check_fact(facts, "transcoder", said, files)
        names = {**(_GEMMA_SKIP if has_skip else {}), **(_GEMMA if "W_enc" in tensors else _GEMMA_LOWER)}
        parts = tensors.parts(names, wide="output_dim" if predicts else "dim")
        thresholds = tensors.take("threshold", "dict_size")
        if setting(config, "affine_connection", bool, has_skip, files) != has_skip:
            raise CheckpointError(
                f"The config of '{files}' says affine_connection={config['affine_connection']}, and its tensors are "
                "otherwise: they do not belong together."
            )
        if "embedding" in self.facts and facts.get("embedding", "embedding" in folders):
            # Gemma multiplies embeddings by this factor after they were read
            root = math.sqrt(tensors["dim"])
            parts |= {"W_enc": parts["W_enc"] / root, "W_dec": parts["W_dec"] * root}
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
        is_asked = files.chosen in (None, _FINAL, _SETTINGS) and (files.has(_SETTINGS) or files.has(_FINAL))
        return is_asked and bool(files.settings(_SETTINGS))

    def read(self, files: Files, facts: Facts) -> Loaded:
        config = files.settings(_SETTINGS)
        if not config:
            raise CheckpointError(
                f"'{files}' has no {_SETTINGS}, without which its scale is not known. Get the whole folder."
            )
        tensors = read_tensors((files if files.has(_FINAL) else files.at("checkpoints")).path(_FINAL))
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
    needed = (_R1, _CONFIG)

    def recognizes(self, files: Files) -> bool:
        return files.wants(_R1) and not files.has("cfg.json") and "log_jumprelu_threshold" in read_names(files, _R1)

    def read(self, files: Files, facts: Facts) -> Loaded:
        config = read_json(files.path(_CONFIG))
        tensors = read_tensors(files.path(_R1))
        parts = tensors.parts(_LLAMA)
        thresholds = tensors.take("log_jumprelu_threshold", "dict_size").float().exp()
        tensors.finish(config, dim="d_model")
        if "scale" not in facts:
            raise CheckpointError(
                f"'{files}' does not hold the factor that activations are multiplied by before encoding. Give scale= "
                "as the release of the dictionary says it, or scale=1 for activations that are scaled already."
            )
        scaled = _scaled(parts, positive(facts["scale"], "scale", files))
        return Loaded(_jump_relu(scaled, thresholds), self.known(config, site="hook_point_in"))


SCOPES: tuple[Format, ...] = (
    GemmaScope("gemma_scope", ("params.npz",), ("embedding", "transcoder")),
    GemmaScope("gemma_scope_2", ("params.safetensors", _CONFIG), ("transcoder",)),
    LlamaScope(),
    LlamaScopeR1(),
)


def _jump_relu(parts: Mapping[str, Tensor], thresholds: Tensor, predicts: bool = False) -> Coder:
    return coder(parts, "jump_relu", jump_thresholds(thresholds), centered=False, predicts=predicts)


def _scaled(parts: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Returns the weights for activations that are not yet multiplied by the scale."""
    # W_enc (s x) + b_enc, and x_hat / s
    factors = {"W_enc": scale, "W_dec": 1 / scale, "b_dec": 1 / scale}
    return {name: tensor.float() * factors.get(name, 1.0) for name, tensor in parts.items()}
