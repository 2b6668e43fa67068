"""Data that is not as it should be: found, counted, and refused with what to do."""

import itertools
import os
import pickle
import shutil
import threading

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from dictionary_learning import load_model
from dictionary_learning.activations._filters import TokenFilter, within_limits
from dictionary_learning.activations._mixture import ActivationMixture
from dictionary_learning.activations._prefetch import Prefetcher
from dictionary_learning.activations._reader import ReadingConfig, RowReader, row_reader, whole_number
from dictionary_learning.activations._storage import RowStorage, as_dtype
from dictionary_learning.activations._stream import ActivationStream
from dictionary_learning.activations.cache import ActivationCache, _writer as writing, write_cache
from dictionary_learning.buffer import ActivationBuffer
from dictionary_learning.contexts import ContextStream, Predictions
from dictionary_learning.data import TokenBatch, TokenStream, as_source
from dictionary_learning.data._examples import ExampleStream
from dictionary_learning.errors import ConfigError, DataError, DictionaryLearningError
from dictionary_learning.sites import Site
from tests import tiny
from tests.activations.cache_files import DOCUMENTS, FIRST, bytes_of, traced, write

SIZES = {"n_ctxs": 16, "ctx_len": 16, "refresh_batch_size": 4, "out_batch_size": 20}


def buffer(documents=DOCUMENTS, model=None, **options) -> ActivationBuffer:
    return ActivationBuffer(documents, model or traced(), "model.layers.0", **{**SIZES, **options})


def reader(documents=DOCUMENTS) -> RowReader:
    return row_reader(documents, traced(), "model.layers.0", ReadingConfig(ctx_len=16))


class Faulty(torch.nn.Module):
    """Rows of (id, position, 1), damaged by a function that knows the number of the forward pass."""

    def __init__(self, damage):
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(()))
        self.site, self.damage, self.n = torch.nn.Identity(), damage, 0

    def forward(self, input_ids, attention_mask=None):
        position = torch.arange(input_ids.shape[1]).expand_as(input_ids)
        rows = torch.stack([input_ids, position, torch.ones_like(input_ids)], -1).float()
        self.n += 1
        self.damage(rows, self.n)
        return self.site(rows)


def once(value):
    """Damages one row of the second pass, which is the first after the one that finds the widths."""

    def damage(rows, n):
        if n == 2:
            rows[0, 5, 0] = value

    return damage


def faulty(damage):
    return load_model(Faulty(damage), tokenizer=tiny.tokenizer())


def always(rows, n):
    rows.fill_(torch.nan)


BAD = pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 3e38])
LIMITS = pytest.mark.parametrize("multiple", [10.0, None])


class TestNotFinite:
    @BAD
    @LIMITS
    @pytest.mark.parametrize("end_of_data", ["stop", "repeat", "error"])
    def test_one_bad_token_in_the_first_pass_costs_itself(self, value, multiple, end_of_data):
        options = {**SIZES, "max_activation_norm_multiple": multiple, "end_of_data": end_of_data}
        clean, damaged = (
            ActivationBuffer(DOCUMENTS, faulty(damage), "site", **options)
            for damage in (lambda rows, n: None, once(value))
        )
        rows = [torch.cat([next(b) for _ in range(20)]) for b in (clean, damaged)]
        assert all(len(x) == 400 and x.isfinite().all() for x in rows)
        assert damaged.reader.dropped["not finite"] == 1
        # the median of one row less
        assert damaged.norm_limits == (pytest.approx(clean.norm_limits, rel=0.1) if multiple else None)

    @BAD
    @LIMITS
    def test_a_cache_leaves_it_out_too(self, tmp_path, value, multiple):
        index = write_cache(
            tmp_path, DOCUMENTS, faulty(once(value)), "site", ctx_len=16, max_activation_norm_multiple=multiple
        )
        assert index.dropped["not finite"] == 1
        rows = torch.cat(list(ActivationCache(tmp_path)))
        assert rows.isfinite().all()
        assert len(rows) == index.dropped["read"] - sum(n for name, n in index.dropped.items() if name != "read")

    @LIMITS
    @pytest.mark.parametrize("end_of_data", ["stop", "repeat", "error"])
    def test_nothing_finite_is_an_error(self, tmp_path, multiple, end_of_data):
        options = {"ctx_len": 16, "max_activation_norm_multiple": multiple}
        with pytest.raises(DataError, match="finite.*float16"):
            next(ActivationBuffer(DOCUMENTS, faulty(always), "site", **{**SIZES, **options}, end_of_data=end_of_data))
        with pytest.raises(DataError, match="finite.*float16"):
            write_cache(tmp_path, DOCUMENTS, faulty(always), "site", **options)

    def test_a_whole_pass_in_the_middle_is_left_out(self):
        def damage(rows, n):
            if n == 4:
                rows.fill_(torch.nan)

        held = ActivationBuffer(DOCUMENTS, faulty(damage), "site", **SIZES)
        assert torch.cat(list(held)).isfinite().all()
        assert held.reader.dropped["not finite"] > 40


