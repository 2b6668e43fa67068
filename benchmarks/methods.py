"""Every method on the demo's model: FVU and cross-entropy recovered at L0 near 32 and 64. Prints a Markdown table.

Residual stream after layer 10 of SmolLM2-135M, 389,120 tokens, batch 2,048, 2,304 latents, seed 0; transcoders on that layer's MLP,
crosscoders and cross-layer transcoders on layers 9 to 11, heads on the input of the layer's attention output. Methods with a
penalty begin with the penalty at which L0 came out near the target, and look for a better one where it does not. End to end, the
tokens are the same, in the order of the text. Held out: the documents after those trained on.
About an hour on 2 cores; `--methods top_k jump_relu` for some.
"""

import argparse
import dataclasses
import inspect
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import BATCH, CORPUS, CTX, language_model, machine
from quality import STEPS, activations, documents_after

from dictionary_learning import trainSAE
from dictionary_learning.activations._filters import TokenFilter
from dictionary_learning.contexts import ContextStream
from dictionary_learning.data import file_source
from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.evaluation import Candidate, EvaluationConfig, evaluate_dictionaries
from dictionary_learning.latents import l0
from dictionary_learning.models import TracedModel
from dictionary_learning.sites import Site
from dictionary_learning.trainers import TRAINERS

LATENTS = 2304
TARGETS = (32, 64)
TOLERANCE = 0.1
MOST_RUNS = 4
OUT, MLP = "model.layers.10", "model.layers.10.mlp"
HEADS = "model.layers.10.self_attn.o_proj:in"
LAYERS = [f"model.layers.{n}" for n in (9, 10, 11)]
MLPS = [f"{layer}.mlp:{side}" for side in ("in", "out") for layer in LAYERS]


@dataclasses.dataclass(frozen=True)
class Method:
    """A line of the table."""

    name: str
    trainer: str
    paper: str
    sites: tuple[str, ...] = (OUT,)
    targets: tuple[str, ...] = ()
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    aim: Callable[[int], dict[str, Any]] | None = lambda l0: {"k": l0}
    """The settings that give an L0; None where a penalty is searched."""
    penalties: tuple[float, float] = (1.0, 1.0)
    """Where the search for a penalty begins, for each target."""
    contexts: bool = False
    """Whether it trains on contexts."""

    @property
    def recipe(self) -> str:
        """The paper's own settings, in `recipes.py`."""
        return _RECIPES.get(self.name, "")


_RECIPES = {
    "TopK": "gao_2024",
    "BatchTopK": "bussmann_2024_batch_top_k",
    "Matryoshka BatchTopK": "bussmann_2025_matryoshka",
    "GroupMax": "sparsify_group_max",
    "Matching pursuit": "costa_2025",
    "JumpReLU, target L0": "gemma_scope",
    "JumpReLU, tanh": "anthropic_2025",
    "L1, unit rows": "bricken_2023",
    "L1 by decoder norm": "april_2024",
    "P-annealing": "karvonen_2024",
    "Gated": "rajamanoharan_2024_gated",
    "Transcoder": "dunefsky_2024",
    "Skip transcoder": "paulo_2025",
    "Crosscoder": "minder_2025",
    "Cross-layer transcoder": "ameisen_2025",
    "TopK, end to end (KL)": "braun_2024",
    "Temporal": "lubana_2025",
}


# rates and normalizations for a run as short as this one; the papers' own are in `recipes.py`
_L1 = {"lr": 3e-3, "normalize": "sqrt_dim", "scale_encoder": True}
_ANNEAL = {**_L1, "p_end": 0.2}
_JUMP = {"lr": 3e-3, "normalize": "unit_mean_square", "bandwidth": 0.03, "beta1": 0.9, "kernel": "epanechnikov"}
_TEMPORAL = {"lr": 0.1, "attention_lr_factor": 0.1, "normalize": "unit_mean_square"}
_SLOW = 3.6e-3
"""For transcoders where at the default rate other parts are faster than the latents, of which fewer than k stay positive: W_skip and
the biases, or the decoders of earlier layers."""

