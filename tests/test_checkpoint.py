"""A checkpoint is there as a whole or not at all, and holds the state to the bit."""

import contextlib
import json
import os
import shutil

import pytest
import torch
from hypothesis import given, settings, strategies as st

from dictionary_learning import _checkpoint, _disk
from dictionary_learning._checkpoint import (
    MANIFEST,
    check_files,
    complete_checkpoints,
    read_checkpoint,
    read_manifest,
    remove_checkpoints,
    write_checkpoint,
)
from dictionary_learning.errors import CheckpointError

DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.int8, torch.uint8, torch.bool]
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(),
    st.builds(lambda d, n: torch.arange(n).to(d), st.sampled_from(DTYPES), st.integers(0, 5)),
)  # fmt: skip
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.one_of(st.text(max_size=4), st.integers()), inner, max_size=3),
    ),
    max_leaves=12,
)


def same(one, other) -> bool:
    """Returns whether two states are equal in types, order, keys and bits."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        bits = [tensor.reshape(-1).view(torch.uint8) for tensor in (one, other)]
        return (one.dtype, one.shape) == (other.dtype, other.shape) and torch.equal(*bits)
    if isinstance(one, float):
        return one.hex() == other.hex()
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@settings(deadline=None, max_examples=150)
@given(state=st.dictionaries(st.text(max_size=4), TREES, max_size=4))
def test_any_state_comes_back_to_the_bit(state, tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    try:
        written = write_checkpoint(root, 3, state, {"a": 1})
    except UnicodeEncodeError:
        return  # a lone surrogate is no text
    assert same(read_checkpoint(written.path), state)
    assert complete_checkpoints(root) == [written] and read_manifest(written.path)["facts"] == {"a": 1}
    shutil.rmtree(root)


STATE = {"weights": torch.arange(6.0).reshape(2, 3), "step": 4}


def test_what_cannot_be_stored_is_refused_by_its_place_and_nothing_is_left(tmp_path):
    for state in ({"a": {"b": [object()]}}, {"a": {"b": [{1, 2}]}}, {"a": {"b": [{(1, 2): 3}]}}):
        with pytest.raises(CheckpointError, match="/a/b/0"):
            write_checkpoint(tmp_path, 1, state, {})
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file", ["state.json", "state.safetensors", "extra/notes.txt"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "replace"])
def test_damage_of_any_file_is_found(tmp_path, file, damage):
    def notes(folder):
        (folder / "extra").mkdir()
        (folder / "extra" / "notes.txt").write_text("text")

    path = write_checkpoint(tmp_path, 4, STATE, {}, notes).path
    check_files(path)
    target = path / file
    content = target.read_bytes()
    if damage == "remove":
        target.unlink()
    elif damage == "cut":
        target.write_bytes(content[:-1])
    elif damage == "flip":
        target.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    else:
        target.unlink()
        (path / "other").write_bytes(content)
    with pytest.raises(CheckpointError, match="is missing, added or damaged"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "manifest", ["", "{}", "[]", "null", '{"format_version": 2, "step": 1, "facts": {}, "files": {}}']
)
def test_manifest_that_cannot_be_used_is_refused(tmp_path, manifest):
    path = write_checkpoint(tmp_path, 4, STATE, {}).path
    (path / MANIFEST).write_text(manifest)
    with pytest.raises(CheckpointError):
        read_checkpoint(path)


@pytest.mark.parametrize("n_calls", range(16))
def test_a_writer_that_dies_anywhere_leaves_the_old_or_the_new_one(tmp_path, monkeypatch, n_calls):
    """Every rename, flush and removal is a place to die; death skips the writer's cleaning up too."""
    write_checkpoint(tmp_path, 4, {"value": "old"}, {})
    calls = []

    class Death(BaseException):
        pass

    def dying(function):
        def call(*arguments, **options):
            calls.append(function)
            if len(calls) > n_calls:
                raise Death
            return function(*arguments, **options)

        return call

    monkeypatch.setattr(os, "rename", dying(os.rename))
    monkeypatch.setattr(_checkpoint, "flush_to_disk", dying(_checkpoint.flush_to_disk))
    monkeypatch.setattr(_disk, "flush_to_disk", dying(_disk.flush_to_disk))
    monkeypatch.setattr(os, "replace", dying(os.replace))
    monkeypatch.setattr(shutil, "rmtree", dying(shutil.rmtree))
    with contextlib.suppress(Death):
        write_checkpoint(tmp_path, 4, {"value": "new"}, {})
    monkeypatch.undo()
    for path in tmp_path.rglob(MANIFEST):  # whole wherever it is
        assert read_manifest(path.parent)["step"] == 4
    (found,) = complete_checkpoints(tmp_path)
    assert found.step == 4 and read_checkpoint(found.path)["value"] in ("old", "new")
    remove_checkpoints(tmp_path, 1)
    assert complete_checkpoints(tmp_path) == [found]


def test_the_newest_and_the_chosen_ones_are_kept(tmp_path):
    for step in (9, 10, 100, 20):
        write_checkpoint(tmp_path, step, {"step": step}, {})
    (tmp_path / ".step_7.abc.unfinished").mkdir()
    (tmp_path / "step_8").mkdir()  # without a manifest: it is not complete
    assert [checkpoint.step for checkpoint in complete_checkpoints(tmp_path)] == [9, 10, 20, 100]
    remove_checkpoints(tmp_path, 2, (7,))
    assert [checkpoint.step for checkpoint in complete_checkpoints(tmp_path)] == [9, 20, 100]
    assert not (tmp_path / ".step_7.abc.unfinished").exists()


def test_a_checkpoint_of_the_same_state_has_the_same_bytes(tmp_path):
    files = [
        {path.name: path.read_bytes() for path in write_checkpoint(tmp_path / name, 4, STATE, {}).path.iterdir()}
        for name in "ab"
    ]
    assert files[0] == files[1] and json.loads(files[0][MANIFEST])["step"] == 4
