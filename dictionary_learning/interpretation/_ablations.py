"""What the model predicts without a latent, where that latent is active."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dictionary_learning._border import checked
from dictionary_learning._brief import brief
from dictionary_learning._types import ModelLike, SubmodulesLike, TextLike
from dictionary_learning.activations._filters import TokenFilter
from dictionary_learning.data import TokenBatch
from dictionary_learning.dictionaries import WIRINGS, Trainable, wiring_of
from dictionary_learning.errors import ConfigError
from dictionary_learning.interop._saved import sites_in_model
from dictionary_learning.interpretation._chosen import check_number, chosen_latents
from dictionary_learning.interpretation._pass import Batch, LatentPass, Member, check_read, members_of, open_stream
from dictionary_learning.interventions import edit_latents, edit_latents_across
from dictionary_learning.models import Edit, TracedModel, load_model
from dictionary_learning.sites import Site


class AblationEffects(NamedTuple):
    """What changes when each of some latents is set to zero, in the contexts where it is active.

    Means are over the tokens where the latent is active and that predict a next one; those of
    `later` over the tokens of these contexts after its first activation. A latent that was active
    nowhere has NaN.
    """

    latents: Int[Tensor, "m"]
    n_tokens: Int[Tensor, "m"]
    """The tokens where it is active that predict a next one."""
    ce_increase: Float[Tensor, "m"]
    """The rise of the cross-entropy, in nats: above 0 where the latent helped."""
    kl: Float[Tensor, "m"]
    """sum p (log p - log q) of the next token, where p is the untouched model."""
    later_ce_increase: Float[Tensor, "m"]
    later_kl: Float[Tensor, "m"]
    promoted: Int[Tensor, "m n"]
    """The tokens whose probability rises most without the latent."""
    promoted_changes: Float[Tensor, "m n"]
    suppressed: Int[Tensor, "m n"]
    """The tokens whose probability falls most without it: what the latent was for."""
    suppressed_changes: Float[Tensor, "m n"]

    __repr__ = brief


@checked()
@torch.no_grad()
def ablation_effects(
    model: ModelLike,
    dictionary: Any,
    data: TextLike,
    latents: Sequence[int] | Tensor,
    *,
    n: int = 10,
    site: SubmodulesLike | None = None,
    target: SubmodulesLike | None = None,
    n_contexts: int = 32,
    n_tokens: int = 20_000,
    ctx_len: int = 128,
    batch_size: int = 8,
    pack: bool = True,
    token_filter: TokenFilter | None = None,
) -> AblationEffects:
    """Returns what ablating each of some latents changes in the model's predictions.

    The latent is set to zero on all tokens that count, and the error of the dictionary stays. The
    model runs once over each batch, and once more for each latent on the contexts where it is
    active.

    Args:
        model: The language model.
        dictionary: An autoencoder of one site, a transcoder, or its folder.
        data: The text.
        latents: The latents.
        n: Tokens whose probability rises, and as many whose probability falls.
        site: The site of a dictionary that knows none.
        target: The site that a transcoder writes, if it does not know it.
        n_contexts: The most contexts for each latent.
        n_tokens: Tokens to read; fewer if the text ends.
        ctx_len: Tokens in a context.
        batch_size: Contexts in a forward pass.
        pack: Whether documents are packed into full contexts.
        token_filter: Which tokens count, as in `collect_contexts`.

    Raises:
        ConfigError: A latent does not exist, or the dictionary reads several sites.
        DataError: No token of the text counts.
    """
    traced = load_model(model)
    stream = open_stream(data, traced, ctx_len, pack)
    sites = None if site is None else {"dictionary": site}
    members = members_of(traced, {"dictionary": dictionary}, sites, token_filter, stream.special_ids)
    member = members["dictionary"]
    chosen = chosen_latents(latents, member.dictionary.dict_size).tolist()
    place = _Place(traced, member, target)
    sums: dict[int, _Sums] = {latent: _Sums() for latent in chosen}
    reading, n_counted = LatentPass(traced, members, stream, n_tokens, batch_size), 0
    for batch in reading:
        n_counted += int(batch.keeps["dictionary"].sum())
        waiting = {latent: one for latent, one in sums.items() if one.n_contexts < n_contexts}
        if not waiting:
            break
        _add(traced, place, batch, waiting, n_contexts)
    check_read(reading, n_counted)
    return _result(chosen, list(sums.values()), n)


@dataclasses.dataclass
class _Sums:
    """Sums over the tokens of one latent."""

    n_contexts: int = 0
    n: int = 0
    n_later: int = 0
    totals: Any = 0.0  # (4,): ce and kl where it is active, and later
    change: Any = None  # (vocab,)


class _Place:
    """Where a dictionary reads and writes, for one of its latents."""

    def __init__(self, model: TracedModel, member: Member, target: SubmodulesLike | None):
        self.dictionary, reads = member.dictionary, member.reads
        name = type(self.dictionary).__name__
        if len(reads) != 1 or len(self.dictionary.site_widths[1]) != 1:
            raise ConfigError(
                f"A {name} reads or writes several sites, which the model reaches one after another, so its latents "
                "cannot be ablated yet. Give an autoencoder of one site or a transcoder."
            )
        self.read, self.write = reads[0], reads[0]
        if target is not None:
            self.write = _one(model, target)
        elif self.dictionary.info.target_sites:
            self.write = model.sites([str(s) for s in sites_in_model(self.dictionary.info, model, target=True)])[0]
        elif _predicts_others(self.dictionary):
            if self.read.side != "in":
                raise ConfigError(f"The {name} writes another site than {self.read}. Give target='model.layers.0.mlp'.")
            self.write = Site(self.read.path, call=self.read.call)
        widths = model.widths([self.read, self.write])
        try:
            self.dictionary.check_sites([widths[self.read]], [widths[self.write]])
        except ConfigError as error:
            raise ConfigError(f"The target '{self.write}' does not fit: {error}") from error

    def edits(self, latent: int, keep: Tensor) -> Mapping[Site, Edit]:
        """Returns the edits that set a latent to zero."""
        if self.read == self.write:
            return {self.read: edit_latents(self.dictionary, ablate=[latent], keep=keep)}
        return edit_latents_across(self.dictionary, self.read, self.write, ablate=[latent], keep=keep)


def _one(model: TracedModel, target: SubmodulesLike) -> Site:
    found = model.sites(target)
    if len(found) != 1:
        raise ConfigError(f"Got target={target!r}, which names {len(found)} sites. Give one.")
    return found[0]


def _predicts_others(dictionary: Any) -> bool:
    return isinstance(dictionary, Trainable) and WIRINGS[wiring_of(dictionary)].writes_others


def _add(model: TracedModel, place: _Place, batch: Batch, waiting: Mapping[int, _Sums], most: int) -> None:
    tokens, pairs = batch.tokens, batch.pairs["dictionary"]
    ctx, width = batch.keeps["dictionary"].shape[1], tokens.input_ids.shape[1]
    keep = batch.keeps["dictionary"][:, :width]  # (batch, ctx)
    clean: Tensor | None = None
    for latent, sums in waiting.items():
        places = pairs.places[pairs.latents == latent].cpu()
        rows = (places // ctx).unique()[: most - sums.n_contexts]
        if not len(rows):
            continue
        if clean is None:
            clean = model.run(*tokens)  # (batch, ctx, vocab)
        active = torch.zeros(len(keep), ctx, dtype=torch.bool)
        active.view(-1)[places] = True
        own = TokenBatch(tokens.input_ids[rows], tokens.attention_mask[rows])
        changed = model.run(*own, place.edits(latent, keep[rows]), special_tokens=True)
        _compare(sums, own, keep[rows], active[rows, :width], clean[rows.to(clean.device)], changed)


def _compare(sums: _Sums, tokens: TokenBatch, keep: Tensor, active: Tensor, clean: Tensor, changed: Tensor) -> None:
    scored = keep[:, :-1] & keep[:, 1:]  # (contexts, ctx - 1): those that predict a token that counts
    later = scored & (active.cumsum(-1) > 0)[:, :-1]  # an earlier token does not see the latent
    where = later.to(clean.device)
    log_p, log_q = (logits[:, :-1][where].float().log_softmax(-1) for logits in (clean, changed))  # (n, vocab)
    p = log_p.exp()
    kl = torch.where(p > 0, p * (log_p - log_q), 0).sum(-1)
    targets = tokens.input_ids[:, 1:].to(clean.device)[where].unsqueeze(1)
    ce = (log_p - log_q).gather(1, targets).squeeze(1)
    here = (active[:, :-1])[later].to(clean.device)
    totals = torch.stack([ce[here].sum(), kl[here].sum(), ce.sum(), kl.sum()]).double().cpu()
    change = (log_q[here].exp() - p[here]).double().sum(0).cpu()
    sums.totals = sums.totals + totals
    sums.change = change if sums.change is None else sums.change + change
    sums.n_contexts += len(keep)
    sums.n += int(here.sum())
    sums.n_later += len(here)


def _result(latents: list[int], sums: list[_Sums], n: int) -> AblationEffects:
    vocab = next((len(one.change) for one in sums if one.change is not None), n)
    check_number(n, vocab, "tokens in the vocabulary")
    missing = torch.full((vocab,), torch.nan, dtype=torch.float64)
    changes = torch.stack([one.change / one.n if one.n else missing for one in sums])  # (m, vocab)
    rises, falls = changes.topk(n, dim=1), changes.topk(n, dim=1, largest=False)
    here = torch.stack([one.totals[:2] / one.n if one.n else torch.full((2,), torch.nan) for one in sums])
    later = torch.stack([one.totals[2:] / one.n_later if one.n_later else torch.full((2,), torch.nan) for one in sums])
    return AblationEffects(
        torch.tensor(latents),
        torch.tensor([one.n for one in sums]),
        here[:, 0].float(),
        here[:, 1].float(),
        later[:, 0].float(),
        later[:, 1].float(),
        rises.indices,
        rises.values.float(),
        falls.indices,
        falls.values.float(),
    )
