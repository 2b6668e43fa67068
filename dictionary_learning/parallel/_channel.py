"""A connection of two ranks, over which both send whenever they have something.

A thread sends and another receives, so that neither rank waits for the other to ask. Each direction
has a group of its own. A rank that has nothing to send says from time to time that it is alive; one
that is not heard of for the timeout is lost.
"""

import contextlib
import queue
import threading
from typing import Any, NamedTuple

import torch.distributed as dist

from dictionary_learning.errors import RankError
from dictionary_learning.parallel._launch import timeout
from dictionary_learning.parallel._messages import NOTHING, Message, receive, send
from dictionary_learning.parallel._requests import End

_ALIVE_EVERY = 0.25
"""Part of the timeout after which a silent rank says that it is alive."""
_GOODBYE_SECONDS = 10
"""How long a rank waits for the last message of another one."""


class Received(NamedTuple):
    """What came through a channel; an error where the other rank is lost."""

    channel: "Channel"
    value: Any


class Channel:
    """Messages to another rank and from it.

    Args:
        peer: The other rank, by its number in the job.
        outward: The group in which this rank sends.
        inward: The group in which it receives.
        inbox: Where what is received goes, with that of other channels.
    """

    def __init__(self, peer: int, outward: Any, inward: Any, inbox: "queue.SimpleQueue[Received]"):
        self.peer, self._outward, self._inward, self._inbox = peer, outward, inward, inbox
        self._outbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._pause = timeout().total_seconds() * _ALIVE_EVERY
        self._is_closed = False
        self.has_ended = False
        """Whether the other rank has said that it ends; what it has asked before may wait still."""
        # as daemons: a rank that fails does not wait for others to end
        self._threads = [
            threading.Thread(target=work, name=f"rank {peer}", daemon=True) for work in (self._send, self._receive)
        ]
        for thread in self._threads:
            thread.start()

    def put(self, value: Any) -> None:
        """Sends a value, soon. Its tensors must not change."""
        self._outbox.put(Message.of(value))

    def close(self) -> None:
        """Sends what is left, and waits until the other rank has closed its end too."""
        if not self._is_closed:
            self._is_closed = True
            self._outbox.put(None)
        for thread in self._threads:
            thread.join(_GOODBYE_SECONDS)

    def _send(self) -> None:
        # a connection that breaks is noticed, and told, by the thread that receives
        with contextlib.suppress(RuntimeError, ValueError):
            while True:
                try:
                    message = self._outbox.get(timeout=self._pause)
                except queue.Empty:
                    message = NOTHING
                send(Message.of(_END) if message is None else message, self.peer, self._outward)
                if message is None:
                    return

    def _receive(self) -> None:
        try:
            while True:
                value = receive(self.peer, self._inward)
                if isinstance(value, str) and value == _END:
                    return
                self.has_ended |= isinstance(value, End)
                if value is not NOTHING:
                    self._inbox.put(Received(self, value))
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            self._inbox.put(
                Received(
                    self,
                    RankError(
                        f"Rank {dist.get_rank()} of {dist.get_world_size()} has lost rank {self.peer}, which has ended "
                        f"or not answered in time ({reason}). Look for its error above; a run with checkpoints goes "
                        "on with resume."
                    ),
                )
            )


_END = "the end"
