"""What a rank that trains hears from those that trace for it."""

import collections
import queue
import signal
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dictionary_learning.errors import RankError
from dictionary_learning.parallel._requests import Answer, End, Failure, Request, Signal

if TYPE_CHECKING:
    from dictionary_learning.parallel._channel import Channel, Received


class Lines:
    """The channels to ranks that trace, and the answers that came through them.

    Args:
        channels: By the place of the other rank among those that trace.
        inbox: What comes from them.
        n_tracing: All ranks that trace.
    """

    def __init__(self, channels: "Mapping[int, Channel]", inbox: "queue.SimpleQueue[Received]", n_tracing: int):
        self._channels, self._inbox, self.n_tracing = channels, inbox, n_tracing
        self.first = channels[min(channels)]
        self._answers: dict[tuple[int, int | None], collections.deque[Any]] = collections.defaultdict(collections.deque)
        self._lost: BaseException | None = None
        self._is_closed = False
        self.waited = 0.0
        """Seconds that this rank has waited for answers."""

    @property
    def all(self) -> "list[Channel]":
        """All channels."""
        return list(self._channels.values())

    def of_share(self, number: int, of: int) -> "Channel":
        """Returns the channel to the rank that traces a share."""
        return self._channels[number * self.n_tracing // of]

    def ask(self, channel: "Channel", share: int | None, name: str, *arguments: Any) -> None:
        """Sends a request, whose answer is taken later."""
        self._check()
        channel.put(Request(share, name, arguments))

    def answer(self, channel: "Channel", share: int | None) -> Any:
        """Returns the next answer for a share, which it waits for; an error as a `Failure`.

        Raises:
            RankError: The other rank was lost.
        """
        answers, start = self._answers[channel.peer, share], time.monotonic()
        while not answers:
            self._check()
            self._take(*self._inbox.get())
        self.waited += time.monotonic() - start
        return answers.popleft()

    def look(self) -> None:
        """Takes what has come, without waiting."""
        while not self._inbox.empty():
            self._take(*self._inbox.get())
        self._check()

    def close(self, error: BaseException | None) -> None:
        """Tells the ranks that trace that this one has ended."""
        if self._is_closed:
            return
        self._is_closed = True
        for channel in self.all:
            channel.put(End(None if error is None else Failure.of(error)))
        for channel in self.all:
            channel.close()

    def _check(self) -> None:
        if self._lost is not None:
            raise self._lost
        if self._is_closed:
            raise RankError("The ranks that trace these data have ended with the run. Build the data again.")

    def _take(self, channel: "Channel", told: Answer | Signal | Failure | BaseException) -> None:
        if isinstance(told, Answer):
            self._answers[channel.peer, told.share].append(told.value)
        elif isinstance(told, Signal):
            signal.raise_signal(told.number)  # as if this process had got it: so all ranks stop at one step
        else:
            self._lost = self._lost or (told.error if isinstance(told, Failure) else told)
