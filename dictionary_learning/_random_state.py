"""The state of all random numbers that a run may draw."""

import contextlib
import random
from collections.abc import Generator, Mapping
from typing import Any

import numpy as np
import torch


@contextlib.contextmanager
def kept_random_state() -> Generator[None]:
    """Puts all random numbers back where they were when its `with` block ends."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)


def random_state() -> dict[str, Any]:
    """Returns the state of the random numbers of torch, Python and NumPy."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002  (a user's own method may draw from it)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Goes back to a state."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
