"""One pass over text for several dictionaries: one forward pass of the model for each batch.

Each dictionary sees the tokens that it saw in training: its saved filter, with the norm limits that
were found then, decides which count.
"""

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from dictionary_learning._border import short
from dictionary_learning._plain import counted
from dictionary_learning._progress import Progress
from dictionary_learning._trained_on import filter_of, norm_limits_of
from dictionary_learning._types import SubmodulesLike, TextLike
from dictionary_learning.activations._filters import TokenFilter, norm_limit, within_limits
from dictionary_learning.data import TokenBatch, as_token_stream
from dictionary_learning.dictionaries import Dictionary, load_dictionary
from dictionary_learning.errors import ConfigError, DataError, SiteError
from dictionary_learning.interpretation._active import ActivePairs, active_pairs
from dictionary_learning.interventions._reading import sites_read
from dictionary_learning.models import TracedModel
from dictionary_learning.sites import Site

logger = logging.getLogger(__name__)

DictionaryLike = Dictionary | str | os.PathLike[str]
"""A dictionary, or the folder, file or repository that holds one."""


class Member(NamedTuple):
    """A dictionary of a pass."""

    dictionary: Dictionary
    reads: tuple[Site, ...]
    rule: TokenFilter
    limits: dict[Site, float] | None
    """The largest norm at each site; None if the first batch decides."""

    def describe(self) -> dict[str, Any]:
        """Returns what its results depend on, as JSON values."""
        limits = {} if self.limits is None else {str(site): limit for site, limit in self.limits.items()}
        return {
            "class": type(self.dictionary).__name__,
            "activation_dim": self.dictionary.activation_dim,
            "dict_size": self.dictionary.dict_size,
            "sites": [str(site) for site in self.reads],
            "filter": {**self.rule.to_dict(), "norm_limits": limits},
            "weights": _checksum(self.dictionary),
        }


class Batch(NamedTuple):
    """Contexts, and the tokens of them that count for each dictionary with its active latents."""

    tokens: TokenBatch
    keeps: dict[str, Bool[Tensor, "batch ctx"]]
    pairs: dict[str, ActivePairs]


def members_of(
    model: TracedModel,
    dictionaries: Any,
    sites: Mapping[str, SubmodulesLike] | None,
    token_filter: TokenFilter | None,
    special_ids: tuple[int, ...],
) -> dict[str, Member]:
    """Returns the dictionaries of a pass at their sites, by name.

    Args:
        model: The model.
        dictionaries: The dictionaries by name, or one, whose name is that of its run.
        sites: The sites of those that know none.
        token_filter: Which tokens count, instead of those that counted in training.
        special_ids: Ids that are left out where nothing is known of the training.

    Raises:
        ConfigError: There is no dictionary, or one knows no site, or does not fit it.
    """
    if not isinstance(dictionaries, (Mapping, Dictionary, str, os.PathLike)):
        got = f"Got dictionaries={short(dictionaries)}"
        raise ConfigError(f"{got}; give a mapping of names to dictionaries or their folders, or one of them.")
    given: Mapping[Any, Any] = (
        dictionaries if isinstance(dictionaries, Mapping) else {_name_of(dictionaries): dictionaries}
    )
    sites = sites or {}
    if not given:
        raise ConfigError("Got no dictionary. Give a mapping of names to dictionaries or their folders.")
    for name in sites:
        if name not in given:
            raise ConfigError(
                f"Got a site for '{name}', which is no dictionary here; there are {', '.join(map(str, given))}."
            )
    default = TokenFilter(exclude_ids=special_ids, exclude_first=True)
    found: dict[str, Member] = {}
    for name, one in given.items():
        if not isinstance(name, str) or not name:
            raise ConfigError(f"Got {name!r} as the name of a dictionary; give a word.")
        dictionary = load_dictionary(one, model.device) if isinstance(one, (str, os.PathLike)) else one
        if not isinstance(dictionary, Dictionary):
            raise ConfigError(
                f"Got a {type(one).__name__} as dictionary '{name}'; give a Dictionary or its folder. A trainer's "
                "dictionary is trainer.export()."
            )
        reads = tuple(_sites_of(model, dictionary, sites.get(name), name))
        saved = filter_of(dictionary.info.config)
        rule = token_filter or (TokenFilter.from_dict(saved) if saved else default)
        limits = norm_limits_of(dictionary.info.config) if token_filter is None else None
        found[name] = Member(dictionary, reads, rule, _in_model(model, limits or None))
    return found


