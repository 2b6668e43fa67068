"""What methods share that choose a token's latents by a rule of their own."""

from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning import ops
from dictionary_learning.dictionaries.nonlinearities.base import SparseSelection
from dictionary_learning.latents import SparseLatents
from dictionary_learning.ops.encoder import Encoder


class SelectsByRule(SparseSelection):
    """Keeps the latents of each token that a rule chooses of its pre-activations."""

    @abstractmethod
    def choose(self, pre: Float[Tensor, "*batch dict_size"], k: int) -> Tensor:
        """Returns the k latents to keep: (..., k), in no order."""

    def value(self, pre: Tensor) -> Tensor:
        """Returns the latents that kept pre-activations make."""
        return pre

    def forward(self, pre: Float[Tensor, "*batch dict_size"]) -> Float[Tensor, "*batch dict_size"]:
        indices = self.choose(pre, self.k)
        return torch.zeros_like(pre).scatter(-1, indices, self.value(pre.gather(-1, indices)))

    def encode_sparse(self, x: Float[Tensor, "batch dim"], encoder: Encoder, k: int) -> SparseLatents:
        kept = ops.encode_where(x, encoder.W, encoder.b, lambda pre: self.choose(pre, k), center=encoder.center)
        assert isinstance(kept, SparseLatents)
        return SparseLatents(self.value(kept.values), kept.support)
