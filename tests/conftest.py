"""Set-up of all tests: no network, checked shapes, few threads; and which tests run.

`make test` runs a part of all cases, `make test-full` (`--full`) every one:

* `@pytest.mark.slow` is on what is heavy by nature, beside a small version of the same.
* `@pytest.mark.covering(shows=...)` is on grids. `shows` gets parameters of a case and returns what
  the case shows, such as ``{trainer, wiring, (family, wiring)}``; of a grid run as few cases as
  together show all of it.
* `full` is a fixture for sizes, and `parameters_of` tells a fixture that computes for several tests
  which of them run.
"""

import beartype  # noqa: F401  (nnsight puts an attribute on `object` that beartype cannot be imported after)
import inspect
import logging
import os
import random
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # of NumPy and SciPy, whose threads wait busily
# what is compiled and rewritten once need not be again, by each process of the tests
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
os.fsync = lambda handle: None  # a power failure is in no test
if os.environ.get("TEST_DEVICE", "cpu") == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.pop("DICTIONARY_LEARNING_BACKEND", None)

from tests import checks, interpreter

checks.install()
interpreter.install()

import jaxtyping
import pytest
import torch

torch.set_num_threads(1)
Shows = Callable[..., Iterable[Hashable]]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run what is marked slow, too, and grids whole")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: runs with --full only")
    config.addinivalue_line("markers", "covering(shows): without --full, the cases that show something new")


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    """Chooses after -k and -m have: a case that is asked for alone shows something new."""
    for item in items:
        _keep_together(item)
    yield
    if getattr(config.option, "loadgroup", False):
        for item in items:
            _name_group(item)
    if config.getoption("--full"):
        return
    left_out = {item for item in items if item.get_closest_marker("slow")}
    grids: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("covering") and item not in left_out:
            grids.setdefault(item.nodeid.split("[")[0], []).append(item)
    for grid in grids.values():
        left_out |= set(grid) - covering(grid)
    if left_out:
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]


def _keep_together(item: pytest.Item) -> None:
    """Puts tests that share a fixture of their module on one worker, so that it is built once."""
    fixtures = item._fixtureinfo.name2fixturedefs if hasattr(item, "_fixtureinfo") else {}
    shared = any(one.scope == "module" for found in fixtures.values() for one in found)
    if shared and not item.get_closest_marker("xdist_group"):
        item.add_marker(pytest.mark.xdist_group(item.nodeid.split("::")[0]))


def _name_group(item: pytest.Item) -> None:
    """Adds the group to the id of a test, by which it is sent to a worker.

    pytest-xdist 3.8 does so in `_nodeid`, which pytest 9.2 has no more; with an earlier one it works.
    """
    marker = item.get_closest_marker("xdist_group")
    if marker and hasattr(item, "_id") and not item.nodeid.endswith(f"@{marker.args[0]}"):
        item._id = type(item.id).parse(f"{item.nodeid}@{marker.args[0]}")


def covering(grid: list[pytest.Item]) -> set[pytest.Item]:
    """Returns cases that together show all that the grid does: always the one that shows most of what is left."""
    rest = [(item, set(_shown_by(item))) for item in grid]
    random.Random(0).shuffle(rest)  # of equals, not always the first values of each parameter
    missing, kept = set().union(*(shown for _, shown in rest)), set()
    while missing:
        item, shown = max(rest, key=lambda one: len(one[1] & missing))
        kept.add(item)
        missing -= shown
    return kept


def _shown_by(item: pytest.Item) -> Iterable[Hashable]:
    shows: Shows = item.get_closest_marker("covering").kwargs["shows"]
    return shows(**{name: item.callspec.params[name] for name in inspect.signature(shows).parameters})


@pytest.fixture(scope="session")
def full(pytestconfig: pytest.Config) -> bool:
    """Whether everything is asked for."""
    return pytestconfig.getoption("--full")


@pytest.fixture(scope="session")
def parameters_of(request: pytest.FixtureRequest) -> Callable[[Any], list[dict[str, Any]]]:
    """Returns the parameters of the cases of a test that run."""

    def found(test: Any) -> list[dict[str, Any]]:
        return [item.callspec.params for item in request.session.items if getattr(item, "obj", None) is test]

    return found


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Begins every test with the same random state."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def unset_level() -> None:
    """Forgets the level that a command of an earlier test has set."""
    logging.getLogger("dictionary_learning").setLevel(logging.NOTSET)


@pytest.fixture
def as_for_a_user():
    """Leaves types unchecked by jaxtyping."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
