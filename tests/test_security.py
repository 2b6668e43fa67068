"""What others wrote runs nothing and decides nothing; what is secret is not written.

Attacks on files of weights are in `interop/test_safety.py`, those on `evaluate` in
`cli/test_evaluate.py`.
"""

import io
import json
import os
import sys

import datasets
import pytest

from dictionary_learning import load_dictionary, load_model
from dictionary_learning.cli import main
from dictionary_learning.data import as_source
from dictionary_learning.errors import ConfigError, ModelError
from dictionary_learning.models import load_tokenizer
from tests import tiny

RAN = "DICTIONARY_LEARNING_TEST_RAN"
CODE = f"import os\nos.environ[{RAN!r}] = '1'\nfrom transformers import LlamaConfig, LlamaForCausalLM\n"
TOKEN = "hf_" + "a" * 34


@pytest.fixture(autouse=True)
def nothing_ran(monkeypatch):
    monkeypatch.delenv(RAN, raising=False)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))  # transformers asks whether code may run
    yield
    assert RAN not in os.environ


def saved(folder):
    tiny.save_model(folder)
    return folder


def change(path, **settings):
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "OwnModel"])
@pytest.mark.parametrize("kind", ["llama", "own"])
def test_code_of_a_model_does_not_run(tmp_path, architecture, kind):
    folder = saved(tmp_path)
    (folder / "own.py").write_text(
        f"{CODE}class OwnConfig(LlamaConfig): pass\nclass OwnModel(LlamaForCausalLM): pass\n"
    )
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel", "AutoModel": "own.OwnModel"}
    change(folder / "config.json", auto_map=auto_map, model_type=kind, architectures=[architecture])
    if kind == "llama":
        assert type(load_model(folder, device="cpu").module).__name__ == "LlamaForCausalLM"
    else:
        with pytest.raises(ModelError, match="trust_remote_code"):
            load_model(folder, device="cpu")


def test_code_of_a_tokenizer_does_not_run(tmp_path):
    folder = saved(tmp_path)
    (folder / "own.py").write_text(f"{CODE}class OwnTokenizer: pass\n")
    change(
        folder / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["own.OwnTokenizer", "own.OwnTokenizer"]}, tokenizer_class="OwnTokenizer",
    )  # fmt: skip
    try:
        load_tokenizer(str(folder))  # the files of a fast tokenizer need no code
    except ModelError as error:
        assert "trust_remote_code" in str(error)


@pytest.fixture
def hub(monkeypatch):
    asked = []

    def load(name, **arguments):
        asked.append(arguments)
        return datasets.Dataset.from_dict({"text": tiny.documents(40)})

    monkeypatch.setattr(datasets, "load_dataset", load)
    return asked


@pytest.mark.parametrize("command", ["train", "cache"])
def test_tokens_are_used_and_not_written(hub, tmp_path, command, caplog, capsys, monkeypatch):
    caplog.set_level("DEBUG")
    monkeypatch.chdir(saved(tmp_path))
    options = ["--n-tokens", "200", "--ctx-len", "16", "--layers", "1", "--dtype", "float32", "--device", "cpu"]
    options += ["--data-args", f"token={TOKEN}", "revision=main"]
    place = ["--save-dir", "run", "--batch-size", "32"] if command == "train" else ["--out", "cache"]
    assert main([command, ".", "user/name", *place, *options]) == 0
    if command == "train":
        assert load_dictionary("run/trainer_0").info.config["run"]["data_args"][1] == "revision=main"
        assert main(["evaluate", "run", "--n-tokens", "64", "--dtype", "float32", "--device", "cpu"]) == 0
        assert "token" not in hub[-1]
        assert main(["evaluate", "run", "--n-tokens", "64", "--device", "cpu", "--data-args", f"token={TOKEN}", "revision=main"]) == 0  # fmt: skip
        assert "may be evaluated on" not in caplog.text
    assert hub[-1]["token" if command == "cache" else "revision"] and any(one.get("token") == TOKEN for one in hub)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in written if TOKEN.encode() in path.read_bytes()]
    assert TOKEN not in caplog.text + "".join(capsys.readouterr())


def test_errors_do_not_show_tokens(tmp_path):
    (tmp_path / "a.txt").write_text("w1")
    for data in (str(tmp_path / "a.txt"), as_source(["w1"])):
        with pytest.raises(ConfigError) as caught:
            as_source(data, data_args={"token": TOKEN})
        assert TOKEN not in str(caught.value) and "token" in str(caught.value)
