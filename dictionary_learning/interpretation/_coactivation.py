"""Which latents are active on the same tokens."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dictionary_learning._border import checked
from dictionary_learning._brief import brief
from dictionary_learning._hardware import check_memory
from dictionary_learning._types import ModelLike, SubmodulesLike, TextLike
from dictionary_learning.activations._filters import TokenFilter
from dictionary_learning.interpretation._active import ActivePairs
from dictionary_learning.interpretation._chosen import chosen_latents
from dictionary_learning.interpretation._pass import LatentPass, check_read, members_of, open_stream
from dictionary_learning.models import load_model

_MOST = 1 << 23
"""Elements of a dense matrix of tokens and chosen latents."""


class Coactivation(NamedTuple):
    """On how many tokens pairs of latents are active together; a latent with itself on its own."""

    latents: Int[Tensor, "m"]
    counts: Int[Tensor, "m m"]
    n_tokens: int

    __repr__ = brief

    @property
    def jaccard(self) -> Float[Tensor, "m m"]:
        """Tokens where both are active / tokens where one is, from 0 to 1; 0 for two dead ones."""
        own = self.counts.diagonal()
        either = own.unsqueeze(0) + own.unsqueeze(1) - self.counts
        return (self.counts / either.clamp_min(1)).float()

    @property
    def phi(self) -> Float[Tensor, "m m"]:
        """The correlation of being active, from -1 to 1; 0 for a latent that always or never is."""
        own, n = self.counts.diagonal().double(), max(self.n_tokens, 1)
        share = own / n
        spread = (share * (1 - share)).sqrt()
        both = spread.unsqueeze(0) * spread.unsqueeze(1)
        covariance = self.counts.double() / n - share.unsqueeze(0) * share.unsqueeze(1)
        return torch.where(both > 0, covariance / torch.where(both > 0, both, 1.0), 0.0).float()


@checked()
@torch.no_grad()
def coactivation(
    model: ModelLike,
    dictionary: Any,
    data: TextLike,
    latents: Sequence[int] | Tensor | None = None,
    *,
    site: SubmodulesLike | None = None,
    n_tokens: int = 100_000,
    ctx_len: int = 128,
    batch_size: int = 16,
    pack: bool = True,
    token_filter: TokenFilter | None = None,
) -> Coactivation:
    """Returns on how many tokens of a text each two of some latents are active together.

    Args:
        model: The language model.
        dictionary: The dictionary, or its folder.
        data: The text.
        latents: The latents; by default all, for which memory grows with their square.
        site: The site of a dictionary that knows none.
        n_tokens: Tokens to read; fewer if the text ends.
        ctx_len: Tokens in a context.
        batch_size: Contexts in a forward pass.
        pack: Whether documents are packed into full contexts.
        token_filter: Which tokens count, as in `collect_contexts`.

    Raises:
        ConfigError: A latent does not exist, or is named twice; or memory does not suffice.
        DataError: No token of the text counts.
    """
    traced = load_model(model)
    stream = open_stream(data, traced, ctx_len, pack)
    sites = None if site is None else {"dictionary": site}
    members = members_of(traced, {"dictionary": dictionary}, sites, token_filter, stream.special_ids)
    coder = members["dictionary"].dictionary
    chosen = chosen_latents(latents, coder.dict_size).to(coder.device)
    m = len(chosen)
    check_memory(12 * m * m, coder.device, f"Counts of {m} x {m} latents", "Choose fewer latents.")
    column = torch.full((coder.dict_size,), -1, dtype=torch.long, device=coder.device)
    column[chosen] = torch.arange(m, device=coder.device)
    counts = torch.zeros(m, m, dtype=torch.long, device=coder.device)
    reading, n = LatentPass(traced, members, stream, n_tokens, batch_size), 0
    for batch in reading:
        n += int(batch.keeps["dictionary"].sum())
        counts += _counted(batch.pairs["dictionary"], column, m)
    check_read(reading, n)
    return Coactivation(chosen, counts, n)


def _counted(pairs: ActivePairs, column: Tensor, m: int) -> Tensor:
    """Returns the counts of a batch, from its tokens where a chosen latent is active."""
    columns = column[pairs.latents]
    there = (columns >= 0).nonzero().squeeze(1)
    places, rows = pairs.places[there].unique(return_inverse=True)
    counts = torch.zeros(m, m, dtype=torch.long, device=column.device)
    size = max(_MOST // m, 1)
    for start in range(0, len(places), size):
        inside = (rows >= start) & (rows < start + size)
        active = torch.zeros(min(size, len(places) - start), m, device=column.device)
        active[rows[inside] - start, columns[there[inside]]] = 1.0
        counts += (active.T @ active).long()  # exact: float32 counts to 2^24 tokens
    return counts
