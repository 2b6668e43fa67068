"""Imports go down: the order of ARCHITECTURE.md, read from the source."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "dictionary_learning"
LAYERS = [
    {"_secrets", "_shell_words"},
    {"errors", "_context", "_lazy", "_types"},
    {"_brief", "_plain", "_coercion", "_what_is"},
    {"config", "latents", "sites", "hardware", "disk", "_http", "_progress"},
    {"_random_state", "_run_folder", "_stop_request", "in_turn", "side_by_side", "usual_state"},
    {"border"},
    {"ops", "parallel", "module_io", "checkpoint"},
    {"capture"},
    {"models"},
    {"dictionaries", "data", "model_set"},
    {"activations", "loggers", "synthetic"},
    {"buffer", "contexts", "trainers"},
    {"experimental"},
    {"interop"},
    {"finetune", "interventions"},
    {"assignment"},
    {"run_setup"},
    {"resumed", "training_step"},
    {"resume", "saving", "watch", "mix_words", "said"},
    {"run_output", "text_reading"},
    {"estimate", "provenance", "trained_on"},
    {"evaluation", "interpretation", "attribution"},
    {"best", "held_out_data"},
    {"held_out"},
    {"training"},
    {"session", "sweeps"},
    {"dashboards", "exports"},
    {"compat"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
OLD_ADDRESSES = {
    "activault_s3_buffer",
    "dictionary",
    "grad_pursuit",
    "interp",
    "utils",
    "pytorch_buffer",
    "__init__",
    "__main__",
}
TYPES_ONLY = {"_types"}  # imports names for annotations alone, which may come from anywhere
ALLOWED_IN = {
    "nnsight": {"capture/_tracing.py", "capture/_remote.py"},
    "datasets": {"data/_hub.py", "_types.py"},
    "huggingface_hub": {"data/_hub.py", "interop/_hub.py"},
    "wandb": {"loggers/_services.py"},
    "tensorboard": {"loggers/_services.py"},
    "matplotlib": {"evaluation/reports", "exports", "sweeps/_plots.py"},
    "gguf": {"exports/_control_vectors.py"},
    "umap": {"interpretation/_neighbors.py", "compat/_interp.py"},
    "plotly": {"compat/_interp.py"},
    "jinja2": {"evaluation/reports", "sweeps/_as_html.py", "dashboards", "data/_document.py"},
    "torch.distributed": {"parallel/"},
    "triton": {
        "ops/_triton/pairs.py",
        "ops/_triton/candidates.py",
        "ops/_triton/certainty.py",
        "ops/_triton/selection.py",
        "ops/_triton/adam.py",
    },
    "numba": {"ops/_numba/_bits.py", "ops/_numba/_compile.py"},
    "llvmlite": {"ops/_numba/_bits.py"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


REGISTRATION = {"trainers/__init__.py": "experimental"}
"""Packages that are imported for what they register."""


def imports(path: Path, *, top_level_only: bool = False) -> list[str]:
    """Returns what a module imports when it runs: not what is imported for the type checker alone."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = []
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            base = node.module or ""
            found += [f"{base}.{alias.name}" for alias in node.names] if base == "dictionary_learning" else [base]
    return found


def part(module: str) -> str:
    """Returns the entry of `LAYERS`: private modules stand there by their plain names, but for the smallest."""
    name = module.split(".")[1]
    return name if name in LEVEL or name.startswith("__") else name.lstrip("_")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path):
    relative = path.relative_to(PACKAGE)
    own = part(f"dictionary_learning.{relative.parts[0].removesuffix('.py')}")
    if own in OLD_ADDRESSES or own in TYPES_ONLY:  # names types of every layer, for annotations only
        return
    assert own in LEVEL, f"{relative} is on no layer; add it to LAYERS and to ARCHITECTURE.md"
    top = imports(path, top_level_only=True)
    for module in imports(path):
        if not module.startswith("dictionary_learning.") or part(module) == own:
            continue
        # older scripts' forms are translated where they arrive, and imported then only
        is_translation = part(module) == "compat" and module not in top
        if not is_translation and REGISTRATION.get(relative.as_posix()) != part(module):
            assert LEVEL[part(module)] < LEVEL[own], f"{relative} imports {module}, which is not below it"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_third_parties_are_imported_where_they_belong(path):
    relative = path.relative_to(PACKAGE).as_posix()
    for module in imports(path):
        places = ALLOWED_IN.get(".".join(module.split(".")[:2])) or ALLOWED_IN.get(module.split(".")[0])
        assert places is None or any(relative.startswith(place) for place in places), f"{relative} imports {module}"


def test_importing_the_package_imports_no_nnsight_and_no_models():
    import subprocess
    import sys

    script = "import sys, dictionary_learning; print([m for m in ('nnsight', 'transformers', 'datasets', 'wandb') if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    assert result.stdout.strip() == "[]"
