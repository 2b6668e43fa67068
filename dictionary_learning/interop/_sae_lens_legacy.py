"""Settings of SAELens before 6.0, converted to the form of 6.x."""

from collections.abc import Mapping
from typing import Any

from dictionary_learning.errors import CheckpointError
from dictionary_learning.interop._base import choice, setting

_NAMES = {
    "hook_point": "hook_name",
    "hook_point_layer": "hook_layer",
    "hook_point_head_index": "hook_head_index",
    "activation_fn": "activation_fn_str",
}
"""Names of before 3.0."""
_METADATA = (
    *("model_name", "hook_name", "hook_layer", "hook_head_index", "context_size", "prepend_bos", "dataset_path"),
    *("seqpos_slice", "neuronpedia_id"),
)


def is_legacy(config: Mapping[str, Any]) -> bool:
    """Returns whether settings are flat, as before 6.0."""
    return not isinstance(config.get("metadata"), dict)


def modernized(config: Mapping[str, Any], where: object) -> dict[str, Any]:
    """Returns the settings in the form of 6.x.

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
                f"The config of '{where}' says architecture={architecture!r} and activation topk; one of both is needed."
            )
        arguments = setting(old, "activation_fn_kwargs", dict, {}, where)
        architecture, new["k"] = "topk", arguments.get("k", old.get("k"))
    else:
        new["activation"] = activation
    hook = old.get("hook_name")
    return {
        **new,
        "architecture": architecture,
        "metadata": {name: old[name] for name in _METADATA if name in old},
        "reshape_activations": "hook_z" if isinstance(hook, str) and hook.endswith("_z") else "none",
    }
