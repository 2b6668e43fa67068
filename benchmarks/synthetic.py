"""SAELens' trainers on known features, on the rows that ours see. Prints the Markdown table of `dictionary-learning benchmark`.

Ours: `dictionary-learning benchmark synthetic [benchmarks/ground_truth/small.yaml]`, with the same seeds. Both sides read the same
rows in the same order, and are scored by `dictionary_learning.synthetic.ground_truth` on the same held-out rows. Needs SAELens in an
environment of its own (benchmarks/peers/setup.sh saelens). One thread.

"defaults" are SAELens' own settings of its synthetic runner, which are made for 200 million rows; "tuned" is faster, with a fall to
0, and knows what is dead within the short run.
"""

import argparse
import dataclasses
import inspect
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the same for both sides
import numpy as np
import torch
from common import CACHE, machine, peer
from safetensors import safe_open
from torch import Tensor

from dictionary_learning.sweeps._results import SEED, Row, summaries
from dictionary_learning.sweeps._synthetic import SYNTHETIC
from dictionary_learning.sweeps._tables import as_csv, cells, markdown_table
from dictionary_learning.synthetic import CASES, Case, SyntheticActivations, ground_truth

FOLDER = CACHE / "synthetic"
_TUNED = {"lr": 1e-2, "lr_decay_steps": 0.8, "dead_feature_window": 100}
_PREFIXES = (1 / 32, 3 / 32, 7 / 32, 15 / 32, 1.0)  # those of our Matryoshka, as SAELens counts them
_JUMP = {"jumprelu_bandwidth": 2.0, "jumprelu_init_threshold": 0.5, "decoder_init_norm": 1.0}
METHODS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "topk, defaults": ("topk", {}, {}),
    "topk, tuned": ("topk", {}, _TUNED),
    "batchtopk, defaults": ("batchtopk", {}, {}),
    "batchtopk, tuned": ("batchtopk", {}, _TUNED),
    "matryoshka_batchtopk, defaults": ("matryoshka_batchtopk", {"matryoshka_widths": _PREFIXES}, {}),
    "matryoshka_batchtopk, tuned": ("matryoshka_batchtopk", {"matryoshka_widths": _PREFIXES}, _TUNED),
    "matching_pursuit, tuned": ("matching_pursuit", {}, {**_TUNED, "lr": 1e-3}),
    "jumprelu, tuned": ("jumprelu", {**_JUMP, "l0_coefficient": 1.2}, _TUNED),
    "standard, tuned": ("standard", {"l1_warm_up_steps": 0.2, "l1_coefficient": 4.5}, _TUNED),
    "gated, tuned": ("gated", {"l1_warm_up_steps": 0.2, "l1_coefficient": 6.8}, {**_TUNED, "lr": 3e-3}),
}
"""SAELens' architecture, settings of the dictionary, and of the run; penalties for the case "small"."""
_SHARES = ("lr_decay_steps", "l1_warm_up_steps")
"""Settings that are given above as a share of the run."""


