"""Buffers and caches in several processes and threads, and what an interrupt leaves of them."""

import contextlib
import itertools
import linecache
import os
import pickle
import random
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cloudpickle
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from dictionary_learning import buffer as buffer_module
from dictionary_learning.activations._mixture import ActivationMixture
from dictionary_learning.activations._prefetch import Prefetcher
from dictionary_learning.activations.cache import ActivationCache
from dictionary_learning.contexts import ContextStream
from dictionary_learning.data import as_source, mix
from dictionary_learning.errors import ConfigError, DataError, ModelError
from tests import processes  # noqa: F401  (what a server of forks imports)
from tests.activations.cache_files import DOCUMENTS, FIRST, buffer, reader, traced, write

IDS = torch.arange(3, 21).view(2, 9)


def contexts(documents) -> ContextStream:
    return ContextStream(documents, traced(), "model.layers.0", ctx_len=16, batch_size=4)


INTERRUPTED = {
    "buffer": lambda folder: buffer(),
    "buffer with prefetch": lambda folder: buffer(prefetch=1),
    "buffer of large batches": lambda folder: buffer(out_batch_size=250),
    "buffer that names its rows": lambda folder: buffer(retrace=True),
    "buffer of an iterator": lambda folder: buffer(iter(DOCUMENTS)),
    "buffer of an iterator with prefetch": lambda folder: buffer(iter(DOCUMENTS), prefetch=2),
    "buffer that names rows of an iterator": lambda folder: buffer(iter(DOCUMENTS), retrace=True, pack=False),
    "buffer of a shuffled iterator": lambda folder: buffer(
        as_source(iter(DOCUMENTS), shuffle_seed=1, shuffle_buffer=8, max_examples=50)
    ),
    "buffer of mixed iterators": lambda folder: buffer(mix([iter(DOCUMENTS), DOCUMENTS[:20]], exhausted="continue")),
    "contexts": lambda folder: contexts(DOCUMENTS),
    "contexts of an iterator": lambda folder: contexts(iter(DOCUMENTS)),
    "cache": lambda folder: ActivationCache(folder / "cache", FIRST, out_batch_size=30, window=3),
    "mixture": lambda folder: ActivationMixture([buffer(), buffer(seed=3)], [1, 3], out_batch_size=30),
}
OF_TEXT = [kind for kind in INTERRUPTED if kind != "cache"]
_PACKAGE = str(Path(buffer_module.__file__).parent)
_WATCHED = ("buffer.py", "contexts.py", *(f"{name}/" for name in ("activations", "data", "capture")))


@contextlib.contextmanager
def interrupt_after(n: int):
    """Raises an interrupt before a later line of ours, where Python may; it does not before `return`."""
    left = [n]

    def at_line(frame, event, argument):
        if event == "line" and not linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith(
            "return"
        ):
            left[0] -= 1
            if left[0] == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return at_line

    def at_call(frame, event, argument):
        name = frame.f_code.co_filename
        if name.startswith(_PACKAGE) and name[len(_PACKAGE) + 1 :].startswith(_WATCHED):
            return at_line
        return None

    sys.settrace(at_call)
    try:
        yield
    finally:
        sys.settrace(None)


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    return list(a) == list(b) and all(torch.equal(a[site], b[site]) for site in a)


def failing(error):
    yield "w1"
    raise error


