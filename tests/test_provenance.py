"""`run.json` says what a run was made of; two equal runs differ in one section of it."""

import hashlib
import json
import subprocess

import pytest

from dictionary_learning import (
    ActivationBuffer,
    AutoEncoderTopK,
    load_dictionary,
    load_model,
    save_dictionary,
    training,
    trainSAE,
    write_cache,
)
from dictionary_learning._plain import to_plain
from dictionary_learning._provenance import _shown, read_run
from dictionary_learning._secrets import HIDDEN
from dictionary_learning.activations.cache import ActivationCache
from dictionary_learning.cli import main
from dictionary_learning.data import as_source
from dictionary_learning.errors import ConfigError, DataError, Interrupted
from tests import tiny
from tests.test_resume import StopAfter
from tests.tiny import Planted

CONFIG = {"trainer": "top_k", "k": 3, "dict_size": 48}
OPTIONS = {"progress": False, "device": "cpu"}
SIZES = {"n_ctxs": 8, "ctx_len": 16, "refresh_batch_size": 4, "out_batch_size": 32}


@pytest.fixture(scope="module")
def model():
    return load_model(tiny.model(), tokenizer=tiny.tokenizer())


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in tiny.documents(30)))
    return path


def buffer(text, model, **options):
    return ActivationBuffer(text, model, "model.layers.1", **SIZES, end_of_data="repeat", **options)


def train(folder, data=None, steps=6, **options):
    data = list(Planted().batches(12, 64)) if data is None else data
    return trainSAE(data, CONFIG, steps, save_dir=folder, **{**OPTIONS, **options})


