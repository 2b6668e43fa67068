import json
import os
import time
from concurrent.futures import ThreadPoolExecutor

import datasets
import pytest
import torch

from dictionary_learning.cli import main
from dictionary_learning.data import TokenStream, as_source, chunk_and_tokenize, pretokenize
from dictionary_learning.data._hub import write_rows
from dictionary_learning.errors import ConfigError, DataError
from tests import tiny

DOCUMENTS = tiny.documents(30)


def live(ctx_len=16, data=DOCUMENTS, **options) -> TokenStream:
    return TokenStream(as_source(data), tiny.tokenizer(), ctx_len=ctx_len, **options)


def assert_same(one: TokenStream, other: TokenStream) -> None:
    for a, b in zip(one.batches(3), other.batches(3), strict=True):
        for x, y in [*zip(a, b, strict=True), (a.document, b.document), (a.position, b.position)]:
            assert torch.equal(x, y)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bos": "context"},
        {"separator": "eos"},
        {"add_special_tokens": False},
        {"pack": False},
        {"pack": False, "bos": "both"},
    ],
)
def test_kept_contexts_are_those_of_the_text(tmp_path, options):
    n = pretokenize(DOCUMENTS, tiny.tokenizer(), tmp_path / "kept", ctx_len=16, **options)
    kept = live(data=tmp_path / "kept", **options)
    assert_same(kept, live(**options))
    assert n == kept.source.position


@pytest.mark.parametrize("change", [{"ctx_len": 10}, {"ctx_len": 40}, {"bos": "document"}, {"bos": "none"}])
def test_contexts_kept_for_another_rule_are_packed_anew(tmp_path, change):
    pretokenize(DOCUMENTS, tiny.tokenizer(), tmp_path / "kept", ctx_len=16)
    assert_same(live(data=tmp_path / "kept", **change), live(**change))


def test_kept_contexts_resume_without_reading_those_before(tmp_path):
    pretokenize(DOCUMENTS, tiny.tokenizer(), tmp_path / "kept", ctx_len=16)
    whole = live(data=tmp_path / "kept")
    whole.take(5)
    resumed = live(data=tmp_path / "kept")
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    assert resumed.source.position == 5
    assert_same(resumed, whole)


def test_kept_contexts_repacked_resume_too(tmp_path):
    pretokenize(DOCUMENTS, tiny.tokenizer(), tmp_path / "kept", ctx_len=16)
    whole = live(data=tmp_path / "kept", ctx_len=11)
    whole.take(4)
    resumed = live(data=tmp_path / "kept", ctx_len=11)
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    assert_same(resumed, whole)


def test_kept_contexts_of_another_tokenizer_are_refused(tmp_path):
    pretokenize(DOCUMENTS, tiny.tokenizer(bos=False), tmp_path / "kept")
    with pytest.raises(DataError, match="whose vocabulary is not that of"):
        live(data=tmp_path / "kept")


def test_packed_contexts_are_not_taken_for_documents(tmp_path):
    pretokenize(DOCUMENTS, tiny.tokenizer(), tmp_path / "kept", ctx_len=16)
    for options in ({"pack": False}, {"rows": "contexts", "ctx_len": 8}):
        with pytest.raises(ConfigError, match="holds contexts of 16 tokens, made by .* Ask for the same"):
            live(data=tmp_path / "kept", **options)


def test_folder_is_there_when_it_is_whole_and_not_before(tmp_path):
    def breaking():
        yield from DOCUMENTS
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretokenize(breaking(), tiny.tokenizer(), tmp_path / "kept", ctx_len=16)
    assert os.listdir(tmp_path) == []
    with pytest.raises(DataError, match="holds no text"):
        pretokenize([], tiny.tokenizer(), tmp_path / "kept")
    pretokenize(DOCUMENTS, tiny.tokenizer(), tmp_path / "kept")
    with pytest.raises(ConfigError, match="is there already"):
        pretokenize(DOCUMENTS, tiny.tokenizer(), tmp_path / "kept")
    assert os.listdir(tmp_path) == ["kept"]


def test_command_writes_what_the_function_writes(tmp_path):
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    tiny.model("gpt2").config.save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text("\n".join(DOCUMENTS))
    made = [
        "pretokenize",
        str(tmp_path / "text.txt"),
        "--model",
        str(tmp_path / "model"),
        "--out",
        str(tmp_path / "kept"),
    ]
    assert main([*made, "--ctx-len", "16", "--bos", "context", "--separator", "none"]) == 0
    options = {"bos": "context", "separator": None}
    assert_same(live(data=tmp_path / "kept", **options), live(**options))
    metadata = json.loads((tmp_path / "kept" / "pretokenized.json").read_text())
    assert metadata["source"] == "text.txt"
    assert main(made) == 2


