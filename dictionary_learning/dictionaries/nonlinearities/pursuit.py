"""What methods share that take one latent after another."""

from abc import abstractmethod

from jaxtyping import Float
from torch import Tensor

from dictionary_learning.dictionaries.nonlinearities.base import SparseSelection
from dictionary_learning.errors import ConfigError
from dictionary_learning.latents import SparseLatents
from dictionary_learning.ops.encoder import Encoder


class Pursuit(SparseSelection):
    """Takes one latent after another, each for what the others have left. The encoder is the decoder."""

    has_bias = True
    is_tied = True

    def forward(self, pre: Float[Tensor, "*batch dict_size"]) -> Float[Tensor, "*batch dict_size"]:
        raise ConfigError(f"{type(self).__name__} needs activations, not pre-activations; use the dictionary's encode.")

    def encode_sparse(self, x: Float[Tensor, "batch dim"], encoder: Encoder, k: int) -> SparseLatents:
        return self.pursue(encoder.centered(x), encoder.W, k)

    @abstractmethod
    def pursue(self, residual: Float[Tensor, "batch dim"], W: Float[Tensor, "dict_size dim"], n: int) -> SparseLatents:
        """Returns what n rounds take of what is left at first."""
