"""Ranks that only trace a language model, and others that train on what they send."""

import logging
import queue
from typing import Any

import torch.distributed as dist

from dictionary_learning._plain import as_bytes
from dictionary_learning.parallel._channel import Channel, Received
from dictionary_learning.parallel._division import n_shares, overlapping
from dictionary_learning.parallel._elsewhere import TracedElsewhere, n_sent_ahead
from dictionary_learning.parallel._launch import timeout
from dictionary_learning.parallel._lines import Lines
from dictionary_learning.parallel._processes import Processes
from dictionary_learning.parallel._ranks import ALONE, Ranks
from dictionary_learning.parallel._requests import Answer, Facts, Failure, facts_of
from dictionary_learning.parallel._served import TracedHere

logger = logging.getLogger(__name__)


def traced_apart(data: Any, tracing_ranks: int, world: Ranks) -> TracedHere | TracedElsewhere:
    """Returns data for the last ranks, which only trace them, or a view of them for the others.

    Raises:
        ConfigError: The data cannot be traced for other ranks.
    """
    n_training = world.size - tracing_ranks
    training, inbox = _group_of_training(n_training), queue.SimpleQueue[Received]()
    channels: dict[int, Channel] = {}
    # gloo: rows go through main memory, also between GPUs
    there, back = (dist.new_group(timeout=timeout(), backend="gloo") for _ in range(2))
    for first, second in overlapping(n_training, tracing_ranks):
        if world.rank == first:
            channels[second] = Channel(n_training + second, there, back, inbox)
        elif world.rank == n_training + second:
            channels[first] = Channel(first, back, there, inbox)
    if training is None:
        return _here(data, list(channels.values()), inbox)
    if world.is_first and getattr(data, "model", None) is not None:
        logger.warning("A rank that trains has a language model, which it does not use: give a function that loads it.")
    lines = Lines(channels, inbox, tracing_ranks)
    found: list[Any] = [lines.answer(channel, None) for channel in channels.values()]
    for facts in found:
        if isinstance(facts, Failure):
            lines.close(None)
            raise facts.error
    if world.is_first:
        _say(found[0], n_training, tracing_ranks)
    return TracedElsewhere(training, lines, found[0])


def _group_of_training(n_training: int) -> Ranks | None:
    """Returns the ranks that train; None on one that traces."""
    group = dist.new_group(list(range(n_training)), timeout=timeout()) if n_training > 1 else None
    if dist.get_rank() >= n_training:
        return None
    return ALONE if group is None else Processes(group)


def _here(data: Any, channels: list[Channel], inbox: "queue.SimpleQueue[Received]") -> TracedHere:
    try:
        built = data() if callable(data) else data
        facts = facts_of(built)
    except BaseException as error:
        for channel in channels:
            channel.put(Answer(None, Failure.of(error)))
        for channel in channels:
            channel.close()
        raise
    for channel in channels:
        channel.put(Answer(None, facts))
    return TracedHere(built, channels, inbox)


def _say(facts: Facts, n_training: int, n_tracing: int) -> None:
    """Logs which ranks trace, and what both kinds hold of the data."""
    shares = n_shares(n_training + n_tracing, n_tracing)
    rows = facts.n_bytes * facts.out_batch_size // max(facts.activation_buffer_size, 1)  # of a batch
    logger.info(
        "Of %d ranks, the last %d trace: each holds the model (%s) and %s of rows. The others train: each holds up to "
        "%s of rows in main memory, which were sent ahead.",
        n_training + n_tracing, n_tracing, as_bytes(facts.model_bytes), as_bytes(shares // n_tracing * facts.n_bytes),
        as_bytes(shares // n_training * n_sent_ahead(facts) * rows),
    )  # fmt: skip
