"""One training step on a GPU against one encode product in bfloat16 of the same shape, and against dictionary-learning's own step.

Prints a Markdown table. About 5 minutes on an H200. Peers run on the GPU if they are installed for it (benchmarks/peers/setup.sh,
with TORCH set to a CUDA build). Without a GPU everything runs in small, with Triton's interpreter: to try this script.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from common import machine, peer, table

from dictionary_learning import ops
from dictionary_learning.ops._triton import TRITON
from dictionary_learning.trainers import TRAINERS, Trainer

HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"
SHAPES = (
    ((768, 65_536, 64, 8192), (2304, 65_536, 80, 8192), (4096, 131_072, 64, 8192)) if HAS_GPU else ((8, 128, 1, 4),)
)
"""Width, latents, k, batch."""
SMALL = (768, 4096, 32, 8192) if HAS_GPU else (8, 128, 1, 2)
WAITING = (768, 16_384, 64, 2048) if HAS_GPU else SMALL
BACKEND = None if HAS_GPU else "triton"
"""Of the steps that are measured. On a CPU it needs TRITON_INTERPRET=1."""
SYNCS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "Memcpy DtoH")
"""Names of the profiler's events in which the host waits for the device."""


def milliseconds(function: Callable[[int], object], steps: int = 20, warm_up: int = 5) -> float:
    """Returns the median time of a call on the device."""
    if not HAS_GPU:
        start = time.perf_counter()
        function(0)
        return (time.perf_counter() - start) * 1e3
    times = []
    for n in range(warm_up + steps):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        function(n)
        end.record()
        times.append((start, end))
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in times[warm_up:])


