"""Metrics for TensorBoard and Weights & Biases, whose packages are imported where they are used."""

import functools
import itertools
import os
from collections.abc import Callable, Mapping
from typing import Any

from dictionary_learning.errors import MissingDependencyError
from dictionary_learning.loggers._base import Evaluated, Figures
from dictionary_learning.loggers._dashboard_names import of_evaluation, of_training


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
            raise MissingDependencyError("tensorboard", "Writing for TensorBoard") from error
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

    def log_evaluation(self, evaluated: Mapping[str, Evaluated], step: int, tokens: int) -> None:
        """Writes the metrics, as "name/eval/metric", and a histogram of log10 of the densities."""
        self._writer = self._writer or self._open()
        for name, one in evaluated.items():
            for key, value in one.figures.items():
                self._writer.add_scalar(f"{name}/{key}", value, step)
            if one.density is not None and sum(one.density["counts"]):
                self._writer.add_histogram_raw(f"{name}/eval/log10_density", **_raw(one.density), global_step=step)

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
            raise MissingDependencyError("wandb", "Logging to Weights & Biases") from error
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
        """Sends each dictionary's metrics to its run, also by the names of other packages."""
        for name, values in figures.items():
            self.runs[name].log({**of_training(values, tokens), **values, "tokens": tokens}, step=step)

    def log_evaluation(self, evaluated: Mapping[str, Evaluated], step: int, tokens: int) -> None:
        """Sends metrics and histograms of held-out data, also by the names of other packages."""
        import wandb  # pyright: ignore[reportMissingImports]

        for name, one in evaluated.items():
            histograms: dict[str, Any] = {}
            if one.density is not None:
                counts, edges = one.density["counts"], one.density["log10_edges"]
                histograms["eval/log10_density"] = wandb.Histogram(np_histogram=(counts, edges))
            values, others = of_evaluation(one)
            histograms |= {key: wandb.Histogram(np_histogram=pair) for key, pair in others.items()}
            self.runs[name].log({**values, **one.figures, **histograms, "tokens": tokens}, step=step)

    def close(self) -> None:
        """Finishes all runs."""
        for run in self.runs.values():
            run.finish()


def _raw(density: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a histogram as TensorBoard's files hold it; sums are those of the bins' middles."""
    counts, edges = density["counts"], density["log10_edges"]
    middles = [(low + high) / 2 for low, high in itertools.pairwise(edges)]
    pairs = list(zip(counts, middles, strict=True))
    return {
        "min": edges[0],
        "max": edges[-1],
        "num": sum(counts),
        "sum": sum(n * x for n, x in pairs),
        "sum_squares": sum(n * x * x for n, x in pairs),
        "bucket_limits": edges[1:],
        "bucket_counts": counts,
    }
