"""An encoder, a nonlinearity and a decoder: the parts of every wiring."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from einops import pack, unpack
from jaxtyping import Float, Int
from torch import Tensor, nn

from dictionary_learning._border import checked
from dictionary_learning._hardware import check_memory
from dictionary_learning.dictionaries._base import Reconstruction
from dictionary_learning.dictionaries._initialization import (
    CENTERS,
    best_scale,
    bounds,
    fitted_decoder,
    mix_with_data_,
    ranks_of_new,
    unit_rows,
)
from dictionary_learning.dictionaries._own_code import encoded_itself, sparse_encoded_itself
from dictionary_learning.dictionaries._trainable import CoderSlice, InitConfig, Trainable
from dictionary_learning.dictionaries._views import LinearView
from dictionary_learning.dictionaries.nonlinearities import (
    NONLINEARITIES,
    Elementwise,
    Nonlinearity,
    SparseSelection,
)
from dictionary_learning.errors import ConfigError
from dictionary_learning.latents import Latents, SparseLatents, Support, gather_per_latent, replace_values, to_dense
from dictionary_learning.ops import Encoder, backend_for, take_rows
from dictionary_learning.ops._columns import keeping_columns, kept_columns
from dictionary_learning.ops._joint import given_product
from dictionary_learning.ops._precision import no_autocast, upcast
from dictionary_learning.parallel import ALONE, Ranks, kept_of_all

_LEAST_NORM = 1e-12
"""Floor of the norms for ranking: a decoder may be zero at first."""


def build_nonlinearity(given: Nonlinearity | dict[str, Any]) -> Nonlinearity:
    """Returns a nonlinearity by name and options, such as `{"name": "top_k", "k": 32}`."""
    if isinstance(given, Nonlinearity):
        return given
    options = dict(given)
    return checked()(NONLINEARITIES[options.pop("name", "")])(**options)


class Coder(Trainable):
    """One encoder and one decoder around a nonlinearity.

    latents = nonlinearity(W_enc (x - b_dec) + b_enc)    without b_dec, unless it is subtracted
    x_hat = W_dec^T latents + b_dec [+ W_skip x]

    Initial decoder rows have unit norm and random directions. The initial encoder is the decoder's
    transpose where both have the same width.

    Args:
        nonlinearity: The nonlinearity, or its name and options as `{"name": "top_k", "k": 32}`.
        apply_b_dec_to_input: Whether b_dec is subtracted before encoding; needs equal widths.
        skip: Whether the output has an affine part W_skip x, initially zero.
        rank_by_norm: Whether latents are ranked, and compared with the threshold, by value times
            decoder norm, where a set number is kept.
        site_dims: Widths of the sites that are written, whose norms are added; by default one site.
        generator: Draws the initial directions; None for the global generator.

    Raises:
        ConfigError: The arguments contradict each other, or more latents would be kept than exist.
    """

    option_names: ClassVar[tuple[str, ...]] = ("output_dim", "apply_b_dec_to_input", "has_output_bias")
    """Arguments beyond the sizes and the nonlinearity that are saved."""
    subtracts_b_dec: ClassVar[bool] = True  # default of apply_b_dec_to_input
    has_skip: ClassVar[bool] = False  # default of skip
    ranks_by_norm: ClassVar[bool] = False  # default of rank_by_norm

    W_enc: nn.Parameter
    b_enc: nn.Parameter | None
    b_dec: nn.Parameter | None
    W_skip: nn.Parameter | None
    latent_ranks: Ranks = ALONE
    """The processes that hold the other latents; `dict_size` and all tensors are of this one."""
    first_latent: int = 0
    """The number of this process's first latent among those of all."""
    keeps: int | None = None
    """Latents per token that `encode` keeps as in training, while a class of a user's is asked."""

    @checked(is_module=True)
    def __init__(
        self,
        activation_dim: int,
        dict_size: int,
        nonlinearity: Nonlinearity | dict[str, Any],
        *,
        output_dim: int | None = None,
        apply_b_dec_to_input: bool | None = None,
        skip: bool | None = None,
        rank_by_norm: bool | None = None,
        site_dims: Sequence[int] | None = None,
        has_output_bias: bool = True,
        generator: torch.Generator | None = None,
    ):
        ranks = ranks_of_new()
        own = bounds(dict_size, ranks.rank, ranks.size)
        super().__init__(activation_dim, own[1] - own[0], output_dim)
        n_bytes = 4 * self.dict_size * (activation_dim + self.output_dim)
        check_memory(n_bytes, torch.empty(0).device, f"A dictionary of dict_size={dict_size}", "Lower dict_size.")
        nonlinearity = build_nonlinearity(nonlinearity)
        self.is_tied = nonlinearity.is_tied
        self.apply_b_dec_to_input = self.subtracts_b_dec if apply_b_dec_to_input is None else apply_b_dec_to_input
        self.rank_by_norm = self.ranks_by_norm if rank_by_norm is None else rank_by_norm
        self.skip, self.has_output_bias = self.has_skip if skip is None else skip, has_output_bias
        if (self.apply_b_dec_to_input or self.is_tied) and self.output_dim != activation_dim:
            name = type(nonlinearity).__name__
            raise ConfigError(
                f"{type(self).__name__} reads width {activation_dim} and writes width {self.output_dim}; "
                f"{f'{name} has one matrix for both' if self.is_tied else 'b_dec can only be subtracted from inputs'} "
                "where the widths are equal. Choose another nonlinearity or wiring."
            )
        nonlinearity.setup(dict_size)
        self.nonlinearity = nonlinearity
        if ranks.size > 1:
            self._hold_own(ranks, dict_size, own)
        self.site_dims = tuple(site_dims) if site_dims is not None else (self.output_dim,)
        if sum(self.site_dims) != self.output_dim:
            raise ConfigError(
                f"Got site_dims={self.site_dims}; their sum must be the output's width {self.output_dim}."
            )
        self.W_dec = nn.Parameter(unit_rows(dict_size, self.output_dim, generator, own))
        if not self.is_tied:
            same = activation_dim == self.output_dim
            start = self.W_dec.detach().clone() if same else unit_rows(dict_size, activation_dim, generator, own)
            self.W_enc = nn.Parameter(start)
        # gates have biases of their own, which replace b_enc
        self.b_enc = None if nonlinearity.has_bias else nn.Parameter(torch.zeros(self.dict_size))
        self.b_dec = nn.Parameter(torch.zeros(self.output_dim)) if has_output_bias else None
        self.W_skip = nn.Parameter(torch.zeros(self.output_dim, activation_dim)) if self.skip else None

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("encoder", "decoder"):  # views, in the place of which a module would have no effect
            getattr(self, name).assign(value, f"{type(self).__name__}.{name}")
        else:
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name == "W_enc" and self.is_tied:
            return self.W_dec
        return super().__getattr__(name)

    def pre_activations(
        self, x: Float[Tensor, "*batch activation_dim"], latents: Int[Tensor, "n"] | None = None
    ) -> Float[Tensor, "*batch latents"]:
        """Returns the inputs of the nonlinearity for all or some latents, in float32 at least."""
        x, center = self._checked(x), self._center()
        weight, bias = self.W_enc, self.b_enc
        if latents is not None:  # (n, activation_dim) and (n,)
            weight, bias = weight[latents], None if bias is None else bias[latents]
        centered = x if center is None else x - center.to(x.dtype)
        with no_autocast(x):
            return nn.functional.linear(centered, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

    def encode(self, x: Float[Tensor, "*batch activation_dim"]) -> Float[Tensor, "*batch dict_size"]:
        selects = isinstance(self.nonlinearity, SparseSelection)
        if selects and (self.nonlinearity.of_each_token or self.keeps is not None):
            self.check_width(x)
            flat, lead = pack([x], "* dim")  # (batch, activation_dim)
            (dense,) = unpack(to_dense(self.kept(flat, self.keeps)), lead, "* dict_size")
            return dense
        pre = self.pre_activations(x)
        if self.rank_by_norm and isinstance(self.nonlinearity, SparseSelection):
            norms = self.ranking_norms()  # (dict_size,)
            return self.nonlinearity(pre * norms) / norms
        return self.nonlinearity(pre)

    def encode_latents(self, x: Float[Tensor, "batch activation_dim"]) -> tuple[Latents, Latents | None]:
        if not isinstance(self.nonlinearity, Elementwise):
            return self.encode_sparse(x), None
        if self.encodes_itself:
            return encoded_itself(self, x), self.pre_activations(x)
        encoder = self._encoder()
        pre = encoder.backend.encode_where(self._checked(x), encoder, self.nonlinearity.support_mask)
        return self.pointwise("activate", pre), pre

    def pointwise(self, method: str, pre: Latents) -> Latents:
        apply = getattr(self.nonlinearity, method)
        return apply(pre) if isinstance(pre, Tensor) else replace_values(pre, apply(pre.values, pre.indices))

    def encode_sparse(self, x: Float[Tensor, "batch activation_dim"], k: int | None = None) -> SparseLatents:
        return sparse_encoded_itself(self, x, k) if self.encodes_itself else self.kept(x, k)

    def kept(self, x: Float[Tensor, "batch activation_dim"], k: int | None = None) -> SparseLatents:
        """Returns the latents that the nonlinearity keeps, also where the class encodes itself."""
        nonlinearity = self.nonlinearity
        if not isinstance(nonlinearity, SparseSelection):
            raise ConfigError(f"{type(nonlinearity).__name__} does not keep a set number of latents; use encode.")
        x, n = self._checked(x), min(k or nonlinearity.k, self.dict_size)  # k of a caller may be larger
        encoder = self._encoder()
        if not self.ranks_values_by_norm:
            return self._of_all(nonlinearity.encode_sparse(x, encoder, n), k)
        norms = self.ranking_norms()
        # the encoder computes what is ranked, so that kernels need not know norms
        ranked = Encoder(upcast(encoder.W) * norms.unsqueeze(1), upcast(encoder.b) * norms, encoder.center)
        kept = self._of_all(nonlinearity.encode_sparse(x, ranked, n), k)
        return SparseLatents(kept.values / gather_per_latent(norms, kept), kept.support)

    def among_all(self, latents: SparseLatents, k: int, most: int | None = None) -> SparseLatents:
        """Returns the latents, with those at 0 that are not among the k largest of all ranks.

        `most` is the largest number of candidates that a rank has; k by default.
        """
        if self.latent_ranks.size == 1:
            return latents
        nonlinearity = self.nonlinearity
        is_signed = isinstance(nonlinearity, SparseSelection) and nonlinearity.is_signed
        ranked = latents.values.abs() if is_signed else latents.values
        kept = kept_of_all(ranked, k, self.latent_ranks, most)
        return SparseLatents(latents.values * kept, latents.support)

    @checked(is_module=True)
    def decode(
        self, latents: Float[Tensor, "*batch dict_size"], x: Float[Tensor, "*batch activation_dim"] | None = None
    ) -> Float[Tensor, "*batch output_dim"]:
        """Returns the reconstruction from dense latents, in float32 at least.

        Raises:
            ConfigError: The output has a part W_skip x, and x was not given.
        """
        self.check_width(latents, self.dict_size, "latents")
        dtype = torch.promote_types(self.dtype, torch.float32)
        with no_autocast(latents):
            out = latents.to(dtype) @ self.W_dec.to(dtype)
        return self.with_affine_part(out, None if x is None else x.to(dtype))

    def decode_with(
        self, latents: Float[Tensor, "*batch dict_size"], x: Float[Tensor, "*batch activation_dim"]
    ) -> Float[Tensor, "*batch output_dim"]:
        return self.decode(latents) if self.W_skip is None else self.decode(latents, x)

    def decode_latents(
        self, latents: Latents, x: Float[Tensor, "batch activation_dim"], *, frozen: bool = False
    ) -> Float[Tensor, "batch output_dim"]:
        if self.decodes_itself and not frozen:  # with `frozen` gates reconstruct, as in 0.1 by the weights
            return self.decode_with(to_dense(latents), x)
        W_dec = self.W_dec.detach() if frozen else self.W_dec
        if isinstance(latents, SparseLatents):
            out = backend_for(W_dec).decode(latents, W_dec)
        else:
            with no_autocast(latents):
                out = upcast(latents) @ upcast(W_dec)
        return self.with_affine_part(self.latent_ranks.add(out), x, frozen=frozen)

    def with_affine_part(
        self, out: Float[Tensor, "*batch output_dim"], x: Tensor | None, *, frozen: bool = False
    ) -> Float[Tensor, "*batch output_dim"]:
        """Adds b_dec and W_skip x to an output."""
        b_dec, W_skip = (p.detach() if frozen and p is not None else p for p in (self.b_dec, self.W_skip))
        if b_dec is not None:
            out = out + b_dec
        if W_skip is not None:
            if x is None:
                raise ConfigError("The output has a part W_skip x; give x too: decode(latents, x).")
            with no_autocast(x):
                out = out + nn.functional.linear(upcast(x), upcast(W_skip))
        return out

    def decode_among(
        self, x: Float[Tensor, "batch activation_dim"], candidates: Int[Tensor, "n"], k: int
    ) -> Float[Tensor, "batch output_dim"]:
        whole = self._encoder()
        # a gate decides which latents fire: its bias, and not that of the magnitude, revives them
        bias = whole.b if self.b_enc is not None else (self.encoder_biases() or [whole.b])[0]
        W_enc, b_enc, W_dec = (take_rows(w, candidates) for w in (whole.W, bias, self.W_dec))
        norms = self.ranking_norms()[candidates] if self.ranks_values_by_norm else None  # as `kept` does
        if norms is not None:
            W_enc, b_enc = upcast(W_enc) * norms.unsqueeze(1), upcast(b_enc) * norms
        encoder = Encoder(W_enc, b_enc, None if whole.center is None else whole.center.detach())
        x, n = self._checked(x), min(k, len(candidates))
        most = max(n_of_rank for (n_of_rank,) in self.latent_ranks.tell([len(candidates)]))
        if not n:  # other ranks have candidates
            latents = SparseLatents(x.new_zeros(len(x), 0), Support(candidates.expand(len(x), 0), 0))
            self.among_all(latents, k, most)
            return self.latent_ranks.add(x.new_zeros(len(x), self.output_dim))
        if isinstance(self.nonlinearity, SparseSelection) and self.nonlinearity.is_signed:
            latents = encoder.backend.encode_where(x, encoder, lambda pre: pre.abs().topk(n).indices)
        else:
            with given_product(x, encoder, None if norms is not None else kept_columns(x, whole, candidates)):
                latents = encoder.backend.top_k(x, encoder, n)
        assert isinstance(latents, SparseLatents)
        latents = self.among_all(latents, k, most)
        if norms is not None:
            latents = SparseLatents(latents.values / gather_per_latent(norms, latents), latents.support)
        return self.latent_ranks.add(encoder.backend.decode(latents, W_dec))

    def keeping(self, candidates: Int[Tensor, "n"]) -> contextlib.AbstractContextManager[None]:
        return keeping_columns(self._encoder(), candidates)

    def decoder_norms(self) -> Float[Tensor, "dict_size"]:
        norms = [block.norm(dim=1) for block in upcast(self.W_dec).split(self.site_dims, dim=1)]  # each (dict_size,)
        return norms[0] if len(norms) == 1 else torch.stack(norms).sum(0)

    @property
    def ranks_values_by_norm(self) -> bool:
        """Whether latents are compared, and by value times norm; a tied matrix has unit rows."""
        return self.rank_by_norm and not self.is_tied and isinstance(self.nonlinearity, SparseSelection)

    def ranking_norms(self) -> Float[Tensor, "dict_size"]:
        """Returns the norms by which latents are ranked, as constants."""
        # selection has no gradient, and in the values the norms cancel
        return self.decoder_norms().detach().clamp_min(_LEAST_NORM)

    @torch.no_grad()
    def initialize_from_data(
        self, x: Float[Tensor, "n activation_dim"], y: Float[Tensor, "n output_dim"], init: InitConfig
    ) -> None:
        if self.b_dec is not None:
            self.b_dec.copy_(CENTERS[init.center](y))
        # weights that were set by hand are no transposes of each other, and stay
        if init.data_share and len(y) > 1 and torch.equal(self.W_enc, self.W_dec):
            mix_with_data_(self, y, init.data_share, init.generator)
        if self._center() is None and not self.is_tied:
            # the same pre-activations as with the center subtracted from the inputs
            offset = -(upcast(self.W_enc) @ CENTERS[init.center](x))
            for bias in self.encoder_biases():
                bias.copy_(offset)
        if init.fit_decoder and not self.is_tied:
            self.W_dec.copy_(fitted_decoder(self, x, y, init.generator, init.selecting))
        elif init.scale_encoder and not (self.is_tied or self.encodes_itself or self.decodes_itself):
            scale = best_scale(self, x, y, init.selecting)
            self.W_enc.mul_(scale)
            for bias in self.encoder_biases():
                bias.mul_(scale)

    def coders(self) -> Iterator[CoderSlice]:
        sizes = (self.dict_size, self.activation_dim, self.output_dim)
        yield CoderSlice(self, *(slice(0, size) for size in sizes), is_whole=True)

    def encoders(self) -> list[Encoder]:
        return [] if self.b_enc is None or self.rank_by_norm or self.encodes_itself else [self._encoder()]

    def reconstruct(self, x: Float[Tensor, "batch activation_dim"]) -> Reconstruction:
        latents, pre = self.encode_latents(x) if self.nonlinearity.of_each_token else (self.encode(x), None)
        return Reconstruction(self.decode_latents(latents, self._checked(x)), latents, pre)

    @torch.no_grad()
    def scale_(self, inputs: float, outputs: float | None = None) -> None:
        outputs = inputs if outputs is None else outputs
        if outputs != inputs and (self.apply_b_dec_to_input or self.is_tied):
            what = "that subtracts b_dec from inputs" if self.apply_b_dec_to_input else "with a tied matrix"
            raise ConfigError(f"A dictionary {what} has one scale; got inputs={inputs} and outputs={outputs}.")
        # nonlinearities commute with positive factors: latents get the inputs' scale, the decoder
        # the quotient
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
    def centered(self) -> bool:
        """Whether b_dec is subtracted before encoding."""
        return self.apply_b_dec_to_input

    @property
    def encoder(self) -> LinearView:
        """`encoder.weight` (dict_size, activation_dim) and `encoder.bias`."""
        return LinearView(self.W_enc, self.b_enc)

    @property
    def decoder(self) -> LinearView:
        """`decoder.weight` (output_dim, dict_size) and `decoder.bias`."""
        return LinearView(self.W_dec, self.b_dec, transposed=True)

    def options(self) -> dict[str, Any]:
        sizes = {"activation_dim": self.activation_dim, "dict_size": self.dict_size}
        further = {name: getattr(self, name) for name in self.option_names}
        return {**sizes, "nonlinearity": self.nonlinearity_options(), **further}

    def nonlinearity_options(self) -> dict[str, Any]:
        """Returns the nonlinearity as plain data."""
        return {"name": NONLINEARITIES.name_of(type(self.nonlinearity)), **self.nonlinearity.options()}

    def encoder_biases(self) -> list[nn.Parameter]:
        """Returns the biases that are added to W_enc x: b_enc, or those of the nonlinearity."""
        return self.nonlinearity.biases() if self.b_enc is None else [self.b_enc]

    def _encoder(self) -> Encoder:
        bias = self.W_enc.new_zeros(self.dict_size) if self.b_enc is None else self.b_enc
        return Encoder(self.W_enc, bias, self._center())

    def _center(self) -> Tensor | None:
        return self.latent_ranks.lend(self.b_dec) if self.apply_b_dec_to_input and self.b_dec is not None else None

    def _hold_own(self, ranks: Ranks, whole: int, own: tuple[int, int]) -> None:
        """Makes this coder hold a slice of the latents, before it has weights of its own."""
        if whole < ranks.size:
            raise ConfigError(
                f"{whole} latents cannot be spread over {ranks.size} ranks. Raise dict_size, or use placement='data'."
            )
        self.latent_ranks, self.first_latent = ranks, own[0]
        for tensor in (*self.nonlinearity.parameters(), *self.nonlinearity.buffers()):
            if tensor.shape[:1] == (whole,):
                tensor.data = tensor.data[slice(*own)].clone()

    def _of_all(self, latents: SparseLatents, k: int | None) -> SparseLatents:
        nonlinearity = self.nonlinearity
        assert isinstance(nonlinearity, SparseSelection)
        # of a batch together, the cut is one of all ranks already
        return self.among_all(latents, k or nonlinearity.k) if nonlinearity.of_each_token else latents

    def _checked(self, x: Tensor) -> Tensor:
        self.check_width(x)
        return x.to(torch.promote_types(self.dtype, torch.float32))
