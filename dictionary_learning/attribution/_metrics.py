"""Scalars of the logits whose causes are asked for; each is a mean over rows of the batch."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dictionary_learning._border import short
from dictionary_learning.errors import ConfigError

Metric: TypeAlias = Callable[[Tensor], Tensor]
"""Gets the logits (batch, ctx, vocab), and returns one number that has a gradient."""
IdsLike: TypeAlias = int | Sequence[int] | Int[Tensor, "batch"]
"""A token for every row, or one for each."""


def logit_difference(answer: IdsLike, other: IdsLike, *, position: int = -1) -> Metric:
    """Returns the metric logit(answer) - logit(other), after the token at a position.

    Args:
        answer: The token whose logit counts positively.
        other: The token whose logit counts negatively.
        position: The place in the context. Prompts are padded on the left, so -1 is the last token
            of each.
    """

    def metric(logits: Float[Tensor, "batch ctx vocab"]) -> Float[Tensor, ""]:
        at = logits[:, position].float()
        return (_of(at, answer) - _of(at, other)).mean()

    return metric


def log_probability(answer: IdsLike, *, position: int = -1) -> Metric:
    """Returns the metric log p(answer), in nats, after the token at a position."""

    def metric(logits: Float[Tensor, "batch ctx vocab"]) -> Float[Tensor, ""]:
        return _of(logits[:, position].float().log_softmax(-1), answer).mean()

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


def _of(values: Float[Tensor, "batch vocab"], ids: IdsLike) -> Float[Tensor, "batch"]:
    """Returns the value of one token in each row."""
    index = torch.as_tensor(ids, device=values.device)
    vocab = values.shape[-1]
    if index.is_floating_point() or index.ndim > 1 or not bool(((index >= 0) & (index < vocab)).all()):
        raise ConfigError(f"Got {ids!r} as tokens; give ids from 0 to {vocab - 1}, one for all rows or one for each.")
    try:
        return values.gather(-1, index.expand(len(values)).unsqueeze(-1)).squeeze(-1)
    except RuntimeError as error:
        raise ConfigError(f"Got {len(index)} tokens for {len(values)} rows; give one for each.") from error
