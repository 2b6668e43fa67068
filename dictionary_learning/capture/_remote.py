"""Models that run on a server: NDIF's, or one of the same kind.

The body of a trace is sent with everything that it refers to, and what the body saves comes back. So
the bodies here use torch alone, and edits are sent by value, with a dictionary's weights. Here are
only the model's modules, without weights; the probe runs on those.
"""

import inspect
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dictionary_learning._module_io import flat
from dictionary_learning.capture._inputs import ModelInputs
from dictionary_learning.capture._tracing import Edit, place
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
                "Got remote=True, and no API key is set; NDIF's servers need one. Get it at https://login.ndif.us and set the "
                "environment variable NDIF_API_KEY, or name another server by its URL."
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
        """Returns the model's prediction after edits in order of execution; no gradients come back."""
        shape = (inputs.n_examples, -1 if inputs.ctx_len is None else inputs.ctx_len)
        writes = [(*self._target(site), edit) for site, edit in edits]
        return _run(self._root, writes, dict(inputs.kwargs), self.remote, shape)

    def _target(self, site: Site) -> tuple[Any, Site, list[str]]:
        """Returns the handle of a site's module, the site, and the order of keywords (see `inputs_in_order`)."""
        parameters = inspect.signature(type(self.module.get_submodule(site.path)).forward).parameters
        return place(self._root, site).envoy, site, list(parameters)


def _collect(root: Any, reads: list[tuple], inputs: dict[str, Any], remote: bool | str) -> list[Tensor]:
    import nnsight

    reads = [(envoy, site.side, site.index, site.call or 0, listed) for envoy, site, listed in reads]
    value: Any
    with torch.no_grad(), root.trace(**inputs, remote=remote) as tracer:
        found = nnsight.save([])
        for envoy, side, index, call, listed in reads:
            for _ in tracer.iter[[call]]:
                if side == "out":
                    value = envoy.output
                else:
                    args, kwargs = envoy.inputs
                    names = [
                        *(name for name in listed if name in kwargs),
                        *(name for name in kwargs if name not in listed),
                    ]
                    value = [*args, *(kwargs[name] for name in names)]
                at = index
                while not isinstance(value, torch.Tensor):
                    value = (list(value.values()) if hasattr(value, "values") else value)[at]
                    at = 0
                found.append(value.detach().clone().cpu())
        tracer.stop()
    return list(found)


def _run(root: Any, writes: list[tuple], inputs: dict[str, Any], remote: bool | str, tokens: tuple[int, int]) -> Tensor:
    import nnsight

    writes = [(envoy, site.side, site.index, site.call or 0, listed, edit) for envoy, site, listed, edit in writes]
    with torch.no_grad(), root.trace(**inputs, remote=remote) as tracer:
        for envoy, side, index, call, listed, edit in writes:
            for _ in tracer.iter[[call]]:
                if side == "out":
                    value, names, n_args = envoy.output, [], 0
                else:
                    args, kwargs = envoy.inputs
                    names = [
                        *(name for name in listed if name in kwargs),
                        *(name for name in kwargs if name not in listed),
                    ]
                    value, n_args = (*args, *(kwargs[name] for name in names)), len(args)
                old = value if isinstance(value, torch.Tensor) else value[index]
                x = old.reshape(*tokens, old.shape[-1]).clone()  # a mixture of experts has (batch * ctx, dim)
                version = x._version
                new = edit(x)
                if new is None and x._version != version:
                    raise ValueError(
                        "The edit changed its argument in place and returned nothing. Return the changed tensor."
                    )
                if new is not None:
                    if not isinstance(new, torch.Tensor) or new.shape != x.shape:
                        got = tuple(new.shape) if isinstance(new, torch.Tensor) else type(new).__name__
                        raise ValueError(f"The edit returned {got} for {tuple(x.shape)}; return the same shape.")
                    new = new.to(old.device, old.dtype).reshape(old.shape)
                    if not isinstance(value, torch.Tensor):
                        new = (*value[:index], new, *value[index + 1 :])
                    if side == "out":
                        envoy.output = new
                    else:
                        envoy.inputs = (new[:n_args], dict(zip(names, new[n_args:], strict=True)))
        output = root.output
        logits = nnsight.save((output.logits if hasattr(output, "logits") else output[0]).detach().cpu())
    return logits  # noqa: RET504  (what is saved in a trace is known by its name)
