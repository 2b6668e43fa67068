"""Public releases of dictionaries: a list to search, from which each can be loaded."""

import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.errors import CheckpointError, did_you_mean
from dictionary_learning.interop.loading import load_dictionary

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
    """Where they are in the repository, as `releases.json` writes it."""
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What the files do not say."""
    scales: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """The same, of each path: what activations are multiplied by."""

    @property
    def sites(self) -> list[str]:
        """The paths of its dictionaries; where only the repository lists them, patterns with a *."""
        return [path for pattern in self.paths for path in _expanded(pattern)]

    def load(
        self, site: str | None = None, device: torch.device | str | None = None, **options: Any
    ) -> tuple[Dictionary, dict[str, Any]]:
        """Loads one of its dictionaries, and what is known of it.

        Args:
            site: which, as one of `sites`; not needed where there is one.
            device: where to put it; the CPU if not given.
            options: further ones of `load_dictionary`.

        Raises:
            CheckpointError: there is no such site.
        """
        sites = self.sites
        exact = [known for known in sites if "*" not in known]
        if site is None and len(sites) == 1 and exact:
            site = exact[0]
        if site is None or (len(exact) == len(sites) and site not in sites):
            shown = ", ".join(sites[:6]) + (f" and {len(sites) - 6} more" if len(sites) > 6 else "")
            raise CheckpointError(
                f"The release {self.name} has no site {site!r}.{did_you_mean(str(site), sites)} It has: {shown}. Give one as site=."
            )
        facts = dict(self.facts) | ({"scale": self.scales[site]} if site in self.scales else {})
        dictionary, config = load_dictionary(self.repo, device, site=site, format=self.format, **{**facts, **options})
        return dictionary, {"model": self.model, **config}


def pretrained(model: str | None = None, site: str | None = None, name: str | None = None) -> list[Release]:
    """Returns the public releases that are known, or those that fit.

    Args:
        model: a part of the model's name, in any case.
        site: a part of the path of at least one of its dictionaries, as "resid_post" or "layer_12".
        name: a part of the release's name.
    """
    found = []
    for release in _all():
        fits = _within(model, release.model) and _within(name, release.name)
        if fits and (site is None or any(_may_be(site, path) for path in release.sites)):
            found.append(release)
    return found


@functools.cache
def _all() -> tuple[Release, ...]:
    listed = json.loads(_FILE.read_text(encoding="utf-8"))["releases"]
    return tuple(Release(**{**entry, "paths": tuple(entry["paths"])}) for entry in listed)


def _expanded(pattern: str) -> list[str]:
    """Returns the paths that a pattern stands for."""
    texts = _RANGE.split(pattern)
    choices = [_numbers(text) if n % 2 else [text] for n, text in enumerate(texts)]
    return ["".join(parts) for parts in itertools.product(*choices)]


def _numbers(text: str) -> list[str]:
    found = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        found += [str(n) for n in range(int(first), int(last) + 1)] if dash else [part]
    return found


def _may_be(site: str, path: str) -> bool:
    """Returns whether a path has this part, or what only the repository lists may have it."""
    before, star, _ = path.lower().partition("*")
    return site.lower() in path.lower() or (bool(star) and before != "" and site.lower().startswith(before))


def _within(part: str | None, text: str) -> bool:
    return part is None or part.lower() in text.lower()
