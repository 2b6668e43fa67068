import itertools
import json

import numpy as np
import pytest

from dictionary_learning.compat._generators import JoinedTextReader
from dictionary_learning.data import Source, as_source, mix
from dictionary_learning.errors import ConfigError, DataError
from tests import tiny
from tests.data.kinds import ALL_KINDS, FLAT, IDS, LONG_KINDS, TEXT_KINDS, TEXTS, TOKEN_KINDS, lines, parquet, plain


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_every_kind_of_text_gives_the_documents(kind, tmp_path):
    source = TEXT_KINDS[kind](tmp_path)
    assert source.tokenized is None
    assert list(source) == TEXTS


@pytest.mark.parametrize("kind", TOKEN_KINDS)
def test_every_kind_of_token_ids_is_found_by_itself(kind, tmp_path):
    source = TOKEN_KINDS[kind](tmp_path)
    assert source.tokenized is not None
    assert [row.ids for row in source] == IDS


@pytest.mark.parametrize("kind", LONG_KINDS)
def test_memory_maps_give_all_tokens_in_order(kind, tmp_path):
    pieces = list(LONG_KINDS[kind](tmp_path))
    assert [i for piece in pieces for i in piece.ids] == FLAT.tolist()
    assert [piece.start for piece in pieces] == list(range(0, 90, 7))


@pytest.mark.parametrize("stop", [0, 1, 7, 10])
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_every_kind_resumes_where_it_was(kind, stop, tmp_path):
    unbroken = [plain(d) for d in ALL_KINDS[kind](tmp_path)]
    broken = ALL_KINDS[kind](tmp_path)
    before = [plain(d) for d in itertools.islice(broken, stop)]
    state = json.loads(json.dumps(broken.state_dict()))
    resumed = ALL_KINDS[kind](tmp_path)
    resumed.load_state_dict(state)
    assert before + [plain(d) for d in resumed] == unbroken
    assert resumed.position == len(unbroken)


@pytest.mark.parametrize("kind", [kind for kind in ALL_KINDS if kind != "iterator"])
def test_second_pass_resumes_too(kind, tmp_path):
    source = ALL_KINDS[kind](tmp_path)
    n = len(list(source))
    source.restart()
    for _ in range(2):
        next(source)
    resumed = ALL_KINDS[kind](tmp_path)
    resumed.load_state_dict(json.loads(json.dumps(source.state_dict())))
    rest = [plain(d) for d in source]
    assert [plain(d) for d in resumed] == rest
    assert "mixture" in kind or len(rest) == n - 2  # another pass of a mixture makes other draws, and ends elsewhere


@pytest.mark.parametrize("kind", [kind for kind in ALL_KINDS if kind != "iterator"])
def test_two_readings_of_a_source_do_not_disturb_each_other(kind, tmp_path):
    rest, held = ALL_KINDS[kind](tmp_path).hold_out(2)
    alternating = [plain(d) for pair in zip(held, rest, strict=False) for d in pair]
    one, other = ALL_KINDS[kind](tmp_path).hold_out(2)
    apart = [plain(d) for pair in zip(list(other), list(one), strict=False) for d in pair]
    assert alternating == apart


def test_uncompressed_files_resume_at_a_byte(tmp_path, monkeypatch):
    path = lines(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS])
    source = as_source(path)
    for _ in range(20):
        next(source)
    resumed = as_source(path)
    resumed.load_state_dict(source.state_dict())
    read: list[int] = []
    real = json.loads
    monkeypatch.setattr(json, "loads", lambda text: read.append(1) or real(text))
    assert list(resumed) == TEXTS[20:]
    assert len(read) == 3


def test_data_sets_resume_without_reading_what_was_read(tmp_path):
    fetched: list[int] = []

    class Watched(list):
        def __getitem__(self, n):
            fetched.append(n)
            return super().__getitem__(n)

    source = as_source(Watched(TEXTS))
    fetched.clear()
    state = {**source.state_dict(), "position": 20, "mark": 20}
    source.load_state_dict(state)
    assert list(source) == TEXTS[20:]
    assert fetched == [20, 21, 22]


def test_state_of_another_source_is_refused(tmp_path):
    first, second = (as_source(lines(tmp_path / name, TEXTS)) for name in ("a.txt", "b.txt"))
    with pytest.raises(DataError, match="The state is of 'a.txt', and this source is 'b.txt'"):
        second.load_state_dict(first.state_dict())


def test_shuffle_moves_documents_and_loses_none(tmp_path):
    path = lines(tmp_path / "a.txt", TEXTS)
    for source in (as_source(TEXTS, shuffle_seed=3), as_source(path, shuffle_seed=3, shuffle_buffer=6)):
        once = list(source)
        source.restart()
        again = list(source)
        assert once != TEXTS
        assert again != once
        assert sorted(once) == sorted(again) == sorted(TEXTS)


