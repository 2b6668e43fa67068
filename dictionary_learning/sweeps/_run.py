"""Trains a sweep group by group, evaluates every dictionary on the same data, and reports."""

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from dictionary_learning._border import checked
from dictionary_learning._checkpoint import remove_checkpoints
from dictionary_learning._disk import settled, shown, write_json
from dictionary_learning._hardware import as_device, free_memory
from dictionary_learning._held_out_data import HeldOutData, Place, held_out_data
from dictionary_learning._plain import counted
from dictionary_learning._resumed import CHECKPOINTS
from dictionary_learning._run_folder import claim_run_folder
from dictionary_learning._stop_request import ending_at_once
from dictionary_learning.config import BaseConfig
from dictionary_learning.dictionaries import load_dictionary
from dictionary_learning.dictionaries._serialization import WEIGHTS
from dictionary_learning.errors import ConfigError, DivergenceError, Interrupted
from dictionary_learning.evaluation import EvaluationConfig
from dictionary_learning.sweeps._config import SweepConfig
from dictionary_learning.sweeps._plan import Entry, Planned, Shape, begin_or_resume, entries_of, grouped
from dictionary_learning.sweeps._report import write_sweep_report
from dictionary_learning.sweeps._results import Row, SweepResult
from dictionary_learning.sweeps._stream import SharedStream
from dictionary_learning.training import trainSAE

logger = logging.getLogger(__name__)

FINISHED, EVALUATION = "finished.json", "evaluation.json"
_SHARE = 0.8
"""Part of the free memory that a sweep takes by default."""
_N_CHECKPOINTS = 10
"""Checkpoints in a group's run, by default."""


