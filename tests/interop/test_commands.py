"""Every command finds what `load_dictionary` reads: all formats, in one file or in several."""

import json
import shutil

import pytest
import torch

from dictionary_learning import load_dictionary
from dictionary_learning.cli import main
from dictionary_learning.interop import FORMATS
from tests import tiny
from tests.interop import by_hand, golden

ONE_OF_EACH = {golden.format_of(name): name for name in reversed(golden.NAMES)}
PLACES = {**{name: golden.folder(name) for name in ONE_OF_EACH.values()}, **dict.fromkeys(by_hand.WRITTEN)}
HIDDEN = {"third_party/llama_scope_r1": "Give --scale (of info and convert)"}
"""What `info` and `evaluate` refuse, and what they say: a fact is needed that is not in the files."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny.save_model(folder / "m")
    (folder / "text.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in tiny.documents(8)))
    return folder


@pytest.fixture
def place(request, tmp_path):
    """A folder with the files of a format; its name says the k of Qwen Scope."""
    name = request.param
    folder = tmp_path / ("L0_4" if "qwen" in name else name.rpartition("/")[2])
    if name in by_hand.WRITTEN:
        torch.manual_seed(0)
        by_hand.WRITTEN[name](folder)
    else:
        shutil.copytree(PLACES[name], folder)
    return name, folder


every = pytest.mark.parametrize("place", PLACES, indirect=True)


def test_there_is_one_of_each_format():
    found = {golden.format_of(name) if name not in by_hand.WRITTEN else name.split("/")[0] for name in PLACES}
    assert found | {"own", "saprmarks"} == set(FORMATS)


@every
def test_info(place, capsys, caplog):
    name, folder = place
    assert main(["info", str(folder)]) == (2 if name in HIDDEN else 0)
    if name in HIDDEN:
        assert HIDDEN[name] in caplog.text
        assert main(["info", str(folder), "--scale", "0.75"]) == 0
    else:
        (shown,) = json.loads(capsys.readouterr().out).values()
        assert shown["format"] == load_dictionary(folder).info.format


@every
def test_convert(place, tmp_path):
    name, folder = place
    facts = ["--scale", "0.75"] if name in HIDDEN else []
    assert main(["convert", str(folder), str(tmp_path / "own"), *facts]) == 0
    read = load_dictionary(folder, **({"scale": 0.75} if facts else {}))
    again = load_dictionary(tmp_path / "own")
    x = torch.randn(2, 8, read.activation_dim)
    assert torch.equal(again(x), read(x)) and torch.equal(again.encode(x), read.encode(x))
    assert (again.info.sites, again.info.target_sites) == (read.info.sites, read.info.target_sites)


@every
def test_evaluate(place, model, tmp_path, caplog):
    name, folder = place
    options = [
        "--n-tokens",
        "32",
        "--n-fidelity-tokens",
        "0",
        "--ctx-len",
        "8",
        "--device",
        "cpu",
        "--dtype",
        "float32",
    ]
    sites = [] if name in by_hand.WRITTEN else ["--sites", "model.layers.1:out"]  # fixtures are of other models
    sites += ["--target-sites", "model.layers.1.mlp:out"] if "transcoder" in name else []
    words = ["--model", str(model / "m"), "--data", str(model / "text.jsonl"), "--save-dir", str(tmp_path / "report")]
    assert main(["evaluate", str(folder), *words, *options, *sites]) == (2 if name in HIDDEN else 0)
    if name in HIDDEN:
        assert HIDDEN[name] in caplog.text
        return
    (entry,) = json.loads((tmp_path / "report" / "report.json").read_text())["dictionaries"]
    assert entry["class"] == type(load_dictionary(folder)).__name__
