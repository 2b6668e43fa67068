"""The sparse forms' computations in plain PyTorch: the fast ones on a CPU, and what there is elsewhere without Triton."""

import torch
from torch import Tensor

from dictionary_learning.hardware import bfloat16_is_fast
from dictionary_learning.latents import SparseLatents, Support
from dictionary_learning.ops import pairs, selection
from dictionary_learning.ops.dispatch import backend_status
from dictionary_learning.ops.kernels import Selected
from dictionary_learning.ops.precision import upcast
from dictionary_learning.ops.sparse import register_sparse_forms

DENSE_FROM = {"cpu": 1 / 8, "cuda": 1 / 128}
"""The share of kept latents from which on dense products are as fast (CUDA: by the cost model, 1 / 184 to 1 / 132)."""


class TorchKernels:
    """The computations, for tensors of any precision."""

    def top_k(self, x: Tensor, W: Tensor, b: Tensor, k: int) -> Selected:
        """Returns the k largest of relu(x W^T + b) of each token."""
        if x.device.type == "cpu":
            return selection.top_k(x, upcast(W), upcast(b), k)
        # the selection above looks at what it finds, for which the host would have to wait
        values, indices = torch.addmm(upcast(b), x, upcast(W).T).topk(k, dim=-1, sorted=False)
        return Selected(values.relu_(), Support(indices, len(W)))

    def batch_top_k(self, x: Tensor, W: Tensor, b: Tensor, n_kept: int) -> Selected:
        """Returns the n_kept largest of relu(x W^T + b) of all tokens together."""
        return selection.batch_top_k(x, upcast(W), upcast(b), n_kept)

    def pair_dots(self, x: Tensor, W: Tensor, support: Support) -> Tensor:
        """Returns x_n . W_i of each pair (n, i)."""
        return pairs.pair_dots(upcast(x), upcast(W), support)

    def sum_over_kept(self, values: Tensor, support: Support, W: Tensor) -> Tensor:
        """Returns for each token the sum over its pairs of value * W_i."""
        return pairs.sum_over_kept(values, support, upcast(W))

    def sum_over_tokens(self, values: Tensor, support: Support, x: Tensor) -> Tensor:
        """Returns for each latent the sum over its pairs of value * x_n."""
        return pairs.sum_over_tokens(values, support, upcast(x))

    def totals(self, values: Tensor, support: Support) -> Tensor:
        """Returns for each latent the sum over its pairs of the value."""
        return pairs.totals(values, support)


@backend_status("sparse")
def answer(device: torch.device) -> tuple[bool, str]:
    """Tells what these forms do on a device, or why they are not used."""
    if device.type not in DENSE_FROM:
        return False, f"made for {' and '.join(DENSE_FROM)}"
    share = f"where at most 1/{round(1 / DENSE_FROM[device.type])} of the latents are kept"
    if device.type != "cpu":
        return True, f"{share}; selection by torch.topk in float32"
    if bfloat16_is_fast("cpu"):
        return True, f"{share}; selection in bfloat16, whose products are faster here, ranked again in float32"
    return True, f"{share}; selection in float32: bfloat16 products are not faster on this CPU"


def serves_encode(x: Tensor, W: Tensor, k: int) -> bool:
    """Tells whether so few latents are kept that the sparse forms are faster here."""
    return x.device.type in DENSE_FROM and k <= DENSE_FROM[x.device.type] * W.shape[0]


def serves_decode(latents: SparseLatents, W: Tensor) -> bool:
    """Tells the same of decoding."""
    most = DENSE_FROM.get(W.device.type, 0) * W.shape[0]
    return latents.support.indices.numel() <= most * max(latents.support.n_tokens, 1)


def serves_batch(x: Tensor, W: Tensor, k: int) -> bool:
    """Tells the same of a batch together: on the CPU only, since it looks at what it finds."""
    return x.device.type == "cpu" and serves_encode(x, W, k)


def serves_where(x: Tensor, W: Tensor) -> bool:
    """Tells the same of choosing by a rule: on the CPU only, for the same reason."""
    return x.device.type == "cpu"


register_sparse_forms("sparse", TorchKernels(), serves_encode, serves_decode, serves_batch, serves_where)
