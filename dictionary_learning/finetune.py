"""Runs that start from trained dictionaries: which ones, at which sites, and how they are wired."""

import logging
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from dictionary_learning.activations.normalization import NORMALIZATIONS
from dictionary_learning.dictionaries import Dictionary, ParallelCoders, Trainable, load_dictionary, wiring_of
from dictionary_learning.dictionaries.normalized import Normalized
from dictionary_learning.errors import ConfigError, SiteError
from dictionary_learning.interop.saved import Saved, saved_at
from dictionary_learning.sites import Site
from dictionary_learning.trainers import OptimizationConfig

logger = logging.getLogger(__name__)
C = TypeVar("C", bound=OptimizationConfig)

_TRAINED_AS = {
    "layer_norm": "layer_norm",
    "layer_norm_eps_in": "layer_norm",
    "constant_norm_rescale": "constant_norm_rescale",
}
"""The normalization of an exported dictionary, by its name in training."""


def expand_finetune(config: C, widths: Mapping[Site, int]) -> list[C]:
    """Returns a config for each dictionary that `finetune` names, or the config itself without one.

    What the dictionary knows is filled in where the config leaves it out: wiring, heads, and the sites
    as far as the data has them.

    Args:
        config: Its `finetune` is a dictionary, several by site, or a place where there are some.
        widths: The sites of the data.

    Raises:
        ConfigError: Several dictionaries are given and none belongs to the sites.
    """
    given = config.finetune
    if given is None:
        return [config]
    found = _found(given, lambda name: _in_data(name, widths) is not None)
    if len(found) == 1:
        _warn_of_another_site(found[0], config, widths)
        return [_filled(config, found[0], widths)]
    asked = _names(config.site)
    wanted = tuple(str(Site.parse(site)) for site in asked)
    placed = [(one, _site(one, "site", widths)) for one in found]
    configs = [
        _filled(config, one, widths) for one, sites in placed if sites is not None and (not wanted or sites == wanted)
    ]
    if not configs:
        raise ConfigError(
            f"finetune got {len(found)} dictionaries ({', '.join(one.name for one in found)}), and none is of the "
            f"sites {', '.join(asked or map(str, widths))}. Name one dictionary, and its site."
        )
    return configs


class InnerNormalization(NamedTuple):
    """The normalization around a dictionary that was found inside another."""

    normalize: str
    """Its name in training."""
    scales: tuple[float, ...] | None
    """Divisors of the activations of each site, where they are known."""


def unwrap_normalized(config: C) -> tuple[C, InnerNormalization | None]:
    """Returns the config with the dictionary inside one that normalizes, and its normalization.

    Raises:
        ConfigError: It both scales sites and normalizes tokens, or another normalization is asked for.
    """
    trained = config.finetune
    if not isinstance(trained, Normalized):
        return config, None
    if trained.normalization is None:
        inside = InnerNormalization("unit_mean_square", trained.scales)
    elif set(trained.scales) == {1.0}:
        inside = InnerNormalization(NORMALIZATIONS.canonical(_TRAINED_AS[trained.normalization]), None)
    else:
        raise ConfigError(
            f"A dictionary that scales sites by {trained.scales} and normalizes tokens cannot be trained further. Give "
            "the one inside (its attribute `dictionary`), and activations that are scaled so."
        )
    if config.normalize is not None and NORMALIZATIONS.canonical(config.normalize) != inside.normalize:
        raise ConfigError(
            f"Got normalize={config.normalize!r} for a dictionary that was trained with {inside.normalize!r}. Leave "
            "normalize out."
        )
    return config.replace(finetune=trained.dictionary), inside


def _found(given: Any, is_wanted: Callable[[str], bool]) -> list[Saved]:
    """Returns the given dictionaries; of a folder of several those with names that are wanted."""
    if isinstance(given, Dictionary):
        return [Saved("", given, {})]
    if isinstance(given, Mapping):
        return [Saved(str(site), dictionary, {}) for site, dictionary in given.items()]
    if not isinstance(given, (str, os.PathLike)):
        raise ConfigError(
            f"Got finetune={given!r}; give a dictionary, a mapping from sites to dictionaries, or where they are stored."
        )
    if os.path.exists(given):
        return saved_at(str(given), is_wanted)
    # of a repository not all are downloaded for the sake of some: the user names one
    loaded: Any = load_dictionary(given)
    return [Saved("", loaded[0] if isinstance(loaded, tuple) else loaded, {})]


def _warn_of_another_site(one: Saved, config: OptimizationConfig, widths: Mapping[Site, int]) -> None:
    own = _names(one.config.get("site")) if one.folder is not None else ()
    if own and config.site is None and _site(one, "site", widths) is None:
        logger.warning(
            "The dictionary to start from was trained at %s; the data has %s.",
            ", ".join(own),
            ", ".join(map(str, widths)),
        )


def _filled(config: C, one: Saved, widths: Mapping[Site, int]) -> C:
    filled: dict[str, Any] = {"finetune": one.dictionary}
    inside = one.dictionary.dictionary if isinstance(one.dictionary, Normalized) else one.dictionary
    wiring = getattr(config, "wiring", None)
    if isinstance(inside, Trainable) and wiring is None and hasattr(config, "wiring"):
        wiring = filled["wiring"] = wiring_of(inside)
    if isinstance(inside, ParallelCoders) and wiring == "heads" and getattr(config, "n_heads", None) is None:
        filled["n_heads"] = len(inside.parts)
    if config.site is None and config.target_site is None:
        for key in ("site", "target_site"):
            sites = _site(one, key, widths)
            if sites is not None:
                filled[key] = sites
    return config.replace(**filled)


def _site(one: Saved, key: str, widths: Mapping[Site, int]) -> tuple[str, ...] | None:
    """Returns the sites that a dictionary's files or its name tell, if the data has them."""
    named = [_names(one.config.get(key)), *([(one.name,)] if key == "site" and one.name else [])]
    for names in named:
        sites = [_in_data(name, widths) for name in names]
        if sites and all(site is not None for site in sites):
            return tuple(str(site) for site in sites)
    return None


def _in_data(name: str, widths: Mapping[Site, int]) -> Site | None:
    """Returns the site of the data with a name, or a path that ends in it, as 'layers.3'."""
    try:
        wanted = Site.parse(name)
    except SiteError:
        return None
    ending = [site for site in widths if site.path.endswith(f".{wanted.path}") and site[1:] == wanted[1:]]
    return wanted if wanted in widths else ending[0] if len(ending) == 1 else None


def _names(given: Any) -> tuple[str, ...]:
    if given is None:
        return ()
    return (str(given),) if isinstance(given, (str, Site)) else tuple(map(str, given))