class LatentPass:
    """Reads text batch by batch, and finds the active latents of several dictionaries.

    Args:
        model: The model.
        members: The dictionaries by name.
        stream: The contexts.
        n_tokens: The number of tokens to read, without padding.
        batch_size: Contexts in a forward pass.
    """

    def __init__(self, model: TracedModel, members: dict[str, Member], stream: Any, n_tokens: int, batch_size: int):
        self.model, self.members, self.stream = model, members, stream
        self.n_tokens, self.batch_size = n_tokens, batch_size
        self.n_read = 0
        self.n_nonfinite = 0
        limited = [site for member in members.values() for site in member.limits or ()]
        self.sites = list(dict.fromkeys([site for member in members.values() for site in member.reads] + limited))
        self._found: dict[str, dict[Site, float]] = {}  # limits, where the first batch decides

    @torch.no_grad()
    def __iter__(self) -> Iterator[Batch]:
        with Progress("reading latents", self._n_to_read(), "tokens") as progress:
            while self.n_read < self.n_tokens:
                tokens = self.stream.take(self.batch_size)
                if tokens is None:
                    logger.warning("The text ended after %s of %s tokens.", f"{self.n_read:,}", f"{self.n_tokens:,}")
                    return
                n = int(tokens.attention_mask.sum())
                self.n_read += n
                yield self._read(tokens)
                progress.advance(n)

    def state_dict(self) -> dict[str, Any]:
        """Returns the place in the text."""
        found = {name: {str(s): limit for s, limit in limits.items()} for name, limits in self._found.items()}
        return {
            "stream": self.stream.state_dict(),
            "n_read": self.n_read,
            "n_nonfinite": self.n_nonfinite,
            "limits": found,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Moves to a place in the text."""
        self.stream.load_state_dict(state["stream"])
        self.n_read, self.n_nonfinite = state["n_read"], state["n_nonfinite"]
        self._found = {name: {Site.parse(s): x for s, x in found.items()} for name, found in state["limits"].items()}

    def _n_to_read(self) -> int:
        """Returns how many tokens are left: of full contexts, whole batches are read."""
        left, batch = self.n_tokens - self.n_read, self.batch_size * self.stream.ctx_len
        return -(-left // batch) * batch if getattr(self.stream, "pack", False) else left

    def _read(self, tokens: TokenBatch) -> Batch:
        values = self.model.capture(*tokens, self.sites)  # each (batch, ctx, dim)
        finite = torch.stack([x.isfinite().all(dim=-1).cpu() for x in values.values()]).all(dim=0)  # (batch, ctx)
        self.n_nonfinite += int((tokens.attention_mask & ~finite).sum())
        keeps: dict[str, Tensor] = {}
        pairs: dict[str, ActivePairs] = {}
        for name, member in self.members.items():
            keep = member.rule.token_mask(tokens) & finite  # (batch, ctx)
            limits = self._limits(name, member, values, keep)
            if limits:
                keep &= within_limits({site: values[site] for site in limits}, limits).cpu()
            dictionary = member.dictionary
            parts = [values[site][keep.to(values[site].device)] for site in member.reads]  # each (n, dim)
            x = torch.cat([part.to(dictionary.device, dictionary.dtype) for part in parts], dim=-1)
            # as wide as all contexts, so that a token's number does not depend on its batch
            keeps[name] = torch.nn.functional.pad(keep, (0, self.stream.ctx_len - keep.shape[1]))
            pairs[name] = active_pairs(dictionary, x, keeps[name])
        return Batch(tokens, keeps, pairs)

    def _limits(self, name: str, member: Member, values: Mapping[Site, Tensor], keep: Tensor) -> dict[Site, float]:
        multiple = member.rule.max_norm_multiple
        if member.limits is not None or multiple is None:
            return member.limits or {}
        if name not in self._found and keep.any():
            norms = {site: values[site][keep.to(values[site].device)].float().norm(dim=-1) for site in member.reads}
            self._found[name] = {site: norm_limit(norm, multiple, site) for site, norm in norms.items()}
        return self._found.get(name, {})


def open_stream(data: TextLike, model: TracedModel, ctx_len: int, pack: bool) -> Any:
    """Returns the contexts of a text from its first document; a stream has contexts of its own."""
    own = {name: getattr(data, name, value) for name, value in {"ctx_len": ctx_len, "pack": pack}.items()}
    return as_token_stream(data, model.tokenizer, model=model, fresh=True, **own)


def check_read(reading: LatentPass, n_counted: int) -> None:
    """Raises DataError if no token of a pass counted."""
    if reading.n_nonfinite:
        told = counted(reading.n_nonfinite, "token has", "tokens have")
        logger.warning("%s a NaN or an infinity in the activations, and no part in this.", told)
    if not n_counted:
        rules = {member.rule.describe() for member in reading.members.values()}
        raise DataError(
            f"{reading.stream.source.name} has no token that counts. Give more text, or leave out less than "
            f"{'; '.join(sorted(rules))}."
        )


def _name_of(dictionary: Any) -> str:
    return getattr(getattr(dictionary, "info", None), "name", None) or "dictionary"


def _sites_of(model: TracedModel, dictionary: Dictionary, given: SubmodulesLike | None, name: str) -> list[Site]:
    try:
        reads = sites_read(model, dictionary, given)
        widths = model.widths(reads)
        dictionary.check_sites([widths[site] for site in reads], dictionary.site_widths[1])
    except (ConfigError, SiteError) as error:
        raise type(error)(f"Dictionary '{name}' cannot be read in {model.name}: {error}") from error
    return reads


def _in_model(model: TracedModel, limits: Mapping[str, float] | None) -> dict[Site, float] | None:
    """Returns norm limits by the model's sites. Those of other sites than it reads count, too: a
    run of several sites leaves out a token at all of them."""
    return None if limits is None else {model.sites(name)[0]: limit for name, limit in limits.items()}


def _checksum(dictionary: Dictionary) -> str:
    digest = hashlib.sha256()
    for name, tensor in dictionary.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
