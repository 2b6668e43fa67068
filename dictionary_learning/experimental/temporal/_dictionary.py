"""Dictionaries of what a token adds to the prediction from the tokens before it."""

import inspect
import math
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from dictionary_learning.dictionaries._base import DICTIONARIES, Dictionary, Reconstruction
from dictionary_learning.dictionaries._initialization import unit_rows
from dictionary_learning.dictionaries.nonlinearities import Nonlinearity, ReLU, TopK
from dictionary_learning.errors import ConfigError
from dictionary_learning.ops._precision import upcast

_LEAST = 1e-6
"""Added to the norm of a prediction, as in the published code."""


class ContextAttention(nn.Module):
    """Predicts a token's latents from those of the tokens before it.

    Args:
        dict_size: Number of latents.
        n_heads: Number of heads.
        bottleneck_factor: Number of latents per dimension of keys and queries.
        generator: Draws the initial weights; None for the global generator.
    """

    def __init__(self, dict_size: int, n_heads: int, bottleneck_factor: int, generator: torch.Generator | None):
        super().__init__()
        self.n_heads = n_heads
        narrow = dict_size // bottleneck_factor
        self.k_ctx, self.q_target = nn.Linear(dict_size, narrow), nn.Linear(dict_size, narrow)
        self.v_ctx, self.c_proj = nn.Linear(dict_size, dict_size), nn.Linear(dict_size, dict_size)
        # rows of one norm, for outputs in the scale of latents; as in the published code
        sizes = {self.k_ctx: narrow // n_heads, self.q_target: narrow // n_heads, self.v_ctx: dict_size // n_heads}
        for layer, size in {**sizes, self.c_proj: dict_size}.items():
            rows = torch.randn(layer.weight.shape, generator=generator)
            layer.weight.data.copy_(nn.functional.normalize(rows, dim=1) / math.sqrt(size))
            layer.bias.data.zero_()

    @torch.no_grad()
    def copy_(self, old: "ContextAttention") -> None:
        """Copies attention over fewer latents, with shorter heads; it ignores the other latents."""
        n_old = old.c_proj.out_features
        every = torch.arange(n_old)
        values = self._places(self.v_ctx, old.v_ctx)
        scores = self._places(self.k_ctx, old.k_ctx)
        # attention divides scores by the root of the key length, which is larger now
        longer = math.sqrt(self.k_ctx.out_features / old.k_ctx.out_features)
        self.v_ctx.weight[:, n_old:] = 0
        for layer in (self.k_ctx, self.q_target):
            layer.weight.zero_()
        self.c_proj.weight[:n_old] = 0
        for own, theirs, rows, columns, factor in (
            (self.v_ctx, old.v_ctx, values, every, 1.0),
            (self.k_ctx, old.k_ctx, scores, every, 1.0),
            (self.q_target, old.q_target, scores, every, longer),
            (self.c_proj, old.c_proj, every, values, 1.0),
        ):
            own.weight[rows.unsqueeze(1), columns] = theirs.weight.float() * factor
            own.bias.zero_()
            own.bias[rows] = theirs.bias.float() * factor

    def _places(self, own: nn.Linear, old: nn.Linear) -> Int[Tensor, "n_old"]:
        """Returns the indices of the entries of shorter heads among those of longer heads."""
        per_head = torch.arange(own.out_features).view(self.n_heads, -1)  # (heads, dim)
        return per_head[:, : old.out_features // self.n_heads].flatten()

    def forward(self, latents: Float[Tensor, "batch ctx dict_size"]) -> Float[Tensor, "batch ctx dict_size"]:
        """Returns the prediction at each token before ReLU; the first is predicted from zeros."""
        before = nn.functional.pad(latents, (0, 0, 1, -1))
        split = "batch ctx (head dim) -> batch head ctx dim"
        queries, keys, values = (
            rearrange(made, split, head=self.n_heads)
            for made in (_linear(self.q_target, latents), _linear(self.k_ctx, before), _linear(self.v_ctx, before))
        )
        read = nn.functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return _linear(self.c_proj, rearrange(read, "batch head ctx dim -> batch ctx (head dim)"))


@DICTIONARIES.register("TemporalAutoencoder")
class TemporalAutoencoder(Dictionary):
    """An autoencoder of contexts whose latents are novel: attention cannot predict them.

    Each attention layer predicts latents p, and removes their projection from the rest r of x:
    p = relu(attention(relu(W_enc r / (4 dim))))
    r <- r - s W_dec^T p,  s = <r, W_dec^T p> / |W_dec^T p|^2
    latents = the k largest of relu(W_enc r / (4 dim)) of the last rest; without k, all of them
    x_hat = W_dec^T (latents + sum of s p) + b_dec

    x is (..., ctx, activation_dim); a tensor of two dimensions is one context. A token's latents do
    not depend on later tokens. Computed in float32 at least. Lubana et al. 2025,
    https://arxiv.org/abs/2511.01836; attention is initialized as in the published code.

    Args:
        k: Novel latents per token; None for ReLU.
        n_heads: Heads of each attention layer.
        n_layers: Attention layers.
        bottleneck_factor: Number of latents per dimension of keys and queries.
        tied: Whether the encoder is the decoder.
        subtracts_b_dec: Whether b_dec is subtracted before encoding.
        has_output_bias: Whether b_dec is added to the output.
        scale: Divisor of activations before encoding, and factor of outputs.
        generator: Draws the initial weights; None for the global generator.

    Raises:
        ConfigError: dict_size is not a multiple of n_heads * bottleneck_factor, or k exceeds it.
    """

    def __init__(
        self,
        activation_dim: int,
        dict_size: int,
        k: int | None = None,
        *,
        n_heads: int = 8,
        n_layers: int = 1,
        bottleneck_factor: int = 64,
        tied: bool = True,
        subtracts_b_dec: bool = True,
        has_output_bias: bool = True,
        scale: float = 1.0,
        generator: torch.Generator | None = None,
    ):
        super().__init__(activation_dim, dict_size)
        if min(n_heads, bottleneck_factor) < 1 or n_layers < 0 or dict_size % (n_heads * bottleneck_factor):
            raise ConfigError(
                f"TemporalAutoencoder got n_layers={n_layers}, n_heads={n_heads} and bottleneck_factor="
                f"{bottleneck_factor} for dict_size={dict_size}, which must be a multiple of n_heads * "
                "bottleneck_factor."
            )
        if k is not None and not 1 <= k <= dict_size:
            raise ConfigError(f"TemporalAutoencoder cannot keep k={k} of dict_size={dict_size} latents; lower k.")
        if not (scale > 0 and math.isfinite(scale)):
            raise ConfigError(f"TemporalAutoencoder got scale={scale}; give a positive number.")
        self.k, self.n_heads, self.n_layers, self.bottleneck_factor = k, n_heads, n_layers, bottleneck_factor
        self.tied, self.subtracts_b_dec, self.has_output_bias = tied, subtracts_b_dec, has_output_bias
        self.scale = float(scale)
        rows = unit_rows(dict_size, activation_dim, generator)
        # with this norm, a latent alone reconstructs a quarter of the activation along it
        self.W_dec = nn.Parameter(rows * math.sqrt(activation_dim))
        if not tied:
            self.W_enc = nn.Parameter(self.W_dec.detach().clone())
        self.b_dec = nn.Parameter(torch.zeros(activation_dim))
        self.attn_layers = nn.ModuleList(
            [ContextAttention(dict_size, n_heads, bottleneck_factor, generator) for _ in range(n_layers)]
        )

    def __getattr__(self, name: str) -> Any:
        if name == "W_enc" and self.tied:
            return self.W_dec
        return super().__getattr__(name)

    def encode(self, x: Float[Tensor, "*batch activation_dim"]) -> Float[Tensor, "*batch dict_size"]:
        """Returns the novel latents of each token, dense."""
        return self.encode_with_predictions(x)[0]

    def encode_with_predictions(
        self, x: Float[Tensor, "*batch activation_dim"]
    ) -> tuple[Float[Tensor, "*batch dict_size"], Float[Tensor, "*batch dict_size"]]:
        """Returns the novel and the predicted latents of each token."""
        if x.ndim < 2 or x.shape[-1] != self.activation_dim:
            raise ConfigError(
                f"Got activations of shape {tuple(x.shape)}; a TemporalAutoencoder takes whole contexts, "
                f"(..., ctx, {self.activation_dim}). Give the tokens of each context in order."
            )
        x = upcast(x.to(self.dtype))
        if not x.numel():
            empty = x.new_zeros(*x.shape[:-1], self.dict_size)
            return empty, empty
        rest = x.reshape(-1, *x.shape[-2:]) / self.scale  # (contexts, ctx, dim)
        if self.subtracts_b_dec:
            rest = rest - self.b_dec
        predicted = rest.new_zeros(*rest.shape[:-1], self.dict_size)
        for layer in self.attn_layers:
            latents = layer(self._rectified(rest)).relu()
            written = latents @ upcast(self.W_dec)
            norm = written.norm(dim=-1, keepdim=True) + _LEAST
            share = (written * rest).sum(-1, keepdim=True) / norm.square()
            predicted = predicted + latents * share
            rest = rest - share * written
        novel = self._kept(self._rectified(rest))
        shape = (*x.shape[:-1], self.dict_size)
        return novel.reshape(shape), predicted.reshape(shape)

    def decode(
        self, latents: Float[Tensor, "*batch dict_size"], x: Float[Tensor, "*batch activation_dim"] | None = None
    ) -> Float[Tensor, "*batch activation_dim"]:
        """Returns the reconstruction from dense latents.

        Args:
            latents: Novel latents.
            x: The activations that they encode; if given, the predicted latents are added.
        """
        total = latents if x is None else latents + self.encode_with_predictions(x)[1]
        return self._written(total)

    def reconstruct(self, x: Float[Tensor, "*batch activation_dim"]) -> Reconstruction:
        """Returns outputs and latents of one context, or of several in a batch."""
        novel, predicted = self.encode_with_predictions(x)
        return Reconstruction(self._written(novel + predicted), novel)

    @property
    def reads_contexts(self) -> bool:
        return True

    def reconstruct_contexts(
        self, x: Float[Tensor, "n activation_dim"], lengths: Int[Tensor, "contexts"]
    ) -> Reconstruction:
        """Returns outputs and latents of the tokens of several contexts.

        Raises:
            ConfigError: The lengths do not add up to the number of tokens.
        """
        lengths = lengths.to(x.device)
        if int(lengths.sum()) != len(x):
            raise ConfigError(f"Got {len(x)} tokens of contexts with {int(lengths.sum())} in all; give all in order.")
        if not len(x):
            return Reconstruction(x, x.new_zeros(0, self.dict_size))
        places = torch.arange(int(lengths.max()), device=x.device) < lengths.unsqueeze(1)
        # (contexts, longest, dim): tokens do not see the padding behind the end of their context
        apart = x.new_zeros(*places.shape, x.shape[1]).masked_scatter(places.unsqueeze(-1), x)
        novel, predicted = (latents[places] for latents in self.encode_with_predictions(apart))
        return Reconstruction(self._written(novel + predicted), novel)

    def forward(self, x: Float[Tensor, "*batch activation_dim"], output_features: bool = False) -> Any:
        made = self.reconstruct(x)
        return (made.outputs, made.latents) if output_features else made.outputs

    def scale_(self, inputs: float, outputs: float | None = None) -> None:
        if outputs not in (None, inputs):
            raise ConfigError(f"An autoencoder has one scale; got inputs={inputs} and outputs={outputs}.")
        self.scale *= inputs

    @torch.no_grad()
    def expanded(
        self, dict_size: int, nonlinearity: Nonlinearity | None, generator: torch.Generator | None
    ) -> "TemporalAutoencoder":
        """Returns a float32 copy with more latents after the existing ones.

        Attention predicts the existing latents as before, and reads nothing from the new ones,
        whose rows have the mean norm of the existing rows.

        Raises:
            ConfigError: The nonlinearity is neither top_k nor relu, or heads cannot share the
                latents.
        """
        if type(nonlinearity) not in (type(None), TopK, ReLU):
            raise ConfigError(f"A temporal dictionary has top_k or relu; it cannot have {type(nonlinearity).__name__}.")
        k = self.k if nonlinearity is None else getattr(nonlinearity, "k", None)
        options: dict[str, Any] = {**self.options(), "dict_size": dict_size, "k": k}
        made = TemporalAutoencoder(**options, generator=generator).to(self.device)
        n_old = self.dict_size
        directions = unit_rows(dict_size - n_old, self.activation_dim, generator).to(self.device)
        for name in ("W_dec",) if self.tied else ("W_dec", "W_enc"):
            own, old = getattr(made, name), getattr(self, name).float()
            own[:n_old], own[n_old:] = old, directions * old.norm(dim=1).mean()
        made.b_dec.copy_(self.b_dec)
        for own, old in zip(made.attn_layers, self.attn_layers, strict=True):
            assert isinstance(own, ContextAttention) and isinstance(old, ContextAttention)
            own.copy_(old)
        return made

    def options(self) -> dict[str, Any]:
        names = [name for name in inspect.signature(TemporalAutoencoder).parameters if name != "generator"]
        return {name: getattr(self, name) for name in names}

    @torch.no_grad()
    def scale_decoder_(self, x: Float[Tensor, "n activation_dim"]) -> None:
        """Scales decoder and encoder so that novel latents alone reconstruct tokens best."""
        rest = upcast(x) / self.scale - self.b_dec
        written = self._kept(self._rectified(rest)) @ upcast(self.W_dec)
        share = (written * rest).sum() / written.square().sum()
        factor = torch.where(share.isfinite() & (share > 0), share, 1.0).sqrt()
        self.W_dec.mul_(factor)
        if not self.tied:
            self.W_enc.mul_(factor)

    def _rectified(self, rest: Tensor) -> Tensor:
        return (rest / (4 * self.activation_dim) @ upcast(self.W_enc).T).relu()

    def _kept(self, latents: Tensor) -> Tensor:
        if self.k is None:
            return latents
        values, indices = latents.topk(self.k, dim=-1)
        return torch.zeros_like(latents).scatter(-1, indices, values)

    def _written(self, latents: Tensor) -> Tensor:
        out = upcast(latents) @ upcast(self.W_dec)
        return (out + self.b_dec if self.has_output_bias else out) * self.scale


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Returns the output of a layer, in float32 at least."""
    return nn.functional.linear(x, upcast(layer.weight), upcast(layer.bias))
