"""Caches: what is written is what the model gives, whatever happens in between."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dictionary_learning import load_model, trainSAE
from dictionary_learning.activations.cache import ActivationCache, write_cache, writer as writing
from dictionary_learning.activations.mixture import ActivationMixture
from dictionary_learning.buffer import ActivationBuffer
from dictionary_learning.errors import ConfigError, DataError, DataExhaustedError, SiteError
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


def iter_rows(cache):
    while not cache._at_end():
        yield cache.rows()


SCRIPT = """
import sys, time, torch
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.activations.test_cache import write
from dictionary_learning.activations.tracing import RowReader
read = RowReader.read
def slowly(self, n):
    time.sleep(0.05)
    return read(self, n)
RowReader.read = slowly
torch.set_num_threads(1)
write(Path({path!r}))
"""


def test_killed_and_resumed_gives_the_same_bytes(tmp_path):
    write(tmp_path / "whole")
    path = tmp_path / "killed"
    script = SCRIPT.format(root=str(Path(__file__).parents[2]), path=str(path))
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (path / "index.json").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (path / "index.json").exists()
    before = json.loads((path / "index.json").read_text())
    assert not before["complete"] and before["shards"], "the kill came in the middle"
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


@pytest.mark.parametrize("seed", [None, 0, 5])
@pytest.mark.parametrize("size", [7, 100, 10_000])
def test_each_row_is_served_once_in_every_epoch(tmp_path, seed, size):
    index = write(tmp_path / "cache")
    cache = ActivationCache(tmp_path / "cache", out_batch_size=size, seed=seed, window=3, end_of_data="repeat")
    orders = []
    for _ in range(2):
        seen, sizes = [], []
        while sum(sizes) < index.n_rows:
            rows = cache.rows()
            sizes.append(rows.n)
            seen += zip(rows.document.tolist(), rows.position.tolist(), strict=True)
        assert len(set(seen)) == len(seen) == index.n_rows
        assert all(n == size for n in sizes[:-1])
        orders.append(seen)
    assert (orders[0] == orders[1]) == (seed is None)


def test_order_is_that_of_the_seed_and_mixes_shards(tmp_path):
    write(tmp_path / "cache")
    first, again, other = (ActivationCache(tmp_path / "cache", out_batch_size=60, seed=s) for s in (1, 1, 2))
    a, b, c = first.rows(), again.rows(), other.rows()
    assert torch.equal(a.document, b.document) and not torch.equal(a.document, c.document)
    written = ActivationCache(tmp_path / "cache", out_batch_size=60, seed=None).rows()
    assert len(a.document.unique()) > len(written.document.unique())


def test_files_are_shuffled_themselves(tmp_path):
    write(tmp_path / "cache")
    rows = ActivationCache(tmp_path / "cache", out_batch_size=100, seed=None).rows()
    follows = (rows.document[1:] == rows.document[:-1]) & (rows.position[1:] == rows.position[:-1] + 1)
    assert follows.float().mean() < 0.1


def test_resumed_cache_serves_the_same_rows(tmp_path):
    write(tmp_path / "cache")
    cache = ActivationCache(tmp_path / "cache", out_batch_size=37, end_of_data="repeat", window=2)
    for _ in range(9):
        next(cache)
    resumed = ActivationCache(tmp_path / "cache", out_batch_size=37, end_of_data="repeat", window=2)
    resumed.load_state_dict(json.loads(json.dumps(cache.state_dict())))
    for _ in range(30):
        assert torch.equal(next(cache)[FIRST], next(resumed)[FIRST])


def test_sample_takes_nothing(tmp_path):
    write(tmp_path / "cache")
    cache = ActivationCache(tmp_path / "cache", out_batch_size=40)
    sample = cache.sample(100)[FIRST]
    assert sample.shape == (100, tiny.DIM)
    served = torch.cat([next(cache)[FIRST] for _ in range(3)])
    assert torch.equal(served[:100], sample)


def test_one_site_comes_as_tensors_and_unknown_ones_are_refused(tmp_path):
    write(tmp_path / "cache")
    assert next(ActivationCache(tmp_path / "cache", "model.layers.0", out_batch_size=5)).shape == (5, tiny.DIM)
    assert ActivationCache(tmp_path / "cache", "layers.*.mlp:in").sites == [Site("model.layers.1.mlp", "in")]
    with pytest.raises(SiteError, match=r"has no model\.layers\.0:in"):
        ActivationCache(tmp_path / "cache", "model.layers.0:in")
    with pytest.raises(SiteError, match="not in the cache"):
        ActivationCache(tmp_path / "cache", "model.layers.9")


def test_another_width_or_model_is_refused(tmp_path):
    write(tmp_path / "cache")
    with pytest.raises(ConfigError, match="Got d_submodule=7"):
        ActivationCache(tmp_path / "cache", d_submodule=7)
    with pytest.raises(DataError, match="is of the model"):
        ActivationCache(tmp_path / "cache", model="gpt2")
    assert ActivationCache(tmp_path / "cache", model=traced()).n_rows


def test_damage_is_found(tmp_path):
    write(tmp_path / "cache")
    cache = ActivationCache(tmp_path / "cache", seed=None)
    cache.verify()
    shard = tmp_path / "cache" / cache.index.shards[1].file
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(bytes(content))
    with pytest.raises(DataError, match="1 of .* shards .* shard_00001"):
        ActivationCache(tmp_path / "cache").verify()
    shard.write_bytes(bytes(content[:-40]))
    with pytest.raises(DataError, match="the index says"):
        list(ActivationCache(tmp_path / "cache"))


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"format": "other"}', '{"format": "dictionary_learning.activations", "version": 9}']
)
def test_a_bad_index_is_refused(tmp_path, content):
    with pytest.raises(DataError, match="has no index.json"):
        ActivationCache(tmp_path)
    (tmp_path / "index.json").write_text(content)
    with pytest.raises(DataError, match="cannot be read"):
        ActivationCache(tmp_path)


def test_an_index_cannot_lead_out_of_its_folder(tmp_path):
    write(tmp_path / "cache")
    path = tmp_path / "cache" / "index.json"
    path.write_text(path.read_text().replace("shard_00000", "../shard_00000"))
    with pytest.raises(DataError, match="within"):
        ActivationCache(tmp_path / "cache")


def test_end_of_data_error_is_raised(tmp_path):
    write(tmp_path / "cache")
    cache = ActivationCache(tmp_path / "cache", out_batch_size=10_000, end_of_data="error")
    next(cache)
    with pytest.raises(DataExhaustedError, match="ended after"):
        next(cache)


def test_a_full_disk_is_noticed_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(writing.Store, "free", lambda self: 1000)
    with pytest.raises(DataError, match="has 0.0 GB left"):
        write(tmp_path / "cache", n_tokens=500)
    assert not (tmp_path / "cache").exists()


def test_size_and_time_are_said_before_writing(tmp_path, caplog):
    caplog.set_level("INFO")
    write(tmp_path / "cache", n_tokens=300)
    estimate = next(record.message for record in caplog.records if "take" in record.message)
    assert estimate.startswith("300 rows at 2 sites take") and "min" in estimate


def test_heads_are_known_without_the_model(tmp_path):
    write(tmp_path / "cache", "model.layers.1:heads")
    cache = ActivationCache(tmp_path / "cache", out_batch_size=32)
    (dictionary,) = trainSAE(cache, {"trainer": "top_k", "k": 2, "dict_size": 32, "wiring": "heads"}, 3, progress=False)
    assert len(list(dictionary.coders())) == 2
    with pytest.raises(SiteError, match="knows of no attention heads"):
        cache.n_heads(FIRST)


def test_norm_limits_are_kept_and_serve_evaluation(tmp_path):
    write(tmp_path / "cache", max_activation_norm_multiple=1.2)
    cache = ActivationCache(tmp_path / "cache", out_batch_size=10_000)
    limits, rows = cache.norm_limits, cache.rows()
    for site, x in rows.activations.items():
        assert x.float().norm(dim=1).max() <= limits[site]
    assert cache.index.dropped["norm"] > 0
    assert cache.filter.max_norm_multiple == 1.2


def test_nothing_that_counts_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no token that counts"):
        write(tmp_path / "cache", documents=["w1"], seqpos_slice=(9, 12))


def test_a_mixture_holds_each_source_in_its_share(tmp_path):
    write(tmp_path / "cache")
    live = ActivationBuffer(
        tiny.documents(60, seed=3), traced(seed=4), SITES, n_ctxs=32, ctx_len=16, refresh_batch_size=4, out_batch_size=25,
        max_activation_norm_multiple=None,
    )  # fmt: skip

    def mixed():
        return ActivationMixture([ActivationCache(tmp_path / "cache", out_batch_size=33), live], [3, 1], 40)

    mixture, known = mixed(), torch.stack(list(all_rows(ActivationCache(tmp_path / "cache")).values()))
    for _ in range(4):
        batch = next(mixture)[FIRST]
        from_cache = (batch.unsqueeze(1) == known).all(-1).any(1)
        assert len(batch) == 40 and int(from_cache.sum()) == 30
    state = mixture.state_dict()
    expected = [next(mixture)[FIRST] for _ in range(5)]
    resumed = mixed()
    resumed.load_state_dict(state)
    assert all(torch.equal(next(resumed)[FIRST], x) for x in expected)


def test_sources_of_other_sites_are_not_mixed(tmp_path):
    write(tmp_path / "cache")
    both, one = ActivationCache(tmp_path / "cache"), ActivationCache(tmp_path / "cache", "model.layers.0")
    with pytest.raises(ConfigError, match="only the same sites"):
        ActivationMixture([both, one])
