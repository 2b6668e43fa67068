"""Steps and one float32 encode product in turns, in one process: the smallest time of each, as ratios, on a machine that others use.

--avx2 imitates a CPU without AVX-512 and bfloat16: the variables are set before anything is imported. About 2 minutes on one core.
"""

import argparse
import functools
import os
import sys
import time
from collections.abc import Callable

AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "NUMBA_CPU_NAME": "znver3",
    "NUMBA_CPU_FEATURES": "+avx2,+fma",
}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--avx2", action="store_true")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--six", action="store_true", help="also six dictionaries on one site")
    arguments = parser.parse_args()
    if arguments.avx2 and os.environ.get("ONEDNN_MAX_CPU_ISA") != AVX2["ONEDNN_MAX_CPU_ISA"]:
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **AVX2})

    import torch
    from step import DEAD, SHAPE, batches, build, make_dead

    from dictionary_learning import ops
    from dictionary_learning._hardware import bfloat16_is_fast, keep_freed_memory
    from dictionary_learning._side_by_side import is_worthwhile, side_by_side

    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    dim, dict_size, k, batch = SHAPE
    xs, W, out = batches(dim, batch), torch.randn(dict_size, dim), torch.empty(batch, dict_size)

    def steps(kind: str, backend: str | None = None, n: int = 1, dead: bool = False) -> Callable[[], None]:
        trainers = [build(kind, dim, dict_size, k) for _ in range(n)]
        if dead:
            make_dead(trainers[0], DEAD)

        def step() -> None:
            calls = [functools.partial(one.update, one.step, xs[one.step % len(xs)]) for one in trainers]
            with ops.use_backend(backend):
                if n > 1 and is_worthwhile(xs[0].device):  # as a run does
                    side_by_side(calls)
                    return
                for call in calls:
                    call()

        return step

    timed: dict[str, Callable[[], object]] = {
        "product": lambda: torch.mm(xs[0], W.T, out=out),
        "TopK": steps("top_k"),
        "BatchTopK": steps("batch_top_k"),
        f"TopK, AuxK on {DEAD:.0%} dead latents": steps("top_k", dead=True),
        "TopK, PyTorch alone": steps("top_k", "sparse"),
        "BatchTopK, PyTorch alone": steps("batch_top_k", "sparse"),
        "AuxK, PyTorch alone": steps("top_k", "sparse", dead=True),
    }
    if arguments.six:
        timed["six dictionaries"] = steps("top_k", n=6)
    best = dict.fromkeys(timed, float("inf"))
    for repeat in range(arguments.repeats + 2):
        for name, function in timed.items():
            start = time.perf_counter()
            function()
            if repeat > 1:
                best[name] = min(best[name], time.perf_counter() - start)
    kind = f"{torch.backends.cpu.get_cpu_capability()}, bfloat16 {'fast' if bfloat16_is_fast('cpu') else 'slow'}"
    print(
        f"{kind}, {arguments.threads} threads, torch {torch.__version__}\n\n| | ms | products | steps |\n|---|---|---|---|"
    )
    for name, seconds in best.items():
        print(f"| {name} | {seconds * 1e3:.0f} | {seconds / best['product']:.2f} | {seconds / best['TopK']:.2f} |")


if __name__ == "__main__":
    main()
