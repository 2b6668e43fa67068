"""Loss and gradients of a step, made again by a single launch: a CUDA graph.

A step is some two hundred operations, of which two thirds are its loss and the backward pass.
Where a dictionary is small, a host takes longer to launch them than a GPU to make them. A graph
reads and writes the same memory each time. So it stands for a step only as long as nothing that
the loss reads has moved, and no number that the host gave to an operation has changed.
"""

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dictionary_learning.trainers._batch import Batch, Loss

_USUAL = 2
"""Steps that read the same before they are captured: kernels are compiled and tuned in them."""
_CHECKED = (0, 50)
"""Replays that are compared with the step itself: the first, and one that shows what went stale."""
_CHECK_EVERY = 1000
"""Replays between two further comparisons, for which the host waits."""
_TOLERANCE = 1e-3
"""Of a difference, relative to the norm: sums on a GPU have no fixed order."""

Replay = Callable[[], None]
Record = Callable[[Callable[[], Loss]], tuple[Replay, Loss]]
"""Calls a function. Returns what makes all of its operations again in the same memory, and what
the function returned, whose values are those of the last replay."""

logger = logging.getLogger(__name__)


class CudaRecorder:
    """Captures functions in CUDA graphs, all on one stream. Nothing is computed before a replay."""

    def __init__(self, device: torch.device):
        self._device = device
        # streams come from a pool in turn, and a buffer may read ahead on one of the same priority;
        # of its own for each trainer, since a graph that goes clears the work space of its stream
        self._stream = torch.cuda.Stream(device, priority=-1)

    def __call__(self, make: Callable[[], Loss]) -> tuple[Replay, Loss]:
        """Captures a function.

        Raises:
            RuntimeError: Something in it waits for the device, or cannot be captured otherwise.
        """
        # `torch.cuda.graph` would collect garbage and empty caches, whenever dead latents change
        graph, own = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        self._stream.wait_stream(own)
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
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
        own.wait_stream(self._stream)
        return graph.replay, made


RECORDERS: dict[str, Callable[[torch.device], Record]] = {"cuda": CudaRecorder}
"""What records the operations of a step, by type of device."""


class _Recorded(NamedTuple):
    replay: Replay
    batch: Batch  # its memory, into which each batch is copied
    loss: Loss
    gradients: Mapping[Tensor, Tensor | None]  # of the parameters


