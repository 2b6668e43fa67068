"""Captures two halves of a batch beside each other, on a CPU.

Each half has a skeleton of its own, since nnsight's controllers belong to the modules of one.
"""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dictionary_learning._module_io import device_of
from dictionary_learning._side_by_side import is_worthwhile, side_by_side
from dictionary_learning.capture._model_inputs import ModelInputs
from dictionary_learning.capture._skeleton import is_spread, skeleton
from dictionary_learning.capture._tracing import Tracer
from dictionary_learning.sites import Site

LEAST_WORK = 10**10
"""Tokens times parameters, of a pass of some 0.1 s: what a second trace costs is nothing then."""


class Halves:
    """Captures long passes over text in two halves, where that is faster, and else with a tracer.

    Examples do not depend on each other, so the halves give what the whole would, but for bits.
    """

    def __init__(self, original: nn.Module, tracer: Tracer):
        self._original, self._tracer = original, tracer
        self._n_parameters = sum(parameter.numel() for parameter in original.parameters())

    def collect(self, sites: Sequence[Site], inputs: ModelInputs) -> list[Tensor]:
        """Returns what `Tracer.collect` returns."""
        if not self._are_worthwhile(inputs):
            return self._tracer.collect(sites, inputs)
        pairs = zip((self._tracer, self._second), inputs.halves(), strict=True)
        halves = side_by_side([functools.partial(tracer.collect, sites, half) for tracer, half in pairs])
        return [torch.cat(pair) for pair in zip(*halves, strict=True)]

    def _are_worthwhile(self, inputs: ModelInputs) -> bool:
        if inputs.ctx_len is None or inputs.n_examples < 2 or inputs.args:
            return False
        is_long = inputs.n_examples * inputs.ctx_len * self._n_parameters >= LEAST_WORK
        return is_long and is_worthwhile(device_of(self._original)) and self._is_divisible

    @functools.cached_property
    def _is_divisible(self) -> bool:
        """Whether only examples go through the model: a hook might count them, or keep a batch."""
        from transformers import PreTrainedModel

        hooks = (part._forward_hooks or part._forward_pre_hooks for part in self._original.modules())
        return isinstance(self._original, PreTrainedModel) and not is_spread(self._original) and not any(hooks)

    @functools.cached_property
    def _second(self) -> Tracer:
        return Tracer(skeleton(self._original))
