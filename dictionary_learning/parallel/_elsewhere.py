"""Data whose language model runs on other ranks, as the ranks that train on them see them.

A share of the data is asked for batches before they are needed: for as many as half of its shuffle
buffer holds, so that the model fills the buffer while earlier rows are trained on. What is asked
next, such as its state, is answered after these. So the state of a share is that of the data where
they are, and the batches before it that were sent ahead.
"""

import functools
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from dictionary_learning.errors import ConfigError, RankError
from dictionary_learning.parallel._division import n_shares
from dictionary_learning.parallel._lines import Lines
from dictionary_learning.parallel._ranks import Ranks
from dictionary_learning.parallel._requests import Facts, Failure

logger = logging.getLogger(__name__)

_LEAST_AHEAD = 2
"""Batches that are asked for before they are needed, at least."""


class TracedElsewhere:
    """Data, or a share of them, that are traced on other ranks.

    Its rows are those that the same data would give here. There is no model here: what is needed of
    it is asked where it is.

    Args:
        training: The ranks that train.
        lines: The ranks that trace.
        facts: What is known of the data.
        number: A share of the data; None for all of them.
        of: The number of shares.
    """

    def __init__(self, training: Ranks, lines: Lines, facts: Facts, number: int | None = None, of: int = 1):
        self.training, self._lines, self._facts, self._number = training, lines, facts, number
        self._channel = lines.first if number is None else lines.of_share(number, of)
        self.sites, self.widths, self.filter = facts.sites, facts.widths, facts.filter
        self.out_batch_size, self.n_bytes = facts.out_batch_size, facts.n_bytes
        self.activation_buffer_size = facts.activation_buffer_size
        self.model = _ModelElsewhere(facts.model_name, self)
        self.n_ahead = n_sent_ahead(facts)
        self.device: torch.device | None = None
        """Where batches go; by default they stay in main memory."""
        self._ahead: list[Any] = []  # batches that have come, and are served next
        self._n_asked = 0  # batches that were asked for, and have not come
        self._expected: int | None = None  # batches that will still be served
        self._has_ended = False
        self._known: tuple[Any, Any] | None = None
        self._start = time.monotonic()

    def __enter__(self) -> Ranks:
        """Returns the ranks that train; those that trace end with the `with` block."""
        return self.training

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._lines.close(error)
        seconds = time.monotonic() - self._start
        logger.info("Training waited %.1f of %.1f s for the ranks that trace.", self._lines.waited, seconds)

    def __iter__(self) -> "TracedElsewhere":
        return self

    def __next__(self) -> Tensor | Mapping[Any, Tensor]:
        self._lines.look()
        self._ask_ahead()
        if not self._ahead and self._n_asked:
            self._receive()
        if not self._ahead:
            raise StopIteration
        batch = _value(self._ahead[0])
        self._ahead = self._ahead[1:]
        self._expected = None if self._expected is None else max(self._expected - 1, 0)
        self._ask_ahead()
        if self.device is None:
            return batch
        return batch.to(self.device) if isinstance(batch, Tensor) else {s: x.to(self.device) for s, x in batch.items()}

    def share(self, number: int, of: int) -> "TracedElsewhere":
        """Returns one of `of` shares, from the rank that traces it."""
        self.check_shares(of)
        part = TracedElsewhere(self.training, self._lines, self._facts, number, of)
        part.device = self.device
        part._call("share", number, of)
        return part

    def check_shares(self, n: int) -> None:
        """Checks that the ranks that trace can divide the shares of a run.

        Raises:
            ConfigError: They cannot.
        """
        if n % self._lines.n_tracing:
            raise ConfigError(
                f"The run has {n} shares of its data, which {self._lines.n_tracing} ranks that trace cannot divide. "
                f"Give tracing_ranks that divide {n}."
            )

    @property
    def n_shares(self) -> int:
        """Shares of the data of a run that starts."""
        return n_shares(self.training.size + self._lines.n_tracing, self._lines.n_tracing)

    @property
    def sent_ahead(self) -> list[Tensor | Mapping[Any, Tensor]]:
        """Batches that have come, and are served next: before those that follow the state."""
        return [batch for batch in self._ahead if not isinstance(batch, Failure)]

    def expect(self, n_batches: int | None) -> None:
        """Says how many batches will be taken from now on."""
        self._receive_all()
        self._expected = n_batches
        self._call("expect", None if n_batches is None else max(n_batches - len(self._ahead), 0))

    def sample(self, n: int) -> Any:
        """Returns up to n rows that will be served later."""
        return self._call("sample", n)

    def find_norm_limits(self) -> dict[str, float] | None:
        """Returns the norm limits that the first contexts give, by site; None without a limit."""
        return self._call("find_norm_limits")

    def set_norm_limits(self, limits: dict[str, float]) -> None:
        """Sets the norm limits, before rows are read with others."""
        self._call("set_norm_limits", limits)

    def reseed(self, seed: int) -> None:
        """Sets the seed of the shuffle, before rows are read."""
        self._call("reseed", seed)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state after the batches in `sent_ahead`."""
        return self._call("state_dict")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a state, and forgets what was sent ahead."""
        self._call("load_state_dict", state)
        self._ahead, self._has_ended, self._expected = [], False, None

    def ask(self, function: Callable[[Any], Any]) -> Any:
        """Returns what a function, which has a name in its module, gives for the data."""
        return self._call("apply", function)

    @property
    def config(self) -> Any:
        """Everything that determines the rows and their order."""
        return self._now()[0]

    @property
    def norm_limits(self) -> Any:
        """The largest norm that is included at each site."""
        return self._now()[1]

    def close(self) -> None:
        """Does nothing: memory of the rows is freed where they are."""

    def _now(self) -> tuple[Any, Any]:
        try:
            found = self.ask(_config_and_limits)
        except RankError:  # what a run that has ended or failed saves, it saves with what was known
            if self._known is None:
                raise
            return self._known
        self._known = found
        return found

    def _ask_ahead(self) -> None:
        held = len(self._ahead) + self._n_asked
        room = self.n_ahead if self._expected is None else min(self.n_ahead, self._expected)
        # also more than were expected are served, but not ahead
        for _ in range(0 if self._has_ended else max(room, 1) - held):
            self._lines.ask(self._channel, self._number, "next")
            self._n_asked += 1

    def _receive(self) -> None:
        batch = self._lines.answer(self._channel, self._number)
        self._n_asked -= 1
        if batch is None:
            self._has_ended = True
        else:
            self._ahead.append(batch)

    def _receive_all(self) -> None:
        while self._n_asked:
            self._receive()

    def _call(self, name: str, *arguments: Any) -> Any:
        """Returns what the data answer: of all of them, on each rank that has a part."""
        self._receive_all()  # they are answered first
        channels = [self._channel] if self._number is not None else self._lines.all
        for channel in channels:
            self._lines.ask(channel, self._number, name, *arguments)
        first, *_ = [_value(self._lines.answer(channel, self._number)) for channel in channels]
        return first


class _ModelElsewhere:
    """What is asked of a language model while dictionaries are built."""

    def __init__(self, name: str | None, data: TracedElsewhere):
        self.known_name, self._data = name, data

    def sites(self, named: Any) -> Any:
        return self._data.ask(functools.partial(_of_model, "sites", named))

    def n_heads(self, site: Any) -> Any:
        return self._data.ask(functools.partial(_of_model, "n_heads", site))


def n_sent_ahead(facts: Facts) -> int:
    """Returns how many batches of a share are asked for before they are needed."""
    return max(facts.activation_buffer_size // (2 * facts.out_batch_size), _LEAST_AHEAD)


def _value(answer: Any) -> Any:
    if isinstance(answer, Failure):
        raise answer.error
    return answer


def _config_and_limits(data: Any) -> tuple[Any, Any]:
    return data.config, data.norm_limits


def _of_model(name: str, argument: Any, data: Any) -> Any:
    return getattr(data.model, name)(argument)
