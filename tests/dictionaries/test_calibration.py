import pytest
import torch

from dictionary_learning.dictionaries import (
    AbsTopKSAE,
    AutoEncoder,
    AutoEncoderTopK,
    BatchTopKSAE,
    Crosscoder,
    CrossLayerTranscoder,
    GatedAutoEncoder,
    GroupMaxSAE,
    HeadAutoencoders,
    JumpReluAutoEncoder,
    MatchingPursuitSAE,
    MatryoshkaBatchTopKSAE,
    SparseAutoencoder,
    Transcoder,
    _calibration as calibration,
    load_dictionary,
    save_dictionary,
)
from dictionary_learning.dictionaries._calibration import calibrate
from dictionary_learning.errors import ConfigError, DataError
from dictionary_learning.latents import firing_counts, nonzeros
from tests.dictionaries.kinds import perturbed

N = 400
BUILD = {
    "top_k": lambda: AutoEncoderTopK(12, 40, 3),
    "batch_top_k": lambda: BatchTopKSAE(12, 40, 3, apply_b_dec_to_input=False),
    "matryoshka": lambda: MatryoshkaBatchTopKSAE(12, 40, 3, [10, 30]),
    "group_max": lambda: GroupMaxSAE(12, 40, 3),
    "generic": lambda: SparseAutoencoder(12, 40, {"name": "top_k", "k": 3}),
    "ranked": lambda: AutoEncoderTopK(12, 40, 3, rank_by_norm=True),
    "transcoder": lambda: Transcoder(12, 40, {"name": "top_k", "k": 3}, output_dim=7, skip=True),
    "crosscoder": lambda: Crosscoder([5, 7], 40, {"name": "batch_top_k", "k": 3}),
}


@pytest.fixture(params=list(BUILD))
def dictionary(request):
    """One of each kind that can be calibrated, with rows of unequal norms."""
    return perturbed(BUILD[request.param]())


def test_mean_l0_is_the_target_and_one_threshold_serves_all(dictionary):
    x = torch.randn(N, 12)
    before = {name: tensor.clone() for name, tensor in dictionary.state_dict().items()}
    made = calibrate(dictionary, x.split(64), N)
    assert all(torch.equal(tensor, before[name]) for name, tensor in dictionary.state_dict().items())
    # brute force: as many as k * N of all values exceed the threshold
    norms = dictionary.decoder_norms() if dictionary.rank_by_norm else torch.ones(40)
    scores = (dictionary.pre_activations(x) * norms).flatten().sort(descending=True).values
    assert (made.encode(x) > 0).sum() == 3 * N
    theta = made.nonlinearity.threshold * norms
    assert ((theta <= scores[3 * N - 1] + 1e-6) & (theta >= scores[3 * N] - 1e-6)).all()


def test_outputs_are_those_of_the_latents_that_fire(dictionary):
    x = torch.randn(50, 12)
    made = calibrate(dictionary, [x], 50, target_l0=5.5)
    pre = dictionary.pre_activations(x)
    latents = pre * (pre > made.nonlinearity.threshold)
    assert (latents > 0).sum() == 275
    out = dictionary.decode(latents, x)
    torch.testing.assert_close(made(x), out)


def test_each_latent_fires_as_often_as_before(dictionary):
    x = torch.randn(N, 12)
    made = calibrate(dictionary, x.split(100), N, match="firing")
    before = sum(firing_counts(dictionary.encode_latents(rows)[0]) for rows in x.split(100))
    assert before.max() > before.min() + 10
    assert torch.equal(firing_counts(made.encode(x)), before)


def test_the_wiring_stays(dictionary, tmp_path):
    x = torch.randn(N, 12)
    made = calibrate(dictionary, [x], N)
    if isinstance(dictionary, SparseAutoencoder):
        assert type(made) is JumpReluAutoEncoder
        assert made.centered == dictionary.centered
    else:
        assert type(made) is type(dictionary)
    loaded = load_dictionary(save_dictionary(made, tmp_path))
    assert torch.equal(loaded(x), made(x))


def test_a_latent_that_never_fired_does_not_fire():
    dictionary = AutoEncoderTopK(12, 40, 3)
    with torch.no_grad():
        dictionary.b_enc[5] = -1.0  # sometimes positive, never among the largest
        dictionary.W_enc[5] *= 0.5
        dictionary.b_enc[6] = -100.0
    x = torch.randn(N, 12)
    assert (dictionary.pre_activations(x)[:, 5] > 0).any()
    made = calibrate(dictionary, x.split(64), N, match="firing")
    silent = (dictionary.encode(x) > 0).sum(0) == 0
    assert silent[5] and silent[6]
    assert not made.encode(x)[:, silent].any()
    assert made.threshold.isfinite().all()


def test_only_the_stated_tokens_are_taken_and_broken_ones_left_out():
    dictionary, x = AutoEncoderTopK(12, 40, 3), torch.randn(N, 12)
    broken = x.clone()
    broken[::50] = torch.nan
    good = broken[broken.isfinite().all(1)]
    made = calibrate(dictionary, broken.split(30), 200)
    assert (made.encode(good[:200]) > 0).sum() == 600
    with pytest.raises(DataError, match="392 tokens and needs 393"):
        calibrate(dictionary, broken.split(30), 393)


def test_later_batches_may_be_larger_and_smaller():
    dictionary, x = AutoEncoderTopK(12, 40, 3), torch.randn(N, 12)
    x[100:200] *= 100
    x[200:] /= 1000
    made = calibrate(dictionary, x.split(100), N)
    assert (made.encode(x) > 0).sum() == 3 * N
    made = calibrate(dictionary, x.split(100), N, match="firing")
    assert torch.equal(firing_counts(made.encode(x)), firing_counts(dictionary.encode(x)))


