import subprocess
import sys

import pytest
import torch

from dictionary_learning.hardware import bfloat16_is_fast, fast_dtype, float64

CHILD = """
import platform
from dictionary_learning.hardware import keep_freed_memory
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
    result = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True)
    kept, libc = result.stdout.split(" ", 1)
    assert kept == str(libc.strip() == "glibc" and value != "0")
