"""Buffers and caches in several processes and threads, and what an interrupt leaves of them."""

import itertools
import os
import pickle
import threading

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from dictionary_learning.activations._mixture import ActivationMixture
from dictionary_learning.activations._prefetch import Prefetcher
from dictionary_learning.activations.cache import ActivationCache
from dictionary_learning.errors import ConfigError
from tests.activations.cache_files import (
    FIRST,
    buffer,
    reader,
    write,
)


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


def test_mixtures_of_buffers_end_without_threads():
    before = threading.active_count()
    mixture = ActivationMixture([buffer(prefetch=1), buffer(prefetch=1, seed=3)], out_batch_size=30)
    assert len(list(mixture)) > 3
    mixture.close()
    assert threading.active_count() == before
