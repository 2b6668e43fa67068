"""Dictionaries to evaluate, and where they belong in a model."""

import contextlib
import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from dictionary_learning._border import check
from dictionary_learning._types import SubmodulesLike
from dictionary_learning.dictionaries import WIRINGS, Dictionary, DictionaryInfo, Trainable, wiring_of
from dictionary_learning.errors import ConfigError, SiteError
from dictionary_learning.evaluation._on_activations import check_finite
from dictionary_learning.interop._saved import sites_in_model
from dictionary_learning.models import TracedModel
from dictionary_learning.sites import Site

logger = logging.getLogger(__name__)


class Candidate(NamedTuple):
    """A dictionary to evaluate."""

    name: str
    dictionary: Dictionary
    site: SubmodulesLike | None = None
    """The site that it reads, by default the one that its `info` names; several if it reads their
    activations concatenated."""
    target: SubmodulesLike | None = None
    """The sites that it reconstructs, if they are not those that it reads. Of a transcoder, by
    default those that its `info` names, or the module's output where it reads the input."""


class PlacedCandidate(NamedTuple):
    """A dictionary at the sites of a model that it reads and writes."""

    name: str
    dictionary: Dictionary
    reads: tuple[Site, ...]
    writes: tuple[Site, ...]


def place(model: TracedModel, candidates: Candidate | Iterable[Candidate]) -> list[PlacedCandidate]:
    """Returns the candidates at the model's sites, each under a name of its own.

    Raises:
        ConfigError: one is no candidate, or its dictionary does not fit its sites or holds a NaN.
    """
    found: dict[str, PlacedCandidate] = {}
    for one in [candidates] if isinstance(candidates, Candidate) else candidates:
        if not isinstance(one, Candidate) or not isinstance(one.dictionary, Dictionary):
            got = type(one.dictionary if isinstance(one, Candidate) else one).__name__
            raise ConfigError(
                f"Got a {got} to evaluate; give Candidate(name, dictionary). "
                "A trainer's dictionary is trainer.export()."
            )
        check("name", one.name, str, "a Candidate")
        if not one.name.strip():
            raise ConfigError(f"Got a Candidate with the name {one.name!r}; give one that a report can show.")
        # a second "a" is "a #2"
        names = itertools.chain([one.name], (f"{one.name} #{n}" for n in itertools.count(2)))
        name = next(name for name in names if name not in found)
        check_finite(one.dictionary, f"Dictionary '{name}'")
        reads = _reads(model, one, name)
        writes = _writes(model, one, reads, name)
        widths = model.widths(list(dict.fromkeys((*reads, *writes))))
        try:
            one.dictionary.check_sites([widths[site] for site in reads], [widths[site] for site in writes])
        except ConfigError as error:
            sites = ", ".join(f"'{site}'" for site in widths)
            raise ConfigError(f"Dictionary '{name}' does not fit {sites} in {model.name}: {error}") from error
        found[name] = PlacedCandidate(name, one.dictionary, reads, writes)
    if not found:
        raise ConfigError("Got no dictionary to evaluate. Give at least one Candidate(name, dictionary).")
    return list(found.values())


def sites_of(model: TracedModel, given: Any) -> tuple[Site, ...]:
    """Returns sites as they were given, strings looked up in the model."""
    listed = given if isinstance(given, (list, tuple)) and not isinstance(given, Site) else [given]
    if not listed:
        raise SiteError("No site was named. Name a module of the model, such as 'model.layers.10:out'.")
    # `widths` has each site under the name that was given, as "layers.1:heads"
    return tuple(site for one in listed for site in (model.widths(one) if isinstance(one, Site) else model.sites(one)))


def _reads(model: TracedModel, candidate: Candidate, name: str) -> tuple[Site, ...]:
    """Returns the sites that a candidate reads.

    Raises:
        ConfigError: none was given, and the dictionary does not know it.
    """
    if candidate.site is not None:
        return sites_of(model, candidate.site)
    info = candidate.dictionary.info
    if not info.sites:
        raise ConfigError(
            f"Dictionary '{name}' does not know at which site of {model.name} it belongs. Give "
            f"Candidate({name!r}, dictionary, 'model.layers.10')."
        )
    return sites_of(model, sites_in_model(info, model))


def _writes(model: TracedModel, candidate: Candidate, reads: tuple[Site, ...], name: str) -> tuple[Site, ...]:
    """Returns the sites that a candidate reconstructs.

    Raises:
        ConfigError: it is a transcoder, and they are not known.
    """
    if candidate.target is not None:
        return sites_of(model, candidate.target)
    wiring = wiring_of(candidate.dictionary) if isinstance(candidate.dictionary, Trainable) else "autoencoder"
    if not WIRINGS[wiring].writes_others:
        return reads
    if candidate.dictionary.info.target_sites:
        return sites_of(model, sites_in_model(candidate.dictionary.info, model, target=True))
    if all(site.side == "in" for site in reads):
        return tuple(Site(site.path, call=site.call) for site in reads)
    raise ConfigError(
        f"Dictionary '{name}' is a {type(candidate.dictionary).__name__}, which reads {', '.join(map(str, reads))} and "
        "reconstructs something else. Give Candidate(name, dictionary, site, target)."
    )


def warn_of_others(
    model: TracedModel, places: Sequence[tuple[str, Dictionary, tuple[Site, ...], tuple[Site, ...]]]
) -> None:
    """Warns of dictionaries that were trained on another model, or at another site.

    Args:
        model: the model that they are evaluated on.
        places: the name of each, the dictionary, and the sites that it reads and writes.
    """
    infos = [dictionary.info for _, dictionary, _, _ in places]
    described = {str(m): m for info in infos if (m := _trained_on(info, model))}
    if sum(not model.check_trained_on(m) for m in described.values()):  # each gets its warning
        return
    for name, dictionary, reads, writes in places:
        info = dictionary.info
        for trained, used in ((info.sites, reads), (info.target_sites or info.sites, writes)):
            with contextlib.suppress(SiteError):  # other packages have names of their own
                if trained and model.sites(trained) != model.sites(used):
                    logger.warning(
                        "Dictionary '%s' was trained at %s, and is evaluated at %s: its figures will be of another "
                        "site. Give the site that it was trained at, if this was not meant.",
                        *(name, ", ".join(trained), ", ".join(map(str, used))),
                    )
                    break


def _trained_on(info: DictionaryInfo, model: TracedModel) -> Mapping[str, Any]:
    """Returns the model that a dictionary was trained on, as `TracedModel.describe` does."""
    buffer = info.config.get("buffer")
    described = buffer.get("model") if isinstance(buffer, Mapping) else None
    if isinstance(described, Mapping):
        return described
    # other packages leave out the owner, or say "gpt2-small" of gpt2
    mine, theirs = ((name or "").split("/")[-1].lower() for name in (model.known_name, info.model))
    return {} if mine.startswith(theirs) or theirs.startswith(mine) else {"name": info.model}
