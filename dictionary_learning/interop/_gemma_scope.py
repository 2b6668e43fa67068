"""DeepMind's Gemma Scope (`params.npz`) and Gemma Scope 2 (`params.safetensors`).

b_dec is not subtracted from the input.
"""

import math
from typing import Any

from dictionary_learning.errors import CheckpointError
from dictionary_learning.interop._base import FORMATS, Facts, Format, Loaded, choice, setting
from dictionary_learning.interop._building import Weights, jump_thresholds
from dictionary_learning.interop._files import Files
from dictionary_learning.interop._safe import read_json
from dictionary_learning.interop._tensors import Tensors, read_tensors

_LAYOUT = 3
"""Levels of folders in a release, such as layer_20/width_16k/average_l0_71."""


class GemmaScope(Format):
    """Reads autoencoders and transcoders; only the path says which, and which of the embedding."""

    name = "gemma_scope"
    about = "DeepMind's Gemma Scope: params.npz"
    facts = ("embedding", "transcoder")
    needed = ("params.npz",)

    def read(self, files: Files, facts: Facts) -> Loaded:
        tensors = read_tensors(files.path("params.npz"))
        folders = _folders(files)
        weights = _jump_relu(tensors, bool(facts.get("transcoder", any("transcoder" in name for name in folders))))
        if facts.get("embedding", "embedding" in folders):
            # Gemma multiplies embeddings by this factor after they were read
            root = math.sqrt(tensors["dim"])
            weights |= {"W_enc": weights["W_enc"] / root, "W_dec": weights["W_dec"] * root}
        tensors.finish()
        return Loaded(Weights(**weights).dictionary(), self.known({}))


class GemmaScope2(Format):
    """Reads autoencoders and transcoders, also with an affine part."""

    name = "gemma_scope_2"
    about = "DeepMind's Gemma Scope 2: params.safetensors and config.json"
    facts = ("transcoder",)
    needed = ("params.safetensors", "config.json")

    def read(self, files: Files, facts: Facts) -> Loaded:
        config = read_json(files.path("config.json")) if files.has("config.json") else {}
        choice(config, "architecture", ("jump_relu",), "jump_relu", files)
        tensors = read_tensors(files.path("params.safetensors"))
        hook_in, hook_out = config.get("hf_hook_point_in"), config.get("hf_hook_point_out")
        skip = tensors.maybe("affine_skip_connection", "dim output_dim")  # transposed
        by_name = any("transcoder" in name for name in _folders(files))
        predicts = bool(facts.get("transcoder", hook_out not in (None, hook_in) or by_name or skip is not None))
        weights = _jump_relu(tensors, predicts)
        if setting(config, "affine_connection", bool, skip is not None, files) != (skip is not None):
            raise CheckpointError(
                f"The config of '{files}' says affine_connection={config['affine_connection']}, and its tensors are otherwise: they do "
                "not belong together."
            )
        tensors.finish()
        dictionary = Weights(**weights, W_skip=None if skip is None else skip.T).dictionary()
        known = self.known(config, model="model_name", site="hf_hook_point_in", target_site="hf_hook_point_out")
        return Loaded(dictionary, known)


FORMATS.register("gemma_scope")(GemmaScope())
FORMATS.register("gemma_scope_2")(GemmaScope2())


def _jump_relu(tensors: Tensors, predicts: bool) -> dict[str, Any]:
    matrices = ("W_enc.T", "b_enc", "W_dec") if "W_enc" in tensors else ("w_enc.T", "b_enc", "w_dec")
    return {
        **tensors.parts(*matrices, "b_dec", wide="output_dim" if predicts else "dim"),
        "nonlinearity": "jump_relu",
        "state": jump_thresholds(tensors.take("threshold", "dict_size")),
        "centered": False,
        "predicts": predicts,
    }


def _folders(files: Files) -> tuple[str, ...]:
    return files.folder.absolute().parts[-_LAYOUT:]
