"""How much of what latents say of a token comes from the text before it."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from dictionary_learning._border import checked
from dictionary_learning._types import ModelLike, TextLike
from dictionary_learning.config import BaseConfig, setting
from dictionary_learning.data import as_token_stream
from dictionary_learning.errors import ConfigError, DataError
from dictionary_learning.evaluation._bootstrap import document_weights, error_bar
from dictionary_learning.evaluation._candidates import Candidate, PlacedCandidate, place
from dictionary_learning.evaluation.downstream._baselines import random_like
from dictionary_learning.evaluation.downstream._records import ContextReport, Role, Scored
from dictionary_learning.evaluation.downstream._rows import at_last_tokens, bos_ids, dense_latents
from dictionary_learning.models import TracedModel, load_model
from dictionary_learning.sites import Site


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContextConfig(BaseConfig):
    """How much text is read, and how much of it is left."""

    windows: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """Numbers of tokens that are left, the token itself among them."""
    n_tokens: int = setting(512, at_least=2)
    """Tokens that are looked at, one of each context; fewer if the text ends."""
    ctx_len: int = setting(64, at_least=2)
    """Tokens of the whole context."""
    batch_size: int = setting(32, at_least=1)
    """Contexts in a forward pass."""
    random: bool = True
    """Whether a random dictionary of the same shape and L0 stands beside each."""
    n_resamples: int = setting(1_000, at_least=0)
    """Resamples of the contexts for the error bars; 0 for none."""
    seed: int = setting(0, at_least=-(2**62), at_most=2**62)
    """Of the resamples and of random dictionaries."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.windows or min(self.windows) < 1 or max(self.windows) >= self.ctx_len:
            raise ConfigError(f"Got windows={self.windows}; give numbers from 1 to ctx_len - 1 = {self.ctx_len - 1}.")


@checked()
@torch.no_grad()
def context_sensitivity(
    model: ModelLike,
    candidates: Candidate | Iterable[Candidate],
    text: TextLike,
    config: ContextConfig | None = None,
) -> ContextReport:
    """Returns how many active latents of a token stay active where the text before it is cut.

    Contexts are cut to BOS and their last m tokens. f are the latents of the last token in the
    whole context, g those in the cut one.

    * `kept` = sum of [f != 0 and g != 0] / sum of [f != 0]: share of active latents that stay.
    * `kept_mass` = sum of min(|f|, |g|) where both have one sign / sum of |f|.
    * of the activations themselves: `cosine`, of what is left without their mean.

    From 0 to 1 (the cosine from -1). At m = 1, latents that stay tell the token and no context;
    neither way is better.

    Args:
        model: the language model, or its name.
        candidates: dictionaries with their names and sites.
        text: any text.
        config: how much text is read, and how much of it is left.

    Raises:
        DataError: the text has no whole context.
        ConfigError: a dictionary does not fit its site, or reads whole contexts.
        SiteError: a site is not in the model.
    """
    config = config or ContextConfig()
    traced = load_model(model)
    placed = place(traced, candidates)
    for one in placed:
        if one.dictionary.reads_contexts:
            raise ConfigError(f"'{one.name}' reads whole contexts, and cannot read one token alone. Leave it out.")
    ids = _contexts(traced, text, config)
    sites = list(dict.fromkeys(site for one in placed for site in one.reads))
    whole = at_last_tokens(traced, ids, sites, config.batch_size)
    special = bos_ids(traced)
    cut: dict[int, dict[Site, Tensor]] = {}
    for m in dict.fromkeys(config.windows):
        left = torch.cat([special.expand(len(ids), -1), ids[:, -m:]], dim=1)
        cut[m] = at_last_tokens(traced, left, sites, config.batch_size)
    scores: list[Scored] = []
    for reads in dict.fromkeys(one.reads for one in placed):
        x = torch.cat([whole[site] for site in reads], dim=-1)
        others = {m: torch.cat([held[site] for site in reads], dim=-1) for m, held in cut.items()}
        scores += [_cosine(m, x, y, config) for m, y in others.items()]
        for number, one in enumerate(each for each in placed if each.reads == reads):
            if config.random:
                scores += _kept(random_like(one, x, config.seed + number, placed), "random", x, others, config)
            scores += _kept(one, "dictionary", x, others, config)
    return ContextReport(n_tokens=len(ids), windows=tuple(cut), scores=scores, settings=config.to_dict())


def _contexts(model: TracedModel, text: Any, config: ContextConfig) -> Int[Tensor, "n ctx"]:
    """Returns whole contexts that do not end with a special token."""
    stream = as_token_stream(text, model.tokenizer, model=model, fresh=True, ctx_len=config.ctx_len, pack=True)
    found: list[Tensor] = []
    n = 0
    while n < config.n_tokens and (batch := stream.take(min(config.batch_size, config.n_tokens))) is not None:
        special = torch.tensor(list(stream.special_ids) or [-1])
        real = batch.attention_mask.all(1) & ~torch.isin(batch.input_ids[:, -max(config.windows) :], special).any(1)
        found.append(batch.input_ids[real])
        n += int(real.sum())
    if n < 2:
        raise DataError(
            f"The text has {n} contexts of {config.ctx_len} tokens whose end lies in one document; at least 2 are "
            "needed. Give more text, or a smaller ctx_len."
        )
    return torch.cat(found)[: config.n_tokens]


def _kept(one: PlacedCandidate, role: Role, x: Tensor, others: Any, config: ContextConfig) -> list[Scored]:
    f = dense_latents(one, x)
    found: list[Scored] = []
    for m, y in others.items():
        g = dense_latents(one, y)
        smaller = torch.minimum(f.abs(), g.abs()) * (f * g > 0)
        sums = {
            "kept": (((f != 0) & (g != 0)).sum(1), (f != 0).sum(1)),
            "kept_mass": (smaller.sum(1), f.abs().sum(1)),
        }
        found.append(_scored(one.name, role, m, sums, config))
    return found


def _cosine(m: int, x: Tensor, y: Tensor, config: ContextConfig) -> Scored:
    cosines = torch.nn.functional.cosine_similarity(x - x.mean(0), y - x.mean(0), dim=1)
    return _scored("all activations", "dense", m, {"cosine": (cosines, torch.ones_like(cosines))}, config)


def _scored(name: str, role: Role, m: int, sums: Any, config: ContextConfig) -> Scored:
    """Returns ratios of sums over tokens, with error bars."""
    metrics: dict[str, float] = {}
    errors: dict[str, Any] = {}
    for key, (top, bottom) in sums.items():
        top, bottom = top.double(), bottom.double()
        metrics[key] = float(top.sum() / bottom.sum())
        weights = document_weights(len(top), config.n_resamples, config.seed)
        bar = None if weights is None else error_bar((weights @ top) / (weights @ bottom), len(top), key)
        if bar is not None:
            errors[key] = bar
    return Scored(name=name, role=role, k=m, metrics=metrics, errors=errors or None)
