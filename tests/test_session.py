"""`load_session`: a run's model, dictionaries and activations, as they were."""

import json

import pytest
import torch

from dictionary_learning import ActivationBuffer, load_model, load_session, trainSAE
from dictionary_learning.cli import main
from dictionary_learning.errors import ConfigError
from tests import tiny

SITE = "model.layers.1:out"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a model and a text, where commands run."""
    monkeypatch.chdir(tmp_path)
    tiny.save_model("model")
    lines = [json.dumps({"body": text}) for text in tiny.documents(60)]
    (tmp_path / "text.jsonl").write_text("\n".join(lines))
    return tmp_path


def train(*options: str) -> None:
    reading = [
        "--text-column",
        "body",
        "--ctx-len",
        "16",
        "--n-ctxs",
        "16",
        "--held-out-every",
        "5",
        "--shuffle-seed",
        "3",
    ]
    size = ["--n-tokens", "256", "--batch-size", "32", "--k", "4", "--dict-size", "32", "--n-fidelity-tokens", "0"]
    words = ["train", "model", "text.jsonl", "--layers", "1", "--save-dir", "run", "--device", "cpu", *reading, *size]
    assert main([*words, *options]) == 0


def test_a_run_of_the_shell_is_whole(place):
    train("--seed", "5", "--max-activation-norm-multiple", "none", "--dtype", "float32")
    session = load_session("run", device="cpu")
    source = [json.loads(line)["body"] for line in (place / "text.jsonl").read_text().splitlines()]
    assert list(session.held_out) == source[::5]
    ((name, dictionary),) = session.dictionaries.items()
    assert name == "top_k-4" and dictionary.info.sites == (SITE,)
    # the same rows as the run read, which the run's config tells
    again = trainSAE(session.activations, {"trainer": "top_k", "k": 4, "dict_size": 32, "seed": 5}, 8, progress=False)
    expected, found = dictionary.state_dict(), again[0].state_dict()
    assert all(torch.equal(expected[key], found[key]) for key in {*expected, *found})


def test_of_a_run_from_python_only_the_text_is_asked_for(place):
    text = tiny.documents(40)
    options = {"ctx_len": 16, "n_ctxs": 8, "out_batch_size": 32, "seqpos_slice": (2, 14), "seed": 4}
    buffer = ActivationBuffer(text, load_model("model"), ["layers.0", "layers.1"], **options)
    expected = [next(buffer) for _ in range(3)]
    again = ActivationBuffer(text, load_model("model"), ["layers.0", "layers.1"], **options)
    trainSAE(again, {"trainer": "top_k", "k": 4, "dict_size": 32}, 2, save_dir="run", progress=False)
    with pytest.raises(ConfigError, match="do not say which text"):
        load_session("run")
    # one dictionary of the run: the rows are those of the run nevertheless
    session = load_session("run/trainer_0", data=text)
    assert session.held_out is None and len(session.dictionaries) == 1
    for batch in expected:
        found = next(session.activations)
        assert all(torch.equal(batch[site], found[site]) for site in batch)


def test_what_is_given_takes_the_place_of_what_the_files_name(place):
    train()
    own = load_model(tiny.model(seed=1), tokenizer=tiny.tokenizer())
    session = load_session("run", model=own, data=["w1 w2 w3 w4 w5 w6 w7 w8 w9"] * 30)
    assert session.model is own and session.held_out is None
    assert next(session.activations).shape == (32, tiny.DIM)


def test_files_of_a_stranger_decide_nothing(place, monkeypatch):
    train()
    (place / "elsewhere").mkdir()
    monkeypatch.chdir(place / "elsewhere")
    path = place / "run" / "trainer_0" / "config.json"
    config = json.loads(path.read_text())
    for changed, said in (({"model": "/etc"}, "names? the model"), ({"data": "/etc/hosts.txt"}, "names? the text")):
        folder = place / "elsewhere" / said[-4:]
        folder.mkdir(exist_ok=True)
        monkeypatch.setattr(
            "dictionary_learning.session.saved_at",
            lambda _, c=changed: [_saved({**config, "run": {**config["run"], **c}})],
        )
        with pytest.raises(ConfigError, match="stranger"):
            load_session("run", **({} if "model" in changed else {"model": tiny.model()}))


def _saved(config):
    from dictionary_learning.interop._saved import Saved

    return Saved("a", None, config)
