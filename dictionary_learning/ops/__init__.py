"""Encoding and decoding, on the backend that is fastest for a device and a dtype."""

from dictionary_learning.ops._backend import (
    REFERENCE,
    Backend,
    Encoder,
    ReferenceBackend,
    available,
    backend_for,
    register_backend,
    status,
    use_backend,
)
from dictionary_learning.ops._numba import NumbaBackend
from dictionary_learning.ops._row_updates import take_rows
from dictionary_learning.ops._sparse import TorchBackend
from dictionary_learning.ops._triton import IS_INSTALLED, TRITON

__all__ = [
    "Backend",
    "Encoder",
    "ReferenceBackend",
    "available",
    "backend_for",
    "register_backend",
    "status",
    "take_rows",
    "use_backend",
]

# a later backend is preferred where it supports the device and the dtype
register_backend("reference", REFERENCE)
register_backend("sparse", TorchBackend())
register_backend("numba", NumbaBackend())
if IS_INSTALLED:
    register_backend("triton", TRITON)
