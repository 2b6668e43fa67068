"""Every kind of data object gives every consumer of data the same tokens as a list of strings does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch

from dictionary_learning import (
    ActivationBuffer,
    Candidate,
    ContextStream,
    evaluate_dictionaries,
    load_model,
    loss_recovered,
)
from dictionary_learning.activations.cache import ActivationCache, write_cache
from dictionary_learning.data import Chat, TokenStream, as_source, check_end_of_data, mix, pretokenize
from dictionary_learning.dictionaries import AutoEncoderTopK
from dictionary_learning.errors import ConfigError, DataError
from dictionary_learning.evaluation import EvaluationConfig, evaluate
from tests import tiny
from tests.data.kinds import array, lines, parquet

WORDS = np.random.default_rng(0).integers(0, 90, (20, 7))
TEXTS = [" ".join(f"w{word}" for word in row) for row in WORDS]
# the ids of each text, and the EOS that ends it: the tokenizer has no BOS
IDS = np.concatenate([WORDS + 3, np.ones((len(WORDS), 1), int)], axis=1)
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def _records() -> list[dict[str, str]]:
    return [{"text": text} for text in TEXTS]


def _saved(place: Path) -> str:
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(str(place / "saved"))
    return str(place / "saved")


def _transformed(_: Path) -> datasets.Dataset:
    data = datasets.Dataset.from_dict({"text": [text.upper() for text in TEXTS]})
    return data.with_transform(lambda rows: {"text": [text.lower() for text in rows["text"]]})


def _tokenizing(_: Path) -> datasets.Dataset:
    data = datasets.Dataset.from_dict({"number": range(len(IDS))})
    return data.with_transform(lambda rows: {"input_ids": [torch.tensor(IDS[n]) for n in rows["number"]]})


def _talks() -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": text}] for text in TEXTS]


def _pretokenized(place: Path) -> Path:
    pretokenize(TEXTS, tiny.tokenizer(bos=False), place / "made", ctx_len=16)
    return place / "made"


def _memory_map(place: Path) -> Path:
    IDS.astype(np.uint16).tofile(place / "a.bin")
    return place / "a.bin"


KINDS: dict[str, Callable[[Path], Any]] = {
    "list": lambda place: list(TEXTS),
    "tuple": lambda place: tuple(TEXTS),
    "iterator": lambda place: iter(TEXTS),
    "generator": lambda place: (text for text in TEXTS),
    "txt": lambda place: lines(place / "a.txt", TEXTS),
    "jsonl": lambda place: str(lines(place / "a.jsonl", _records())),
    "jsonl.zst": lambda place: lines(place / "a.jsonl.zst", _records()),
    "jsonl.gz": lambda place: lines(place / "a.jsonl.gz", _records()),
    "parquet": lambda place: parquet(place / "a.parquet", text=TEXTS),
    "name": _saved,
    "Dataset": lambda place: datasets.Dataset.from_dict({"text": TEXTS}),
    "IterableDataset": lambda place: datasets.Dataset.from_dict({"text": TEXTS}).to_iterable_dataset(),
    "DatasetDict": lambda place: datasets.DatasetDict(train=datasets.Dataset.from_dict({"text": TEXTS})),
    "transformed": _transformed,
    "tokenizing transform": _tokenizing,
    "Series": lambda place: pd.Series(TEXTS, index=range(5, 5 + len(TEXTS))),
    "DataFrame": lambda place: pd.DataFrame({"text": TEXTS, "id": range(len(TEXTS))}),
    "array of strings": lambda place: np.array(TEXTS),
    "array of objects": lambda place: np.array(TEXTS, dtype=object),
    "records": lambda place: _records(),
    "records of ids": lambda place: [{"input_ids": ids} for ids in IDS.tolist()],
    "columns": lambda place: {"text": TEXTS, "id": list(range(len(TEXTS)))},
    "tokenizer's ids": lambda place: tiny.tokenizer(bos=False)([f"{text} </s>" for text in TEXTS]),
    "tokenizer's tensors": lambda place: tiny.tokenizer(bos=False)(
        [f"{text} </s>" for text in TEXTS], return_tensors="pt"
    ),
    "lists of ids": lambda place: IDS.tolist(),
    "list of tensors": lambda place: list(torch.from_numpy(IDS)),
    "list of arrays": lambda place: list(IDS),
    "2-D tensor": lambda place: torch.from_numpy(IDS),
    "1-D tensor": lambda place: torch.from_numpy(IDS).flatten(),
    "2-D array": lambda place: IDS,
    "1-D array": lambda place: IDS.flatten(),
    "npy": lambda place: array(place / "a.npy", IDS),
    "memory map": _memory_map,
    "pretokenized": _pretokenized,
    "conversations": lambda place: as_source(_talks(), chat=Chat(template=TEMPLATE)),
    "mixture": lambda place: mix([TEXTS, ["w1"]], [1, 1e-9]),
    "TokenStream": lambda place: TokenStream(as_source(TEXTS), tiny.tokenizer(bos=False), ctx_len=16),
}


@pytest.fixture(scope="module")
def model():
    return load_model(tiny.model("llama"), tokenizer=tiny.tokenizer(bos=False))


@pytest.fixture(scope="module")
def dictionary():
    torch.manual_seed(0)
    return AutoEncoderTopK(tiny.DIM, 32, 4)


def _buffer(data, model, dictionary, place) -> Any:
    sizes = {"n_ctxs": 8, "ctx_len": 16, "refresh_batch_size": 4, "out_batch_size": 20}
    return torch.cat(list(ActivationBuffer(data, model, "model.layers.1", **sizes)))


def _cache(data, model, dictionary, place) -> Any:
    write_cache(place / "cache", data, model, "model.layers.1", ctx_len=16, refresh_batch_size=4, shard_size=100)
    return torch.cat(list(ActivationCache(place / "cache", out_batch_size=50)))


def _context_stream(data, model, dictionary, place) -> Any:
    return torch.cat([batch.tokens.input_ids for batch in ContextStream(data, model, "model.layers.1", ctx_len=16)])


def _evaluate(data, model, dictionary, place) -> Any:
    config = EvaluationConfig(n_tokens=100, n_fidelity_tokens=64, ctx_len=16, batch_size=4)
    site = model.sites("model.layers.1")[0]
    report = evaluate_dictionaries(model, [Candidate("a", dictionary, site)], data, config)
    return {"loss": report["ce_clean"], **report["dictionaries"][0]["metrics"]}


def _evaluate_buffer(data, model, dictionary, place) -> Any:
    sizes = {"n_ctxs": 8, "ctx_len": 16, "refresh_batch_size": 4, "out_batch_size": 20}
    return evaluate(dictionary, ActivationBuffer(data, model, "model.layers.1", **sizes), batch_size=4)


def _pretokenize(data, model, dictionary, place) -> Any:
    pretokenize(data, model.tokenizer, place / "out", ctx_len=16)
    return [row.ids for row in as_source(place / "out")]


CONSUMERS = {
    "buffer": _buffer,
    "cache": _cache,
    "context stream": _context_stream,
    "evaluate_dictionaries": _evaluate,
    "evaluate": _evaluate_buffer,
    "pretokenize": _pretokenize,
}


@pytest.fixture(scope="module")
def expected(model, dictionary, tmp_path_factory):
    place = tmp_path_factory.mktemp("expected")
    return {name: consume(list(TEXTS), model, dictionary, place) for name, consume in CONSUMERS.items()}


def assert_equal(one: Any, other: Any) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one == pytest.approx(other, rel=1e-12, nan_ok=True)
    else:
        assert one == other


READS = {"buffer": "rows", "cache": "rows", "evaluate": "figures", "evaluate_dictionaries": "figures"}
"""Consumers that read in the same way."""


@pytest.mark.parametrize("consumer", CONSUMERS)
@pytest.mark.parametrize("kind", KINDS)
# every kind in every way of reading, and both names of each way
@pytest.mark.covering(shows=lambda kind, consumer: {(kind, READS.get(consumer, consumer)), consumer})
def test_every_kind_gives_every_consumer_the_tokens_of_the_list(kind, consumer, model, dictionary, expected, tmp_path):
    assert_equal(CONSUMERS[consumer](KINDS[kind](tmp_path), model, dictionary, tmp_path), expected[consumer])


ONE_ROW_A_DOCUMENT = [kind for kind in KINDS if kind not in ("pretokenized", "1-D tensor", "1-D array", "memory map")]


@pytest.mark.parametrize("kind", [kind for kind in ONE_ROW_A_DOCUMENT if kind not in ("name", "jsonl", "TokenStream")])
def test_every_kind_gives_loss_recovered_the_documents_of_the_list(kind, model, dictionary, tmp_path):
    # a string is a text here, and a stream has packed its documents
    data = KINDS[kind](tmp_path)
    has_eos = kind in ("npy", "tokenizing transform") or any(word in kind for word in ("ids", "tensor", "array"))
    if has_eos and "strings" not in kind and "objects" not in kind:
        expected = loss_recovered(IDS.tolist(), model, "model.layers.1", dictionary, max_len=16)
    else:
        expected = loss_recovered(TEXTS, model, "model.layers.1", dictionary, max_len=16)
    found = loss_recovered(data, model, "model.layers.1", dictionary, max_len=16)
    assert [float(one) for one in found] == pytest.approx([float(one) for one in expected], rel=1e-12)


@pytest.mark.parametrize("kind", ["iterator", "generator"])
def test_data_that_can_be_read_once_is_not_repeated(kind, model, tmp_path):
    for consume in (ActivationBuffer, ContextStream):
        data = KINDS[kind](tmp_path)
        with pytest.raises(ConfigError, match="can be read only once. Pass a list"):
            consume(data, model, "model.layers.1", end_of_data="repeat")
        assert next(data) == TEXTS[0]  # nothing was read


def test_stream_that_can_be_read_once_is_not_repeated(model):
    stream = TokenStream(as_source(iter(TEXTS)), model.tokenizer, ctx_len=16)
    with pytest.raises(ConfigError, match="can be read only once"):
        ActivationBuffer(stream, model, "model.layers.1", end_of_data="repeat")


def test_unknown_end_of_data_is_refused():
    with pytest.raises(ConfigError, match="Got end_of_data='again'; it is 'stop', 'repeat' or 'error'"):
        check_end_of_data("again")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"a": ["w1"]}, "has no column 'text'; it has: a"),
        ({}, "has no column 'text'; it has: nothing"),
        ({"text": "w1 w2"}, "'text' is a str"),
        ({"text": ["w1"], "id": [1, 2]}, "Give lists of one length"),
        ({"input_ids": [[3, 4], [3, 2]], "attention_mask": [[1, 1], [1, 0]]}, "holds padding"),
    ],
)
def test_columns_that_hold_no_documents_are_refused(data, message):
    with pytest.raises(DataError, match=message):
        as_source(data)


ASKED = [{"ctx_len": 32}, {"pack": False}, {"text_column": "body"}]


@pytest.mark.parametrize("asked", ASKED, ids=str)
@pytest.mark.parametrize("consume", [ActivationBuffer, ContextStream, write_cache])
def test_a_stream_is_not_asked_for_other_contexts(consume, asked, model, tmp_path):
    stream = TokenStream(as_source(TEXTS), model.tokenizer, ctx_len=16)
    if consume is ContextStream and "text_column" in asked:
        pytest.skip("has no such argument")
    name = next(iter(asked))
    arguments = (stream, model, "model.layers.1")
    with pytest.raises(ConfigError, match=f"Got {name}=.*the TokenStream has"):
        consume(*((tmp_path / "cache", *arguments) if consume is write_cache else arguments), **asked)
    assert stream.source.position == 0


def test_own_settings_of_a_stream_may_be_repeated(model):
    stream = TokenStream(as_source(TEXTS), model.tokenizer, ctx_len=16, pack=False)
    assert ContextStream(stream, model, "model.layers.1", ctx_len=16, pack=False).tokens is stream


@pytest.mark.parametrize(
    "asked", [{"on_bad_document": "skip"}, {"text_column": "b"}, {"name": "b"}, {"dtype": "uint8"}]
)
def test_a_source_is_not_asked_for_other_settings(asked):
    with pytest.raises(ConfigError, match="Leave .* out, or set it there"):
        as_source(as_source(TEXTS), **asked)
    skipping = as_source(TEXTS, on_bad_document="skip")
    assert as_source(skipping, on_bad_document="skip") is skipping


def test_context_stream_without_text_says_so(model):
    with pytest.raises(DataError, match="holds no token that counts"):
        next(ContextStream([], model, "model.layers.1"))
