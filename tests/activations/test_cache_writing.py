"""Writing caches: what is written is what the model gives, whatever happens in between."""

import json
import os
import time

import pytest
import torch

from dictionary_learning import trainSAE
from dictionary_learning.activations.cache import ActivationCache, _writer as writing
from dictionary_learning.buffer import ActivationBuffer
from dictionary_learning.errors import DataError
from tests.activations.cache_files import DOCUMENTS, FIRST, SITES, all_rows, bytes_of, iter_rows, traced, write
from tests.processes import start_script


def test_every_token_is_there_once_with_its_place_and_its_own_activations(tmp_path):
    write(tmp_path / "cache")
    found = all_rows(ActivationCache(tmp_path / "cache", out_batch_size=30))
    words = {(d, p) for d, text in enumerate(DOCUMENTS) for p in range(len(text.split()))}
    # the first token of each context is left out; where it is a word, its context began in the middle of a document
    assert set(found) <= words and len(found) > 0.8 * len(words)
    buffer = ActivationBuffer(
        DOCUMENTS, traced(), SITES, n_ctxs=64, ctx_len=16, refresh_batch_size=4, out_batch_size=30,
        max_activation_norm_multiple=None,
    )  # fmt: skip
    live = torch.cat([batch[FIRST] for batch in buffer])
    ours = torch.stack(list(found.values()))
    assert torch.equal(ours[ours[:, 0].argsort()], live[live[:, 0].argsort()])


def test_tokens_are_those_of_the_text(tmp_path):
    write(tmp_path / "cache")
    rows = ActivationCache(tmp_path / "cache", out_batch_size=50).rows()
    for token, document, position in zip(rows.token, rows.document, rows.position, strict=True):
        assert int(DOCUMENTS[document].split()[position][1:]) + 3 == token


def test_a_run_from_a_cache_is_the_live_run_on_the_same_rows(tmp_path):
    write(tmp_path / "cache")
    config = {"trainer": "top_k", "k": 3, "dict_size": 48, "site": "model.layers.0", "device": "cpu"}
    cached = ActivationCache(tmp_path / "cache", out_batch_size=32)
    order = [(r.document, r.position) for r in iter_rows(ActivationCache(tmp_path / "cache", out_batch_size=32))]
    reader = ActivationBuffer(
        DOCUMENTS, traced(), SITES, n_ctxs=64, ctx_len=16, refresh_batch_size=4, out_batch_size=30,
        max_activation_norm_multiple=None,
    ).reader  # fmt: skip
    live = {}
    while (rows := reader.read(4)) is not None:
        for n, key in enumerate(zip(rows.document.tolist(), rows.position.tolist(), strict=True)):
            live[key] = {site: x[n] for site, x in rows.activations.items()}
    batches = [
        {
            site: torch.stack([live[key][site] for key in zip(d.tolist(), p.tolist(), strict=True)])
            for site in cached.sites
        }
        for d, p in order
    ]
    steps = len(batches)
    ours, theirs = (trainSAE(data, config, steps, progress=False)[0] for data in (cached, batches))
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name]), name


SLOWLY = """
import sys, time, torch
from pathlib import Path
from tests.activations.cache_files import write
from dictionary_learning.activations._reader import RowReader
read, calls = RowReader.read, []
def slowly(self, n):
    calls.append(n)
    time.sleep(0.05 if len(calls) < 8 else 600)  # and is not done before it is killed
    return read(self, n)
RowReader.read = slowly
torch.set_num_threads(1)
write(Path(sys.argv[1]))
"""


def test_killed_and_resumed_gives_the_same_bytes(tmp_path):
    write(tmp_path / "whole")
    path = tmp_path / "killed"
    process = start_script(SLOWLY, path)

    def index() -> dict:
        return json.loads((path / "index.json").read_text()) if (path / "index.json").exists() else {}

    deadline = time.monotonic() + 300
    while not index().get("shards") and time.monotonic() < deadline and process.is_alive():
        time.sleep(0.02)
    process.kill()
    process.join()
    assert index()["shards"] and not index()["complete"], "the kill came in the middle"
    write(path)
    assert bytes_of(path) == bytes_of(tmp_path / "whole")


