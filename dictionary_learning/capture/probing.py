"""What is known of sites by running the model once: in which order they come, how wide they are, and whether they matter.

All of it is seen by PyTorch's own hooks, on one text of two tokens or on one example.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from dictionary_learning.capture.feeding import Call
from dictionary_learning.errors import SiteError
from dictionary_learning.module_io import Channels, flat, hidden_or_none, input_or_none, with_hidden, with_input
from dictionary_learning.sites import Site


@torch.no_grad()
def shapes_of(module: nn.Module, sites: Sequence[Site], call: Call) -> dict[Site, torch.Size | None]:
    """Returns the shape of the activations at each site, in the order in which the model comes to them; None for no tensor."""
    shapes: dict[Site, torch.Size | None] = {}
    handles = [_watch(module, site, lambda site, x: shapes.setdefault(site, x)) for site in sites]
    try:
        with _without_values(module):
            module(*call.args, **call.kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return shapes


def checked_width(
    site: Site, shapes: dict[Site, torch.Size | None], call: Call, channels: Channels | None, name: str
) -> int:
    """Returns the width of a site's activations.

    Raises:
        SiteError: the module did not run, or gave no activations of each token or example.
    """
    if site not in shapes:
        raise SiteError(
            f"Site '{site}' is in {name}, but its forward pass does not run that module. Choose one that runs."
        )
    shape = shapes[site]
    if call.ctx_len is not None:
        if shape is None or len(shape) != 3 or tuple(shape[:2]) != (1, call.ctx_len):
            got = tuple(shape) if shape is not None else "no tensor"
            raise SiteError(
                f"Site '{site}' gives {got} for one text of {call.ctx_len} tokens; (1, {call.ctx_len}, dim) is needed. Choose another "
                "module, or another position of its tuple, as ':out[1]'."
            )
        return shape[-1]
    if shape is None or len(shape) < 2 or shape[0] != 1:
        got = tuple(shape) if shape is not None else "no tensor"
        raise SiteError(
            f"Site '{site}' gives {got} for one example; (1, dim), (1, positions, dim) or a map with its channels first or last is "
            "needed. Choose another module, or another position of its tuple, as ':out[1]'."
        )
    if (
        len(shape) > 3 and channels is None and not shape[1] == shape[2] != shape[-1]
    ):  # no square map with its channels last
        raise SiteError(
            f"Site '{site}' gives {tuple(shape)}, which may be a map with its channels first or last. Say where they are: "
            "load_model(model, channels='first'), or channels='last'."
        )
    return flat(torch.empty(shape, device="meta"), channels).shape[-1]


@torch.no_grad()
def changes_output(module: nn.Module, site: Site, call: Call) -> bool:
    """Tells whether the model's output depends on the activations at a site: they are set to others, and it is run again."""
    clean = hidden_or_none(module(*call.args, **call.kwargs))
    part = module.get_submodule(site.path)

    def other(x: Tensor) -> Tensor:
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x.device, x.dtype)
        return x + noise * x.abs().amax().clamp_min(1)

    def before(part: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        x = input_or_none(part, args, kwargs, site.index)
        assert x is not None, "the probe has seen a tensor here"
        return with_input(part, args, kwargs, other(x), site.index)

    def after(part: nn.Module, args: tuple, output: Any) -> Any:
        x = hidden_or_none(output, site.index)
        assert x is not None, "the probe has seen a tensor here"
        return with_hidden(output, other(x), site.index)

    is_input = site.side == "in"
    handle = part.register_forward_pre_hook(before, with_kwargs=True) if is_input else part.register_forward_hook(after)
    try:
        changed = hidden_or_none(module(*call.args, **call.kwargs))
    finally:
        handle.remove()
    return clean is None or changed is None or clean.is_meta or not torch.equal(clean, changed)


def _without_values(module: nn.Module) -> AbstractContextManager[Any]:
    """Returns what lets a model run that has no weights here: its tensors then have shapes, and no values."""
    if all(p.device.type != "meta" for p in module.parameters()) or hasattr(module, "hf_device_map"):
        return nullcontext()
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    return FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv(assume_static_by_default=True))


def _watch(module: nn.Module, site: Site, see: Callable[[Site, torch.Size | None], Any]) -> Any:
    part = module.get_submodule(site.path)
    if site.side == "in":

        def before(part: nn.Module, args: tuple, kwargs: dict) -> None:
            see(site, getattr(input_or_none(part, args, kwargs, site.index), "shape", None))

        return part.register_forward_pre_hook(before, with_kwargs=True)

    def after(part: nn.Module, args: tuple, output: Any) -> None:
        see(site, getattr(hidden_or_none(output, site.index), "shape", None))

    return part.register_forward_hook(after)
