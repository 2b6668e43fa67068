"""Places with another name in each architecture: layers, embedding, outputs of attention heads.

There is no list of architectures. Layers are the longest list of modules, the model itself names
its embedding, and heads are found from what the config says of them and from how the model behaves.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dictionary_learning._module_io import hidden_or_none, input_or_none, inputs_in_order, with_input
from dictionary_learning.errors import SiteError
from dictionary_learning.sites import Site

EMBEDDING = "embedding"
"""The path that stands for the input embedding in any model."""
_ROUNDING = 1e-3
"""Relative difference that may be rounding; other tokens, changed by their own size, weigh far more."""
_TRIES = 4
"""Attention may look at one token only, and find it again in spite of a change."""


def layer_paths(module: nn.Module, name: str) -> list[str]:
    """Returns the paths of the model's layers, in order.

    They are the longest list of modules that is in no other list: a mixture of experts has lists
    inside its layers. Of lists of one length it is the first, as the encoder's; of a model of text
    and images, that of the text.

    Raises:
        SiteError: the model has no list of modules.
    """
    for prefix in (_text_model(module), ""):
        lists: dict[str, nn.ModuleList] = {}
        for path, part in module.get_submodule(prefix).named_modules(prefix=prefix):
            if isinstance(part, nn.ModuleList) and not any(path.startswith(f"{outer}.") for outer in lists):
                lists[path] = part
        if lists:
            path = max(lists, key=lambda path: len(lists[path]))
            return [f"{path}.{n}" for n in range(len(lists[path]))]
    raise SiteError(f"{name} has no list of layers. Name its sites, or a pattern such as '**.conv*'.")


def choose_layers(paths: Sequence[str], layers: Sequence[int] | None = None, layer_stride: int = 1) -> list[str]:
    """Returns some of the layers.

    Args:
        paths: all of them.
        layers: their numbers, from 0, or from -1 backwards; all by default.
        layer_stride: chooses every n-th, beginning with the first.

    Raises:
        SiteError: a number is not that of a layer, or both are given.
    """
    if layer_stride < 1:
        raise SiteError(f"Got layer_stride={layer_stride}; it must be at least 1. Write 2 for every second layer.")
    if not layers:
        return list(paths[::layer_stride])
    if layer_stride != 1:
        raise SiteError(f"Got layers={list(layers)} and layer_stride={layer_stride}; give one of the two.")
    if any(not isinstance(n, int) or not -len(paths) <= n < len(paths) for n in layers):
        raise SiteError(
            f"Got layers={list(layers)}; the model has {len(paths)} layers, 0 to {len(paths) - 1}. Choose among those."
        )
    return list(dict.fromkeys(paths[n] for n in layers))


def embedding_paths(module: nn.Module, name: str) -> list[str]:
    """Returns the modules that may embed the input: the one the model names, and those with its weights.

    An encoder and decoder may name one that neither of them runs.

    Raises:
        SiteError: the model names none.
    """
    try:
        embedding = module.get_input_embeddings()  # type: ignore[operator]  (transformers' models have it)
    except (AttributeError, NotImplementedError):
        embedding = None
    weight = getattr(embedding, "weight", None)
    found = [path for path, part in module.named_modules() if part is embedding]
    if weight is not None:
        found += [path for path, part in module.named_modules() if part is not embedding and _embeds_with(part, weight)]
    if not found:
        raise SiteError(f"{name} does not name the module that embeds its input. Give that module's path.")
    return found


def head_shape(module: nn.Module, path: str, name: str) -> tuple[int, set[int]]:
    """Returns the number of attention heads at a module and their possible widths, from the nearest config.

    Raises:
        SiteError: no config there has a number of attention heads.
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
        f"No config of {name} names a number of attention heads (num_attention_heads) at '{path}', which ':heads' needs. "
        "Name the module that reads the heads' outputs, with ':in'."
    )


