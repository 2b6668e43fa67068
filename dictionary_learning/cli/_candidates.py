"""What the command line loads: saved dictionaries, as candidates at their own sites."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dictionary_learning._run_folder import resolve_latest
from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.dictionaries._serialization import read_config_file
from dictionary_learning.errors import ConfigError
from dictionary_learning.evaluation import Candidate
from dictionary_learning.interop._files import weights_in
from dictionary_learning.interop._saved import Saved, own_folders, saved_at, sites_in_model
from dictionary_learning.models import TracedModel


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
    """Returns the dictionaries of a run that has just saved them into a folder, or elsewhere."""
    places = places_of(folder, dictionaries)
    own = [one for place in places if place is not None for one in own_folders(str(place))]
    # formats of other packages keep less than the dictionary knows
    configs: list[Any] = [
        read_config_file(one) if one in own else d.info.to_config() for one, d in zip(places, dictionaries, strict=True)
    ]
    return [Saved(c["name"], d, c, f) for c, d, f in zip(configs, dictionaries, places, strict=True)]


def places_of(folder: Path, dictionaries: Sequence[Dictionary]) -> list[Path | None]:
    """Returns where a run has just saved each dictionary: in its folder, elsewhere, or nowhere."""
    places: list[Path | None] = []
    for number, one in enumerate(dictionaries):
        own = folder / f"trainer_{number}"
        places.append(Path(one.info.source) if one.info.source else own if weights_in(own) else None)
    return places


def candidates_of(
    saved: Sequence[Saved], model: TracedModel, sites: Sequence[str] = (), target_sites: Sequence[str] = ()
) -> list[Candidate]:
    """Returns the dictionaries with the sites that they belong to, on the model's device.

    Args:
        saved: the dictionaries. Those of one name in different runs get the run's name before it.
        model: the model that they are of.
        sites: what each reads, in their order, or one for all; by default what their files say, or
            their folder's name.
        target_sites: the same for what they write, if that is something else.

    Raises:
        ConfigError: there is another number of sites, or a site is not known.
    """
    for option, given in (("--sites", sites), ("--target-sites", target_sites)):
        if len(given) not in (0, 1, len(saved)):
            raise ConfigError(
                f"Got {len(given)} of {option} for {len(saved)} dictionaries. Give one for each, in their order, or "
                "one for all."
            )
    n_of_name = Counter(one.name for one in saved)
    candidates: list[Candidate] = []
    for n, one in enumerate(saved):
        run = one.folder.resolve().parent.name if one.folder is not None and n_of_name[one.name] > 1 else ""
        reads = sites[n % len(sites)] if sites else sites_in_model(one.dictionary.info, model, name=one.name)
        writes = target_sites[n % len(target_sites)] if target_sites else None
        if writes is None and one.dictionary.info.target_sites:
            writes = sites_in_model(one.dictionary.info, model, name=one.name, target=True)
        name = f"{run}/{one.name}" if run else one.name
        candidates.append(Candidate(name, one.dictionary.to(model.device), reads, writes))
    return candidates
