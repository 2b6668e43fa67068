"""The sparse backend with loops that numba compiles, for a CPU; numba is imported when first used.

Which computations it replaces was measured (docs/performance.md), and does not depend on how fast
the machine is at the moment: or a run that is resumed could end in other bits.
"""

import functools
import importlib
import importlib.metadata
import importlib.util
import logging

import torch
from torch import Tensor

from dictionary_learning.latents import SparseLatents, Support
from dictionary_learning.ops import _pairs as torch_pairs, _selection as torch_selection
from dictionary_learning.ops._backend import forced_backend
from dictionary_learning.ops._columns import Columns
from dictionary_learning.ops._precision import upcast
from dictionary_learning.ops._sparse import TorchBackend

__all__ = ["IS_INSTALLED", "NumbaBackend", "usable"]

IS_INSTALLED = importlib.util.find_spec("numba") is not None
_LEAST_PRODUCT = 1 << 20  # pre-activations; of fewer, the loops would save less than a millisecond
_LEAST_SUM = 1 << 20  # terms of sums over pairs
_LOOPS = ("adam", "pairs", "selection")
logger = logging.getLogger(__name__)


class NumbaBackend(TorchBackend):
    """The sparse backend, with compiled loops where they are faster, and the work is large enough.

    Compiled are: selection beside the product, dot products of pairs, and sums over tokens. Sums
    over kept latents stay PyTorch's, which fetch the rows of large tables ahead. The first use on a
    machine compiles for some seconds; later processes load what was compiled.
    """

    def supports(self, device_type: str, dtype: torch.dtype) -> bool:
        return IS_INSTALLED and device_type == "cpu" and dtype != torch.float64

    def describe(self, device_type: str) -> str:
        if device_type != "cpu":
            return "compiled for the CPU"
        if found := problem():
            return found
        version = importlib.metadata.version("numba")
        return f"{super().describe(device_type)}; its loops are compiled by numba {version}"

    def select(
        self, x: Tensor, W: Tensor, b: Tensor, k: int, product: Tensor | None = None, columns: Columns | None = None
    ) -> SparseLatents:
        if not _is_compiled(x.dtype, len(x) * len(W), _LEAST_PRODUCT):
            return torch_selection.top_k(x, W, b, k)
        from dictionary_learning.ops._numba import _search

        return _search.top_k(x, W, b, k, product, columns)

    def select_batch(
        self, x: Tensor, W: Tensor, b: Tensor, n: int, product: Tensor | None = None, columns: Columns | None = None
    ) -> SparseLatents:
        if not _is_compiled(x.dtype, len(x) * len(W), _LEAST_PRODUCT):
            return torch_selection.batch_top_k(x, W, b, n)
        from dictionary_learning.ops._numba import _search

        return _search.batch_top_k(x, W, b, n, product, columns)

    def pair_dots(self, x: Tensor, W: Tensor, support: Support) -> Tensor:
        if not _is_compiled(upcast(x).dtype, support.indices.numel() * x.shape[1], _LEAST_SUM):
            return torch_pairs.pair_dots(x, W, support)
        from dictionary_learning.ops._numba import pairs
        from dictionary_learning.ops._numba._threads import by_bounds, even_pairs

        segments, out = support.segments, torch.empty(support.indices.numel())
        tables = (upcast(W).contiguous(), upcast(x).contiguous())
        # in order of latent, each row of W is read once
        parts = even_pairs(segments.offsets)
        by_bounds(pairs.dots, parts, *tables, segments.tokens, segments.offsets, segments.order, out)
        return out.view(support.indices.shape)

    def sum_over_tokens(self, values: Tensor, support: Support, x: Tensor) -> Tensor:
        if not _is_compiled(upcast(x).dtype, support.indices.numel() * x.shape[1], _LEAST_SUM):
            return torch_pairs.sum_over_tokens(values, support, x)
        from dictionary_learning.ops._numba import pairs
        from dictionary_learning.ops._numba._threads import by_bounds, even_pairs

        segments, out = support.segments, torch.empty(support.dict_size, x.shape[1])
        by_latent = upcast(values).flatten().index_select(0, segments.order)  # (P,)
        parts = even_pairs(segments.offsets)
        by_bounds(pairs.sums, parts, by_latent, segments.tokens, segments.offsets, upcast(x).contiguous(), out)
        return out


def _is_compiled(dtype: torch.dtype, size: int, least: int) -> bool:
    return dtype == torch.float32 and size >= least and problem() is None


def usable(device_type: str) -> bool:
    """Returns whether compiled loops run on a device type, unless another backend is forced."""
    return device_type == "cpu" and forced_backend() in (None, "numba") and problem() is None


@functools.cache
def problem() -> str | None:
    """Returns why numba cannot be used, which is logged once; None if it can."""
    if not IS_INSTALLED:
        return "numba is not installed: pip install numba"
    try:
        for name in _LOOPS:  # with what uses it: there may be no place for what is compiled
            importlib.import_module(f"{__name__}.{name}")
    except Exception as error:  # noqa: BLE001  (numba refuses some versions of numpy by an error of its own)
        logger.warning("Loops are not compiled: numba cannot be used (%s).", error)
        return f"numba cannot be used ({error})"
    return None
