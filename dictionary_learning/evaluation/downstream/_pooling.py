"""Texts as one row each: of activations, and of the latents of dictionaries."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dictionary_learning.capture._ordinary import ordinary, special_ids
from dictionary_learning.errors import DataError
from dictionary_learning.evaluation._candidates import PlacedCandidate
from dictionary_learning.evaluation._splices import inputs_of
from dictionary_learning.evaluation.downstream._rows import bos_ids, padded
from dictionary_learning.interventions._inputs import as_tokens
from dictionary_learning.latents import Latents, to_dense
from dictionary_learning.models import TracedModel
from dictionary_learning.sites import Site

Pooling: TypeAlias = Literal["mean", "max", "last"]
Reads: TypeAlias = tuple[Site, ...]


class Pooled(NamedTuple):
    """Rows of texts, in their order."""

    inputs: Mapping[Reads, Float[Tensor, "texts dim"]]
    """Activations, by the sites that they are read at."""
    latents: Mapping[str, Float[Tensor, "texts dict_size"]]
    """By the name of the dictionary."""
    n_cut: int
    """Texts that were longer than the context."""


class TextBatch(NamedTuple):
    """The ordinary tokens of some texts, row by row."""

    texts: list[int]
    """The number of each text."""
    lengths: Int[Tensor, "batch"]
    values: Mapping[Site, Float[Tensor, "n dim"]]


class TextReader:
    """Reads activations of the tokens of texts: neither padding nor special, BOS in front of each.

    Args:
        model: the language model.
        sites: where to read.
        ctx_len: tokens of a text; a longer one is cut.
        batch_size: texts in a forward pass.
        keeps_end: whether the end of a text that is cut is kept, and not its beginning.
    """

    def __init__(self, model: TracedModel, sites: Sequence[Site], ctx_len: int, batch_size: int, keeps_end: bool):
        self.model, self.sites, self.batch_size = model, list(sites), batch_size
        self.ctx_len = min(ctx_len, model.longest_context or ctx_len)
        self.keeps_end = keeps_end

    def tokens(self, texts: Sequence[str]) -> tuple[list[Int[Tensor, "ctx"]], int]:
        """Returns the ids of each text, and how many texts were cut."""
        found: list[Tensor] = []
        n_cut = 0
        for text in texts:
            ids = as_tokens(self.model, [text]).input_ids[0]
            if len(ids) > self.ctx_len:
                n_cut += 1
                has_bos = ids[:1].tolist() == bos_ids(self.model).tolist()
                first = 1 if has_bos and self.keeps_end else 0
                ids = torch.cat([ids[:first], ids[first - self.ctx_len :]]) if self.keeps_end else ids[: self.ctx_len]
            found.append(ids)
        return found, n_cut

    def stream(self, texts: Sequence[str], tokens: Sequence[Tensor] | None = None) -> Iterator[TextBatch]:
        """Yields batches of texts of similar length.

        Raises:
            DataError: a text has only special tokens, or activations that are not finite.
        """
        tokens = self.tokens(texts)[0] if tokens is None else tokens
        order = sorted(range(len(tokens)), key=lambda n: (len(tokens[n]), n))
        special = special_ids(self.model)
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            ids, mask = padded([tokens[n] for n in chosen])
            counted = ordinary(ids, mask, special)  # (batch, ctx)
            lengths = counted.sum(-1)
            if not lengths.all():
                text = texts[chosen[int(lengths.argmin())]]
                raise DataError(f"The text {text[:40]!r} has no token but special ones. Leave it out.")
            captured = self.model.capture(ids, mask, self.sites)
            values = {site: x[counted.to(x.device)].float() for site, x in captured.items()}
            if not all(bool(x.isfinite().all()) for x in values.values()):
                raise DataError(
                    "The model's activations are NaN or infinite on a text. Load it in float32 or bfloat16."
                )
            yield TextBatch(chosen, lengths, values)


@torch.no_grad()
def pool_texts(reader: TextReader, coders: Sequence[PlacedCandidate], texts: Sequence[str], pooling: Pooling) -> Pooled:
    """Returns the pooled activations and latents of texts."""
    tokens, n_cut = reader.tokens(texts)
    inputs: dict[Reads, Tensor] = {}
    latents: dict[str, Tensor] = {}
    for batch in reader.stream(texts, tokens):
        index = torch.tensor(batch.texts)
        for reads in dict.fromkeys(one.reads for one in coders):
            x = torch.cat([batch.values[site] for site in reads], dim=-1)  # (n, dim)
            rows = pool_rows(x, batch.lengths, pooling)
            inputs.setdefault(reads, torch.zeros(len(texts), x.shape[-1]))[index] = rows.cpu()
        for one in coders:
            lengths = batch.lengths.to(one.dictionary.device)
            made = one.dictionary.reconstruct_contexts(inputs_of(one, batch.values, one.reads), lengths)
            rows = pool_rows(made.latents, batch.lengths, pooling)
            held = latents.setdefault(one.name, torch.zeros(len(texts), one.dictionary.dict_size))
            held[index] = rows.float().cpu()
    return Pooled(inputs, latents, n_cut)


def pool_rows(rows: Latents, lengths: Int[Tensor, "batch"], pooling: Pooling) -> Float[Tensor, "batch dim"]:
    """Returns a row for each text: the mean, the largest or the last of those of its tokens."""
    if pooling == "max":
        dense = to_dense(rows)
        return torch.stack([part.amax(0) for part in dense.split(lengths.tolist())])
    device = rows.device if isinstance(rows, Tensor) else rows.values.device
    lengths = lengths.to(device)
    text = torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths)  # (n,)
    weight = _token_weights(lengths, text, pooling)
    if isinstance(rows, Tensor):
        return rows.new_zeros(len(lengths), rows.shape[1]).index_add(0, text, rows * weight.to(rows.dtype).unsqueeze(1))
    token, dict_size = rows.support.tokens, rows.dict_size
    place = text[token] * dict_size + rows.support.latents
    values = rows.values.flatten() * weight.to(rows.values.dtype)[token]
    return values.new_zeros(len(lengths) * dict_size).index_add(0, place, values).view(len(lengths), dict_size)


def _token_weights(lengths: Int[Tensor, "batch"], text: Int[Tensor, "n"], pooling: Pooling) -> Float[Tensor, "n"]:
    if pooling == "mean":
        return (1.0 / lengths)[text]
    is_last: Bool[Tensor, "n"] = torch.zeros(len(text), dtype=torch.bool, device=text.device)
    is_last[lengths.cumsum(0) - 1] = True
    return is_last.float()
