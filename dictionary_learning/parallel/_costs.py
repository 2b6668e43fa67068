"""What a placement costs on each rank: memory, bytes that are sent, and time, from sizes alone.

The times are of a model of one H200 and NVLink, not measured: they compare placements. Letters: N
tokens of a step, D a width, F latents, K kept, R ranks.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

_PARAMETER_BYTES = 16
"""float32 weight, gradient and Adam's two means."""
_STEP_BYTES = 28
"""Bytes that Adam reads and writes for a parameter."""
_FLOAT_BYTES, _COUNT_BYTES = 4, 8
_FLOPS, _MEMORY_SPEED, _LINK_SPEED = 790e12, 4.3e12, 450e9
"""Of one GPU: bfloat16 products, bytes of its memory, and bytes to others, each for a second."""
_MESSAGES, _MESSAGE_SECONDS = 4, 1e-4
"""Small messages between hosts in each step: numbers of rows, and what was noticed."""


class Sizes(NamedTuple):
    """A dictionary, by its sizes."""

    reads: int
    """Width of the input."""
    writes: int
    """Width of the output."""
    dict_size: int
    k: int

    @property
    def n_parameters(self) -> int:
        """Entries of the encoder, the decoder and their biases."""
        return self.dict_size * (self.reads + self.writes + 1) + self.writes

    def flops(self, n_tokens: int) -> float:
        """Operations of a step: one product to encode, and what few pairs cost."""
        pairs = n_tokens * self.k
        return 2 * n_tokens * self.reads * self.dict_size + 4 * pairs * (self.reads + self.writes)


class Cost(NamedTuple):
    """What the busiest rank needs for a step."""

    placement: str
    memory: int
    """Bytes of weights, gradients, Adam's means, and the activations of a step."""
    sent: int
    """Bytes sent to other ranks."""
    seconds: float

    def tokens_per_second(self, n_tokens: int) -> float:
        """Returns the speed, where tracing the model takes no longer."""
        return n_tokens / self.seconds


def costs(
    dictionaries: Sequence[Sizes], n_tokens: int, n_ranks: int, row_bytes: int, memory: int | None = None
) -> list[Cost]:
    """Returns the cost of each placement, the best one first.

    Args:
        dictionaries: What is trained.
        n_tokens: Tokens of a step, of all ranks together.
        n_ranks: The ranks.
        row_bytes: Bytes of a token's activations at all sites.
        memory: Bytes of a rank's device: what needs more comes last.
    """
    own, others = math.ceil(n_tokens / n_ranks), n_ranks - 1
    parameters = sum(one.n_parameters for one in dictionaries)
    # a ring sends each byte of a sum to the next rank twice, but for the rank's own part
    counted = _FLOAT_BYTES * parameters + _COUNT_BYTES * sum(one.dict_size for one in dictionaries)
    data = _cost("data", dictionaries, own, own * row_bytes, 2 * counted * others // n_ranks)
    # dictionaries are given to ranks in turn; each rank sends its rows to all others
    parts = [dictionaries[rank::n_ranks] for rank in range(n_ranks)]
    exchanged = others * own * row_bytes
    spread = [_cost("dictionary", part, n_tokens, n_tokens * row_bytes, exchanged) for part in parts if part]
    busiest = Cost("dictionary", max(c.memory for c in spread), exchanged, max(c.seconds for c in spread))
    found = [data, busiest, _of_latents(dictionaries, n_tokens, n_ranks, row_bytes)]
    return sorted(found, key=lambda cost: (memory is not None and cost.memory > memory, cost.seconds))


def _of_latents(dictionaries: Sequence[Sizes], n_tokens: int, n_ranks: int, row_bytes: int) -> Cost:
    """Returns the cost where each rank has a slice of the latents of every dictionary."""
    others = n_ranks - 1
    parts = [one._replace(dict_size=math.ceil(one.dict_size / n_ranks)) for one in dictionaries]
    # rows, as above; candidates of each token; and sums of what slices decode to, and of b_dec
    candidates = sum(n_tokens * min(one.k, one.dict_size) * _FLOAT_BYTES for one in parts) * others
    sums = sum((n_tokens * one.writes + one.reads) * _FLOAT_BYTES for one in parts) * 2 * others // n_ranks
    sent = others * math.ceil(n_tokens / n_ranks) * row_bytes + candidates + sums
    outputs = 2 * n_tokens * _FLOAT_BYTES * max(one.writes for one in dictionaries)
    return _cost("latent", parts, n_tokens, n_tokens * row_bytes + outputs, sent)


def _cost(name: str, dictionaries: Sequence[Sizes], n_tokens: int, activations: int, sent: int) -> Cost:
    parameters = sum(one.n_parameters for one in dictionaries)
    seconds = sum(one.flops(n_tokens) for one in dictionaries) / _FLOPS
    seconds += parameters * _STEP_BYTES / _MEMORY_SPEED + sent / _LINK_SPEED + _MESSAGES * _MESSAGE_SECONDS
    return Cost(name, _PARAMETER_BYTES * parameters + activations, sent, seconds)
