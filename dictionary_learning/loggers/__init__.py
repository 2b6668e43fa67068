"""Loggers of a run's metrics; each imports its package where it is used."""

from dictionary_learning.loggers.anomaly import AnomalyLogger
from dictionary_learning.loggers.base import Figures, LoggerGroup, MetricLogger
from dictionary_learning.loggers.console import ConsoleLogger
from dictionary_learning.loggers.jsonl import JSONLLogger, read_history
from dictionary_learning.loggers.tensorboard import TensorBoardLogger
from dictionary_learning.loggers.wandb import WandbLogger

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
