"""The batches of an optimizer step, gathered until all of them are there."""

from torch import Tensor, nn

from dictionary_learning.trainers._batch import StepPart


class Gathering:
    """Counts the batches of a run, and holds what they contributed until the step is made.

    Args:
        per_step: Batches of a step.
    """

    def __init__(self, per_step: int):
        self.per_step = per_step
        self.n_batches = 0
        """Batches of the run, counted when all of their parts were added."""
        self._parts: list[StepPart] = []
        self._n_tokens = 0  # of all ranks
        self._gradients: list[Tensor | None] = []

    @property
    def n_open(self) -> int:
        """Batches that were counted since the last step."""
        return self.n_batches % self.per_step

    @property
    def is_empty(self) -> bool:
        """Whether nothing is held, not even a part of a batch."""
        return not self._parts and not self.n_open

    def add(self, part: StepPart) -> None:
        """Adds a part of a batch, with its share of the tokens of that."""
        self._parts.append(part)

    def count(self, n_tokens: int) -> bool:
        """Counts a batch whose parts were added; returns whether the step is complete.

        Args:
            n_tokens: Its tokens on all ranks.
        """
        self.n_batches += 1
        self._n_tokens += n_tokens
        return not self.n_open

    def keep_gradients(self, module: nn.Module) -> None:
        """Takes the gradients of what is held away, to where a caller's are not added to them."""
        self._gradients = [p.grad for p in module.parameters()]
        for p in module.parameters():
            p.grad = None

    def give_gradients(self, module: nn.Module) -> None:
        """Gives them back, in place of those that a caller has computed."""
        if not self._gradients and self._parts:  # an error ended a batch: its gradients are still there
            return
        kept = self._gradients or [None] * sum(1 for _ in module.parameters())
        for p, gradient in zip(module.parameters(), kept, strict=True):
            p.grad = gradient
        self._gradients = []

    def take(self) -> list[StepPart]:
        """Returns the parts, with their shares of the tokens of the step, and holds none."""
        total = max(self._n_tokens, 1)
        parts = [part._replace(share=len(part.batch.x) / total) for part in self._parts]
        self._parts, self._n_tokens = [], 0
        return parts

    def start_at(self, step: int) -> None:
        """Forgets what is held, and counts from the first batch of a step."""
        self.n_batches, self._parts, self._n_tokens, self._gradients = step * self.per_step, [], 0, []
