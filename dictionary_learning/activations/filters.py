"""Which tokens count: one rule for training, for splicing and for every metric."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dictionary_learning.config import BaseConfig
from dictionary_learning.data.positions import as_slice, real_position_mask
from dictionary_learning.sites import Site


@runtime_checkable
class Tokens(Protocol):
    """What a filter looks at: a `TokenBatch` is one."""

    @property
    def input_ids(self) -> Int[Tensor, "batch ctx"]: ...

    @property
    def attention_mask(self) -> Bool[Tensor, "batch ctx"]: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenFilter(BaseConfig):
    """Which tokens are left out of training, of reconstruction and of metrics. Padding always is.

    The first token of a context draws attention from all others and has activations hundreds of times larger than they have,
    as BOS does; either would outweigh all the rest in a squared error.

    Raises:
        ConfigError: `seqpos_slice` is no slice.
    """

    exclude_ids: tuple[int, ...] = ()
    """Token ids that are left out wherever they stand, as BOS and the separator between documents."""
    exclude_first: bool = False
    """Whether the first token of each context is left out, whatever it is."""
    seqpos_slice: tuple[int | None, ...] | None = None
    """The positions that count, as (stop,), (start, stop) or (start, stop, step), counted over the real tokens of a context."""
    max_norm_multiple: float | None = None
    """Tokens whose activation norm at any site exceeds this multiple of the median norm there are left out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        as_slice(self.seqpos_slice)

    def token_mask(self, tokens: Tokens) -> Bool[Tensor, "batch ctx"]:
        """Returns which tokens count by their id and position; on the CPU, so that counting them waits for nothing."""
        mask = tokens.attention_mask.clone()
        for _, wanted in self._rules(tokens):
            mask &= wanted
        return mask

    def counts(self, tokens: Tokens) -> dict[str, int]:
        """Returns how many real tokens each rule leaves out, by the rule; a token is counted for the first that it meets."""
        mask, counts = tokens.attention_mask.clone(), {}
        for name, wanted in self._rules(tokens):
            counts[name] = int((mask & ~wanted).sum())
            mask &= wanted
        return counts

    def describe(self) -> str:
        """Returns the rule in words."""
        rules = ["padding"]
        if self.exclude_ids:
            rules.append("the token ids " + ", ".join(map(str, self.exclude_ids)))
        if self.exclude_first:
            rules.append("the first token of each context")
        if self.seqpos_slice is not None:
            rules.append(f"positions outside {self.seqpos_slice}")
        if self.max_norm_multiple is not None:
            rules.append(f"tokens with more than {self.max_norm_multiple:g} times the median norm")
        return ", ".join(rules)

    def _rules(self, tokens: Tokens) -> Iterator[tuple[str, Tensor]]:
        """Yields each rule's name, and which tokens it lets pass."""
        if self.exclude_ids:
            yield "token id", ~torch.isin(tokens.input_ids.cpu(), torch.tensor(self.exclude_ids))
        if self.exclude_first:
            # the first real token: padding may be on the left
            yield "first of its context", tokens.attention_mask.cumsum(-1) > 1
        if self.seqpos_slice is not None:
            yield "position", real_position_mask(tokens.attention_mask, self.seqpos_slice)


def norm_limits(activations: Mapping[Site, Float[Tensor, "n dim"]], filter: TokenFilter) -> dict[Site, float] | None:
    """Returns for each site the largest norm that is kept, from the median over tokens that count; None without such a rule."""
    if filter.max_norm_multiple is None:
        return None
    return {s: filter.max_norm_multiple * float(x.float().norm(dim=-1).median()) for s, x in activations.items()}


def within_limits(
    activations: Mapping[Site, Float[Tensor, "*batch dim"]], limits: Mapping[Site, float]
) -> Bool[Tensor, "*batch"]:
    """Returns which tokens are within the limit at every site."""
    inside = [x.float().norm(dim=-1) <= limits[site] for site, x in activations.items()]
    return torch.stack([i.to(inside[0].device) for i in inside]).all(0)
