"""Rows: read ahead or not, they are the same; what is left out is counted; how they are kept."""

import threading
import time

import pytest
import torch

from dictionary_learning import load_model
from dictionary_learning.activations._filters import TokenFilter
from dictionary_learning.activations._prefetch import Prefetcher
from dictionary_learning.activations._reader import ReadingConfig, RowReader, row_reader
from dictionary_learning.activations._storage import RowStorage, from_bytes, storage_dtype, to_bytes
from dictionary_learning.activations._stream import expected_partners
from dictionary_learning.buffer import ActivationBuffer
from dictionary_learning.data import TokenBatch
from dictionary_learning.errors import ConfigError, DataError
from tests import tiny

DOCUMENTS = tiny.documents(60)


def traced(tokenizer=None):
    return load_model(tiny.model("llama"), tokenizer=tokenizer or tiny.tokenizer())


def reader(documents=DOCUMENTS, tokenizer=None, **options):
    config = ReadingConfig(**{"ctx_len": 16, **options})
    return row_reader(documents, traced(tokenizer), "model.layers.1", config)


def buffer(documents=DOCUMENTS, **options) -> ActivationBuffer:
    sizes = {"n_ctxs": 16, "ctx_len": 16, "refresh_batch_size": 4, "out_batch_size": 20}
    return ActivationBuffer(documents, traced(), "model.layers.1", **{**sizes, **options})


class TestPrefetcher:
    @pytest.mark.parametrize("depth", [1, 3])
    def test_rows_are_those_without_it(self, depth):
        alone, beside = list(buffer(prefetch=0)), list(buffer(prefetch=depth))
        assert len(alone) > 20
        assert all(torch.equal(a, b) for a, b in zip(alone, beside, strict=True))

    def test_no_more_is_read_ahead_than_asked_for(self, monkeypatch):
        calls, read = [], RowReader.read

        def counting(self, n):
            calls.append(n)
            return read(self, n)

        monkeypatch.setattr(RowReader, "read", counting)
        ahead = Prefetcher(reader(), 1, depth=2)
        ahead.read(1)
        time.sleep(0.5)
        assert len(calls) <= 3
        ahead.close()

    def test_state_is_that_of_what_was_taken(self):
        ahead = Prefetcher(reader(), 4, depth=3)
        for _ in range(3):
            ahead.read(4)
        time.sleep(0.3)  # more is read by now
        state, plain = ahead.state_dict(), reader()
        plain.load_state_dict(state)
        assert plain.n_tokens_read == ahead.n_tokens_read == state["n_tokens_read"]
        expected = plain.read(4)
        got = ahead.read(4)
        assert torch.equal(got.token, expected.token)
        ahead.close()
        resumed = Prefetcher(reader(), 4, depth=2)
        resumed.load_state_dict(state)
        assert torch.equal(resumed.read(4).token, expected.token)
        resumed.close()

    def test_rows_that_wait_are_served_after_close(self):
        ahead, plain = Prefetcher(reader(), 4, depth=2), reader()
        tokens = []
        for n in range(6):
            tokens.append(ahead.read(4).token)
            if n in (1, 3):
                ahead.close()
        ahead.close()
        assert all(torch.equal(t, plain.read(4).token) for t in tokens)

    def test_contexts_taken_beside_are_neither_lost_nor_served(self, monkeypatch):
        held, alone = (buffer(tiny.documents(200), prefetch=2, max_activation_norm_multiple=None) for _ in range(2))
        n_before, n_threads, beside = len(next(held)), threading.active_count(), []
        take = held.tokens.take
        monkeypatch.setattr(held.tokens, "take", lambda n: (beside.append(threading.active_count()), take(n))[1])
        taken = [held.tokenized_batch(2) for _ in range(3)]
        assert set(beside) == {n_threads - 1}, "a thread read the same text at the same time"
        monkeypatch.undo()
        n_taken = sum(int(held.filter.token_mask(batch).sum()) for batch in taken)
        n_all = sum(len(rows) for rows in alone)
        assert n_before + n_taken + sum(len(rows) for rows in held) == n_all

    def test_the_end_is_told_again_and_again(self):
        ahead = Prefetcher(reader(DOCUMENTS[:3]), 4)
        while ahead.read(4) is not None:
            pass
        assert ahead.read(4) is None

    def test_errors_come_where_rows_are_asked_for(self):
        def documents():
            yield from DOCUMENTS[:10]
            raise RuntimeError("the disk is gone")

        held = buffer(documents(), prefetch=1)
        with pytest.raises(DataError, match="the disk is gone"):
            list(held)
        with pytest.raises(DataError, match="can be read only once"):
            held.refresh()

    def test_no_thread_is_left_behind(self):
        before = threading.active_count()
        held = buffer(prefetch=1)
        next(held)
        held.close()
        assert threading.active_count() == before
        forgotten = buffer(prefetch=1)
        next(forgotten)
        del forgotten
        deadline = time.monotonic() + 5
        while threading.active_count() > before and time.monotonic() < deadline:
            time.sleep(0.05)
        assert threading.active_count() == before

    def test_other_numbers_of_contexts_are_refused(self):
        with pytest.raises(ConfigError, match="4 contexts are read ahead"):
            Prefetcher(reader(), 4).read(5)
        with pytest.raises(ConfigError, match="Got prefetch=-1"):
            buffer(prefetch=-1)


