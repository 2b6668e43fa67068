"""Devices, their memory, and what they are fast at."""

import ctypes
import functools
import logging
import mmap
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

import torch

from dictionary_learning._plain import as_bytes
from dictionary_learning.errors import ConfigError

try:
    import resource
except ImportError:  # Windows
    resource = None

_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""Instructions for products of bfloat16 in /proc/cpuinfo: x86 with AVX-512 or AMX, Arm."""
_NOTABLE_FLAGS = _BFLOAT16_FLAGS | {"avx2", "fma", "avx512f", "avx512_vnni", "asimd", "sve"}
"""Instructions that decide which kernels run, and so the last bits of sums."""
_LARGEST_ISA = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
"""Variables of oneDNN: the instructions that it uses at most."""
KEEP_MEMORY = "DICTIONARY_LEARNING_KEEP_MEMORY"
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
"""Names of glibc's malloc.h."""
_SETTINGS = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 1 << 26))
"""Large blocks come from the heap, which never shrinks, and grows by 64 MiB at a time."""
_MOST_RESERVED = 1 << 36

logger = logging.getLogger(__name__)


def default_device() -> torch.device:
    """Returns the accelerator of this machine (CUDA, then MPS), else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def as_device(device: torch.device | str | None) -> torch.device:
    """Returns a device of this machine, or raises ConfigError; the default one for None."""
    if device is None:
        return default_device()
    try:
        found = torch.device(device)
        if found.type == "meta":
            raise NotImplementedError("it holds no numbers")
        torch.empty(0, device=found)
    except (AssertionError, NotImplementedError, RuntimeError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"Got device={device!r}, which cannot be used here ({reason}). Write 'cpu', or leave it out for "
            f"{default_device()}."
        ) from error
    return found


@functools.cache
def bfloat16_is_fast(device_type: str) -> bool:
    """Returns whether matrix products on a device type are clearly faster in bfloat16 than float32.

    A CPU is 3 to 10 times as fast with instructions for it (AVX512_BF16, AMX, Arm BF16), else
    slower; so it is where oneDNN, which makes the products, is told to do without them.
    """
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device_type != "cpu":
        return False
    most = next((os.environ[name] for name in _LARGEST_ISA if os.environ.get(name)), "ALL").upper()
    if most not in ("ALL", "DEFAULT") and not any(part in most for part in ("BF16", "AMX")):
        return False
    if cpu := _cpu():
        return bool(_BFLOAT16_FLAGS & set(_flags(cpu)))
    # no Linux: PyTorch knows of x86 CPUs
    ask = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, function, bool)() for function in ask)


def describe_hardware(device: torch.device) -> dict[str, Any]:
    """Returns what speed and the last bits of results depend on, as JSON values."""
    cpu = _cpu()
    found: dict[str, Any] = {
        "platform": platform.platform(),
        "cpu": cpu.get("model name") or platform.processor() or platform.machine(),
        "cpu_flags": sorted(_NOTABLE_FLAGS & set(_flags(cpu))),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
    }
    if device.type == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(device), "cuda": getattr(torch.version, "cuda", None)}
    return found


def _cpu() -> dict[str, str]:
    """Returns the first value of each entry of /proc/cpuinfo; nothing where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in reversed(lines))
    return {name.strip(): value.strip() for name, _, value in pairs}


def _flags(cpu: dict[str, str]) -> list[str]:
    return (cpu.get("flags") or cpu.get("Features") or "").split()  # of x86, and of Arm


@functools.cache
def fast_dtype(device: torch.device) -> torch.dtype:
    """Returns bfloat16 where the device is fast at it, else float32; logs the choice once."""
    dtype = torch.bfloat16 if bfloat16_is_fast(device.type) else torch.float32
    has = "has" if dtype == torch.bfloat16 else "lacks"
    logger.info("Models are loaded in %s: %s %s instructions for bfloat16.", str(dtype).split(".")[1], device, has)
    return dtype


