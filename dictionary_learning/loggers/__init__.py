"""Loggers of a run's metrics; each imports its package where it is used."""

from dictionary_learning.loggers._base import (
    Evaluated,
    EvaluationLogger,
    Figures,
    LoggerGroup,
    MetricLogger,
    ResumableLogger,
)
from dictionary_learning.loggers._console import ConsoleLogger
from dictionary_learning.loggers._jsonl import JSONLLogger, read_history
from dictionary_learning.loggers._services import TensorBoardLogger, WandbLogger

__all__ = [
    "ConsoleLogger",
    "Evaluated",
    "EvaluationLogger",
    "Figures",
    "JSONLLogger",
    "LoggerGroup",
    "MetricLogger",
    "ResumableLogger",
    "TensorBoardLogger",
    "WandbLogger",
    "read_history",
]
