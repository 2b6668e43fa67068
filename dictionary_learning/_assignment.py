"""Which sites each dictionary of a run reads and writes, as its config and the data say."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from dictionary_learning._plain import in_few
from dictionary_learning.activations._normalizers import Normalizer
from dictionary_learning.activations._spread import Stream
from dictionary_learning.dictionaries import WIRINGS
from dictionary_learning.dictionaries._info import as_config, site_names
from dictionary_learning.errors import ConfigError, SiteError, did_you_mean
from dictionary_learning.sites import Site, natural_key
from dictionary_learning.trainers import OptimizationConfig


class SiteAssignment(NamedTuple):
    """The sites of one dictionary."""

    reads: tuple[Site, ...]
    writes: tuple[Site, ...]

    @property
    def is_autoencoder(self) -> bool:
        """Whether the dictionary reconstructs what it reads."""
        return self.reads == self.writes

    def both_sides(self, normalizers: Mapping[Site, Normalizer]) -> tuple[list[Normalizer], list[Normalizer] | None]:
        """Returns the normalizers of the sites that are read, and of others that are written."""
        writes = None if self.is_autoencoder else [normalizers[site] for site in self.writes]
        return [normalizers[site] for site in self.reads], writes


def assign_sites(config: OptimizationConfig, widths: Mapping[Site, int]) -> list[SiteAssignment]:
    """Returns the sites of each dictionary that a config's wiring, site and target_site ask for."""
    name = getattr(config, "wiring", None) or "autoencoder"
    wiring = WIRINGS[name]
    if config.target_site and not wiring.writes_others:
        raise ConfigError(
            f"A config has target_site={config.target_site!r} with wiring={name!r}, which reconstructs what it reads. "
            "Leave target_site out, or set wiring='transcoder'."
        )
    reads, targets = _named(config.site, widths), _named(config.target_site, widths)
    if not wiring.writes_others:
        sites = reads or list(widths)
        groups = [tuple(sites)] if wiring.reads_several else [(site,) for site in sites]
        return [SiteAssignment(group, group) for group in groups]
    if not reads:
        reads = sorted((site for site in widths if site.side == "in"), key=lambda site: natural_key(site.path))
    if not targets:
        targets = [Site(site.path, "out") for site in reads]
    missing = [site for site in targets if site not in widths]
    if not reads or missing or len(reads) != len(targets):
        raise ConfigError(
            f"wiring={name!r} predicts one site from another; the data has {joined(widths)}. Give the input and the "
            "output of a module, as ActivationBuffer(..., io='in_and_out') does, or name both by site and target_site."
        )
    if wiring.reads_several:
        return [SiteAssignment(tuple(reads), tuple(targets))]
    return [SiteAssignment((read,), (write,)) for read, write in zip(reads, targets, strict=True)]


def with_places(config: OptimizationConfig, stream: Stream) -> OptimizationConfig:
    """Returns the config with the places of sites that it names otherwise, such as heads."""
    model: Any = getattr(stream.data, "model", None)
    for field in ("site", "target_site"):
        named = site_names(getattr(config, field, None))
        if not named or not hasattr(model, "sites") or all(Site.parse(one) in stream.widths for one in named):
            continue
        with contextlib.suppress(SiteError):  # a site that the model does not have is refused later
            config = config.replace(**{field: in_config([model.sites(one)[0] for one in named])})
    return config


def with_heads(config: OptimizationConfig, stream: Stream) -> OptimizationConfig:
    """Returns the config with the number of attention heads, where each has latents of its own."""
    if getattr(config, "wiring", None) != "heads" or getattr(config, "n_heads", None) is not None:
        return config
    if stream.n_heads:
        return config.replace(n_heads=stream.n_heads)
    model: Any = stream.data if hasattr(stream.data, "n_heads") else getattr(stream.data, "model", None)
    if not hasattr(model, "n_heads"):
        unknown = "The number of attention heads is not known from the data"
        raise ConfigError(f"{unknown}. Set n_heads, or give (batch, heads, dim).")
    found = {site: model.n_heads(site) for sites in assign_sites(config, stream.widths) for site in sites.reads}
    if len(set(found.values())) > 1:
        numbers = ", ".join(f"{site}: {n}" for site, n in found.items())
        raise ConfigError(f"The sites have different numbers of heads ({numbers}). Give a config for each site.")
    return config.replace(n_heads=next(iter(found.values())))


def _named(named: str | Sequence[str] | None, widths: Mapping[Site, int]) -> list[Site]:
    sites = [Site.parse(site) for site in site_names(named)]
    for site in sites:
        if site not in widths:
            near = did_you_mean(str(site), map(str, widths))
            raise ConfigError(
                f"A config names the site '{site}'; the data has {joined(widths)}.{near} Name it among the sites of "
                "the data too, or leave it out."
            )
    return sites


def in_config(sites: Sequence[Site]) -> str | list[str]:
    """Returns sites as a config names them."""
    return as_config([str(site) for site in sites])


def joined(sites: Iterable[Site]) -> str:
    """Returns sites in words; of many, the first and the last."""
    return in_few(sites, "sites")
