"""Trains methods on activations with known features, and scores what they find of them."""

import dataclasses
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dictionary_learning._border import checked
from dictionary_learning._disk import settled, write_json
from dictionary_learning._hardware import as_device
from dictionary_learning._plain import counted
from dictionary_learning._run_folder import claim_run_folder
from dictionary_learning.dictionaries import load_dictionary
from dictionary_learning.dictionaries._serialization import WEIGHTS
from dictionary_learning.errors import ConfigError
from dictionary_learning.sweeps._config import Point
from dictionary_learning.sweeps._known_methods import points_of
from dictionary_learning.sweeps._plan import begin_or_resume
from dictionary_learning.sweeps._report import write_files
from dictionary_learning.sweeps._results import SEED, Row, Summary, summaries
from dictionary_learning.sweeps._run import FINISHED, train_group
from dictionary_learning.sweeps._tables import Column, Sheet
from dictionary_learning.synthetic import Case, SyntheticActivations, as_case
from dictionary_learning.synthetic._score import ground_truths
from dictionary_learning.trainers import OptimizationConfig

logger = logging.getLogger(__name__)

FIGURES = "ground_truth.json"
SYNTHETIC = Sheet(
    (
        Column("l0", "L0", "", ".2f", "mean number of nonzero latents per row"),
        Column("f1", "F1", "higher", ".3f", "mean over latents of 2 both / (latent fires + its feature fires)"),
        Column("mcc", "MCC", "higher", ".3f", "mean |cos| of decoder rows and features, matched one to one"),
        Column("precision", "precision", "higher", ".3f", "mean over latents of both / latent fires"),
        Column("recall", "recall", "higher", ".3f", "mean over latents of both / its feature fires"),
        Column("uniqueness", "unique", "higher", ".3f", "different features of latents / latents"),
        Column("explained_variance", "EV", "higher", ".3f", "1 - sum |x - x_hat|^2 / sum |x - mean x|^2"),
        Column("dead", "dead", "lower", ".3f", "share of latents that fire on none of the held-out rows"),
        Column("shrinkage", "norm ratio", "", ".3f", "mean |x_hat| / |x|; 1 is best"),
    ),
    "Figures of held-out rows. A latent's feature is the one whose direction is nearest to its decoder row. After ± "
    "stands the standard error of the mean over seeds, each of which has features, rows and weights of its own.",
    None,
    (("mcc", "f1"), ("l0", "f1"), ("l0", "mcc")),
)
"""The report of methods on known features."""
_N_CHECKPOINTS = 10


class SyntheticResult(NamedTuple):
    """What `benchmark_synthetic` returns."""

    folder: Path
    rows: list[Row]
    """The figures of each dictionary: one for each method and seed."""

    @property
    def report(self) -> Path:
        """The report's page."""
        return self.folder / "synthetic.html"

    def means(self) -> list[Summary]:
        """Returns the figures of each method over its seeds."""
        return summaries(self.rows)


class _Planned(NamedTuple):
    name: str
    config: OptimizationConfig
    point: Point
    seed: int


