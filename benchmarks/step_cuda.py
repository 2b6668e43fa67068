"""One training step on an NVIDIA GPU, everything included, against one encode product in bfloat16 of the same shape.

Each line is measured in a process of its own, the product in the same one. About 5 minutes, most of them for making weights; one
line that fails does not stop the others. Where there is no GPU it says so and ends.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from dictionary_learning import ops
from dictionary_learning.trainers import TRAINERS, SAETrainer

SHAPES = ((768, 65_536, 64, 8192), (2304, 65_536, 80, 8192), (4096, 131_072, 64, 8192))
"""Width, latents, k, batch."""
SMALL = (768, 4096, 32, 8192)
SIX = 6
STEPS, WARM_UP = 30, 10
WATCHED_STEPS = 100
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "Memcpy DtoH")
"""Names, in a profile, of what makes the host wait for the device."""
MOST_KERNELS = 20


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", type=int, default=len(SHAPES), help="how many of the shapes")
    parser.add_argument("--one", nargs=6, metavar=("KIND", "BACKEND", "DIM", "LATENTS", "K", "BATCH"))
    arguments = parser.parse_args()
    if arguments.one:
        kind, backend, *numbers = arguments.one
        print(json.dumps(measure(kind, backend, tuple(map(int, numbers)))))
        return
    if not torch.cuda.is_available():
        print("There is no NVIDIA GPU here: nothing is measured.")
        return
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}\n", flush=True)
    print(*shapes_table(SHAPES[: arguments.shapes]), sep="\n", end="\n\n", flush=True)
    print(*variants_table(), sep="\n", end="\n\n", flush=True)
    for name in ("waits", "kernels"):
        found = apart(name, "auto", SHAPES[0])
        print(f"{name} in {WATCHED_STEPS} steps of TopK at {words(SHAPES[0])}:", flush=True)
        print(*(f"- {name}: {value}" for name, value in (found or {"not measured": "see above"}).items()), sep="\n")


def shapes_table(shapes: tuple[tuple[int, ...], ...]) -> list[str]:
    """Returns the lines of the table of shapes."""
    lines = [
        "| width, latents, k, batch | form | product, ms | step, ms | in products | peak, GiB | weights and Adam, GiB | tokens in doubt |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for shape in shapes:
        for kind, backend in (("step", "auto"), ("graph", "auto"), ("step", "sparse")):
            found = apart(kind, backend, shape)
            name = {"auto": "as chosen", "sparse": "PyTorch's operations"}[backend]
            label = f"{name}, CUDA graph" if kind == "graph" else name
            lines.append(f"| {words(shape)} | {label} | {' | '.join(cells(found))} |")
    return lines


def variants_table() -> list[str]:
    """Returns the lines of the table of variants, each pair of them at one shape."""
    lines = ["| variant | width, latents, k, batch | ms | times the one before |", "|---|---|---|---|"]
    pairs = (("step", "one dictionary", SMALL), ("six", "six dictionaries on one site", SMALL))
    batch = (("step", "TopK", SHAPES[0]), ("batch_top_k", "BatchTopK", SHAPES[0]))
    for group in (pairs, batch):
        before = None
        for kind, name, shape in group:
            found = apart(kind, "auto", shape)
            ms = None if found is None else found["ms"]
            ratio = f"{ms / before:.2f}" if ms and before else ""
            lines.append(f"| {name} | {words(shape)} | {'failed' if ms is None else f'{ms:.2f}'} | {ratio} |")
            before = ms
    return lines


def cells(found: dict[str, Any] | None) -> list[str]:
    """Returns the figures of a line."""
    if found is None:
        return ["failed", "", "", "", "", ""]
    ratio = found["ms"] / found["product_ms"]
    memory = [f"{found[name] / 2**30:.1f}" for name in ("peak", "kept")]
    return [f"{found['product_ms']:.2f}", f"{found['ms']:.2f}", f"{ratio:.2f}", *memory, found["doubt"]]


def words(shape: tuple[int, ...]) -> str:
    """Returns a shape as text."""
    return ", ".join(f"{n:,}" for n in shape)


def apart(kind: str, backend: str, shape: tuple[int, ...]) -> dict[str, Any] | None:
    """Measures in a process of its own; None, with the reason on the standard error, where that fails."""
    command = [sys.executable, __file__, "--one", kind, backend, *map(str, shape)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        print(f"{kind}, {backend}, {words(shape)} failed:\n{result.stderr[-2000:]}", file=sys.stderr, flush=True)
        return None
    return json.loads(result.stdout.splitlines()[-1])


def measure(kind: str, backend: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """Returns what is measured of one kind: times in ms, memory in bytes, or counts by name."""
    dim, dict_size, k, batch = shape
    xs = batches(dim, batch)
    product_ms = median_ms(product(xs[0], dict_size))
    torch.cuda.empty_cache()
    method = "batch_top_k" if kind == "batch_top_k" else "top_k"
    options: Any = {"activation_dim": dim, "dict_size": dict_size, "k": k, "steps": 10_000, "device": "cuda"}
    trainers = [TRAINERS[method](**options) for _ in range(SIX if kind == "six" else 1)]
    with ops.use_backend(None if backend == "auto" else backend):
        count = 0

        def step() -> None:
            nonlocal count
            for trainer in trainers:
                trainer.update(count, xs[count % len(xs)])
            count += 1

        for _ in range(WARM_UP):
            step()
        if kind == "waits":
            return waits(step)
        if kind == "kernels":
            return kernels(step)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        ms = median_ms(captured(trainers[0], xs[0]) if kind == "graph" else step)
    kept = 3 * sum(p.numel() * p.element_size() for t in trainers for p in t.dictionary.parameters())
    peak = torch.cuda.max_memory_allocated()
    return {"product_ms": product_ms, "ms": ms, "peak": peak, "kept": kept, "doubt": doubt()}


def batches(dim: int, batch: int, n: int = 4) -> list[torch.Tensor]:
    """Returns random activations that are not centered, as real ones are not."""
    generator = torch.Generator("cuda").manual_seed(0)
    mean = torch.randn(dim, generator=generator, device="cuda")
    return [torch.randn(batch, dim, generator=generator, device="cuda") + mean for _ in range(n)]


def product(x: torch.Tensor, dict_size: int) -> Callable[[], Any]:
    """Returns a function that computes all pre-activations in bfloat16, on random numbers: zeros are multiplied faster."""
    a = x.bfloat16()
    W = torch.randn(dict_size, x.shape[1], device="cuda", dtype=torch.bfloat16)
    out = torch.empty(len(x), dict_size, device="cuda", dtype=torch.bfloat16)
    return lambda: torch.mm(a, W.T, out=out)


def median_ms(function: Callable[[], Any]) -> float:
    """Returns the median time of a call on the device; the host does not wait between calls."""
    for _ in range(WARM_UP):
        function()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(STEPS + 1)]
    torch.cuda.synchronize()
    marks[0].record()
    for mark in marks[1:]:
        function()
        mark.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in itertools.pairwise(marks))


def captured(trainer: SAETrainer, x: torch.Tensor) -> Callable[[], Any]:
    """Returns a function that replays one step; what the host decides in it (learning rate, counters) stays as it was."""
    for group in trainer.optimizer.param_groups:
        group["lr"] = torch.tensor(float(group["lr"]), device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            trainer.update(trainer.step, x)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        trainer.update(trainer.step, x)
    return graph.replay


def waits(step: Callable[[], None]) -> dict[str, Any]:
    """Counts what makes the host wait, in two ways: in a profile, and by PyTorch's own watch, which also says where."""
    idle, busy = profile_of(lambda: None), profile_of(step)
    # the profiler itself waits when it ends
    counts: dict[str, Any] = {name: max(busy[name] - idle[name], 0) for name in WAITS}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        for _ in range(WATCHED_STEPS):
            step()
        torch.cuda.set_sync_debug_mode("default")
    places = Counter(
        f"{w.filename}:{w.lineno}"
        for w in caught
        if "synchroniz" in str(w.message) and "prototype" not in str(w.message)
    )
    counts["seen by torch.cuda.set_sync_debug_mode"] = sum(places.values())
    return {**counts, **places}


