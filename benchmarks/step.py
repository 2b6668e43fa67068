"""One training step, everything included, against one encode product of the same shape and against the peers' steps.

Each figure comes from a process of its own, and each ratio from figures of one run. About 6 minutes on 2 cores, and 4 more
for the peers. Curves are drawn by growth.py.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from common import BATCH, DICT_SIZE, K, machine, median_ms, peer

from dictionary_learning import ops
from dictionary_learning._hardware import keep_freed_memory
from dictionary_learning.ops import _scan as scan
from dictionary_learning.trainers import TRAINERS, Trainer

SHAPE = (576, DICT_SIZE, K, BATCH)
SHAPES = (SHAPE, (768, 32_768, 64, 2048), (2048, 16_384, 64, 1024))
"""Width, latents, k, batch."""
DEAD = 0.3
PEERS = ("sparsify", "dl", "saelens")


def batches(dim: int, batch: int, n: int = 4) -> list[torch.Tensor]:
    """Returns random activations that are not centered, as real ones are not."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(dim, generator=generator)
    return [torch.randn(batch, dim, generator=generator) + mean for _ in range(n)]


def build(kind: str, dim: int, dict_size: int, k: int) -> Trainer:
    """Returns a trainer of one of the variants that are measured."""
    method = "batch_top_k" if kind == "batch_top_k" else "top_k"
    trainer = TRAINERS[method](activation_dim=dim, dict_size=dict_size, k=k, steps=1000, device="cpu")
    if kind == "float32":
        scan.bfloat16_is_fast = lambda _: False
    return trainer


def make_dead(trainer: Any, share: float) -> None:
    """Makes a share of the latents dead, and keeps them so."""
    n_dead = int(share * trainer.dict_size)
    trainer.dead.n_tokens = trainer.dead.after_tokens + 1
    observe = trainer.dead.observe

    def observe_and_stay(firings: torch.Tensor, n_tokens: int) -> None:
        firings[:n_dead] = 0
        observe(firings, n_tokens)

    trainer.dead.observe = observe_and_stay
    trainer.dead.tokens_since_fired[:n_dead] = trainer.dead.after_tokens + 1


def measure(kind: str, dim: int, dict_size: int, k: int, batch: int, steps: int) -> dict[str, float]:
    """Returns ms of an encode product in float32 and of a step, and the peak of memory beside what the trainer keeps."""
    keep_freed_memory()
    xs = batches(dim, batch)
    if kind == "product":
        W = torch.randn(dict_size, dim)
        out = torch.empty(batch, dict_size)
        return {"ms": median_ms(lambda: torch.mm(xs[0], W.T, out=out), steps)}
    trainers = [build(kind, dim, dict_size, k) for _ in range(6 if kind == "six" else 1)]
    if kind == "dead":
        make_dead(trainers[0], DEAD)
    kept = sum(p.numel() * p.element_size() for t in trainers for p in t.dictionary.parameters())
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    times = []
    with ops.use_backend("reference" if kind == "reference" else None):
        for n in range(steps + 4):
            start = time.perf_counter()
            for trainer in trainers:
                trainer.update(n, xs[n % len(xs)])
            times.append((time.perf_counter() - start) * 1e3)
    # gradients and two means of Adam are what every path keeps
    return {"ms": statistics.median(times[4:]), "extra_mib": (resident("VmHWM") - before - 3 * kept) / 2**20}


def resident(name: str) -> int:
    """Returns the bytes of memory of this process, now (VmRSS) or at most (VmHWM)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024


def apart(kind: str, shape: tuple[int, ...], steps: int = 20, rounds: int = 2) -> dict[str, float]:
    """Measures in a process of its own, more than once: what else the machine does can only make it slower."""
    command = [sys.executable, __file__, "--one", kind, *map(str, shape), str(steps)]
    found = []
    for _ in range(rounds):
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            raise RuntimeError(result.stderr)
        found.append(json.loads(result.stdout.splitlines()[-1]))
    return min(found, key=lambda figures: figures["ms"])


def peer_ms(name: str, shape: tuple[int, ...], steps: int, rounds: int) -> float | None:
    """Returns ms of a peer's own step on such activations."""
    dim, dict_size, k, batch = shape
    options = json.dumps({"steps": steps + 4, "batch": batch, "dict_size": dict_size, "k": k})
    found = [peer(name, "top_k_step.py", name, f"random:{dim}", options) for _ in range(rounds)]
    return min((figures["ms"] for figures in found if figures), default=None)


def main_table(peers: tuple[str, ...]) -> list[str]:
    """Returns the lines of the table of shapes."""
    lines = [
        f"| width, latents, k, batch | product, ms | step, ms | in products | {' | '.join(f'{p}, ms | times {p}' for p in peers)} |",
        "|---" * (4 + 2 * len(peers)) + "|",
    ]
    for shape in SHAPES:
        product, step = apart("product", shape)["ms"], apart("top_k", shape)["ms"]
        cells = [", ".join(f"{n:,}" for n in shape), f"{product:.0f}", f"{step:.1f}", f"{step / product:.2f}"]
        for name in peers:
            # the dense peers take ten seconds a step at the larger shapes
            other = peer_ms(name, shape, 20, 2) if shape == SHAPE or name == "sparsify" else None
            cells += ["", ""] if other is None else [f"{other:.0f}", f"{other / step:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    return lines


def variants_table() -> list[str]:
    """Returns the lines of the table of variants of the first shape."""
    product, step = apart("product", SHAPE)["ms"], apart("top_k", SHAPE)
    dense = apart("reference", SHAPE, 6)
    lines = ["| variant | ms | in products | in TopK steps | extra memory, MiB |", "|---|---|---|---|---|"]
    names = {
        "top_k": "TopK",
        "float32": "TopK, float32 throughout",
        "batch_top_k": "BatchTopK",
        "dead": f"TopK, AuxK on {DEAD:.0%} dead latents",
        "six": "six dictionaries on one site",
    }
    for kind, name in names.items():
        found = step if kind == "top_k" else apart(kind, SHAPE)
        ms = found["ms"]
        lines.append(
            f"| {name} | {ms:.1f} | {ms / product:.2f} | {ms / step['ms']:.2f} | {found['extra_mib']:.0f} |",
        )
        print(lines[-1], flush=True)
    lines.append(
        f"| TopK, dense reference | {dense['ms']:.0f} | {dense['ms'] / product:.1f} | {dense['ms'] / step['ms']:.1f} "
        f"| {dense['extra_mib']:.0f} |"
    )
    lines.append(f"\nExtra memory: {step['extra_mib'] / dense['extra_mib']:.2f} of the dense path's.")
    return lines


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", nargs="*", default=list(PEERS))
    parser.add_argument("--one", nargs=6, metavar=("KIND", "DIM", "LATENTS", "K", "BATCH", "STEPS"))
    arguments = parser.parse_args()
    if arguments.one:
        kind, *numbers = arguments.one
        print(json.dumps(measure(kind, *map(int, numbers))))
        return
    print(f"{machine()}\n", flush=True)
    tables = [main_table(tuple(arguments.peers)), variants_table()]
    print("\n" + "\n\n".join("\n".join(lines) for lines in tables))


if __name__ == "__main__":
    main()
