"""What a checkpoint costs: ms of a step with checkpoints beside that of a step without, runs in turn.

About 3 minutes on 2 cores. The state is 130 MB: weights and both moments of Adam, and 4,096 rows of data.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from common import BATCH, DICT_SIZE, K, machine, table

from dictionary_learning import TrainerTopK, trainSAE

WIDTH, STEPS = 576, 120


class Clock:
    """A logger that notes when each step ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def log(self, figures: object, step: int, tokens: int) -> None:
        """Notes the time."""
        self.times.append(time.perf_counter())

    def close(self) -> None:
        """Does nothing."""


def step_ms(every: int | None) -> tuple[float, float]:
    """Returns the mean ms of a step after the first 10, and the longest."""
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(BATCH, WIDTH, generator=generator) for _ in range(4)]
    data = (batches[n % 4] for n in range(STEPS))
    clock, config = Clock(), TrainerTopK.Config(k=K, dict_size=DICT_SIZE)
    with tempfile.TemporaryDirectory() as folder:
        trainSAE(
            data, config, STEPS, save_dir=Path(folder) / "run", checkpoint_steps=every, log_steps=1, loggers=[clock],
            progress=False, device="cpu",
        )  # fmt: skip
    steps = [b - a for a, b in zip(clock.times[10:], clock.times[11:], strict=False)]
    return statistics.fmean(steps) * 1e3, max(steps) * 1e3


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, nargs="+", default=[20, 50])
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    step_ms(None)  # warm up
    found: dict[int | None, list[tuple[float, float]]] = {every: [] for every in (None, *arguments.every)}
    for _ in range(arguments.repeats):
        for every in found:
            found[every].append(step_ms(every))
    without = statistics.median(ms for ms, _ in found[None])
    rows = [("machine", machine()), ("a step without checkpoints", f"{without:.1f} ms")]
    for every in arguments.every:
        ms = statistics.median(ms for ms, _ in found[every])
        longest = statistics.median(longest for _, longest in found[every])
        rows.append(
            (f"a checkpoint every {every} steps", f"{ms:.1f} ms, {ms / without:.3f} times; longest {longest:.0f}")
        )
    print(table(rows))


if __name__ == "__main__":
    main()
