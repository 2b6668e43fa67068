"""Public names are listed, sorted and documented."""

import ast
import importlib
import inspect
import subprocess
import sys
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
PUBLIC_MODULES = {
    "buffer", "config", "contexts", "errors", "latents", "models", "session", "sites", "training",
    "activault_s3_buffer", "dictionary", "grad_pursuit", "interp", "pytorch_buffer", "utils",  # addresses of dictionary-learning
}  # fmt: skip
"""Modules beside packages that users import from; the files of methods in `trainers/` are public too."""
HEAVY = ("nnsight", "transformers", "datasets", "matplotlib", "pandas", "scipy", "sklearn", "wandb")


def test_modules_are_private_but_for_those_that_users_import_from():
    public = {
        path.relative_to(PACKAGE).with_suffix("").as_posix()
        for path in PACKAGE.rglob("*.py")
        if not any(part.startswith("_") for part in path.relative_to(PACKAGE).parts)
    }
    # the folders of `compat` have the modules of the packages that they stand for
    assert {name for name in public if not name.startswith(("trainers/", "compat/"))} == PUBLIC_MODULES


@pytest.mark.parametrize("name", [name for name in FOLDERS if not name.endswith("cli")])
def test_all_is_complete(name):
    module = importlib.import_module(name)
    kinds = {name: (not name.isupper(), not name[0].isupper(), name) for name in module.__all__}  # the linter's order
    assert module.__all__ == sorted(kinds, key=kinds.__getitem__)
    assert all(hasattr(module, entry) for entry in module.__all__)
    assert set(module.__all__) <= set(dir(module))


def test_public_names_are_sorted_importable_and_the_same_for_the_type_checker():
    (block,) = (
        node
        for node in ast.parse((PACKAGE / "__init__.py").read_text()).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    declared = {
        alias.asname or alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    found = dictionary_learning.__all__
    assert found == sorted(found)
    assert set(found) == {*declared, "__version__"}
    assert not [name for name in found if name.startswith("_") and name != "__version__"]
    for name, module in declared.items():
        assert getattr(dictionary_learning, name) is getattr(importlib.import_module(module), name), name


def test_nothing_private_or_foreign_is_shown():
    shown = [name for name in dir(dictionary_learning) if not name.startswith("__")]
    assert shown == [name for name in dictionary_learning.__all__ if not name.startswith("__")]


def test_submodules_are_attributes_and_unknown_names_are_not():
    script = (
        "import dictionary_learning as d\n"
        "assert d.trainers.TRAINERS and d.dictionary.AutoEncoder and d.evaluation.evaluate is d.evaluate\n"
        "assert not hasattr(d, 'no_such_name') and not hasattr(d, '__wrapped__')"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("script", ["", "for name in d.__all__: getattr(d, name)"], ids=["import", "every name"])
def test_importing_loads_no_heavy_package(script):
    script = f"import sys, dictionary_learning as d\n{script}\nprint([m for m in {HEAVY} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


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
