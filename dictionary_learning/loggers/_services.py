"""Metrics for TensorBoard and Weights & Biases, whose packages are imported where they are used."""

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

from dictionary_learning.errors import MissingDependencyError
from dictionary_learning.loggers._base import Figures


class TensorBoardLogger:
    """Writes event files that `tensorboard --logdir FOLDER` shows; the x-axis counts steps.

    The file is opened at the first call of `log`, when an older run of the folder is gone.

    Raises:
        MissingDependencyError: tensorboard is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingDependencyError("tensorboard", "Writing for TensorBoard", "tensorboard") from error
        self._open: Callable[..., Any] = functools.partial(SummaryWriter, str(folder))
        self._writer: Any = None

    def state_dict(self) -> dict[str, Any]:
        """Returns nothing: the files are found by their folder."""
        return {}

    def resume(self, step: int, state: Mapping[str, Any]) -> None:
        """Hides what an earlier process wrote of later steps."""
        self._open = functools.partial(self._open, purge_step=step + 1)

    def log(self, figures: Figures, step: int, tokens: int) -> None:
        """Writes the metrics, as "name/metric"."""
        self._writer = self._writer or self._open()
        for name, values in figures.items():
            for key, value in values.items():
                self._writer.add_scalar(f"{name}/{key}", value, step)
        self._writer.add_scalar("tokens", tokens, step)

    def close(self) -> None:
        """Writes what is still in memory."""
        if self._writer is not None:
            self._writer.close()


class WandbLogger:
    """Opens a run on Weights & Biases for each dictionary; works offline with WANDB_MODE=offline.

    Args:
        configs: the settings of each dictionary, by its name.
        project: by default "dictionary_learning".
        entity: the user or team; by default the account's own.
        ids: ids of runs to go on with, by the dictionaries' names, as `state_dict` returned them.
            W&B ignores steps that a run has: a run that is resumed logs the same metrics again.

    Raises:
        MissingDependencyError: wandb is not installed.
    """

    def __init__(
        self,
        configs: Mapping[str, Mapping[str, Any]],
        project: str = "",
        entity: str = "",
        ids: Mapping[str, str] | None = None,
    ):
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise MissingDependencyError("wandb", "Logging to Weights & Biases", "wandb") from error
        options = {"project": project or "dictionary_learning", "entity": entity or None}
        old = {name: {"id": run_id, "resume": "allow"} for name, run_id in (ids or {}).items()}
        # the runs of several dictionaries are open together
        self.runs: dict[str, Any] = {
            name: wandb.init(name=name, config=dict(config), reinit="create_new", **options, **old.get(name, {}))
            for name, config in configs.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Returns the ids of the runs."""
        return {"ids": {name: str(run.id) for name, run in self.runs.items()}}

    def resume(self, step: int, state: Mapping[str, Any]) -> None:
        """Does nothing: the runs are open, those of `ids` or new ones."""

    def log(self, figures: Figures, step: int, tokens: int) -> None:
        """Sends each dictionary's metrics to its run."""
        for name, values in figures.items():
            self.runs[name].log({**values, "tokens": tokens}, step=step)

    def close(self) -> None:
        """Finishes all runs."""
        for run in self.runs.values():
            run.finish()
