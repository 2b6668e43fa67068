"""The sites that saved dictionaries belong to."""

from collections.abc import Sequence

from dictionary_learning.errors import ConfigError, SiteError
from dictionary_learning.evaluation import Candidate
from dictionary_learning.interop.saved import Saved
from dictionary_learning.models import TracedModel
from dictionary_learning.sites import Site

Sites = Site | tuple[Site, ...]


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
