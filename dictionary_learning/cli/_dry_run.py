"""`dictionary-learning train --dry-run`: what a run would read, compute, hold and write."""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from dictionary_learning._assignment import SiteAssignment
from dictionary_learning._estimate import RunEstimate, estimate_run, room_for_run, tensor_bytes
from dictionary_learning._hardware import free_memory, held_memory, keep_freed_memory, peak_memory
from dictionary_learning._plain import as_bytes, as_duration, in_few
from dictionary_learning._run_output import Plan
from dictionary_learning._run_setup import Samples, TrainingJob, training_jobs
from dictionary_learning._training_step import train_step
from dictionary_learning.activations._normalizers import NORMALIZATIONS
from dictionary_learning.activations._stream import ActivationStream
from dictionary_learning.cli._output import write_result
from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.sites import Site

if TYPE_CHECKING:
    from dictionary_learning.evaluation import EvaluationConfig
    from dictionary_learning.models import TracedModel
    from dictionary_learning.trainers import OptimizationConfig

logger = logging.getLogger(__name__)

_LONG = 20.0
"""Seconds after which a measurement is not repeated."""
_N_STEPS = 3
"""Steps that are made; the first ones allocate, the last one counts."""
_N_ROWS = 64
"""Random rows to fit normalizers to, which a plan needs as objects alone."""


class _Reading(NamedTuple):
    """Rows of activations, and what they cost."""

    batch: Mapping[Site, Tensor]
    n_rows: int
    n_read: int
    """Tokens that the model read for them; 0 where it is not known, or there is no model."""
    seconds: float


def show_plan(
    source: Any,
    configs: "Sequence[OptimizationConfig]",
    plan: Plan,
    device: torch.device,
    folder: Path,
    *,
    normalize_activations: bool | str,
    keep_checkpoints: int,
    model: "TracedModel | None" = None,
    evaluations: "Mapping[str, tuple[int, EvaluationConfig]] | None" = None,
) -> None:
    """Prints dictionaries, tokens, steps, memory, disk and time of a run; writes nothing.

    A few forward passes and steps are measured, the steps only where they fit into the memory.

    Args:
        source: The activations.
        configs: The dictionaries.
        plan: When the run logs and saves.
        device: Where it trains.
        folder: Its folder.
        normalize_activations: As in `trainSAE`.
        keep_checkpoints: As in `trainSAE`.
        model: The model that evaluations run.
        evaluations: By name, how many there are, and what each measures.
    """
    is_kept = keep_freed_memory()  # as a run does
    stream, random = ActivationStream(source), torch.Generator().manual_seed(0)
    rows = {site: torch.randn(_N_ROWS, width, generator=random) for site, width in stream.widths.items()}
    fitted = {(site, kind): cls.fit(x) for site, x in rows.items() for kind, cls in NORMALIZATIONS.items()}
    jobs = training_jobs(configs, stream, plan.steps, device, normalize_activations, None, fitted)
    need = estimate_run(plan, jobs, source, keep_checkpoints)
    room = {"memory": _whole_memory(device), "disk": room_for_run(folder)}
    reading = _read(source, stream)
    size = getattr(source, "out_batch_size", reading.n_rows)
    fits = room["memory"] is None or need.memory <= room["memory"]
    entries = {**_tokens(plan, jobs, source, reading, size), **_sizes(need, room)}
    seconds = {"activations": reading.seconds * plan.steps * size / reading.n_rows}
    sites, trained = [job.sites for job in jobs], list[Dictionary]()
    most: list[int | None] = []
    if fits:
        _initialize(jobs, reading, plan.steps * size, device)
        seconds["training"] = _seconds_per_step(jobs, _batch_of(reading, size), device) * plan.steps
        # rows that were read are held already
        most.append(_most_memory(device, is_kept, max(need.rows - tensor_bytes(reading.batch), 0) + need.dictionaries))
        trained = [job.export() for job in jobs]
    if "evaluations in training" not in (evaluations or {}):
        jobs.clear()  # an evaluation at the end has the memory of trainers
    if model is not None:
        for name, (number, config) in (evaluations or {}).items():
            seconds[name] = number * _seconds_of_evaluation(sites, trained, model, config, reading)
        most.append(_most_memory(device, is_kept))
    if fits:
        seconds["all, without loading"] = sum(seconds.values())
        if known := [one for one in most if one is not None]:
            entries["memory: at most, about"] = as_bytes(max(known))
    entries |= {f"time: {name}": as_duration(value) for name, value in seconds.items()}
    logger.info("Times are measured, beside whatever else this machine computes now.")
    width = max(map(len, entries))
    write_result(entries, [f"{name.ljust(width)}  {value}" for name, value in entries.items()])


