"""What `make` installs is what pyproject.toml allows, and what it says was tested."""

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

tomllib = pytest.importorskip("tomllib")  # Python 3.11

ROOT = Path(__file__).parent.parent
PYPROJECT = (ROOT / "pyproject.toml").read_text()


def locked(name: str) -> list[Version]:
    """Returns the versions of a package in the lock: one, or one for each Python."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    entries = [Requirement(line) for line in lines if not line.startswith("#")]
    same = [entry for entry in entries if canonicalize_name(entry.name) == canonicalize_name(name)]
    return sorted(Version(next(iter(entry.specifier)).version) for entry in same)


def test_lock_has_each_dependency_at_a_version_that_is_allowed():
    project = tomllib.loads(PYPROJECT)["project"]
    extras = project["optional-dependencies"]
    for wanted in map(Requirement, [*project["dependencies"], *extras["dev"], *extras["gguf"]]):
        if wanted.name == "torch":  # the Makefile's TORCH
            continue
        assert locked(wanted.name), f"{wanted.name} is not in requirements.lock; run make lock"
        for version in locked(wanted.name):
            assert wanted.specifier.contains(version), f"{wanted.name} {version} is locked; run make lock"


@pytest.mark.parametrize("name", ["datasets", "nnsight", "transformers"])
def test_range_of_what_changes_most_says_what_was_tested(name):
    lowest, said = re.search(
        rf'"{name}>=([0-9.]+),<[0-9.]+",.*tested with ([0-9.]+(?: and [0-9.]+)?)', PYPROJECT
    ).groups()
    tested = [Version(version) for version in said.split(" and ")]
    assert tested[0] == Version(lowest), "the lowest is what make test-oldest installs"
    assert tested[-1] == locked(name)[-1], "the newest is what make test installs"
