"""Pages from a store of contexts, and from the dictionaries themselves where they are at hand."""

import logging
from collections.abc import Mapping
from typing import Any, Literal

from dictionary_learning._border import checked, short
from dictionary_learning._types import ModelLike, SubmodulesLike
from dictionary_learning.dashboards._pages import DictionaryPage
from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.errors import ConfigError, UnknownNameError
from dictionary_learning.interpretation import ContextStore, Neighbors, latent_map, logit_lens, nearest_latents
from dictionary_learning.interpretation.explanations import load_explanations
from dictionary_learning.interpretation.explanations._files import EXPLANATIONS
from dictionary_learning.models import TracedModel, load_model

logger = logging.getLogger(__name__)

_N_MATCHES = 3


@checked()
def pages_of(
    store: ContextStore,
    dictionaries: Mapping[str, Dictionary] | None = None,
    model: ModelLike | None = None,
    *,
    target_sites: Mapping[str, SubmodulesLike] | None = None,
    n: int = 10,
    map_method: Literal["auto", "umap", "pca"] = "auto",
) -> list[DictionaryPage]:
    """Returns a page of each dictionary of a store, with the explanations that lie in it.

    Args:
        store: Contexts, as `collect_contexts` writes them.
        dictionaries: By their names in the store: their latents get neighbors, places on a map, and
            the nearest latents of the others at the same sites.
        model: The language model; with it, they get the tokens that they promote and suppress.
        target_sites: What dictionaries write, by their names, where they do not say it themselves.
        n: Neighbors, promoted and suppressed tokens of each latent.
        map_method: As in `latent_map`.

    Raises:
        ConfigError: A dictionary is not in the store, or is another than the one that was read.
    """
    known = dict(dictionaries or {})
    check_dictionaries(known)
    for name, dictionary in known.items():
        if name not in store:
            raise UnknownNameError("dictionary of the store", name, store.names)
        if dictionary.dict_size != store[name].dict_size:
            raise ConfigError(
                f"The dictionary '{name}' has {dictionary.dict_size} latents, and that of the store "
                f"{store[name].dict_size}. Give the one that was read."
            )
    traced = None if model is None else load_model(model)
    targets = dict(target_sites or {})
    for name in targets:
        if name not in known:
            raise UnknownNameError("dictionary with a target site", name, known)
    return [_page(store, name, known, traced, targets.get(name), n, map_method) for name in store.names]


def check_dictionaries(dictionaries: Mapping[str, Any]) -> None:
    """Raises ConfigError if something among dictionaries is none."""
    for name, one in dictionaries.items():
        if not isinstance(one, Dictionary):
            raise ConfigError(f"Got dictionaries with {name!r}: {short(one)}; give dictionaries by their names.")


def _page(
    store: ContextStore,
    name: str,
    dictionaries: Mapping[str, Dictionary],
    model: TracedModel | None,
    target: SubmodulesLike | None,
    n: int,
    map_method: Any,
) -> DictionaryPage:
    contexts = store[name]
    found: dict[str, Any] = {
        "name": name,
        "site": contexts.site,
        "kind": contexts.class_name,
        "dict_size": contexts.dict_size,
        "statistics": contexts.statistics,
        "contexts": contexts.contexts,
        "token_text": contexts.token_text,
        "explanations": _explanations(store, name),
    }
    dictionary = dictionaries.get(name)
    if dictionary is not None:
        also = "" if model is None else ", and what they promote"
        logger.info("Finding neighbors and places of the latents of '%s'%s.", name, also)
        found |= {
            "map": latent_map(dictionary, map_method),
            "matches": _matches(store, name, dictionaries),
        }
        if dictionary.dict_size > 1:
            found["neighbors"] = nearest_latents(dictionary, min(n, dictionary.dict_size - 1))
        if model is not None:
            told = dictionary.info.target_sites or dictionary.info.sites
            site = target if target is not None or told else list(contexts.sites)
            found["effects"] = logit_lens(model, dictionary, n, site=site)
    return DictionaryPage(**found)


def _matches(store: ContextStore, name: str, dictionaries: Mapping[str, Dictionary]) -> dict[str, Neighbors]:
    """Returns the nearest latents of the other dictionaries at the same sites."""
    mine = dictionaries[name]
    return {
        other: nearest_latents(mine, min(_N_MATCHES, theirs.dict_size), other=theirs)
        for other, theirs in dictionaries.items()
        if other != name and store[other].sites == store[name].sites and theirs.output_dim == mine.output_dim
    }


def _explanations(store: ContextStore, name: str) -> Mapping[int, Any]:
    folder = store.folder / store[name].facts["folder"]
    return load_explanations(folder) if (folder / EXPLANATIONS).is_file() else {}