def test_push_sends_rows_and_how_they_were_made(tmp_path, monkeypatch):
    import huggingface_hub

    sent = {}
    monkeypatch.setattr(
        datasets.Dataset, "push_to_hub", lambda self, name, private: sent.update(rows=(name, len(self), private))
    )
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_file", lambda self, **what: sent.update(what))
    n = pretokenize(DOCUMENTS, tiny.tokenizer(), tmp_path / "kept", push="me/kept")
    assert sent["rows"] == ("me/kept", n, True)
    assert (sent["path_in_repo"], sent["repo_id"], sent["repo_type"]) == ("pretokenized.json", "me/kept", "dataset")
    assert json.loads(sent["path_or_fileobj"])["ctx_len"] == 128


def test_chunks_are_documents_joined_by_eos(tmp_path, monkeypatch):
    monkeypatch.setattr("dictionary_learning.compat._generators.cache_folder", lambda: tmp_path)
    data = datasets.Dataset.from_dict({"body": ["w1 w2 w3", "w4 w5", "w6 w7 w8"]})
    chunks = chunk_and_tokenize(data, tiny.tokenizer(), text_key="body", max_seq_len=4)
    assert chunks["input_ids"][:].tolist() == [[1, 4, 5, 6], [1, 7, 8, 1]]
    assert isinstance(chunks[0]["input_ids"], torch.Tensor)
    whole = chunk_and_tokenize(
        data, tiny.tokenizer(), format="python", text_key="body", max_seq_len=4, return_final_batch=True
    )
    assert whole[2]["input_ids"] == [9, 10, 11]


def test_chunks_are_made_once(tmp_path, monkeypatch):
    monkeypatch.setattr("dictionary_learning.compat._generators.cache_folder", lambda: tmp_path)
    data = datasets.Dataset.from_dict({"text": DOCUMENTS})
    first = chunk_and_tokenize(data, tiny.tokenizer(), max_seq_len=8)
    monkeypatch.setattr("dictionary_learning.compat._generators.write_rows", None)
    again = chunk_and_tokenize(data, tiny.tokenizer(), max_seq_len=8)
    assert first["input_ids"][:].tolist() == again["input_ids"][:].tolist()
    served = TokenStream(as_source(again), tiny.tokenizer(), ctx_len=8)
    assert served.take(1).input_ids.tolist() == first[:1]["input_ids"].tolist()


def test_chunks_that_several_need_are_made_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr("dictionary_learning.compat._generators.cache_folder", lambda: tmp_path)
    data, written = datasets.Dataset.from_dict({"text": DOCUMENTS}), []

    def slow(rows, path, columns):
        written.append(path)
        time.sleep(0.2)  # in which the other one arrives
        return write_rows(rows, path, columns)

    monkeypatch.setattr("dictionary_learning.compat._generators.write_rows", slow)
    with ThreadPoolExecutor(2) as pool:
        made = [pool.submit(chunk_and_tokenize, data, tiny.tokenizer(), max_seq_len=8) for _ in range(2)]
        first, second = (one.result()["input_ids"][:].tolist() for one in made)
    assert len(written) == 1 and first == second


def test_chunks_of_a_writer_that_fails_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr("dictionary_learning.compat._generators.cache_folder", lambda: tmp_path)
    data, generators = datasets.Dataset.from_dict({"text": DOCUMENTS}), "dictionary_learning.compat._generators"

    def fails(rows, path, columns):
        path.write_bytes(b"some")
        raise OSError("full")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="full"):
        patched.setattr(f"{generators}.write_rows", fails)
        chunk_and_tokenize(data, tiny.tokenizer(), max_seq_len=8)
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".lock"]
    assert len(chunk_and_tokenize(data, tiny.tokenizer(), max_seq_len=8))


def test_shuffle_is_in_the_file(tmp_path):
    pretokenize(as_source(DOCUMENTS, shuffle_seed=1), tiny.tokenizer(), tmp_path / "kept", ctx_len=16)
    on_disk = datasets.load_from_disk(str(tmp_path / "kept"))["input_ids"][:]
    in_order = [ids[mask].tolist() for batch in live().batches(4) for ids, mask in zip(*batch, strict=True)]
    assert on_disk != in_order
    assert sorted(i for row in on_disk for i in row if i) == sorted(i for row in in_order for i in row if i)


def test_streamed_data_is_kept_too(tmp_path):
    streamed = datasets.Dataset.from_dict({"text": DOCUMENTS}).to_iterable_dataset(num_shards=2)
    pretokenize(streamed, tiny.tokenizer(), tmp_path / "kept", ctx_len=16)
    assert_same(live(data=tmp_path / "kept"), live())


def test_source_that_was_read_from_is_kept_from_its_beginning(tmp_path):
    source = as_source(DOCUMENTS)
    next(source)
    pretokenize(source, tiny.tokenizer(), tmp_path / "kept", ctx_len=16)
    assert source.position == 1
    assert_same(live(data=tmp_path / "kept"), live())
