"""Public names are listed, sorted and documented."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest

import dictionary_learning

PACKAGE = Path(dictionary_learning.__file__).parent
FOLDERS = [
    "dictionary_learning",
    *(
        f"dictionary_learning.{p.parent.relative_to(PACKAGE).as_posix().replace('/', '.')}"
        for p in sorted(PACKAGE.rglob("*/__init__.py"))
    ),
]


@pytest.mark.parametrize("name", [name for name in FOLDERS if not name.endswith("cli")])
def test_all_is_complete(name):
    module = importlib.import_module(name)
    assert len(set(module.__all__)) == len(module.__all__)
    assert all(hasattr(module, entry) for entry in module.__all__)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_public_definitions_are_documented(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{path.name} has no docstring"
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            registered = any(
                "implements" in ast.unparse(d) for d in node.decorator_list
            )  # the public function documents it
            assert registered or ast.get_docstring(node), f"{path.name}: {node.name}"


@pytest.mark.parametrize("name", dictionary_learning.__all__)
def test_public_names_say_what_they_are(name):
    entry = getattr(dictionary_learning, name)
    if inspect.isclass(entry) or inspect.isfunction(entry):
        assert (inspect.getdoc(entry) or "").split("\n")[0].endswith((".", ":")), name
