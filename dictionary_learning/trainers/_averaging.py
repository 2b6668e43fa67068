"""An exponential moving average of the weights in training."""

import contextlib
from collections.abc import Collection, Generator
from typing import Any

import torch
from torch import Tensor, nn

from dictionary_learning.errors import ConfigError, UnknownNameError
from dictionary_learning.ops._precision import upcast
from dictionary_learning.ops._row_updates import normalize_rows_


class WeightAverage:
    """Averages the parameters of a module over its steps, with weights that decay into the past.

    average = sum_t decay^(n - t) w_t / sum_t decay^(n - t),  t = 1 ... n

    The division corrects the bias toward 0. Averages are in float32 at least. Buffers, such as a
    threshold, are not averaged. Rows of the parameters named in `unit_rows` are normalized when
    averages are read. Raises ConfigError where the decay is not in [0, 1), and UnknownNameError for
    a name that is no parameter. Gao et al. 2024, https://arxiv.org/abs/2406.04093, section A.1.
    """

    def __init__(self, module: nn.Module, decay: float = 0.999, *, unit_rows: Collection[str] = ()):
        if not 0 <= decay < 1:
            raise ConfigError(
                f"An average of weights got decay={decay}; it must be in [0, 1). Use 0.999 for about the last "
                "thousand steps."
            )
        self.module, self.decay, self.unit_rows = module, decay, frozenset(unit_rows)
        self.n_updates = 0
        """Steps in the average."""
        self._averages = {
            name: upcast(p.detach()).clone(memory_format=torch.contiguous_format)
            for name, p in module.named_parameters()
        }
        for name in self.unit_rows:
            if name not in self._averages:
                raise UnknownNameError("parameter", name, self._averages)

    @torch.no_grad()
    def update(self) -> None:
        """Adds the current weights. Call it once for each step."""
        self.n_updates += 1
        # with this share of the newest weights, the stored average is corrected for bias already
        share = (1 - self.decay) / (1 - self.decay**self.n_updates)
        for name, p in self.module.named_parameters():
            average = self._averages[name]  # float32 at least: the share is lost in bfloat16
            average.lerp_(p.detach().to(average.dtype), share)

    @torch.no_grad()
    def weights(self) -> dict[str, Tensor]:
        """Returns the averages in the dtype of each parameter; before an update, the weights."""
        averages: dict[str, Tensor] = {}
        for name, p in self.module.named_parameters():
            if not self.n_updates:
                averages[name] = p.detach().clone()
                continue
            average = self._averages[name].clone()
            if name in self.unit_rows:
                normalize_rows_(average.flatten(1))
            averages[name] = average.to(p.dtype)
        return averages

    @contextlib.contextmanager
    def averaged(self) -> Generator[nn.Module]:
        """Puts the averaged weights into the module, inside the `with` block."""
        own = {name: p.detach().clone() for name, p in self.module.named_parameters()}
        self._write(self.weights())
        # the parameters themselves change, so that views and tied weights follow
        try:
            yield self.module
        finally:
            self._write(own)

    def state_dict(self) -> dict[str, Any]:
        """Returns the averages and their number of steps."""
        return {"n_updates": self.n_updates, "averages": dict(self._averages)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes from the state of an average of the same kind of module."""
        self.n_updates = state["n_updates"]
        for name, average in self._averages.items():
            average.copy_(state["averages"][name])

    @torch.no_grad()
    def _write(self, values: dict[str, Tensor]) -> None:
        for name, p in self.module.named_parameters():
            p.copy_(values[name])