def bytes_of(batch) -> bytes:
    parts = [batch] if isinstance(batch, torch.Tensor) else batch.values()
    return b"".join(part.numpy().tobytes() for part in parts)


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

    @pytest.mark.parametrize("prefetch", [0, 1])
    @pytest.mark.parametrize("n", [0, 7])
    def test_a_copy_of_a_buffer_goes_on_with_the_same_rows(self, prefetch, n, tmp_path):
        (tmp_path / "a.txt").write_text("\n".join(DOCUMENTS))
        for data in (DOCUMENTS, str(tmp_path / "a.txt"), as_source(DOCUMENTS, shuffle_seed=1).hold_out(5)[0]):
            held = buffer(data, prefetch=prefetch)
            for _ in range(n):
                next(held)
            copied = pickle.loads(pickle.dumps(held))
            expected, found = list(held), list(copied)
            assert len(found) == len(expected) > 5
            assert all(map(torch.equal, found, expected))
            held.close()
            copied.close()

    def test_a_buffer_is_copied_beside_a_model_on_a_server(self, monkeypatch):
        """For such a model the functions of the package are registered to be sent whole."""
        sent = cloudpickle.cloudpickle._PICKLE_BY_VALUE_MODULES
        monkeypatch.setattr(cloudpickle.cloudpickle, "_PICKLE_BY_VALUE_MODULES", {*sent, "dictionary_learning"})
        held = buffer()
        assert all(map(torch.equal, pickle.loads(pickle.dumps(held)), held))
        assert "dictionary_learning" in cloudpickle.list_registry_pickle_by_value()

    @pytest.mark.parametrize("kind", [iter, lambda texts: (text for text in texts)])
    def test_a_buffer_over_an_iterator_is_not_copied(self, kind):
        with pytest.raises(ConfigError, match="cannot be pickled"):
            pickle.dumps(buffer(kind(DOCUMENTS)))

    @pytest.mark.parametrize("method", ["fork", "forkserver", pytest.param("spawn", marks=pytest.mark.slow)])
    @pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
    def test_one_worker_reads_a_buffer(self, method):
        expected = list(buffer())
        loader = DataLoader(buffer(), None, num_workers=1, multiprocessing_context=method)
        assert all(map(torch.equal, list(loader), expected))

    def test_a_buffer_is_not_read_by_several_workers(self, monkeypatch):
        read = iter(DataLoader(buffer(), None, num_workers=2))
        with pytest.raises(ConfigError, match="num_workers=0"):
            next(read)
        # PyTorch waits so long for each worker that failed as it began
        monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)
        read._shutdown_workers()

    def test_workers_read_a_cache_itself(self, tmp_path):
        write(tmp_path / "cache")
        rows = torch.cat(list(DataLoader(ActivationCache(tmp_path / "cache", FIRST), None, num_workers=2)))
        expected = torch.cat(list(ActivationCache(tmp_path / "cache", FIRST)))
        assert torch.equal(rows[rows[:, 0].argsort()], expected[expected[:, 0].argsort()])

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

    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("kind", INTERRUPTED)
    @pytest.mark.covering(shows=lambda kind, seed: {kind, seed})  # 25 random lines each
    def test_interrupts_at_any_line_change_no_batch(self, tmp_path, kind, seed):
        write(tmp_path / "cache", shard_size=40)
        expected, chances = list(INTERRUPTED[kind](tmp_path)), random.Random(seed)
        served, found = INTERRUPTED[kind](tmp_path), []
        for n in range(25):
            with contextlib.suppress(KeyboardInterrupt), interrupt_after(chances.randrange(400)):
                # a loop keeps each batch before Python raises an interrupt, as `next` does not
                for batch in served:
                    found.append(batch)
            if n % 10 == 9:
                copied = INTERRUPTED[kind](tmp_path)
                copied.load_state_dict(served.state_dict())
                served.close()
                served = copied
        found += list(served)
        assert len(found) == len(expected) > 3
        assert all(same(a, b) for a, b in zip(found, expected, strict=True))
        served.close()

    def test_an_interrupted_iterator_is_an_error_and_not_the_end(self):
        source = as_source(failing(KeyboardInterrupt()), name="those")
        assert next(source) == "w1"
        with pytest.raises(KeyboardInterrupt):
            next(source)
        for _ in range(2):
            with pytest.raises(DataError, match="those was interrupted"):
                next(source)

    @pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
    @pytest.mark.parametrize("kind", OF_TEXT)
    @pytest.mark.covering(shows=lambda kind, error: {kind, error})
    def test_errors_in_the_model_lose_no_row(self, tmp_path, kind, error):
        expected, served, found, calls = list(INTERRUPTED[kind](tmp_path)), INTERRUPTED[kind](tmp_path), [], [0]

        def fails(*_):
            calls[0] += 1
            if calls[0] in (1, 2, 4):
                raise error("of the model")

        for source in getattr(served, "sources", [served]):
            source.model._original.register_forward_pre_hook(fails)
        n_errors = 0
        while True:
            try:
                for batch in served:
                    found.append(batch)
                break
            except (KeyboardInterrupt, RuntimeError, ModelError):
                n_errors += 1
        assert n_errors == 3
        assert len(found) == len(expected) and all(map(same, found, expected))
        served.close()

    def test_an_interrupted_model_is_as_before(self, monkeypatch):
        model = traced()
        expected, forward = model.capture(IDS, sites="model.layers.1"), torch.nn.functional.silu

        def interrupted(x, inplace=False):
            raise KeyboardInterrupt

        monkeypatch.setattr(torch.nn.functional, "silu", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.capture(IDS, sites="model.layers.1")
        monkeypatch.setattr(torch.nn.functional, "silu", forward)
        assert same(model.capture(IDS, sites="model.layers.1"), expected)


@pytest.mark.parametrize("kind", INTERRUPTED)
def test_each_batch_goes_to_one_of_the_threads_that_read(tmp_path, kind):
    write(tmp_path / "cache", shard_size=40)
    expected, served, found = list(INTERRUPTED[kind](tmp_path)), INTERRUPTED[kind](tmp_path), []
    with ThreadPoolExecutor(3) as threads:
        for thread in [threads.submit(found.extend, served) for _ in range(3)]:
            thread.result()
    assert Counter(map(bytes_of, found)) == Counter(map(bytes_of, expected))
    served.close()


@pytest.mark.parametrize("kind", INTERRUPTED)
def test_a_source_that_is_closed_goes_on_with_the_same_rows(tmp_path, kind):
    write(tmp_path / "cache", shard_size=40)
    expected, served, found = list(INTERRUPTED[kind](tmp_path)), INTERRUPTED[kind](tmp_path), []
    served.close()
    for n, batch in enumerate(served):
        found.append(batch)
        if n % 3 == 0:
            served.close()
    assert len(found) == len(expected) and all(map(same, found, expected))
    served.close()


def test_closing_gives_memory_back():
    held = buffer(n_ctxs=200)
    n_held = 0
    while (next_rows := held.n_rows) > 60 or not n_held:
        n_held = len(next(held)) or next_rows
    held.close()
    (storage,) = held._rows._storage.values()
    assert len(storage.rows) == held.n_rows > 0
    assert list(held)
    held.close()
    assert held._rows._storage is None


def test_mixtures_of_buffers_end_without_threads():
    before = threading.active_count()
    mixture = ActivationMixture([buffer(prefetch=1), buffer(prefetch=1, seed=3)], out_batch_size=30)
    assert len(list(mixture)) > 3
    mixture.close()
    assert threading.active_count() == before
