"""Small caches, buffers and texts to try, and what is in them."""

import hashlib
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from dictionary_learning import load_model
from dictionary_learning.activations._reader import ReadingConfig, RowReader, row_reader
from dictionary_learning.activations.cache import ActivationCache, _writer as writing, write_cache
from dictionary_learning.buffer import ActivationBuffer
from dictionary_learning.data import TokenStream, as_source
from dictionary_learning.sites import Site
from tests import tiny

DOCUMENTS = tiny.documents(60)
SITES = ["model.layers.0", "model.layers.1.mlp:in"]
FIRST = Site("model.layers.0")


def traced(seed: int = 0):
    return load_model(tiny.model("llama", seed), tokenizer=tiny.tokenizer())


def write(path, sites=SITES, documents=DOCUMENTS, **options):
    sizes = {"ctx_len": 16, "refresh_batch_size": 4, "shard_size": 100, "max_activation_norm_multiple": None}
    return write_cache(path, documents, options.pop("model", None) or traced(), sites, **{**sizes, **options})


def all_rows(cache: ActivationCache) -> dict[tuple[int, int], torch.Tensor]:
    """Returns the rows at the first site by document and position."""
    found = {}
    while not cache._at_end():
        rows = cache.rows()
        for x, document, position in zip(
            rows.activations[FIRST], rows.document.tolist(), rows.position.tolist(), strict=True
        ):
            assert (document, position) not in found
            found[document, position] = x
    return found


def bytes_of(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def iter_rows(cache):
    while not cache._at_end():
        yield cache.rows()


SIZES = {"n_ctxs": 16, "ctx_len": 16, "refresh_batch_size": 4, "out_batch_size": 20}


def buffer(documents=DOCUMENTS, model=None, **options) -> ActivationBuffer:
    return ActivationBuffer(documents, model or traced(), "model.layers.0", **{**SIZES, **options})


def reader(documents=DOCUMENTS) -> RowReader:
    return row_reader(documents, traced(), "model.layers.0", ReadingConfig(ctx_len=16))


def other_documents():
    return tiny.documents(60, seed=9)


def text_file(folder, documents):
    path = folder / "corpus.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(documents))
    return str(path)


TEXTS = {
    "list": lambda folder, documents: documents,
    "iterator": lambda folder, documents: iter(documents),
    "file": text_file,
    "source": lambda folder, documents: as_source(documents),
    "stream": lambda folder, documents: TokenStream(as_source(documents), tiny.tokenizer(), ctx_len=16),
    "padded": lambda folder, documents: TokenStream(as_source(documents), tiny.tokenizer(), ctx_len=16, pack=False),
    "tokens": lambda folder, documents: [[int(w[1:]) + 3 for w in text.split()] for text in documents],
    "array": lambda folder, documents: np.array(
        [[int(w[1:]) + 3 for w in (8 * text.split())[:8]] for text in documents]
    ),
}


def stop_after_a_shard(monkeypatch, act):
    write_shard, calls = writing.write_shard, itertools.count()

    def stops(*arguments):
        if next(calls) == 1:
            raise KeyboardInterrupt
        return write_shard(*arguments)

    monkeypatch.setattr(writing, "write_shard", stops)
    with pytest.raises(KeyboardInterrupt):
        act()
    monkeypatch.undo()