@checked()
def run_sweep(
    config: SweepConfig | Mapping[str, Any],
    data: Any,
    steps: int,
    save_dir: str | os.PathLike[str],
    *,
    evaluation_data: Any,
    evaluation: EvaluationConfig | None = None,
    memory_gb: float | None = None,
    normalize_activations: bool | str = False,
    device: torch.device | str | None = None,
    checkpoint_steps: int | None = None,
    log_steps: int | None = None,
    resume: str = "never",
    run_cfg: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> SweepResult:
    """Trains every combination of a sweep on one stream of activations, and compares them.

    Dictionaries that fit into memory together are a group: a run of `trainSAE`, in `group_N`. All
    groups read the same rows in the same order. Then all dictionaries are evaluated on the same
    held-out data. The report is `sweep.html`, `.md`, `.tex`, `.csv`, and `results.json`.

    Args:
        config: The methods and the grid.
        data: What `trainSAE` takes, or a function without arguments that makes it.
        steps: Batches to train on.
        save_dir: The folder of the sweep.
        evaluation_data: As in `trainSAE`.
        evaluation: How much of it.
        memory_gb: Gigabytes for the dictionaries of a group, with all that training keeps and with
            one step; by default 80 % of what is free.
        normalize_activations: As in `trainSAE`, as are `device` and `log_steps`.
        checkpoint_steps: Steps between two checkpoints of a group's run; by default ten in all.
        resume: "auto" goes on with the sweep in the folder, or begins; "never" begins.
        run_cfg: What else to store in the saved configs, under "run".
        progress: Whether the console shows each run.

    Returns:
        The figures of every dictionary. One that diverged has none.

    Raises:
        ConfigError: A setting cannot be used, the data can be read only once, or the folder holds
            another sweep.
        Interrupted: A signal stopped a run; resumed, the sweep goes on there.
    """
    if resume not in ("never", "auto"):
        raise ConfigError(f"Got resume={resume!r}; a sweep takes 'never' or 'auto'.")
    sweep = config if isinstance(config, SweepConfig) else SweepConfig.from_dict(config)
    device, folder = as_device(device), settled(save_dir)
    with claim_run_folder(folder, keep=True):
        shared = SharedStream(data, folder, steps)
        shape = Shape(shared.widths, shared.data)
        entries = entries_of(sweep.points(), shape, steps, normalize_activations, shared.batch_size)
        facts = _Facts.of(shared.data)
        places = [Place(entry.name, entry.sites) for entry in entries]
        held_out = held_out_data(evaluation_data, evaluation, places, facts, shared.widths)
        described = {
            **sweep.to_dict(),
            "steps": steps,
            "normalize_activations": normalize_activations,
            "data": _described(shared.data),
            "evaluation": None if evaluation is None else evaluation.to_dict(),
        }
        groups = grouped(entries, _budget(memory_gb, device, shared.data))
        groups = begin_or_resume(folder, groups, described, resume == "auto")
        size = counted(len(entries), "dictionary", "dictionaries")
        logger.info("A sweep of %s, in %s: '%s'.", size, counted(len(groups), "run"), folder)
        training: dict[str, Any] = {
            "normalize_activations": normalize_activations,
            "device": device,
            "checkpoint_steps": checkpoint_steps or max(1, steps // _N_CHECKPOINTS),
            "log_steps": log_steps,
            "run_cfg": run_cfg,
            "progress": progress,
        }
        rows: list[Row] = []
        for number, group in enumerate(groups):
            place = folder / f"group_{number}"
            if not (place / FINISHED).exists():
                if len(groups) > 1:
                    logger.info("Run %d of %d: %s.", number + 1, len(groups), ", ".join(e.name for e in group))
                train_group(group, shared.for_group(len(groups)), steps, place, folder, training)
            try:
                with ending_at_once():
                    rows += _evaluated(group, place, held_out, facts, device)
            except KeyboardInterrupt as stopped:
                logger.warning("The evaluation was stopped. The dictionaries are saved in '%s'.", shown(place))
                raise Interrupted(steps, steps, shown(folder)) from stopped
        result = SweepResult(folder, rows)
        write_sweep_report(result, described)
    return result


class _Facts(SimpleNamespace):
    """What an evaluation asks of the data that were trained on."""

    @classmethod
    def of(cls, data: Any) -> "_Facts":
        names = ("model", "tokens", "filter")
        found = cls(**{name: getattr(data, name) for name in names if hasattr(data, name)})
        found.norm_limits = None  # known once something was read; saved with every dictionary
        return found


def train_group(
    group: Sequence[Planned], data: Any, steps: int, place: Path, folder: Path, training: Mapping[str, Any]
) -> None:
    """Trains a group, or the rest of it; what diverges is left out, and noted."""
    error = None
    try:
        trainSAE(data, [e.config for e in group], steps, save_dir=place, resume="auto", keep_checkpoints=1, **training)
    except DivergenceError as found:
        error = str(found)
        logger.warning("%s", error)
    except Interrupted as stopped:
        stopped.folder = str(folder)  # it is the sweep that is resumed
        raise
    write_json(place / FINISHED, {"dictionaries": [entry.name for entry in group], "error": error})
    remove_checkpoints(place / CHECKPOINTS, keep_last=0)


def _evaluated(
    group: Sequence[Entry], place: Path, held_out: HeldOutData, facts: _Facts, device: torch.device
) -> list[Row]:
    """Returns the figures of a group, which are measured unless they were before."""
    path = place / EVALUATION
    folders = [place / f"trainer_{number}" for number in range(len(group))]
    there = [(entry, at) for entry, at in zip(group, folders, strict=True) if (at / WEIGHTS).is_file()]
    if not path.exists():
        dictionaries = [load_dictionary(at, device) for _, at in there]
        if dictionaries:
            buffer = dictionaries[0].info.config.get("buffer")
            rule = buffer.get("filter") if isinstance(buffer, Mapping) else None
            facts.norm_limits = rule.get("norm_limits") if isinstance(rule, Mapping) else None
        found = held_out.evaluate([Place(e.name, e.sites) for e, _ in there], dictionaries) if dictionaries else []
        # what is not finite, as a share of nothing, is no figure
        figures = [{k: v for k, v in one.figures.items() if math.isfinite(v)} for one in found]
        write_json(
            path,
            {e.name: one._replace(figures=f)._asdict() for (e, _), one, f in zip(there, found, figures, strict=True)},
        )
    measured: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    empty: dict[str, Any] = {"figures": {}, "errors": None}
    rows: list[Row] = []
    for entry, at in zip(group, folders, strict=True):
        one = measured.get(entry.name, empty)
        rows.append(
            Row(
                entry.name,
                entry.point.method,
                dict(entry.point.factors),
                entry.site,
                at,
                one["figures"],
                one["errors"] or {},
                fixed=entry.point.fixed,
            )
        )
    return rows


def _budget(memory_gb: float | None, device: torch.device, data: Any) -> int | None:
    """Returns the bytes for a group; None where nothing is known of the device's memory."""
    if memory_gb is not None:
        return int(memory_gb * 1e9)
    free = free_memory(device)
    if free is None:
        return None
    rows = getattr(data, "n_bytes", 0) if getattr(data, "device", None) == device else 0  # not yet allocated
    return max(int(_SHARE * (free - rows)), 0)


def _described(data: Any) -> Any:
    described = getattr(data, "config", None)
    return described.to_dict() if isinstance(described, BaseConfig) else described
