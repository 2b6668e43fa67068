"""The pages are true: their Python is complete, and what they name exists."""

import ast
import builtins
import functools
import importlib
import importlib.util
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import dictionary_learning
from dictionary_learning import ops
from dictionary_learning.activations._normalizers import NORMALIZATIONS
from dictionary_learning.cli import build_parser
from dictionary_learning.cli._run_file import file_named_in
from dictionary_learning.dictionaries import WIRINGS, DictionaryShape
from dictionary_learning.dictionaries.nonlinearities import NONLINEARITIES
from dictionary_learning.trainers import OPTIMIZERS, PENALTIES, SCHEDULES, TRAINERS, RunInfo
from dictionary_learning.trainers.recipes import RECIPES
from tests import test_layers
from tests.cli.test_methods import traced, train  # noqa: F401  (fixtures)

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "dictionary_learning"
DOCS = sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))
PAGES = ["ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "README.md", *DOCS]
NOT_YET: set[str] = set()
"""Layers without a module, for which the test of the layers keeps a place."""
OLD_NAMES = (
    r"finetuned\(|\bbeginnings|\btrainees|\bAlarm\b|[^_]pretrained\(|whitening`|inverse_sqrt|`exponential|gdm\.py|"
    r"CoderTrainer|SelectingTrainer|\bBlocks\b|trainers/temporal|register_sparse_forms|answers_for|dictionary-learning\["
)


@functools.cache
def read(page: str) -> str:
    return (ROOT / page).read_text()


def python(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", read(page), re.S | re.M)


@pytest.fixture
def my_method(tmp_path, monkeypatch):
    """The method of the page as a module in a user's own folder; forgotten afterwards."""
    (tmp_path / "my_method.py").write_text(python("docs/add_a_method.md")[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("my_method")
    del TRAINERS._entries["my_method"], sys.modules["my_method"]


def trained_by_the_page() -> dict[str, Any]:
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    block = python("docs/add_a_method.md")[1].replace("steps=20", "steps=5, progress=False, device='cpu'")
    exec(compile(block, "add_a_method.md", "exec"), names)
    return names


def test_method_of_the_page_trains_in_every_way_with_the_same_bits(my_method):
    names = trained_by_the_page()
    loaded = names["loaded"]
    weights = names["dictionary"].state_dict()
    for other in (names["by_class"], names["by_name"], loaded):
        assert type(other) is type(names["dictionary"])
        assert all(torch.equal(tensor, weights[name]) for name, tensor in other.state_dict().items())
    x = names["data"][0]
    assert torch.equal(loaded(x), names["dictionary"](x))


def test_method_of_the_page_does_what_it_says(my_method):
    data = [torch.randn(64, 8, generator=torch.Generator().manual_seed(i)) for i in range(30)]

    def overlap(penalty: float) -> float:
        config = my_method.MyMethod.Config(k=2, dict_size=16, overlap_penalty=penalty, overlap_warmup_steps=1)
        trainer = config.build(activation_dim=8, steps=30, device="cpu")
        for x in data:
            trainer.update(trainer.step, x)
        return trainer.overlap().item()

    assert overlap(100.0) < overlap(0.0)


@pytest.mark.parametrize("wiring", list(WIRINGS))
def test_method_of_the_page_has_every_wiring(my_method, wiring):
    facts = RunInfo(activation_dim=16, steps=4, site_dims=(8, 8), output_dims=(8, 8), device="cpu")
    if not WIRINGS[wiring].reads_several:
        facts = facts.replace(site_dims=None, output_dims=None)
    heads = {"n_heads": 2} if wiring == "heads" else {}
    trainer = my_method.MyMethod.Config(k=2, dict_size=32, wiring=wiring, **heads).build(facts)
    x = torch.randn(32, 16)
    y = torch.randn(32, 16) if WIRINGS[wiring].writes_others else None
    assert all(trainer.update(step, x, y).isfinite() for step in range(4))
    assert trainer.metrics()["overlap"] > 0


def test_method_of_the_page_trains_from_the_shell(my_method, train):  # noqa: F811
    options = ["--sites", "model.layers.1", "--dict-size", "64", "--k", "4", "--overlap-penalty", "0.3"]
    (config,) = train("--import", "my_method", "--trainer", "my_method", *options)
    assert config["trainer"]["trainer_class"] == "MyMethod" and config["trainer"]["overlap_penalty"] == 0.3


def test_nonlinearity_of_the_page_is_saved_and_loaded(tmp_path):
    names: dict[str, Any] = {}
    try:
        exec(compile(python("docs/add_a_method.md")[2], "add_a_method.md", "exec"), names)
        autoencoder = names["autoencoder"]
        autoencoder.scale_(2.0)
        dictionary_learning.save_dictionary(autoencoder, tmp_path / "capped")
        loaded = dictionary_learning.load_dictionary(tmp_path / "capped")
        x = 40 * torch.randn(32, 16)
        assert torch.equal(loaded.encode(x), autoencoder.encode(x)) and loaded.encode(x).max() == 12.0
        nonlinearity = names["CappedReLU"]()
        built = WIRINGS["transcoder"].build(DictionaryShape((16,), (8,), 64), nonlinearity, None)
        assert built.reconstruct(x).outputs.shape == (32, 8)
    finally:
        NONLINEARITIES._entries.pop("capped_relu", None)


def test_method_of_a_family_is_top_k():
    names: dict[str, Any] = {}
    data = [torch.randn(64, 8, generator=torch.Generator().manual_seed(i)) for i in range(10)]
    config = {"k": 2, "dict_size": 32, "k_anneal_steps": 5, "activation_dim": 8, "steps": 10, "device": "cpu"}
    try:
        exec(compile(python("docs/add_a_method.md")[3], "add_a_method.md", "exec"), names)
        ours, theirs = (TRAINERS[name](**config, auxk_alpha=0.0) for name in ("my_top_k", "top_k"))
        for step, x in enumerate(data):
            assert torch.equal(ours.update(step, x), theirs.update(step, x))
        assert list(ours.components) == ["revival", "annealed_k"] and ours.metrics()["effective_l0"] == 2
    finally:
        TRAINERS._entries.pop("my_top_k", None)


@pytest.mark.parametrize("page", [page for page in PAGES if python(page)])
def test_python_of_a_page_defines_what_it_uses(page):
    """A name is defined above its use, or the page says what it stands for."""
    known = set(dir(builtins)) | {
        name for said in STANDS_FOR.findall(read(page)) for name in re.findall(r"`(\w+)`", said)
    }
    for block in python(page):
        for statement in ast.parse(block).body:
            nodes = list(ast.walk(statement))
            known |= {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
            known |= {node.arg for node in nodes if isinstance(node, ast.arg)}
            known |= {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
            known |= {(node.asname or node.name).split(".")[0] for node in nodes if isinstance(node, ast.alias)}
            used = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
            assert used <= known, f"{page}: {used - known} in: {ast.unparse(statement)[:80]}"


STANDS_FOR = re.compile(r"In the examples of this page,(.*?)\.", re.S)


@pytest.mark.parametrize("page", [page for page in PAGES if python(page)])
def test_python_of_a_page_imports_what_exists(page):
    for block in python(page):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module != "my_method":
                module = importlib.import_module(node.module)
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


@pytest.mark.parametrize("page", PAGES)
def test_prose_is_wrapped_at_100_columns(page):
    prose = re.sub(r"^```.*?^```", "", read(page), flags=re.S | re.M).splitlines()
    assert [
        line for line in prose if len(line) > 100 and not line.startswith(("|", "![", "    ")) and " " in line
    ] == []


@pytest.mark.parametrize("page", ["README.md", *(page for page in DOCS if page != "docs/migrating.md")])
def test_code_of_a_page_fits_the_site(page):
    """A line of 88 is as wide as a block of code is at 1280 pixels; what a program printed may be wider."""
    blocks = re.findall(r"^```(?!text)[^\n]*\n(.*?)^```", read(page), re.S | re.M)
    assert [line for block in blocks for line in block.splitlines() if len(line) > 88] == []


def test_readme_lists_every_page_by_its_title():
    """As the navigation of the site does, where a page's heading is its title unless it has another there."""
    given = {page: title for title, page in re.findall(r"^ *- ([^:\n]+): (\w+\.md)$", read("mkdocs.yml"), re.M)}
    listed = {page: title for title, page in re.findall(r"\[([^]]+)\]\(docs/(\w+\.md)\)", rows_under("## Pages"))}
    titles = {name.removeprefix("docs/"): read(name).splitlines()[0].removeprefix("# ") for name in DOCS}
    same = {"demo_report.md": "its evaluation"}  # beside that of the demo
    assert listed == titles | {page: title for page, title in given.items() if page in titles} | same


def rows_under(heading: str) -> str:
    """Returns a section of the README."""
    return read("README.md").split(f"{heading}\n", 1)[1].split("\n## ", 1)[0]


@pytest.mark.parametrize("page", [page for page in PAGES if page not in ("CHANGELOG.md", "docs/migrating.md")])
def test_links_say_titles_and_not_files(page):
    assert re.findall(r"\[(?:\w+/)?\w+\.md\]\(", read(page)) == []


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])
def test_nothing_is_named_by_its_old_name(page):
    assert re.findall(OLD_NAMES, read(page)) == []


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_are_there(page):
    named = re.findall(r"`((?:[\w*]+/)*[\w*]+\.py|(?:[\w]+/)+)`", read(page))
    places = (ROOT, PACKAGE, PACKAGE / "dictionaries")
    missing = {name for name in named if not any(list(at.glob(name)) for at in places)}
    assert missing <= EXAMPLES


EXAMPLES = {"my_method.py", "trainers/foo.py", "dictionaries/nonlinearities/foo.py", "checkpoints/", "best/"}
"""Files of the reader's, which pages name."""


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\((?!http)([^)#]+)", read(page))
    assert [target for target in targets if not (ROOT / page).parent.joinpath(target).exists()] == []


def test_picture_of_the_layers_is_that_of_their_test():
    (picture,) = re.findall(r"## The layers.*?```\n(.*?)```", read("ARCHITECTURE.md"), re.S)
    drawn = [set(line[:52].split()) for line in picture.splitlines()]
    public = [{name for name in names - NOT_YET if not name.startswith("_")} for names in test_layers.LAYERS]
    assert drawn[::-1] == [names for names in public if names]


def test_calls_from_the_entry_to_the_product_are_those_of_the_page():
    told = re.findall(r"^\d+\. `([\w.]+)` \(`([\w/.]+)`\)", read("ARCHITECTURE.md"), re.M)
    found: list[list[tuple[str, str]]] = []

    def profile(frame, event, function):
        if event == "c_call" and function.__name__ in ("linear", "matmul", "mm", "addmm", "baddbmm"):
            calls = []
            while frame is not None:
                file = Path(frame.f_code.co_filename)
                if file.is_relative_to(PACKAGE) and file.name != "_border.py":  # which calls a function once checked
                    calls.append((frame.f_code.co_name, Path(frame.f_code.co_filename).relative_to(PACKAGE).as_posix()))
                frame = frame.f_back
            found.append(calls[::-1])

    data = [torch.randn(256, 16) for _ in range(2)]
    sys.setprofile(profile)
    try:
        config = {"trainer": "top_k", "k": 4, "dict_size": 64}
        with ops.use_backend("sparse"):  # others have a call more
            dictionary_learning.trainSAE(data, config, 2, progress=False, device="cpu")
    finally:
        sys.setprofile(None)
    chain = next(calls for calls in found if ("update", "trainers/_base.py") in calls)
    assert [name.split(".")[-1] for name, _ in told] == [name for name, _ in chain]
    # a private file is named by its folder
    assert all(
        file.replace("/_", "/").startswith(place.replace("/_", "/"))
        for (_, place), (_, file) in zip(told, chain, strict=True)
    )
    assert len(chain) <= 11


def rows_of(page: str, first: str) -> list[list[str]]:
    """Returns the cells of the table whose head starts with a word."""
    table = read(page).split(f"| {first} |", 1)[1].split("\n\n", 1)[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_table_of_methods_is_the_registry():
    rows = [
        pair
        for cells in rows_of("README.md", "trainer")
        for pair in zip(
            re.findall(r"`(\w+)`(?! *\))", re.sub(r"\(.*?\)", "", cells[0])),
            re.findall(r"`(\w+)`", cells[1]),
            strict=False,
        )
    ]
    assert {name for _, name in rows} | {"standard_april_update"} == set(TRAINERS)
    assert [(cls, name) for cls, name in rows if TRAINERS[name].__name__ != cls] == []
    wirings = {name for cells in rows_of("README.md", "wiring") for name in re.findall(r"`(\w+)`", cells[0])}
    assert wirings == set(WIRINGS)


def test_recipes_of_the_methods_page_are_there():
    for name, _, recipe, *_ in rows_of("docs/methods.md", "method"):
        assert not recipe or recipe.strip("`") in RECIPES, name


@pytest.mark.parametrize(
    ("question", "registry"),
    [
        ("sparsity", PENALTIES),
        ("scale of activations", NORMALIZATIONS),
        ("optimizer", OPTIMIZERS),
        ("learning rate", SCHEDULES),
    ],
)
def test_choices_are_the_registries(question, registry):
    (values,) = (cells[2] for cells in rows_of("docs/methods.md", "question") if cells[0] == question)
    named = {name for name in re.findall(r"`(\w+)`", values) if name in registry}
    assert {registry.canonical(name) for name in named} == {name for name, _ in registry.items()}
    assert set(re.findall(r"`(\w+)`", values)) - named <= {"scale_sparsity_penalty_by_decoder_norm"}


COMMANDS = [
    line.strip()
    for page in PAGES
    for line in re.findall(r"^(?:    )?dictionary-learning ([a-z].*)$", read(page).replace("\\\n", " "), re.M)
]


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_of_the_pages_are_read(line, my_method):
    command, *options = shlex.split(line, comments=True)
    if "--import" in options:
        at = options.index("--import")
        del options[at : at + 2]  # read before the others, by every command
    _, options = file_named_in(options) if command != "sweep" else (None, options)
    options = options[: options.index(">")] if ">" in options else options
    build_parser(command, options).read(options)


def test_site_has_every_page():
    listed = set(re.findall(r"[\w/]+\.md", read("mkdocs.yml")))
    assert {page.removeprefix("docs/") for page in DOCS} <= listed
    assert all(
        (ROOT / "docs" / page).is_file() for page in listed if page != "index.md" and not page.startswith("project/")
    )
    modules = re.findall(r'^    "([\w.]+)": ', read("site/hooks.py").split("MODULES = ", 1)[1], re.M)
    assert all(importlib.util.find_spec(f"dictionary_learning.{module}") for module in modules)
