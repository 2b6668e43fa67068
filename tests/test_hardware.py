import os
import sys
from pathlib import Path

import pytest
import torch

from dictionary_learning._hardware import (
    _addresses_are_free,
    bfloat16_is_fast,
    check_memory,
    fast_dtype,
    float64,
    free_memory,
)
from dictionary_learning.errors import ConfigError
from tests.processes import run_script

CHILD = """
import platform
from dictionary_learning._hardware import keep_freed_memory
kept = keep_freed_memory()
print(kept, platform.libc_ver()[0])
"""


def test_dtype_of_models_follows_what_is_fast():
    expected = torch.bfloat16 if bfloat16_is_fast("cpu") else torch.float32
    assert fast_dtype(torch.device("cpu")) == expected
    assert float64(torch.ones(2)).dtype == torch.float64


@pytest.mark.parametrize("value", ["", "0"])
def test_memory_is_kept_unless_the_variable_says_no(value, monkeypatch):
    """In a process of its own: it cannot be undone."""
    monkeypatch.setenv("DICTIONARY_LEARNING_KEEP_MEMORY", value)
    result = run_script(CHILD)
    kept, libc = result.stdout.split(" ", 1)
    assert kept == str(libc.strip() == "glibc" and value != "0")


LARGE = """
from pathlib import Path
import torch
from dictionary_learning._hardware import in_large_pages, keep_freed_memory
def flags_at(address):
    is_inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if first[-1] != ":":
            start, end = (int(part, 16) for part in first.split("-"))
            is_inside = start <= address < end
        elif first == "VmFlags:" and is_inside:
            return line.split()[1:]
def middle(tensor):
    return tensor.data_ptr() + tensor.numel() * tensor.element_size() // 2
before = torch.empty(1 << 24)
in_large_pages(torch.empty(0)), in_large_pages(torch.empty(3))  # less than a page
print("hg" in flags_at(middle(before)), "hg" in flags_at(middle(in_large_pages(before))))
before.fill_(1)
print(before.sum().item() == 1 << 24)
keep_freed_memory()
print("hg" in flags_at(middle(torch.empty(1 << 24))), "hg" in flags_at(middle(torch.empty(1 << 24))))
"""


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").is_dir(), reason="this kernel has no large pages")
def test_large_pages_are_asked_for_a_tensor_and_for_the_heap():
    result = run_script(LARGE)
    assert result.stdout.split() == ["False", "True", "True", "True", "True"]


LIMITED = """
import resource
import torch
from dictionary_learning._hardware import keep_freed_memory
resource.setrlimit(resource.{limit}, (6 << 30, resource.RLIM_INFINITY))
def addresses():
    return int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
before = addresses()
print(keep_freed_memory(), addresses() - before < 1 << 28)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
@pytest.mark.parametrize("limit", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_no_addresses_are_taken_where_a_process_has_a_limit_of_them(limit):
    """A job of a cluster would have none left for libraries and threads."""
    result = run_script(LIMITED.format(limit=limit))
    assert result.stdout.split() == ["True", "True"]


def test_no_addresses_are_taken_where_the_system_counts_them(monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda path: "2\n")
    assert not _addresses_are_free()
    monkeypatch.setattr(Path, "read_text", lambda path: "0\n")
    assert _addresses_are_free()


def test_memory_that_this_process_holds_counts_as_free(monkeypatch):
    """Or a second buffer would be refused, whose memory the first one gave back to the C library."""
    files = {"/proc/meminfo": "MemTotal: 9000 kB\nMemAvailable: 1000 kB", "/proc/self/statm": "70 30 0 0 0 0 0"}
    monkeypatch.setattr(Path, "read_text", lambda path: files[str(path)])
    assert free_memory(torch.device("cpu")) == 1000 * 1024 + 30 * os.sysconf("SC_PAGE_SIZE")
    check_memory(1000 * 1024, torch.device("cpu"), "A row", "")
    with pytest.raises(ConfigError, match=r"A row takes 1e\+06 GB, and cpu has .* MB left. Lower it."):
        check_memory(10**15, torch.device("cpu"), "A row", "Lower it.")
    files.clear()
    assert free_memory(torch.device("cpu")) is None
