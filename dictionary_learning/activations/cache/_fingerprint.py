"""Fingerprints by which a cache recognizes its text and its model."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

_LENGTH = 16
"""Hexadecimal digits of a fingerprint."""


def inputs_fingerprint(inputs: Any) -> str:
    """Returns a hash of the inputs of a model: tensors, alone or in mappings and sequences."""
    digest = hashlib.sha256()
    for name, tensor in _tensors(inputs, ""):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(plain.shape)} {plain.dtype}".encode())
        digest.update(plain.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:_LENGTH]


def model_fingerprint(model: Any) -> str:
    """Returns a hash of a `TracedModel` or `ModelSet`.

    It covers config, parameter shapes, and the first, middle and last value of each parameter, which
    are cheap to read, and which any training changes.
    """
    digest = hashlib.sha256()
    for traced in getattr(model, "models", {"": model}).values():
        module: nn.Module = traced.module
        # numbers only: names of classes and files change between versions and machines
        config: Any = getattr(module, "config", None)
        values: dict[str, Any] = config.to_dict() if hasattr(config, "to_dict") else {}
        numbers = {name: value for name, value in values.items() if type(value) in (int, float)}
        digest.update(json.dumps(numbers, sort_keys=True).encode())
        for name, parameter in module.named_parameters():
            digest.update(f"{name} {tuple(parameter.shape)} {_values(parameter.detach())}".encode())
    return digest.hexdigest()[:_LENGTH]


def _values(parameter: Tensor) -> list[float]:
    if parameter.device.type == "meta" or not parameter.numel():
        return []  # a model on a server has no values here
    places = [tuple(int((n - 1) * share) for n in parameter.shape) for share in (0, 0.5, 1)]
    return torch.stack([parameter[place] for place in places]).cpu().double().tolist()


def _tensors(inputs: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(inputs, Tensor):
        yield name, inputs
    elif isinstance(inputs, Mapping):
        for key, value in inputs.items():
            yield from _tensors(value, f"{name}.{key}")
    elif isinstance(inputs, (list, tuple)):
        for number, value in enumerate(inputs):
            yield from _tensors(value, f"{name}.{number}")
