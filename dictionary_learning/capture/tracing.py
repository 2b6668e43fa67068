"""Reading and writing activations in one forward pass; the only module that imports nnsight, but for `remote.py`.

nnsight serves values in the order in which the modules run, so the sites come here in that order. Each function is one trace
and small, because a trace keeps the locals of its caller alive until that returns.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dictionary_learning.capture.feeding import Call
from dictionary_learning.module_io import (
    Channels,
    flat,
    hidden,
    input_or_none,
    replaced,
    unflat,
    with_hidden,
    with_input,
)
from dictionary_learning.sites import Site

Edit = Callable[[Tensor], "Tensor | None"]
"""Is given a copy of a site's activations (batch, ctx, dim); returns what takes their place, or None to leave them."""


class Tracer:
    """Traces a model in this process.

    Args:
        module: the model; each of its modules gets one of nnsight's controllers.
    """

    def __init__(self, module: nn.Module):
        self._root = wrap(module)

    def collect(self, sites: Sequence[Site], call: Call, channels: Channels | None) -> list[Tensor]:
        """Returns the activations (batch, positions, dim) at sites that are given in order of execution."""
        return _collect(self._root, [place(self._root, site) for site in sites], call, channels)

    def run(self, edits: Mapping[Site, Edit], call: Call, channels: Channels | None) -> Tensor:
        """Returns the model's prediction after edits, given in order of execution."""
        return _run(self._root, [(place(self._root, site), edit) for site, edit in edits.items()], call, channels)


class Place(NamedTuple):
    """A site, and nnsight's handle of its module."""

    site: Site
    envoy: Any


def wrap(module: nn.Module) -> Any:
    """Returns nnsight's root for a model."""
    import nnsight

    with warnings.catch_warnings():
        # children that are called `output` and the like are found under the names that nnsight gives them
        warnings.filterwarnings("ignore", message=".*has a submodule named.*")
        return nnsight.NNsight(module)


def place(root: Any, site: Site) -> Place:
    """Returns a site with the handle of its module."""
    envoy = root
    for part in site.path.split(".") if site.path else []:
        # nnsight mounts a child under another name where its own is taken, as `output` in every BERT layer
        renamed = getattr(type(envoy), "OVERLOAD_PREFIX", "E_") + part
        envoy = envoy.__dict__[renamed] if renamed in envoy.__dict__ else getattr(envoy, part)
    return Place(site, envoy)


def prediction(output: Any) -> Tensor:
    """Returns the logits in a model's output, or its first tensor where there are none."""
    logits = getattr(output, "logits", None)
    return logits if isinstance(logits, Tensor) else hidden(output)


def _collect(root: Any, places: Sequence[Place], call: Call, channels: Channels | None) -> list[Tensor]:
    """Reads activations, and stops the forward pass after the last.

    The exception is ours, and emptied afterwards, because the one of `tracer.stop()` keeps the model's activations until the next
    garbage collection.
    """
    from nnsight.intervention.interleaver import EarlyStopException

    done = EarlyStopException()
    values: list[Tensor] = []
    with root.trace(*call.args, **call.kwargs):
        for target in places:
            values.append(_copy(_read(target), channels))
        raise done
    done.__traceback__ = done.__context__ = None
    done.__dict__.clear()
    return values


def _run(root: Any, edits: Sequence[tuple[Place, Edit]], call: Call, channels: Channels | None) -> Tensor:
    results: dict[str, Tensor] = {}
    with root.trace(*call.args, **call.kwargs):
        for target, edit in edits:
            _rewrite(target, edit, channels)
        results["prediction"] = prediction(root.output)
    return results["prediction"]


def _read(target: Place) -> Tensor:
    site, envoy = target
    if site.side == "out":
        return hidden(envoy.output, site.index)
    args, kwargs = envoy.inputs
    x = input_or_none(envoy._module, args, kwargs, site.index)
    assert x is not None, "the probe has seen a tensor here"
    return x


def _rewrite(target: Place, edit: Edit, channels: Channels | None) -> None:
    site, envoy = target
    old = _read(target)
    x = _copy(old, channels)
    version = _version(x)
    new = replaced(x, edit(x), _version(x) != version, site)
    if new is None:
        return
    new = unflat(new, old, channels)
    if site.side == "out":
        envoy.output = with_hidden(envoy.output, new, site.index)
    else:
        args, kwargs = envoy.inputs
        envoy.inputs = with_input(envoy._module, args, kwargs, new, site.index)


def _copy(x: Tensor, channels: Channels | None) -> Tensor:
    """Returns activations (batch, positions, dim) that nothing that the model does later can change."""
    return flat(x, channels).clone(memory_format=torch.contiguous_format)


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version
