"""Public releases of dictionaries: a list to search and to load from."""

import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dictionary_learning._border import checked
from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.errors import CheckpointError, did_you_mean
from dictionary_learning.interop._files import shorten
from dictionary_learning.interop._loading import load_dictionary

_FILE = Path(__file__).with_name("releases.json")
_RANGE = re.compile(r"\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Release:
    """Dictionaries that were published together."""

    name: str
    repo: str
    """The repository on the Hugging Face hub."""
    model: str
    format: str
    paths: tuple[str, ...]
    """The paths of the dictionaries in the repository, as patterns of `releases.json`."""
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Facts that the files do not hold."""
    scales: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """The factor that activations are multiplied by, by path, where the files do not hold it."""
    ids: tuple[str, ...] = ()
    """SAELens' names of the same dictionaries, in the same order; empty if they are the paths."""

    @property
    def sites(self) -> list[str]:
        """The paths of the dictionaries; patterns with a * where only the repository lists them."""
        return [path for pattern in self.paths for path in _expanded(pattern)]

    @property
    def site_of_id(self) -> dict[str, str]:
        """The paths by SAELens' ids; empty where these are the paths."""
        ids = [one for pattern in self.ids for one in _expanded(pattern)]
        return dict(zip(ids, self.sites, strict=True)) if ids else {}

    @checked()
    def load(self, site: str | None = None, device: torch.device | str | None = None, **options: Any) -> Dictionary:
        """Loads one of the dictionaries.

        Args:
            site: one of `sites`, or its id in SAELens; may be left out where there is only one.
            device: the CPU by default.
            options: further arguments of `load_dictionary`.

        Raises:
            CheckpointError: there is no such site.
        """
        sites, ids = self.sites, self.site_of_id
        site = site if site in sites else ids.get(site or "", site)
        is_exact = not any("*" in known for known in sites)
        if site is None and len(sites) == 1 and is_exact:
            (site,) = sites
        if site is None or (is_exact and site not in sites):
            raise CheckpointError(
                f"The release {self.name} has no site {site!r}.{did_you_mean(str(site), [*sites, *ids])} It has: "
                f"{shorten(list(ids) or sites, 6)}. Give one as site=."
            )
        facts = {**self.facts, **({"scale": self.scales[site]} if site in self.scales else {}), **options}
        dictionary = load_dictionary(self.repo, device, site=site, **{"format": self.format, **facts})
        info = dictionary.info
        dictionary.info = dataclasses.replace(info, model=info.model or self.model)
        return dictionary


@checked()
def list_pretrained(model: str | None = None, site: str | None = None, name: str | None = None) -> list[Release]:
    """Returns the known public releases that fit, or all.

    Args:
        model: a part of the model's name, in any case.
        site: a part of the path of at least one of its dictionaries, such as "resid_post" or
            "layer_12".
        name: a part of the release's name.
    """
    return [
        release
        for release in _all()
        if (model or "").lower() in release.model.lower()
        and (name or "").lower() in release.name.lower()
        and any(_may_be((site or "").lower(), path.lower()) for path in release.sites)
    ]


@functools.cache
def _all() -> tuple[Release, ...]:
    listed = json.loads(_FILE.read_text(encoding="utf-8"))["releases"]
    lists = ("paths", "ids")
    return tuple(Release(**{**entry, **{name: tuple(entry.get(name, ())) for name in lists}}) for entry in listed)


def load_release(
    release: str, site: str | None = None, device: torch.device | str | None = None, **options: Any
) -> Dictionary:
    """Loads a dictionary of a release by its name, or of a repository or a folder.

    Args:
        release: a name of `list_pretrained`, "owner/name" on the hub, or a folder.
        site: which of its dictionaries; of a release also by its id in SAELens.
        device: the CPU by default.
        options: further arguments of `load_dictionary`.

    Raises:
        CheckpointError: there is no such release, or no such dictionary in it.
    """
    named = {one.name: one for one in _all()}
    if release in named:
        return named[release].load(site, device, **options)
    if "/" not in release and not Path(release).exists():
        raise CheckpointError(
            f"There is no release '{release}'.{did_you_mean(release, named)} list_pretrained() has {len(named)} of "
            "them. Give one of their names, a repository as 'owner/name', or a folder."
        )
    return load_dictionary(release, device, site=site, **options)


def _expanded(pattern: str) -> list[str]:
    """Returns the paths that a pattern stands for."""
    # texts between braces alternate with ranges: odd places are ranges
    choices = [_numbers(text) if n % 2 else [text] for n, text in enumerate(_RANGE.split(pattern))]
    return ["".join(parts) for parts in itertools.product(*choices)]


def _numbers(text: str) -> list[str]:
    found: list[str] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        found += [str(n) for n in range(int(first), int(last) + 1)] if dash else [part]
    return found


def _may_be(site: str, path: str) -> bool:
    """Returns whether a path has this part; a pattern may have it where it starts alike."""
    before, star, _ = path.partition("*")
    return site in path or (bool(star) and before != "" and site.startswith(before))
