"""A run of N steps reads no more text through the model than it trains on, and none of it twice."""

import pytest
import torch

from dictionary_learning import ActivationBuffer, ActivationMixture, ContextStream, TrainerTopK, load_model, trainSAE
from tests import tiny
from tests.test_buffer import id_buffer, served_ids
from tests.test_resume import check_resumes

CTX, BATCH, N_CTXS = 16, 20, 16
DOCUMENTS = tiny.documents(400)
SHORT, LONG = 3, 40
"""Steps of runs that need less than a buffer, and several of them."""
KINDS = {
    "one site": {},
    "several sites": {"submodule": ["model.layers.0", "model.layers.2"]},
    "in and out": {"submodule": "model.layers.1.mlp", "io": "in_and_out"},
    "read ahead": {"prefetch": 2},
    "named rows": {"retrace": True},
    "int8": {"dtype": "int8"},
    "whole documents": {"pack": False, "ctx_len": 48},
    "norm limit": {"max_activation_norm_multiple": 1.2},
    "with BOS": {"remove_bos": False},
    "text again": {"data": DOCUMENTS[:6], "end_of_data": "repeat"},
    "one context a pass": {"refresh_batch_size": 1},
}


class Counted:
    """Counts the tokens that a model is given to read, without padding."""

    def __init__(self, model):
        self.n_tokens, self._capture = 0, model.capture
        model.capture = self._count

    def _count(self, inputs, attention_mask, sites):
        self.n_tokens += int(inputs.numel() if attention_mask is None else attention_mask.sum())
        return self._capture(inputs, attention_mask, sites)


def build(model, **options) -> ActivationBuffer:
    sizes = {"n_ctxs": N_CTXS, "ctx_len": CTX, "refresh_batch_size": 4, "out_batch_size": BATCH}
    given = {"data": DOCUMENTS, "submodule": "model.layers.1", "max_activation_norm_multiple": None, **sizes}
    traced = load_model(model, tokenizer=tiny.tokenizer())
    return ActivationBuffer(model=traced, **{**given, **options})


def values(batch):
    return list(batch.values()) if hasattr(batch, "values") and not isinstance(batch, torch.Tensor) else [batch]


def train(data, steps: int, **options):
    config = TrainerTopK.Config(dict_size=32, k=4, seed=0, site=str(data.sites[0]))
    return trainSAE(data, config, steps, device="cpu", progress=False, **options)


@pytest.mark.parametrize("steps", [SHORT, LONG])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_reads_what_it_trains_on(kind, steps):
    data = build(tiny.model(), **KINDS[kind])
    counted = Counted(data.model)
    train(data, steps)
    needed, surplus = steps * BATCH, data.n_rows
    assert counted.n_tokens == data.n_tokens_read, "tokens were read twice, or for nobody"
    assert data.n_tokens_read - data.n_tokens_dropped - surplus == needed
    # how many rows the last contexts have is a guess: whole documents are of very different lengths
    assert surplus <= (3 if kind in ("whole documents", "norm limit") else 1) * data.ctx_len


@pytest.mark.parametrize("kind", KINDS)
def test_no_slots_are_allocated_that_a_short_run_does_not_fill(kind, caplog):
    caplog.set_level("INFO")
    data, plain = build(tiny.model(), **KINDS[kind]), build(tiny.model(), **KINDS[kind])
    size = data.activation_buffer_size
    data.expect(SHORT)
    first = next(data)
    held = SHORT * BATCH + data.refresh_batch_size * data.ctx_len
    assert {len(storage.rows) for storage in data._rows._storage.values()} == {min(held, size)}
    assert f": {min(held, size)} rows at" in caplog.text
    # a run that goes on after all takes them, with every row that it holds
    state = data.state_dict()
    plain.load_state_dict(state)
    data.expect(None)
    for _ in range(LONG):
        assert all(map(torch.equal, *(values(next(one)) for one in (data, plain))))
    assert {len(storage.rows) for storage in data._rows._storage.values()} == {size} and values(first)


def test_a_run_of_mixed_buffers_reads_what_it_trains_on():
    parts = [build(tiny.model()) for _ in range(2)]
    counted = [Counted(part.model) for part in parts]
    train(ActivationMixture(parts, [3, 1], out_batch_size=BATCH), 12)
    for part, counter, share in zip(parts, counted, (15, 5), strict=True):
        assert counter.n_tokens == part.n_tokens_read
        assert part.n_tokens_read - part.n_tokens_dropped <= share * 12 + BATCH + CTX


def test_contexts_are_read_once_where_the_model_need_not_predict():
    data = ContextStream(
        DOCUMENTS, load_model(tiny.model(), tokenizer=tiny.tokenizer()), "model.layers.1", ctx_len=CTX, predict=False
    )
    counted = Counted(data.model)
    train(data, 5)
    assert counted.n_tokens == 5 * data.batch_size * CTX


def test_a_sample_of_contexts_is_what_is_served():
    def stream():
        model = load_model(tiny.model(), tokenizer=tiny.tokenizer())
        return ContextStream(DOCUMENTS, model, "model.layers.1", ctx_len=CTX, predict=False)

    plain, sampled = stream(), stream()
    sampled.expect(3)
    rows = sampled.sample(10_000)[plain.sites[0]]
    served = [next(sampled)[plain.sites[0]] for _ in range(4)]
    assert torch.equal(rows, torch.cat(served[:3]))
    assert all(torch.equal(next(plain)[plain.sites[0]], x) for x in served)


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("n_expected", [0, 1, 5, 1000])
def test_batches_beyond_the_expected_are_served_too(n_expected, prefetch):
    """Each token exactly once, whatever was promised."""
    data = id_buffer(prefetch=prefetch)
    data.expect(n_expected)
    assert served_ids(data) == served_ids(id_buffer())


@pytest.mark.parametrize("prefetch", [0, 1])
def test_a_run_without_an_end_has_the_bits_it_had(prefetch):
    """Until the last refill, a run whose length is known is the same as one whose length is not."""
    known, unknown = id_buffer(prefetch=prefetch), id_buffer()
    known.expect(40)
    first = [torch.equal(next(known), next(unknown)) for _ in range(10)]
    assert all(first)


def test_a_short_run_is_shuffled_in_whole():
    data = id_buffer(n_ctxs=200)
    data.expect(10)
    rows = torch.cat([next(data) for _ in range(10)])
    assert data.n_tokens_read < 20 * BATCH
    # rows of one context do not follow each other, and stand in all parts of the run
    place = torch.arange(len(rows)).float()
    assert ((rows[1:, 2] - rows[:-1, 2]) == 1).float().mean() < 0.3
    assert abs(torch.corrcoef(torch.stack([place, rows[:, 2]]))[0, 1]) < 0.2


@pytest.mark.parametrize("kind", ["one site", "read ahead", "named rows", "whole documents"])
def test_a_resumed_run_has_the_same_bits(kind, tmp_path):
    config = TrainerTopK.Config(dict_size=32, k=4, seed=0)
    stops = (2, LONG // 3, LONG - 2)  # the last one after the last refill
    check_resumes(lambda: build(tiny.model(), **KINDS[kind]), config, tmp_path, stops, LONG)
