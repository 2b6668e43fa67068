import itertools
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dictionary_learning import ActivationBuffer, Site, load_model
from dictionary_learning.data import TokenBatch
from dictionary_learning.errors import ConfigError, DataError, DataExhaustedError, SiteError
from tests import tiny

DOCUMENTS = tiny.documents(40)


def buffer(model=None, submodule="model.layers.1", documents=DOCUMENTS, **options) -> ActivationBuffer:
    model = model or load_model(tiny.model("llama"), tokenizer=options.pop("tokenizer", None) or tiny.tokenizer())
    sizes = {
        "n_ctxs": 16,
        "ctx_len": 16,
        "refresh_batch_size": 4,
        "out_batch_size": 20,
        "max_activation_norm_multiple": None,
    }
    return ActivationBuffer(documents, model, submodule, **{**sizes, **options})


class TokenIds(torch.nn.Module):
    """A "model" whose activations are the token's id and position: rows can be told apart."""

    def __init__(self):
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(()))
        self.first, self.second = torch.nn.Identity(), torch.nn.Identity()

    def forward(self, input_ids, attention_mask=None):
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        rows = torch.stack([input_ids, mask, torch.arange(input_ids.shape[1]).expand_as(input_ids)], -1).float()
        return self.second(self.first(rows) + 1000)


def id_buffer(**options) -> ActivationBuffer:
    tokenizer = options.pop("tokenizer", None) or tiny.tokenizer()
    return buffer(load_model(TokenIds(), tokenizer=tokenizer), options.pop("submodule", "first"), **options)


def expected_ids(documents=DOCUMENTS) -> list[int]:
    return sorted(int(word[1:]) + 3 for document in documents for word in document.split())


def served_ids(rows) -> list[int]:
    return sorted(int(i) for i in torch.cat(list(rows))[:, 0].tolist())


def test_every_token_is_served_exactly_once():
    assert served_ids(id_buffer()) == expected_ids()


@pytest.mark.parametrize("sizes", [(1, 16, 1, 16), (3, 16, 3, 7), (5, 10, 2, 50), (200, 16, 64, 33)])
def test_every_token_is_served_exactly_once_whatever_the_sizes(sizes):
    n_ctxs, ctx_len, refresh, out = sizes
    rows = id_buffer(n_ctxs=n_ctxs, ctx_len=ctx_len, refresh_batch_size=refresh, out_batch_size=out)
    assert served_ids(rows) == expected_ids()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("bos", [True, False])
def test_no_padding_special_or_first_token_is_served(side, bos):
    # ids: BOS 0, EOS 1, padding 2; the padded stream holds one document a context, without BOS
    tokenizer = tiny.tokenizer(bos=bos, padding_side=side)
    rows = torch.cat(list(id_buffer(pack=False, ctx_len=64, out_batch_size=33, tokenizer=tokenizer)))
    assert rows[:, 0].min() > 2
    assert rows[:, 1].min() == 1
    firsts = [int(document.split()[0][1:]) + 3 for document in DOCUMENTS]
    assert sorted(rows[:, 0].int().tolist() + firsts) == expected_ids()


def test_padding_is_left_out_with_remove_bos_off():
    rows = torch.cat(list(id_buffer(pack=False, ctx_len=64, remove_bos=False)))
    assert served_ids([rows]) == expected_ids()


def test_bos_is_served_only_if_asked_for():
    assert 0 not in torch.cat(list(id_buffer()))[:, 0]
    kept = torch.cat(list(id_buffer(remove_bos=False)))[:, 0]
    assert (kept == 0).sum() >= len(DOCUMENTS)


def test_rows_are_aligned_across_sites():
    for batch in id_buffer(submodule=["second", "first"]):
        assert torch.equal(batch[Site("second")], batch[Site("first")] + 1000)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_rows_equal_those_of_plain_hooks(family):
    hf = tiny.model(family).eval()
    path = tiny.LAYER[family]
    seen = []

    def after(_, __, output):
        seen.append(output[0] if isinstance(output, tuple) else output)

    held = buffer(
        load_model(hf, tokenizer=tiny.tokenizer()), path, n_ctxs=200, refresh_batch_size=200, out_batch_size=64
    )
    rows = torch.cat(list(held))
    tokens = buffer(load_model(hf, tokenizer=tiny.tokenizer()), path).tokens
    batch = tokens.take(200)
    handle = hf.get_submodule(path).register_forward_hook(after)
    with torch.no_grad():
        hf(batch.input_ids, attention_mask=batch.attention_mask)
    handle.remove()
    expected = seen[0][held.filter.token_mask(batch)]
    assert len(rows) == len(expected)
    distances = torch.cdist(rows.double(), expected.double(), compute_mode="donot_use_mm_for_euclid_dist")
    assert distances.amin(1).max() < 1e-4
    assert distances.amin(0).max() < 1e-4


