"""The pages are true: their Python runs, and what they name exists."""

import ast
import builtins
import importlib
import re
import sys
from pathlib import Path

import pytest
import torch

import dictionary_learning
from dictionary_learning.dictionaries import WIRINGS, DictionaryShape
from dictionary_learning.dictionaries.nonlinearities import NONLINEARITIES
from dictionary_learning.trainers import TRAINERS, RunInfo

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "dictionary_learning"
PAGES = ["ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "README.md", *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]


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


def trained_by_the_page() -> dict[str, object]:
    names: dict[str, object] = {}
    torch.manual_seed(0)
    block = python("docs/add_a_method.md")[1].replace("steps=20", "steps=5, progress=False, device='cpu'")
    exec(compile(block, "add_a_method.md", "exec"), names)
    return names


def test_method_of_the_page_trains_in_every_way_with_the_same_bits(my_method):
    names = trained_by_the_page()
    loaded = names["loaded"][0] if isinstance(names["loaded"], tuple) else names["loaded"]
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


def test_nonlinearity_of_the_page_is_saved_and_loaded(tmp_path):
    names: dict[str, object] = {}
    try:
        exec(compile(python("docs/add_a_method.md")[2], "add_a_method.md", "exec"), names)
        autoencoder = names["autoencoder"]
        autoencoder.scale_(2.0)
        dictionary_learning.save_dictionary(autoencoder, tmp_path / "capped")
        loaded = dictionary_learning.load_dictionary(tmp_path / "capped")
        loaded = loaded[0] if isinstance(loaded, tuple) else loaded
        x = 40 * torch.randn(32, 16)
        assert torch.equal(loaded.encode(x), autoencoder.encode(x)) and loaded.encode(x).max() == 12.0
        nonlinearity = names["CappedReLU"]()
        built = WIRINGS["transcoder"].build(DictionaryShape((16,), (8,), 64), nonlinearity, None)
        assert built.reconstruct(x).outputs.shape == (32, 8)
    finally:
        NONLINEARITIES._entries.pop("capped_relu", None)
