"""What a run writes stays where it began, though the working directory changes meanwhile."""

import gzip
import itertools
import os
import shutil

import pytest
import torch

from dictionary_learning import load_model, trainSAE, write_cache
from dictionary_learning.activations.cache import ActivationCache
from dictionary_learning.data import as_source
from dictionary_learning.errors import ConfigError
from dictionary_learning.loggers import JSONLLogger
from tests import tiny
from tests.tiny import Planted

CONFIG = {"trainer": "top_k", "k": 3, "dict_size": 48}


def leaving(batches, place, at):
    for number, batch in enumerate(batches):
        if number == at:
            os.chdir(place)
        yield batch


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def two(tmp_path, monkeypatch):
    """Returns two folders, in the first of which the process is; the second holds a run of the same name."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    monkeypatch.chdir(there)
    trainSAE(list(Planted().batches(10, 32)), CONFIG, 10, save_dir="run", checkpoint_steps=2, progress=False)
    monkeypatch.chdir(here)
    return here, there


@pytest.mark.parametrize("at", [0, 5, 9])
def test_a_run_does_not_follow_the_working_directory(two, at):
    here, there = two
    before = content(there)
    data = list(Planted().batches(10, 32))
    options = {"checkpoint_steps": 2, "progress": False, "seed": 1, "loggers": [JSONLLogger("own.jsonl")]}
    trainSAE(leaving(data, there, at), CONFIG, 10, save_dir="run", **options)
    assert content(there) == before
    assert {path.name for path in here.iterdir()} == {"run", "own.jsonl"}
    os.chdir(here)
    trainSAE(data, CONFIG, 10, save_dir="other", **{**options, "loggers": []})
    for place in ("trainer_0/dictionary.safetensors", "checkpoints/step_10"):
        assert (here / "run" / place).exists()
    one, other = ((here / name / "trainer_0/dictionary.safetensors").read_bytes() for name in ("run", "other"))
    assert one == other


def test_a_cache_does_not_follow_the_working_directory(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    monkeypatch.chdir(here)
    model = load_model(tiny.model(), tokenizer=tiny.tokenizer())
    layer, n = model._original.get_submodule("model.layers.0"), itertools.count()
    handle = layer.register_forward_hook(lambda *_: os.chdir(there) if next(n) == 2 else None)
    write_cache("cache", tiny.documents(20), model, "model.layers.0", ctx_len=16, shard_size=64, refresh_batch_size=4)
    handle.remove()
    assert not list(there.iterdir())
    monkeypatch.chdir(here)
    cache = ActivationCache("cache", out_batch_size=32)
    monkeypatch.chdir(there)
    assert sum(map(len, cache)) > 200


def test_a_working_directory_that_is_gone_is_told(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    shutil.rmtree(gone)
    with pytest.raises(ConfigError, match="the working directory was removed"):
        trainSAE([torch.randn(8, 4)], CONFIG, 1, save_dir="run", progress=False)
    trainSAE([torch.randn(8, 4)], {**CONFIG, "dict_size": 8}, 1, save_dir=tmp_path / "run", progress=False)


@pytest.mark.parametrize("name", ["text.jsonl", "text.txt.gz", "*.jsonl", "."])
def test_files_of_text_are_those_of_the_beginning(name, tmp_path, monkeypatch):
    """They are opened when they are read, and again for each epoch."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder, word in ((here, "right"), (there, "wrong")):
        folder.mkdir()
        (folder / "text.jsonl").write_text("".join(f'{{"text": "{word} {n}"}}\n' for n in range(4)))
        (folder / "text.txt.gz").write_bytes(gzip.compress("".join(f"{word} {n}\n" for n in range(4)).encode()))
    monkeypatch.chdir(here)
    source = as_source(name)
    first = list(source.fresh())
    monkeypatch.chdir(there)
    assert list(source) == first and "right 3" in str(first) and "wrong" not in str(first)
