"""A small step on a GPU takes as long as the host needs to launch its operations, so these are counted."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dictionary_learning import ops
from dictionary_learning.trainers import TRAINERS
from tests.tiny import DEVICE

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="counted by the interpreter")

_FREE = ("empty", "new_empty", "promote_types", "scalar_tensor")
"""Operations that launch nothing."""


class Launches(TorchDispatchMode):
    """Counts operations that compute something, and kernels of Triton's interpreter, not what these compute."""

    def __init__(self, monkeypatch):
        super().__init__()
        from triton.runtime.interpreter import InterpretedFunction

        self.names, self._in_kernel, run = [], False, InterpretedFunction.run

        def launch(kernel, *args, **options):
            self.names.append("kernel")
            self._in_kernel = True
            try:
                return run(kernel, *args, **options)
            finally:
                self._in_kernel = False

        monkeypatch.setattr(InterpretedFunction, "run", launch)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if not (self._in_kernel or is_view or name.startswith((*_FREE, "profiler"))):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("method", "most"), [("top_k", 140), ("batch_top_k", 240), ("matryoshka_batch_top_k", 320)])
def test_a_step_is_few_launches(method, most, monkeypatch):
    with ops.use_backend("triton"):
        trainer = TRAINERS[method](activation_dim=8, dict_size=256, k=1, steps=100, device="cpu")
        x = torch.randn(4, 8)
        trainer.update(0, x)
        with Launches(monkeypatch) as launches:
            trainer.update(1, x)
    assert launches.names.count("kernel") > 5
    assert len(launches.names) <= most, "\n".join(launches.names)