class ReplayedSteps:
    """Makes loss and gradients of a trainer's steps from a recording, where it stands for the step.

    Args:
        compute: Returns a trainer's detached loss of a batch, and leaves gradients in parameters.
        record: How it is recorded.
    """

    def __init__(self, compute: Callable[[Any, Batch], Loss], record: Record):
        self._compute, self._record = compute, record
        self._key: Hashable = None
        self._n_alike = 0
        self._recorded: _Recorded | None = None
        self.is_on = True
        """Whether steps are still recorded."""
        self.n_replays = 0
        """Steps that were made by a replay."""

    def __call__(self, trainer: Any, batch: Batch) -> Loss | None:
        """Returns the detached loss of a batch, and leaves its gradients.

        Returns None, and leaves none, where no recording stands for the step.
        """
        if not self.is_on:
            return None
        if why := _why_not(trainer, batch):
            return self._give_up(why)
        sides = [(side.shape, side.dtype) for side in (batch.x, batch.y)]
        key = (*sides, batch.y is batch.x, *map(_place, _read_by_loss(trainer)), *_plain(trainer.dictionary))
        if key != self._key:
            self._key, self._n_alike, self._recorded = key, 0, None
        self._n_alike += 1
        if self._n_alike <= _USUAL:
            return None
        parameters = list(trainer.dictionary.parameters())
        if any(p.grad is not None for p in parameters):
            return None  # somebody's own, to which those of the step are added
        if self._recorded is None:
            try:
                self._recorded = self._capture(trainer, batch, parameters)
            except RuntimeError as error:
                return self._give_up(str(error).partition("\n")[0])
            finally:
                _clear(parameters)
        recorded = self._recorded
        recorded.batch.x.copy_(batch.x)
        if recorded.batch.y is not recorded.batch.x:
            recorded.batch.y.copy_(batch.y)
        recorded.replay()
        is_checked = self.n_replays in _CHECKED or self.n_replays % _CHECK_EVERY == 0
        if is_checked and not self._is_right(trainer, batch, recorded):
            _clear(parameters)
            return self._give_up("a replay differs from the step itself")
        for p, gradient in recorded.gradients.items():
            p.grad = gradient
        self.n_replays += 1
        return recorded.loss

    def _capture(self, trainer: Any, batch: Batch, parameters: Sequence[Tensor]) -> _Recorded:
        x = batch.x.clone()
        own = batch._replace(x=x, y=x if batch.y is batch.x else batch.y.clone())
        replay, loss = self._record(lambda: self._compute(trainer, own))
        return _Recorded(replay, own, loss, {p: p.grad for p in parameters})

    def _is_right(self, trainer: Any, batch: Batch, recorded: _Recorded) -> bool:
        """Returns whether a replay gave what the step gives, which it leaves in the parameters."""
        again = self._compute(trainer, batch)
        pairs = [(gradient, p.grad) for p, gradient in recorded.gradients.items()]
        return all(_is_near(one, other) for one, other in [(recorded.loss.total, again.total), *pairs])

    def _give_up(self, why: str) -> None:
        logger.warning(
            "cuda_graph=True, but from here on steps are made without a graph, with the same results: %s.", why
        )
        self.is_on, self._recorded = False, None


def _why_not(trainer: Any, batch: Batch) -> str | None:
    """Returns why the steps of a trainer cannot be recorded; None if they can."""
    if batch.model_loss_fn is not None:
        return "the loss is the model's too"
    if batch.lengths is not None:
        return "the dictionary reads contexts, of other lengths each time"
    if trainer.may_draw:
        return "something in the step is not of this package, and may draw random numbers"
    if {"objective", "loss", "with_auxiliary_losses"} & vars(trainer).keys():
        return "its loss was replaced"
    if any(p._backward_hooks or p._post_accumulate_grad_hooks for p in trainer.dictionary.parameters()):
        return "a parameter has a hook for its gradient"
    if trainer.ranks.size > 1 or trainer.latent_ranks.size > 1:
        return "several processes make a step together"
    if torch.is_autocast_enabled(trainer.device.type):
        return "autocast keeps copies of weights between steps"
    unknown = [name for name, part in trainer.components.items() if part.read_by_loss() is None]
    return f"what the loss reads of {', '.join(unknown)} is not known" if unknown else None


def _read_by_loss(trainer: Any) -> list[Any]:
    """Returns the tensors and the numbers of the host that a loss reads."""
    own = [value for part in trainer.components.values() for value in part.read_by_loss() or ()]
    return [*trainer.dictionary.parameters(), *trainer.dictionary.buffers(), trainer.loss_scale, *own]


def _clear(parameters: Sequence[Tensor]) -> None:
    for p in parameters:
        p.grad = None


def _place(value: Any) -> Hashable:
    """Returns where a tensor is, and a number as it is."""
    if not isinstance(value, Tensor):
        return value
    return value.data_ptr(), value.shape, value.stride(), value.dtype, value.requires_grad


def _plain(dictionary: nn.Module) -> list[Hashable]:
    """Returns the switches of a dictionary and its parts, as whether b_dec is subtracted."""
    return [
        value
        for module in dictionary.modules()
        for value in vars(module).values()
        if value is None or isinstance(value, (bool, int, float, str))
    ]


def _is_near(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    if not torch.equal(one.isfinite(), other.isfinite()):
        return False
    difference, size = (torch.linalg.vector_norm(x.nan_to_num(0.0, 0.0, 0.0)) for x in (one - other, other))
    return bool(difference <= _TOLERANCE * size)
