"""Reads and writes activations in one forward pass; beside `remote.py` the only user of nnsight.

nnsight offers values in the order in which the modules run, so the sites come here in that order,
each with the number of its module's call. Each function is one trace and small: a trace keeps the
locals of its caller alive until the caller returns.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dictionary_learning._module_io import apply_edit, flat, hidden, input_or_none, unflat, with_hidden, with_input
from dictionary_learning.capture._inputs import ModelInputs
from dictionary_learning.errors import SiteError
from dictionary_learning.sites import Site

Edit = Callable[[Tensor], "Tensor | None"]
"""Gets a copy of a site's activations (batch, ctx, dim); returns new ones, or None for no change."""


class Tracer:
    """Traces a model in this process.

    Args:
        module: the model; each of its modules gets one of nnsight's controllers.
    """

    def __init__(self, module: nn.Module):
        self._root = wrap(module)

    def collect(self, sites: Sequence[Site], inputs: ModelInputs) -> list[Tensor]:
        """Returns the activations (batch, positions, dim) at sites in order of execution."""
        values = _collect(self._root, [place(self._root, site) for site in sites], inputs)
        _check_reached(sites, len(values))
        return values

    def run(self, edits: Sequence[tuple[Site, Edit]], inputs: ModelInputs) -> Tensor:
        """Returns the model's prediction after edits in order of execution."""
        results = _run(self._root, [(place(self._root, site), edit) for site, edit in edits], inputs)
        _check_reached([site for site, _ in edits], results["n_edits"])
        return results["prediction"]


class Place(NamedTuple):
    """A site, and nnsight's handle of its module."""

    site: Site
    envoy: Any


def wrap(module: nn.Module) -> Any:
    """Returns nnsight's root for a model."""
    import nnsight

    with warnings.catch_warnings():
        # nnsight gives children that are called `output` and the like another name, which `place` knows
        warnings.filterwarnings("ignore", message=".*has a submodule named.*")
        return nnsight.NNsight(module)


def place(root: Any, site: Site) -> Place:
    """Returns a site with the handle of its module."""
    envoy = root
    for part in site.path.split(".") if site.path else []:
        # a child's name may be taken by an attribute of the handle, as `output` in every BERT layer
        renamed = getattr(type(envoy), "OVERLOAD_PREFIX", "E_") + part
        envoy = envoy.__dict__[renamed] if renamed in envoy.__dict__ else getattr(envoy, part)
    return Place(site, envoy)


def _collect(root: Any, places: Sequence[Place], inputs: ModelInputs) -> list[Tensor]:
    """Reads activations, and stops the forward pass after the last."""
    from nnsight.intervention.interleaver import EarlyStopException

    # the exception of `tracer.stop()` would keep the model's activations until the next garbage collection
    done = EarlyStopException()
    values: list[Tensor] = []
    with root.trace(*inputs.args, **inputs.kwargs) as tracer:
        for target in places:
            # the first request in nnsight's loop waits for this call of the module
            for _ in tracer.iter[[target.site.call or 0]]:
                values.append(_activations(_read(target), inputs))
        raise done
    done.__traceback__ = done.__context__ = None
    done.__dict__.clear()
    return values


def _run(root: Any, edits: Sequence[tuple[Place, Edit]], inputs: ModelInputs) -> dict[str, Any]:
    results: dict[str, Any] = {"n_edits": 0}
    with root.trace(*inputs.args, **inputs.kwargs) as tracer:
        for target, edit in edits:
            for _ in tracer.iter[[target.site.call or 0]]:
                _rewrite(target, edit, inputs)
                results["n_edits"] += 1
        output = root.output
        logits = getattr(output, "logits", None)
        results["prediction"] = logits if isinstance(logits, torch.Tensor) else hidden(output)
    return results


def _check_reached(sites: Sequence[Site], n_reached: int) -> None:
    if n_reached < len(sites):
        raise SiteError(
            f"Site '{sites[n_reached]}' was not reached: the forward pass ran its module fewer times than when the model was "
            "probed. Name a call that every input has."
        )


def _read(target: Place) -> Tensor:
    site, envoy = target
    if site.side == "out":
        return hidden(envoy.output, site.index)
    args, kwargs = envoy.inputs
    x = input_or_none(envoy._module, args, kwargs, site.index)
    assert x is not None, "the probe found a tensor here"
    return x


def _rewrite(target: Place, edit: Edit, inputs: ModelInputs) -> None:
    site, envoy = target
    old = _read(target)
    x = _activations(old, inputs)
    inputs.check(site, x)
    new = apply_edit(edit, x, site)
    if new is None:
        return
    new = unflat(new, old, inputs.channels)
    if site.side == "out":
        envoy.output = with_hidden(envoy.output, new, site.index)
    else:
        args, kwargs = envoy.inputs
        envoy.inputs = with_input(envoy._module, args, kwargs, new, site.index)


def _activations(x: Tensor, inputs: ModelInputs) -> Tensor:
    """Returns activations (batch, positions, dim) that nothing the model does later can change."""
    return flat(x, inputs.channels, inputs.ctx_len).clone(memory_format=torch.contiguous_format)
