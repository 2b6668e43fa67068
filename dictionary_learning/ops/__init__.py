"""The maths that has a fast form: one name for each operation, whichever implementation serves it."""

from dictionary_learning.ops.dispatch import available, status, use_backend
from dictionary_learning.ops.functional import batch_topk_encode, encode_where, sparse_decode, take_rows, topk_encode

__all__ = [
    "available",
    "batch_topk_encode",
    "encode_where",
    "sparse_decode",
    "status",
    "take_rows",
    "topk_encode",
    "use_backend",
]
