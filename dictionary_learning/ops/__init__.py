"""Encoding and decoding, on the backend that is fastest for a device and a dtype."""

from dictionary_learning.ops.backend import (
    Backend,
    Encoder,
    available,
    backend_for,
    register_backend,
    status,
    use_backend,
)
from dictionary_learning.ops.functional import batch_topk_encode, encode_where, sparse_decode, topk_encode
from dictionary_learning.ops.reference import REFERENCE, ReferenceBackend
from dictionary_learning.ops.row_updates import take_rows
from dictionary_learning.ops.torch_backend import TorchBackend
from dictionary_learning.ops.triton import IS_INSTALLED, TRITON

__all__ = [
    "Backend",
    "Encoder",
    "ReferenceBackend",
    "available",
    "backend_for",
    "batch_topk_encode",
    "encode_where",
    "register_backend",
    "sparse_decode",
    "status",
    "take_rows",
    "topk_encode",
    "use_backend",
]

# a later backend is preferred where it supports the device and the dtype
register_backend("reference", REFERENCE)
register_backend("sparse", TorchBackend())
if IS_INSTALLED:
    register_backend("triton", TRITON)