@pytest.mark.parametrize("match", ["l0", "firing"])
def test_thresholds_are_exact_when_candidates_are_discarded(match, monkeypatch):
    """As with many tokens: to the bit those of all candidates."""
    dictionary, x = AutoEncoderTopK(12, 40, 3), torch.randn(8 * N, 12)
    exact = calibrate(dictionary, x.split(50), 8 * N, match=match)
    discarded = []
    discard = calibration._Calibration._discard
    monkeypatch.setattr(calibration, "_CAPACITY", 2000)
    monkeypatch.setattr(calibration, "_RESERVE", 16)
    monkeypatch.setattr(calibration._Calibration, "_discard", lambda self: discarded.append(0) or discard(self))
    assert torch.equal(calibrate(dictionary, x.split(50), 8 * N, match=match).threshold, exact.threshold)
    assert len(discarded) > 1


def test_latents_that_fire_late_are_warned_of(monkeypatch, caplog):
    monkeypatch.setattr(calibration, "_CAPACITY", 100)
    monkeypatch.setattr(calibration, "_RESERVE", 0)
    dictionary = AutoEncoderTopK(12, 40, 3)
    direction = dictionary.W_enc[7].detach()
    early, late = torch.randn(N, 12), 0.01 * direction + 1e-4 * torch.randn(N, 12)
    made = calibrate(dictionary, [*early.split(50), *late.split(50)], 2 * N, match="firing")
    assert "Shuffle the activations" in caplog.text
    assert made.threshold.isfinite().all()


@pytest.mark.parametrize("match", ["l0", "firing"])
def test_equal_pre_activations_fire_together(match):
    dictionary, x = AutoEncoderTopK(12, 40, 3), torch.randn(1, 12).expand(30, 12)
    made = calibrate(dictionary, [x], 30, match=match)
    assert (made.encode(x) > 0).sum() == 90


def test_relu_and_jump_relu_are_calibrated_to_a_target():
    x = torch.randn(N, 12)
    for dictionary in (AutoEncoder(12, 40), JumpReluAutoEncoder(12, 40, bandwidth=0.3)):
        made = calibrate(dictionary, [x], N, target_l0=4)
        assert (made.encode(x) > 0).sum() == 4 * N
    assert made.nonlinearity.bandwidth == 0.3
    all_fire = calibrate(AutoEncoder(12, 40), [x], N, target_l0=40)
    assert not all_fire.threshold.any()


def test_stored_in_bfloat16_it_stays_so_with_thresholds_in_float32():
    dictionary, x = AutoEncoderTopK(12, 40, 3).bfloat16(), torch.randn(N, 12)
    made = calibrate(dictionary, [x], N)
    assert made.W_enc.dtype == torch.bfloat16 and made.threshold.dtype == torch.float32
    assert torch.equal(made.W_enc, dictionary.W_enc)
    assert (nonzeros(made.encode_latents(x)[0]) > 0).sum() == 3 * N


def test_the_global_random_state_is_left_alone():
    dictionary, x = AutoEncoderTopK(12, 40, 3), torch.randn(N, 12)
    state = torch.get_rng_state()
    calibrate(dictionary, [x], N)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: AbsTopKSAE(12, 40, 3), "negative latents"),
        (lambda: MatchingPursuitSAE(12, 40, 3), "no threshold"),
        (lambda: GatedAutoEncoder(12, 40), "expand_or_convert"),
        (lambda: AutoEncoder(12, 40), "target_l0"),
    ],
)
def test_what_has_no_threshold_is_refused(build, message):
    with pytest.raises(ConfigError, match=message):
        calibrate(build(), [torch.randn(N, 12)], N)


def test_settings_that_cannot_be_used_are_refused():
    dictionary, x = AutoEncoderTopK(12, 40, 3), torch.randn(N, 12)
    with pytest.raises(ConfigError, match="which has no target"):
        calibrate(dictionary, [x], N, target_l0=3, match="firing")
    with pytest.raises(ConfigError, match="dict_size=40"):
        calibrate(dictionary, [x], N, target_l0=41)
    with pytest.raises(ConfigError, match="n_tokens=0 in calibrate; it must be at least 1"):
        calibrate(dictionary, [x], 0)


@pytest.mark.parametrize(
    "build",
    [
        lambda: CrossLayerTranscoder([5, 7], 40, {"name": "top_k", "k": 3}),
        lambda: HeadAutoencoders(12, 40, {"name": "batch_top_k", "k": 3}, n_heads=2),
    ],
)
def test_coders_side_by_side_are_calibrated_each_for_itself(build, tmp_path):
    dictionary, x = perturbed(build()), torch.randn(N, 12)
    made = calibrate(dictionary, x.split(64), N)
    assert type(made) is type(dictionary)
    fired = made.encode(x) > 0
    assert fired[:, :20].sum() == fired[:, 20:].sum() == 3 * N
    expected = dictionary.decode(dictionary.pre_activations(x) * fired)
    torch.testing.assert_close(made(x), expected)
    assert (calibrate(dictionary, [x], N, target_l0=8).encode(x) > 0).sum() == 8 * N
    same = calibrate(dictionary, [x], N, match="firing")
    assert torch.equal(firing_counts(same.encode(x)), firing_counts(dictionary.encode_latents(x)[0]))
    loaded = load_dictionary(save_dictionary(made, tmp_path))
    assert torch.equal(loaded(x), made(x))
