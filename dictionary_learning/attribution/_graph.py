"""The attribution graph of a prompt, as circuit-tracer has it.

Ameisen et al. 2025, "Circuit Tracing", Transformer Circuits.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dictionary_learning._border import checked, short
from dictionary_learning._progress import Progress
from dictionary_learning._types import ModelLike
from dictionary_learning._usual_state import usual_state
from dictionary_learning.attribution._direct import DirectEffects, Node
from dictionary_learning.attribution._graph_records import AttributionGraph
from dictionary_learning.attribution._influence import influence_of
from dictionary_learning.attribution._runs import warn_of_rounding
from dictionary_learning.capture._ordinary import ordinary, special_ids
from dictionary_learning.errors import ConfigError, DataError
from dictionary_learning.interventions._inputs import as_tokens
from dictionary_learning.models import TracedModel, load_model

_RANKED_EVERY = 4
"""Batches until the latents that are left are ranked again; as circuit-tracer's default."""


@checked()
@usual_state(gradients=True)
def attribution_graph(
    model: ModelLike,
    transcoders: Any,
    prompt: Any,
    *,
    answers: Sequence[int] | None = None,
    n_logits: int = 10,
    logit_share: float = 0.95,
    max_latents: int | None = 7500,
    special_tokens: bool = False,
    batch_size: int = 32,
) -> AttributionGraph:
    """Returns the direct effects of a prompt's tokens, latents and errors on latents and logits.

    Attention patterns and the denominators of norms are what they are on this prompt, and
    transcoders stand for MLPs. Then all between two nodes is linear, and the effects on a node sum
    to its value, but for what biases add. An MLP without a transcoder is an error as a whole. A
    logit is that before a cap (Gemma 2), which is not linear, less the mean; with a factor that a
    model has for its logits (Granite, Cohere).

    Args:
        model: The language model.
        transcoders: Transcoders of layers, with or without a skip connection, or a cross-layer
            transcoder; as `Placed(dictionary, site)` if their `info` does not say where.
        prompt: One text, or its token ids.
        answers: The tokens whose logits are asked for; by default the most probable ones.
        n_logits: The most of these.
        logit_share: The sum of their probabilities from which on no more are taken.
        max_latents: The most latents; those of most influence on the logits are found first. None
            for all that are active.
        special_tokens: Whether tokens such as BOS have latents too.
        batch_size: Copies of the prompt that run at once.

    Raises:
        ConfigError: A dictionary is no transcoder of layers, or two are at one.
        DataError: There are several prompts, or none.
        ModelError: The model's attention or norms cannot be held constant.
    """
    traced = load_model(model)
    warn_of_rounding(traced)
    tokens = as_tokens(traced, prompt)
    if len(tokens.input_ids) != 1 or not bool(tokens.attention_mask.all()):
        raise DataError(f"Got {len(tokens.input_ids)} prompts, or padding. Give one prompt: each has its own graph.")
    mask = ordinary(*tokens, () if special_tokens else special_ids(traced))
    effects = DirectEffects(traced, transcoders, tokens, mask)
    ids, probability = _predicted(effects.logits(), answers, n_logits, logit_share)
    nodes = [
        Node(part, position, number)
        for part, (positions, pairs) in enumerate(zip(effects.positions, effects.sources.pairs, strict=True))
        for position, number in zip(positions.tolist(), pairs.latents.tolist(), strict=True)
    ]
    last = tokens.input_ids.shape[1] - 1
    n_latents = min(max_latents or len(nodes), len(nodes))
    n_passes = sum(math.ceil(n / batch_size) for n in (len(ids), n_latents))
    with Progress("following effects", n_passes, "passes") as progress:
        logits = effects_on(effects, [Node(None, last, number) for number in ids.tolist()], batch_size, progress)
        chosen, rows = _latent_rows(effects, nodes, logits, probability, max_latents, batch_size, progress)
    values = torch.cat([pairs.values.detach().cpu() for pairs in effects.sources.pairs])
    layers = torch.tensor([part.layer for part in effects.at.parts])
    kept = torch.tensor([list(nodes[one]) for one in chosen.tolist()], dtype=torch.long).reshape(-1, 3)
    columns = torch.cat([chosen, torch.arange(len(nodes), logits.shape[1])])
    weight = torch.cat([rows, logits])[:, columns]
    return AttributionGraph(
        model=traced.known_name or "",
        prompt=prompt if isinstance(prompt, str) else "".join(_texts(traced, tokens.input_ids[0])),
        n_layers=len(effects.at.outputs),
        input_ids=tokens.input_ids[0].cpu(),
        tokens=_texts(traced, tokens.input_ids[0]),
        layer=layers[kept[:, 0]],
        position=kept[:, 1],
        latent=kept[:, 2],
        activation=values[chosen],
        logit_ids=ids,
        logit_tokens=_texts(traced, ids),
        probability=probability,
        weight=torch.cat([weight, weight.new_zeros(len(weight), len(ids))], 1),  # logits have no effects
        n_active=len(nodes),
    )


