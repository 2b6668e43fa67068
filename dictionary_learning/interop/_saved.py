"""Saved dictionaries and the sites of data or of a model that they belong to."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dictionary_learning.capture._hook_names import hook_name
from dictionary_learning.dictionaries import Dictionary, DictionaryInfo
from dictionary_learning.dictionaries._serialization import WEIGHTS
from dictionary_learning.errors import ConfigError, SiteError
from dictionary_learning.interop._loading import load_many
from dictionary_learning.models import TracedModel
from dictionary_learning.sites import Site, natural_key


class Saved(NamedTuple):
    """A dictionary and what is known about it, as `Dictionary.info` says it, too."""

    name: str
    dictionary: Dictionary
    config: Mapping[str, Any]
    folder: Path | None = None
    """The folder that this package saved the dictionary to; None for other formats."""


def own_folders(place: str) -> list[Path]:
    """Returns the folders of this package's dictionaries: of the path itself, or those of a run."""
    folder = _folder_of(place)
    if (folder / WEIGHTS).is_file():
        return [folder]
    return sorted((path.parent for path in folder.glob(f"*/{WEIGHTS}")), key=lambda path: natural_key(path.name))


def saved_at(place: str, **options: Any) -> list[Saved]:
    """Returns the dictionaries at a path or in a repository of the hub, of any format.

    Args:
        place: the path or the repository.
        options: those of `load_many`: a format, and facts that the files do not hold.

    Raises:
        CheckpointError: there is no dictionary, or one cannot be read.
    """
    found: list[Saved] = []
    for site, dictionary in load_many(place, **options).items():
        info = dictionary.info
        folder = _folder_of(info.source or place) if info.format == "own" else None
        found.append(Saved(info.name or site or Path(place).name, dictionary, info.config, folder))
    return found


def _folder_of(place: str) -> Path:
    """Returns the folder of a dictionary that may be given by its file of weights."""
    path = Path(place)
    return path.parent if path.name == WEIGHTS and path.is_file() else path


def match_site(name: str | Site, available: Collection[Site], model: str | None = None) -> Site | None:
    """Returns the site that a name means among those available; None if none fits, or several do.

    Args:
        name: a site, the end of its path ("layers.3" for "model.layers.3:out"), or a hook of
            TransformerLens.
        available: the sites of the data.
        model: the name of the language model, on which hooks depend.
    """
    try:
        wanted = Site.parse(name)
    except SiteError:
        return None
    if wanted in available:
        return wanted
    found = [site for site in available if site.path.endswith(f".{wanted.path}") and site[1:] == wanted[1:]]
    found = found or [site for site in available if hook_name(site, model) == str(name)]
    return found[0] if len(found) == 1 else None


def match_sites(
    info: DictionaryInfo, available: Collection[Site], *, name: str = "", target: bool = False
) -> tuple[Site, ...] | None:
    """Returns the sites of the data that a dictionary belongs to; None if the data lacks one.

    Args:
        info: what the dictionary's files say, which decides before its name.
        available: the sites of the data.
        name: the name of the dictionary in its run; other packages name folders after sites.
        target: whether the sites are asked for that the dictionary reconstructs, instead of those
            that it reads.
    """
    by_name = (name,) if name and not target else ()
    for names in (info.target_sites if target else info.sites, by_name):
        sites = [site for one in names if (site := match_site(one, available, info.model)) is not None]
        if sites and len(sites) == len(names):
            return tuple(sites)
    return None


def sites_in_model(
    info: DictionaryInfo, model: TracedModel, *, name: str = "", target: bool = False
) -> tuple[Site, ...]:
    """Returns the sites of a model that a dictionary belongs to; see `match_sites`.

    Raises:
        ConfigError: the dictionary's files do not say a site of this model, nor does its name.
    """
    names = info.target_sites if target else info.sites
    if names and info.format in ("own", None):  # None: of a run in this process
        return tuple(Site.parse(one) for one in names)  # whether the model has them, the evaluation checks
    tried = " and ".join(repr(one) for one in (*names, name) if one) or "no name"
    if info.model is not None and _short(info.model) != _short(model.known_name or info.model):
        names = tuple(one for one in names if "hook_" not in one)  # hooks of another model say nothing of this one
    # without "heads", which means the same as the projection's "in"
    available = [Site(path, side) for path, _ in model.module.named_modules() for side in ("in", "out")]
    sites = match_sites(DictionaryInfo(sites=names, model=info.model), available, name="" if target else name)
    if sites is None:
        raise ConfigError(
            f"The files of '{name or info.source}' do not say at which site of {model.name} it belongs ({tried} is "
            f"none of its modules). Give {'--target-sites' if target else '--sites'}, as 'model.layers.10:out'; in "
            f"Python, {'target' if target else 'site'}."
        )
    return sites


def _short(model: str) -> str:
    """Returns a model's name without its owner, and of TransformerLens' short names the hub's."""
    name = model.rsplit("/", 1)[-1].lower()
    return {"gpt2-small": "gpt2"}.get(name, name)
