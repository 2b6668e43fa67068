"""Models that run on a server: NDIF's, or one of the same kind.

What is sent is the body of a trace and what it refers to, and what comes back is what that body saves. So the bodies here use
torch alone, and edits are sent by value with all that they hold, a dictionary's weights for one. The model itself is known here by
its modules only, without weights; they are what the probe runs on.
"""

import inspect
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dictionary_learning.capture.feeding import Call
from dictionary_learning.capture.tracing import Edit, place
from dictionary_learning.errors import ModelError
from dictionary_learning.module_io import Channels
from dictionary_learning.sites import Site


class RemoteTracer:
    """Traces a model on a server.

    Args:
        name: the model's name on the hub.
        tokenizer: its tokenizer.
        revision: branch, tag or commit on the hub.
        remote: True for NDIF, the URL of another server, or "local" to send nothing and run here what would have been sent.
        options: passed on to nnsight's `TransformersModel`; `task` for one, where it is not text-generation.

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
                "Got remote=True, and no API key is set; NDIF's servers need one. Get it at https://login.ndif.us and set the environment "
                "variable NDIF_API_KEY, or name another server by its URL."
            )
        nnsight.register("dictionary_learning")  # edits may be functions of this package, which the server lacks
        self.remote = remote
        settings = {"task": "text-generation", **options, **({"revision": revision} if revision else {})}
        try:
            self._root: Any = nnsight.TransformersModel(name, tokenizer=tokenizer, **settings)
        except (OSError, ValueError) as error:
            raise ModelError(f"The model '{name}' could not be laid out to run remotely: {error}") from error
        self.module: nn.Module = self._root._module

    def collect(self, sites: Sequence[Site], call: Call, channels: Channels | None) -> list[Tensor]:
        """Returns the activations (batch, ctx, dim) at sites that are given in order of execution."""
        return _collect(self._root, [self._target(site) for site in sites], dict(call.kwargs), self.remote)

    def run(self, edits: Mapping[Site, Edit], call: Call, channels: Channels | None) -> Tensor:
        """Returns the model's prediction after edits, given in order of execution; no gradients come back."""
        writes = [(*self._target(site), edit) for site, edit in edits.items()]
        return _run(self._root, writes, dict(call.kwargs), self.remote)

    def _target(self, site: Site) -> tuple[Any, str, int, list[str]]:
        """Returns the handle of a site's module, its side and index, and the order of its keywords (see `inputs_in_order`)."""
        envoy = place(self._root, site).envoy
        parameters = inspect.signature(type(self.module.get_submodule(site.path)).forward).parameters
        return envoy, site.side, site.index, list(parameters)


def _collect(root: Any, reads: list[tuple], inputs: dict[str, Any], remote: bool | str) -> list[Tensor]:
    import nnsight

    value: Any
    with torch.no_grad(), root.trace(**inputs, remote=remote) as tracer:
        found = nnsight.save([])
        for envoy, side, index, listed in reads:
            if side == "out":
                value = envoy.output
            else:
                args, kwargs = envoy.inputs
                names = [*(name for name in listed if name in kwargs), *(name for name in kwargs if name not in listed)]
                value = [*args, *(kwargs[name] for name in names)]
            at = index
            while not isinstance(value, torch.Tensor):
                value = (list(value.values()) if hasattr(value, "values") else value)[at]
                at = 0
            found.append(value.detach().clone().cpu())
        tracer.stop()
    return list(found)


def _run(root: Any, writes: list[tuple], inputs: dict[str, Any], remote: bool | str) -> Tensor:
    import nnsight

    with torch.no_grad(), root.trace(**inputs, remote=remote):
        for envoy, side, index, listed, edit in writes:
            if side == "out":
                value, names, n_args = envoy.output, [], 0
            else:
                args, kwargs = envoy.inputs
                names = [*(name for name in listed if name in kwargs), *(name for name in kwargs if name not in listed)]
                value, n_args = (*args, *(kwargs[name] for name in names)), len(args)
            x = value if isinstance(value, torch.Tensor) else value[index]
            x = x.clone()
            version = x._version
            new = edit(x)
            if new is None and x._version != version:
                raise ValueError("The edit changed what it was given and returned nothing. Return the changed tensor.")
            if new is None:
                continue
            if new.shape != x.shape:
                raise ValueError(f"The edit returned {tuple(new.shape)} for {tuple(x.shape)}; return the same shape.")
            new = new.to(x.device, x.dtype)
            if not isinstance(value, torch.Tensor):
                new = (*value[:index], new, *value[index + 1 :])
            if side == "out":
                envoy.output = new
            else:
                envoy.inputs = (new[:n_args], dict(zip(names, new[n_args:], strict=True)))
        output = root.output
        logits = nnsight.save((output.logits if hasattr(output, "logits") else output[0]).detach().cpu())
    return logits  # noqa: RET504  (what is saved in a trace is known by its name)
