"""Ranks: the processes that share a step, and what they tell each other.

A sum over the tokens of a step is a sum over this process's tokens, and then over ranks. Code that
forms such a sum has a `Ranks` and asks it. `ALONE`, which it has by default, returns what it is
given, so that one process computes what it would compute without.

Every rank of a group must make the same calls in the same order: each waits for the others.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from jaxtyping import Float
from torch import Tensor

T = TypeVar("T")
R = TypeVar("R", bound="Ranks")


class Ranks(ABC):
    """The processes over which the tokens of a step, or the dictionaries of a run, are spread."""

    rank: int
    """The number of this process, from 0."""
    size: int
    """The number of processes."""

    def __deepcopy__(self: R, memo: Any) -> R:
        """Returns itself: copies of what has ranks have the same ones."""
        return self

    @abstractmethod
    def sum(self, x: Tensor) -> Tensor:
        """Returns the sum over ranks; not differentiated."""

    @abstractmethod
    def mean(self, x: Tensor, n: int) -> Tensor:
        """Returns the mean over all tokens, given the mean over this rank's n tokens.

        Its gradient is that of the given mean. So a loss that is weighted by the rank's share of
        the tokens, as in `Trainer.update`, has the gradient of the whole.
        """

    @abstractmethod
    def minimum(self, x: Tensor) -> Tensor:
        """Returns the least value over ranks."""

    @abstractmethod
    def gather(self, rows: Float[Tensor, "n *dims"]) -> Float[Tensor, "all *dims"]:
        """Returns the rows of all ranks, one rank after another; their numbers may differ."""

    @abstractmethod
    def sum_(self, tensors: Iterable[Tensor]) -> None:
        """Replaces tensors, such as gradients, by their sums over ranks."""

    @abstractmethod
    def take_first_(self, tensors: Iterable[Tensor]) -> None:
        """Replaces tensors by those of rank 0."""

    @abstractmethod
    def add(self, x: Float[Tensor, "*dims"]) -> Float[Tensor, "*dims"]:
        """Returns the sum over ranks, whose gradient each rank passes to its own term.

        So it is where ranks have terms of one sum, and all compute the same from it.
        """

    @abstractmethod
    def lend(self, x: Float[Tensor, "*dims"]) -> Float[Tensor, "*dims"]:
        """Returns a tensor that all ranks have, and whose gradient is the sum of theirs.

        So it is where each rank computes a part of what depends on x.
        """

    @abstractmethod
    def stack(self, x: Float[Tensor, "*dims"]) -> Float[Tensor, "ranks *dims"]:
        """Returns the tensors of all ranks, of one shape; not differentiated."""

    @abstractmethod
    def grid(self, columns: int) -> "tuple[Ranks, Ranks]":
        """Returns this rank's column and row, where ranks fill a table row by row."""

    @abstractmethod
    def tell(self, numbers: Sequence[int]) -> list[list[int]]:
        """Returns a few whole numbers of each rank, without a wait for an accelerator."""

    @abstractmethod
    def share(self, value: T, source: int = 0) -> T:
        """Returns the object of one rank."""

    @abstractmethod
    def collect(self, value: T) -> list[T]:
        """Returns the object of each rank."""

    def patient(self) -> "Ranks":
        """Returns the same ranks, which wait as long as it takes, as for what one does alone."""
        return self

    def waited(self) -> float:
        """Returns the seconds that this process has waited for others so far."""
        return 0.0

    def total(self, n: int) -> int:
        """Returns the sum of a whole number over ranks."""
        return sum(told for (told,) in self.tell([n]))

    @property
    def is_first(self) -> bool:
        """Whether this rank is the one that writes."""
        return self.rank == 0


class Alone(Ranks):
    """One process: everything is as it is given."""

    rank, size = 0, 1

    def sum(self, x: Tensor) -> Tensor:
        return x

    def mean(self, x: Tensor, n: int) -> Tensor:
        return x

    def minimum(self, x: Tensor) -> Tensor:
        return x

    def gather(self, rows: Tensor) -> Tensor:
        return rows

    def sum_(self, tensors: Iterable[Tensor]) -> None:
        pass

    def take_first_(self, tensors: Iterable[Tensor]) -> None:
        pass

    def add(self, x: Tensor) -> Tensor:
        return x

    def lend(self, x: Tensor) -> Tensor:
        return x

    def stack(self, x: Tensor) -> Tensor:
        return x.detach().unsqueeze(0)

    def grid(self, columns: int) -> tuple[Ranks, Ranks]:
        return self, self

    def tell(self, numbers: Sequence[int]) -> list[list[int]]:
        return [list(numbers)]

    def share(self, value: Any, source: int = 0) -> Any:
        return value

    def collect(self, value: Any) -> list[Any]:
        return [value]


ALONE = Alone()
"""The ranks of a process that has no others."""
