"""Every kind of value in a config becomes plain data, or is refused by name."""

import argparse
import dataclasses
import enum
import json
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import torch

from dictionary_learning import Site
from dictionary_learning._plain import MAX_ELEMENTS, counted, to_plain
from dictionary_learning.errors import ConfigError


class Color(enum.IntEnum):
    RED = 1


@dataclasses.dataclass
class Settings:
    path: Path
    sizes: tuple[int, ...] = (1, 2)


def test_tokens_and_passwords_are_not_stored():
    token = "hf_" + "a" * 34
    run = {
        "token": "t",
        "args": [f"token={token}", "revision=main"],
        "HF_TOKEN": "t",
        "wandb_api_key": "k",
        "note": token,
    }
    found = json.dumps(to_plain({"run": run, "n_tokens": 3, "pad_token": "<pad>"}))
    assert token not in found and '"t"' not in found and '"k"' not in found
    assert "revision=main" in found and '"n_tokens": 3' in found and "<pad>" in found


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (None, None),
        (True, True),
        (3, 3),
        (0.5, 0.5),
        ("a", "a"),
        (Path("a/b"), "a/b"),
        (torch.bfloat16, "bfloat16"),
        (torch.device("cpu"), "cpu"),
        (np.dtype("int8"), "int8"),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (np.arange(3), [0, 1, 2]),
        (torch.tensor(2.0), 2.0),
        (torch.ones(1, 2, requires_grad=True), [[1.0, 1.0]]),
        ({3, 1, 2}, [1, 2, 3]),
        (frozenset("ba"), ["a", "b"]),
        ((1, (2,)), [1, [2]]),
        (Color.RED, "RED"),
        (date(2024, 1, 2), "2024-01-02"),
        (Settings, "Settings"),
        (Site("m.1", "in"), "m.1:in"),
        ({Site("m"): 1, 2: Path("x")}, {"m:out": 1, "2": "x"}),
        (argparse.Namespace(a=Path("x")), {"a": "x"}),
        (Settings(Path("x")), {"path": "x", "sizes": [1, 2]}),
    ],
)
def test_values_become_plain_data(value, plain):
    found = to_plain({"value": value})["value"]
    assert found == plain and type(found) is type(plain)
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    "value",
    [
        object(),
        lambda: 1,
        b"bytes",
        torch.nn.Linear(1, 1),
        1j,
        torch.zeros(MAX_ELEMENTS + 1),
        iter([]),
        np.array([object()]),
    ],
)
def test_what_has_no_plain_form_is_refused_by_name(value):
    with pytest.raises(ConfigError, match=r"run_cfg\['a'\]\[1\]"):
        to_plain({"a": [0, value]}, "run_cfg")


def test_values_that_contain_themselves_are_refused():
    loop: list = []
    loop.append(loop)
    with pytest.raises(ConfigError, match="nested deeper"):
        to_plain(loop)


def test_a_count_agrees_with_its_noun():
    assert [counted(n, "run") for n in (0, 1, 2000)] == ["0 runs", "1 run", "2,000 runs"]
    assert counted(3, "dictionary", "dictionaries") == "3 dictionaries"
