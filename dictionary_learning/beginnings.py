"""Where a run begins from trained dictionaries: which of them, at which sites, wired how, and what was done to activations."""

import logging
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from dictionary_learning.activations.normalization import NORMALIZATIONS
from dictionary_learning.dictionaries import Dictionary, ParallelCoders, Trainable, load_dictionary, wiring_of
from dictionary_learning.dictionaries.normalized import Normalized
from dictionary_learning.errors import ConfigError, SiteError
from dictionary_learning.interop.saved import Saved, saved_at
from dictionary_learning.sites import Site

logger = logging.getLogger(__name__)

_TRAINED_AS = {
    "layer_norm": "layer_norm",
    "layer_norm_eps_in": "layer_norm",
    "constant_norm_rescale": "constant_norm_rescale",
}
"""What each normalization of a finished dictionary is called in training."""


def config_of_each(options: Mapping[str, Any], widths: Mapping[Site, int]) -> list[dict[str, Any]]:
    """Returns a config for each dictionary that `finetune` stands for, or the config itself where it stands for none.

    What the dictionary knows is filled in where the config does not say it: wiring, heads, and the sites as far as the data has them.

    Args:
        options: the settings of a config. Its `finetune` is a dictionary, several by site, or a place where there are some.
        widths: the sites of the data.

    Raises:
        ConfigError: it is not known which of several dictionaries belongs to which site, or a wiring cannot be had.
    """
    given = options.get("finetune")
    if given is None:
        return [dict(options)]
    found = _found(given, lambda name: _in_data(name, widths) is not None)
    if len(found) == 1:
        _warn_of_another_site(found[0], options, widths)
        return [_filled(options, found[0], widths)]
    asked = _names(options.get("site"))
    wanted = tuple(str(Site.parse(site)) for site in asked)
    placed = [(one, _site(one, "site", widths)) for one in found]
    configs = [
        _filled(options, one, widths) for one, sites in placed if sites is not None and (not wanted or sites == wanted)
    ]
    if not configs:
        raise ConfigError(
            f"finetune got {len(found)} dictionaries ({', '.join(one.name for one in found)}), and none is of the sites "
            f"{', '.join(asked or map(str, widths))}. Name one dictionary, and its site."
        )
    return configs


class Inside(NamedTuple):
    """What a dictionary is given that was found inside another."""

    normalize: str
    """How its activations are normalized."""
    scales: tuple[float, ...] | None
    """What those of each site are divided by, where that is known."""


def taken_out(options: dict[str, Any]) -> Inside | None:
    """Puts the dictionary inside in the place of one that normalizes, to be trained further; returns what that one did to activations.

    Raises:
        ConfigError: it both scales sites and normalizes tokens, or another normalization was asked for.
    """
    trained = options.get("finetune")
    if not isinstance(trained, Normalized):
        return None
    if trained.normalization is None:
        inside = Inside("unit_mean_square", trained.scales)
    elif set(trained.scales) == {1.0}:
        inside = Inside(NORMALIZATIONS.canonical(_TRAINED_AS[trained.normalization]), None)
    else:
        raise ConfigError(
            f"A dictionary around which sites are scaled by {trained.scales} and tokens normalized cannot be trained further. Give the "
            "one inside (its attribute `dictionary`), and activations that are scaled so."
        )
    asked = options.get("normalize")
    if asked is not None and NORMALIZATIONS.canonical(asked) != inside.normalize:
        raise ConfigError(
            f"Got normalize={asked!r} for a dictionary that was trained with {inside.normalize!r}. Leave normalize out."
        )
    options["finetune"] = trained.dictionary
    return inside


def _found(given: Any, is_wanted: Callable[[str], bool]) -> list[Saved]:
    """Returns the dictionaries that are given; of a folder of several those with names that are wanted, if there are any."""
    if isinstance(given, Dictionary):
        return [Saved("", given, {})]
    if isinstance(given, Mapping):
        return [Saved(str(site), dictionary, {}) for site, dictionary in given.items()]
    if os.path.exists(given):
        return saved_at(str(given), is_wanted)
    # of a repository not all are fetched for the sake of some: it has to be said which
    dictionary = load_dictionary(given)
    return [Saved("", dictionary, dictionary.info.config)]


def _warn_of_another_site(one: Saved, options: Mapping[str, Any], widths: Mapping[Site, int]) -> None:
    own = _names(one.config.get("site")) if one.folder is not None else ()
    if own and options.get("site") is None and _site(one, "site", widths) is None:
        logger.warning(
            "The dictionary to begin with was trained at %s; the data has %s.",
            ", ".join(own),
            ", ".join(map(str, widths)),
        )


def _filled(options: Mapping[str, Any], one: Saved, widths: Mapping[Site, int]) -> dict[str, Any]:
    filled = {**options, "finetune": one.dictionary}
    inside = one.dictionary.dictionary if isinstance(one.dictionary, Normalized) else one.dictionary
    if isinstance(inside, Trainable) and options.get("wiring") is None:
        filled["wiring"] = wiring_of(inside)
    if isinstance(inside, ParallelCoders) and filled.get("wiring") == "heads" and options.get("n_heads") is None:
        filled["n_heads"] = len(inside.parts)
    if options.get("site") is None and options.get("target_site") is None:
        for key in ("site", "target_site"):
            sites = _site(one, key, widths)
            if sites is not None:
                filled[key] = sites
    return filled


def _site(one: Saved, key: str, widths: Mapping[Site, int]) -> tuple[str, ...] | None:
    """Returns the sites that a dictionary's files or its name tell, if the data has them."""
    named = [_names(one.config.get(key)), *([(one.name,)] if key == "site" and one.name else [])]
    for names in named:
        sites = [_in_data(name, widths) for name in names]
        if sites and all(site is not None for site in sites):
            return tuple(str(site) for site in sites)
    return None


def _in_data(name: str, widths: Mapping[Site, int]) -> Site | None:
    """Returns the site of the data that has a name, or a path that ends in it, as 'layers.3' of 'model.layers.3'."""
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
