"""The kept pre-activations: the largest, without a sort of all, or those that a rule chooses.

The largest are searched in bfloat16 where that is fast:

* The k latents of a token lie in the k groups of latents with the largest maxima. So the k-th
  largest maximum is a bound for what is kept, and the latents that reach it are the candidates:
  about 1.2 k.
* If the k-th candidate of a token could be exceeded by a latent that was not found, given the
  rounding errors seen, the token is computed again in whole: the result is that of full precision.
* For a batch together, the bound is estimated from a sample of the tokens and checked at the end.

Letters: B tokens, F latents, D activation, K kept, G groups of a token, C candidates of a token, P
    pairs.
"""

import torch
from torch import Tensor

from dictionary_learning.latents import SparseLatents, Support
from dictionary_learning.ops._backend import Choose
from dictionary_learning.ops._columns import Columns
from dictionary_learning.ops._precision import upcast
from dictionary_learning.ops._scan import Pairs, Scan, Table

_MOST_CANDIDATES = 4  # a token with more candidates than this for each kept latent is computed in whole
SURPLUS = 1.1  # candidates of a batch for each kept pair: the estimated bound is then seldom too high
_FEW = 32
_WHOLE_BYTES = 1 << 24  # pre-activations held at once where all are computed in full precision
_CHUNK_ELEMENTS = 1 << 21
"""Pre-activations computed at once for a rule: 8 MiB stay in the cache until it has chosen."""
_DENSE_FROM = 1 / 24
"""The share of chosen pairs from which on dense products are faster: a step at (576, 4,608, 2,048)
on a CPU takes 0.6 of the time of the dense one with 1/32 of the pairs, and 1.3 with 1/16."""


def top_k(
    x: Tensor, W: Tensor, b: Tensor, k: int, product: Tensor | None = None, columns: Columns | None = None
) -> SparseLatents:
    """Returns the k largest of relu(x W^T + b) of each row; see `SparseBackend.select`."""
    weight, b = upcast(W), upcast(b)
    # the search below looks at what it finds, for which the host would have to wait for an
    # accelerator
    group = Scan.group_size(len(W), k) if x.device.type == "cpu" else 1
    if group == 1 or not len(x):
        values, indices = whole(x, weight, b, k)
        return SparseLatents(values.relu_(), Support(indices, len(W)))
    scan = Scan(x, weight, b, group)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    bounds: list[Tensor] = []
    for chunk in scan.chunks():
        kth = chunk.groups.topk(k, dim=-1, sorted=False).values.amin(-1)  # (rows,)
        bounds.append(scan.bound(scan.values(kth), chunk.rows))
        found.append(scan.reaching(chunk, bounds[-1]))
    table = Table.of(scan.exact(found, in_order=True), len(x), least=k, most=_MOST_CANDIDATES * k)
    values, order = table.exact.topk(k, dim=-1, sorted=False)  # (B, K)
    indices = table.latents.gather(1, order)
    # a token with too few candidates has -inf here, as does one that is not finite
    least = values.amin(-1)
    certain = (least >= scan.limit(torch.cat(bounds), table.errors)) & (least >= 0)
    doubtful = (~certain | table.overfull).nonzero().squeeze(1)
    if len(doubtful):
        values[doubtful], indices[doubtful] = whole(x[doubtful], weight, b, k)
    return SparseLatents(values.relu_(), Support(indices, len(W)))


