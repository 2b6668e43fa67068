"""Set-up of all tests: no network, checked shapes, few threads."""

import beartype  # noqa: F401  (nnsight puts an attribute on `object` that beartype cannot be imported after)
import logging
import os

os.environ["HF_HUB_OFFLINE"] = "1"
if os.environ.get("TEST_DEVICE", "cpu") == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.pop("DICTIONARY_LEARNING_BACKEND", None)

from jaxtyping import install_import_hook

# an int will do where a float is asked for
install_import_hook("dictionary_learning", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

import jaxtyping
import pytest
import torch

torch.set_num_threads(1)


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
