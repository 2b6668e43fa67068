"""Which tokens of an evaluation count: by default those that counted in training."""

import logging
from collections.abc import Mapping, Sequence

from dictionary_learning._border import check
from dictionary_learning._trained_on import common, filter_of, norm_limits_of
from dictionary_learning.activations._filters import TokenFilter
from dictionary_learning.data import TokenStream
from dictionary_learning.errors import SiteError
from dictionary_learning.evaluation._candidates import PlacedCandidate, sites_of
from dictionary_learning.interop._saved import Saved
from dictionary_learning.models import TracedModel
from dictionary_learning.sites import Site

logger = logging.getLogger(__name__)


def filter_in_training(placed: Sequence[PlacedCandidate], stream: TokenStream) -> TokenFilter:
    """Returns the filter of the training; where none tells it, that of special tokens.

    Raises:
        ConfigError: two dictionaries were trained with different filters.
    """
    saved = [Saved(one.name, one.dictionary, one.dictionary.info.config) for one in placed]
    rule = common(saved, "token filters", filter_of, "Or give token_filter for both.")
    return TokenFilter.from_dict(rule) if rule else TokenFilter(exclude_ids=stream.special_ids, exclude_first=True)


def limits_in_training(
    model: TracedModel, placed: Sequence[PlacedCandidate], token_filter: TokenFilter
) -> dict[Site, float]:
    """Returns the norm limit of each site, as found with this filter; of several runs the least."""
    limits: dict[Site, float] = {}
    for one in placed:
        config, multiple = one.dictionary.info.config, token_filter.max_norm_multiple
        if multiple is None or (filter_of(config) or {}).get("max_norm_multiple") != multiple:
            continue
        for name, limit in norm_limits_of(config).items():
            try:
                (site,) = sites_of(model, name)
            except SiteError:  # of another model, which was warned of
                continue
            if limits.get(site, limit) != limit:
                logger.warning("The runs found different norm limits at %s; the lower one counts for all.", site)
            limits[site] = min(check(f"norm_limits[{name!r}]", limit, float), limits.get(site, limit))
    return limits


def given_limits(model: TracedModel, given: Mapping[Site, float] | Mapping[str, float]) -> dict[Site, float]:
    """Returns norm limits by the model's sites."""
    return {
        site: check(f"norm_limits[{key!r}]", limit, float)
        for key, limit in given.items()
        for site in sites_of(model, key)
    }
