"""Examples that are no text: images, tensors, or whatever else a model is called with.

An `ExampleStream` takes a `TokenStream`'s place: it serves batches that unpack into what `TracedModel.capture` and `run` take. What
turns examples into a model's inputs is a function, as an image processor:

    stream = ExampleStream(images, lambda images: processor(images, return_tensors="pt"), ctx_len=197)
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from dictionary_learning.errors import ConfigError, DataError

Feed = Callable[[list[Any]], Any]
"""Returns what the model is called with for some examples: a mapping, a tuple, or a tensor."""


class ExampleBatch(NamedTuple):
    """Examples as a model takes them: `inputs, attention_mask = batch`."""

    inputs: Mapping[str, Any] | tuple[Any, ...]
    """What the model is called with, by name or by position."""
    attention_mask: Bool[Tensor, "batch ctx"] | None = None
    """Which positions count; None where all do."""

    @property
    def n_examples(self) -> int:
        """How many there are."""
        values = self.inputs.values() if isinstance(self.inputs, Mapping) else self.inputs
        return next(len(value) for value in values if isinstance(value, Tensor) and value.ndim)


class ExampleSource:
    """Examples, one after another.

    Args:
        data: the examples; where it has a length and numbers, it is read from any place on.
        name: what it is called in configs and errors.
        seed: reads the examples in a random order, another in each epoch; None as they stand.

    Raises:
        ConfigError: an order was asked for, and the data has no numbers.
    """

    def __init__(self, data: Iterable[Any], name: str, seed: int | None = None):
        self.data, self.name, self.seed = data, name, seed
        self.position, self.epoch = 0, 0
        self.is_indexed = hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, Mapping)
        if seed is not None and not self.is_indexed:
            raise ConfigError(
                f"Got seed={seed} for {name}, which can only be read in its own order. Give a list or a data set with a length."
            )
        self._examples: Iterator[Any] | None = None

    @property
    def repeatable(self) -> bool:
        """Whether the examples can be read again."""
        return iter(self.data) is not self.data if not self.is_indexed else True

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._examples is None:
            self._examples = self._from(self.position)
        example = next(self._examples)
        self.position += 1
        return example

    def go_to(self, position: int, epoch: int) -> None:
        """Goes to an example of an epoch.

        Raises:
            DataError: examples were read already, and cannot be read again.
        """
        if self._examples is not None and not self.repeatable:
            raise DataError(f"{self.name} can be read only once. Give a list or a data set to read it again.")
        self.position, self.epoch, self._examples = position, epoch, None

    def _from(self, position: int) -> Iterator[Any]:
        if not self.is_indexed:
            return itertools.islice(iter(self.data), position, None)
        data: Any = self.data
        order: Sequence[int] = range(len(data))
        if self.seed is not None:
            generator = torch.Generator().manual_seed(self.seed + self.epoch)
            order = torch.randperm(len(data), generator=generator).tolist()
        return (data[n] for n in order[position:])


class ExampleStream:
    """Batches of examples, as many at a time as are asked for; it has the interface of a `TokenStream`.

    Args:
        data: the examples: a list, a data set, or anything that can be iterated over.
        feed: turns a list of examples into what the model is called with. A tensor "attention_mask" in a mapping, of one row for each
            example and ctx_len columns, says which positions count.
        ctx_len: positions in an example: patches and class token of an image, or 1 (`TracedModel.positions` finds it).
        name: what the data is called in configs and errors.
        seed: reads the examples in a random order, another in each epoch; None as they stand.

    Raises:
        ConfigError: ctx_len is below 1, or an order was asked for where there is none.
    """

    pack = False
    """Examples are not joined."""
    add_special_tokens = False
    special_ids: tuple[int, ...] = ()
    """No position stands for itself alone, as BOS does."""

    def __init__(
        self,
        data: Iterable[Any],
        feed: Feed,
        *,
        ctx_len: int = 1,
        name: str | None = None,
        seed: int | None = None,
    ):
        if ctx_len < 1:
            raise ConfigError(f"Got ctx_len={ctx_len}; an example has at least one position.")
        self.source = ExampleSource(data, name or f"examples ({type(data).__name__})", seed)
        self.feed, self.ctx_len = feed, ctx_len

    def take(self, n: int) -> ExampleBatch | None:
        """Returns the next n examples, fewer at the end of the data, or None after it.

        Raises:
            DataError: the function that feeds them gave no inputs for them.
        """
        examples = list(itertools.islice(self.source, n))
        if not examples:
            return None
        fed = self.feed(examples)
        inputs = (fed,) if isinstance(fed, Tensor) else dict(fed) if isinstance(fed, Mapping) else fed
        values = list(inputs.values()) if isinstance(inputs, dict) else inputs
        if not isinstance(values, (list, tuple)) or not any(
            isinstance(v, Tensor) and len(v) == len(examples) for v in values
        ):
            raise DataError(
                f"The function that feeds {self.source.name} gave a {type(fed).__name__} for {len(examples)} examples; a mapping of "
                f"keyword inputs, a tuple or a tensor is needed, with {len(examples)} rows. Check what it returns for a list."
            )
        return ExampleBatch(inputs if isinstance(inputs, dict) else tuple(inputs), self._mask(inputs, len(examples)))

    def batches(self, n: int) -> Iterator[ExampleBatch]:
        """Yields batches of n examples until the data ends."""
        while (batch := self.take(n)) is not None:
            yield batch

    def restart(self) -> None:
        """Begins again at the first example; in another order, where it is random.

        Raises:
            DataError: the data can be read only once.
        """
        self.source.go_to(0, self.source.epoch + 1)

    def state_dict(self) -> dict[str, Any]:
        """Returns the position, as plain data."""
        return {"name": self.source.name, "position": self.source.position, "epoch": self.source.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a position: the next example is the one that would have come next.

        Raises:
            DataError: the state is of other data, or this was read from and can be read only once.
        """
        if state["name"] != self.source.name:
            raise DataError(
                f"The state is of '{state['name']}', and this data is '{self.source.name}'. Give the same data."
            )
        self.source.go_to(state["position"], state["epoch"])

    def _mask(self, inputs: Any, n_examples: int) -> Bool[Tensor, "batch ctx"] | None:
        mask = inputs.get("attention_mask") if isinstance(inputs, dict) else None
        if not isinstance(mask, Tensor) or tuple(mask.shape) != (n_examples, self.ctx_len):
            return None
        return mask.bool()
