"""The sites of a model that a dictionary reads and writes."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from dictionary_learning._types import SubmodulesLike
from dictionary_learning.dictionaries import WIRINGS, Dictionary, Trainable, wiring_of
from dictionary_learning.errors import ConfigError
from dictionary_learning.interop._saved import sites_in_model
from dictionary_learning.models import TracedModel
from dictionary_learning.sites import Site


class Places(NamedTuple):
    """Where a dictionary is in a model: each site with its place among the inputs or outputs."""

    reads: dict[Site, slice]
    writes: dict[Site, slice]


def places_of(
    model: TracedModel, dictionary: Dictionary, site: SubmodulesLike | None, target: SubmodulesLike | None
) -> Places:
    """Returns the sites of a dictionary, by default those that its `info` names.

    Raises:
        ConfigError: They are not known, or do not fit the dictionary.
        SiteError: One is not in the model.
    """
    reads = sites_read(model, dictionary, site)
    writes = sites_written(model, dictionary, target, reads)
    widths = model.widths(list(dict.fromkeys((*reads, *writes))))
    try:
        dictionary.check_sites([widths[one] for one in reads], [widths[one] for one in writes])
    except ConfigError as error:
        sites = ", ".join(f"'{one}'" for one in widths)
        raise ConfigError(f"The dictionary does not fit {sites} in {model.name}: {error}") from error
    return Places(*(dict(_in_row(sites, widths)) for sites in (reads, writes)))


def sites_read(model: TracedModel, dictionary: Dictionary, site: SubmodulesLike | None) -> list[Site]:
    """Returns the sites of the model that a dictionary reads.

    Raises:
        ConfigError: It knows none, and none was given.
    """
    if site is not None:
        return model.sites(site)
    if not dictionary.info.sites:
        raise ConfigError(f"This {type(dictionary).__name__} does not know its site; give site='model.layers.10'.")
    return model.sites([str(each) for each in sites_in_model(dictionary.info, model)])


def sites_written(
    model: TracedModel, dictionary: Dictionary, target: SubmodulesLike | None, reads: Sequence[Site]
) -> list[Site]:
    """Returns the sites of the model that a dictionary reconstructs.

    Of a transcoder that does not say them, they are the outputs of the modules whose inputs it
    reads.

    Raises:
        ConfigError: They are not known.
    """
    if target is not None:
        return model.sites(target)
    if dictionary.info.target_sites:
        return model.sites([str(each) for each in sites_in_model(dictionary.info, model, target=True)])
    wiring = wiring_of(dictionary) if isinstance(dictionary, Trainable) else "autoencoder"
    if not WIRINGS[wiring].writes_others:
        return list(reads)
    if all(site.side == "in" for site in reads):
        return [Site(site.path, call=site.call) for site in reads]
    raise ConfigError(
        f"This {type(dictionary).__name__} reads {', '.join(map(str, reads))} and reconstructs something else; give "
        "target='model.layers.10.mlp'."
    )


def _in_row(sites: Sequence[Site], widths: Any) -> list[tuple[Site, slice]]:
    ends = itertools.accumulate(widths[site] for site in sites)
    return [(site, slice(end - widths[site], end)) for site, end in zip(sites, ends, strict=True)]
