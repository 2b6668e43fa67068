"""What ranks that train and ranks that trace tell each other."""

import contextlib
import pickle
from collections.abc import Mapping
from typing import Any, NamedTuple

from dictionary_learning.errors import ConfigError, DictionaryLearningError, RankError, Stopped


class Facts(NamedTuple):
    """What ranks that train know of data that are elsewhere."""

    sites: tuple[Any, ...]
    widths: Mapping[Any, int]
    filter: Any
    out_batch_size: int
    activation_buffer_size: int
    n_bytes: int
    """Bytes of the rows of a full buffer."""
    model_name: str | None
    model_bytes: int


class Request(NamedTuple):
    """What a rank that trains asks of a share of the data; of all of them, where it is None."""

    share: int | None
    name: str
    arguments: tuple[Any, ...]


class Answer(NamedTuple):
    """What a share of the data gave."""

    share: int | None
    value: Any


class Failure(NamedTuple):
    """An error, in place of a value."""

    error: BaseException

    @classmethod
    def of(cls, error: BaseException) -> "Failure":
        """Returns an error as another process can read it: those of this package as they are."""
        if isinstance(error, (DictionaryLearningError, Stopped)):
            with contextlib.suppress(Exception):
                return cls(pickle.loads(pickle.dumps(error)))
        return cls(RankError(f"Another rank has failed: {type(error).__name__}: {error}"))


class Signal(NamedTuple):
    """A signal that a rank got, which is for all of them."""

    number: int


class End(NamedTuple):
    """The last request of a rank that trains, with the error that ended it."""

    failure: Failure | None


def facts_of(data: Any) -> Facts:
    """Returns what other ranks know of data.

    Raises:
        ConfigError: They cannot be traced for other ranks.
    """
    kind, model = type(data).__name__, getattr(data, "model", None)
    if model is None or not hasattr(data, "share"):
        raise ConfigError(
            f"Got tracing_ranks with a {kind}, for which no language model runs. Give an ActivationBuffer, or leave "
            "tracing_ranks out."
        )
    if not hasattr(data, "out_batch_size"):
        raise ConfigError(
            f"Got tracing_ranks with a {kind}. Rows of an ActivationBuffer are sent to ranks that train; whole "
            "contexts stay beside their model, which computes a loss of them. Leave tracing_ranks out."
        )
    modules = [getattr(one, "module", None) for one in getattr(model, "models", {"": model}).values()]
    weights = {id(p): p.nbytes for module in modules if module is not None for p in module.parameters()}
    return Facts(
        tuple(data.sites),
        dict(data.widths),
        data.filter,
        data.out_batch_size,
        data.activation_buffer_size,
        data.n_bytes,
        getattr(model, "known_name", None),
        sum(weights.values()),
    )
