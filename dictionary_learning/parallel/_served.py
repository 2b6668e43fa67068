"""The rank that traces: it runs the language model, and serves its data to ranks that train.

Requests of a rank are answered in their order. An error of the data is an answer too: it belongs to
the step that needs these rows, which is not made yet.
"""

import contextlib
import queue
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from dictionary_learning.errors import RankError, Stopped
from dictionary_learning.parallel._requests import Answer, End, Failure, Request, Signal

if TYPE_CHECKING:
    from dictionary_learning.parallel._channel import Channel, Received

_LOOK_SECONDS = 0.2
"""How soon a signal is noticed."""
_OF_DATA = (
    "sample", "expect", "state_dict", "load_state_dict", "find_norm_limits", "set_norm_limits", "reseed",
)  # fmt: skip
"""What may be asked of data; what they do not have gives None."""


@runtime_checkable
class _HasSignal(Protocol):
    @property
    def signal(self) -> int | None: ...


class TracedHere:
    """Data on a rank that only traces them, for others that train.

    Args:
        data: What has `share`, as an `ActivationBuffer`.
        channels: The ranks that train on a share of them.
        inbox: What comes from these.
    """

    def __init__(self, data: Any, channels: "Sequence[Channel]", inbox: "queue.SimpleQueue[Received]"):
        self.data, self._channels, self._inbox = data, channels, inbox
        self._shares: dict[int | None, Any] = {None: data}
        self._open = {channel.peer for channel in channels}
        self._failed: BaseException | None = None
        self._told: int | None = None

    def serve(self, stop: _HasSignal | None = None) -> None:
        """Answers the ranks that train until all of them have ended.

        Args:
            stop: What notices a signal, which is passed on to these ranks.

        Raises:
            RankError: One of them was lost, or ended with an error.
            Interrupted: A signal has stopped them.
        """
        try:
            while self._open:
                self._pass_on(None if stop is None else stop.signal)
                with contextlib.suppress(queue.Empty):
                    self._take(*self._inbox.get(timeout=_LOOK_SECONDS))
            if self._failed is not None:
                raise self._failed
        except BaseException as error:
            for channel in self._channels:
                channel.put(Failure.of(error))
            raise
        finally:
            for channel in self._channels:
                channel.close()

    def _take(self, channel: "Channel", told: Request | End | BaseException) -> None:
        if isinstance(told, BaseException):
            raise self._failed or told
        if isinstance(told, Request) and channel.has_ended:
            return  # rows that were asked for ahead, and are not needed now
        if isinstance(told, Request):
            channel.put(Answer(told.share, self._answer(*told)))
            return
        self._open.discard(channel.peer)
        if told.failure is None:
            return
        error = told.failure.error
        if not isinstance(error, Stopped):  # others have to learn of it, and do not wait for all to end
            said = RankError(f"Rank {channel.peer} ended the run: {type(error).__name__}: {error}")
            raise self._failed or said from error
        self._failed = self._failed or error

    def _answer(self, share: int | None, name: str, arguments: tuple[Any, ...]) -> Any:
        try:
            if name == "share":
                self._shares[share] = self.data.share(*arguments)
                return None
            data = self._shares[share]
            if name == "next":
                return next(data, None)
            if name == "apply":
                (function,) = arguments
                return function(data)
            assert name in _OF_DATA
            method = getattr(data, name, None)
            return None if method is None else method(*arguments)
        except Exception as error:  # noqa: BLE001  (it is raised where the data are used)
            self._failed = self._failed or error
            return Failure.of(error)

    def _pass_on(self, number: int | None) -> None:
        if number is not None and number != self._told:
            self._told = number
            for channel in self._channels:
                channel.put(Signal(int(number)))