class TestFiltersThatLeaveNothing:
    @pytest.mark.parametrize(
        "options",
        [
            {"seqpos_slice": (5, 2)},
            {"seqpos_slice": (0,)},
            {"seqpos_slice": (-2, -5)},
            {"seqpos_slice": (16, 20)},
            {"seqpos_slice": (1,)},  # the first position alone, which remove_bos excludes
            {"max_activation_norm_multiple": 0},
            {"max_activation_norm_multiple": -1.0},
            {"max_activation_norm_multiple": float("nan")},
            {"max_activation_norm_multiple": float("inf")},
        ],
        ids=str,
    )
    def test_are_refused_before_anything_is_read(self, tmp_path, options):
        with pytest.raises(ConfigError, match=r"Widen it|above 0|widen seqpos_slice|finite"):
            buffer(**options)
        with pytest.raises(ConfigError, match=r"Widen it|above 0|widen seqpos_slice|finite"):
            write(tmp_path / "cache", **options)
        assert not (tmp_path / "cache").exists()

    @pytest.mark.parametrize("chosen", [(-1, 3), (2, 14), (None, -1), (3,), (1, 9, 2), (-4, None)])
    def test_others_are_not(self, chosen):
        assert TokenFilter(seqpos_slice=chosen).seqpos_slice == chosen

    @pytest.mark.parametrize("end_of_data", ["stop", "repeat", "error"])
    def test_text_without_a_token_that_counts_is_an_error(self, tmp_path, end_of_data):
        options = {"pack": False, "ctx_len": 16}
        with pytest.raises(DataError, match="no token that counts"):
            next(buffer(["w1"] * 5, end_of_data=end_of_data, **options))
        with pytest.raises(DataError, match="no token that counts"):
            write(tmp_path / "cache", documents=["w1"] * 5, **options)


class TestFloat16:
    def test_overflow_is_refused_wherever_rows_are_stored_or_served(self, tmp_path):
        def huge(rows, n):
            rows[..., 1] *= 1e5

        options = {"max_activation_norm_multiple": None, "ctx_len": 16}
        with pytest.raises(DataError, match=r"65,504.*bfloat16"):
            next(ActivationBuffer(DOCUMENTS, faulty(huge), "site", **{**SIZES, **options}, dtype="float16"))
        with pytest.raises(DataError, match="65,504"):
            write_cache(tmp_path / "refused", DOCUMENTS, faulty(huge), "site", dtype="float16", **options)
        for dtype in ("float32", "bfloat16", "int8"):
            write_cache(tmp_path / dtype, DOCUMENTS, faulty(huge), "site", dtype=dtype, **options)
            with pytest.raises(DataError, match="65,504"):
                next(ActivationCache(tmp_path / dtype, dtype="float16"))

    def test_what_fits_or_was_infinite_before_is_not(self):
        x = torch.tensor([[65504.0, -65504.0, torch.inf]])
        assert torch.equal(as_dtype(x, torch.float16).float(), x)
        storage = RowStorage(1, 3, torch.float16)
        storage.write(torch.tensor([0]), x)
        assert torch.equal(storage.read(torch.tensor([0])).float(), x)


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


