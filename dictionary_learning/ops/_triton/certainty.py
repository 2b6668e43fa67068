"""How far the kept latents of a token are above what a latent that was not found can be at most.

One program has the candidates of a token in registers, where separate operations would be thirty.

Letters: B tokens, K kept, C places for candidates of a token.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dictionary_learning.ops._scan import ROUNDING, SAFETY

NOTHING = 1e-30
"""The bound in place of zero: a latent of value zero need not be found."""


def clearance(
    seen: Tensor, exact: Tensor, kept: Tensor, bound: Tensor, found: Tensor, bias_error: Tensor, *, is_coarse: bool
) -> Tensor:
    """Returns the least kept value of each token, above the limit of what was not found: (B,).

    It is -inf where that is unknown: of tokens with NaN, also in a product computed elsewhere, and
    of those with more candidates than places.

    Args:
        seen: Candidates as the scan saw them, -inf in unused places, (B, C) with C a power of two.
        exact: The same, computed again.
        kept: The largest of them (B, K).
        bound: What candidates reach (B,).
        found: The number of latents that reach it (B,).
        bias_error: The largest error of a bias in the scan.
        is_coarse: Whether the scan is in bfloat16.
    """
    (n_tokens, n_places), n_kept = seen.shape, kept.shape[1]
    out = torch.empty(n_tokens, device=seen.device)
    _clearance_kernel[(n_tokens,)](
        seen, exact, kept, bound, found, bias_error, out, n_kept, ROUNDING if is_coarse else 0.0, ROUNDING, SAFETY,
        2 * NOTHING, is_coarse, n_places, triton.next_power_of_2(n_kept), num_warps=4 if n_places > 256 else 1,
    )  # fmt: skip
    return out


@triton.jit
def _clearance_kernel(
    seen, exact, kept, bound, found, bias_error, out, K, of_bound, of_seen, safety, least_bound,
    IS_COARSE: tl.constexpr, PLACES: tl.constexpr, KEPT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    place, column = tl.arange(0, PLACES), tl.arange(0, KEPT)
    value = tl.load(kept + row * K + column, mask=column < K, other=float("inf"))
    least = tl.maximum(tl.min(tl.where(value == value, value, 0.0), axis=0), 0.0)
    given = tl.load(seen + row * PLACES + place)
    limit = tl.load(bound + row)
    unknown = (limit != limit) | (tl.sum((given != given).to(tl.int32), axis=0) > 0)
    unknown |= tl.sum((value != value).to(tl.int32), axis=0) > 0
    unknown |= tl.load(found + row) > PLACES
    limit += of_bound * tl.abs(limit)
    if IS_COARSE:
        again = tl.load(exact + row * PLACES + place)
        finite = (tl.abs(given) < float("inf")) & (tl.abs(again) < float("inf"))  # not so in unused places
        given, again = tl.where(finite, given, 0.0), tl.where(finite, again, 0.0)
        error = tl.abs(given - again) - of_seen * tl.abs(again)  # beyond the rounding of the result
        limit += safety * tl.maximum(tl.max(error, axis=0), 0.0) + tl.load(bias_error)
    clear = least - tl.where(limit > least_bound, limit, 0.0)
    unknown |= clear != clear
    tl.store(out + row, tl.where(unknown, float("-inf"), clear))
