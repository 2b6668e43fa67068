"""Every guard that docs/silent_bugs.md names is there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NAMED = re.findall(r"`(tests/[\w/]+\.py(?:::\w+)+)`", (ROOT / "docs" / "silent_bugs.md").read_text())


@pytest.mark.parametrize("named", NAMED)
def test_guard_is_there(named):
    path, *parts = named.split("::")
    body = ast.parse((ROOT / path).read_text()).body
    for part in parts:
        (found,) = (n for n in body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name == part)
        body = found.body
    assert len(NAMED) > 20
