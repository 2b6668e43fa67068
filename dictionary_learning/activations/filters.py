"""Which tokens count: one rule for training, for splicing and for every metric."""

import dataclasses
from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dictionary_learning.config import BaseConfig
from dictionary_learning.data.tokens import TokenBatch
from dictionary_learning.sites import Site


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenFilter(BaseConfig):
    """Which tokens are left out of training, of reconstruction and of metrics. Padding always is.

    The first token of a context draws attention from all others and has activations hundreds of times larger than they have,
    as BOS does; either would outweigh all the rest in a squared error.
    """

    exclude_ids: tuple[int, ...] = ()
    """Token ids that are left out wherever they stand, as BOS and the separator between documents."""
    exclude_first: bool = False
    """Whether the first token of each context is left out, whatever it is."""
    max_norm_multiple: float | None = None
    """Tokens whose activation norm at any site exceeds this multiple of the median norm there are left out."""

    def token_mask(self, tokens: TokenBatch) -> Bool[Tensor, "batch ctx"]:
        """Returns which tokens count by their id and position; on the CPU, so that counting them waits for nothing."""
        mask = tokens.attention_mask.clone()
        if self.exclude_ids:
            mask &= ~torch.isin(tokens.input_ids, torch.tensor(self.exclude_ids))
        if self.exclude_first:
            # the first real token: padding may be on the left
            mask &= tokens.attention_mask.cumsum(-1) > 1
        return mask

    def describe(self) -> str:
        """Returns the rule in words."""
        rules = ["padding"]
        if self.exclude_ids:
            rules.append("the token ids " + ", ".join(map(str, self.exclude_ids)))
        if self.exclude_first:
            rules.append("the first token of each context")
        if self.max_norm_multiple is not None:
            rules.append(f"tokens with more than {self.max_norm_multiple:g} times the median norm")
        return ", ".join(rules)


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