def heads_site(module: nn.Module, path: str, forward: Callable[[], Any], name: str) -> Site:
    """Returns the site of the outputs of attention heads: the input of their output projection.

    Attention is where one token learns of others. So the module's input is changed at all tokens but
    the last, and its submodules with a matrix are watched in order of execution: the first whose
    input at the last token changes too is the projection, if it is as wide as all heads together.
    Queries, keys and values come before it, and depend on their own token only.

    Args:
        module: the model.
        path: a layer, or a module in it that holds the attention.
        forward: runs the model on an input of several positions, the same each time.
        name: the model's name in errors.

    Raises:
        SiteError: the module has no attention, or none with an output projection that is a module.
    """
    n_heads, dims = head_shape(module, path, name)
    widths = sorted(n_heads * dim for dim in dims)
    below = ((inner, part) for inner, part in module.get_submodule(path).named_modules() if inner)
    inside = {f"{path}.{inner}" if path else inner: part for inner, part in below}
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
        f"No output projection of attention was found in '{path}' of {name}: of its modules with a matrix, the first whose "
        f"input mixes tokens is not {' or '.join(map(str, widths))} wide ({n_heads} heads), or there is none. Name the module "
        "that reads the heads' outputs, with ':in', if there is one."
    )


@torch.no_grad()
def _inputs_of(
    module: nn.Module, inside: Mapping[str, nn.Module], path: str, forward: Callable[[], Any], seed: int | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the inputs of modules in order of execution, and the outermost module with each input.

    With a seed, the input of the module at `path` is changed at all tokens but the last.
    """
    seen: dict[str, Tensor] = {}
    outermost: dict[str, str] = {}
    first_with: dict[int, str] = {}  # by the id of the input
    alive: list[Tensor] = []  # so that no id is used twice
    handles = []
    if seed is not None:
        change = functools.partial(_change_tokens, seed=seed)
        handles.append(module.get_submodule(path).register_forward_pre_hook(change, with_kwargs=True))
    for name, part in inside.items():

        def look(part: nn.Module, args: tuple, kwargs: dict, name: str = name) -> None:
            x = input_or_none(part, args, kwargs)
            if name not in seen and x is not None and x.ndim == 3:
                # an adapter hands its input on to the matrix that it wraps: the site is the adapter's
                outermost[name] = first_with.setdefault(id(x), name)
                seen[name] = x if x.is_meta else x.clone()
                alive.append(x)

        handles.append(part.register_forward_pre_hook(look, with_kwargs=True))
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    return seen, outermost


def _change_tokens(module: nn.Module, args: tuple, kwargs: dict, seed: int) -> tuple[tuple, dict]:
    """Changes the hidden states of all tokens but the last; a pre-hook."""
    for n, value in enumerate(inputs_in_order(module, args, kwargs).values()):
        x = hidden_or_none(value)
        if x is not None and x.ndim == 3 and x.is_floating_point():
            noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x.device, x.dtype)
            noise[:, -1] = 0
            return with_input(module, args, kwargs, x + x.abs().amax().clamp_min(1) * noise, n)
    return args, kwargs


def _mixes(x: Tensor, changed: Tensor | None) -> bool:
    """Returns whether the last token's values changed by more than rounding."""
    if changed is None or x.shape != changed.shape or x.shape[1] < 2:
        return False
    x, changed = x[:, -1].float(), changed[:, -1].float()
    return bool((x - changed).abs().mean() > _ROUNDING * x.abs().mean())


def _has_matrix(module: nn.Module) -> bool:
    own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    return any(tensor.ndim >= 2 for tensor in own) and not isinstance(module, nn.Embedding)


def _embeds_with(module: nn.Module, weight: Tensor) -> bool:
    return isinstance(module, nn.Embedding) and module.weight is weight


def _text_model(module: nn.Module) -> str:
    """Returns the path of the part that reads text, in a model of text and images; "" if there is none."""
    if getattr(getattr(module, "config", None), "text_config", None) is None:
        return ""
    decoder = module.get_decoder() if hasattr(module, "get_decoder") else None  # type: ignore[operator]
    return next((path for path, part in module.named_modules() if part is decoder), "")


def _configs_near(module: nn.Module, path: str) -> Iterator[Any]:
    """Yields the configs of a module, its submodules and its parents, and the text configs in them."""
    parts = path.split(".") if path else []
    owners = [*module.get_submodule(path).modules()]
    owners += [module.get_submodule(".".join(parts[:n])) for n in range(len(parts) - 1, -1, -1)]
    for owner in owners:
        config = getattr(owner, "config", None)
        if hasattr(config, "to_dict"):
            yield config
            yield from (c for c in (getattr(config, "text_config", None),) if hasattr(c, "to_dict"))