METHODS = [
    Method("TopK", "top_k", "Gao et al. 2024"),
    Method("TopK, multi", "top_k", "Gao et al. 2024, appendix", options={"multi_topk": True}),
    Method("BatchTopK", "batch_top_k", "Bussmann et al. 2024"),
    Method("Matryoshka BatchTopK", "matryoshka_batch_top_k", "Bussmann et al. 2025"),
    Method("GroupMax", "group_max", "sparsify"),
    Method("AbsTopK", "abs_top_k", "AbsTopK 2025"),
    Method("Matching pursuit", "matching_pursuit", "Costa et al. 2025"),
    Method(
        "JumpReLU, target L0", "jump_relu", "Rajamanoharan et al. 2024", options=_JUMP, aim=lambda l0: {"target_l0": l0}
    ),
    Method(
        "JumpReLU, tanh",
        "jump_relu",
        "Anthropic, January 2025",
        options={
            **_JUMP,
            "sparsity_function": "tanh",
            "scale_sparsity_penalty_by_decoder_norm": True,
            "jumprelu_ste_to_input": True,
            "unit_norm_decoder": False,
        },
        aim=None,
        penalties=(1.7e-2, 1.12e-2),
    ),
    Method("L1, unit rows", "standard", "Bricken et al. 2023", options=_L1, aim=None, penalties=(2.2, 1.42)),
    Method(
        "L1 by decoder norm",
        "standard_april_update",
        "Conerly et al. 2024",
        options=_L1,
        aim=None,
        penalties=(1.034, 0.68),
    ),
    Method("P-annealing", "p_anneal", "Karvonen et al. 2024", options=_ANNEAL, aim=None, penalties=(1.308, 0.871)),
    Method("Gated", "gated", "Rajamanoharan et al. 2024", options=_L1, aim=None, penalties=(4.1, 2.7)),
    Method("Gated, annealed", "gated_anneal", "Karvonen et al. 2024", options=_ANNEAL, aim=None, penalties=(2.5, 1.5)),
    Method("TopK, end to end (KL)", "end_to_end", "Braun et al. 2024", contexts=True),
    Method("Temporal", "temporal", "Lubana et al. 2025", options=_TEMPORAL, contexts=True),
    Method("Transcoder", "top_k", "Dunefsky et al. 2024", (f"{MLP}:in",), (f"{MLP}:out",), {"wiring": "transcoder"}),
    Method(
        "Skip transcoder",
        "top_k",
        "Paulo et al. 2025",
        (f"{MLP}:in",),
        (f"{MLP}:out",),
        {"wiring": "skip_transcoder", "lr": _SLOW},
    ),
    Method("Crosscoder", "batch_top_k", "Minder et al. 2025", tuple(LAYERS), (), {"wiring": "crosscoder"}),
    Method(
        "Cross-layer transcoder",
        "top_k",
        "Ameisen et al. 2025",
        tuple(MLPS[:3]),
        tuple(MLPS[3:]),
        {"wiring": "cross_layer_transcoder", "lr": _SLOW},
        lambda l0: {"k": -(-l0 // 3)},
    ),
    Method(
        "Autoencoders of heads",
        "top_k",
        "",
        (HEADS,),
        (),
        {"wiring": "heads", "n_heads": 9},
        lambda l0: {"k": -(-l0 // 9)},
    ),
]


class Data:
    """Captured rows of all sites, and the runs on them."""

    def __init__(self, sites: list[str], model: TracedModel):
        self.model = model
        rows = activations(sites)
        order = torch.randperm(len(next(iter(rows.values()))["train"]), generator=torch.Generator().manual_seed(0))
        parts = order[: STEPS * BATCH].split(BATCH)
        self.train = {site: [rows[site]["train"][part] for part in parts] for site in sites}
        self.near = {site: rows[site]["near"].float() for site in sites}
        self.tried: dict[str, list[tuple[float, float]]] = {}

    def run(self, method: Method, options: dict[str, Any]) -> Dictionary:
        """Trains one dictionary."""
        sites = [*method.sites, *method.targets]
        if method.contexts:
            predict = TRAINERS[method.trainer].Config().needs_predictions
            text, size = list(file_source(CORPUS)), BATCH // CTX
            stream = ContextStream(text, self.model, sites, ctx_len=CTX, batch_size=size, predict=predict)
        else:
            stream = [{Site.parse(site): self.train[site][n] for site in sites} for n in range(STEPS)]
        config = {
            "trainer": method.trainer,
            "dict_size": LATENTS,
            "site": method.sites,
            **({"target_site": method.targets} if method.targets else {}),
            **method.options,
            **options,
        }
        (dictionary,) = trainSAE(stream, config, STEPS, progress=False)
        return dictionary

    def l0(self, method: Method, dictionary: Dictionary) -> float:
        """Returns the mean number of latents on held-out tokens."""
        x = torch.cat([self.near[site][:4096] for site in method.sites], dim=1)
        with torch.no_grad():
            return float(l0(dictionary.reconstruct(x).latents))

    def matched(self, method: Method, target: int) -> tuple[Dictionary, dict[str, Any]]:
        """Trains a dictionary with an L0 near the target; returns it and what was set for that."""
        if method.aim is not None:
            options = method.aim(target)
            return self.run(method, options), options
        tried = self.tried.setdefault(method.name, [])  # of the other target, too
        for run in range(1, MOST_RUNS + 1):
            first = method.penalties[TARGETS.index(target)]
            penalty = first if run == 1 else math.exp(_next(tried, math.log(target)))
            dictionary = self.run(method, {"sparsity_penalty": penalty})
            got = max(self.l0(method, dictionary), 0.05)
            tried.append((math.log(penalty), math.log(got)))
            print(f"  {method.name}: penalty {penalty:.4g} gives L0 {got:.1f}", flush=True)
            if abs(math.log(got / target)) < TOLERANCE or run == MOST_RUNS:
                return dictionary, {"sparsity_penalty": penalty}
        raise AssertionError("at least one run is made")


def _next(tried: list[tuple[float, float]], target: float) -> float:
    """Returns where log L0 should meet the target: between the nearest on both sides, or further along the slope."""
    above = [point for point in tried if point[1] > target]
    below = [point for point in tried if point[1] <= target]
    if above and below:
        (x0, y0), (x1, y1) = max(above), min(below)
        return x0 + (x1 - x0) * (y0 - target) / (y0 - y1)
    x, y = min(tried, key=lambda point: abs(point[1] - target))
    return x + max(min(y - target, math.log(8)), -math.log(8))  # L0 falls about as the penalty grows


def main() -> None:
    parser = argparse.ArgumentParser(description=inspect.getdoc(inspect.getmodule(main)))
    parser.add_argument("--methods", nargs="+", help="parts of the names of those to run; all, if not given")
    parser.add_argument("--out", type=Path, help="a JSON file to add the results to, and to take up from")
    arguments = parser.parse_args()
    wanted = [m for m in METHODS if not arguments.methods or any(part in m.name for part in arguments.methods)]
    results = json.loads(arguments.out.read_text()) if arguments.out and arguments.out.is_file() else {}
    model = language_model()
    data = Data(sorted({site for m in wanted for site in (*m.sites, *m.targets)}), model)
    held_out = documents_after(model)
    for method in wanted:
        for target in TARGETS:
            name = f"{method.name} at {target}"
            if name in results:
                continue
            dictionary, options = data.matched(method, target)
            reads, writes = (tuple(map(Site.parse, sites)) for sites in (method.sites, method.targets))
            report = evaluate_dictionaries(
                model,
                [Candidate(name, dictionary, reads, writes or None)],
                held_out,  # a list, which every evaluation reads from its beginning
                EvaluationConfig(n_tokens=16_384, n_fidelity_tokens=8192, ctx_len=CTX),
                token_filter=TokenFilter(exclude_first=True),
            )
            figures = report["dictionaries"][0]["metrics"]
            results[name] = {
                key: figures[key] for key in ("l0", "fvu", "ce_recovered_zero", "ce_recovered_mean", "kl", "frac_alive")
            } | {"options": options}
            print(name, results[name], flush=True)
            if arguments.out:
                arguments.out.write_text(json.dumps(results, indent=1))
    print(f"\n{machine()}\n")
    print(_table(results))


def _table(results: dict[str, dict[str, Any]]) -> str:
    """Returns the results as Markdown: a line for each method, both targets beside each other."""
    lines = [
        "| method | paper | recipe | L0 (32) | FVU (32) | CE recovered (32) | L0 (64) | FVU (64) | CE recovered (64) |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for method in METHODS:
        found = [results.get(f"{method.name} at {target}") for target in TARGETS]
        if any(found):
            cells = [f"{r['l0']:.1f} | {r['fvu']:.4f} | {r['ce_recovered_zero']:.4f}" if r else "| |" for r in found]
            recipe = f"`{method.recipe}`" if method.recipe else ""
            lines.append(f"| {method.name} | {method.paper} | {recipe} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
