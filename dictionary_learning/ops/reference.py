"""Plain PyTorch: the meaning of each operation, which every faster form is compared with."""

import torch
from torch import Tensor

from dictionary_learning.latents import SparseLatents, Support, to_dense
from dictionary_learning.ops.dispatch import implements


@implements("topk_encode", "reference")
def topk_encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> SparseLatents:
    pre = torch.nn.functional.linear(x, W_enc, b_enc).relu()  # (batch, dict_size)
    values, indices = pre.topk(k, dim=-1)
    return SparseLatents(values, Support(indices, W_enc.shape[0]))


@implements("sparse_decode", "reference")
def sparse_decode(latents: SparseLatents, W_dec: Tensor) -> Tensor:
    return to_dense(latents) @ W_dec