def test_same_seed_gives_the_same_bits():
    first, again, other = (list(buffer(seed=seed)) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_rows_are_mixed_across_documents():
    batch = next(iter(id_buffer(n_ctxs=32)))
    order = batch[:, 2]
    assert (order[1:] - order[:-1] == 1).float().mean() < 0.5


def test_storage_is_allocated_once_and_filled_in_place():
    held = buffer(end_of_data="repeat")
    next(held)
    pointer = held._rows._storage[Site("model.layers.1")].rows.data_ptr()
    for _ in range(60):
        next(held)
    assert held._rows._storage[Site("model.layers.1")].rows.data_ptr() == pointer


class Meter(TorchDispatchMode):
    """Adds up the memory of all tensors that are made, and keeps the most that was alive at once."""

    def __init__(self):
        super().__init__()
        self.alive, self.now, self.peak = {}, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        known = {t.untyped_storage().data_ptr() for t in args if isinstance(t, torch.Tensor)}
        output = function(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, (list, tuple)) else [output]:
            if isinstance(tensor, torch.Tensor) and (pointer := tensor.untyped_storage().data_ptr()) not in known:
                size = tensor.untyped_storage().nbytes()
                self.now += size
                weakref.finalize(tensor.untyped_storage(), self.free, size)
                self.peak = max(self.peak, self.now)
                known.add(pointer)
        return output

    def free(self, size):
        self.now -= size


class Wide(TokenIds):
    """Rows as wide as those of a small language model."""

    def forward(self, input_ids, attention_mask=None):
        return self.second(self.first(input_ids.unsqueeze(-1).expand(-1, -1, 512).float()))


def test_refill_needs_little_more_than_the_buffer():
    model = load_model(Wide(), tokenizer=tiny.tokenizer())
    held = buffer(model, "first", n_ctxs=640, refresh_batch_size=8, end_of_data="repeat")
    next(held)
    storage = held._rows._storage[Site("first")].rows.nbytes
    while held.n_rows >= held.activation_buffer_size // 2:
        next(held)
    with Meter() as meter:
        held.refresh()
    assert held.n_rows > 0.9 * held.activation_buffer_size
    assert meter.peak <= 0.15 * storage


def test_end_of_data_stop_serves_the_last_row():
    held = id_buffer(out_batch_size=50)
    sizes = [len(batch) for batch in held]
    assert sum(sizes) == len(expected_ids())
    assert sizes[-1] <= 50
    with pytest.raises(StopIteration):
        next(held)


def test_end_of_data_repeat_goes_on():
    held = id_buffer(end_of_data="repeat")
    n = sum(len(batch) for batch in itertools.islice(held, 200))
    assert n == 200 * 20 > 2 * len(expected_ids())


def test_end_of_data_error_raises_after_the_last_row():
    held = id_buffer(end_of_data="error")
    rows = []
    with pytest.raises(DataExhaustedError, match="ended after"):
        rows.extend(held)
    assert served_ids(rows) == expected_ids()


def test_empty_text_is_an_error():
    for documents in ([], [""]):
        with pytest.raises(DataError):
            next(buffer(documents=documents, end_of_data="repeat"))


def test_text_of_special_tokens_only_ends_with_an_error_not_a_loop():
    with pytest.raises(DataError, match="no token that counts"):
        next(buffer(documents=["w1"], ctx_len=2, out_batch_size=2, pack=False, end_of_data="repeat"))


def test_norm_outliers_are_dropped_at_all_sites_and_counted():
    class Spiky(TokenIds):
        def forward(self, input_ids, attention_mask=None):
            rows = torch.randn(*input_ids.shape, 8, generator=torch.Generator().manual_seed(0))
            spikes = (input_ids == 7).unsqueeze(-1) * 100.0
            return self.second(self.first(rows) + spikes)

    model = load_model(Spiky(), tokenizer=tiny.tokenizer())
    held = buffer(model, ["first", "second"], max_activation_norm_multiple=5)
    rows = list(held)
    n = sum(len(batch[Site("first")]) for batch in rows)
    n_spikes = sum(int(word[1:]) + 3 == 7 for document in DOCUMENTS for word in document.split())
    assert n_spikes > 0
    assert n == len(expected_ids()) - n_spikes
    assert held.n_tokens_dropped == held.n_tokens_read - n
    assert max(batch[Site("second")].norm(dim=-1).max() for batch in rows) <= held.norm_limits[Site("second")]
    assert held.config["filter"]["norm_limits"] == {
        "first:out": held.norm_limits[Site("first")],
        "second:out": held.norm_limits[Site("second")],
    }


def test_config_records_the_rule_of_the_mask():
    rule = buffer(max_activation_norm_multiple=7).config["filter"]
    expected = {
        "exclude_ids": [0],
        "exclude_first": True,
        "seqpos_slice": None,
        "max_norm_multiple": 7.0,
        "norm_limits": {},
    }
    assert rule == expected


def test_in_and_out_gives_pairs():
    batch = next(buffer(submodule="model.layers.1.mlp", io="in_and_out"))
    assert batch.shape == (20, 2, tiny.DIM)
    assert not torch.equal(batch[:, 0], batch[:, 1])


def test_several_sites_come_as_a_mapping_and_one_as_a_tensor():
    batch = next(buffer(submodule="model.layers.*"))
    assert list(batch) == [Site(f"model.layers.{i}") for i in range(tiny.LAYERS)]
    assert next(buffer(submodule=["model.layers.0:in"])).shape == (20, tiny.DIM)


def test_width_is_found_and_checked():
    assert buffer(submodule="model.layers.1.mlp.up_proj").widths == {Site("model.layers.1.mlp.up_proj"): 32}
    with pytest.raises(ConfigError, match="Got d_submodule=5"):
        buffer(d_submodule=5)


def test_known_defaults_make_a_buffer():
    held = ActivationBuffer(
        iter(DOCUMENTS), load_model(tiny.model("gpt2"), tokenizer=tiny.tokenizer()), "transformer.h.1"
    )
    assert held.activation_buffer_size == 30_000 * 128
    assert buffer(n_ctxs=3e1).n_ctxs == 30


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"out_batch_size": 10_000}, "larger than the whole buffer"),
        ({"n_ctxs": 0}, "at least 1"),
        ({"ctx_len": 1, "out_batch_size": 1}, "at least 2"),
    ],
)
def test_bad_arguments_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        buffer(**options)


