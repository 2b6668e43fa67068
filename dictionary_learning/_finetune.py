"""Runs that start from trained dictionaries: which ones, at which sites, and how they are wired."""

import logging
import os
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar, cast

from dictionary_learning.activations._normalizers import NORMALIZATIONS
from dictionary_learning.dictionaries import Dictionary, ParallelCoders, Trainable, load_dictionary, wiring_of
from dictionary_learning.dictionaries._info import site_names
from dictionary_learning.dictionaries._normalized import Normalized
from dictionary_learning.errors import ConfigError
from dictionary_learning.interop._loading import load_many
from dictionary_learning.interop._saved import match_site, match_sites
from dictionary_learning.sites import Site
from dictionary_learning.trainers import OptimizationConfig

logger = logging.getLogger(__name__)
C = TypeVar("C", bound=OptimizationConfig)

_TRAINED_AS = {"layer_norm_eps_in": "layer_norm"}
"""The normalization of an exported dictionary, by its name in training, where the two differ."""


def expand_finetune(config: C, widths: Mapping[Site, int]) -> list[C]:
    """Returns a config for each dictionary that `finetune` names, or the config itself without one.

    What the dictionary knows is filled in where the config leaves it out: wiring, heads, and the
    sites as far as the data has them.

    Raises:
        ConfigError: Several dictionaries are given and none belongs to the sites.
    """
    given = config.finetune
    if given is None:
        return [config]
    found = _found(given, widths)
    if len(found) == 1:
        ((name, dictionary),) = found.items()
        own = dictionary.info.sites
        # a site that the user named is meant
        if own and config.site is None and match_sites(dictionary.info, widths, name=name) is None:
            moved = "The dictionary to start from was trained at %s; the data has %s."
            logger.warning(moved, ", ".join(own), ", ".join(map(str, widths)))
        return [_filled(config, dictionary, name, widths)]
    asked = site_names(config.site)
    wanted = tuple(Site.parse(site) for site in asked)
    configs: list[C] = []
    for name, dictionary in found.items():
        sites = match_sites(dictionary.info, widths, name=name)
        if sites is not None and (not wanted or sites == wanted):
            configs.append(_filled(config, dictionary, name, widths))
    if not configs:
        raise ConfigError(
            f"finetune got {len(found)} dictionaries ({', '.join(found)}), and none is of the sites "
            f"{', '.join(asked or map(str, widths))}. Name one dictionary, and its site."
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
        ConfigError: It both scales sites and normalizes tokens, or another normalization is asked
            for.
    """
    trained = config.finetune
    if not isinstance(trained, Normalized):
        return config, None
    if trained.normalization is None:
        inside = InnerNormalization("unit_mean_square", trained.scales)
    elif set(trained.scales) == {1.0}:
        name = trained.normalization
        inside = InnerNormalization(NORMALIZATIONS.canonical(_TRAINED_AS.get(name, name)), None)
    else:
        raise ConfigError(
            f"A dictionary that scales sites by {trained.scales} and normalizes tokens cannot be trained further. Give "
            "the one inside (its attribute `dictionary`), and activations that are scaled so."
        )
    # a name and its alias, as sqrt_dim and expected_average_only_in, mean the same
    if config.normalize is not None and NORMALIZATIONS.canonical(config.normalize) != inside.normalize:
        raise ConfigError(
            f"Got normalize={config.normalize!r} for a dictionary that was trained with {inside.normalize!r}. Leave "
            "normalize out."
        )
    return config.replace(finetune=trained.dictionary), inside


def _found(given: Any, widths: Mapping[Site, int]) -> dict[str, Dictionary]:
    """Returns the given dictionaries by name; of a folder of several those of sites of the data."""
    if isinstance(given, Dictionary):
        return {"": given}
    if isinstance(given, Mapping):
        found = {str(site): dictionary for site, dictionary in cast(Mapping[Any, Any], given).items()}
        if odd := {site: value for site, value in found.items() if not isinstance(value, Dictionary)}:
            raise ConfigError(f"Got finetune={odd!r}; give a mapping from sites to dictionaries.")
        return found
    if not isinstance(given, (str, os.PathLike)):
        raise ConfigError(
            f"Got finetune={given!r}; give a dictionary, a mapping from sites to dictionaries, or where they are "
            "stored."
        )
    place = os.fspath(cast("str | os.PathLike[str]", given))
    if os.path.exists(place):
        return load_many(place, wanted=lambda name: match_site(name, widths) is not None)
    # of a repository not all are downloaded for the sake of some: the user names one
    return {"": load_dictionary(place)}


def _filled(config: C, dictionary: Dictionary, name: str, widths: Mapping[Site, int]) -> C:
    filled: dict[str, Any] = {"finetune": dictionary}
    # wiring and heads are those of what trains on: the dictionary inside one that normalizes
    inside = dictionary.dictionary if isinstance(dictionary, Normalized) else dictionary
    wiring = getattr(config, "wiring", None)
    if isinstance(inside, Trainable) and wiring is None and hasattr(config, "wiring"):
        wiring = filled["wiring"] = wiring_of(inside)
    if isinstance(inside, ParallelCoders) and wiring == "heads" and getattr(config, "n_heads", None) is None:
        filled["n_heads"] = len(inside.parts)
    if config.site is None and config.target_site is None:
        for key, target in (("site", False), ("target_site", True)):
            sites = match_sites(dictionary.info, widths, name=name, target=target)
            if sites is not None:
                filled[key] = tuple(map(str, sites))
    return config.replace(**filled)