def _tokens(plan: Plan, jobs: Sequence[TrainingJob], source: Any, reading: _Reading, size: int) -> dict[str, str]:
    n_parameters = sum(p.numel() for job in jobs for p in job.trainer.dictionary.parameters())
    ends = "" if getattr(source, "end_of_data", "stop") == "repeat" else ", if the data has as many"
    entries = {"tokens to train on": f"{plan.steps * size:,}{ends}"}
    if reading.n_read:
        entries["tokens to read, about"] = f"{plan.steps * size * reading.n_read // reading.n_rows:,}"
    entries["steps"] = f"{plan.steps:,} of {size:,} tokens"
    sites = dict.fromkeys(site for job in jobs for site in (*job.sites.reads, *job.sites.writes))
    return {
        "dictionaries": f"{len(jobs)} with {n_parameters:,} parameters",
        "names": in_few([job.name for job in jobs], "dictionaries"),
        "sites": in_few(sites, "sites"),
        **entries,
    }


def _sizes(need: RunEstimate, room: Mapping[str, int | None]) -> dict[str, str]:
    parts = ("weights", "gradients", "optimizer", "rows", "model")
    entries = {f"memory: {name}": as_bytes(getattr(need, name)) for name in parts}
    entries["memory: all, without what a step computes"] = _of(need.memory, room["memory"])
    entries["disk: dictionaries"] = f"{need.n_dictionaries} x {as_bytes(need.dictionaries)}"
    entries["disk: checkpoints"] = f"{need.n_checkpoints} x {as_bytes(need.checkpoint)}"
    entries["disk: log"] = as_bytes(need.log)
    return {**entries, "disk: all": _of(need.disk, room["disk"])}


def _read(source: Any, stream: ActivationStream) -> _Reading:
    """Reads rows twice, since the first time may load and compile, and returns the second ones."""
    found: _Reading | None = None
    while found is None or found.seconds < _LONG:
        before, start = getattr(source, "n_tokens_read", 0), time.perf_counter()
        # a buffer would be filled first
        reader = getattr(source, "reader", None)
        rows: Any = None if reader is None else reader.read(source.refresh_batch_size)
        batch: Mapping[Site, Tensor] | None = (
            next(stream, None) if reader is None else getattr(rows, "activations", None)
        )
        if batch is None:
            break
        seconds, n_read = time.perf_counter() - start, getattr(source, "n_tokens_read", 0) - before
        is_second, found = found is not None, _Reading(batch, len(next(iter(batch.values()))), n_read, seconds)
        if is_second:
            break
    source.close()
    assert found is not None  # a stream without rows raises DataError
    return found


def _initialize(jobs: Sequence[TrainingJob], reading: _Reading, n_rows: int, device: torch.device) -> None:
    """Fits normalizers and first biases to as many rows as a run: more memory than a step's."""
    samples = Samples(lambda n: _batch_of(reading, min(n, n_rows)), device, {})
    for job in jobs:
        read, written, kind = job.sites.reads, job.sites.writes, job.trainer.settings.normalize or "none"
        fitted = {site: samples.normalizer(site, kind) for site in (*read, *written)}
        y = None if job.sites.is_autoencoder else samples.rows(written, fitted)
        job.trainer.initialize(samples.rows(read, fitted), y)


