"""What a run of the model on a few tokens shows of its sites: order, widths, and whether they matter.

Everything is seen by PyTorch's own hooks, on one text of two tokens or on one example.
"""

import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from dictionary_learning._module_io import flat, hidden_or_none, input_or_none, with_hidden, with_input
from dictionary_learning.capture._inputs import ModelInputs
from dictionary_learning.errors import DictionaryLearningError, ModelError, SiteError
from dictionary_learning.sites import Site

_ROUNDING = 0.05
"""Relative difference that may be rounding, even in bfloat16; other tokens differ by more than 1."""


def record_shapes(module: nn.Module, sites: Sequence[Site], inputs: ModelInputs) -> dict[Site, torch.Size | None]:
    """Returns the shape of each site's activations at each call of its module, in order of execution.

    The sites have the number of the call; the shape is None if there is no tensor.

    Raises:
        ModelError: the model cannot be run on these inputs.
    """
    shapes: dict[Site, torch.Size | None] = {}

    def record(site: Site) -> Callable[[Tensor | None, int], None]:
        return lambda x, call: shapes.update({site._replace(call=call): None if x is None else x.shape})

    with _hooked(module, {site: record(site) for site in sites}), _without_values(module):
        run(module, inputs)
    return shapes


def checked_width(
    module: nn.Module, site: Site, shape: torch.Size | None, inputs: ModelInputs, texts: Callable[[], ModelInputs]
) -> int:
    """Returns the width of a site's activations.

    Args:
        module: the model.
        site: the site, at one call of its module.
        shape: of the activations there, as `record_shapes` found it.
        inputs: what the model was probed with.
        texts: returns several texts of different tokens, for sites whose rows may be the tokens.

    Raises:
        SiteError: the module has no activations for each token, or for each example.
    """
    got = "no tensor" if shape is None else str(tuple(shape))
    advice = "Choose another module, or another position of its tuple, as ':out[1]'."
    if inputs.ctx_len is not None:
        if shape is not None and len(shape) == 4 and tuple(shape[1:3]) == (1, inputs.ctx_len):
            raise SiteError(
                f"Site '{site}' has {got} for one text of {inputs.ctx_len} tokens: {shape[0]} streams of activations, as in "
                "Gemma 3n. Name a module that has one of them, such as the layer's '.self_attn:in' or '.mlp'."
            )
        by_rows = shape is not None and len(shape) == 2 and shape[0] == inputs.ctx_len  # (batch * ctx, dim)
        if by_rows and _rows_are_tokens(module, site, texts):
            assert shape is not None, "it has rows"
            return shape[-1]
        if shape is None or len(shape) != 3 or tuple(shape[:2]) != (1, inputs.ctx_len):
            raise SiteError(
                f"Site '{site}' has {got} for one text of {inputs.ctx_len} tokens; (1, {inputs.ctx_len}, dim) is needed, "
                f"or rows (tokens, dim) in the order of the text. {advice}"
            )
        return shape[-1]
    if shape is None or len(shape) < 2 or shape[0] != 1:
        raise SiteError(
            f"Site '{site}' has {got} for one example; (1, dim), (1, positions, dim) or a map with its channels first or "
            f"last is needed. {advice}"
        )
    # only of a square map with another last dimension is it clear that its channels are last
    if len(shape) > 3 and inputs.channels is None and not shape[1] == shape[2] != shape[-1]:
        raise SiteError(
            f"Site '{site}' has {tuple(shape)}, which may be a map with its channels first or last. Name where they are: "
            "load_model(model, channels='first'), or channels='last'."
        )
    return flat(torch.empty(shape, device="meta"), inputs.channels).shape[-1]


@torch.no_grad()
def changes_output(module: nn.Module, site: Site, inputs: ModelInputs) -> bool:
    """Returns whether other activations at a site change the model's output."""
    clean = hidden_or_none(run(module, inputs))

    def other(x: Tensor | None, call: int) -> Tensor | None:
        if x is None or site.call not in (None, call):
            return None
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x.device, x.dtype)
        return x + noise * x.abs().amax().clamp_min(1)

    with _hooked(module, {site: other}):
        changed = hidden_or_none(run(module, inputs))
    return clean is None or changed is None or clean.is_meta or not torch.equal(clean, changed)


@torch.no_grad()
def run(module: nn.Module, inputs: ModelInputs) -> Any:
    """Returns the model's output.

    Raises:
        ModelError: its forward pass fails.
    """
    try:
        return module(*inputs.args, **inputs.kwargs)
    except (DictionaryLearningError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        tried = f"a text of {inputs.ctx_len} tokens" if inputs.ctx_len else "the example"
        raise ModelError(
            f"{type(module).__name__} cannot be run on {tried} ({type(error).__name__}: {error}), as is needed to find its "
            "sites. Give inputs that it can be run on: load_model(model, example=...)."
        ) from error


def _rows_are_tokens(module: nn.Module, site: Site, texts: Callable[[], ModelInputs]) -> bool:
    """Returns whether a site has a row for each token, in the order of the texts.

    An expert sees some of the tokens, and what runs inside several experts may see them sorted by
    expert. So two texts are run together and each alone: every row must come again in its place.
    """
    if any(p.is_meta for p in module.parameters()):
        return True  # there are no values to compare
    found: list[Tensor] = []

    def keep(x: Tensor | None, call: int) -> None:
        if x is not None and call == (site.call or 0):
            found.append(x.detach().float().clone())

    both = texts()
    for rows in (slice(None), slice(0, 1), slice(1, 2)):
        kwargs = {name: value[rows] if isinstance(value, Tensor) else value for name, value in both.kwargs.items()}
        args = tuple(value[rows] if isinstance(value, Tensor) else value for value in both.args)
        with _hooked(module, {site: keep}):
            run(module, both._replace(args=args, kwargs=kwargs))
    together, alone = found[0], torch.cat(found[1:])
    if len(found) != 3 or together.shape != alone.shape or len(together) != both.n_examples * (both.ctx_len or 0):
        return False
    # on average: another batch size may round differently, and send a token to another expert
    return bool((together - alone).abs().mean() <= _ROUNDING * alone.abs().mean())


@contextmanager
def _hooked(module: nn.Module, see: dict[Site, Callable[[Tensor | None, int], Tensor | None]]) -> Any:
    """Calls functions with the activations at sites and the number of the call; a tensor that they return replaces them."""
    handles = []
    try:
        for site, look in see.items():
            handles.append(_hook(module, site, look))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(module: nn.Module, site: Site, see: Callable[[Tensor | None, int], Tensor | None]) -> Any:
    part, calls = module.get_submodule(site.path), itertools.count()

    def before(part: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        new = see(input_or_none(part, args, kwargs, site.index), next(calls))
        return None if new is None else with_input(part, args, kwargs, new, site.index)

    def after(part: nn.Module, args: tuple, output: Any) -> Any:
        new = see(hidden_or_none(output, site.index), next(calls))
        return None if new is None else with_hidden(output, new, site.index)

    if site.side == "in":
        return part.register_forward_pre_hook(before, with_kwargs=True)
    return part.register_forward_hook(after)


def _without_values(module: nn.Module) -> AbstractContextManager[Any]:
    """Lets a model run whose weights are not here: its tensors have shapes, and no values."""
    if all(p.device.type != "meta" for p in module.parameters()) or hasattr(module, "hf_device_map"):
        return nullcontext()
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    return FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv(assume_static_by_default=True))
