"""Which sites of the data each dictionary reads and writes."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from dictionary_learning.dictionaries import WIRINGS
from dictionary_learning.errors import ConfigError
from dictionary_learning.sites import Site, natural_key


class Assignment(NamedTuple):
    """The sites of one dictionary."""

    reads: tuple[Site, ...]
    writes: tuple[Site, ...]

    @property
    def is_autoencoder(self) -> bool:
        """Whether it reconstructs what it reads."""
        return self.reads == self.writes


def assignments(options: Mapping[str, Any], widths: Mapping[Site, int]) -> list[Assignment]:
    """Returns the sites of the dictionaries that a config asks for.

    Args:
        options: its settings, of which wiring, site and target_site count.
        widths: the sites of the data.

    Raises:
        ConfigError: a site is not in the data, or the wiring finds none that fit.
    """
    name = options.get("wiring") or "autoencoder"
    wiring = WIRINGS[name]
    if options.get("target_site") and not wiring.writes_others:
        raise ConfigError(
            f"A config has target_site={options['target_site']!r} with wiring={name!r}, which reconstructs what it reads. "
            "Leave target_site out, or set wiring='transcoder'."
        )
    reads, targets = _named(options.get("site"), widths), _named(options.get("target_site"), widths)
    if not wiring.writes_others:
        sites = reads or list(widths)
        groups = [tuple(sites)] if wiring.reads_several else [(site,) for site in sites]
        return [Assignment(group, group) for group in groups]
    if not reads:
        reads = sorted((site for site in widths if site.side == "in"), key=lambda site: natural_key(site.path))
    if not targets:
        targets = [Site(site.path, "out") for site in reads]
    missing = [site for site in targets if site not in widths]
    if not reads or missing or len(reads) != len(targets):
        raise ConfigError(
            f"wiring={name!r} predicts one site from another; the data has {_listed(widths)}. Give the input and the output of a "
            "module, as ActivationBuffer(..., io='in_and_out') does, or name both by site and target_site."
        )
    if wiring.reads_several:
        return [Assignment(tuple(reads), tuple(targets))]
    return [Assignment((read,), (write,)) for read, write in zip(reads, targets, strict=True)]


def _named(named: str | Sequence[str] | None, widths: Mapping[Site, int]) -> list[Site]:
    sites = [Site.parse(site) for site in ([named] if isinstance(named, (str, Site)) else named or [])]
    for site in sites:
        if site not in widths:
            raise ConfigError(f"A config names the site '{site}'; the data has {_listed(widths)}.")
    return sites


def _listed(sites: Iterable[Site]) -> str:
    return ", ".join(map(str, sites))
