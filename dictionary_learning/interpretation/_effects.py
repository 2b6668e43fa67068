"""The logit lens: what each latent adds to the logits, by the final norm and the unembedding."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dictionary_learning._border import checked
from dictionary_learning._types import ModelLike, SubmodulesLike
from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.errors import ConfigError
from dictionary_learning.interop._saved import sites_in_model
from dictionary_learning.interpretation._chosen import check_number
from dictionary_learning.interpretation._directions import Directions
from dictionary_learning.interpretation._records import TokenEffects
from dictionary_learning.interpretation._unembedding import unembedding_of
from dictionary_learning.models import TracedModel, load_model
from dictionary_learning.sites import Site

_MOST = 1 << 24
"""Logits that are in memory at a time, 64 MB."""
_IN_CACHE = 1 << 18
"""Logits that a CPU ranks and counts at a time, 1 MB."""
BINS = 50


@checked()
@torch.no_grad()
def logit_lens(
    model: ModelLike,
    dictionary: Dictionary,
    n: int = 10,
    *,
    site: SubmodulesLike | None = None,
    write: int = -1,
) -> TokenEffects:
    """Returns which tokens' logits each latent raises and lowers most, by its direction alone.

    effect = W_U (gamma * (d - mean d))    the mean only where the final norm is a LayerNorm

    d is the latent's direction in the residual stream, gamma the scale of the final norm. Logits
    are per unit of the latent and of the residual stream's norm (its root mean square), by which
    the final norm divides every token. What later layers make of the latent is left out, and so is
    a cap of the logits. Only tokens that the tokenizer knows are ranked.

    Args:
        model: The language model.
        dictionary: Its latents' directions are those of the decoder.
        n: Tokens of each kind.
        site: The site that is written; by default the one that the dictionary names. If it is the
            input of a linear module, as of the projection of attention heads, that module is
            applied to the directions.
        write: Which of several sites that the dictionary writes.

    Raises:
        ModelError: The model has no final norm or unembedding that can be found.
        ConfigError: The directions have another width than the residual stream, or n is too large.
    """
    traced = load_model(model)
    unembedding = unembedding_of(traced)
    n_tokens = len(unembedding.weight)  # some are rows that fill up the matrix
    n_tokens = n_tokens if traced.tokenizer is None else min(n_tokens, len(traced.tokenizer))
    check_number(n, n_tokens, "tokens in the vocabulary")
    matrix = unembedding.folded()[:n_tokens]  # (vocab, dim)
    directions = Directions(dictionary, "decoder", write)
    linear = _linear_at(traced, dictionary, site, write, directions.width)
    size = max(_MOST // n_tokens, 1)
    parts: list[TokenEffects] = []
    for start in range(0, directions.n, size):
        rows = directions.rows(start, min(start + size, directions.n)).to(matrix.device)  # (latents, dim)
        rows = rows if linear is None else _through(linear, rows)
        if rows.shape[1] != matrix.shape[1]:
            raise ConfigError(
                f"The latents have directions of width {rows.shape[1]}, and the residual stream of {traced.name} is "
                f"{matrix.shape[1]} wide. Give the site that they write, if it is the input of a linear module."
            )
        logits = rows @ matrix.T  # (latents, vocab)
        at_once = max(_IN_CACHE // n_tokens, 1) if logits.device.type == "cpu" else size
        parts += [_ranked(part, n) for part in logits.split(at_once)]
    return TokenEffects(*(torch.cat(fields).to(dictionary.device) for fields in zip(*parts, strict=True)))


def _ranked(logits: Float[Tensor, "latents vocab"], n: int) -> TokenEffects:
    high, low = logits.topk(n, dim=1), logits.topk(n, dim=1, largest=False)
    least, most = low.values[:, 0], high.values[:, 0]
    width = (most - least).clamp_min(torch.finfo(torch.float32).tiny)
    bins = ((logits - least.unsqueeze(1)) * (BINS / width).unsqueeze(1)).long().clamp_(0, BINS - 1)
    counts = torch.zeros(len(logits), BINS, dtype=torch.long, device=logits.device)
    counts.scatter_add_(1, bins, torch.ones_like(bins))
    return TokenEffects(high.indices, high.values, low.indices, low.values, counts, least, most)


def _linear_at(
    model: TracedModel, dictionary: Dictionary, given: SubmodulesLike | None, write: int, width: int
) -> nn.Module | None:
    """Returns the linear module whose input a dictionary writes, if it does.

    Raises:
        ConfigError: The site that was given has another width.
    """
    sites: list[Site] = []
    if given is not None:
        sites = model.sites(given)
        if not sites:
            raise ConfigError(f"Got site={given!r}, which names no site. Give one, or leave it out.")
    elif dictionary.info.sites:
        sites = list(sites_in_model(dictionary.info, model, target=bool(dictionary.info.target_sites)))
    if not sites:
        return None
    site = model.sites(sites[write] if -len(sites) <= write < len(sites) else sites[-1])[0]
    if given is not None and (there := model.widths([site])[site]) != width:
        raise ConfigError(
            f"The latents have directions of width {width}, and '{site}' is {there} wide. Give the site that they "
            "write."
        )
    module = model.module.get_submodule(site.path)
    is_linear = getattr(getattr(module, "weight", None), "ndim", 0) == 2 and not isinstance(module, nn.Embedding)
    return module if site.side == "in" and is_linear else None


def _through(linear: Any, rows: Tensor) -> Tensor:
    """Returns what a linear module makes of directions, without its bias."""
    weight = linear.weight.float()  # (out, in), but (in, out) in transformers' Conv1D
    weight = weight.T if isinstance(linear, nn.Linear) else weight
    if rows.shape[1] != weight.shape[0]:
        raise ConfigError(
            f"The latents have directions of width {rows.shape[1]}, and the module at their site reads width "
            f"{weight.shape[0]}. Give the site that they write."
        )
    return rows @ weight.to(rows.device)