def test_shuffle_is_decided_by_its_seed():
    orders = [list(as_source(TEXTS, shuffle_seed=seed)) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize("kind", ["list", "txt"])
def test_no_pass_of_a_shuffled_source_shows_held_out_documents(kind, tmp_path):
    whole = TEXT_KINDS[kind](tmp_path).shuffled(5, window=4)
    rest, held = whole.hold_out(4)
    apart = set(held)
    for _ in range(3):
        assert not apart & set(rest)
        rest.restart()


def test_max_examples_takes_the_same_documents_in_every_pass(tmp_path):
    for data in (TEXTS, lines(tmp_path / "a.txt", TEXTS)):
        source = as_source(data, shuffle_seed=1, shuffle_buffer=5, max_examples=6)
        once = list(source)
        source.restart()
        assert len(once) == 6
        assert sorted(source) == sorted(once)


def test_max_examples_takes_no_more_from_an_iterator():
    documents = iter(TEXTS)
    assert list(as_source(documents, max_examples=2)) == TEXTS[:2]
    assert next(documents) == TEXTS[2]


def test_text_is_preferred_to_token_ids_and_the_column_can_be_named(tmp_path):
    path = parquet(tmp_path / "a.parquet", text=TEXTS, input_ids=IDS)
    assert next(as_source(path)) == TEXTS[0]
    assert plain(next(as_source(path, text_column="input_ids"))) == IDS[0]


def test_arguments_reach_the_data_sets_library(monkeypatch):
    import datasets

    asked = {}

    def load(*names, **arguments):
        asked.update(arguments, names=names)
        return datasets.Dataset.from_dict({"body": TEXTS})

    monkeypatch.setattr(datasets, "load_dataset", load)
    arguments = {"revision": "v2", "data_files": "x.json"}
    source = as_source("user/name:german", text_column="body", split="test", streaming=False, data_args=arguments)
    assert list(source) == TEXTS
    assert asked == {"names": ("user/name", "german"), "split": "test", "streaming": False, **arguments}


def test_split_of_a_dictionary_of_data_sets_is_chosen():
    import datasets

    parts = datasets.DatasetDict(a=datasets.Dataset.from_dict({"text": TEXTS}))
    assert list(as_source(parts, split="a")) == TEXTS
    with pytest.raises(DataError, match="no split 'train'; it has: a"):
        as_source(parts)


def test_windows_line_ends_and_byte_order_marks_are_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\n\r\ntwo\r\nthree")
    assert list(as_source(tmp_path / "a.txt")) == ["one", "two", "three"]


def test_text_in_another_encoding_is_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\n\xe4\n")
    with pytest.raises(DataError, match="Line 2 of .* is not UTF-8"):
        list(as_source(tmp_path / "a.txt"))


def test_bin_read_as_the_wrong_type_is_refused(tmp_path):
    FLAT.astype("uint32").tofile(tmp_path / "a.bin")
    with pytest.raises(DataError, match="written as uint32. Set dtype='uint32'"):
        as_source(tmp_path / "a.bin")
    (tmp_path / "b.bin").write_bytes(b"abc")
    with pytest.raises(DataError, match="no whole number of uint16"):
        as_source(tmp_path / "b.bin")


def test_arrays_that_hold_no_token_ids_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(DataError, match="holds float64 in 1 dimensions"):
        as_source(tmp_path / "a.npy")


def test_folders_without_files_and_of_several_kinds_are_refused(tmp_path):
    with pytest.raises(DataError, match="names no file of a known kind"):
        as_source(f"{tmp_path}/*.jsonl")
    lines(tmp_path / "a.jsonl", [{"text": "x"}])
    lines(tmp_path / "b.jsonl", [{"tokens": [1]}])
    with pytest.raises(DataError, match="files of text and files of token ids"):
        as_source(tmp_path)


@pytest.mark.parametrize("suffix", [".zst", ".gz"])
def test_compressed_file_that_was_cut_off_is_no_short_text(suffix, tmp_path):
    path = lines(tmp_path / f"a.txt{suffix}", [str(np.random.default_rng(n).bytes(50)) for n in range(200)])
    whole = len(list(as_source(path)))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="is damaged or was cut off"):
        list(as_source(path))
    assert whole == 200


def test_column_that_was_asked_for_is_not_replaced_by_another(tmp_path):
    import datasets

    path = lines(tmp_path / "a.jsonl", [{"tokens": [3]}])
    for data in (path, datasets.Dataset.from_dict({"tokens": [[3]]})):
        with pytest.raises(DataError, match="it has: tokens"):
            list(as_source(data, text_column="body"))