def _most_memory(device: torch.device, is_kept: bool, to_come: int = 0) -> int | None:
    """Returns the most memory of a run so far, with what is to come beside what is held now.

    Held are weights, states, and what a forward pass, the sample and a step have taken; rows and a
    copy in the end are to come. What loading takes for a moment is beside none of these. Where
    freed memory is kept, what the process holds now is the most since.
    """
    most, now = peak_memory(device), held_memory(device) if is_kept else None
    if most is None:
        return None
    return most + to_come if now is None else max(most, now + to_come)


def _batch_of(reading: _Reading, size: int) -> Mapping[Site, Tensor]:
    """Returns as many rows as a step has, some of them again if need be."""
    if size == reading.n_rows:
        return reading.batch
    index = torch.arange(size) % reading.n_rows
    return {site: x[index.to(x.device)] for site, x in reading.batch.items()}


def _seconds_per_step(jobs: Sequence[TrainingJob], batch: Mapping[Site, Tensor], device: torch.device) -> float:
    seconds = 0.0
    for _ in range(_N_STEPS):
        start = time.perf_counter()
        train_step(jobs, batch, device, torch.float32)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - start
        if seconds > _LONG:
            break
    return seconds


def _seconds_of_evaluation(
    sites: Sequence[SiteAssignment],
    trained: Sequence[Dictionary],
    model: "TracedModel",
    config: "EvaluationConfig",
    reading: _Reading,
) -> float:
    """Returns the time of the passes of an evaluation, of which one is measured to its losses."""
    from dictionary_learning.contexts import Predictions
    from dictionary_learning.data import TokenBatch
    from dictionary_learning.evaluation._splices import n_passes

    ids = torch.zeros(config.batch_size, config.ctx_len, dtype=torch.long)
    keep = torch.ones_like(ids, dtype=torch.bool)
    tokens, seconds = TokenBatch(ids, keep), 0.0
    for _ in range(2):  # the first time may load and compile
        start = time.perf_counter()
        with torch.no_grad():
            predictions = Predictions(model.run(*tokens), tokens, keep)
            float(predictions.lost(model.run(*tokens)).kl.mean())  # waits for the device
        seconds = (time.perf_counter() - start) / 2
    per_token = seconds / ids.numel()
    per_token_read = reading.seconds / reading.n_read if reading.n_read else per_token
    per_token_read += _seconds_of_metrics(sites, trained, _batch_of(reading, ids.numel())) / ids.numel()
    passes = n_passes(sites, config)
    return per_token_read * config.n_tokens + per_token * passes * config.n_fidelity_tokens


def _seconds_of_metrics(
    sites: Sequence[SiteAssignment], trained: Sequence[Dictionary], batch: Mapping[Site, Tensor]
) -> float:
    """Returns the time of a batch's metrics, whose latents may take more memory than a step's.

    It is 0 for a run that does not fit, of which no dictionary is given.
    """
    from dictionary_learning.evaluation._on_activations import measure_rows

    start = time.perf_counter()
    for (read, written), dictionary in zip(((one.reads, one.writes) for one in sites), trained, strict=False):
        if not dictionary.reads_contexts:  # its metrics are of contexts, one by one
            x, y = (torch.cat([batch[site] for site in side], 1) for side in (read, written))
            measure_rows(dictionary, [(x, y)])
    return time.perf_counter() - start


def _whole_memory(device: torch.device) -> int | None:
    """Returns the memory for a run, with that of what is loaded already."""
    free = free_memory(device)
    return free if free is None or device.type != "cuda" else free + torch.cuda.memory_allocated(device)


def _of(need: int, room: int | None) -> str:
    if room is None:
        return as_bytes(need)
    return f"{as_bytes(need)} of {as_bytes(room)}" + (": too much" if need > room else "")
