"""A value that is not a document raises an error that names its place, or is skipped and counted."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch

from dictionary_learning import ActivationBuffer, load_model
from dictionary_learning.data import TokenBatch, TokenStream, as_source, mix, real_position_mask
from dictionary_learning.errors import DataError
from tests import tiny
from tests.data.kinds import TEXTS, json_file, lines, parquet

SURROGATE = "half \ud800 pair"


def _write(path: Path, *rows: bytes) -> Path:
    path.write_bytes(b"\n".join(rows) + b"\n")
    return path


def _jsonl(place: Path, bad: bytes) -> Path:
    return _write(place / "a.jsonl", b'{"text": "w1"}', bad, b'{"text": "w2"}')


def _stream(rows: list[Any]) -> datasets.IterableDataset:
    return datasets.IterableDataset.from_generator(lambda: iter(rows))


BAD: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "null": ("Document 1 of the list is null", lambda place: ["w1", None, "w2"]),
    "number": ("Document 1 of the list is a int", lambda place: ["w1", 3, "w2"]),
    "bytes": ("Document 1 of the list is a bytes", lambda place: ["w1", b"w3", "w2"]),
    "surrogate": ("Document 1 of the list contains half of a UTF-16", lambda place: ["w1", SURROGATE, "w2"]),
    "turn without words": ("Document 1 of the list is a conversation", lambda place: ["w1", [{"role": "user"}], "w2"]),
    "iterator": ("Document 1 of the list_iterator is null", lambda place: iter(["w1", None, "w2"])),
    "series": ("Document 1 of the Series is null", lambda place: pd.Series(["w1", float("nan"), "w2"], dtype=object)),
    "data set": (
        "Document 1 of the data set is null",
        lambda place: datasets.Dataset.from_dict({"text": ["w1", None, "w2"]}),
    ),
    "streamed record": (
        "Document 1 of the data set has no 'text'; it has: id",
        lambda place: _stream([{"text": "w1"}, {"id": 1}, {"text": "w2"}]),
    ),
    "streamed null": (
        "Document 1 of the data set is null",
        lambda place: _stream([{"text": "w1"}, {"text": None}, {"text": "w2"}]),
    ),
    "parquet": ("Row 1 of '.*a.parquet' is null", lambda place: parquet(place / "a.parquet", text=["w1", None, "w2"])),
    "json": (
        "Record 1 of '.*b.json' has no 'text'",
        lambda place: _write(place / "b.json", b'[{"text": "w1"}, {"id": 1}, {"text": "w2"}]'),
    ),
    "jsonl null": ("Line 2 of '.*a.jsonl' is null", lambda place: _jsonl(place, b'{"text": null}')),
    "jsonl column": ("Line 2 of '.*a.jsonl' has no 'text'; it has: id", lambda place: _jsonl(place, b'{"id": 1}')),
    "jsonl list": ("Line 2 of '.*a.jsonl' is a list", lambda place: _jsonl(place, b"[1]")),
    "jsonl broken": ("Line 2 of '.*a.jsonl' is not JSON", lambda place: _jsonl(place, b"{")),
    "jsonl long number": ("Line 2 of '.*a.jsonl' is not JSON", lambda place: _jsonl(place, b"1" * 5000)),
    "jsonl deep": ("Line 2 of '.*a.jsonl' is not JSON", lambda place: _jsonl(place, b"[" * 200_000)),
    "jsonl surrogate": (
        "Line 2 of '.*a.jsonl' contains half of a UTF-16",
        lambda place: _jsonl(place, b'{"text": "\\ud800"}'),
    ),
    "encoding": ("Line 2 of '.*a.txt' is not UTF-8", lambda place: _write(place / "a.txt", b"w1", b"\xe4", b"w2")),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_document_is_an_error_that_names_it(kind, tmp_path):
    message, make = BAD[kind]
    source = as_source(make(tmp_path))
    assert next(source) == "w1"
    with pytest.raises(DataError, match=f"{message}.*on_bad_document='skip'"):
        next(source)


@pytest.mark.parametrize("kind", BAD)
def test_bad_document_is_skipped_and_counted(kind, tmp_path, caplog):
    _, make = BAD[kind]
    source = as_source(make(tmp_path), on_bad_document="skip")
    with caplog.at_level(logging.WARNING):
        assert list(source) == ["w1", "w2"]
    assert source.n_skipped == 1 and source.position == 3
    assert "It is skipped" in caplog.text
    resumed = as_source(make(tmp_path), on_bad_document="skip")
    assert [next(resumed)] == ["w1"]
    state = json.loads(json.dumps(resumed.state_dict()))
    resumed = as_source(make(tmp_path), on_bad_document="skip")
    resumed.load_state_dict(state)
    assert list(resumed) == ["w2"] and resumed.state_dict()["skipped"] == 1


@pytest.mark.parametrize(
    "derive",
    [
        lambda s: s.shuffled(0),
        lambda s: s.first(4),
        lambda s: s.hold_out(3)[0],
        lambda s: s.fresh(),
        lambda s: mix([s]),
        lambda s: mix([mix([s])]),
    ],
)
def test_policy_holds_for_what_is_derived(derive):
    data = ["w1", None, "w2", "w3"]
    assert None not in list(derive(as_source(data, on_bad_document="skip")))
    with pytest.raises(DataError, match="is null"):
        list(derive(as_source(data)))


def test_policy_of_a_mixture_is_that_of_each_part():
    skips = as_source(["w1", None], on_bad_document="skip")
    assert list(mix([skips, ["w2"]], exhausted="continue", seed=1)).count("w1") == 1
    with pytest.raises(DataError, match="is null"):
        list(mix([skips.fresh(), ["w2", None]], exhausted="continue"))


def test_numbers_of_documents_count_the_skipped_ones():
    stream = TokenStream(as_source(["w1", None, "w2"], on_bad_document="skip"), tiny.tokenizer(), ctx_len=4, pack=False)
    batch = stream.take(2)
    assert batch.document[:, 0].tolist() == [0, 2]


def test_conversation_with_a_surrogate_is_bad():
    with pytest.raises(DataError, match="Document 0 of the list contains half of a UTF-16"):
        next(as_source([[{"role": "user", "content": SURROGATE}]]))


def test_damaged_parquet_page_is_an_error_of_ours(tmp_path):
    path = parquet(tmp_path / "a.parquet", text=[text * 40 for text in TEXTS])
    content = bytearray(path.read_bytes())
    content[60:260] = b"\xff" * 200
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match="a.parquet' is damaged or was cut off"):
        list(as_source(path))


@pytest.mark.parametrize("content", [b"[" + b"1" * 5000 + b"]", b"[" * 200_000, b"\xff", b"{"])
def test_json_files_that_cannot_be_read_are_errors_of_ours(content, tmp_path):
    json_file(tmp_path).write_bytes(content)
    with pytest.raises(DataError, match="is not JSON"):
        as_source(tmp_path / "a.json")


@pytest.mark.parametrize("make", [
    lambda place: TEXTS[:1],
    lambda place: lines(place / "a.txt", TEXTS[:1]),
    lambda place: datasets.Dataset.from_dict({"text": TEXTS[:1]}),
    lambda place: _stream([{"text": TEXTS[0]}]),
    lambda place: mix([TEXTS[:1]]),
])  # fmt: skip
def test_one_document_cannot_be_held_out(make, tmp_path):
    with pytest.raises(DataError, match="has fewer than two documents.*do not hold any out"):
        as_source(make(tmp_path)).hold_out(20)


@pytest.mark.parametrize("shuffled", ["Dataset", "IterableDataset", "interleaved"])
@pytest.mark.parametrize("seed", [None, 7])
def test_data_shuffled_without_a_seed_does_not_resume(shuffled, seed):
    def make():
        data = datasets.Dataset.from_dict({"text": TEXTS})
        if shuffled == "Dataset":
            return as_source(data.shuffle(seed=seed))
        if shuffled == "IterableDataset":
            return as_source(data.to_iterable_dataset(num_shards=2).shuffle(seed=seed, buffer_size=5))
        parts = [data.to_iterable_dataset(), data.to_iterable_dataset().map(lambda row: {"text": row["text"].upper()})]
        return as_source(datasets.interleave_datasets(parts, probabilities=[0.5, 0.5], seed=seed))

    broken = make()
    read = [next(broken) for _ in range(5)]
    state = json.loads(json.dumps(broken.state_dict()))
    resumed = make()
    resumed.load_state_dict(state)
    if seed is None:
        with pytest.raises(DataError, match="shuffled without a seed, or with another one. Shuffle it with a seed"):
            next(resumed)
    else:
        assert read + list(resumed) == list(make())


def test_transform_that_makes_ids_of_text_is_applied():
    data = datasets.Dataset.from_dict({"text": TEXTS})
    data.set_transform(lambda rows: {"input_ids": [np.array([5, len(text)]) for text in rows["text"]]})
    source = as_source(data)
    assert source.tokenized is not None
    assert [row.ids for row in source] == [row["input_ids"].tolist() for row in data]


def test_transform_that_changes_the_number_of_rows_is_refused():
    data = datasets.Dataset.from_dict({"text": TEXTS})
    data.set_transform(lambda rows: {"text": [half for text in rows["text"] for half in (text, text)]})
    with pytest.raises(DataError, match="returned 46 rows for 23"):
        next(as_source(data))


class TestVocabulary:
    @pytest.mark.parametrize("bad", [-100, 97, 200])
    def test_ids_outside_of_the_vocabulary_are_refused(self, bad):
        rows = [[3, 4, 5], [3, bad, 5]]
        for data in (rows, np.array(rows), torch.tensor(rows), datasets.Dataset.from_dict({"labels": rows})):
            source = as_source(data, text_column="labels")
            with pytest.raises(DataError, match=f"Row 1 of .* has the token id {bad} at place 1, .* ids from 0 to 96"):
                TokenStream(source, tiny.tokenizer(), ctx_len=8).take(1)

    def test_labels_are_refused_without_a_tokenizer(self):
        with pytest.raises(DataError, match="has the token id -100 at place 0, .* ids at least 0. Remove label masks"):
            TokenStream(as_source([[-100, 4]]), None, ctx_len=8).take(1)

    @pytest.mark.parametrize("pack", [True, False])
    @pytest.mark.parametrize("data", [["w1 w2", "w3 added"], [[4, 5], [6, 97]]])
    def test_ids_without_an_embedding_are_refused(self, data, pack):
        tokenizer = tiny.tokenizer()
        tokenizer.add_tokens(["added"])  # the model is not resized
        buffer = ActivationBuffer(data, load_model(tiny.model("llama"), tokenizer=tokenizer), "model.layers.1",
                                  n_ctxs=4, ctx_len=8, refresh_batch_size=2, out_batch_size=2, pack=pack)  # fmt: skip
        with pytest.raises(DataError, match="1 of the list has the token id 97 at place 1, and .* 0 to 96"):
            next(buffer)

    def test_pad_token_without_an_embedding_does_no_harm(self):
        tokenizer = tiny.tokenizer()
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
        assert tokenizer.pad_token_id == 97
        buffer = ActivationBuffer(["w1 w2 w3", "w4"], load_model(tiny.model("llama"), tokenizer=tokenizer),
                                  "model.layers.1", n_ctxs=4, ctx_len=8, refresh_batch_size=2, out_batch_size=2,
                                  pack=False, remove_bos=False)  # fmt: skip
        assert sum(len(batch) for batch in buffer) == 4


def test_integer_attention_masks_are_converted():
    ids, mask = torch.tensor([[3, 4, 5], [6, 2, 2]]), torch.tensor([[1, 1, 1], [1, 0, 0]])
    batch = TokenBatch(ids, mask)
    assert torch.equal(batch.attention_mask, mask.bool())
    assert ids[batch.attention_mask].tolist() == [3, 4, 5, 6]
    assert torch.equal(real_position_mask(mask, (1, None)), real_position_mask(mask.bool(), (1, None)))