@pytest.mark.parametrize("at", [0, 1, 2, 5, 12])
def test_failing_at_any_write_and_resuming_gives_the_same_bytes(tmp_path, monkeypatch, at):
    write(tmp_path / "whole")
    replace, calls = os.replace, iter(range(1000))

    def fails_once(source, target):
        if next(calls) == at:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails_once)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "cut")
    monkeypatch.undo()
    write(tmp_path / "cut")
    assert bytes_of(tmp_path / "cut") == bytes_of(tmp_path / "whole")


def test_reading_ahead_changes_no_byte(tmp_path):
    write(tmp_path / "alone")
    write(tmp_path / "ahead", prefetch=2)
    assert bytes_of(tmp_path / "alone") == bytes_of(tmp_path / "ahead")


def test_a_limit_is_met_exactly(tmp_path):
    index = write(tmp_path / "cache", n_tokens=257)
    assert index.n_rows == 257 and index.is_complete
    again = write(tmp_path / "cache", n_tokens=257)
    assert again.shards == index.shards


def test_other_settings_are_refused(tmp_path):
    write(tmp_path / "cache", n_tokens=200)
    with pytest.raises(DataError, match=r"other settings \(ctx_len: 16 there, 8 here\)"):
        write(tmp_path / "cache", n_tokens=200, ctx_len=8)
    with pytest.raises(DataError, match="seed"):
        write(tmp_path / "cache", n_tokens=200, seed=3)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_forms_of_rows_are_near_the_whole_numbers(tmp_path, dtype, compression):
    write(tmp_path / "whole")
    write(tmp_path / "cache", dtype=dtype, compression=compression)
    cache = ActivationCache(tmp_path / "cache", out_batch_size=64, seed=None, dtype="float32")
    exact = ActivationCache(tmp_path / "whole", out_batch_size=64, seed=None)
    got, expected = cache.rows(), exact.rows()
    assert torch.equal(got.token, expected.token)
    for site, x in got.activations.items():
        largest = expected.activations[site].abs().amax(1, keepdim=True)
        bound = {"float16": 2**-10, "bfloat16": 2**-7, "int8": 1 / 253}[dtype]
        assert x.dtype is torch.float32
        assert ((x - expected.activations[site]).abs() <= bound * largest).all()


def test_any_address_of_fsspec_is_served(tmp_path):
    write(tmp_path / "local")
    write("memory://caches/one")
    ours = ActivationCache("memory://caches/one", out_batch_size=50)
    ours.verify()
    theirs = ActivationCache(tmp_path / "local", out_batch_size=50)
    assert ours.index.shards == theirs.index.shards
    assert torch.equal(ours.rows().activations[FIRST], theirs.rows().activations[FIRST])


def test_unknown_addresses_are_refused():
    with pytest.raises(DataError, match="fsspec"):
        ActivationCache("nowhere://at/all")


def test_a_full_disk_is_noticed_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(writing.Store, "free", lambda self: 1000)
    with pytest.raises(DataError, match="has 0.001 MB left"):
        write(tmp_path / "cache", n_tokens=500)
    assert not (tmp_path / "cache").exists()


def test_size_and_time_are_said_before_writing(tmp_path, caplog):
    caplog.set_level("INFO")
    write(tmp_path / "cache", n_tokens=300)
    estimate = next(record.message for record in caplog.records if "take" in record.message)
    assert estimate.startswith("300 rows at 2 sites take") and "min" in estimate


def test_nothing_that_counts_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no token that counts"):
        write(tmp_path / "cache", documents=["w1"], seqpos_slice=(9, 12))