class TestOtherTextOrModel:
    @pytest.mark.parametrize("kind", list(TEXTS))
    @pytest.mark.parametrize("n_tokens", [150, 100_000], ids=["complete", "ended"])
    def test_other_text_of_the_same_kind_is_refused(self, tmp_path, kind, n_tokens):
        make = TEXTS[kind]
        write(tmp_path / "cache", documents=make(tmp_path / "a", DOCUMENTS), n_tokens=n_tokens)
        before = bytes_of(tmp_path / "cache")
        with pytest.raises(DataError, match="the text is another one"):
            write(tmp_path / "cache", documents=make(tmp_path / "b", other_documents()), n_tokens=n_tokens)
        again = write(tmp_path / "cache", documents=make(tmp_path / "c", DOCUMENTS), n_tokens=n_tokens)
        assert again.is_complete
        assert bytes_of(tmp_path / "cache") == before

    @pytest.mark.parametrize("kind", [kind for kind in TEXTS if kind != "iterator"])
    def test_a_cache_that_is_not_complete_is_not_continued_with_other_text(self, tmp_path, monkeypatch, kind):
        make = TEXTS[kind]
        stop_after_a_shard(monkeypatch, lambda: write(tmp_path / "cache", documents=make(tmp_path / "a", DOCUMENTS)))
        with pytest.raises(DataError, match="the text is another one"):
            write(tmp_path / "cache", documents=make(tmp_path / "b", other_documents()))
        write(tmp_path / "cache", documents=make(tmp_path / "c", DOCUMENTS))
        write(tmp_path / "whole", documents=make(tmp_path / "d", DOCUMENTS))
        assert bytes_of(tmp_path / "cache") == bytes_of(tmp_path / "whole")

    def test_an_iterator_continues(self, tmp_path, monkeypatch):
        stop_after_a_shard(monkeypatch, lambda: write(tmp_path / "cache", documents=iter(DOCUMENTS)))
        write(tmp_path / "cache", documents=iter(DOCUMENTS))
        write(tmp_path / "whole", documents=iter(DOCUMENTS))
        assert bytes_of(tmp_path / "cache") == bytes_of(tmp_path / "whole")

    def test_other_weights_are_refused(self, tmp_path):
        write(tmp_path / "cache", n_tokens=100)
        other = traced(seed=1)
        with pytest.raises(DataError, match="the model has other weights"):
            write(tmp_path / "cache", n_tokens=100, model=other)
        with pytest.raises(DataError, match="other weights"):
            ActivationCache(tmp_path / "cache", model=other)
        with pytest.raises(DataError, match="other weights"):
            ActivationCache(tmp_path / "cache", model=tiny.model("llama", 1))
        for same in (traced(), tiny.model("llama", 0)):
            assert ActivationCache(tmp_path / "cache", model=same).n_rows == 100

    def test_a_cache_without_fingerprints_is_served_and_continued(self, tmp_path, monkeypatch):
        import json

        stop_after_a_shard(monkeypatch, lambda: write(tmp_path / "cache"))
        path = tmp_path / "cache" / "index.json"
        index = json.loads(path.read_text())
        del index["text_fingerprint"], index["model_fingerprint"]
        for shard in index["shards"]:
            del shard["crc32"]
        path.write_text(json.dumps(index))
        assert ActivationCache(tmp_path / "cache", model=traced(), out_batch_size=50).rows().n == 50
        assert write(tmp_path / "cache").is_complete


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


