"""An old address: one `ActivationBuffer` takes plain PyTorch models too."""

from dictionary_learning.buffer import ActivationBuffer as ActivationBuffer
from dictionary_learning.compat._models import (
    EarlyStopException as EarlyStopException,
    collect_activations as collect_activations,
)