def batches(dim: int, batch: int, n: int = 4) -> list[torch.Tensor]:
    """Returns random activations that are not centered."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    mean = torch.randn(dim, generator=generator, device=DEVICE)
    return [torch.randn(batch, dim, generator=generator, device=DEVICE) + mean for _ in range(n)]


def build(method: str, dim: int, dict_size: int, k: int, **options: Any) -> Trainer:
    """Returns a trainer."""
    return TRAINERS[method](activation_dim=dim, dict_size=dict_size, k=k, steps=1000, device=DEVICE, **options)


def step_figures(
    shape: tuple[int, int, int, int], method: str = "top_k", backend: str | None = BACKEND
) -> tuple[float, float]:
    """Returns ms of a step, and GiB of memory at most beside parameters, gradients and optimizer state."""
    dim, dict_size, k, batch = shape
    if HAS_GPU:
        torch.cuda.empty_cache()
    xs = batches(dim, batch)
    with ops.use_backend(backend):
        trainer = build(method, dim, dict_size, k)
        kept = 4 * sum(p.numel() * p.element_size() for p in trainer.dictionary.parameters())
        trainer.update(0, xs[0])
        if not HAS_GPU:
            return milliseconds(lambda n: trainer.update(n, xs[n % len(xs)])), 0.0
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() - kept * 3 // 4  # parameters and two means are there, gradients come
        ms = milliseconds(lambda n: trainer.update(n, xs[n % len(xs)]))
    extra = torch.cuda.max_memory_allocated() - before - kept
    return ms, extra / 2**30


def product_ms(shape: tuple[int, int, int, int]) -> float:
    """Returns ms of an encode product in bfloat16."""
    dim, dict_size, _, batch = shape
    x = torch.randn(batch, dim, device=DEVICE, dtype=torch.bfloat16)
    W = torch.randn(dict_size, dim, device=DEVICE, dtype=torch.bfloat16)
    out = torch.empty(batch, dict_size, device=DEVICE, dtype=torch.bfloat16)
    return milliseconds(lambda _: torch.mm(x, W.T, out=out))


def waits(steps: int = 100) -> dict[str, int]:
    """Returns how often the host waited for the device in so many steps, by the name of the event."""
    dim, dict_size, k, batch = WAITING
    trainer, xs = build("top_k", dim, dict_size, k), batches(dim, batch)
    for n in range(5):
        trainer.update(n, xs[n % len(xs)])
    activities = [torch.profiler.ProfilerActivity.CPU]
    if HAS_GPU:
        torch.cuda.synchronize()
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        for n in range(steps):
            trainer.update(n, xs[n % len(xs)])
    events = {event.key: event.count for event in profile.key_averages()}
    # the profiler itself waits once, when it ends
    return {key: count for key, count in events.items() if any(name in key for name in SYNCS)}


def captured_ms() -> str:
    """Returns ms of a small step as it is and with cuda_graph=True, or why it was not captured."""
    if not HAS_GPU:
        return "a CPU has no graphs"
    xs, found = batches(SMALL[0], SMALL[3]), []
    for cuda_graph in (False, True):
        trainer = build("top_k", *SMALL[:3], cuda_graph=cuda_graph)
        found.append(milliseconds(lambda n, trainer=trainer: trainer.update(n, xs[n % len(xs)])))
        if cuda_graph and not (trainer.replayed and trainer.replayed.n_replays):
            return f"{found[0]:.2f} ms; not captured: the warning above says why"
    return f"{found[0]:.2f} ms, {found[1]:.2f} ms with cuda_graph=True"


def equal_to_reference() -> str:
    """Returns how far the kernels are from the reference in float64, relative to the largest value."""
    dim, dict_size, k, batch = WAITING
    generator = torch.Generator(DEVICE).manual_seed(0)
    x, W, V = (torch.randn(n, dim, generator=generator, device=DEVICE) for n in (-(-batch // 4), dict_size, dict_size))
    b = torch.zeros(len(W), device=DEVICE)
    found = {}
    for backend, dtype in (("reference", torch.float64), ("triton", torch.float32)):
        leaves = [t.to(dtype).requires_grad_() for t in (x, W, b, V)]
        with ops.use_backend(backend):
            encoder = ops.Encoder(leaves[1], leaves[2])
            out = encoder.backend.decode(encoder.backend.top_k(leaves[0], encoder, k), leaves[3])
            out.sin().sum().backward()
        found[backend] = [out.detach(), *(leaf.grad for leaf in leaves)]
    errors = [
        ((a.double() - e).abs().max() / e.abs().max()).item()
        for a, e in zip(found["triton"], found["reference"], strict=True)
        if a is not None and e is not None
    ]
    uncertain = sum(int(count) for count in TRITON.uncertain.values())
    return f"at most {max(errors):.1e}; {uncertain} tokens whose selection is uncertain"


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", nargs="*", default=["sparsify", "dl"])
    arguments = parser.parse_args()
    if not HAS_GPU:
        if os.environ.get("TRITON_INTERPRET") != "1":
            parser.error("There is no GPU here; set TRITON_INTERPRET=1 to run in small, on the CPU.")
        print("There is no GPU here: what follows only shows that the script works.")
    rows = [("machine", machine()), ("kernels against the reference in float64", equal_to_reference())]
    for shape in SHAPES:
        product, name = product_ms(shape), ", ".join(f"{n:,}" for n in shape)
        for label, method, backend in (
            ("TopK", "top_k", BACKEND),
            ("TopK without Triton", "top_k", "sparse"),
            ("BatchTopK", "batch_top_k", BACKEND),
        ):
            ms, extra = step_figures(shape, method, backend)
            rows.append(
                (f"{label}, {name}", f"{ms:.2f} ms, {ms / product:.2f} products of {product:.2f} ms, {extra:.1f} GiB")
            )
            print(rows[-1], flush=True)
        for other in arguments.peers:
            options = {"steps": 24, "batch": shape[3], "dict_size": shape[1], "k": shape[2], "device": DEVICE}
            found = peer(other, "top_k_step.py", other, f"random:{shape[0]}", json.dumps(options))
            if found:
                rows.append((f"{other}, {name}", f"{found['ms']:.2f} ms"))
    one, xs = step_figures(SMALL)[0], batches(SMALL[0], SMALL[3])
    six = [build("top_k", *SMALL[:3]) for _ in range(6)]
    with ops.use_backend(BACKEND):
        together = milliseconds(lambda n: [trainer.update(n, xs[n % len(xs)]) for trainer in six])
    rows.append(("six dictionaries of 4,096 latents", f"{together:.2f} ms, {together / one:.2f} times one"))
    rows.append(("100 steps: events in which the host waits", str(waits() or "none")))
    rows.append(("a step of 4,096 latents", captured_ms()))
    print(table(rows))


if __name__ == "__main__":
    main()
