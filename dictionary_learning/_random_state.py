"""The state of all random numbers that a run may draw from the generators of the process.

The package draws from generators of its own. What others write, as a method's objective, a class of
the user's or `generate` of transformers, may draw from those of the process.
"""

import contextlib
import random
import threading
from collections.abc import Generator, Mapping
from typing import Any

import numpy as np
import torch

_generators = threading.RLock()
"""Held by the block that has the generators of the process for itself."""


@contextlib.contextmanager
def kept_random_state() -> Generator[None]:
    """Puts all random numbers back where they were when its `with` block ends."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)


@contextlib.contextmanager
def seeded(*seeds: int) -> Generator[None]:
    """Seeds all random numbers inside a block, by one number or by several together.

    Afterwards they are where they were. Such blocks of several threads wait for each other.
    """
    seed = seeds[0] % 2**64
    if len(seeds) > 1:
        parts = np.random.SeedSequence([one % 2**64 for one in seeds]).generate_state(1, np.uint64)
        seed = int(parts[0])
    with _generators, kept_random_state():
        torch.default_generator.manual_seed(seed)
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed_all(seed)
        if torch.backends.mps.is_available():
            torch.mps.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        yield


def random_state() -> dict[str, Any]:
    """Returns the state of the random numbers of torch, Python and NumPy."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002  (a user's own method may draw from it)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "mps": [torch.mps.get_rng_state()] if torch.backends.mps.is_available() else [],
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Goes back to a state."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])
    if state.get("mps") and torch.backends.mps.is_available():  # older checkpoints have none
        torch.mps.set_rng_state(state["mps"][0])
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
