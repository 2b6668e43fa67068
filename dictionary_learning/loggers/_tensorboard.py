"""Metrics for TensorBoard."""

import os

from dictionary_learning.errors import MissingDependencyError
from dictionary_learning.loggers._base import Figures, flat


class TensorBoardLogger:
    """Writes event files that `tensorboard --logdir FOLDER` shows; the horizontal axis counts steps.

    Args:
        folder: where to write.

    Raises:
        MissingDependencyError: tensorboard is not installed.
    """

    def __init__(self, folder: str | os.PathLike):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingDependencyError("tensorboard", "Writing for TensorBoard", "tensorboard") from error
        self._writer = SummaryWriter(str(folder))

    def log(self, figures: Figures, step: int, tokens: int) -> None:
        """Writes the metrics."""
        for key, value in flat(figures).items():
            self._writer.add_scalar(key, value, step)
        self._writer.add_scalar("tokens", tokens, step)

    def close(self) -> None:
        """Writes what is still in memory."""
        self._writer.close()
