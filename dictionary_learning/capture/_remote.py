"""Models that run on a server: NDIF's, or one of the same kind.

The body of a trace is sent with everything that it refers to, and what the body saves comes back.
So functions and edits are sent by value, with a dictionary's weights, and refer to torch alone.
Here are only the model's modules, without weights; the probe runs on those.
"""

import inspect
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dictionary_learning._module_io import flat, hidden, with_hidden
from dictionary_learning.capture._model_inputs import ModelInputs
from dictionary_learning.capture._tracing import Edit, envoy_of
from dictionary_learning.errors import ModelError
from dictionary_learning.sites import Site


class RemoteTracer:
    """Traces a model on a server.

    Args:
        name: the model's name on the hub.
        tokenizer: its tokenizer.
        revision: branch, tag or commit on the hub.
        remote: True for NDIF, the URL of another server, or "local" to run here what would be sent.
        options: passed on to nnsight's `TransformersModel`, as `task` (default: text-generation).

    Raises:
        ModelError: no API key is set, or the model's config cannot be loaded.
    """

    def __init__(
        self, name: str, tokenizer: Any, *, revision: str | None, remote: bool | str, options: Mapping[str, Any]
    ):
        import nnsight
        from nnsight.schema.config import CONFIG

        if remote is True and not (CONFIG.API.APIKEY or os.environ.get("NDIF_API_KEY")):
            raise ModelError(
                "Got remote=True, and no API key is set; NDIF's servers need one. Get it at https://login.ndif.us and "
                "set the environment variable NDIF_API_KEY, or name another server by its URL."
            )
        nnsight.register("dictionary_learning")  # edits may be functions of this package, which the server lacks
        self.remote = remote
        settings = {"task": "text-generation", **options, **({"revision": revision} if revision else {})}
        try:
            self._root: Any = nnsight.TransformersModel(name, tokenizer=tokenizer, **settings)
        except (OSError, ValueError) as error:
            raise ModelError(f"The model '{name}' cannot be prepared to run remotely: {error}") from error
        self.module: nn.Module = self._root._module

    def collect(self, sites: Sequence[Site], inputs: ModelInputs) -> list[Tensor]:
        """Returns the activations (batch, ctx, dim) at sites in order of execution."""
        values = _collect(self._root, [self._target(site) for site in sites], dict(inputs.kwargs), self.remote)
        return [flat(x, inputs.channels, inputs.ctx_len) for x in values]

    def run(self, edits: Sequence[tuple[Site, Edit]], inputs: ModelInputs) -> Tensor:
        """Returns the prediction after edits in order of execution; no gradients come back."""
        shape = (inputs.n_examples, -1 if inputs.ctx_len is None else inputs.ctx_len)
        writes = [(*self._target(site), edit) for site, edit in edits]
        return _run(self._root, writes, dict(inputs.kwargs), self.remote, shape)

    def _target(self, site: Site) -> tuple[Any, ...]:
        """Returns a site as what can be sent, with its module's handle and names of parameters."""
        parameters = inspect.signature(type(self.module.get_submodule(site.path)).forward).parameters
        return envoy_of(self._root, site), site.side, site.index, site.call or 0, list(parameters)


def _collect(root: Any, reads: Sequence[tuple[Any, ...]], inputs: dict[str, Any], remote: bool | str) -> list[Tensor]:
    import nnsight

    with torch.no_grad(), root.trace(**inputs, remote=remote) as tracer:
        found = nnsight.save([])
        for envoy, side, index, call, listed in reads:
            for _ in tracer.iter[[call]]:
                found.append(hidden(_values(envoy, side, listed), index).detach().clone().cpu())
        tracer.stop()
    return list(found)


def _run(
    root: Any, writes: Sequence[tuple[Any, ...]], inputs: dict[str, Any], remote: bool | str, tokens: tuple[int, int]
) -> Tensor:
    import nnsight

    with torch.no_grad(), root.trace(**inputs, remote=remote) as tracer:
        for envoy, side, index, call, listed, edit in writes:
            for _ in tracer.iter[[call]]:
                values = _values(envoy, side, listed)
                old = hidden(values, index)
                # a mixture of experts has (batch * ctx, dim)
                new = _edited(edit, old.reshape(*tokens, old.shape[-1]).clone())
                if new is not None:
                    values = with_hidden(values, new.to(old.device).reshape(old.shape), index)
                    if side == "out":
                        envoy.output = values
                    else:
                        n_args, names = len(envoy.inputs[0]), _in_order(envoy.inputs[1], listed)
                        envoy.inputs = (values[:n_args], dict(zip(names, values[n_args:], strict=True)))
        output = root.output
        logits = nnsight.save((output.logits if hasattr(output, "logits") else output[0]).detach().cpu())
    return logits  # noqa: RET504  (what is saved in a trace is known by its name)


def _values(envoy: Any, side: str, listed: list[str]) -> Any:
    """Returns a module's output, or a tuple of its inputs, as `inputs_in_order` has them."""
    if side == "out":
        return envoy.output
    args, kwargs = envoy.inputs
    return (*args, *(kwargs[name] for name in _in_order(kwargs, listed)))


def _edited(edit: Edit, x: Tensor) -> Tensor | None:
    """Returns what an edit makes of activations, as `apply_edit`, whose `Site` cannot be sent."""
    version = x._version
    new = edit(x)
    if new is None and x._version != version:
        raise ValueError("The edit changed its argument in place and returned nothing. Return the changed tensor.")
    if new is not None and (not isinstance(new, torch.Tensor) or new.shape != x.shape):
        got = tuple(new.shape) if isinstance(new, torch.Tensor) else type(new).__name__
        raise ValueError(f"The edit returned {got} for {tuple(x.shape)}; return the same shape.")
    return new


def _in_order(kwargs: dict[str, Any], listed: list[str]) -> list[str]:
    """Returns the names of keywords in the order of `forward`'s parameters, then the others."""
    return sorted(kwargs, key=lambda name: listed.index(name) if name in listed else len(listed))