class TestCounts:
    def test_each_rule_counts_what_it_left_out(self):
        rows, n = reader(max_activation_norm_multiple=1.5, seqpos_slice=(2, 14)), 0
        while (part := rows.read(4)) is not None:
            n += part.n
        assert set(rows.dropped) == {"token id", "first of its context", "position", "norm"}
        assert rows.n_tokens_read - rows.n_tokens_dropped == n
        assert all(count > 0 for name, count in rows.dropped.items() if name != "first of its context")
        assert f"{rows.n_tokens_read:,} tokens read" in rows.describe_dropped()

    def test_counts_are_told_once_unless_they_changed_and_one_rule_needs_no_number(self, caplog):
        caplog.set_level("INFO")
        rows = buffer(n_ctxs=8, documents=tiny.documents(200))
        next(rows)
        first = rows.reader.describe_dropped()
        rows.close()
        assert sum(first in record.getMessage() for record in caplog.records) == 1
        list(rows)
        later = rows.reader.describe_dropped()
        rows.close()
        assert later != first and sum(later in record.getMessage() for record in caplog.records) <= 2
        rows.reader.dropped.clear()
        assert rows.reader.describe_dropped().endswith(" read, 0 excluded")
        rows.reader.dropped.update({"token id": 1270})
        assert rows.reader.describe_dropped().endswith(" read, 1,270 excluded (by token id)")
        rows.reader.dropped.update({"norm": 2})
        assert rows.reader.describe_dropped().endswith(" read, 1,272 excluded (1,270 by token id, 2 by norm)")

    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.parametrize("excluded", [0, 5])
    def test_ids_are_left_out_wherever_they_stand(self, side, excluded):
        ids = torch.tensor([[0, 5, 6, 0, 7], [9, 9, 0, 5, 6]])
        mask = torch.ones(2, 5, dtype=torch.bool)
        mask[:, slice(0, 1) if side == "left" else slice(4, 5)] = False
        rule = TokenFilter(exclude_ids=(excluded,))
        tokens = TokenBatch(ids, mask)
        assert torch.equal(rule.token_mask(tokens), mask & (ids != excluded))
        assert rule.counts(tokens) == {"token id": int((mask & (ids == excluded)).sum())}

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_positions_are_counted_over_real_tokens(self, side):
        documents = [" ".join(tiny.WORDS[i : i + 6]) for i in range(0, 60, 6)]
        kept = []
        tokenizer = tiny.tokenizer()
        tokenizer.padding_side = side
        rows = reader(
            documents, tokenizer, ctx_len=9, pack=False, remove_bos=False, max_activation_norm_multiple=None,
            seqpos_slice=(1, -1),
        )  # fmt: skip
        while (part := rows.read(3)) is not None:
            kept += part.token.tolist()
        assert kept == [i + 3 for i in range(60) if i % 6 not in (0, 5)]  # the first and last word of each

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_norm_limits_are_of_tokens_that_count_and_stay(self, side):
        """Where padding counted, the median would move with the share of padding, and again with every refill."""
        tokenizer = tiny.tokenizer()
        tokenizer.padding_side = side
        documents = [DOCUMENTS[0], *(" ".join(tiny.WORDS[:30]) for _ in range(3)), *DOCUMENTS[1:20]]
        rows, plain = (
            reader(documents, tokenizer, ctx_len=32, pack=False, max_activation_norm_multiple=most)
            for most in (3.0, None)
        )
        rows.read(4)
        (limit,), (site,) = rows.norm_limits.values(), rows.sites
        expected = 3 * plain.read(4).activations[site].norm(dim=1).median()
        assert limit == pytest.approx(float(expected), rel=1e-5)
        while rows.read(4) is not None:
            assert rows.norm_limits == {site: limit}

    @pytest.mark.parametrize("remove_bos", [True, False])
    def test_what_leaves_nothing_says_only_what_helps(self, remove_bos):
        with pytest.raises(ConfigError, match="Raise ctx_len, or widen seqpos_slice") as found:
            buffer(seqpos_slice=(16, None), remove_bos=remove_bos)
        assert ("or set remove_bos=False" in str(found.value)) == remove_bos

    def test_bad_slices_are_refused(self):
        with pytest.raises(ConfigError, match="seqpos_slice"):
            TokenFilter(seqpos_slice=(1, 2, -1))


