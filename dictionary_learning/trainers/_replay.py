"""Loss and gradients of a step, made again by a single launch: a CUDA graph.

A step is some three hundred operations, of which two thirds are its loss and the backward pass.
Where a dictionary is small, a host takes longer to launch them than a GPU to make them. A graph
reads and writes the same memory each time. So it stands for a step only as long as nothing that
the loss reads has moved, and no number that the host gave to an operation has changed.
"""

import logging
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dictionary_learning.trainers._batch import Batch, Loss

_USUAL = 2
"""Steps that read the same before they are captured: kernels are compiled and tuned in them."""
_CHECKED = (0, 50)
"""Replays of a run that are compared with the step itself. The second one shows what went stale."""
_TOLERANCE = 1e-3
"""Of a difference, relative to the norm: sums on a GPU have no fixed order."""

Replay = Callable[[], None]
Record = Callable[[Callable[[], Loss]], tuple[Replay, Loss]]
"""Calls a function. Returns what makes all of its operations again in the same memory, and what
the function returned, whose values are those of the last replay."""

GIVEN_UP = "cuda_graph=True, but from here on steps are made without a graph, with the same results: %s."
logger = logging.getLogger(__name__)


def record_on_cuda(make: Callable[[], Loss]) -> tuple[Replay, Loss]:
    """Captures a function in a CUDA graph. Nothing is computed before the first replay.

    Raises:
        RuntimeError: Something in it waits for the device, or cannot be captured otherwise.
    """
    # `torch.cuda.graph` would collect garbage and empty caches, each time the dead latents change
    graph, stream, own = torch.cuda.CUDAGraph(), torch.cuda.Stream(), torch.cuda.current_stream()
    stream.wait_stream(own)
    with torch.cuda.stream(stream):
        graph.capture_begin(capture_error_mode="thread_local")  # others may read ahead
        try:
            made = make()
        except BaseException:
            try:
                graph.capture_end()
            except RuntimeError:
                logger.debug("The capture had ended.", exc_info=True)
            raise
        graph.capture_end()
    own.wait_stream(stream)
    return graph.replay, made


RECORDERS: dict[str, Record] = {"cuda": record_on_cuda}
"""How the operations of a step are recorded, by type of device."""


def why_not(trainer: Any, batch: Batch) -> str | None:
    """Returns why the steps of a trainer cannot be recorded; None if they can."""
    unknown = [name for name, part in trainer.components.items() if part.read_by_loss() is None]
    reasons = {
        "the loss is the model's too": batch.model_loss_fn is not None,
        "the dictionary reads contexts, of other lengths each time": batch.lengths is not None,
        "something in the step is not of this package, and may draw random numbers": trainer.may_draw,
        f"what the loss reads of {', '.join(unknown)} is not known": unknown,
        "several processes make a step together": trainer.ranks.size > 1 or trainer.latent_ranks.size > 1,
        "autocast keeps copies of weights between steps": torch.is_autocast_enabled(trainer.device.type),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


class _Recorded(NamedTuple):
    replay: Replay
    batch: Batch  # its memory, into which each batch is copied
    loss: Loss
    gradients: Sequence[Tensor | None]  # of the parameters


class ReplayedGradients:
    """Computes a loss and its gradients, from a recording where it stands for the step.

    Args:
        parameters: Those that get gradients, which have none before each call.
        compute: Returns the detached loss of a batch, and leaves gradients in the parameters.
        record: How it is recorded.
    """

    def __init__(self, parameters: Sequence[Tensor], compute: Callable[[Batch], Loss], record: Record):
        self._parameters, self._compute, self._record = list(parameters), compute, record
        self._key: Hashable = None
        self._n_alike = 0
        self._recorded: _Recorded | None = None
        self._is_given_up = False
        self.n_replays = 0
        """Steps that were made by a replay, and not refused."""

    def __call__(self, batch: Batch, reads: Sequence[Any]) -> Loss:
        """Returns the detached loss of a batch.

        `reads` is everything that the loss reads beside the batch: tensors and numbers of the host.
        What is recorded is used while these are the same tensors, whatever their values, and the
        same numbers.
        """
        if self._is_given_up:
            return self._compute(batch)
        batches = tuple((side.shape, side.dtype) for side in (batch.x, batch.y))
        key = (batches, batch.y is batch.x, _places(reads))
        if key != self._key:
            self._key, self._n_alike, self._recorded = key, 0, None
        self._n_alike += 1
        if self._n_alike <= _USUAL:
            return self._compute(batch)
        if self._recorded is None:
            self._recorded = self._capture(batch)
        recorded = self._recorded
        if recorded is None:
            return self._compute(batch)
        loss = self._replay(recorded, batch)
        if self.n_replays in _CHECKED and not self._is_right(batch, loss):
            return self._give_up("a replay differs from the step itself", batch)
        self.n_replays += 1
        return loss

    def _capture(self, batch: Batch) -> _Recorded | None:
        x = batch.x.clone()
        own = batch._replace(x=x, y=x if batch.y is batch.x else batch.y.clone())
        try:
            replay, loss = self._record(lambda: self._compute(own))
        except RuntimeError as error:
            self._clear()
            self._give_up(str(error).splitlines()[0])
            return None
        recorded = _Recorded(replay, own, loss, [p.grad for p in self._parameters])
        self._clear()
        return recorded

    def _replay(self, recorded: _Recorded, batch: Batch) -> Loss:
        recorded.batch.x.copy_(batch.x)
        if recorded.batch.y is not recorded.batch.x:
            recorded.batch.y.copy_(batch.y)
        recorded.replay()
        for p, gradient in zip(self._parameters, recorded.gradients, strict=True):
            p.grad = gradient
        return recorded.loss

    def _is_right(self, batch: Batch, loss: Loss) -> bool:
        replayed = [p.grad for p in self._parameters]
        self._clear()
        again = self._compute(batch)
        computed = [p.grad for p in self._parameters]
        for p, gradient in zip(self._parameters, replayed, strict=True):
            p.grad = gradient
        return all(map(_is_near, [loss.total, *replayed], [again.total, *computed]))

    def _give_up(self, why: str, batch: Batch | None = None) -> Any:
        """Makes all further steps as they are."""
        logger.warning(GIVEN_UP, why)
        self._is_given_up, self._recorded = True, None
        if batch is None:
            return None
        self._clear()
        return self._compute(batch)

    def _clear(self) -> None:
        for p in self._parameters:
            p.grad = None


def _places(values: Sequence[Any]) -> Hashable:
    """Returns where tensors are, and numbers as they are."""
    return tuple(
        (value.data_ptr(), value.shape, value.stride(), value.dtype) if isinstance(value, Tensor) else value
        for value in values
    )


def _is_near(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    one, other = one.double(), other.double()
    if not bool((one.isfinite() == other.isfinite()).all()):
        return False
    difference = (one - other).nan_to_num(0.0, 0.0, 0.0).norm()
    return bool(difference <= _TOLERANCE * other.nan_to_num(0.0, 0.0, 0.0).norm())
