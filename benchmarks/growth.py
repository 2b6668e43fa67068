"""How ms of a step grow with latents, k, batch, dictionaries and sites, for this CPU and for one without bfloat16.

Draws docs/images/growth.png. For a quiet machine: about 8 minutes on 2 cores; --quick takes two points of each curve.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import ROOT, machine
from ratios import AVX2

CURVES = {
    "latents": (1, (2304, 4608, 9216, 18_432, 36_864, 73_728)),
    "k": (2, (4, 8, 16, 32, 64, 128, 256, 512)),
    "batch": (3, (256, 512, 1024, 2048, 4096, 8192)),
}
"""Place in the shape (width, latents, k, batch), and values."""
SHAPE = (576, 9216, 32, 2048)
MANY = {"dictionaries": (1, 2, 4, 6, 8), "sites": (1, 2, 4, 6, 8)}
"""Dictionaries on one site, and as many on sites of their own."""
KINDS = ("as it is", "AVX2, imitated")
_STEPS, _WARM_UP = 5, 2
_MS = (20, 50, 100, 200, 500, 1000)


def measure(n: int, n_sites: int, shape: list[int]) -> dict[str, float]:
    """Returns the smallest ms of an encode product in float32, and of a step of n dictionaries, in turns."""
    import functools
    import time

    import torch
    from step import batches, build

    from dictionary_learning._hardware import keep_freed_memory
    from dictionary_learning._side_by_side import is_worthwhile, side_by_side

    keep_freed_memory()
    dim, dict_size, k, batch = shape
    xs, W, out = batches(dim, batch, n_sites + 1), torch.randn(dict_size, dim), torch.empty(batch, dict_size)
    trainers = [build("top_k", dim, dict_size, k) for _ in range(n)]
    together = n > 1 and is_worthwhile(W.device)  # as a run does
    best = {"product": float("inf"), "step": float("inf")}
    for step in range(_STEPS + _WARM_UP):
        start = time.perf_counter()
        torch.mm(xs[0], W.T, out=out)
        middle = time.perf_counter()
        given = [xs[(step + i % n_sites) % len(xs)] for i in range(n)]
        calls = [functools.partial(one.update, step, x) for one, x in zip(trainers, given, strict=True)]
        if together:
            side_by_side(calls)
        else:
            for call in calls:
                call()
        if step >= _WARM_UP:
            best["product"] = min(best["product"], middle - start)
            best["step"] = min(best["step"], time.perf_counter() - middle)
    return {name: seconds * 1e3 for name, seconds in best.items()}


def apart(n: int, n_sites: int, shape: tuple[int, ...], imitated: bool) -> dict[str, float]:
    """Measures in a process of its own."""
    command = [sys.executable, __file__, "--one", str(n), str(n_sites), *map(str, shape)]
    environment = {**os.environ, **(AVX2 if imitated else {})}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if result.returncode:
        raise RuntimeError(result.stderr)
    return json.loads(result.stdout.splitlines()[-1])


def figures(quick: bool) -> dict[str, Any]:
    """Returns the points of all curves, by kind of CPU and name."""
    found: dict[str, Any] = {}
    for kind in KINDS:
        for name, (place, values) in {**CURVES, **{name: (0, values) for name, values in MANY.items()}}.items():
            points = []
            for value in values[1:3] if quick else values:
                shape = SHAPE if name in MANY else (*SHAPE[:place], value, *SHAPE[place + 1 :])
                n = value if name in MANY else 1
                ms = apart(n, n if name == "sites" else 1, shape, kind != KINDS[0])
                points.append({"x": value, **ms})
                print(kind, name, points[-1], flush=True)
            found[f"{kind}: {name}"] = points
    return found


def draw(found: dict[str, Any], path: Path) -> None:
    """Draws what is varied in a column each, with the curves of both kinds of CPU."""
    from matplotlib.figure import Figure

    from dictionary_learning._hardware import bfloat16_is_fast

    own = f"step {'with' if bfloat16_is_fast('cpu') else 'without'} bfloat16 (this CPU)"
    labels = dict(zip(KINDS, (own, "step without bfloat16 (AVX2, imitated)"), strict=True))
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    names = [*CURVES, *MANY]
    for axes, name in zip(figure.subplots(1, len(names), sharey=True), names, strict=True):
        values = [p["x"] for p in found[f"{KINDS[0]}: {name}"]]
        product = [p["product"] for p in found[f"{KINDS[0]}: {name}"]]
        axes.plot(values, product, "--", color="0.5", label="encode product in float32")
        for kind in KINDS:
            step = [p["step"] for p in found[f"{kind}: {name}"]]
            axes.plot(values, step, marker="o", markersize=4, label=labels[kind])
        axes.set(xscale="log", yscale="log", xlabel=name)
        axes.set_xticks(values, [_short(x) for x in values], fontsize=7)
        axes.set_yticks(_MS, [f"{ms:,}" for ms in _MS])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("ms")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    width, latents, k, batch = SHAPE
    figure.suptitle(
        f"Width {width}, {latents:,} latents, k {k}, batch {batch:,}, one of them varied. {machine()}", fontsize=9
    )
    figure.savefig(path, dpi=130)


def _short(x: int) -> str:
    return f"{x / 1000:.1f}k" if x >= 1000 else str(x)


def main() -> None:
    """Measures, prints and draws."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=Path, help="a .json file: is drawn if it exists, else written")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "growth.png")
    parser.add_argument("--one", nargs=6, type=int, metavar=("N", "SITES", "DIM", "LATENTS", "K", "BATCH"))
    arguments = parser.parse_args()
    if arguments.one:
        n, n_sites, *shape = arguments.one
        print(json.dumps(measure(n, n_sites, shape)))
        return
    path = arguments.points
    found = json.loads(path.read_text()) if path and path.exists() else figures(arguments.quick)
    if path:
        path.write_text(json.dumps(found))
    draw(found, arguments.out)


if __name__ == "__main__":
    main()