class TestStorage:
    def test_bytes_are_as_near_as_said(self):
        rows = torch.randn(200, 33) * torch.logspace(-6, 6, 200).unsqueeze(1)
        rows[7] = 0
        values, scales = to_bytes(rows)
        assert values.dtype is torch.int8 and int(values.abs().max()) == 127
        error = (from_bytes(values, scales) - rows).abs()
        assert (error <= rows.abs().amax(1, keepdim=True) / 254 * 1.0001).all()
        assert torch.equal(from_bytes(values, scales)[7], torch.zeros(33))

    def test_slots_hold_what_was_written_last(self):
        storage = RowStorage(10, 4, torch.int8)
        first, second = torch.randn(6, 4), torch.randn(3, 4)
        storage.write(torch.arange(6), first)
        storage.write(torch.tensor([5, 9, 0]), second)
        expected = torch.stack([first[1], second[0], second[1]])
        torch.testing.assert_close(storage.read(torch.tensor([1, 5, 9])), expected, atol=0.02, rtol=0)

    @pytest.mark.parametrize("dtype", ["int8", "bfloat16", torch.float16])
    def test_buffers_keep_rows_as_asked(self, dtype):
        exact = torch.cat(list(buffer(max_activation_norm_multiple=None)))
        got = torch.cat(list(buffer(max_activation_norm_multiple=None, dtype=dtype))).float()
        assert (got - exact).abs().max() <= exact.abs().max() / 100
        assert not torch.equal(got, exact)

    def test_a_buffer_of_bytes_resumes(self):
        held = buffer(dtype="int8", end_of_data="repeat")
        for _ in range(13):
            next(held)
        resumed = buffer(dtype="int8", end_of_data="repeat")
        resumed.load_state_dict(held.state_dict())
        assert all(torch.equal(next(held), next(resumed)) for _ in range(40))

    def test_a_buffer_holds_as_many_rows_as_it_was_given_contexts(self):
        held = buffer(n_ctxs=32, documents=tiny.documents(200), remove_bos=False, max_activation_norm_multiple=None)
        next(held)
        assert held.n_rows == 32 * 16 - 20

    def test_unknown_forms_are_refused(self):
        with pytest.raises(ConfigError, match="float32, float16, bfloat16, int8"):
            storage_dtype("int4")

    def test_what_does_not_fit_is_refused_before_anything_is_made(self):
        with pytest.raises(ConfigError, match=r"takes .*B, and cpu has .*B left. Lower n_ctxs"):
            buffer(n_ctxs=1e12)


class TestMixing:
    def test_partners_are_those_counted_in_batches(self):
        generator = torch.Generator().manual_seed(0)
        document = torch.randint(12, (400,), generator=generator) ** 2 % 7
        batch, found = 50, []
        for _ in range(400):
            rows = document[torch.randperm(400, generator=generator)[:batch]]
            same = rows.unsqueeze(0) == rows.unsqueeze(1)
            found.append((same.sum(1) - 1).float().mean())
        assert torch.stack(found).mean().item() == pytest.approx(expected_partners(document, batch), rel=0.02)

    def test_rows_of_one_document_meet_only_each_other(self):
        assert expected_partners(torch.zeros(100, dtype=torch.long), 10) == pytest.approx(9)
        assert expected_partners(torch.arange(100), 10) == 0
        assert expected_partners(torch.full((100,), -1), 10) == 0

    def test_a_larger_buffer_mixes_better(self, caplog):
        caplog.set_level("DEBUG", "dictionary_learning")
        small, large = (buffer(n_ctxs=n, documents=tiny.documents(200)) for n in (8, 64))
        next(small), next(large)
        assert large.same_document_partners() < small.same_document_partners()
        assert any("one row's own document" in record.message for record in caplog.records)