def test_unknown_site_is_refused():
    with pytest.raises(SiteError, match="3 entries, 0 to 2"):
        buffer(submodule="model.layers.7")


def test_sample_takes_nothing():
    held = id_buffer()
    sample = held.sample(30)[Site("first")]
    assert sample.shape == (30, 3)
    assert served_ids(held) == expected_ids()


def test_tokenized_batch_gives_contexts():
    batch = buffer().tokenized_batch(3)
    assert isinstance(batch, TokenBatch)
    assert batch.input_ids.shape == (3, 16)


def test_resumed_buffer_serves_the_same_bits():
    held = buffer(end_of_data="repeat", max_activation_norm_multiple=3.0)
    for _ in range(13):
        next(held)
    resumed = buffer(end_of_data="repeat", max_activation_norm_multiple=3.0)
    resumed.load_state_dict(held.state_dict())
    for _ in range(40):
        assert torch.equal(next(held), next(resumed))


def test_a_batch_costs_nothing_of_the_size_of_the_buffer():
    held = id_buffer(n_ctxs=4096, documents=tiny.documents(400))
    next(held)
    assert held.n_rows > 2000
    with Meter() as meter:
        batch = next(held)
    assert meter.peak <= 2 * batch.nbytes


@pytest.mark.parametrize("end_of_data", ["stop", "repeat"])
def test_a_share_without_a_text_ends_at_once_and_the_other_has_all(end_of_data):
    document = ["w5 " * 300]
    whole = id_buffer(documents=document, end_of_data=end_of_data)
    first, second = (id_buffer(documents=document, end_of_data=end_of_data).share(n, 2) for n in (0, 1))
    assert list(second) == [] and list(second) == []
    assert len(second.sample(9)[second.sites[0]]) == 0
    assert torch.equal(next(first), next(whole))


def test_a_share_without_a_text_is_an_error_where_an_end_is_and_where_all_are_empty():
    with pytest.raises(DataExhaustedError, match="share 1 of 2 of the list ended after 0 tokens. Give more text"):
        next(id_buffer(documents=["w5 " * 300], end_of_data="error").share(1, 2))
    with pytest.raises(DataError, match="holds no text"):
        next(id_buffer(documents=[], end_of_data="error").share(0, 2))


@pytest.mark.parametrize("limits", [{}, {"second": 1.0}, {"first": -1.0}, {"first": float("nan")}, {"first": True}])
def test_norm_limits_that_cannot_be_meant_are_refused(limits):
    with pytest.raises(ConfigError, match=r"Got limits=.*at each site: first:out\."):
        id_buffer(max_activation_norm_multiple=5).set_norm_limits(limits)


def test_norm_limits_are_set_before_rows_are_read_and_where_there_are_any():
    held = id_buffer(max_activation_norm_multiple=5)
    held.set_norm_limits({"first": 30.0})
    assert torch.cat(list(held)).norm(dim=1).max() <= 30
    with pytest.raises(ConfigError, match="rows were read with"):
        held.set_norm_limits({"first": 31.0})
    with pytest.raises(ConfigError, match="max_activation_norm_multiple=None"):
        id_buffer().set_norm_limits({"first": 30.0})
