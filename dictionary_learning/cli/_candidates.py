"""Saved dictionaries, and the sites that they belong to. All that the command line loads, it loads here."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dictionary_learning._run_folder import resolve_latest
from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.dictionaries._serialization import read_config_file
from dictionary_learning.errors import ConfigError, SiteError
from dictionary_learning.evaluation import Candidate
from dictionary_learning.interop._saved import Saved, own_folders, saved_at
from dictionary_learning.models import TracedModel
from dictionary_learning.sites import Site

_Sites = Site | tuple[Site, ...]


def load_saved(places: Sequence[str]) -> list[Saved]:
    """Returns the dictionaries at several places.

    Raises:
        ConfigError: one of them is at two of the places.
        CheckpointError: a place holds none, or one cannot be read.
    """
    found: dict[str, Saved] = {}
    for place in places:
        for one in saved_at(resolve_latest(place)):
            # links and relative paths are followed, so that one folder has one key
            key = str((one.folder or Path(place) / one.name).resolve())
            if key in found:
                raise ConfigError(f"The dictionary '{one.name}' of '{place}' was given twice. Give each place once.")
            found[key] = one
    return list(found.values())


def trained(folder: Path, dictionaries: Sequence[Dictionary]) -> list[Saved]:
    """Returns the dictionaries of a run that has just saved them into a folder."""
    folders = [folder / f"trainer_{number}" for number in range(len(dictionaries))]
    configs = [read_config_file(one) for one in folders]
    return [Saved(c["name"], d, c, f) for c, d, f in zip(configs, dictionaries, folders, strict=True)]


def configs_at(place: str) -> dict[str, Mapping[str, Any]]:
    """Returns the config of each dictionary at a place, by its folder or name; no weights of ours are read."""
    place = resolve_latest(place)
    own: dict[str, Mapping[str, Any]] = {str(folder): read_config_file(folder) for folder in own_folders(place)}
    return own or {one.name: {"class": type(one.dictionary).__name__, **one.config} for one in saved_at(place)}


def candidates_of(
    saved: Sequence[Saved], model: TracedModel, sites: Sequence[str] = (), target_sites: Sequence[str] = ()
) -> list[Candidate]:
    """Returns the dictionaries with the sites that they belong to, on the model's device.

    Args:
        saved: the dictionaries. Those of one name in different runs get the run's name before it.
        model: the model that they are of.
        sites: what each reads, in their order, or one site for all; by default what their files say, or their folder's name.
        target_sites: the same for what they write, if that is something else.

    Raises:
        ConfigError: there is another number of sites, or a site is not known.
    """
    for option, given in (("--sites", sites), ("--target-sites", target_sites)):
        if len(given) not in (0, 1, len(saved)):
            raise ConfigError(
                f"Got {len(given)} of {option} for {len(saved)} dictionaries. Give one for each, in their order, or one for all."
            )
    n_of_name = Counter(one.name for one in saved)
    candidates: list[Candidate] = []
    for n, one in enumerate(saved):
        run = one.folder.resolve().parent.name if one.folder is not None and n_of_name[one.name] > 1 else ""
        target = target_sites[n % len(target_sites)] if target_sites else None
        candidates.append(
            Candidate(
                f"{run}/{one.name}" if run else one.name,
                one.dictionary.to(model.device),
                _site(one, model, "site", sites[n % len(sites)] if sites else None),
                _site(one, model, "target_site", target) if target or "target_site" in one.config else None,
            )
        )
    return candidates


def _site(one: Saved, model: TracedModel, key: str, asked: str | None) -> _Sites:
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
        f"The files of '{one.name}' do not say at which site of {model.name} it belongs ({' and '.join(map(repr, tried))} are none "
        "of its modules). Give --sites, as 'model.layers.10:out'."
    )