class PeersDictionary:
    """SAELens' inference dictionary from its exported weights, with the formula of its architecture."""

    def __init__(self, path: Path):
        with safe_open(path, "pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
            self.architecture, self.options = file.metadata()["architecture"], json.loads(file.metadata()["options"])
        self.weights, self.W_dec = weights, weights["W_dec"]
        latents = self.encode(weights["check_x"])
        torch.testing.assert_close(latents, weights["check_latents"], rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(self.decode(latents), weights["check_outputs"], rtol=1e-4, atol=1e-3)

    def encode(self, x: Tensor) -> Tensor:
        w = self.weights
        x = x if "no_centering" in w else x - w["b_dec"]
        if self.architecture == "matching_pursuit":
            return self._pursue(x)
        if self.architecture == "gated":
            pre = x @ w["W_enc"]
            return (pre + w["b_gate"] > 0) * (pre * w["r_mag"].exp() + w["b_mag"]).relu()
        pre = x @ w["W_enc"] + w["b_enc"]
        if self.architecture == "topk":
            values, indices = pre.topk(self.options["k"])
            return torch.zeros_like(pre).scatter(1, indices, values.relu())
        return pre.relu() * (pre > w["threshold"]) if self.architecture == "jumprelu" else pre.relu()

    def decode(self, latents: Tensor) -> Tensor:
        return latents @ self.W_dec + self.weights["b_dec"]

    def _pursue(self, residual: Tensor) -> Tensor:
        latents = torch.zeros(len(residual), len(self.W_dec))
        going = torch.ones(len(residual), 1, dtype=torch.bool)
        for _ in range(self.options["max_iterations"]):
            value, index = (residual @ self.W_dec.T).relu().max(1, keepdim=True)
            value = value * going
            new = (latents.gather(1, index) == 0) & (value > 0)
            latents = latents.scatter_add(1, index, value)
            residual = residual - value * self.W_dec[index.squeeze(1)]
            going = going & new & (residual.norm(dim=1, keepdim=True) >= self.options["residual_threshold"])
        return latents


def saved_rows(name: str, known: SyntheticActivations, n: int) -> Path:
    """Returns the file with the first n rows of a stream, which is written the first time."""
    config = known.config
    path = FOLDER / f"{name}-{n}-{config.seed}.npy"
    if not path.is_file():
        FOLDER.mkdir(parents=True, exist_ok=True)
        begun = path.with_suffix(".part.npy")
        rows = np.lib.format.open_memmap(begun, "w+", np.float32, (n, config.activation_dim))
        for start in range(0, n, config.batch_size):  # batch by batch, as our trainers draw them
            part = rows[start : start + config.batch_size]
            part[:] = known.batch_with_features(len(part)).activations.numpy()
        rows.flush()
        begun.rename(path)
    return path


def train(method: str, case: Case, path: Path, seed: int, steps: int) -> PeersDictionary | None:
    """Returns a trained dictionary, or None where SAELens is not installed."""
    architecture, options, run = METHODS[method]
    sae: dict[str, Any] = dict(options)
    if "matryoshka_widths" in sae:
        sae["matryoshka_widths"] = [round(share * (case.dict_size or 0)) for share in _PREFIXES]
    if architecture in ("topk", "batchtopk", "matryoshka_batchtopk"):
        sae["k"] = case.k
    if architecture == "matching_pursuit":
        sae["max_iterations"] = case.k
    sae, run = (
        {name: int(value * steps) if name in _SHARES else value for name, value in each.items()} for each in (sae, run)
    )
    out = FOLDER / "saelens.safetensors"
    job = {"out": str(out), "architecture": architecture, "dict_size": case.dict_size, "seed": seed}
    figures = peer(
        "saelens",
        "saelens_synthetic.py",
        str(path),
        json.dumps({**job, "batch": case.features.batch_size, "sae": sae, "trainer": run}),
    )
    return None if figures is None else PeersDictionary(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=inspect.getdoc(inspect.getmodule(main)))
    parser.add_argument("--methods", nargs="+", help="parts of the names to run; all, if not given")
    parser.add_argument("--case", default="sae_lens_2k")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--n-tokens", type=int, help="rows to train on; those of the case, if not given")
    parser.add_argument("--out", type=Path, help="a CSV file for the figures of every dictionary")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    case = CASES[arguments.case]()
    batch = case.features.batch_size
    steps = -(-(arguments.n_tokens or case.n_tokens) // batch)
    found: list[Row] = []
    for seed in arguments.seeds:
        known = SyntheticActivations(case.features.replace(seed=seed))
        path = saved_rows(arguments.case, known, steps * batch)
        for method in METHODS:
            if arguments.methods and not any(part in method for part in arguments.methods):
                continue
            dictionary = train(method, case, path, seed, steps)
            if dictionary is not None:
                figures = dataclasses.asdict(ground_truth(dictionary, known))
                figures.pop("n_tokens")
                found.append(
                    Row(f"{method} seed={seed}", f"SAELens {method}", {SEED: seed}, "synthetic", path, figures, {})
                )
                print(method, seed, {name: round(value, 3) for name, value in figures.items()}, flush=True)
    print(f"\n{machine()}\n\n{markdown_table(*cells(summaries(found), sheet=SYNTHETIC))}")
    if arguments.out:
        arguments.out.write_text(as_csv(found))


if __name__ == "__main__":
    main()
