import logging

import datasets
import pytest

from dictionary_learning.data import Source, Tokenized, TokenStream, as_source, mix
from dictionary_learning.data._tokenizing import fingerprint, vocabulary_size
from dictionary_learning.errors import DataError
from tests import tiny

ROWS = [[3, 4, 5], [6, 7]]


def known(**about) -> Source:
    source = as_source(ROWS)
    return Source(source.reader, "the rows", Tokenized(**about))


def test_fingerprint_is_of_the_vocabulary_and_the_special_ids():
    first = fingerprint(tiny.tokenizer())
    assert first == fingerprint(tiny.tokenizer(padding_side="left"))
    assert first != fingerprint(tiny.tokenizer(bos=False))


def test_ids_of_another_tokenizer_are_refused():
    tokenizer = tiny.tokenizer()
    TokenStream(known(tokenizer="a", fingerprint=fingerprint(tokenizer)), tokenizer, ctx_len=4)
    with pytest.raises(DataError, match="made by the tokenizer 'other', whose vocabulary is not that of"):
        TokenStream(known(tokenizer="other", fingerprint="0"), tokenizer, ctx_len=4)


def test_ids_of_a_tokenizer_of_another_name_are_warned_about(caplog):
    caplog.set_level(logging.WARNING)
    TokenStream(known(tokenizer="gpt2"), tiny.tokenizer(), ctx_len=4)
    assert "were made by the tokenizer 'gpt2'" in caplog.text


@pytest.mark.parametrize(("first", "warned"), [(0, False), (1, False), (50, True)])
def test_rows_that_begin_with_anothers_bos_are_warned_about(first, warned, caplog):
    rows = datasets.Dataset.from_dict({"input_ids": [[first, 3 + n] for n in range(20)]})
    TokenStream(as_source(rows), tiny.tokenizer(), ctx_len=4)
    assert ("all begin with the token id 50, and the BOS token of" in caplog.text) == warned


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("bad", [97, 50_256, -1])
def test_ids_outside_of_the_vocabulary_are_refused_by_row_and_place(bad, pack):
    data = datasets.Dataset.from_dict({"input_ids": [[3, 4], [5, 6, bad]]})
    tokens = TokenStream(as_source(data), tiny.tokenizer(), ctx_len=4, pack=pack)
    with pytest.raises(
        DataError, match=f"Row 1 of the data set has the token id {bad} at place 2, and .* from 0 to 96"
    ):
        list(tokens.batches(2))


def test_size_reaches_beyond_the_largest_id():
    assert vocabulary_size(tiny.tokenizer()) == tiny.VOCAB


def test_special_tokens_of_ready_data_count_as_special():
    # who made the ids may have put either in
    assert TokenStream(as_source(ROWS), tiny.tokenizer(), ctx_len=4).special_ids == (0, 1)


def test_metadata_of_saelens_is_read(tmp_path, caplog):
    data = datasets.Dataset.from_dict({"input_ids": [[0, 3, 4, 5], [0, 6, 7, 8]]})
    data.save_to_disk(str(tmp_path / "data"))
    (tmp_path / "data" / "sae_lens.json").write_text('{"tokenizer_name": "gpt2", "context_size": 4}')
    source = as_source(tmp_path / "data")
    assert source.tokenized == Tokenized(tokenizer="gpt2", ctx_len=4)


def test_mixture_of_two_tokenizers_is_refused():
    with pytest.raises(DataError, match="tokenized by different tokenizers: a, b"):
        mix([known(tokenizer="a", fingerprint="1"), known(tokenizer="b", fingerprint="2")])
    assert mix([["text"], known(tokenizer="a", fingerprint="1")]).tokenized == Tokenized("a", "1")


def test_mixture_is_checked_by_the_fingerprint_that_any_part_has():
    parts = [known(), known(tokenizer="b"), known(tokenizer="a", fingerprint="1"), known(tokenizer="a")]
    for sources in (parts, parts[::-1]):  # an arbitrary part was taken: its name cannot be checked
        assert mix(sources).tokenized == Tokenized("a", "1")


def test_metadata_on_the_hub_is_read(tmp_path, monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    asked = []

    def download(name, file, **_):
        asked.append((name, file))
        if file == "pretokenized.json":
            raise EntryNotFoundError("not there")
        (tmp_path / file).write_text('{"tokenizer_name": "gpt2", "context_size": 2}')
        return str(tmp_path / file)

    kept = datasets.Dataset.from_dict({"tokens": [[3, 4], [5, 6]]}).to_iterable_dataset()
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: kept)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert as_source("user/kept:small").tokenized == Tokenized(tokenizer="gpt2", ctx_len=2)
    assert asked == [("user/kept", "pretokenized.json"), ("user/kept", "sae_lens.json")]