def batch_top_k(
    x: Tensor, W: Tensor, b: Tensor, n_kept: int, product: Tensor | None = None, columns: Columns | None = None
) -> SparseLatents:
    """Returns the n_kept largest of x W^T + b of all rows together, if they are positive.

    A row with a non-finite value keeps nothing and takes no places of the others.
    """
    weight, b = upcast(W), upcast(b)
    if not len(x) or not n_kept:
        nothing = torch.zeros(0, dtype=torch.long)
        return SparseLatents(x.new_zeros(0), Support(nothing, len(W), torch.zeros(len(x) + 1, dtype=torch.long)))
    scan = Scan(x, weight, b, Scan.group_size(len(W), -(-n_kept // len(x))))
    share = SURPLUS * n_kept / len(x)
    while True:
        pairs, bound = _candidates(scan, share)
        n = min(n_kept, int((pairs.exact > 0).sum()))
        cut = pairs.exact.kthvalue(len(pairs.exact) - n + 1).values if n else x.new_tensor(torch.inf)
        limit = scan.limit(bound, pairs.errors.amax() if len(pairs.errors) else x.new_zeros(())).amax()
        # a limit of zero leaves out nothing that could be kept
        if not bool(limit > 0) or (n == n_kept and bool(cut >= limit)):
            return largest_pairs(pairs, cut, n, len(x), len(W))
        if not bool((bound > 0).any()):  # there is no lower one
            return _largest_of_whole(x, weight, b, n_kept)
        share *= 2


def chosen_pairs(x: Tensor, W: Tensor, b: Tensor, choose: Choose) -> SparseLatents | None:
    """Returns the chosen of x W^T + b, or None if so many are that dense products are faster."""
    n_rows = max(1, _CHUNK_ELEMENTS // max(len(W), 1))
    values: list[Tensor] = []
    latents: list[Tensor] = []
    counts: list[Tensor] = []
    for rows in x.split(n_rows) if len(x) else [x]:
        pre = torch.addmm(b, rows, W.T)  # (rows, F)
        kept = choose(pre)
        if kept.dtype != torch.bool:
            values.append(pre.gather(1, kept))  # (rows, K)
            latents.append(kept)
            continue
        places = kept.flatten().nonzero().squeeze(1)  # token * F + latent, in order of token
        if len(places) > _DENSE_FROM * kept.numel():
            return None
        values.append(pre.flatten()[places])  # (P,)
        latents.append(places % len(W))
        counts.append(torch.bincount(places // len(W), minlength=len(rows)))
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), torch.cat(counts).cumsum(0)]) if counts else None
    return SparseLatents(torch.cat(values), Support(torch.cat(latents), len(W), offsets))


def _candidates(scan: Scan, share: float) -> tuple[Pairs, Tensor]:
    """Returns about `share` pairs for each token, and the bound (B,) that they reach."""
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    bounds: list[Tensor] = []
    cut = None
    for chunk in scan.chunks(strided=True):
        if cut is None:
            # the first chunk represents all: its tokens are taken at equal distances
            maxima = scan.values(chunk.groups).flatten()  # (rows * G,)
            rank = maxima.numel() - int(share * len(chunk.groups))
            cut = maxima.kthvalue(rank).values.clamp_min(0) if rank > 0 else maxima.new_zeros(())
        bounds.append(scan.bound(cut.expand(len(chunk.groups)), chunk.rows))
        found.append(scan.reaching(chunk, bounds[-1]))
    bound = torch.cat(bounds)
    return scan.exact(found, in_order=False), torch.where(bound.isfinite(), bound, 0)


def largest_pairs(
    pairs: Pairs, cut: Tensor, n: int, n_tokens: int, n_latents: int, *, in_order: bool = False
) -> SparseLatents:
    """Returns the n pairs that reach the cut, in order of token; of equal values the first.

    `in_order` says that the pairs are in order of token already.
    """
    above, level = pairs.exact > cut, pairs.exact == cut  # (P,)
    kept = (above | (level & (level.cumsum(0) <= n - above.sum()))).nonzero().squeeze(1)
    tokens = pairs.tokens[kept]
    if not in_order:
        tokens, order = tokens.sort(stable=True)
        kept = kept[order]
    offsets = torch.searchsorted(tokens, torch.arange(n_tokens + 1))
    return SparseLatents(pairs.exact[kept], Support(pairs.latents[kept], n_latents, offsets))


def _largest_of_whole(x: Tensor, W: Tensor, b: Tensor, n_kept: int) -> SparseLatents:
    """Returns the largest pairs of all pre-activations in full precision."""
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for start in range(0, len(x), rows := max(1, _WHOLE_BYTES // (len(W) * x.itemsize))):
        pre = torch.addmm(b, x[start : start + rows], W.T)
        pre = torch.where(pre.isfinite().all(1, keepdim=True), pre, 0.0)
        tokens, latents = (pre > 0).nonzero().unbind(1)
        found.append((tokens + start, latents, pre[tokens, latents]))
    tokens, latents, exact = (torch.cat(parts) for parts in zip(*found, strict=True))
    n = min(n_kept, len(exact))
    cut = exact.kthvalue(len(exact) - n + 1).values if n else x.new_tensor(torch.inf)
    return largest_pairs(Pairs(tokens, latents, exact, exact), cut, n, len(x), len(W), in_order=True)


def whole(x: Tensor, W: Tensor, b: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Returns the k largest of all pre-activations of each row, and their indices: (B, K)."""
    on_cpu = x.device.type == "cpu"
    rows = max(1, _WHOLE_BYTES // (len(W) * x.itemsize)) if on_cpu else max(1, len(x))
    # for a few rows, the product whose long side comes first is several times faster on a CPU
    few = on_cpu and len(x) <= _FEW
    best = [
        ((W @ part.T).T + b if few else torch.addmm(b, part, W.T)).topk(k, dim=-1, sorted=False)
        for part in x.split(rows)
    ]
    return torch.cat([part.values for part in best]), torch.cat([part.indices for part in best])
