"""What several measures do with rows: of ids, of activations, of latents and of resamples."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dictionary_learning.evaluation._bootstrap import document_weights
from dictionary_learning.evaluation._candidates import PlacedCandidate
from dictionary_learning.latents import Latents, to_dense
from dictionary_learning.models import TracedModel
from dictionary_learning.sites import Site


def bos_ids(model: TracedModel) -> Int[Tensor, "m"]:
    """Returns the id that texts begin with, or nothing where they begin with none."""
    bos = getattr(model.tokenizer, "bos_token_id", None)
    return torch.tensor([bos] if isinstance(bos, int) else [], dtype=torch.long)


def padded(rows: Sequence[Int[Tensor, "_"]]) -> tuple[Int[Tensor, "batch ctx"], Bool[Tensor, "batch ctx"]]:
    """Returns ids that are filled up with zeros on the right, and which of them are real."""
    longest = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), longest, dtype=torch.long), torch.zeros(len(rows), longest, dtype=torch.bool)
    for n, row in enumerate(rows):
        ids[n, : len(row)], mask[n, : len(row)] = row, True
    return ids, mask


def at_last_tokens(
    model: TracedModel, ids: Int[Tensor, "n ctx"], sites: Sequence[Site], batch_size: int
) -> dict[Site, Float[Tensor, "n dim"]]:
    """Returns the activations of the last tokens, in float32 on the CPU."""
    parts: list[dict[Site, Tensor]] = []
    for batch in ids.split(batch_size):
        # a whole context is let go before the next is read
        captured = model.capture(batch, None, list(sites))
        parts.append({site: x[:, -1].float().cpu() for site, x in captured.items()})
    return {site: torch.cat([part[site] for part in parts]) for site in sites}


def latents_of(one: PlacedCandidate, x: Float[Tensor, "n dim"]) -> Latents:
    """Returns the latents of activations, where the dictionary is."""
    return one.dictionary.reconstruct(x.to(one.dictionary.device, one.dictionary.dtype)).latents


def dense_latents(one: PlacedCandidate, x: Float[Tensor, "n dim"]) -> Float[Tensor, "n dict_size"]:
    """Returns the latents of activations, in float32 on the CPU."""
    return to_dense(latents_of(one, x)).float().cpu()


def once_and_resampled(n: int, n_resamples: int, seed: int) -> Float[Tensor, "resamples n"]:
    """Returns how often each resample has each row; the first has each once: the figure itself."""
    once = torch.ones(1, n, dtype=torch.float64)
    resampled = document_weights(n, n_resamples, seed)
    return once if resampled is None else torch.cat([once, resampled])