def effects_on(
    effects: DirectEffects, nodes: Sequence[Node], batch_size: int, progress: Progress
) -> Float[Tensor, "targets sources"]:
    """Returns what each source adds to some nodes, a batch at a time, on the CPU."""
    found: list[Tensor] = []
    for n in range(0, len(nodes), batch_size):
        some = nodes[n : n + batch_size]
        found.append(effects.on(some, batch_size).cpu())
        progress.advance()  # a pass of few nodes takes as long as one of many
    return torch.cat(found)


def _latent_rows(
    effects: DirectEffects,
    nodes: Sequence[Node],
    logits: Float[Tensor, "logits sources"],
    probability: Float[Tensor, "logits"],
    most: int | None,
    batch_size: int,
    progress: Progress,
) -> tuple[Int[Tensor, "chosen"], Float[Tensor, "chosen sources"]]:
    """Returns the latents that are in the graph, in order, and the effects on each."""
    n, n_sources = len(nodes), logits.shape[1]
    most = n if most is None else min(most, n)
    n_logits = len(logits)
    start = torch.cat([logits.new_zeros(n_sources), probability.to(logits)])
    weight = torch.cat([logits, logits.new_zeros(n_logits, n_logits)], 1)
    targets = torch.arange(n_sources, n_sources + n_logits)
    chosen = torch.arange(0)
    while len(chosen) < most:
        pending = torch.arange(n)
        if most < n:
            influence = influence_of(weight, targets, start)[:n]
            influence[chosen] = -1
            pending = influence.argsort(descending=True)[: min(_RANKED_EVERY * batch_size, most - len(chosen))]
            pending = pending.sort().values  # by layer: a backward pass begins at the latest of its batch
        found = effects_on(effects, [nodes[one] for one in pending.tolist()], batch_size, progress)
        weight = torch.cat([weight, torch.cat([found, found.new_zeros(len(found), n_logits)], 1)])
        targets, chosen = torch.cat([targets, pending]), torch.cat([chosen, pending])
    order = chosen.argsort()
    return chosen[order], weight[n_logits:, :n_sources][order]


def _predicted(
    logits: Float[Tensor, "vocab"], answers: Sequence[int] | None, most: int, share: float
) -> tuple[Int[Tensor, "logits"], Float[Tensor, "logits"]]:
    """Returns the tokens whose logits are nodes, and their probabilities."""
    probability = logits.softmax(-1).cpu()
    if answers is not None:
        if not answers or len(set(answers)) != len(answers) or not all(0 <= one < len(logits) for one in answers):
            raise ConfigError(f"Got answers={short(answers)}; give different tokens, from 0 to {len(logits) - 1}.")
        ids = torch.tensor(list(answers))
        return ids, probability[ids]
    values, ids = probability.topk(min(most, len(probability)))
    n = int(torch.searchsorted(values.cumsum(0), share)) + 1
    return ids[:n], values[:n]


def _texts(model: TracedModel, ids: Int[Tensor, "n"]) -> tuple[str, ...]:
    tokenizer: Any = model.tokenizer
    return tuple(str(one) if tokenizer is None else tokenizer.decode([one]) for one in ids.tolist())
