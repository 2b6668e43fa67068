"""The ops' tests also run on a GPU: `TEST_DEVICE=cuda pytest tests/ops`."""

from collections.abc import Iterator

import pytest
import torch

from tests.tiny import DEVICE


@pytest.fixture(autouse=True)
def tensors_on_the_device(seeded) -> Iterator[None]:
    """Makes tensors on the device that is tested, where a test names none."""
    if DEVICE != "cpu":  # PyTorch does this by a mode that also sees every operation
        torch.set_default_device(DEVICE)
    yield
    torch.set_default_device(None)
