"""What is known about a dictionary apart from its weights."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from dictionary_learning._border import short
from dictionary_learning.errors import ConfigError
from dictionary_learning.sites import Site

_OF_THE_FILES = ("format_version", "dictionary", "versions", "format", "peer")
"""Sections that describe the files that were read, and not the dictionary."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DictionaryInfo:
    """What is known about a dictionary apart from its weights; empty if it was built by hand."""

    sites: tuple[str, ...] = ()
    """The sites that the dictionary reads, in order, as its files name them; empty if not known."""
    target_sites: tuple[str, ...] = ()
    """The sites that the dictionary reconstructs; empty if it reads them, or if not known."""
    model: str | None = None
    """The name of the language model."""
    format: str | None = None
    """The format of the files, as a name of `interop.FORMATS`."""
    name: str | None = None
    """The name of the dictionary in its run, such as "top_k-32"."""
    source: str | None = None
    """Where the dictionary was loaded from: a path, or a repository of the hub."""
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False, hash=False)
    """The whole config; for other packages' files with their settings as "peer"."""

    def __post_init__(self) -> None:
        for name in ("sites", "target_sites"):
            value: Any = getattr(self, name)
            if isinstance(value, str) or not all(isinstance(site, str) for site in value):
                raise ConfigError(f"Got {name}={short(value)} of a DictionaryInfo; give a tuple of names of sites.")
            object.__setattr__(self, name, tuple(value))
        for name in ("model", "format", "name", "source"):
            value = getattr(self, name)
            if not isinstance(value, str | None):
                raise ConfigError(f"Got {name}={short(value)} of a DictionaryInfo; give a text, or None.")
        config: Any = self.config
        if not isinstance(config, Mapping):
            raise ConfigError(f"Got config={short(config)} of a DictionaryInfo; give a mapping.")

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], source: str | None = None, format: str | None = None
    ) -> "DictionaryInfo":
        """Returns what the sections of `config.json` say, or what another format's reader found."""
        return cls(
            sites=site_names(config.get("site")),
            target_sites=site_names(config.get("target_site")),
            model=_model_name(config),
            format=format or _text(config.get("format")),
            name=_text(config.get("name")),
            source=source,
            config=config,
        )

    def to_config(self) -> dict[str, Any]:
        """Returns the config, with the fields that it does not say."""
        said = DictionaryInfo.from_config(self.config)._fields()
        # fields that were set by hand, and differ from what the config says
        return {**self.config, **{key: value for key, value in self._fields().items() if value and value != said[key]}}

    def _fields(self) -> dict[str, Any]:
        """Returns the fields by the names of their sections."""
        sites, target_sites = as_config(self.sites), as_config(self.target_sites)
        return {"name": self.name, "site": sites, "target_site": target_sites, "model": self.model}


def own_sections(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the sections of a config that describe the dictionary, not the files it was in."""
    found = {key: value for key, value in config.items() if key not in _OF_THE_FILES}
    if "format" in config:
        # what another package said stays, apart from what this package says
        found["converted_from"] = {"format": config["format"], "config": config.get("peer")}
    return found


def site_names(given: Any) -> tuple[str, ...]:
    """Returns site names in a tuple, from one name, several, or None."""
    if isinstance(given, (str, Site)):
        return (str(given),)
    return tuple(map(str, given)) if isinstance(given, Sequence) else ()


def as_config(names: Sequence[str]) -> str | list[str]:
    """Returns site names as configs hold them: one alone as a string, several as a list."""
    return names[0] if len(names) == 1 else list(names)


def _model_name(config: Mapping[str, Any]) -> str | None:
    """Returns the language model's name."""
    # runs with a model, the command line, and trainers alone store it in different sections
    found = [config.get("model")]
    for section, key in (("buffer", "model"), ("run", "model"), ("trainer", "lm_name")):
        part = config.get(section)
        found.append(part.get(key) if isinstance(part, Mapping) else None)
    names = [value.get("name") if isinstance(value, Mapping) else value for value in found]
    return next((name for name in names if isinstance(name, str) and name), None)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
