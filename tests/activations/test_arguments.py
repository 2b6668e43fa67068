"""What buffers, caches and streams accept: texts, sizes, states, and arguments that are refused."""

import numpy as np
import pytest
import torch

from dictionary_learning._border import check
from dictionary_learning.activations._filters import within_limits
from dictionary_learning.activations._stream import ActivationStream
from dictionary_learning.activations.cache import ActivationCache
from dictionary_learning.contexts import ContextStream
from dictionary_learning.data import ExampleStream
from dictionary_learning.errors import ConfigError, DataError, DictionaryLearningError
from dictionary_learning.sites import Site
from tests.activations.cache_files import DOCUMENTS, FIRST, TEXTS, buffer, traced, write


class TestStates:
    @pytest.mark.parametrize("dtype", [None, "int8"])
    @pytest.mark.parametrize("prefetch", [0, 2])
    def test_a_state_does_not_change_with_the_run(self, dtype, prefetch):
        options = {"dtype": dtype, "prefetch": prefetch, "end_of_data": "repeat"}
        held = buffer(**options)
        for _ in range(9):
            next(held)
        state = held.state_dict()
        expected = [next(held) for _ in range(60)]
        for _ in range(2):
            resumed = buffer(**options)
            resumed.load_state_dict(state)
            assert all(torch.equal(next(resumed), batch) for batch in expected)
            resumed.close()
        held.close()

    def test_a_state_of_another_size_is_refused(self):
        held = buffer()
        next(held)
        with pytest.raises(ConfigError, match="Build it with the same arguments"):
            buffer(n_ctxs=8).load_state_dict(held.state_dict())


class TestSizesOfBatches:
    @pytest.mark.parametrize("out_batch_size", [20, 128, 129, 200, 250, 256])
    @pytest.mark.parametrize("refresh_batch_size", [1, 4, 8])
    # rows are cut into batches wherever they come from
    @pytest.mark.covering(shows=lambda out_batch_size, refresh_batch_size: {out_batch_size, -refresh_batch_size})
    def test_only_the_last_batch_is_short(self, out_batch_size, refresh_batch_size):
        held = buffer(out_batch_size=out_batch_size, refresh_batch_size=refresh_batch_size)
        sizes = [len(batch) for batch in held]
        assert all(size == out_batch_size for size in sizes[:-1])
        assert sum(sizes) == sum(len(batch) for batch in buffer())


class TestTexts:
    @pytest.mark.parametrize("kind", list(TEXTS))
    def test_all_kinds_serve_buffers_and_contexts(self, tmp_path, kind):
        data = [TEXTS[kind](tmp_path / str(n), DOCUMENTS) for n in range(2)]
        assert torch.cat(list(buffer(data[0]))).isfinite().all()
        batches = list(ContextStream(data[1], traced(), "model.layers.0", ctx_len=16))
        assert sum(len(batch[FIRST]) for batch in batches) > 300

    def test_examples_do_not_serve_contexts(self):
        stream = ExampleStream([torch.zeros(3)], lambda some: torch.stack(some))
        with pytest.raises(DataError, match="contexts of tokens are needed"):
            ContextStream(stream, traced(), "model.layers.0")


class TestArguments:
    @pytest.mark.parametrize("options", [{"prefetch": -1}, {"n_ctxs": 1.5}, {"ctx_len": 0}, {"dtype": "int4"}], ids=str)
    def test_bad_ones_of_buffers_are_refused(self, options):
        with pytest.raises(ConfigError):
            buffer(**options)

    @pytest.mark.parametrize(
        "options",
        [
            {"n_tokens": 0}, {"shard_size": -1}, {"refresh_batch_size": 0}, {"nosuch": 1}, {"compression": "x"},
            {"prefetch": -1}, {"dtype": "int4"},
        ],
        ids=str,
    )  # fmt: skip
    def test_bad_ones_of_caches_are_refused(self, tmp_path, options):
        with pytest.raises(ConfigError):
            write(tmp_path / "cache", **options)

    @pytest.mark.parametrize("value", ["a", "3", None, 1.5, True, [1], 0, float("nan")])
    def test_numbers_that_are_not_whole_are_refused(self, value):
        with pytest.raises(ConfigError, match="Got n_ctxs="):
            check("n_ctxs", value, int)

    def test_harmless_ones_are_converted(self):
        for value in (16, 1.6e1, np.int64(16), torch.tensor(16)):
            assert check("n_ctxs", value, int) == 16

    @pytest.mark.parametrize(
        ("data", "said"),
        [
            (5, "an iterable"),
            ([torch.zeros(3, 4).to_sparse()], "sparse"),
            ([{"a": torch.zeros(3, 4), "b": torch.zeros(2, 4)}], "different numbers of rows"),
            ([{"a": torch.zeros(3, 4), "b": torch.zeros(3, 4)}, {"a": torch.zeros(3, 4)}], "lacks the sites b:out"),
        ],
    )
    def test_bad_batches_are_refused(self, data, said):
        with pytest.raises(DataError, match=said):
            list(ActivationStream(data))

    def test_limits_may_be_given_by_name(self):
        x = {Site("a"): torch.tensor([[1.0], [3.0], [torch.nan]])}
        for limits in ({"a": 2.0}, {"a:out": 2.0}, {Site("a"): 2.0}):
            assert within_limits(x, limits).tolist() == [True, False, False]

    def test_a_package_that_is_missing_is_named(self, monkeypatch):
        import fsspec

        def missing(path):
            raise ImportError("Install s3fs to access S3")

        monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
        with pytest.raises(DictionaryLearningError, match="pip install s3fs"):
            ActivationCache("s3://bucket/cache")
