"""What the hardware is fast at: found by asking it, or by timing it once."""

import ctypes
import functools
import logging
import os
import platform
import time
from pathlib import Path

import torch

from dictionary_learning.errors import ConfigError

_FASTER = 1.5
"""How much faster a bfloat16 product must be than a float32 one to be preferred: well outside the noise of timing."""

KEEP_MEMORY = "DICTIONARY_LEARNING_KEEP_MEMORY"
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
"""Names of glibc's malloc.h."""
_SETTINGS = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 1 << 26))
"""Large blocks come from the heap, which never shrinks, and grows by 64 MiB at a time."""

logger = logging.getLogger(__name__)


def default_device() -> torch.device:
    """Returns the accelerator of this machine (CUDA, then MPS), else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


@functools.cache
def bfloat16_is_fast(device_type: str) -> bool:
    """Tells whether matrix products in bfloat16 are clearly faster than in float32 on this kind of device.

    CUDA answers for itself. On a CPU it is measured once, in about 10 ms: some have instructions for it
    (AVX512_BF16, AMX, Arm BF16) and gain a factor of 3 to 10; the others lose.
    """
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device_type != "cpu":
        return False
    return _seconds(torch.float32) > _FASTER * _seconds(torch.bfloat16)


def fast_dtype(device: torch.device) -> torch.dtype:
    """Returns bfloat16 where the device is fast at it, else float32."""
    return torch.bfloat16 if bfloat16_is_fast(device.type) else torch.float32


@functools.cache
def keep_freed_memory() -> bool:
    """Asks the C library to keep memory that is freed, for the rest of the process; returns whether it will.

    By default glibc gives each large block back to the kernel and asks for it again at the next step, and the kernel fills every
    page with zeros anew: a third of the time of a training step on a CPU. The process then keeps its largest size.
    Only glibc is asked, and not where the environment variable DICTIONARY_LEARNING_KEEP_MEMORY is 0.
    """
    if platform.libc_ver()[0] != "glibc" or os.environ.get(KEEP_MEMORY) == "0":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    kept = all(mallopt(name, value) for name, value in _SETTINGS)
    logger.debug("Freed memory is kept by the process: %s", "yes" if kept else "the C library refused")
    return kept


def free_memory(device: torch.device) -> int | None:
    """Returns how many bytes can still be allocated on a device, at most; None where that cannot be told.

    What this process holds is counted as free: PyTorch and the C library keep memory that was freed, and give it out again.
    """
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    if device.type != "cpu":
        return None
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        own = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return int(lines["MemAvailable"].split()[0]) * 1024 + own
    except (OSError, KeyError, ValueError):
        return None


def check_memory(n_bytes: int, device: torch.device, what: str, remedy: str) -> None:
    """Refuses what cannot be held, before anything is allocated.

    Args:
        n_bytes: how much it takes.
        device: where.
        what: what takes it, as the beginning of a sentence.
        remedy: what to do, as a sentence.

    Raises:
        ConfigError: the device has less.
    """
    free = free_memory(device)
    if free is not None and n_bytes > free:
        raise ConfigError(f"{what} takes {n_bytes / 1e9:.1f} GB, and {device} has {free / 1e9:.1f} GB left. {remedy}")


def float64(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the tensor in double precision, on the CPU where its device has none."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def _seconds(dtype: torch.dtype) -> float:
    a, b = torch.ones(256, 512, dtype=dtype), torch.ones(512, 1024, dtype=dtype)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        torch.mm(a, b)
        times.append(time.perf_counter() - start)
    return min(times)