def profile_of(step: Callable[[], None]) -> Counter[str]:
    """Returns how often each of `WAITS` occurs in a profile of some steps."""
    counts: Counter[str] = Counter()
    with torch.profiler.profile(activities=activities()) as profile:
        for _ in range(WATCHED_STEPS):
            step()
    for event in profile.key_averages():
        for name in WAITS:
            counts[name] += event.count if name in event.key else 0
    return counts


def kernels(step: Callable[[], None]) -> dict[str, str]:
    """Returns what takes most of the device's time, in ms of a step."""
    with torch.profiler.profile(activities=activities()) as profile:
        for _ in range(WATCHED_STEPS):
            step()
        torch.cuda.synchronize()
    events = [e for e in profile.key_averages() if str(e.device_type).endswith("CUDA")]
    events.sort(key=lambda e: -e.self_device_time_total)
    total = sum(e.self_device_time_total for e in events) / WATCHED_STEPS / 1e3
    figures = {"all kernels": f"{total:.3f} ms, {sum(e.count for e in events) / WATCHED_STEPS:.0f} launches"}
    for e in events[:MOST_KERNELS]:
        ms = e.self_device_time_total / WATCHED_STEPS / 1e3
        figures[f"`{e.key[:90]}`"] = f"{ms:.3f} ms, {e.count / WATCHED_STEPS:.1f} launches"
    return figures


def activities() -> list[Any]:
    """Returns what is profiled."""
    return [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]


def doubt() -> str:
    """Returns for how many tokens, of all steps, it is not certain that the latents kept are those of float32."""
    try:
        from dictionary_learning.ops.triton import KERNELS
    except ImportError:
        return ""
    return ", ".join(str(int(count)) for count in KERNELS.uncertain.values())


if __name__ == "__main__":
    main()
