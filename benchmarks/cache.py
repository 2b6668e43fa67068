"""Caches of activations: rows read a second, and what a training step from a cache takes beside one from memory.

Rows of width 576 in bfloat16, written to a temporary folder (about 600 MB); batches of 2,048; the step is TopK with 9,216 latents,
k 32. The step from memory is given the same batches, made before. About 2 minutes on 2 cores.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from common import BATCH, DICT_SIZE, K, machine, table

from dictionary_learning.activations._filters import TokenFilter
from dictionary_learning.activations._reader import Rows
from dictionary_learning.activations.cache import ActivationCache
from dictionary_learning.activations.cache._index import Index
from dictionary_learning.activations.cache._shards import tensors_of, write_shard
from dictionary_learning.activations.cache._store import Store
from dictionary_learning.sites import Site
from dictionary_learning.trainers import TrainerTopK

WIDTH, SHARD, SHARDS = 576, 65_536, 8
SITE = Site("model.layers.10")
FORMS = (
    ("bfloat16", None, torch.bfloat16),
    ("int8", None, torch.int8),
    ("bfloat16, zstd", "zstd", torch.bfloat16),
)


def written(folder: Path, compression: str | None, dtype: torch.dtype) -> None:
    """Writes a cache of random rows."""
    store = Store(folder)
    shards = []
    for number in range(SHARDS):
        x = torch.randn(SHARD, WIDTH, generator=torch.Generator().manual_seed(number))
        place = torch.arange(SHARD)
        suffix = ".zst" if compression else ""
        name = f"shard_{number:05d}.safetensors{suffix}"
        shards.append(write_shard(store, name, tensors_of(Rows({SITE: x}, place, place, place), dtype), compression))
    settings = {
        "sites": {str(SITE): WIDTH},
        "dtype": str(dtype).removeprefix("torch."),
        "compression": compression,
        "model": {"name": "random"},
        "source": "random",
        "ctx_len": 128,
        "rule": TokenFilter().to_dict(),
    }
    Index(settings=settings, shards=tuple(shards)).save(store)


def rows_a_second(folder: Path) -> float:
    """Reads the whole cache once, and returns how many rows came a second."""
    cache = ActivationCache(folder, out_batch_size=BATCH)
    start = time.perf_counter()
    n = sum(len(batch) for batch in cache)
    return n / (time.perf_counter() - start)


def step_ms(batches: Iterator[Any], steps: int) -> list[float]:
    """Trains, and returns what each step took, with what getting its batch took, in milliseconds."""
    trainer = TrainerTopK(activation_dim=WIDTH, dict_size=DICT_SIZE, k=K, steps=10 * steps, device="cpu")
    taken = []
    for step in range(steps + 5):
        start = time.perf_counter()
        trainer.update(step, next(batches).float())
        taken.append((time.perf_counter() - start) * 1e3)
    return taken[5:]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    arguments = parser.parse_args()
    print(machine())
    lines: list[tuple[str, str]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, compression, dtype in FORMS:
            written(folder / name, compression, dtype)
            n_bytes = ActivationCache(folder / name).index.n_bytes
            rates = [rows_a_second(folder / name) for _ in range(3)]
            figures = f"{n_bytes / SHARD / SHARDS:.0f} bytes a row, {statistics.median(rates):,.0f} rows a second"
            lines.append((f"kept as {name}", figures))
        memory, disk = [], []
        in_memory = list(ActivationCache(folder / "bfloat16", out_batch_size=BATCH))
        for _ in range(3):  # in turn, because the machine's speed drifts
            memory += step_ms(iter(in_memory), arguments.steps)
            disk += step_ms(ActivationCache(folder / "bfloat16", out_batch_size=BATCH), arguments.steps)
    a, b = statistics.median(memory), statistics.median(disk)
    lines.append(("a step", f"{a:.1f} ms from memory, {b:.1f} ms from the cache: {b / a:.3f} times as long"))
    print(table(lines))


if __name__ == "__main__":
    main()
