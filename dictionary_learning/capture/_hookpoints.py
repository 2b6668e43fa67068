"""Places with another name in each architecture: layers, embedding, outputs of attention heads.

There is no list of architectures. Layers are the longest list of modules, the model itself names
its embedding, and heads are found from what the config says of them and from how the model behaves.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from dictionary_learning._module_io import hidden_or_none, inputs_in_order, with_input
from dictionary_learning.capture._inputs import input_embedding
from dictionary_learning.capture._probing import Probe, hooked
from dictionary_learning.errors import SiteError
from dictionary_learning.sites import Site

EMBEDDING = "embedding"
"""The path that stands for the input embedding in any model."""
_ROUNDING = 1e-3
"""Relative difference that may be rounding; tokens changed by their own size weigh far more."""
_TOKENS = 4
"""Enough for a token to attend to another, whatever a model does with the first and the last."""
_TRIES = 4
"""Attention may look at one token only, and find it again in spite of a change."""


def layer_paths(module: nn.Module, name: str, layers: Sequence[int] | None = None, layer_stride: int = 1) -> list[str]:
    """Returns the paths of the model's layers, in order.

    They are the longest list of modules that is in no other list: a mixture of experts has lists
    inside its layers. Of lists of one length it is the first, as the encoder's; of a model of text
    and images, that of the text.

    Args:
        module: the model.
        name: its name in errors.
        layers: the numbers of some, from 0, or from -1 backwards; all by default.
        layer_stride: chooses every n-th, beginning with the first.

    Raises:
        SiteError: the model has no list of modules; a number is not that of a layer; or layers and
            a stride are given.
    """
    if layers and layer_stride != 1:
        raise SiteError(f"Got layers={list(layers)} and layer_stride={layer_stride}; give one of the two.")
    lists: dict[str, nn.ModuleList] = {}
    for prefix in (_text_model(module), ""):
        for path, part in module.get_submodule(prefix).named_modules(prefix=prefix):
            if isinstance(part, nn.ModuleList) and not any(path.startswith(f"{outer}.") for outer in lists):
                lists[path] = part
        if lists:
            break
    if not lists:
        raise SiteError(f"{name} has no list of layers. Name its sites, or a pattern such as '**.conv*'.")
    longest = max(lists, key=lambda path: len(lists[path]))
    paths = [f"{longest}.{n}" for n in range(len(lists[longest]))]
    if not layers:
        return paths[::layer_stride]
    if any(not isinstance(n, int) or not -len(paths) <= n < len(paths) for n in layers):
        raise SiteError(
            f"Got layers={list(layers)}; the model has {len(paths)} layers, 0 to {len(paths) - 1}. Choose among those."
        )
    return list(dict.fromkeys(paths[n] for n in layers))


def parts_without(module: nn.Module, paths: Sequence[str], sites: Iterable[Site]) -> list[str]:
    """Returns modules at these paths, or the largest inside them that have no site within.

    A site at the input or output of a module itself is not within it.
    """
    places = [site.path for site in sites]
    found: list[str] = []
    for path in paths:
        if any(place.startswith(f"{path}.") for place in places):
            inside = [f"{path}.{name}" for name, _ in module.get_submodule(path).named_children()]
            found += parts_without(module, inside, sites)
        elif not isinstance(module.get_submodule(path), nn.ModuleList):  # a list is not called
            found.append(path)
    return found


def embedding_path(probe: Probe) -> str:
    """Returns the path of the module that embeds the input.

    It is the one that the model names, or one with the same weights. An encoder and decoder may
    name one that neither of them runs.

    Raises:
        SiteError: the model names none.
    """
    embedding = input_embedding(probe.module)
    modules = list(probe.module.named_modules())
    found = [path for path, part in modules if part is embedding]
    found += [
        path
        for path, part in modules
        if isinstance(part, nn.Embedding)
        and part is not embedding
        and part.weight is getattr(embedding, "weight", None)
    ]
    if not found:
        raise SiteError(f"{probe.name} does not name the module that embeds its input. Give that module's path.")
    ran = probe.shapes(map(Site, found)) if len(found) > 1 else {}
    return next((site.path for site in ran), found[0])


def head_shape(module: nn.Module, path: str, name: str) -> tuple[int, set[int]]:
    """Returns the number of attention heads at a module, and their possible widths, by its config.

    Raises:
        SiteError: no config near it has a number of attention heads.
    """
    for config in _configs_near(module, path):
        n_heads = next((getattr(config, key, None) for key in ("num_attention_heads", "n_head", "n_heads")), None)
        if not isinstance(n_heads, int):
            continue
        named = {value for key, value in config.to_dict().items() if key.endswith(("head_dim", "d_kv"))}
        widths = {width for width in named if isinstance(width, int)}
        total = getattr(config, "hidden_size", None)
        if isinstance(total, int) and total % n_heads == 0:
            widths.add(total // n_heads)
        return n_heads, widths
    raise SiteError(
        f"No config of {name} names a number of attention heads (num_attention_heads) at '{path}', which ':heads' "
        "needs. Name the module that reads the heads' outputs, with ':in'."
    )


def heads_site(probe: Probe, path: str) -> Site:
    """Returns the site of the outputs of attention heads: the input of their output projection.

    Attention is where one token learns of others. So the input of the module at `path` is changed
    at all tokens but the last, and its submodules with a matrix are watched as they run: the first
    whose input at the last token changes too is the projection, if it is as wide as all heads
    together. Queries, keys and values come before it, and depend on their own token only.

    Raises:
        SiteError: the module has no attention, or none with an output projection that is a module;
            or the model's weights are not here.
    """
    if probe.builder.is_elsewhere:
        raise SiteError(
            f"Site '{path}:heads' is found by running the model, which is not here. Find it with a small model of the "
            "same kind, and name it, as 'model.layers.10.self_attn.o_proj:in'."
        )
    n_heads, dims = head_shape(probe.module, path, probe.name)
    widths = sorted(n_heads * dim for dim in dims)
    before, outermost = _inputs_below(probe, path)
    for seed in range(_TRIES):
        after, _ = _inputs_below(probe, path, seed)
        first = next((found for found in before if _mixes(before[found], after.get(found))), None)
        if first is not None and before[first].shape[-1] in widths:
            return Site(outermost[first], "in")
        if first is not None:
            break  # the first to mix tokens is no attention, but a convolution or a recurrence
    raise SiteError(
        f"No output projection of attention was found in '{path}' of {probe.name}: of its modules with a matrix, the "
        f"first whose input mixes tokens is not {' or '.join(map(str, widths))} wide ({n_heads} heads), or there is "
        "none. Name the module that reads the heads' outputs, with ':in', if there is one."
    )


@torch.no_grad()
def _inputs_below(probe: Probe, path: str, seed: int | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the inputs of modules with a matrix, in order, and each input's outermost module.

    With a seed, the input of the module at `path` is changed at all tokens but the last.
    """
    top = probe.module.get_submodule(path)
    inside = {f"{path}.{inner}" if path else inner: part for inner, part in top.named_modules() if inner}
    seen: dict[str, Tensor] = {}
    outermost: dict[str, str] = {}
    first_with: dict[int, str] = {}  # by the id of the input
    alive: list[Tensor] = []  # so that no id is used twice

    def look(name: str, x: Tensor | None, call: int) -> None:
        if name not in outermost and x is not None and x.ndim == 3:
            # an adapter hands its input on to the matrix that it wraps: the site is the adapter's
            outermost[name] = first_with.setdefault(id(x), name)
            alive.append(x)
            if _has_matrix(inside[name]):
                seen[name] = x.clone()  # (1, ctx, dim), before anything changes it in place

    with ExitStack() as hooks:
        if seed is not None:
            change = functools.partial(_change_tokens, seed=seed)
            hooks.enter_context(top.register_forward_pre_hook(change, with_kwargs=True))
        hooks.enter_context(hooked(probe.module, {Site(name, "in"): functools.partial(look, name) for name in inside}))
        probe.run(probe.builder.probe(_TOKENS))
    return seen, outermost


def _change_tokens(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], seed: int) -> Any:
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


def _text_model(module: nn.Module) -> str:
    """Returns the path of the part of a multimodal model that reads text; "" if none does."""
    if getattr(getattr(module, "config", None), "text_config", None) is None:
        return ""
    decoder = module.get_decoder() if hasattr(module, "get_decoder") else None  # type: ignore[operator]
    return next((path for path, part in module.named_modules() if part is decoder), "")


def _configs_near(module: nn.Module, path: str) -> Iterator[Any]:
    """Yields the configs of a module, its submodules and parents, and the text configs in them."""
    parts = path.split(".") if path else []
    owners = [*module.get_submodule(path).modules()]
    owners += [module.get_submodule(".".join(parts[:n])) for n in range(len(parts) - 1, -1, -1)]
    for owner in owners:
        config = getattr(owner, "config", None)
        if hasattr(config, "to_dict"):
            yield config
            yield from (c for c in (getattr(config, "text_config", None),) if hasattr(c, "to_dict"))
