"""The latents of a text."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from dictionary_learning._border import checked
from dictionary_learning._brief import top_few
from dictionary_learning._plain import counted
from dictionary_learning._types import ModelLike, SubmodulesLike
from dictionary_learning.capture._ordinary import ordinary, special_ids
from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.interventions._inputs import as_tokens
from dictionary_learning.interventions._places import sites_read
from dictionary_learning.latents import Latents, entries_of, to_dense
from dictionary_learning.models import load_model


class LatentReading(NamedTuple):
    """Latents of the tokens of a text, one row for each token that is read."""

    input_ids: Int[Tensor, "batch ctx"]
    mask: Bool[Tensor, "batch ctx"]
    """The tokens that are read: neither padding nor special."""
    tokens: list[list[str]]
    """Every token as text, padding left out."""
    latents: Latents
    """Of the tokens that are read, row by row (n, dict_size)."""
    attention_mask: Bool[Tensor, "batch ctx"] | None = None
    """All tokens but padding: what the model is run with."""

    def __repr__(self) -> str:
        values, tokens, latents = entries_of(self.latents)
        places = self.mask.nonzero()[tokens.to(self.mask.device)].tolist()  # (n, 2)
        dict_size = self.latents.shape[1] if isinstance(self.latents, Tensor) else self.latents.dict_size
        strongest = top_few(values, latents.tolist(), [tuple(place) for place in places])
        return (
            f"LatentReading({counted(len(self.mask), 'text')}, {counted(int(self.mask.sum()), 'token')} read; "
            f"largest of {dict_size:,} latents, at (row, position): {strongest})"
        )

    @property
    def row(self) -> Int[Tensor, "n"]:
        """The row of the batch of each token that is read."""
        return self.mask.nonzero()[:, 0]

    @property
    def position(self) -> Int[Tensor, "n"]:
        """The position in the row of each token that is read."""
        return self.mask.nonzero()[:, 1]

    def dense(self) -> Tensor:
        """Returns the latents (batch, ctx, dict_size); 0 for tokens that are not read."""
        rows = to_dense(self.latents)
        out = rows.new_zeros(*self.mask.shape, rows.shape[1])
        out[self.mask.to(out.device)] = rows
        return out


@checked()
@torch.no_grad()
def read_latents(
    model: ModelLike,
    dictionary: Dictionary,
    inputs: Any,
    *,
    site: SubmodulesLike | None = None,
    special_tokens: bool = False,
) -> LatentReading:
    """Returns the latents of a text.

    Args:
        model: The language model.
        dictionary: The dictionary.
        inputs: A text, several, or token ids (ctx,) or (batch, ctx).
        site: The site that it reads; by default the one that its `info` names, also by the name of
            a TransformerLens hook.
        special_tokens: Whether BOS, EOS and padding ids are read too.

    Raises:
        ConfigError: The dictionary knows no site, and none was given, or does not fit it.
        SiteError: The site is not in the model.
        DataError: There is no text.
    """
    traced = load_model(model)
    sites = sites_read(traced, dictionary, site)
    batch = as_tokens(traced, inputs)
    mask = ordinary(batch.input_ids, batch.attention_mask, () if special_tokens else special_ids(traced))
    captured = traced.capture(batch.input_ids, batch.attention_mask, sites)
    parts = [captured[each] for each in sites]
    x = torch.cat([part[mask.to(part.device)].to(dictionary.device) for part in parts], dim=-1)  # (n, dim)
    dictionary.check_sites([part.shape[-1] for part in parts], dictionary.site_widths[1])
    made = dictionary.reconstruct_contexts(x.to(dictionary.dtype), mask.sum(-1).to(dictionary.device))
    decode = traced.tokenizer.convert_ids_to_tokens if traced.tokenizer is not None else lambda ids: list(map(str, ids))
    kept = zip(batch.input_ids, batch.attention_mask, strict=True)
    tokens = [decode(ids[real].tolist()) for ids, real in kept]
    return LatentReading(batch.input_ids, mask, tokens, made.latents, batch.attention_mask)
