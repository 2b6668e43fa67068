"""The largest pre-activations, without sorting them and, where bfloat16 is fast, without computing all in full precision.

* The k latents of a token lie in the k groups of latents with the largest maxima, so the k-th largest maximum is a bound
  for what is kept, and what reaches it are the candidates: about 1.2 k.
* A token whose k-th is not clear of what the others could be, given the rounding errors seen, is computed again in whole: what
  is kept is what full precision keeps.
* For a batch together, the bound is guessed from a sample of the tokens and checked at the end.
"""

import torch
from torch import Tensor

from dictionary_learning.latents import Support
from dictionary_learning.ops.kernels import Selected
from dictionary_learning.ops.scan import Pairs, Scan, Table

_MOST_CANDIDATES = 4
"""A token with more than so many candidates for each kept latent is computed in whole."""
_SURPLUS = 1.1
"""Candidates of a batch that are aimed at for each one kept: the guess of the bound is then seldom too high."""
_FEW = 32
_WHOLE_BYTES = 1 << 24
"""Pre-activations held at once where all are computed in full precision."""


def top_k(x: Tensor, W: Tensor, b: Tensor, k: int) -> Selected:
    """Returns the k largest of relu(x W^T + b) of each row of x, in no order."""
    group = Scan.group_size(len(W), k)
    if group == 1 or not len(x):
        values, indices = _whole(x, W, b, k)
        return Selected(values.relu_(), Support(indices, len(W)))
    scan = Scan(x, W, b, group)
    found, bounds = [], []
    for chunk in scan.chunks():
        kth = chunk.groups.topk(k, dim=-1, sorted=False).values.amin(-1)
        bounds.append(scan.bound(scan.values(kth), chunk.rows))
        found.append(scan.reaching(chunk, bounds[-1]))
    table = Table.of(scan.exact(found, in_order=True), len(x), least=k, most=_MOST_CANDIDATES * k)
    values, order = table.exact.topk(k, dim=-1, sorted=False)
    indices = table.latents.gather(1, order)
    # a token with too few candidates has -inf here, as has one that is not finite
    least = values.amin(-1)
    certain = (least >= scan.limit(torch.cat(bounds), table.errors)) & (least >= 0)
    doubtful = (~certain | table.overfull).nonzero().squeeze(1)
    if len(doubtful):
        values[doubtful], indices[doubtful] = _whole(x[doubtful], W, b, k)
    return Selected(values.relu_(), Support(indices, len(W)))


def batch_top_k(x: Tensor, W: Tensor, b: Tensor, n_kept: int) -> Selected:
    """Returns the n_kept largest of relu(x W^T + b) of all rows of x together, without those that are zero.

    A row with a value that is not finite keeps nothing, and takes nothing from the others.
    """
    if not len(x) or not n_kept:
        nothing = torch.zeros(0, dtype=torch.long)
        return Selected(x.new_zeros(0), Support(nothing, len(W), torch.zeros(len(x) + 1, dtype=torch.long)))
    scan = Scan(x, W, b, Scan.group_size(len(W), -(-n_kept // len(x))))
    share = _SURPLUS * n_kept / len(x)
    while True:
        pairs, bound = _candidates(scan, share)
        n = min(n_kept, int((pairs.exact > 0).sum()))
        cut = pairs.exact.kthvalue(len(pairs.exact) - n + 1).values if n else x.new_tensor(torch.inf)
        limit = scan.limit(bound, pairs.errors.amax() if len(pairs.errors) else x.new_zeros(())).amax()
        # a bound of zero leaves out nothing that could be kept
        if not bool((bound > 0).any()) or (n == n_kept and bool(cut >= limit)):
            return _largest_pairs(pairs, cut, n, len(x), len(W))
        share *= 2


def _candidates(scan: Scan, share: float) -> tuple[Pairs, Tensor]:
    """Returns about `share` pairs for each token, and the bound that those of each finite token reach."""
    found, bounds, cut = [], [], None
    for chunk in scan.chunks(strided=True):
        if cut is None:
            # the first chunk stands for all: its tokens are taken at equal distances
            maxima = scan.values(chunk.groups).flatten()
            rank = maxima.numel() - int(share * len(chunk.groups))
            cut = maxima.kthvalue(rank).values.clamp_min(0) if rank > 0 else maxima.new_zeros(())
        bounds.append(scan.bound(cut.expand(len(chunk.groups)), chunk.rows))
        found.append(scan.reaching(chunk, bounds[-1]))
    bound = torch.cat(bounds)
    return scan.exact(found, in_order=False), torch.where(bound.isfinite(), bound, 0)


def _largest_pairs(pairs: Pairs, cut: Tensor, n: int, n_tokens: int, n_latents: int) -> Selected:
    """Returns the n pairs that reach the cut, in order of token; of equal ones the first."""
    above, level = pairs.exact > cut, pairs.exact == cut
    kept = (above | (level & (level.cumsum(0) <= n - above.sum()))).nonzero().squeeze(1)
    tokens, order = pairs.tokens[kept].sort(stable=True)
    kept = kept[order]
    offsets = torch.searchsorted(tokens, torch.arange(n_tokens + 1))
    return Selected(pairs.exact[kept], Support(pairs.latents[kept], n_latents, offsets))


def _whole(x: Tensor, W: Tensor, b: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Returns the k largest pre-activations of each row and their indices."""
    rows = max(1, _WHOLE_BYTES // (len(W) * x.itemsize))
    # for a few rows, the product whose long side comes first is several times faster
    few = len(x) <= _FEW
    best = [
        ((W @ part.T).T + b if few else torch.addmm(b, part, W.T)).topk(k, dim=-1, sorted=False)
        for part in x.split(rows)
    ]
    return torch.cat([part.values for part in best]), torch.cat([part.indices for part in best])
