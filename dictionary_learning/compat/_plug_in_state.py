"""What a trainer written for dictionary-learning 0.1 has beside its dictionary, for a resume.

Such a trainer keeps counters and averages in plain attributes, and says nowhere which ones. All
that its next steps may depend on is saved: parts with a `state_dict`, generators, tensors and plain
values. The constructor makes the rest again, such as functions and devices.
"""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

_PARTS, _GENERATORS, _VALUES = "parts", "generators", "values"
_PLAIN = (bool, int, float, str, type(None))
_MADE_AGAIN = (torch.device, torch.dtype, torch.nn.Module)
"""Types of what the constructor makes as it was; functions and classes are so too."""


def saved_attributes(plug_in: Any) -> dict[str, dict[str, Any]]:
    """Returns the state of a trainer without that of its dictionary, `ae`."""
    found: dict[str, dict[str, Any]] = {_PARTS: {}, _GENERATORS: {}, _VALUES: {}}
    for name, value in vars(plug_in).items():
        if name == "ae" or isinstance(value, type):
            continue
        if hasattr(value, "state_dict") and hasattr(value, "load_state_dict"):
            found[_PARTS][name] = value.state_dict()
        elif isinstance(value, torch.Generator):
            found[_GENERATORS][name] = value.get_state()
        elif _is_data(value):
            found[_VALUES][name] = value
    return found


@torch.no_grad()
def load_attributes(plug_in: Any, state: Mapping[str, Mapping[str, Any]]) -> None:
    """Puts a trainer into the state that `saved_attributes` returned; says what was not in it."""
    for name, part in state[_PARTS].items():
        getattr(plug_in, name).load_state_dict(part)
    for name, drawn in state[_GENERATORS].items():
        getattr(plug_in, name).set_state(drawn.cpu())
    for name, value in state[_VALUES].items():
        setattr(plug_in, name, _loaded(value, getattr(plug_in, name, None), plug_in.ae.device))
    saved = {name for part in state.values() if isinstance(part, Mapping) for name in part}
    lost = [
        f"{name} ({type(value).__name__})"
        for name, value in vars(plug_in).items()
        if name not in saved and not callable(value) and not isinstance(value, _MADE_AGAIN)
    ]
    if lost:
        logger.warning(
            "Checkpoints of %s do not hold %s: they are as its constructor makes them. Keep what changes in training "
            "in numbers, tensors, lists and dicts.",
            type(plug_in).__name__, ", ".join(lost),
        )  # fmt: skip


def _is_data(value: Any) -> bool:
    # a subclass, such as a defaultdict or numpy.float64, would come back as its base
    if type(value) is dict:
        return all(type(key) in (str, int) and _is_data(item) for key, item in value.items())
    if type(value) in (list, tuple):
        return all(_is_data(item) for item in value)
    return isinstance(value, Tensor) or type(value) in _PLAIN


def _loaded(value: Any, now: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        if isinstance(now, Tensor) and (now.shape, now.dtype) == (value.shape, value.dtype):
            return now.copy_(value)  # an optimizer may hold it, or the dictionary
        return value.to(now.device if isinstance(now, Tensor) else device)
    if isinstance(value, (list, tuple)):
        return type(value)(_loaded(item, None, device) for item in value)
    if isinstance(value, dict):
        return {key: _loaded(item, None, device) for key, item in value.items()}
    return value
