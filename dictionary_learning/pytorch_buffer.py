"""An old address: one `ActivationBuffer` takes plain PyTorch models too."""

from typing import Any

from torch import nn

from dictionary_learning import buffer
from dictionary_learning.compat._models import (
    EarlyStopException as EarlyStopException,
    collect_activations as collect_activations,
)
from dictionary_learning.models import load_model


class ActivationBuffer(buffer.ActivationBuffer):
    """That of `dictionary_learning.buffer`, where a model's tokenizer is that of its name."""

    def __init__(self, data: Any, model: Any, submodule: Any, *arguments: Any, **options: Any):
        name = getattr(model, "name_or_path", None)
        if isinstance(model, nn.Module) and isinstance(name, str) and name:
            model = load_model(model, tokenizer=name)
        super().__init__(data, model, submodule, *arguments, **options)
