"""What every trainer promises, whatever its method."""

import dataclasses

import pytest
import torch

from dictionary_learning import ops
from dictionary_learning.latents import Segments
from dictionary_learning.trainers import TRAINERS, RunInfo, SAETrainer
from dictionary_learning.trainers._batch import Batch
from dictionary_learning.trainers._gathering import Gathering
from tests.tiny import Planted

OPTIONS = {"activation_dim": 32, "dict_size": 96, "k": 3, "steps": 100, "device": "cpu", "loss_fn": "reconstruction"}
EVENTFUL = {"dead_feature_threshold": 200, "threshold_start_step": 3, "k_anneal_steps": 15}
"""Everything that changes over a run does so within a few steps."""


LEARNS = {
    "standard": {"sparsity_penalty": 0.15, "lr": 5e-3},
    "standard_april_update": {"sparsity_penalty": 0.15, "lr": 5e-3},
    "p_anneal": {"sparsity_penalty": 0.15, "lr": 5e-3, "p_end": 0.5},
    "gated": {"sparsity_penalty": 0.2, "lr": 3e-3},
    "gated_anneal": {"sparsity_penalty": 0.2, "lr": 3e-3, "p_end": 0.5},
    "jump_relu": {"sparsity_penalty": 1.0, "target_l0": 3.0, "bandwidth": 0.1, "lr": 5e-3},
    "group_max": {"k": 16},
}
"""Settings with which a method learns `Planted`, where they are not the same for all."""
SIGNED = {"abs_top_k"}
SIMILARITY = {"group_max": 0.8, "matryoshka_batch_top_k": 0.85}
"""How close the rows come to the features at least, where it is less than with others: groups share latents out."""
FAMILY = {
    **dict.fromkeys(("standard", "standard_april_update", "p_anneal"), "penalty"),
    **dict.fromkeys(("gated", "gated_anneal"), "gated"),
    **dict.fromkeys(("top_k", "group_max", "abs_top_k", "end_to_end"), "top_k"),
    **dict.fromkeys(("batch_top_k", "matryoshka_batch_top_k"), "batch_top_k"),
}
"""Methods that share most of their code, for grids of which a part runs."""
UNIT_ROWS = [name for name in TRAINERS if name not in ("standard_april_update", "temporal")]
ONE_SUPPORT = ["top_k", "batch_top_k", "group_max", "abs_top_k"]


def has(name: str) -> frozenset[str]:
    """Returns the settings that a trainer reads, and the facts of a run."""
    config = TRAINERS[name].Config
    known = {field.name for part in (config, RunInfo) for field in dataclasses.fields(part)}
    return frozenset(known - getattr(config, "unread", {}).keys())


@pytest.fixture(params=list(TRAINERS))
def name(request):
    return request.param


@pytest.fixture
def build(name):
    def built(**options) -> SAETrainer:
        wanted = {**OPTIONS, **options}
        return TRAINERS[name](**{key: value for key, value in wanted.items() if key in has(name)})

    return built


def family(name: str) -> str:
    return FAMILY.get(name, name)


def state(t: SAETrainer) -> list[torch.Tensor]:
    """Returns copies of all tensors of the trainer's state, in one order."""
    found = []

    def walk(value: object) -> None:
        if isinstance(value, torch.Tensor):
            found.append(value.clone())
        elif isinstance(value, dict):
            for _, item in sorted(value.items(), key=lambda pair: str(pair[0])):
                walk(item)
        elif isinstance(value, list | tuple):
            for item in value:
                walk(item)

    walk(t.state_dict())
    return found


def run(t: SAETrainer, steps: int, n: int = 64, autocast: torch.dtype | None = None) -> list[float]:
    batches = list(Planted().batches(steps, n))
    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        return [t.update(t.step, x).item() for x in batches]


# one of each family; the wirings' contracts have all of them learn
@pytest.mark.covering(shows=lambda name: {family(name)})
def test_planted_features_are_recovered(build, name):
    data = Planted()
    t = build(dict_size=64, steps=400, **{"k": 4, **LEARNS.get(name, {})})
    for x in data.batches(400):
        t.update(t.step, x)
    rows = torch.nn.functional.normalize(t.dictionary.W_dec, dim=1)
    found = data.features @ rows.T
    assert (found.abs() if name in SIGNED else found).amax(1).mean() > SIMILARITY.get(name, 0.9)
    x = data.batch(2048)
    fvu = (t.dictionary(x) - x).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    assert fvu < 0.2


def test_loss_does_not_change_state(build):
    t = build(**EVENTFUL)
    run(t, 6)
    before, random = state(t), torch.get_rng_state()
    x = Planted(seed=1).batch(64)
    first = t.loss(x).total
    t.metrics()
    assert t.loss(x).total == first
    assert all(torch.equal(a, b) for a, b in zip(before, state(t), strict=True))
    assert torch.equal(random, torch.get_rng_state())
    assert t.step == 6


