"""What is given to a command for something else is said to be what it is, and what it is for."""

import json
import shutil

import pytest

from dictionary_learning import (
    ActivationBuffer,
    ActivationCache,
    TrainerTopK,
    load_dictionary,
    load_model,
    trainSAE,
    write_cache,
)
from dictionary_learning._run_folder import COMMAND
from dictionary_learning._what_is import unfinished, what_is
from dictionary_learning.cli import main
from dictionary_learning.errors import CheckpointError, ConfigError, DataError, Interrupted
from dictionary_learning.interop._loading import load_many
from dictionary_learning.interpretation import ContextStore, collect_contexts
from tests import tiny
from tests.test_resume import StopAfter

READERS = {
    "dictionaries": (load_many, CheckpointError),
    "contexts": (ContextStore.open, DataError),
    "cache": (ActivationCache, DataError),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each kind, with what is said of it."""
    place = tmp_path_factory.mktemp("folders")
    model = load_model(tiny.model(), tokenizer=tiny.tokenizer())
    sizes = {"ctx_len": 16, "refresh_batch_size": 4}

    def data():
        return ActivationBuffer(
            tiny.documents(60), model, "model.layers.1", n_ctxs=16, out_batch_size=16, end_of_data="repeat", **sizes
        )

    config = TrainerTopK.Config(k=2, dict_size=32)
    (dictionary,) = trainSAE(data(), config, 3, save_dir=place / "run", progress=False)
    token = COMMAND.set(("train", "gpt2", "text.jsonl"))
    try:
        with pytest.raises(Interrupted):
            options = {"checkpoint_steps": 10, "log_steps": 1, "loggers": [StopAfter(4)], "progress": False}
            trainSAE(data(), config, 30, save_dir=place / "unfinished", **options)
    finally:
        COMMAND.reset(token)
    collect_contexts(model, dictionary, tiny.documents(20), place / "contexts", n_tokens=64, ctx_len=16)
    write_cache(place / "cache", tiny.documents(20), model, "model.layers.1", n_tokens=64, **sizes)
    going_on = f"Go on with: dictionary-learning train gpt2 text.jsonl --save-dir {place / 'unfinished'} --resume"
    return {
        place / "run": "is a run; its dictionaries are in trainer_0",
        place / "unfinished": f"is a run that is not finished, at step 4 of 30. {going_on}",
        place / "contexts": "is a store of contexts, which explain, dashboard and export take",
        place / "cache": "is a cache of activations, which 'train --cache' takes",
    }


def test_each_folder_is_known(folders, tmp_path):
    for folder, said in folders.items():
        assert what_is(folder).startswith(f"'{folder}' {said}")
    assert [bool(unfinished(folder)) for folder in folders] == [False, True, False, False]
    assert what_is(tmp_path) == what_is(tmp_path / "nothing") == ""


@pytest.mark.parametrize("reader", READERS)
def test_who_reads_something_else_says_what_it_is(folders, reader):
    read, error = READERS[reader]
    refused = 0
    for folder, said in folders.items():
        if folder.name == reader or (reader == "dictionaries" and folder.name == "run"):
            continue
        try:
            read(folder)
        except (error, ConfigError) as raised:
            refused += 1
            assert said in str(raised) or "index.json" in str(raised)  # of another kind
    assert refused == 3


def test_the_shell_says_it_too(folders, caplog):
    for folder, said in folders.items():
        caplog.clear()
        assert main(["evaluate", str(folder), "--model", "none", "--data", "none"]) == 2
        assert said in caplog.text or folder.name == "run"


def test_an_unfinished_run_is_named_where_its_dictionary_is_asked_for(folders):
    run = next(folder for folder in folders if folder.name == "unfinished")
    with pytest.raises(CheckpointError, match="no dictionary at '.*trainer_0' yet. .* is a run that is not finished"):
        load_dictionary(run / "trainer_0")
    with pytest.raises(CheckpointError, match="no dictionary at .* not finished, at step 4 of 30"):
        load_dictionary(f"{run}/trainer_0")


def test_a_run_without_its_record_is_known_by_its_checkpoints(folders, tmp_path):
    run = next(folder for folder in folders if folder.name == "unfinished")
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "run.json").unlink()
    assert "is a run whose run.json is missing, at step 4. What began it goes on there" in what_is(tmp_path / "run")


def test_what_a_killed_run_has_reached_is_said_by_reproduce(folders, tmp_path, caplog):
    run = next(folder for folder in folders if folder.name == "unfinished")
    shutil.copytree(run, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    for entry in ("outcome", "last_step"):  # a process that was killed writes none
        record["volatile"]["sessions"][-1].pop(entry, None)
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    assert main(["reproduce", str(tmp_path / "run")]) == 2
    assert "is not finished (at step 4 of 30)" in caplog.text
