"""Several coders side by side: each reads a part of the inputs and writes a part of the outputs."""

import copy
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar, cast

import torch
from einops import pack, unpack
from jaxtyping import Float, Int
from torch import Tensor, nn

from dictionary_learning._border import checked
from dictionary_learning.dictionaries._base import DICTIONARIES, Reconstruction
from dictionary_learning.dictionaries._coder import Coder
from dictionary_learning.dictionaries._initialization import CENTERS
from dictionary_learning.dictionaries._trainable import CoderSlice, InitConfig, Trainable
from dictionary_learning.dictionaries.nonlinearities import Nonlinearity
from dictionary_learning.errors import ConfigError
from dictionary_learning.latents import Latents, SparseLatents, Support, concat_latents, slice_latents

B = TypeVar("B", bound="ParallelCoders")


class ParallelCoders(Trainable):
    """Coders that each read a slice of the inputs and add to a slice of the outputs.

    Latents are concatenated. Each nonlinearity selects among those of its coder.

    Args:
        parts: The coders, with equal numbers of latents.
        reads: The slice of the inputs that each coder reads; `writes` is the same of the outputs.
        has_output_bias: Whether there is one b_dec for all coders, which have none then.
    """

    b_dec: nn.Parameter | None

    def __init__(
        self,
        parts: Sequence[Coder],
        reads: Sequence[slice],
        writes: Sequence[slice],
        output_dim: int,
        has_output_bias: bool,
    ):
        super().__init__(sum(part.activation_dim for part in parts), sum(part.dict_size for part in parts), output_dim)
        self.parts = nn.ModuleList(parts)
        self.reads, self.writes = tuple(reads), tuple(writes)
        self.b_dec = nn.Parameter(torch.zeros(output_dim)) if has_output_bias else None

    def coders(self) -> Iterator[CoderSlice]:
        start = 0
        for coder, read, write in zip(self.parts, self.reads, self.writes, strict=True):
            assert isinstance(coder, Coder)
            yield CoderSlice(coder, slice(start, start + coder.dict_size), read, write)
            start += coder.dict_size

    def options(self) -> dict[str, Any]:
        first = next(self.coders()).coder
        return {"dict_size": self.dict_size, "nonlinearity": first.nonlinearity_options()}

    def with_parts(self: B, parts: Sequence[Coder]) -> B:
        """Returns a dictionary of the same sites and b_dec, with as many other coders."""
        options: dict[str, Any] = {
            **self.options(),
            "dict_size": sum(part.dict_size for part in parts),
            "nonlinearity": parts[0].nonlinearity_options(),
            "generator": torch.Generator(),  # its random weights are replaced
        }
        made = cast(B, cast(Any, type(self))(**options))
        made.parts = nn.ModuleList(parts)
        if made.b_dec is not None and self.b_dec is not None:
            made.b_dec.data = self.b_dec.detach().to(parts[0].W_dec).clone()
        return made

    def encode(self, x: Float[Tensor, "*batch activation_dim"]) -> Float[Tensor, "*batch dict_size"]:
        return torch.cat([coder.encode(own) for coder, own in self._inputs(x)], dim=-1)

    def pre_activations(self, x: Float[Tensor, "*batch activation_dim"]) -> Float[Tensor, "*batch dict_size"]:
        """Returns the inputs of the nonlinearities."""
        return torch.cat([coder.pre_activations(own) for coder, own in self._inputs(x)], dim=-1)

    def encode_sparse(self, x: Float[Tensor, "batch activation_dim"], k: int | None = None) -> SparseLatents:
        return concat_latents([coder.encode_sparse(own, k) for coder, own in self._inputs(x)])

    def encode_latents(self, x: Float[Tensor, "batch activation_dim"]) -> tuple[Latents, Latents | None]:
        found = [coder.encode_latents(own) for coder, own in self._inputs(x)]
        pre = [one for _, one in found if one is not None]
        return _joined([one for one, _ in found]), _joined(pre) if len(pre) == len(found) else None

    def decode(self, latents: Float[Tensor, "*batch dict_size"]) -> Float[Tensor, "*batch output_dim"]:
        flat, lead = pack([latents], "* dim")  # (batch, dict_size)
        (out,) = unpack(self._write(p.coder.decode(flat[:, p.latents]) for p in self.coders()), lead, "* dim")
        return out

    def decode_latents(
        self, latents: Latents, x: Float[Tensor, "batch activation_dim"], *, frozen: bool = False
    ) -> Float[Tensor, "batch output_dim"]:
        outputs = (p.coder.decode_latents(_own(latents, p), x[:, p.reads], frozen=frozen) for p in self.coders())
        return self._write(outputs, frozen=frozen)

    def pointwise(self, method: str, pre: Latents) -> Latents:
        return _joined([part.coder.pointwise(method, _own(pre, part)) for part in self.coders()])

    def decode_among(
        self, x: Float[Tensor, "batch activation_dim"], candidates: Int[Tensor, "n"], k: int
    ) -> Float[Tensor, "batch output_dim"]:
        self.check_width(x)
        out = x.new_zeros(len(x), self.output_dim)
        for part in self.coders():
            own = part.own(candidates)
            if part.coder.latent_ranks.total(len(own)):  # each coder gets an equal share of k
                decoded = part.coder.decode_among(x[:, part.reads], own, max(k // len(self.parts), 1))
                out = out + nn.functional.pad(decoded, (part.writes.start, self.output_dim - part.writes.stop))
        return out

    def decoder_norms(self) -> Float[Tensor, "dict_size"]:
        return torch.cat([part.coder.decoder_norms() for part in self.coders()])

    @torch.no_grad()
    def initialize_from_data(
        self, x: Float[Tensor, "n activation_dim"], y: Float[Tensor, "n output_dim"], init: InitConfig
    ) -> None:
        if self.b_dec is not None:
            self.b_dec.copy_(CENTERS[init.center](y))
            y = y - self.b_dec  # coders without a b_dec fit the rest
        for part in self.coders():
            part.coder.initialize_from_data(x[:, part.reads], y[:, part.writes], init)

    def reconstruct(self, x: Float[Tensor, "batch activation_dim"]) -> Reconstruction:
        if self.encodes_itself or self.decodes_itself:  # of a user's class
            return super().reconstruct(x)
        parts = [coder.reconstruct(own) for coder, own in self._inputs(x)]
        return Reconstruction(self._write(part.outputs for part in parts), _joined([part.latents for part in parts]))

    @torch.no_grad()
    def scale_(self, inputs: float, outputs: float | None = None) -> None:
        outputs = inputs if outputs is None else outputs
        for part in self.coders():
            part.coder.scale_(inputs, outputs)
        if self.b_dec is not None:
            self.b_dec.mul_(outputs)

    def _inputs(self, x: Tensor) -> list[tuple[Coder, Tensor]]:
        """Returns each coder with what it reads: (..., dim)."""
        self.check_width(x)
        return [(part.coder, x[..., part.reads]) for part in self.coders()]

    def _write(self, outputs: Iterable[Tensor], *, frozen: bool = False) -> Tensor:
        total: Tensor | None = None
        # summed one by one: a stack of all outputs would need several times the memory
        for out, write in zip(outputs, self.writes, strict=True):
            placed = nn.functional.pad(out, (write.start, self.output_dim - write.stop))
            total = placed if total is None else total + placed
        assert total is not None
        if self.b_dec is None:
            return total
        return total + (self.b_dec.detach() if frozen else self.b_dec)


@DICTIONARIES.register("CrossLayerTranscoder")
class CrossLayerTranscoder(ParallelCoders):
    """Predicts the module output of each layer from the latents of this and of earlier layers.

    latents^s = nonlinearity(W_enc^s x^s + b_enc^s)
    y_hat^l = sum over s <= l of W_dec^(s to l)^T latents^s + b_dec^l

    There are L encoders and L (L + 1) / 2 decoders. Layers are concatenated: (batch, sum of
    widths). Ameisen et al. 2025, "Circuit Tracing", Transformer Circuits.

    Args:
        site_dims: Width of the module input of each layer.
        dict_size: Number of latents of all layers together.
        nonlinearity: As of `Coder`, for each layer: k is per layer.
        output_dims: Width of the module output of each layer; by default `site_dims`.

    Raises:
        ConfigError: dict_size is not a multiple of the layers, or inputs and outputs differ in
            number.
    """

    @checked(is_module=True)
    def __init__(
        self,
        site_dims: Sequence[int],
        dict_size: int,
        nonlinearity: Nonlinearity | dict[str, Any],
        *,
        output_dims: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
    ):
        if not site_dims:
            raise ConfigError(f"Got site_dims={site_dims!r}; give the width of each layer's input.")
        outputs = tuple(output_dims if output_dims is not None else site_dims)
        if len(outputs) != len(site_dims):
            raise ConfigError(
                f"A cross-layer transcoder got {len(site_dims)} inputs and {len(outputs)} outputs in output_dims; "
                "give one of both for each layer."
            )
        writes = [slice(place.start, sum(outputs)) for place in _places(outputs)]
        parts = [
            Coder(
                dim,
                _share(dict_size, len(site_dims)),
                copy.deepcopy(nonlinearity),
                output_dim=sum(outputs[layer:]),  # a layer writes to itself and to all later ones
                apply_b_dec_to_input=False,
                has_output_bias=False,
                generator=generator,
            )
            for layer, dim in enumerate(site_dims)
        ]
        super().__init__(parts, _places(site_dims), writes, sum(outputs), has_output_bias=True)
        self.site_dims, self.output_dims = tuple(site_dims), outputs

    @property
    def site_widths(self) -> tuple[Sequence[int], Sequence[int]]:
        return self.site_dims, self.output_dims

    def options(self) -> dict[str, Any]:
        return {"site_dims": list(self.site_dims), **super().options(), "output_dims": list(self.output_dims)}


@DICTIONARIES.register("HeadAutoencoders")
class HeadAutoencoders(ParallelCoders):
    """An autoencoder for each attention head, on the input of the output projection.

    Widths and numbers of latents are those of all heads together, but k is per head.

    Raises:
        ConfigError: activation_dim or dict_size is not a multiple of n_heads.
    """

    def __init__(
        self,
        activation_dim: int,
        dict_size: int,
        nonlinearity: Nonlinearity | dict[str, Any],
        *,
        n_heads: int,
        generator: torch.Generator | None = None,
    ):
        if n_heads < 1 or activation_dim % n_heads:
            raise ConfigError(
                f"Activations of width {activation_dim} cannot be split into {n_heads} heads. Give a site whose width "
                "is a multiple of the number of heads, such as the input of the attention's output projection."
            )
        dim = activation_dim // n_heads
        places = _places([dim] * n_heads)
        parts = [
            Coder(dim, _share(dict_size, n_heads), copy.deepcopy(nonlinearity), generator=generator)
            for _ in range(n_heads)
        ]
        super().__init__(parts, places, places, activation_dim, has_output_bias=False)

    def options(self) -> dict[str, Any]:
        return {"activation_dim": self.activation_dim, **super().options(), "n_heads": len(self.parts)}


def _own(latents: Latents, part: CoderSlice) -> Latents:
    if isinstance(latents, Tensor):
        return latents[:, part.latents]
    return slice_latents(latents, part.latents.start, part.latents.stop)


def _joined(parts: list[Latents]) -> Latents:
    dense = [part for part in parts if isinstance(part, Tensor)]
    if len(dense) == len(parts):
        return torch.cat(dense, dim=1)
    # pre-activations that were not selected are unknown, not zero: sparse parts stay sparse
    return concat_latents([_all_pairs(part) if isinstance(part, Tensor) else part for part in parts])


def _all_pairs(latents: Tensor) -> SparseLatents:
    places = torch.arange(latents.shape[1], device=latents.device).expand_as(latents)  # (batch, latents)
    return SparseLatents(latents, Support(places, latents.shape[1]))


def _places(widths: Sequence[int]) -> list[slice]:
    ends = list(itertools.accumulate(widths))
    return [slice(end - width, end) for end, width in zip(ends, widths, strict=True)]


def _share(dict_size: int, n: int) -> int:
    if dict_size % n:
        raise ConfigError(
            f"dict_size={dict_size} is not a multiple of {n} parts; it counts all latents together. Give a multiple."
        )
    return dict_size // n