@checked()
def benchmark_synthetic(
    methods: Any,
    save_dir: str | os.PathLike[str],
    case: Any = "sae_lens_2k",
    *,
    seeds: Sequence[int] = (0, 1, 2),
    n_tokens: int | None = None,
    n_eval_tokens: int = 100_000,
    device: torch.device | str | None = None,
    resume: str = "never",
    progress: bool = True,
) -> SyntheticResult:
    """Trains methods on activations with known features, and scores what they find of them.

    A seed is that of the features, of the rows and of the initial weights. All methods of a seed
    are trained together, on the same rows in the same order. One that diverges, or cannot be
    scored, has no figures. The report is `synthetic.html`, `.md`, `.tex`, `.csv`, `results.json`.

    Args:
        methods: A trainer's or recipe's name, a config as `trainSAE` takes it, or several; or a
            sweep, `{"methods": ..., "grid": ...}`. `dict_size` and `k` that are not given are those
            of the case, or of `finetune`; an `expansion_factor` other than the default says
            `dict_size`. Methods with a penalty have the L0 that it leads to.
        save_dir: The folder for the report, and for the dictionaries in `seed_N`.
        case: A name of `dictionary_learning.synthetic.CASES`, a `SyntheticConfig`, or a mapping of
            its fields, where `like` may name a case to start from.
        seeds: The seeds.
        n_tokens: Rows to train on; by default those of the case.
        n_eval_tokens: Held-out rows to score on.
        device: As in `trainSAE`.
        resume: "auto" goes on with what the folder holds, or begins; "never" begins.
        progress: Whether the console shows each run.

    Raises:
        ConfigError: A setting cannot be used, or the folder holds something else.
    """
    if resume not in ("never", "auto"):
        raise ConfigError(f"Got resume={resume!r}; a benchmark takes 'never' or 'auto'.")
    if not seeds or len({*seeds}) < len(seeds):
        raise ConfigError(f"Got seeds={tuple(seeds)}. Give at least one, and each once.")
    found, folder, device = as_case(case), settled(save_dir), as_device(device)
    batch_size = found.features.batch_size
    steps = -(-(found.n_tokens if n_tokens is None else n_tokens) // batch_size)
    points = points_of(methods, found)
    groups = [
        [_Planned(f"{point.name} seed={seed}", point.config.replace(seed=seed), point, seed) for point in points]
        for seed in seeds
    ]
    described = {
        "case": _described(found),
        "configs": {point.name: point.config.to_dict() for point in points},
        "steps": steps,
        "n_eval_tokens": n_eval_tokens,
    }
    training: dict[str, Any] = {
        "device": device,
        "checkpoint_steps": max(1, steps // _N_CHECKPOINTS),
        "progress": progress,
    }
    rows: list[Row] = []
    with claim_run_folder(folder, keep=True):
        groups = begin_or_resume(folder, groups, described, resume == "auto")
        told = (counted(len(points), "method"), counted(len(groups), "seed"), ", ".join(map(str, seeds)))
        logger.info("A benchmark of %s, on %s: %s.", *told)
        for number, group in enumerate(groups, 1):
            seed = group[0].seed
            place = folder / f"seed_{seed}"
            data = SyntheticActivations(found.features.replace(seed=seed), device=device)
            if not (place / FINISHED).exists():
                logger.info("Seed %d, %d of %d.", seed, number, len(groups))
                train_group(group, data, steps, place, folder, training)
            rows += _scored(group, place, data, n_eval_tokens)
        result = SyntheticResult(folder, rows)
        _write_report(result, found, described)
    return result


def _scored(group: Sequence[_Planned], place: Path, data: SyntheticActivations, n_eval_tokens: int) -> list[Row]:
    """Returns the figures of a group, which are measured unless they were before."""
    path = place / FIGURES
    folders = [place / f"trainer_{number}" for number in range(len(group))]
    if not path.exists():
        there = [(one.name, at) for one, at in zip(group, folders, strict=True) if (at / WEIGHTS).is_file()]
        found = ground_truths([load_dictionary(at, data.device) for _, at in there], data, n_tokens=n_eval_tokens)
        figures = dict[str, dict[str, float]]()
        for (name, _), one in zip(there, found, strict=True):
            if isinstance(one, ConfigError):
                logger.warning("'%s' cannot be scored, and has no figures: %s", name, one)
            else:
                figures[name] = dataclasses.asdict(one)
        write_json(path, figures)
    measured: dict[str, dict[str, float]] = json.loads(path.read_text(encoding="utf-8"))
    rows: list[Row] = []
    for one, at in zip(group, folders, strict=True):
        factors = {**one.point.factors, SEED: one.seed}
        figures = {name: value for name, value in measured.get(one.name, {}).items() if name != "n_tokens"}
        missing = "not scored" if (at / WEIGHTS).is_file() else "diverged"
        site = str(next(iter(data.widths)))
        rows.append(Row(one.name, one.point.method, factors, site, at, figures, {}, missing, one.point.fixed))
    return rows


def _write_report(result: SyntheticResult, case: Case, described: Mapping[str, Any]) -> None:
    features = case.features
    about = (
        f"{features.n_features:,} known features in {features.activation_dim} dimensions; "
        f"{described['steps'] * features.batch_size:,} rows of training."
    )
    files = (result.folder, result.rows, "synthetic", f"Known features: {result.folder.name}", about)
    write_files(*files, {}, SYNTHETIC, {"benchmark": described})


def _described(case: Case) -> dict[str, Any]:
    return {**case._asdict(), "features": case.features.to_dict()}