def test_records_of_one_file_have_the_document_in_one_column(tmp_path):
    path = lines(tmp_path / "a.jsonl", [{"text": "one"}, {"tokens": [3]}])
    with pytest.raises(DataError, match="Line 2 of .* has no 'text'; it has: tokens"):
        list(as_source(path))
    path = lines(tmp_path / "b.jsonl", [{"tokens": [3]}, {"text": "one"}])
    with pytest.raises(DataError, match="Line 2 of .* has no 'tokens'"):
        list(as_source(path))


def test_options_that_files_do_not_have_are_refused(tmp_path):
    path = lines(tmp_path / "a.txt", TEXTS)
    for options in ({"split": "test"}, {"data_args": {"revision": "x"}}):
        with pytest.raises(ConfigError, match="which is read as files"):
            as_source(path, **options)


def test_split_that_a_saved_data_set_is_not_is_refused(tmp_path):
    import datasets

    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(str(tmp_path / "kept"))
    with pytest.raises(DataError, match="no split 'test'"):
        as_source(tmp_path / "kept", split="test")


def test_shuffle_of_a_folder_mixes_its_files(tmp_path):
    for n in range(6):
        lines(tmp_path / f"{n}.txt", [f"{n}"] * 3)
    source = as_source(tmp_path, shuffle_seed=0, shuffle_buffer=3)
    orders = []
    for _ in range(2):
        orders.append("".join(source))
        source.restart()
    assert sorted(orders[0]) == sorted("012345" * 3)
    assert orders[0] != orders[1] != "".join(sorted(orders[1]))


def test_hidden_files_of_a_folder_are_left_alone(tmp_path):
    lines(tmp_path / "a.txt", TEXTS)
    (tmp_path / ".cache").mkdir()
    lines(tmp_path / ".cache" / "b.txt", ["no"])
    assert list(as_source(tmp_path)) == TEXTS


def test_error_is_raised_again_and_is_no_end_of_data(tmp_path):
    path = lines(tmp_path / "a.jsonl", [{"text": "one"}, {"id": 1}, {"text": "two"}])
    for source in (as_source(path), as_source(["one", 2, "two"])):
        assert next(source) == "one"
        for _ in range(2):
            with pytest.raises(DataError):
                next(source)


@pytest.mark.parametrize("kind", [list, iter])
def test_a_bad_document_is_an_error_again_and_loses_nothing_behind_it(kind):
    source = as_source(kind(["one", "two", 3, "four", "five"]))
    assert [next(source), next(source)] == ["one", "two"]
    for _ in range(2):
        with pytest.raises(DataError, match="Document 2 of the .* is a int"):
            next(source)
    source.on_bad_document = "skip"
    assert list(source) == ["four", "five"]


ONCE = {
    "iterator": lambda: as_source(iter(TEXTS)),
    "shuffled": lambda: as_source(iter(TEXTS), shuffle_seed=2, shuffle_buffer=5),
    "first": lambda: as_source(iter(TEXTS), max_examples=20),
    "share": lambda: as_source(iter(TEXTS)).share(1, 2),
    "mixed": lambda: mix([iter(TEXTS), TEXTS], exhausted="continue"),
    "joined": lambda: Source(JoinedTextReader(as_source(iter(TEXTS)).reader, tiny.tokenizer(), 30), "joined"),
}
"""Sources that can be read only once, of every kind of reader around the iterator."""


@pytest.mark.parametrize("kind", ONCE)
def test_what_is_read_once_goes_back_to_what_was_not_released(kind):
    documents, source = list(ONCE[kind]()), ONCE[kind]()
    source.release(source.state_dict())
    states = [source.state_dict() for document in documents if next(source) == document]
    assert len(states) == len(documents) > 5
    source.load_state_dict(states[2])
    assert next(source) == documents[3]
    source.load_state_dict(states[4])  # ahead, too
    source.release(states[4])
    assert list(source) == documents[5:]
    source.load_state_dict(states[4])
    assert list(source) == documents[5:]


@pytest.mark.parametrize("kind", [kind for kind in ONCE if kind != "shuffled"])
def test_what_is_read_once_keeps_nothing_unasked(kind):
    source = ONCE[kind]()
    states = [(next(source), source.state_dict())[1] for _ in range(5)]
    with pytest.raises(DataError, match="can be read only once.*before its document 1. Load the state into a new"):
        source.load_state_dict(states[0])


def test_arrays_of_token_ids_are_read_as_files_of_them_are():
    import torch

    assert [row.ids for row in as_source(FLAT.reshape(-1, 9))] == FLAT.reshape(-1, 9).tolist()
    assert [row.start for row in as_source(torch.arange(10), row_len=4)] == [0, 4, 8]


@pytest.mark.parametrize("streamed", [True, False])
def test_format_of_a_data_set_does_not_matter(streamed):
    import datasets

    data = datasets.Dataset.from_dict({"input_ids": IDS})
    data = (data.to_iterable_dataset() if streamed else data).with_format("torch")
    assert [row.ids for row in as_source(data)] == IDS
