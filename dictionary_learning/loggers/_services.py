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
        self._open: Callable[[], Any] = functools.partial(SummaryWriter, str(folder))
        self._writer: Any = None

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

    Raises:
        MissingDependencyError: wandb is not installed.
    """

    def __init__(self, configs: Mapping[str, Mapping[str, Any]], project: str = "", entity: str = ""):
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise MissingDependencyError("wandb", "Logging to Weights & Biases", "wandb") from error
        options = {"project": project or "dictionary_learning", "entity": entity or None}
        # the runs of several dictionaries are open together
        self.runs: dict[str, Any] = {
            name: wandb.init(name=name, config=dict(config), reinit="create_new", **options)
            for name, config in configs.items()
        }

    def log(self, figures: Figures, step: int, tokens: int) -> None:
        """Sends each dictionary's metrics to its run."""
        for name, values in figures.items():
            self.runs[name].log({**values, "tokens": tokens}, step=step)

    def close(self) -> None:
        """Finishes all runs."""
        for run in self.runs.values():
            run.finish()
