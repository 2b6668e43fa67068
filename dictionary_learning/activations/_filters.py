"""Which tokens count: one rule for training, splicing and every metric."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dictionary_learning.config import BaseConfig
from dictionary_learning.data import TokenBatch
from dictionary_learning.data._token_batch import as_slice, real_position_mask
from dictionary_learning.errors import ConfigError, DataError
from dictionary_learning.sites import Site


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenFilter(BaseConfig):
    """Selects the tokens for training, reconstruction and metrics. Padding is always excluded.

    All tokens of a context attend to its first one, whose activations are hundreds of times larger
    than the others, like those of BOS. Either would dominate a squared error.

    Raises:
        ConfigError: `seqpos_slice` or `max_norm_multiple` is malformed, or no token could pass it.
    """

    exclude_ids: tuple[int, ...] = ()
    """Token ids that are excluded at any position, such as BOS and the separator of documents."""
    exclude_first: bool = False
    """Whether the first real token of each context is excluded."""
    seqpos_slice: tuple[int | None, ...] | None = None
    """Positions to include, as (stop,), (start, stop) or (start, stop, step), counted over the real
    tokens of a context."""
    max_norm_multiple: float | None = None
    """Tokens are excluded if their activation norm at any site exceeds this multiple of the site's
    median norm."""

    def __post_init__(self) -> None:
        super().__post_init__()
        chosen = as_slice(self.seqpos_slice)
        # a slice with a negative and a positive end selects something in short contexts only
        longest = abs(chosen.start or 0) + abs(chosen.stop or 0) + 1
        if not any(range(*chosen.indices(n)) for n in range(1, longest + 1)):
            raise ConfigError(f"seqpos_slice={self.seqpos_slice} selects no position of any context. Widen it.")
        multiple = self.max_norm_multiple
        if multiple is not None and not 0 < multiple < math.inf:
            raise ConfigError(
                f"Got max_activation_norm_multiple={multiple}; it is a finite number above 0, or None for no limit."
            )

    def arguments(self) -> dict[str, Any]:
        """Returns how an `ActivationBuffer`, and the writer of a cache, are told the same."""
        return {
            "remove_bos": self.exclude_first,
            "exclude_tokens": self.exclude_ids,
            "seqpos_slice": self.seqpos_slice,
            "max_activation_norm_multiple": self.max_norm_multiple,
        }

    def check_context(self, ctx_len: int) -> None:
        """Checks that the filter leaves something of a full context."""
        left = real_position_mask(torch.ones(1, ctx_len, dtype=torch.bool), self.seqpos_slice)[0]  # (ctx,)
        left[0] &= not self.exclude_first
        if not left.any():
            others = [] if self.seqpos_slice is None else ["widen seqpos_slice"]
            others += ["set remove_bos=False"] if self.exclude_first else []
            raise ConfigError(
                f"A context of {ctx_len} tokens has no position left without {self.describe()}. Raise ctx_len, or "
                f"{', or '.join(others)}."
            )

    def token_mask(self, tokens: TokenBatch) -> Bool[Tensor, "batch ctx"]:
        """Returns which tokens count by id and position, on the CPU."""
        mask = tokens.attention_mask.clone()
        for _, wanted in self._rules(tokens):
            mask &= wanted
        return mask

    def counts(self, tokens: TokenBatch) -> dict[str, int]:
        """Returns how many real tokens each rule excludes; the first such rule counts a token."""
        mask = tokens.attention_mask.clone()
        counts: dict[str, int] = {}
        for name, wanted in self._rules(tokens):
            counts[name] = int((mask & ~wanted).sum())
            mask &= wanted
        return counts

    def describe(self) -> str:
        """Returns the excluded tokens in words."""
        rules = ["padding"]
        if self.exclude_ids:
            ids = ", ".join(map(str, self.exclude_ids))
            rules.append(f"the token id {ids}" if len(self.exclude_ids) == 1 else f"the token ids {ids}")
        if self.exclude_first:
            rules.append("the first token of each context")
        if self.seqpos_slice is not None:
            rules.append(f"positions outside {self.seqpos_slice}")
        if self.max_norm_multiple is not None:
            rules.append(f"tokens with more than {self.max_norm_multiple:g} times the median norm")
        return ", ".join(rules)

    def _rules(self, tokens: TokenBatch) -> Iterator[tuple[str, Tensor]]:
        """Yields the name of each rule and the mask (batch, ctx) of tokens that pass it."""
        if self.exclude_ids:
            yield "token id", ~torch.isin(tokens.input_ids.cpu(), torch.tensor(self.exclude_ids))
        if self.exclude_first:
            # the first real token, since padding may be on the left
            yield "first of its context", tokens.attention_mask.cumsum(-1) > 1
        if self.seqpos_slice is not None:
            yield "position", real_position_mask(tokens.attention_mask, self.seqpos_slice)


def norm_limit(norms: Float[Tensor, "n"], multiple: float, site: Site) -> float:
    """Returns a multiple of the median of the finite norms at a site."""
    finite = norms[norms.isfinite()]
    if not len(finite):
        raise DataError(
            f"None of the first {len(norms)} activations at '{site}' is finite. Check the site and the model's dtype: "
            "float16 overflows in many models."
        )
    return multiple * float(finite.median())


def within_limits(
    activations: Mapping[Site, Float[Tensor, "*batch dim"]], limits: Mapping[Site, float] | Mapping[str, float]
) -> Bool[Tensor, "*batch"]:
    """Returns which tokens have a norm within the limits, by site or by its name, at every site."""
    by_site = {Site.parse(site): limit for site, limit in limits.items()}
    return at_all_sites([x.float().norm(dim=-1) <= by_site[site] for site, x in activations.items()])


def at_all_sites(masks: Sequence[Bool[Tensor, "*batch"]]) -> Bool[Tensor, "*batch"]:
    """Returns which tokens are in the masks of all sites, which may lie on several devices."""
    return torch.stack([mask.to(masks[0].device) for mask in masks]).all(0)
