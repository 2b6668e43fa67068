import json

import datasets
import pytest
import zstandard

from dictionary_learning.data import TextSource, as_text_source, file_source
from dictionary_learning.errors import DataError

TEXTS = ["one", "two", "three", "four", "five"]


@pytest.fixture(params=["list", "txt", "jsonl", "jsonl.zst", "dataset", "folder"])
def source(request, tmp_path) -> TextSource:
    """The same documents from each kind of place."""
    if request.param == "list":
        return as_text_source(TEXTS)
    if request.param == "dataset":
        return as_text_source(datasets.Dataset.from_dict({"text": TEXTS}))
    path = tmp_path / f"documents.{request.param}"
    if request.param == "folder":
        datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(str(path))
        return as_text_source(str(path))
    lines = TEXTS if request.param == "txt" else [json.dumps({"text": text}) for text in TEXTS]
    content = ("\n".join(lines) + "\n").encode()
    path.write_bytes(zstandard.compress(content) if path.suffix == ".zst" else content)
    return as_text_source(path)


def test_every_kind_gives_the_documents(source):
    assert list(source) == TEXTS
    source.restart()
    assert list(source) == TEXTS


def test_position_resumes(source):
    assert [next(source), next(source)] == TEXTS[:2]
    state = source.state_dict()
    source.restart()
    source.load_state_dict(state)
    assert list(source) == TEXTS[2:]


def test_held_out_documents_are_apart(source):
    train, held = source.hold_out(2)
    assert list(train) == ["two", "four"]
    assert list(held) == ["one", "three", "five"]


def test_iterator_is_read_once_and_says_so():
    source = as_text_source(iter(TEXTS))
    assert next(source) == "one"
    for change in (source.restart, lambda: source.hold_out(2)):
        with pytest.raises(DataError, match="can be read only once"):
            change()


def test_several_frames_of_zstandard_are_read(tmp_path):
    path = tmp_path / "two.txt.zst"
    path.write_bytes(zstandard.compress(b"one\n") + zstandard.compress(b"two\n"))
    assert list(file_source(path)) == ["one", "two"]


def test_missing_column_names_those_that_are_there(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"texts": "x", "id": 1}) + "\n")
    with pytest.raises(DataError, match="it has: texts, id. Did you mean 'texts'"):
        next(as_text_source(path))
    with pytest.raises(DataError, match="it has: body. Set text_column"):
        as_text_source(datasets.Dataset.from_dict({"body": TEXTS}))


@pytest.mark.parametrize(
    ("content", "said"),
    [("{broken\n", "Line 1 of .* is not JSON"), ('["a"]\n', "is a list"), ('{"text": 3}\n', "is a int")],
)
def test_broken_line_is_named(tmp_path, content, said):
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=said):
        list(file_source(path))


def test_missing_file_suggests_a_near_one(tmp_path):
    (tmp_path / "texts.jsonl").touch()
    with pytest.raises(DataError, match=r"Did you mean 'texts.jsonl'"):
        as_text_source(tmp_path / "text.jsonl")


def test_unknown_kinds_are_refused(tmp_path):
    path = tmp_path / "a.csv"
    path.touch()
    with pytest.raises(DataError, match="unknown kind"):
        as_text_source(path)
    with pytest.raises(DataError, match="Got a int as data"):
        as_text_source(3)
    with pytest.raises(DataError, match="is a int; text is needed"):
        next(as_text_source([1]))


def test_unreachable_data_set_is_an_error_of_ours():
    with pytest.raises(DataError, match="could not be loaded"):
        as_text_source("nobody/no-such-data")
