"""Reads and writes activations in one forward pass; beside `_remote.py` the only user of nnsight.

nnsight offers values in the order in which the modules run, so the sites come here in that order,
each with the number of its module's call.
"""

import contextlib
import functools
import warnings
from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dictionary_learning._module_io import apply_edit, flat, hidden, input_or_none, unflat, with_hidden, with_input
from dictionary_learning.capture._model_inputs import ModelInputs
from dictionary_learning.errors import SiteError
from dictionary_learning.sites import Site

Edit = Callable[[Tensor], "Tensor | None"]
"""Gets a copy of a site's activations (batch, ctx, dim); returns new ones, or None."""


class Tracer:
    """Traces a model in this process; each of its modules gets one of nnsight's controllers.

    A trace keeps the locals of the function around it alive until that returns, so those are small.
    """

    def __init__(self, module: nn.Module):
        import nnsight

        with warnings.catch_warnings():
            # nnsight gives children that are called `output` and the like another name (see
            # `envoy_of`)
            warnings.filterwarnings("ignore", message=".*has a submodule named.*")
            self._root: Any = nnsight.NNsight(module)

    def collect(self, sites: Sequence[Site], inputs: ModelInputs) -> list[Tensor]:
        """Returns the activations (batch, positions, dim) at sites in order of execution."""
        from nnsight.intervention.interleaver import EarlyStopException

        # that of `tracer.stop()` would keep the model's activations until the next garbage
        # collection
        done = EarlyStopException()
        values: list[Tensor] = []
        envoys = [envoy_of(self._root, site) for site in sites]
        with self._root.trace(*inputs.args, **inputs.kwargs) as tracer:
            for site, envoy in zip(sites, envoys, strict=True):
                # the first request in nnsight's loop waits for this call of the module
                for _ in tracer.iter[[site.call or 0]]:
                    values.append(_activations(_read(site, envoy), inputs))
            raise done
        done.__traceback__ = done.__context__ = None
        done.__dict__.clear()
        _check_reached(sites, len(values))
        return values

    def run(self, edits: Sequence[tuple[Site, Edit]], inputs: ModelInputs, again: Sequence[str] = ()) -> Tensor:
        """Returns the model's prediction after edits in order of execution.

        Of the modules that run `again` only the inputs are kept for gradients.
        """
        with self._running_again(again):
            return self._run(edits, inputs)

    def _run(self, edits: Sequence[tuple[Site, Edit]], inputs: ModelInputs) -> Tensor:
        reached: list[Site] = []
        predictions: list[Tensor] = []
        envoys = [envoy_of(self._root, site) for site, _ in edits]
        with self._root.trace(*inputs.args, **inputs.kwargs) as tracer:
            for (site, edit), envoy in zip(edits, envoys, strict=True):
                for _ in tracer.iter[[site.call or 0]]:
                    _rewrite(site, envoy, edit, inputs)
                    reached.append(site)
            output = self._root.output
            logits = getattr(output, "logits", None)
            predictions.append(logits if isinstance(logits, torch.Tensor) else hidden(output))
        _check_reached([site for site, _ in edits], len(reached))
        return predictions[0]

    @contextlib.contextmanager
    def _running_again(self, paths: Sequence[str]) -> Generator[None]:
        """Lets modules run again while gradients are computed, instead of keeping activations.

        nnsight reads and replaces a module's input and output around what it calls the body. The
        body alone runs again, outside of the trace. So an edit is applied once, and what runs again
        gets the input that the first run got, edited or not.
        """
        from nnsight.intervention.source import STATE
        from torch.utils.checkpoint import checkpoint

        def twice(body: Callable[..., Any], module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return checkpoint(functools.partial(body, module, **kwargs), *args, use_reentrant=False)

        found: list[Any] = [envoy_of(self._root, Site(path))._module.__dict__[STATE] for path in paths]
        states = {id(state): (state, state.body) for state in found}  # a module may have several paths
        try:
            for state, body in states.values():
                state.body = functools.partial(twice, body)
            yield
        finally:
            for state, body in states.values():
                state.body = body


def envoy_of(root: Any, site: Site) -> Any:
    """Returns nnsight's handle of a site's module."""
    envoy = root
    for part in site.path.split(".") if site.path else []:
        # a child's name may be taken by an attribute of the handle, as `output` in every BERT layer
        renamed = getattr(type(envoy), "OVERLOAD_PREFIX", "E_") + part
        envoy = envoy.__dict__[renamed] if renamed in envoy.__dict__ else getattr(envoy, part)
    return envoy


def _check_reached(sites: Sequence[Site], n_reached: int) -> None:
    if n_reached < len(sites):
        raise SiteError(
            f"Site '{sites[n_reached]}' was not reached: the forward pass ran its module fewer times than when the "
            "model was probed. Name a call that every input has."
        )


def _read(site: Site, envoy: Any) -> Tensor:
    if site.side == "out":
        return hidden(envoy.output, site.index)
    args, kwargs = envoy.inputs
    x = input_or_none(envoy._module, args, kwargs, site.index)
    assert x is not None, "the probe found a tensor here"
    return x


def _rewrite(site: Site, envoy: Any, edit: Edit, inputs: ModelInputs) -> None:
    old = _read(site, envoy)
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
