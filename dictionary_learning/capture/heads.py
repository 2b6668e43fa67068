"""The outputs of attention heads, in any architecture: found from what the config says of them and from how the model behaves."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dictionary_learning.errors import SiteError
from dictionary_learning.module_io import hidden_or_none, input_or_none, inputs_in_order, with_input
from dictionary_learning.sites import Site

_ROUNDING = 1e-3
"""Relative difference that is not put down to rounding: other tokens, changed as much as their own size, weigh far more."""
_TRIES = 4
"""Attention may look at one token only, and find it again in spite of a change."""


def head_shape(module: nn.Module, path: str, name: str) -> tuple[int, set[int]]:
    """Returns how many attention heads there are at a module, and how wide one may be, from the config that is nearest to it.

    Raises:
        SiteError: no config there knows of attention heads.
    """
    for config in _configs_near(module, path):
        n_heads = next((getattr(config, key, None) for key in ("num_attention_heads", "n_head", "n_heads")), None)
        if not isinstance(n_heads, int):
            continue
        named = [config.to_dict()[key] for key in config.to_dict() if key.endswith(("head_dim", "d_kv"))]
        widths = {width for width in named if isinstance(width, int)}
        total = getattr(config, "hidden_size", None)
        if isinstance(total, int) and total % n_heads == 0:
            widths.add(total // n_heads)
        return n_heads, widths
    raise SiteError(
        f"{name} has no attention heads that its config knows of (num_attention_heads) at '{path}', so ':heads' means nothing. "
        "Name the module that the heads' outputs are given to, with ':in'."
    )


def heads_site(module: nn.Module, path: str, forward: Callable[[], Any], name: str) -> Site:
    """Returns where the outputs of the attention heads inside a module are: the input of the projection that follows them.

    Attention is where one token learns of others. So the module's input is changed at all tokens but the last, and the modules with
    a matrix are watched in the order in which they run: the first whose input at the last token changes too is the projection, if
    it is as wide as the heads are together. Before it stand queries, keys and values, which know of their own token only.

    Args:
        module: the model.
        path: a layer, or a module in it that holds the attention.
        forward: runs the model on an input of several positions, always the same.
        name: what to call the model in an error.

    Raises:
        SiteError: there is no attention in the module, or none that goes through a module with a matrix.
    """
    n_heads, dims = head_shape(module, path, name)
    widths = sorted(n_heads * dim for dim in dims)
    inside = {f"{path}.{below}" if path else below: part for below, part in _below(module.get_submodule(path))}
    before, outermost = _inputs_of(module, inside, path, forward)
    for seed in range(_TRIES):
        after, _ = _inputs_of(module, inside, path, forward, seed)
        mixing = (found for found in before if _has_matrix(inside[found]) and _mixes(before[found], after.get(found)))
        first = next(mixing, None)
        if first is not None and before[first].shape[-1] in widths:
            return Site(outermost[first], "in")
        if first is not None:
            break  # the first to mix tokens is no attention, but a convolution or a recurrence
    raise SiteError(
        f"No output projection of attention was found in '{path}' of {name}: of its modules with a matrix, the first whose input "
        f"mixes tokens is not {' or '.join(map(str, widths))} wide ({n_heads} heads), or there is none. Name the module that the "
        "heads' outputs are given to, with ':in', if there is one."
    )


@torch.no_grad()
def _inputs_of(
    module: nn.Module, inside: Mapping[str, nn.Module], path: str, forward: Callable[[], Any], nudged: int | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the inputs of modules in order of execution, and for each the outermost module that is given the same tensor.

    With a seed, the tokens that the module at `path` is given are nudged.
    """
    seen: dict[str, Tensor] = {}
    outermost: dict[str, str] = {}
    first_given: dict[int, str] = {}
    kept: list[Tensor] = []  # so that no id is given twice
    handles = []
    if nudged is not None:
        nudge = functools.partial(_nudge, seed=nudged)
        handles.append(module.get_submodule(path).register_forward_pre_hook(nudge, with_kwargs=True))
    for name, part in inside.items():

        def look(part: nn.Module, args: tuple, kwargs: dict, name: str = name) -> None:
            x = input_or_none(part, args, kwargs)
            if name not in seen and x is not None and x.ndim == 3:
                # an adapter hands what it is given on to the matrix it wraps: the adapter is what is meant
                outermost[name] = first_given.setdefault(id(x), name)
                seen[name] = x if x.is_meta else x.clone()
                kept.append(x)

        handles.append(part.register_forward_pre_hook(look, with_kwargs=True))
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    return seen, outermost


def _nudge(module: nn.Module, args: tuple, kwargs: dict, seed: int) -> tuple[tuple, dict]:
    """Changes the hidden states of all tokens but the last; a pre-hook."""
    for n, value in enumerate(inputs_in_order(module, args, kwargs).values()):
        x = hidden_or_none(value)
        if x is not None and x.ndim == 3 and x.is_floating_point():
            noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x.device, x.dtype)
            noise[:, -1] = 0
            return with_input(module, args, kwargs, x + x.abs().amax().clamp_min(1) * noise, n)
    return args, kwargs


def _mixes(x: Tensor, nudged: Tensor | None) -> bool:
    """Tells whether the last token's values changed by more than rounding, as of a matrix product with other rows beside theirs."""
    if nudged is None or x.shape != nudged.shape or x.shape[1] < 2:
        return False
    x, nudged = x[:, -1].float(), nudged[:, -1].float()
    return bool((x - nudged).abs().mean() > _ROUNDING * x.abs().mean())


def _has_matrix(module: nn.Module) -> bool:
    own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    return any(tensor.ndim >= 2 for tensor in own) and not isinstance(module, nn.Embedding)


def _below(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((path, part) for path, part in module.named_modules() if path)


def _configs_near(module: nn.Module, path: str) -> Iterator[Any]:
    """Yields the configs of a module, of what is in it and of what it is in, nearest first, each with those inside it."""
    parts = path.split(".") if path else []
    owners = [*module.get_submodule(path).modules()]
    owners += [module.get_submodule(".".join(parts[:n])) for n in range(len(parts) - 1, -1, -1)]
    for owner in owners:
        config = getattr(owner, "config", None)
        if hasattr(config, "to_dict"):
            yield config
            yield from (c for c in (getattr(config, "text_config", None),) if hasattr(c, "to_dict"))
