"""An encoder, a nonlinearity and a decoder: what all wirings are made of."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from einops import pack, unpack
from jaxtyping import Float, Int
from torch import Tensor, nn

from dictionary_learning import ops
from dictionary_learning.dictionaries.base import Reconstruction
from dictionary_learning.dictionaries.initialization import CENTERS, best_scale, fitted_decoder, unit_rows
from dictionary_learning.dictionaries.nonlinearities import NONLINEARITIES, Elementwise, Nonlinearity
from dictionary_learning.dictionaries.nonlinearities.base import SparseSelection
from dictionary_learning.dictionaries.trainable import CoderSlice, InitConfig, Trainable
from dictionary_learning.errors import ConfigError
from dictionary_learning.latents import Latents, SparseLatents, gather_per_latent, replace_values, to_dense
from dictionary_learning.ops.encoder import Encoder
from dictionary_learning.ops.precision import no_autocast, upcast

_LEAST_NORM = 1e-12
"""What latents that write nothing yet are ranked by, as where a decoder begins at zero."""


class LinearView(NamedTuple):
    """A weight and bias under the names and in the orientation of `torch.nn.Linear`; views, not copies."""

    weight: Tensor
    bias: Tensor | None


class Coder(Trainable):
    """One encoder and one decoder around a nonlinearity.

    latents = nonlinearity(W_enc (x - b_dec) + b_enc)    without b_dec, unless `centered`
    x_hat = W_dec^T latents + b_dec [+ W_skip x]

    The decoder's rows begin with unit norm and random directions; the encoder begins as the decoder's transpose where both
    have the same width.

    Args:
        activation_dim: width of the activations that it reads.
        dict_size: number of latents.
        nonlinearity: the nonlinearity, or its name and options as `{"name": "top_k", "k": 32}`.
        output_dim: width of what it reconstructs.
        centered: whether b_dec is subtracted from what it reads (`apply_b_dec_to_input`); needs equal widths.
        skip: whether the output has an affine part W_skip x, which begins at zero.
        rank_by_norm: where a set number is kept, latents are ranked, and compared with the threshold, by their value times the
            norm of what they write.
        blocks: widths of the sites that it writes, whose norms are added up; by default one.
        has_output_bias: whether there is a b_dec.
        generator: draws the initial directions; the global one if there is none.

    Raises:
        ConfigError: the arguments do not go together, or the nonlinearity would keep more latents than there are.
    """

    W_enc: nn.Parameter
    b_enc: nn.Parameter | None
    b_dec: nn.Parameter | None
    W_skip: nn.Parameter | None

    def __init__(
        self,
        activation_dim: int,
        dict_size: int,
        nonlinearity: Nonlinearity | dict[str, Any],
        *,
        output_dim: int | None = None,
        centered: bool = True,
        skip: bool = False,
        rank_by_norm: bool = False,
        blocks: Sequence[int] | None = None,
        has_output_bias: bool = True,
        generator: torch.Generator | None = None,
    ):
        super().__init__(activation_dim, dict_size, output_dim)
        if isinstance(nonlinearity, dict):
            options = dict(nonlinearity)
            nonlinearity = NONLINEARITIES[options.pop("name", "")](**options)
        name = type(nonlinearity).__name__
        self.is_tied = nonlinearity.is_tied
        if (centered or self.is_tied) and self.output_dim != activation_dim:
            raise ConfigError(
                f"{type(self).__name__} reads width {activation_dim} and writes width {self.output_dim}; "
                f"{f'{name} has one matrix for both' if self.is_tied else 'b_dec can only be subtracted from inputs'} "
                "where the widths are equal. Choose another nonlinearity or wiring."
            )
        nonlinearity.setup(dict_size)
        self.nonlinearity = nonlinearity
        self.centered, self.rank_by_norm = centered, rank_by_norm
        self.blocks = tuple(blocks) if blocks is not None else (self.output_dim,)
        self.W_dec = nn.Parameter(unit_rows(dict_size, self.output_dim, generator))
        if not self.is_tied:
            same = activation_dim == self.output_dim
            start = self.W_dec.detach().clone() if same else unit_rows(dict_size, activation_dim, generator)
            self.W_enc = nn.Parameter(start)
        self.b_enc = None if nonlinearity.has_bias else nn.Parameter(torch.zeros(dict_size))
        self.b_dec = nn.Parameter(torch.zeros(self.output_dim)) if has_output_bias else None
        self.W_skip = nn.Parameter(torch.zeros(self.output_dim, activation_dim)) if skip else None

    def __getattr__(self, name: str) -> Any:
        if name == "W_enc" and self.is_tied:
            return self.W_dec
        return super().__getattr__(name)

    def pre_activations(
        self, x: Float[Tensor, "*batch activation_dim"], latents: Int[Tensor, "n"] | None = None
    ) -> Float[Tensor, "*batch latents"]:
        """Returns what the nonlinearity is given: of all latents, or of some."""
        x = self._checked(x).to(self.dtype)
        center = self._center()
        W, b = self.W_enc, self.b_enc
        if latents is not None:
            W, b = W[latents], None if b is None else b[latents]
        return nn.functional.linear(x if center is None else x - center, W, b)

    def encode(self, x: Float[Tensor, "*batch activation_dim"]) -> Float[Tensor, "*batch dict_size"]:
        if isinstance(self.nonlinearity, SparseSelection) and self.nonlinearity.of_each_token:
            flat, lead = pack([x], "* dim")
            latents, _ = self.encode_latents(flat)
            (dense,) = unpack(to_dense(latents), lead, "* dict_size")
            return dense
        pre = self.pre_activations(x)
        if self.rank_by_norm and isinstance(self.nonlinearity, SparseSelection):
            norms = self.ranking_norms()
            return self.nonlinearity(pre * norms) / norms
        return self.nonlinearity(pre)

    def forward(self, x: Float[Tensor, "*batch activation_dim"], output_features: bool = False) -> Any:
        if not output_features:
            return super().forward(x)
        latents = self.encode(x)
        return self.decode(latents, x), latents

    def encode_latents(
        self, x: Float[Tensor, "batch activation_dim"], k: int | None = None
    ) -> tuple[Latents, Latents | None]:
        x, nonlinearity, center = self._checked(x), self.nonlinearity, self._center()
        if isinstance(nonlinearity, SparseSelection):
            return self._select(nonlinearity, x, center, k), None
        assert isinstance(nonlinearity, Elementwise)
        pre = ops.encode_where(x, self.W_enc, self._bias(), nonlinearity.support_mask, center=center)
        return self.pointwise("activate", pre), pre

    def pointwise(self, method: str, pre: Latents) -> Latents:
        apply = getattr(self.nonlinearity, method)
        return apply(pre) if isinstance(pre, Tensor) else replace_values(pre, apply(pre.values, pre.indices))

    def encode_sparse(self, x: Float[Tensor, "batch activation_dim"], k: int | None = None) -> SparseLatents:
        """Returns the kept latents only, in float32 at least.

        Args:
            x: the activations.
            k: how many a token keeps instead of the nonlinearity's own number, as while k is annealed.

        Raises:
            ConfigError: the nonlinearity keeps no set number of latents.
        """
        if not isinstance(self.nonlinearity, SparseSelection):
            name = type(self.nonlinearity).__name__
            raise ConfigError(f"{name} does not keep a fixed number of latents; use encode.")
        return self._select(self.nonlinearity, self._checked(x), self._center(), k)

    def decode(
        self, latents: Float[Tensor, "*batch dict_size"], x: Float[Tensor, "*batch activation_dim"] | None = None
    ) -> Float[Tensor, "*batch output_dim"]:
        """Returns the activations that dense latents stand for.

        Args:
            latents: the latents.
            x: the activations that they are of; needed where the output has a part W_skip x.

        Raises:
            ConfigError: x is needed and was not given.
        """
        out = latents.to(self.W_dec.dtype) @ self.W_dec
        if self.b_dec is not None:
            out = out + self.b_dec
        if self.W_skip is None:
            return out
        if x is None:
            raise ConfigError("The output has a part W_skip x; give x too: decode(latents, x).")
        return out + nn.functional.linear(x.to(out.dtype), self.W_skip)

    def decode_latents(
        self, latents: Latents, x: Float[Tensor, "batch activation_dim"], *, frozen: bool = False
    ) -> Float[Tensor, "batch output_dim"]:
        W_dec = self.W_dec.detach() if frozen else self.W_dec
        if isinstance(latents, SparseLatents):
            out = ops.sparse_decode(latents, W_dec)
        else:
            with no_autocast(latents):
                out = upcast(latents) @ upcast(W_dec)
        return self.with_affine_part(out, x, frozen=frozen)

    def with_affine_part(
        self, out: Float[Tensor, "*batch output_dim"], x: Tensor, *, frozen: bool = False
    ) -> Float[Tensor, "*batch output_dim"]:
        """Adds to what latents decode to what does not depend on them: b_dec, and W_skip x."""
        b_dec, W_skip = (p.detach() if frozen and p is not None else p for p in (self.b_dec, self.W_skip))
        if b_dec is not None:
            out = out + b_dec
        if W_skip is not None:
            with no_autocast(x):
                out = out + nn.functional.linear(upcast(x), upcast(W_skip))
        return out

    def decode_sparse(self, latents: SparseLatents) -> Float[Tensor, "batch output_dim"]:
        """Returns what sparse latents stand for, in float32 at least, where the output has no part W_skip x."""
        assert self.W_skip is None
        out = ops.sparse_decode(latents, self.W_dec)
        return out if self.b_dec is None else out + self.b_dec

    def decode_among(
        self, x: Float[Tensor, "batch activation_dim"], candidates: Int[Tensor, "n"], k: int
    ) -> Float[Tensor, "batch output_dim"]:
        center = self._center()
        W_enc, b_enc, W_dec = (ops.take_rows(w, candidates) for w in (self.W_enc, self._bias(), self.W_dec))
        center = None if center is None else center.detach()
        x, n = self._checked(x), min(k, len(candidates))
        if isinstance(self.nonlinearity, SparseSelection) and self.nonlinearity.is_signed:
            latents = ops.encode_where(x, W_enc, b_enc, lambda pre: pre.abs().topk(n).indices, center=center)
            assert isinstance(latents, SparseLatents)
        else:
            latents = ops.topk_encode(x, W_enc, b_enc, n, center=center)
        return ops.sparse_decode(latents, W_dec)

    def decoder_norms(self) -> Float[Tensor, "dict_size"]:
        norms = [block.norm(dim=1) for block in upcast(self.W_dec).split(self.blocks, dim=1)]
        return norms[0] if len(norms) == 1 else torch.stack(norms).sum(0)

    def ranking_norms(self) -> Float[Tensor, "dict_size"]:
        """Returns the norms by which latents are ranked, held constant: choosing has no gradient, and in the values they cancel."""
        norms = self.decoder_norms().detach()
        return norms.clamp_min(_LEAST_NORM)

    @torch.no_grad()
    def start(self, x: Float[Tensor, "n activation_dim"], y: Float[Tensor, "n output_dim"], start: InitConfig) -> None:
        if self.b_dec is not None:
            self.b_dec.copy_(CENTERS[start.center](y))
        if self._center() is None and not self.is_tied:
            # the same as subtracting a center from the input, at first
            offset = -(upcast(self.W_enc) @ CENTERS[start.center](x))
            for bias in self._encoder_biases():
                bias.copy_(offset)
        if start.fit_decoder and not self.is_tied:
            self.W_dec.copy_(fitted_decoder(self, x, y, start.generator))
        elif start.scale_encoder and not self.is_tied:
            scale = best_scale(self, x, y)
            self.W_enc.mul_(scale)
            for bias in self._encoder_biases():
                bias.mul_(scale)

    def coders(self) -> Iterator[CoderSlice]:
        yield CoderSlice(self, slice(0, self.dict_size), slice(0, self.activation_dim), slice(0, self.output_dim))

    def encoders(self) -> list[Encoder]:
        if self.b_enc is None or self.rank_by_norm:
            return []
        return [Encoder(self.W_enc, self.b_enc, self._center())]

    def reconstruct(self, x: Float[Tensor, "batch activation_dim"]) -> Reconstruction:
        if isinstance(self.nonlinearity, SparseSelection) and not self.nonlinearity.of_each_token:
            latents, pre = self.encode(x), None
        else:
            latents, pre = self.encode_latents(x)
        return Reconstruction(self.decode_latents(latents, self._checked(x)), latents, pre)

    @torch.no_grad()
    def scale_(self, inputs: float, outputs: float | None = None) -> None:
        outputs = inputs if outputs is None else outputs
        if outputs != inputs and (self.centered or self.is_tied):
            what = "An autoencoder" if self.centered else f"A dictionary with {type(self.nonlinearity).__name__}"
            raise ConfigError(f"{what} has one scale; got inputs={inputs} and outputs={outputs}.")
        # nonlinearities commute with positive factors: latents carry the inputs' scale, and directions only the quotient
        if self.b_enc is not None:
            self.b_enc.mul_(inputs)
        ranks = self.rank_by_norm and isinstance(self.nonlinearity, SparseSelection)
        self.nonlinearity.scale_(outputs if ranks else inputs)
        if self.b_dec is not None:
            self.b_dec.mul_(outputs)
        if outputs != inputs:
            self.W_dec.mul_(outputs / inputs)
            if self.W_skip is not None:
                self.W_skip.mul_(outputs / inputs)

    @property
    def encoder(self) -> LinearView:
        """`encoder.weight` (dict_size, activation_dim) and `encoder.bias`, as in `torch.nn.Linear`."""
        return LinearView(self.W_enc, self.b_enc)

    @property
    def decoder(self) -> LinearView:
        """`decoder.weight` (output_dim, dict_size) and `decoder.bias`, as in `torch.nn.Linear`."""
        return LinearView(self.W_dec.T, self.b_dec)

    def nonlinearity_options(self) -> dict[str, Any]:
        """Returns the nonlinearity as plain data."""
        return {"name": NONLINEARITIES.name_of(type(self.nonlinearity)), **self.nonlinearity.options()}

    def _select(self, nonlinearity: SparseSelection, x: Tensor, center: Tensor | None, k: int | None) -> SparseLatents:
        encoder, n = Encoder(self.W_enc, self._bias(), center), min(k or nonlinearity.k, self.dict_size)
        # rows of one matrix for both are directions of unit norm, whatever their norms at each site add up to
        if not self.rank_by_norm or self.is_tied:
            return nonlinearity.encode_sparse(x, encoder, n)
        norms = self.ranking_norms()
        ranked = Encoder(upcast(encoder.W) * norms.unsqueeze(1), upcast(encoder.b) * norms, center)
        kept = nonlinearity.encode_sparse(x, ranked, n)
        return SparseLatents(kept.values / gather_per_latent(norms, kept), kept.support)

    def _center(self) -> Tensor | None:
        return self.b_dec if self.centered else None

    def _encoder_biases(self) -> list[Tensor]:
        """Returns what is added to W_enc x, wherever it is."""
        own = (getattr(self.nonlinearity, name, None) for name in ("gate_bias", "mag_bias"))
        return [bias for bias in (self.b_enc, *own) if bias is not None]

    def _bias(self) -> Tensor:
        return self.b_enc if self.b_enc is not None else self.W_enc.new_zeros(self.dict_size)

    def _checked(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.activation_dim:
            raise ConfigError(
                f"Got activations of width {x.shape[-1]}; this dictionary takes width {self.activation_dim}. "
                "Check that they come from the site that it was trained on."
            )
        return x.to(torch.promote_types(self.dtype, torch.float32))
