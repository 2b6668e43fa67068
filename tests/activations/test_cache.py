"""Serving caches: every row once, in an order that goes on where it was; what does not fit is refused."""

import json

import pytest
import torch

from dictionary_learning import trainSAE
from dictionary_learning.activations._mixture import ActivationMixture
from dictionary_learning.activations.cache import ActivationCache
from dictionary_learning.buffer import ActivationBuffer
from dictionary_learning.errors import ConfigError, DataError, DataExhaustedError, SiteError
from dictionary_learning.sites import Site
from tests import tiny
from tests.activations.cache_files import FIRST, SITES, all_rows, traced, write


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


def test_a_mixture_holds_each_source_in_its_share(tmp_path):
    write(tmp_path / "cache")
    live = ActivationBuffer(
        tiny.documents(60, seed=3), traced(seed=4), SITES, n_ctxs=32, ctx_len=16, refresh_batch_size=4,
        out_batch_size=25, max_activation_norm_multiple=None,
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
