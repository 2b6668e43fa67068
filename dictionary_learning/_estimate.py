"""What a run needs of memory and disk, from the sizes of its tensors, before it starts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dictionary_learning._disk import free_disk, size_on_disk
from dictionary_learning._plain import as_bytes
from dictionary_learning._run_folder import files_of_run
from dictionary_learning._run_output import Plan
from dictionary_learning._run_setup import TrainingJob
from dictionary_learning.activations._shuffled_rows import slots_used
from dictionary_learning.errors import ConfigError
from dictionary_learning.trainers import Trainer
from dictionary_learning.trainers._main_memory import is_kept
from dictionary_learning.trainers._optimizers import build_optimizer

_LOG_BYTES = 700
"""A dictionary's figures in a line of `metrics.jsonl`."""
_OTHER_BYTES = 1 << 20
"""Configs, `run.json` and a report."""
_FLOAT_BYTES = 4
_PROBE = 32
"""Rows and columns of the small parameters that show how much state an optimizer has."""
_RANDOM_BYTES = 1 << 15
"""States of random numbers, and the tree of plain values."""
_DOCUMENT_BYTES = 8
"""The number of a row's document, in a buffer's state."""


class RunEstimate(NamedTuple):
    """What a run needs, in bytes."""

    weights: int
    gradients: int
    optimizer: int
    """What trainers keep on their device beside weights: optimizer's state, averages, counts."""
    rows: int
    """Activations in the buffer, on its device."""
    model: int
    dictionaries: int
    """All dictionaries, saved once."""
    n_dictionaries: int
    """How often they are on disk in the end, with the one that is written."""
    checkpoint: int
    n_checkpoints: int
    """Checkpoints on disk in the end, with the one that is written."""
    log: int

    @property
    def memory(self) -> int:
        """Memory of all devices, without what a step or a forward pass computes."""
        return self.weights + self.gradients + self.optimizer + self.rows + self.model

    @property
    def disk(self) -> int:
        """What is written and kept."""
        saved = self.n_dictionaries * self.dictionaries + self.n_checkpoints * self.checkpoint
        return saved + self.log + _OTHER_BYTES


def estimate_run(plan: Plan, jobs: Sequence[TrainingJob], data: Any, keep_checkpoints: int) -> RunEstimate:
    """Returns what a run needs; nothing is computed, and the data are not read."""
    weights = sum(tensor_bytes(job.trainer.dictionary.state_dict()) for job in jobs)
    states = sum(_state_bytes(job.trainer) for job in jobs)
    rows, documents = _bytes_of_rows(plan, data)
    n_checkpoints = _kept_checkpoints(plan, keep_checkpoints)
    held = rows + documents
    if n_checkpoints and not rows and hasattr(data, "state_dict"):
        held = tensor_bytes(data.state_dict())
    n_lines = plan.steps // plan.log_steps + 1
    return RunEstimate(
        weights=weights,
        gradients=sum(p.nbytes for job in jobs for p in job.trainer.dictionary.parameters() if p.requires_grad),
        optimizer=states - weights - sum(_bytes_in_main_memory(job.trainer) for job in jobs),
        rows=rows,
        model=_model_bytes(getattr(data, "model", None)),
        dictionaries=weights,
        n_dictionaries=1 + len(plan.save_steps) + 2 * bool(plan.backup_steps) + 2 * bool(plan.save_best),
        checkpoint=states + held + _RANDOM_BYTES,
        n_checkpoints=n_checkpoints,
        log=_LOG_BYTES * n_lines * len(jobs),
    )


def check_room(need: RunEstimate, folder: Path) -> None:
    """Refuses a run for whose files the disk of its folder has too little room.

    Raises:
        ConfigError: There is too little room.
    """
    free = room_for_run(folder)
    if need.disk <= free:
        return
    kept = f"{need.n_dictionaries} x {as_bytes(need.dictionaries)} of dictionaries"
    remedies = "Give another save_dir, or choose fewer save_steps"
    if need.n_checkpoints:
        kept += (
            f", {need.n_checkpoints} x {as_bytes(need.checkpoint)} of checkpoints (the one that is written included)"
        )
        remedies += ", lower keep_checkpoints"
        remedies += ", or store rows in a smaller dtype ('int8')" if need.rows else ""
    raise ConfigError(
        f"The run needs {as_bytes(need.disk)} in '{folder}', and {as_bytes(free)} are left: {kept}. {remedies}."
    )


def room_for_run(folder: Path) -> int:
    """Returns the bytes left for a run in a folder, with those of a run there that it replaces."""
    return free_disk(folder) + size_on_disk(files_of_run(folder))


def tensor_bytes(tree: Any) -> int:
    """Returns the bytes of all tensors in nested mappings, lists and tuples."""
    if isinstance(tree, Tensor):
        return tree.nbytes
    if isinstance(tree, (Mapping, list, tuple)):
        parts: Any = tree
        return sum(tensor_bytes(part) for part in (parts.values() if isinstance(tree, Mapping) else parts))
    return 0


def _bytes_of_rows(plan: Plan, data: Any) -> tuple[int, int]:
    """Returns the bytes of a buffer's rows, of which no more are held than a run takes, and of
    their documents."""
    size = getattr(data, "activation_buffer_size", 0)
    if not size:
        return 0, 0
    too_many = getattr(data, "refresh_batch_size", 0) * getattr(data, "ctx_len", 0)
    n = slots_used(size, plan.steps * data.out_batch_size, too_many)
    return data.n_bytes * n // size, _DOCUMENT_BYTES * n


def _state_bytes(trainer: Trainer) -> int:
    """Returns the bytes of a trainer's state once it has made a step."""
    now = tensor_bytes(trainer.state_dict())
    if trainer.step:
        return now
    per_parameter = [_optimizer_bytes(p, trainer.settings.optimizer) for p in trainer.dictionary.parameters()]
    return now - tensor_bytes(trainer.optimizer.state_dict()) + sum(per_parameter)


def _bytes_in_main_memory(trainer: Trainer) -> int:
    """Returns the bytes of the optimizer's state that are not on the device."""
    if trainer.settings.optimizer != "adam_offloaded" or trainer.device.type == "cpu":
        return 0
    return sum(2 * _FLOAT_BYTES * p.numel() for p in trainer.dictionary.parameters() if is_kept(p))


def _optimizer_bytes(parameter: Tensor, optimizer: Any) -> int:
    """Returns the bytes that an optimizer keeps for a parameter from its first step on."""
    shape = [min(n, _PROBE) for n in parameter.shape]
    probe = torch.zeros(shape, dtype=parameter.dtype, device=parameter.device, requires_grad=True)
    probe.grad = torch.zeros_like(probe)
    built = build_optimizer(optimizer, [{"params": [probe]}])
    built.step()
    return tensor_bytes(built.state_dict()) * parameter.numel() // max(probe.numel(), 1)


def _kept_checkpoints(plan: Plan, keep_last: int) -> int:
    """Returns how many checkpoints there are at most, while the last one is written."""
    every = plan.checkpoint_steps
    if every is None:
        return 0
    due = {*range(every, plan.steps + 1, every), *plan.save_steps, plan.steps}
    kept = {*sorted(due)[-keep_last:], *plan.save_steps}
    return min(len(due), len(kept) + 1)


def _model_bytes(model: Any) -> int:
    """Returns the bytes of the weights of a model, or of several, that are on this machine."""
    modules = [getattr(one, "module", None) for one in getattr(model, "models", {"": model}).values()]
    weights = {id(p): p for module in modules if module is not None for p in module.parameters()}
    return sum(p.nbytes for p in weights.values() if p.device.type != "meta")