class TestDamage:
    @pytest.mark.parametrize("compression", [None, "zstd"])
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
    def test_a_flipped_byte_is_noticed_when_the_shard_is_opened(self, tmp_path, compression, dtype):
        index = write(tmp_path / "cache", compression=compression, dtype=dtype)
        path = tmp_path / "cache" / index.shards[1].file
        content = bytearray(path.read_bytes())
        content[-9] ^= 4
        path.write_bytes(bytes(content))
        cache = ActivationCache(tmp_path / "cache", seed=None, out_batch_size=index.shards[0].n_rows)
        next(cache)
        with pytest.raises(DataError, match=r"shard_00001.*(checksum|cannot be read)"):
            next(cache)

    def test_checksums_are_compared_once(self, tmp_path, monkeypatch):
        index = write(tmp_path / "cache")
        cache = ActivationCache(tmp_path / "cache", out_batch_size=50, end_of_data="repeat")
        calls, crc32 = [], type(cache.store).crc32
        monkeypatch.setattr(type(cache.store), "crc32", lambda store, name: calls.append(name) or crc32(store, name))
        for _ in range(3 * index.n_rows // 50):
            next(cache)
        assert sorted(calls) == [shard.file for shard in index.shards]

    @pytest.mark.parametrize("whole", [True, False], ids=["folder", "shard"])
    def test_a_folder_removed_under_the_writer_is_an_error(self, tmp_path, monkeypatch, whole):
        write_shard = writing.write_shard

        def removes(store, name, *arguments):
            if name.startswith("shard_00002"):
                if whole:
                    shutil.rmtree(tmp_path / "cache")
                else:
                    (tmp_path / "cache" / "shard_00000.safetensors").unlink()
            return write_shard(store, name, *arguments)

        monkeypatch.setattr(writing, "write_shard", removes)
        with pytest.raises(DataError, match=r"was removed while|shard_00000.*is not there"):
            write(tmp_path / "cache")
        if (tmp_path / "cache" / "index.json").exists():
            assert '"complete": false' in (tmp_path / "cache" / "index.json").read_text()


class Wrapped(IterableDataset):
    def __init__(self, cache):
        self.cache = cache

    def __iter__(self):
        while True:
            try:
                rows = self.cache.rows()
            except StopIteration:
                return
            yield torch.stack([rows.document, rows.position], dim=1)


class TestOtherProcesses:
    @pytest.mark.parametrize("n_workers", [1, 2, 3])
    @pytest.mark.parametrize("seed", [None, 0])
    @pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
    def test_workers_share_the_rows(self, tmp_path, n_workers, seed):
        index = write(tmp_path / "cache", shard_size=300)
        loader = DataLoader(
            Wrapped(ActivationCache(tmp_path / "cache", seed=seed, window=2)), None, num_workers=n_workers
        )
        rows = torch.cat(list(loader)).tolist()
        assert len({tuple(row) for row in rows}) == len(rows) == index.n_rows

    def test_workers_share_what_is_left(self, tmp_path):
        index = write(tmp_path / "cache")
        cache = ActivationCache(tmp_path / "cache", out_batch_size=130)
        first = cache.rows()
        rows = torch.cat(list(DataLoader(Wrapped(cache), None, num_workers=2))).tolist()
        assert len({tuple(row) for row in rows}) == len(rows) == index.n_rows - first.n

    def test_more_workers_than_shards_end(self, tmp_path):
        index = write(tmp_path / "cache", shard_size=10_000)
        cache = ActivationCache(tmp_path / "cache", end_of_data="stop")
        assert len(torch.cat(list(DataLoader(Wrapped(cache), None, num_workers=2)))) == index.n_rows

    def test_a_cache_is_pickled_without_its_rows(self, tmp_path):
        write(tmp_path / "cache")
        cache = ActivationCache(tmp_path / "cache", out_batch_size=37)
        next(cache)
        content = pickle.dumps(cache)
        assert len(content) < 20_000
        copied = pickle.loads(content)
        assert all(torch.equal(next(cache)[FIRST], next(copied)[FIRST]) for _ in range(5))

    def test_a_buffer_is_not_copied(self):
        with pytest.raises(ConfigError, match="cannot be pickled"):
            pickle.dumps(buffer())

    def test_a_buffer_is_not_read_by_several_workers(self):
        class Batches(IterableDataset):
            def __init__(self, held):
                self.held = held

            def __iter__(self):
                yield from self.held

        with pytest.raises(ConfigError, match="num_workers=0"):
            list(DataLoader(Batches(buffer()), None, num_workers=2))

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
    @pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
    def test_a_forked_process_does_not_wait_for_a_thread_that_it_lacks(self):
        held = buffer(prefetch=1)
        next(held)
        child = os.fork()
        if child == 0:
            try:
                list(held)
            except ConfigError:
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert len(list(held)) > 3
        held.close()


class TestInterrupts:
    @pytest.mark.parametrize("at", range(1, 6))
    def test_an_interrupt_loses_no_rows_and_no_permit(self, monkeypatch, at):
        plain = reader()
        expected = [rows.token for rows in iter(lambda: plain.read(4), None)]
        ahead, found, calls = Prefetcher(reader(), 4), [], itertools.count()
        load_counts = Prefetcher.load_counts

        def interrupted(self, state):
            if self is ahead and next(calls) == at:
                raise KeyboardInterrupt
            load_counts(self, state)

        monkeypatch.setattr(Prefetcher, "load_counts", interrupted)
        while True:
            try:
                rows = ahead.read(4)
            except KeyboardInterrupt:
                continue
            if rows is None:
                break
            found.append(rows.token)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        ahead.close()

    @pytest.mark.parametrize("prefetch", [0, 1])
    def test_an_interrupted_refill_serves_what_was_read(self, monkeypatch, prefetch):
        expected = torch.cat(list(buffer()))
        held, calls = buffer(prefetch=prefetch), itertools.count()
        read = type(held.reader).read

        def interrupted(self, n):
            if self is held.reader and next(calls) % 3 == 2:
                raise KeyboardInterrupt
            return read(self, n)

        monkeypatch.setattr(type(held.reader), "read", interrupted)
        batches = []
        while True:
            try:
                batches.append(next(held))
            except KeyboardInterrupt:
                continue
            except StopIteration:
                break
        rows = torch.cat(batches)
        assert torch.equal(rows[rows[:, 0].argsort()], expected[expected[:, 0].argsort()])
        held.close()


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
    def test_only_the_last_batch_is_short(self, out_batch_size, refresh_batch_size):
        held = buffer(out_batch_size=out_batch_size, refresh_batch_size=refresh_batch_size)
        sizes = [len(batch) for batch in held]
        assert all(size == out_batch_size for size in sizes[:-1])
        assert sum(sizes) == sum(len(batch) for batch in buffer())


class Patches(torch.nn.Module):
    """A "vision model": a row for each pixel of an image."""

    def __init__(self):
        super().__init__()
        self.site = torch.nn.Linear(1, 3)

    def forward(self, pixel_values):
        return self.site(pixel_values.flatten(1).unsqueeze(-1))


class TestExamples:
    def stream(self, sizes, **options):
        images = [torch.rand(size, size) for size in sizes]
        return ExampleStream(images, lambda some: {"pixel_values": torch.stack(some)}, **options)

    def model(self):
        return load_model(Patches(), example={"pixel_values": torch.zeros(1, 3, 3)})

    @pytest.mark.parametrize("options", [{}, {"ctx_len": 8}])
    def test_too_short_a_context_is_refused_with_the_right_length(self, tmp_path, options):
        with pytest.raises(DataError, match=r"Set ctx_len=9"):
            next(ActivationBuffer(self.stream([3] * 64, **options), self.model(), "site", n_ctxs=64, out_batch_size=8))
        with pytest.raises(DataError, match=r"Set ctx_len=9"):
            write_cache(tmp_path, self.stream([3] * 64, **options), self.model(), "site")

    def test_images_of_several_sizes_are_refused(self):
        stream = self.stream([3, 3, 4, 4], ctx_len=9)
        held = ActivationBuffer(
            stream, self.model(), "site", n_ctxs=4, out_batch_size=8, refresh_batch_size=2,
        )  # fmt: skip
        with pytest.raises(DataError, match="16 positions .* all images one size"):
            list(held)


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
            whole_number("n_ctxs", value)

    def test_harmless_ones_are_converted(self):
        for value in (16, 1.6e1, np.int64(16), torch.tensor(16)):
            assert whole_number("n_ctxs", value) == 16

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


class TestMaskedVocabulary:
    """Logits of -inf, as of a model that may not predict some tokens."""

    def losses(self, masked_p, masked_q):
        generator = torch.Generator().manual_seed(0)
        p, q = (torch.randn(1, 4, 9, generator=generator) for _ in range(2))
        p[..., masked_p], q[..., masked_q] = -torch.inf, -torch.inf
        q.requires_grad_()
        mask = torch.ones(1, 4, dtype=torch.bool)
        predictions = Predictions(p, TokenBatch(torch.tensor([[1, 2, 3, 1]]), mask), mask)
        return predictions, p, q

    @pytest.mark.parametrize(("masked_p", "masked_q"), [([0], [0]), ([0, 5], [0]), ([0], []), ([0, 4, 5], [4])])
    def test_losses_are_those_of_the_tokens_that_are_left(self, masked_p, masked_q):
        predictions, p, q = self.losses(masked_p, masked_q)
        losses = predictions.lost(q)
        left = [i for i in range(9) if i not in masked_p]
        log_p, log_q = p.log_softmax(-1)[0, :3, left], q.log_softmax(-1)[0, :3, left]
        torch.testing.assert_close(losses.kl, (log_p.exp() * (log_p - log_q)).sum(-1))
        assert losses.ce.isfinite().all()
        losses.kl.sum().backward()
        assert q.grad.isfinite().all()

    def test_the_identity_loses_nothing(self):
        predictions, p, _ = self.losses([0, 7], [])
        assert predictions.lost(p).kl.tolist() == [0, 0, 0]

    def test_what_is_impossible_only_with_the_dictionary_costs_everything(self):
        predictions, _, q = self.losses([], [4])
        assert (predictions.lost(q).kl == torch.inf).all()


def test_mixtures_of_buffers_end_without_threads():
    before = threading.active_count()
    mixture = ActivationMixture([buffer(prefetch=1), buffer(prefetch=1, seed=3)], out_batch_size=30)
    assert len(list(mixture)) > 3
    mixture.close()
    assert threading.active_count() == before
