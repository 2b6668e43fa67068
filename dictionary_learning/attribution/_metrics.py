"""Scalars of the logits whose causes are asked for; each is a mean over rows of the batch."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dictionary_learning._border import checked, short
from dictionary_learning.errors import ConfigError

Metric: TypeAlias = Callable[[Tensor], Tensor]
"""Gets the logits (batch, ctx, vocab), and returns one number that has a gradient."""
IdsLike: TypeAlias = int | Sequence[int] | Int[Tensor, "batch"]
"""A token for every row, or one for each."""


@checked()
def logit_difference(answer: IdsLike, other: IdsLike, *, position: int = -1) -> Metric:
    """Returns the metric logit(answer) - logit(other), after the token at a position.

    Args:
        answer: The token whose logit counts positively.
        other: The token whose logit counts negatively.
        position: The place in the context. Prompts are padded on the left, so -1 is the last token
            of each.

    Raises:
        ConfigError: A token is no id; or, in the pass, the model does not know it, or the context
            has no such position.
    """

    def metric(logits: Float[Tensor, "batch ctx vocab"]) -> Float[Tensor, ""]:
        at = _at(logits, position)
        return (_of(at, answer) - _of(at, other)).mean()

    return metric


@checked()
def log_probability(answer: IdsLike, *, position: int = -1) -> Metric:
    """Returns the metric log p(answer), in nats, after the token at a position.

    Raises:
        ConfigError: As `logit_difference`.
    """

    def metric(logits: Float[Tensor, "batch ctx vocab"]) -> Float[Tensor, ""]:
        return _of(_at(logits, position).log_softmax(-1), answer).mean()

    return metric


def scalar(metric: Any, logits: Tensor) -> Float[Tensor, ""]:
    """Returns what a metric makes of logits.

    Raises:
        ConfigError: It is not one number.
    """
    if not callable(metric):
        raise ConfigError(f"Got metric={short(metric)}; give a function of logits, such as logit_difference(3, 7).")
    made = metric(logits)
    if not isinstance(made, Tensor) or made.numel() != 1 or not made.is_floating_point():  # pyright: ignore[reportUnnecessaryIsInstance]
        got = f"a tensor {tuple(made.shape)}" if isinstance(made, Tensor) else f"a {type(made).__name__}"  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"The metric returned {got}; one number is needed, as a tensor: call mean() or sum().")
    return made.reshape(())


def _at(logits: Float[Tensor, "batch ctx vocab"], position: int) -> Float[Tensor, "batch vocab"]:
    ctx = logits.shape[1]
    if not -ctx <= position < ctx:
        given = f"Got position={position}, and contexts have {ctx} tokens"
        raise ConfigError(f"{given}; give a position from {-ctx} to {ctx - 1}.")
    return logits[:, position].float()


def _of(values: Float[Tensor, "batch vocab"], ids: IdsLike) -> Float[Tensor, "batch"]:
    """Returns the value of one token in each row."""
    index = torch.as_tensor(ids, device=values.device)
    index = index if index.is_floating_point() or index.dtype == torch.bool else index.long()
    vocab = values.shape[-1]
    if index.dtype != torch.long or index.ndim > 1 or not bool(((index >= 0) & (index < vocab)).all()):
        needed = f"give ids from 0 to {vocab - 1}, one for all rows or one for each"
        raise ConfigError(f"Got {short(ids)} as tokens; {needed}.")
    try:
        return values.gather(-1, index.expand(len(values)).unsqueeze(-1)).squeeze(-1)
    except RuntimeError as error:
        raise ConfigError(f"Got {index.numel()} tokens for {len(values)} rows; give one for each.") from error
