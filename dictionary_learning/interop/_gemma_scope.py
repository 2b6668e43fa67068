"""DeepMind's Gemma Scope and Gemma Scope 2: JumpReLU that does not subtract b_dec."""

import math
import re
from collections.abc import Mapping
from typing import Any

from dictionary_learning.errors import CheckpointError
from dictionary_learning.interop._base import Facts, Format, Loaded, check_fact, choice, label, setting
from dictionary_learning.interop._files import Files
from dictionary_learning.interop._tensors import coder, jump_thresholds, read_tensors

_PARTS = {"W_enc": "W_enc.T", "b_enc": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
_LOWER = {**_PARTS, "W_enc": "w_enc.T", "W_dec": "w_dec"}
_SKIP = {"W_skip": "affine_skip_connection.T"}
_LAYOUT = 3
"""Levels of folders in a release, such as layer_20/width_16k/average_l0_71."""
CONFIG = "config.json"
HOOKS = {"site": "hf_hook_point_in", "target_site": "hf_hook_point_out"}
_KINDS = {"sae": False, "transcoder": True}
"""Whether each type of a config reconstructs other activations than it reads."""


class GemmaScope(Format):
    """Reads autoencoders and transcoders, also with an affine part.

    In the first release only the path says which they are, and which are of the embedding.
    """

    def __init__(self, name: str, needed: tuple[str, ...], facts: tuple[str, ...]):
        self.name, self.needed, self.facts = name, needed, facts

    def read(self, files: Files, facts: Facts) -> Loaded:
        config = files.settings(CONFIG) if CONFIG in self.needed else {}
        choice(config, "architecture", ("jump_relu",), "jump_relu", files)
        tensors, folders = read_tensors(files.path(self.needed[0])), files.folder.absolute().parts[-_LAYOUT:]
        has_skip = "affine_skip_connection" in tensors
        said = _said_to_predict(config, files)
        said = True if has_skip else said
        check_fact(facts, "transcoder", said, files)
        by_name = any("transcoder" in name for name in folders)
        predicts = setting(facts, "transcoder", bool, by_name if said is None else said, files)
        names = {**(_SKIP if has_skip else {}), **(_PARTS if "W_enc" in tensors else _LOWER)}
        parts = tensors.parts(names, wide="output_dim" if predicts else "dim")
        thresholds = tensors.take("threshold", "dict_size")
        if setting(config, "affine_connection", bool, has_skip, files) != has_skip:
            raise CheckpointError(
                f"The config of '{files}' says affine_connection={config['affine_connection']}, and its tensors are "
                "otherwise: they do not belong together."
            )
        if "embedding" in self.facts and setting(facts, "embedding", bool, "embedding" in folders, files):
            # Gemma multiplies embeddings by this factor after they were read
            root = math.sqrt(tensors["dim"])
            parts |= {"W_enc": parts["W_enc"] / root, "W_dec": parts["W_dec"] * root}
        tensors.finish(config, dict_size="width")
        made = coder(parts, "jump_relu", jump_thresholds(thresholds), centered=False, predicts=predicts)
        known = self.known(files, config, model="model_name", site=HOOKS["site"], target_site=HOOKS["target_site"])
        return Loaded(made, known | {section: site_of(known[section]) for section in HOOKS if section in known})


def site_of(name: str) -> str:
    """Returns a hook point of Transformers, as model.layers.5.output, as a site."""
    return re.sub(r"\.(in|out)put$", r":\1", name)


def _said_to_predict(config: Mapping[str, Any], files: Files) -> bool | None:
    """Returns whether a config says that other activations are reconstructed than are read."""
    read, written = (label(config, name, files) for name in HOOKS.values())
    kind = None if config.get("type") is None else choice(config, "type", _KINDS, None, files)
    differ = None if written is None else written != read
    if kind is not None and differ is not None and _KINDS[kind] != differ:
        raise CheckpointError(
            f"The config of '{files}' says type={kind!r}, hf_hook_point_in={read!r} and hf_hook_point_out={written!r}, "
            "which contradict each other. Correct it."
        )
    return differ if kind is None else _KINDS[kind]


GEMMA_SCOPE: tuple[Format, ...] = (
    GemmaScope("gemma_scope", ("params.npz",), ("embedding", "transcoder")),
    GemmaScope("gemma_scope_2", ("params.safetensors", CONFIG), ("transcoder",)),
)