@functools.cache
def keep_freed_memory() -> bool:
    """Makes the C library keep freed memory for the rest of the process; returns whether it does.

    By default glibc returns each large block to the kernel and requests it again at the next step,
    and the kernel fills every page with zeros: a third of the time of a training step on a CPU.
    With this the process stays at its largest size. The heap is in large pages, where the kernel
    gives them to those who ask: rows of large tables are then found faster, and a step takes 0.95
    of the time. It does nothing without glibc, or where the environment variable
    DICTIONARY_LEARNING_KEEP_MEMORY is 0.
    """
    if platform.libc_ver()[0] != "glibc" or os.environ.get(KEEP_MEMORY) == "0":
        return False
    library = ctypes.CDLL(None)
    kept = all(library.mallopt(name, value) for name, value in _SETTINGS)  # 1 for success
    logger.debug("Freed memory is kept by the process: %s", "yes" if kept else "the C library refused")
    if not kept or not _addresses_are_free():
        return kept
    # what is asked of addresses holds for what is allocated there later; they take no memory
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]
    size = min((free_memory(torch.device("cpu")) or 0) // 2, _MOST_RESERVED)
    if size and (start := library.malloc(size)):
        _ask_for_large_pages(start, size)
        library.free(start)
    return kept


def _addresses_are_free() -> bool:
    """Returns whether a process may take addresses that it never uses, at no cost to anybody.

    Not where the system counts them as memory, or the process has a limit of them, as jobs of a
    cluster may.
    """
    try:
        is_strict = Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2"
    except OSError:
        is_strict = False
    if is_strict or resource is None:
        return False
    limits = resource.getrlimit(resource.RLIMIT_AS), resource.getrlimit(resource.RLIMIT_DATA)
    return all(soft == resource.RLIM_INFINITY for soft, _ in limits)


def in_large_pages(new: torch.Tensor) -> torch.Tensor:
    """Asks the kernel for large pages where a new tensor is, before it is written; returns it.

    To fill 400 MB then takes 0.03 s instead of 0.2 s: most of that is for new pages of 4 KiB.
    """
    if new.device.type == "cpu":
        _ask_for_large_pages(new.data_ptr(), new.numel() * new.element_size())
    return new


def _ask_for_large_pages(start: int, size: int) -> None:
    if sys.platform == "linux":
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        advise = ctypes.CDLL(None).madvise
        # the kernel may refuse
        advise(ctypes.c_void_p(first), ctypes.c_size_t(max(start + size - first, 0)), mmap.MADV_HUGEPAGE)


def free_memory(device: torch.device) -> int | None:
    """Returns how many bytes can still be allocated on a device, at most; None if that is unknown.

    Memory of this process counts as free: PyTorch and the C library keep freed memory and use it
    again.
    """
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    if device.type != "cpu":
        return None
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024 + (held_memory(device) or 0)
    except (OSError, KeyError, ValueError):
        return None


def held_memory(device: torch.device) -> int | None:
    """Returns the bytes that this process has in main memory now; None elsewhere, or if unknown."""
    if device.type != "cpu":
        return None
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


def peak_memory(device: torch.device) -> int | None:
    """Returns the most bytes that this process has held on a device so far; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu" or resource is None:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def check_memory(n_bytes: int, device: torch.device, what: str, remedy: str) -> None:
    """Raises ConfigError if a device has too little memory, before anything is allocated.

    The message has what needs the memory as the subject of a sentence, and the remedy as a
    sentence.
    """
    free = free_memory(device)
    if free is not None and n_bytes > free:
        raise ConfigError(f"{what} takes {as_bytes(n_bytes)}, and {device} has {as_bytes(free)} left. {remedy}")


def is_of_memory(error: BaseException) -> bool:
    """Returns whether an error, of whatever package, says that memory is short."""
    is_one = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return is_one or re.search(r"not enough memory|out of memory|(can't|cannot) allocate", str(error), re.I) is not None


def float64(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the tensor in double precision, on the CPU where its device has none."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()