@pytest.mark.parametrize("prefetch", [0, 2])
def test_equal_runs_differ_in_one_section(text, model, tmp_path, prefetch):
    for name in ("a", "b"):
        train(tmp_path / name, buffer(str(text), model, prefetch=prefetch), run_cfg={"note": "a try"}, log_steps=2)
    first, second = (read_run(tmp_path / name) for name in ("a", "b"))
    assert {**first, "volatile": None} == {**second, "volatile": None}
    assert first["volatile"] != second["volatile"]
    content = text.read_bytes()
    (file,) = first["data"]["files"]
    assert file == {"name": text.name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert first["data"]["n_tokens"] == 6 * 32 and first["data"]["n_documents"] > 5 and first["data"]["model"]
    assert first["run"]["data"]["dropped"]["read"] >= 6 * 32  # final, and not of the start
    assert first["seeds"] == {"trainers.0.seed": 0, "data.seed": 0}
    assert first["arguments"]["run_cfg"] == {"note": "a try"} and first["arguments"]["log_steps"] == 2
    weights = (tmp_path / "a" / "trainer_0" / "dictionary.safetensors").read_bytes()
    assert first["dictionaries"] == {"trainer_0": hashlib.sha256(weights).hexdigest()}
    (session,) = first["volatile"]["sessions"]
    assert (session["first_step"], session["last_step"], session["outcome"]) == (1, 6, "finished")
    assert {"torch", "nnsight", "transformers", "datasets", "numpy", "python"} <= first["environment"][
        "versions"
    ].keys()
    hardware = first["environment"]["hardware"]
    assert hardware["cpu"] and hardware["threads"] == 1 and hardware["cores"] and hardware["platform"]


def test_a_cache_is_known_by_its_rows(model, tmp_path):
    found = []
    for name, n in (("a", 40), ("b", 40), ("c", 39)):
        write_cache(tmp_path / name, tiny.documents(n), model, "model.layers.1", ctx_len=16, refresh_batch_size=4)
        train(tmp_path / f"run_{name}", ActivationCache(tmp_path / name, out_batch_size=32, end_of_data="repeat"))
        found.append(read_run(tmp_path / f"run_{name}")["data"]["rows"])
    assert found[0] == found[1] != found[2]


def test_how_a_run_ended_is_recorded_and_its_sessions_are_listed(tmp_path):
    with pytest.raises(Interrupted):
        train(tmp_path, steps=12, loggers=[StopAfter(4)], log_steps=1)
    before = read_run(tmp_path)
    assert before["dictionaries"] == {} and before["volatile"]["sessions"][0]["outcome"] == "Interrupted"
    document = {**before, "environment": {**before["environment"], "versions": {"torch": "of another machine"}}}
    (tmp_path / "run.json").write_text(json.dumps(document))
    train(tmp_path, steps=12, resume="auto", log_steps=1)
    first, second = read_run(tmp_path)["volatile"]["sessions"]
    assert first["environment"]["versions"] == {"torch": "of another machine"} and "environment" not in second
    assert (first["last_step"], second["first_step"], second["last_step"]) == (4, 5, 12)


def test_a_run_that_fails_says_so(tmp_path, monkeypatch):
    steps = iter(range(3))

    def step_or_fail(*given):
        if next(steps, None) is None:
            raise DataError("broken")
        return step(*given)

    step = training.train_step
    monkeypatch.setattr(training, "train_step", step_or_fail)
    with pytest.raises(DataError, match="broken"):
        train(tmp_path)
    (session,) = read_run(tmp_path)["volatile"]["sessions"]
    assert (session["outcome"], session["last_step"]) == ("DataError", 3)


def test_a_file_of_the_users_is_not_overwritten(tmp_path):
    (tmp_path / "run.json").write_text('{"mine": 1}')
    with pytest.raises(ConfigError, match="of no run"):
        train(tmp_path)
    assert (tmp_path / "run.json").read_text() == '{"mine": 1}'


def test_the_commit_is_that_of_the_users_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    place = tmp_path / "project"
    place.mkdir()
    monkeypatch.chdir(place)
    train("none")
    assert read_run(place / "none")["environment"]["git"] is None
    for words in (
        ["init", "-q"], ["remote", "add", "origin", "https://me:s3cret@example.com/x.git"], ["add", "none/run.json"],
        ["-c", "user.name=me", "-c", "user.email=me@example.com", "commit", "-qm", "first"],
    ):  # fmt: skip
        subprocess.run(["git", *words], check=True)
    train("clean")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert read_run(place / "clean")["environment"]["git"] == {"commit": commit, "has_changes": False}
    (place / "none" / "run.json").write_text("{}")
    train("changed")
    assert read_run(place / "changed")["environment"]["git"]["has_changes"]
    assert "s3cret" not in (place / "changed" / "run.json").read_text()


def test_secrets_are_removed_and_nothing_else():
    words = ["train", "m", "--n-tokens", "10", "--token-dtype", "uint16", "--token", "abc", "--data-args", "token=abc",
             "revision=main", "https://me:pw@host/x", "--api-key=abc", "hf_" + "a" * 20,
             "https://host/x?part=1&X-Signature=abc&n=2", "s3://key:pw@bucket/*.jsonl",
             "header=Authorization: Bearer abcdefghijklmnopqrstu", "AWS_SECRET_ACCESS_KEY=abc", "ghp_" + "b" * 30]  # fmt: skip
    assert _shown(words) == [
        "train", "m", "--n-tokens", "10", "--token-dtype", "uint16", "--token", HIDDEN, "--data-args", f"token={HIDDEN}",
        "revision=main", f"https://{HIDDEN}@host/x", f"--api-key={HIDDEN}", HIDDEN,
        f"https://host/x?part=1&X-Signature={HIDDEN}&n=2", f"s3://{HIDDEN}@bucket/*.jsonl",
        f"header=Authorization: Bearer {HIDDEN}", f"AWS_SECRET_ACCESS_KEY={HIDDEN}", HIDDEN,
    ]  # fmt: skip
    kept = {"n_tokens": 3, "bos_token": "<s>", "names": ["token", "x", "a@b", "model@v2"], "lr": 1e-3}
    assert to_plain(kept) == kept
    hidden = {"storage": {"password": HIDDEN, "secret": None, "accessKeyId": HIDDEN}, "data": f"s3://{HIDDEN}@b/x"}
    given = {"storage": {"password": "abc", "secret": None, "accessKeyId": "a"}, "data": "s3://me:pw@b/x"}
    assert to_plain(given) == hidden


@pytest.mark.parametrize("place", ["s3://key:pw@bucket/p", "file:///tmp/x"])
def test_a_folder_to_write_is_no_address(place, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="folder of this machine"):
        trainSAE(Planted().batches(3, 8), CONFIG, 3, save_dir=place, **OPTIONS)
    with pytest.raises(ConfigError, match="folder of this machine"):
        save_dictionary(AutoEncoderTopK(8, 16, 2), place)
    assert main(["train", "m", "d", "--save-dir", place]) == 2 and "folder of this machine" in caplog.text
    assert not list(tmp_path.iterdir())


def test_errors_hold_no_secrets():
    with pytest.raises(DataError) as found:
        as_source("https://me:s3cret@host/none.jsonl")
    assert "s3cret" not in str(found.value) and HIDDEN in str(found.value)


def test_what_is_saved_beside_dictionaries_is_as_it_was(tmp_path):
    train(tmp_path)
    config = load_dictionary(tmp_path / "trainer_0").info.config
    assert config["versions"].keys() == {"python", "dictionary-learning", "torch", "nnsight", "transformers"}
