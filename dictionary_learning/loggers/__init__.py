"""Loggers of a run's metrics; each imports its package where it is used."""

from dictionary_learning.loggers._base import AnomalyLogger, Figures, LoggerGroup, MetricLogger
from dictionary_learning.loggers._console import ConsoleLogger
from dictionary_learning.loggers._jsonl import JSONLLogger, read_history
from dictionary_learning.loggers._services import TensorBoardLogger, WandbLogger

__all__ = [
    "AnomalyLogger",
    "ConsoleLogger",
    "Figures",
    "JSONLLogger",
    "LoggerGroup",
    "MetricLogger",
    "TensorBoardLogger",
    "WandbLogger",
    "read_history",
]
