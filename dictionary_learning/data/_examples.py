"""Examples that are not text: images, tensors, or whatever else a model reads.

An `ExampleStream` replaces a `TokenStream`: its batches unpack into the arguments of
`TracedModel.capture` and `run`. A function, such as an image processor, turns examples into inputs:

    stream = ExampleStream(images, lambda images: processor(images, return_tensors="pt"),
    ctx_len=197)
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from dictionary_learning._border import checked, is_foreign, said
from dictionary_learning._brief import brief
from dictionary_learning.data._once import OnceReader
from dictionary_learning.data._reading import MapReader, Mark, Reader, SequentialReader
from dictionary_learning.data._source import Source
from dictionary_learning.errors import ConfigError, DataError

Collate = Callable[[list[Any]], Any]
"""Turns some examples into the inputs of the model: a mapping, a tuple, or a tensor."""


class ExampleBatch(NamedTuple):
    """Inputs of a model: `inputs, attention_mask = batch`."""

    inputs: Mapping[str, Any] | tuple[Any, ...]
    """The arguments of the model, by name or by position."""
    attention_mask: Bool[Tensor, "batch ctx"] | None = None
    """The positions that count; None for all."""

    __repr__ = brief

    @property
    def n_examples(self) -> int:
        """The number of examples."""
        values = self.inputs.values() if isinstance(self.inputs, Mapping) else self.inputs
        return next(len(value) for value in values if isinstance(value, Tensor) and value.ndim)


@dataclasses.dataclass(frozen=True)
class ShuffledReader(Reader):
    """Examples in a random order, a new one in each epoch. The mark is the number read."""

    data: Any
    seed: int

    def read(self, mark: Mark = None, epoch: int = 0) -> Iterator[tuple[Any, Mark]]:
        generator = torch.Generator().manual_seed(self.seed + epoch)
        order = torch.randperm(len(self.data), generator=generator).tolist()
        yield from ((self.data[order[n]], n + 1) for n in range(mark or 0, len(order)))


class ExampleStream:
    """Batches of examples, with the interface of a `TokenStream`.

    Args:
        data: The examples: a list, a data set, or any iterable.
        collate: Turns a list of examples into the inputs of the model. If it returns a mapping with
            a tensor "attention_mask" (examples, ctx_len), that mask says which positions count.
        ctx_len: Positions in an example: the patches and the class token of an image, or 1.
            `TracedModel.positions` finds the number.
        name: The name of the data in configs and errors.
        seed: The seed of a random order, a new one in each epoch; None keeps the order.

    Raises:
        ConfigError: ctx_len is below 1, or the data cannot be read in a random order.
    """

    pack = False
    add_special_tokens = False
    special_ids: tuple[int, ...] = ()

    @checked()
    def __init__(
        self,
        data: Iterable[Any],
        collate: Collate,
        *,
        ctx_len: int = 1,
        name: str | None = None,
        seed: int | None = None,
    ):
        name = name or f"examples ({type(data).__name__})"
        examples: Any = data
        if not (hasattr(data, "__getitem__") and hasattr(data, "__len__")) or isinstance(data, Mapping):
            if seed is not None:
                raise ConfigError(
                    f"Got seed={seed} for {name}, which can only be read in its own order. Pass a list or a data set "
                    "with a length."
                )
            is_once = isinstance(data, Iterator)
            reader: Reader = OnceReader(data, name) if is_once else SequentialReader(lambda: iter(data))
        elif seed is None:
            # one after another: many at once may need more memory than there is
            reader = MapReader(lambda numbers: (examples[n] for n in numbers), range(len(examples)))
        else:
            reader = ShuffledReader(examples, seed)
        self.source = Source(reader, name)
        self.collate, self.ctx_len = collate, ctx_len

    @checked()
    def take(self, n: int) -> ExampleBatch | None:
        """Returns the next n examples, fewer at the end of the data, and None after it.

        Raises:
            DataError: The function returned no inputs, or not one row for each example.
        """
        examples = list(itertools.islice(self.source, n))
        if not examples:
            return None
        try:
            made = self.collate(examples)
        except Exception as error:
            if not is_foreign(error):
                raise
            message = f"`collate` failed on {len(examples)} examples of {self.source.name}: {said(error)}"
            raise DataError(f"{message} Give examples of one size, such as images, or one in a batch.") from error
        inputs = (made,) if isinstance(made, Tensor) else dict(made) if isinstance(made, Mapping) else made
        values = list(inputs.values()) if isinstance(inputs, dict) else inputs
        is_several = isinstance(values, (list, tuple))
        if not is_several or not any(isinstance(v, Tensor) and v.shape[:1] == (len(examples),) for v in values):
            raise DataError(
                f"The function that feeds {self.source.name} gave a {type(made).__name__} for {len(examples)} "
                f"examples; a mapping of keyword inputs, a tuple or a tensor is needed, with {len(examples)} rows. "
                "Check what it returns for a list."
            )
        mask = inputs.get("attention_mask") if isinstance(inputs, dict) else None
        if not isinstance(mask, Tensor) or mask.shape != (len(examples), self.ctx_len):
            mask = None
        return ExampleBatch(
            inputs if isinstance(inputs, dict) else tuple(inputs), None if mask is None else mask.bool()
        )

    @checked()
    def batches(self, n: int) -> Iterator[ExampleBatch]:
        """Yields the rest of the data, n examples at a time."""
        while (batch := self.take(n)) is not None:
            yield batch

    def restart(self) -> None:
        """Returns to the first example; a random order is drawn anew. See `Source.restart`."""
        self.source.restart()

    def state_dict(self) -> dict[str, Any]:
        """Returns the position as plain data."""
        return self.source.state_dict()

    @checked(wraps=DataError)
    def release(self, state: dict[str, Any]) -> None:
        """Says that no state before this one is loaded again; see `Source.release`."""
        self.source.release(state)

    @checked(wraps=DataError)
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Moves to a position; see `Source.load_state_dict`."""
        # states of older versions have no mark, which is the position anyway
        self.source.load_state_dict({**state, "mark": state["position"]})
