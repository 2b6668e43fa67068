"""One training step of TopK, everything included, against one encode product of the same shape in the same process.

About 1 minute on 2 cores.
"""

import argparse
import statistics
import time

import torch
from common import BATCH, DICT_SIZE, K, machine, median_ms, table

from dictionary_learning import TrainerTopK, ops


def step_ms(dim: int, dict_size: int, k: int, batch: int, steps: int) -> float:
    """Returns the median time of a step on random activations that are not centered."""
    generator = torch.Generator().manual_seed(0)
    trainer = TrainerTopK(activation_dim=dim, dict_size=dict_size, k=k, steps=1000, device="cpu")
    mean = torch.randn(dim, generator=generator)
    times = []
    for step in range(steps + 3):
        x = torch.randn(batch, dim, generator=generator) + mean
        start = time.perf_counter()
        trainer.update(step, x)
        times.append(time.perf_counter() - start)
    return statistics.median(times[3:]) * 1e3


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    steps = parser.parse_args().steps
    rows = [("machine", machine())]
    for dim, dict_size, k, batch in ((576, DICT_SIZE, K, BATCH), (768, 32_768, 64, 2048)):
        x, W = torch.randn(batch, dim), torch.randn(dict_size, dim)
        product = median_ms(lambda x=x, W=W: x @ W.T)
        fast = step_ms(dim, dict_size, k, batch, steps)
        rows.append(
            (
                f"d {dim}, {dict_size} latents, k {k}, batch {batch}",
                f"{fast:.1f} ms, {fast / product:.2f} encode products of {product:.1f} ms",
            )
        )
    with ops.use_backend("reference"):
        dense = step_ms(576, DICT_SIZE, K, BATCH, 5)
    rows.append(("the first shape, dense reference", f"{dense:.1f} ms"))
    print(table(rows))


if __name__ == "__main__":
    main()
