"""Places that every model has under another name: its layers and its embedding.

Neither is looked up in a list of architectures. Layers are the longest list of modules; the embedding is what the model itself
names. The outputs of attention heads are in `heads.py`.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from dictionary_learning.errors import SiteError

EMBEDDING = "embedding"
"""The path that stands for the input embedding in any model."""


def layer_paths(module: nn.Module, name: str) -> list[str]:
    """Returns the paths of the model's layers, in order.

    They are the longest list of modules that lies in no other: a mixture of experts has lists of those inside its layers. Of
    lists of one length the first is meant, as the encoder's; of a model of text and images, that of the text.

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
        layers: the numbers of those that are meant, from 0, or from -1 backwards; all if not given.
        layer_stride: takes every n-th, from the first on.

    Raises:
        SiteError: a number is not that of a layer, or both are given.
    """
    if layer_stride < 1:
        raise SiteError(f"Got layer_stride={layer_stride}; it must be at least 1. Write 2 for every second layer.")
    if layers and layer_stride != 1:
        raise SiteError(f"Got layers={list(layers)} and layer_stride={layer_stride}; give one of the two.")
    if not layers:
        return list(paths[::layer_stride])
    wrong = [n for n in layers if not -len(paths) <= n < len(paths)]
    if wrong:
        raise SiteError(
            f"Got layers={list(layers)}; the model has {len(paths)} layers, 0 to {len(paths) - 1}. Choose among those."
        )
    return list(dict.fromkeys(paths[n] for n in layers))


def embedding_paths(module: nn.Module, name: str) -> list[str]:
    """Returns the paths of the modules that may embed the input: the one that the model names, and those that share its weights.

    An encoder and decoder name one that neither of them runs.

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
        raise SiteError(f"{name} does not say which module embeds its input. Name that module.")
    return found


def _embeds_with(module: nn.Module, weight: Tensor) -> bool:
    return isinstance(module, nn.Embedding) and module.weight is weight


def _text_model(module: nn.Module) -> str:
    """Returns the path of the part that reads text, in a model of text and images; "" if there is no such part."""
    if getattr(getattr(module, "config", None), "text_config", None) is None:
        return ""
    decoder = module.get_decoder() if hasattr(module, "get_decoder") else None  # type: ignore[operator]
    return next((path for path, part in module.named_modules() if part is decoder), "")
