"""Metrics on Weights & Biases, a run for each dictionary; works offline with WANDB_MODE=offline."""

from collections.abc import Mapping
from typing import Any

from dictionary_learning.errors import MissingDependencyError
from dictionary_learning.loggers._base import Figures


class WandbLogger:
    """Opens a run for each dictionary under its name.

    Args:
        configs: the settings of each dictionary, by its name.
        project: the project.
        entity: the user or team; by default the account's own.

    Raises:
        MissingDependencyError: wandb is not installed.
    """

    def __init__(self, configs: Mapping[str, Mapping[str, Any]], project: str = "", entity: str = ""):
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise MissingDependencyError("wandb", "Logging to Weights & Biases", "wandb") from error
        self.runs = {
            name: wandb.init(
                project=project or "dictionary_learning",
                entity=entity or None,
                name=name,
                config=dict(config),
                reinit="create_new",  # the runs of several dictionaries are open together
            )
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
