"""Saved dictionaries, ours and those of other packages, and the sites that they belong to."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dictionary_learning.dictionaries import Dictionary, load_dictionary
from dictionary_learning.dictionaries.serialization import WEIGHTS
from dictionary_learning.errors import CheckpointError, ConfigError, SiteError
from dictionary_learning.evaluation import Candidate
from dictionary_learning.interop.loading import located
from dictionary_learning.interop.places import sites_in
from dictionary_learning.models import TracedModel
from dictionary_learning.sites import Site, natural_key

Sites = Site | tuple[Site, ...]


class Saved(NamedTuple):
    """A dictionary, and what is known of it."""

    name: str
    dictionary: Dictionary
    config: Mapping[str, Any]
    folder: Path | None = None
    """The folder that this package wrote it into; None for other formats."""


def own_folders(place: str) -> list[Path]:
    """Returns the folders at a path that this package wrote a dictionary into: itself, or those of a whole run."""
    folder = Path(place)
    if (folder / WEIGHTS).is_file():
        return [folder]
    return sorted((p.parent for p in folder.glob(f"*/{WEIGHTS}")), key=lambda p: natural_key(p.name))


def saved_at(place: str) -> list[Saved]:
    """Returns the dictionaries at a path or in a repository of the hub, of any format.

    Raises:
        CheckpointError: there is none, or one cannot be read.
    """
    found = []
    for folder in own_folders(place):
        dictionary, config = load_dictionary(folder)
        found.append(Saved(config.get("name", folder.name), dictionary, config, folder))
    if found:
        return found
    sites = sites_in(located(place, many=True))
    if not sites:
        raise CheckpointError(
            f"There is no dictionary in '{place}'. Give the folder of a dictionary, or of a run with trainer_0 in it."
        )
    return [Saved(site or Path(place).name, *load_dictionary(place, site=site or None)) for site in sites]


def candidates_of(
    saved: Sequence[Saved], model: TracedModel, sites: Sequence[str] = (), target_sites: Sequence[str] = ()
) -> list[Candidate]:
    """Returns the dictionaries with the sites that they belong to.

    Args:
        saved: the dictionaries.
        model: the model that they are of.
        sites: what they read, in their order, or one site for all; by default what their configs say, or their folder's name.
        target_sites: the same for what they write, where that is something else.

    Raises:
        ConfigError: there is another number of sites, or a site is not known.
    """
    for option, given in (("--sites", sites), ("--target-sites", target_sites)):
        if len(given) not in (0, 1, len(saved)):
            raise ConfigError(
                f"Got {len(given)} of {option} for {len(saved)} dictionaries. Give one for each, in their order, or one for all."
            )
    return [
        Candidate(
            one.name,
            one.dictionary,
            _site(one, model, "site", sites[n % len(sites)] if sites else None),
            _target(one, model, target_sites[n % len(target_sites)] if target_sites else None),
        )
        for n, one in enumerate(saved)
    ]


def _target(one: Saved, model: TracedModel, asked: str | None) -> Sites | None:
    return None if asked is None and "target_site" not in one.config else _site(one, model, "target_site", asked)


def _site(one: Saved, model: TracedModel, key: str, asked: str | None) -> Sites:
    """Returns a site as it was asked for, or as the dictionary's files tell it."""
    if asked is not None:
        (site,) = model.sites(asked)
        return site
    if one.folder is not None and key in one.config:
        named = one.config[key]
        return Site.parse(named) if isinstance(named, str) else tuple(Site.parse(site) for site in named)
    tried = [name for name in (one.config.get(key), one.name) if isinstance(name, str)]
    for name in tried:
        try:
            (site,) = model.sites(name)
            return site
        except (SiteError, ValueError):
            continue
    raise ConfigError(
        f"The files of '{one.name}' do not say at which site of {model.name} it belongs ({' and '.join(map(repr, tried))} are none of its "
        "modules). Give --sites, as 'model.layers.10:out'."
    )
