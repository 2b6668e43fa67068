"""A dashboard for the tests of pages."""

from pathlib import Path

import pytest

from tests.browser import browser, visits  # noqa: F401  (fixtures)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A dashboard of three dictionaries."""
    import torch

    from dictionary_learning.dashboards import write_dashboard
    from dictionary_learning.interpretation import Neighbors
    from tests.dashboards import fake

    matches = {fake.EVIL: Neighbors(torch.arange(100)[:, None].flip(0), torch.rand(100, 1))}
    bare = {"effects": None, "neighbors": None, "map": None, "explanations": {}}
    pages = [fake.page(matches=matches), fake.page(fake.EVIL, seed=1), fake.page("long", 700, seed=2, **bare)]
    target = tmp_path_factory.mktemp("dashboard")
    write_dashboard(pages, target, title=f"Latents {fake.CLOSING}", about=fake.EVIL)
    return target