def test_same_seed_gives_the_same_bits(build):
    def final(seed: int) -> list[torch.Tensor]:
        t = build(seed=seed, **EVENTFUL)
        run(t, 8)
        return state(t)

    assert all(torch.equal(a, b) for a, b in zip(final(1), final(1), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(final(1), final(2), strict=True) if a.is_floating_point())


def test_resumed_trainer_ends_in_the_same_bits(build):
    batches = list(Planted().batches(20, 64))
    whole, first, second = build(**EVENTFUL), build(**EVENTFUL), build(**EVENTFUL)
    for x in batches:
        whole.update(whole.step, x)
    for x in batches[:9]:
        first.update(first.step, x)
    second.load_state_dict(first.state_dict())
    for x in batches[9:]:
        second.update(second.step, x)
    assert all(torch.equal(a, b) for a, b in zip(state(whole), state(second), strict=True))


def test_frozen_parts_stay_and_the_others_learn(build, name):
    for frozen, other in (("W_dec", "W_enc"), ("W_enc", "W_dec")):
        t = build(decoder_lr_factor=float(frozen != "W_dec"), encoder_lr_factor=float(frozen != "W_enc"))
        if "decoder_lr_factor" not in has(name) or t.dictionary.is_tied:
            return  # one rate for all, or one weight that is both
        run(t, 2)
        before = {key: getattr(t.dictionary, key).detach().clone() for key in ("W_enc", "W_dec")}
        run(t, 10)
        now = {key: getattr(t.dictionary, key).detach() for key in before}
        # rows are scaled to unit norm after each step, which rounds
        torch.testing.assert_close(now[frozen], before[frozen], atol=1e-6, rtol=0)
        assert not torch.allclose(now[other], before[other], atol=1e-4)


IN_PARTS = [name for name in TRAINERS if name not in ("jump_relu", "temporal")]
"""Trainers that a batch may come to in parts; target_l0 is of a part's mean, and a part no whole context."""
PER_TOKEN = [name for name in IN_PARTS if name not in ("batch_top_k", "matryoshka_batch_top_k")]
"""Trainers whose loss is a mean over tokens; BatchTopK chooses within a batch."""


def settled(build, **options) -> SAETrainer:
    """Returns a trainer with dead latents and an auxiliary loss, so that all terms are there."""
    t = build(dead_feature_threshold=200, **options)
    run(t, 6)
    t.dead.tokens_since_fired[:30] = 5000
    t.dead.observe(torch.zeros(96, dtype=torch.long), 0)
    assert t.dead.indices is not None
    return t


@pytest.mark.parametrize("name", IN_PARTS)
@pytest.mark.parametrize("parts", [2, 4])
def test_parts_of_a_batch_make_the_step_of_the_whole(build, parts):
    whole, split = settled(build), settled(build)
    split.settings = split.settings.replace(micro_acc_steps=parts)
    x = Planted(seed=5).batch(64)
    assert split.update(0, x).item() == pytest.approx(whole.update(0, x).item(), rel=1e-4)
    for a, b in zip(state(whole), state(split), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-6)
    for figure, value in whole.metrics().items():
        assert split.metrics()[figure].item() == pytest.approx(value.item(), rel=1e-3), figure


@pytest.mark.parametrize("name", IN_PARTS)
def test_parts_of_the_first_batch_initialize_as_the_whole(build):
    whole, split = build(), build()
    split.settings = split.settings.replace(micro_acc_steps=4)
    x = Planted(seed=5).batch(64)
    whole.update(0, x)
    split.update(0, x)
    for a, b in zip(state(whole), state(split), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-6)


@pytest.mark.parametrize("name", PER_TOKEN)
def test_batches_gathered_make_the_step_of_one_large_batch(build):
    one, several = settled(build), settled(build)
    several.settings = several.settings.replace(grad_acc_steps=4)
    several._gathering = Gathering(4)
    x = Planted(seed=5).batch(64)
    one.update(one.step, x)
    for part in x.split(16):
        several.update(several.step, part)
    assert several.step == one.step
    for a, b in zip(state(one), state(several), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-6)


def test_schedules_count_steps_not_batches(build):
    t = build(grad_acc_steps=4, steps=100)
    assert t.steps == 25
    for x in Planted().batches(8, 16):
        t.update(0, x)
    assert t.step == 2


def test_every_parameter_learns(build):
    t = build()
    x = Planted().batch(256)
    t.initialize(x)
    before = {name: p.clone() for name, p in t.dictionary.named_parameters()}
    t.update(0, x)
    assert all(not torch.equal(p, before[name]) for name, p in t.dictionary.named_parameters())


@pytest.mark.parametrize("name", UNIT_ROWS)
def test_decoder_rows_have_unit_norm_after_each_step(build):
    t = build()
    for x in Planted().batches(5):
        t.update(t.step, x)
        torch.testing.assert_close(t.dictionary.W_dec.norm(dim=1), torch.ones(96))


@pytest.mark.parametrize("backend", [name for name in ops.available() if name != "triton"])
@pytest.mark.parametrize("name", ["batch_top_k", "matryoshka_batch_top_k"])
def test_parts_of_a_batch_keep_what_the_batch_keeps(build, backend):
    """Values at the edge are computed again for a part, and round otherwise."""
    whole = build(dict_size=256, k=2, dead_feature_threshold=10**9)
    xs = torch.randn(12, 333, 32, generator=torch.Generator().manual_seed(0))
    whole.initialize(xs[0])
    for x in xs:
        n_kept = []
        for parts in (1, 2, 3):
            batches = Batch(x, x).split(parts)
            with ops.use_backend(backend), whole.sharing(batches):
                n_kept.append(sum(len(whole.dictionary.encode_sparse(part.x, 2).values) for part in batches))
        assert n_kept == [666] * 3


@pytest.mark.parametrize("backend", [name for name in ops.available() if name != "triton"])
@pytest.mark.parametrize("multiplier", [1, 8])
# a backend has forms for few and for many latents, and for each kind of choice
@pytest.mark.covering(shows=lambda name, backend, multiplier: {(name, backend), (family(name), backend, multiplier)})
def test_every_backend_learns_the_same(build, name, backend, multiplier):
    """The same run, eventful and with dead latents; with more of them kept than the sparse forms are made for, too."""

    def losses(used: str) -> list[float]:
        with ops.use_backend(used):
            return run(build(k=multiplier, **EVENTFUL), 20)

    # matching pursuit's last choices are of little that is left, where rounding decides; in a group of 12, two latents
    # may be equal but for rounding
    tolerance = {"matching_pursuit": 0.1, "group_max": 1e-2}.get(name, 1e-3)
    assert losses(backend) == pytest.approx(losses("reference"), rel=tolerance)


class TestNonfinite:
    @pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
    @pytest.mark.parametrize("row", [0, 7, 63])
    # which row it is matters to the mask, which all methods share
    @pytest.mark.covering(shows=lambda name, bad, row: {(name, str(bad)), (family(name), row), (str(bad), row)})
    def test_token_is_counted_and_the_others_do_not_notice(self, build, bad, row):
        t = build()
        run(t, 3)
        x = Planted(seed=2).batch(64)
        x[row, 5] = bad
        t.update(t.step, x)
        assert t.metrics()["nonfinite_tokens"] == 1
        assert all(tensor.isfinite().all() for tensor in state(t) if tensor.is_floating_point())

    def test_first_batch_may_hold_some(self, build):
        t = build()
        x = Planted().batch(64)
        x[:3] = torch.nan
        t.update(0, x)
        assert t.dictionary.b_dec.isfinite().all() and t.metrics()["nonfinite_tokens"] == 3

    def test_batch_without_a_finite_token_changes_no_weight_and_is_counted(self, build):
        t = build()
        run(t, 3)
        before = [p.clone() for p in t.dictionary.parameters()]
        t.update(t.step, torch.full((64, 32), torch.nan))
        for p, q in zip(before, t.dictionary.parameters(), strict=True):
            torch.testing.assert_close(q, p, rtol=0, atol=1e-6)  # rows may be given unit norm once more
        assert t.metrics()["skipped_steps"] == 1
        run(t, 3)
        assert all(p.isfinite().all() for p in t.dictionary.parameters())

    def test_activations_with_large_outliers_give_finite_losses(self, build):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            t = build()
            t.dictionary.to(dtype)
            x = Planted().batch(64)
            x[:, 3] = 20_000.0  # squares overflow float16, and sums of them bfloat16's precision
            x[5] *= 3
            assert all(torch.isfinite(t.update(t.step, x.to(dtype))) for _ in range(5)), dtype
            assert all(p.isfinite().all() for p in t.dictionary.parameters()), dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
# the full weights are the optimizer's, whatever the method
@pytest.mark.covering(shows=lambda name, dtype: {name, (family(name), dtype)})
def test_low_precision_weights_are_trained_beside_their_full_ones(build, dtype):
    """Steps far below the precision of bfloat16 add up: the run ends where float32's does, up to rounding."""
    full, low = build(lr=1e-4, scale_encoder=False), build(lr=1e-4, scale_encoder=False)
    start = low.dictionary.W_dec.detach().to(dtype).float()
    with torch.no_grad():
        for t in (full, low):
            for p in t.dictionary.parameters():
                p.copy_(p.to(dtype))
    low.dictionary.to(dtype)
    run(full, 30), run(low, 30)
    moved = (full.dictionary.W_dec - start).abs().mean()
    off = (low.optimizer.state[low.dictionary.W_dec]["master"] - full.dictionary.W_dec).abs().mean()
    assert off < 0.3 * moved
    if hasattr(low.dictionary, "threshold"):
        assert low.dictionary.threshold.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(build, dtype):
    assert run(build(), 5, autocast=dtype) == run(build(), 5)


@pytest.mark.parametrize("name", ONE_SUPPORT)
def test_one_sort_by_latent_serves_all_gradients(build, monkeypatch):
    t = build()
    run(t, 2)
    sorts = []
    segments = Segments.of
    monkeypatch.setattr(Segments, "of", lambda *pairs: sorts.append(pairs) or segments(*pairs))
    with ops.use_backend("sparse"):
        loss = t.loss(Planted(seed=3).batch(64))
        sorts.clear()  # those of the selection
        loss.total.backward()
    assert len(sorts) == 1
