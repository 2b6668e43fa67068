"""Leave-one-out refinement: by hand, over every nonlinearity, and through files and evaluation."""

import pytest
import torch

from dictionary_learning import calibrate, leave_one_out, load_dictionary, save_dictionary, trainSAE
from dictionary_learning.attribution._pairs import linear_part
from dictionary_learning.dictionaries import Crosscoder, LeaveOneOut, Normalized, SkipAutoencoder, Transcoder
from dictionary_learning.errors import ConfigError, DataError
from dictionary_learning.interpretation._directions import Directions
from dictionary_learning.trainers import TRAINERS
from tests.contracts.test_trainers import family
from tests.tiny import Planted

METHODS = [name for name in TRAINERS if name not in ("temporal", "end_to_end")]


@pytest.fixture(scope="module")
def trained():
    """Returns a dictionary of each method, trained for some steps."""

    def of(name: str):
        if name not in made:
            options = {"k": 6} if "k" in TRAINERS[name].Config.__dataclass_fields__ else {}
            config = TRAINERS[name].Config(dict_size=64, **options)
            (made[name],) = trainSAE(Planted().batches(60, 256), config, steps=60)
        return made[name]

    made = {}
    return of


def by_hand(dictionary, x, threshold):
    """Returns the latents that stay: each is left out in turn, and what is missing is projected on its direction."""
    dictionary, x = dictionary.double(), x.double()
    f = dictionary.encode(x)
    whole, out = dictionary.decode(f), f.clone()
    for n in range(len(x)):
        for i in f[n].nonzero().flatten():
            direction = dictionary.W_dec[i] / dictionary.W_dec[i].norm()
            others = whole[n] - f[n, i] * dictionary.W_dec[i]
            if (x[n] - others) @ direction * f[n, i].sign() <= threshold:
                out[n, i] = 0
    return out.float()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.covering(shows=lambda name: {family(name)})  # what is left out are latents of any method
def test_latents_stay_that_the_others_do_not_replace(trained, name):
    dictionary, x = trained(name), Planted(seed=5).batch(24)
    refined = leave_one_out(dictionary, [x], len(x), target_l0=0.6 * float((dictionary.encode(x) != 0).sum()) / len(x))
    latents, outputs = refined.encode(x), refined(x)
    with torch.no_grad():
        expected = by_hand(dictionary, x, refined.threshold)
    dictionary.float()
    assert 0 < (expected != 0).sum() < (dictionary.encode(x) != 0).sum()
    torch.testing.assert_close(latents, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(outputs, dictionary.decode(latents), atol=1e-5, rtol=1e-4)
    (both, again) = refined(x[None], output_features=True)
    torch.testing.assert_close(both[0], outputs, atol=1e-5, rtol=1e-4)
    assert torch.equal(again[0], latents)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.covering(shows=lambda name: {family(name)})  # what is left out are latents of any method
def test_threshold_is_found_on_data(trained, name):
    dictionary, x = trained(name), Planted(seed=6).batch(600)
    # BatchTopK keeps as many of a batch together: the same batch is looked at
    fires = (dictionary.encode(x) != 0).sum() / len(x)
    refined = leave_one_out(dictionary, [x], len(x), target_l0=0.7 * float(fires))
    assert abs(float((refined.encode(x) != 0).sum() / len(x)) - 0.7 * float(fires)) < 2e-3 * float(fires)

    def error(d):
        return (d(x) - x).square().sum()

    best = leave_one_out(dictionary, x.split(100), len(x))
    assert error(best) <= error(dictionary) * (1 + 1e-6)
    assert (best.encode(x) != 0).sum() <= (dictionary.encode(x) != 0).sum()
    for threshold in (0.5 * best.threshold, 0.7 * best.threshold, 1.5 * best.threshold + 0.01):
        assert error(best) <= error(LeaveOneOut(dictionary, threshold)) * 1.02


def test_fewer_latents_have_less_error_than_the_largest(trained):
    """At the same number of latents, those that others cannot replace reconstruct more."""
    dictionary, x = trained("top_k"), Planted(seed=7).batch(2000)
    refined = leave_one_out(dictionary, [x], len(x), target_l0=4)
    largest = calibrate(dictionary, [x], len(x), target_l0=4)
    assert (refined(x) - x).square().sum() < (largest(x) - x).square().sum()


def test_crosscoders_are_refined_and_others_refused(trained):
    x = torch.randn(50, 12)
    crosscoder = Crosscoder([5, 7], 32, {"name": "top_k", "k": 4})
    torch.testing.assert_close(
        LeaveOneOut(crosscoder, 0.1).encode(x), by_hand(crosscoder, x, 0.1), atol=1e-5, rtol=1e-4
    )
    crosscoder.float()
    for other, instead in (
        (Transcoder(12, 32, {"name": "top_k", "k": 4}), "autoencoder or a crosscoder"),
        (Normalized(trained("top_k"), "layer_norm"), "inside"),
        (LeaveOneOut(trained("top_k"), 0.1), "inside"),
    ):
        with pytest.raises(ConfigError, match=instead):
            LeaveOneOut(other, 0.1)
        with pytest.raises(ConfigError, match=instead):
            leave_one_out(other, [x], 10)
    assert LeaveOneOut(SkipAutoencoder(12, 32, {"name": "top_k", "k": 4}), 0.1)(x).shape == x.shape


def test_what_latents_add_does_not_count_the_skip():
    torch.manual_seed(0)
    skip, x = SkipAutoencoder(12, 32, {"name": "top_k", "k": 4}), torch.randn(5, 12)
    torch.nn.init.normal_(skip.W_skip)
    refined = LeaveOneOut(skip, 0.1)
    latents = refined.encode(x)
    torch.testing.assert_close(linear_part(refined, latents, x), latents @ skip.W_dec, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("threshold", [float("nan"), float("inf"), "much", None])
def test_bad_thresholds_are_refused(trained, threshold):
    with pytest.raises(ConfigError, match="threshold"):
        LeaveOneOut(trained("top_k"), threshold)


def test_bad_targets_and_too_little_data_are_refused(trained):
    x = Planted().batch(40)
    for target in (7, 1000):
        with pytest.raises(ConfigError, match="latents fire"):
            leave_one_out(trained("top_k"), [x], 40, target_l0=target)
    with pytest.raises(DataError, match="40 tokens and needs 41"):
        leave_one_out(trained("top_k"), [x], 41)


@pytest.mark.parametrize("wrapped", [False, True])
def test_files_hold_the_threshold(trained, tmp_path, wrapped):
    x = Planted().batch(40)
    refined = LeaveOneOut(trained("top_k"), 0.25)
    given = Normalized(refined, None, scales=[2.0]) if wrapped else refined
    save_dictionary(given, tmp_path / "refined")
    loaded = load_dictionary(tmp_path / "refined")
    assert torch.equal(loaded.encode(x), given.encode(x)) and torch.equal(loaded(x), given(x))


def test_scales_with_the_activations(trained):
    x = Planted().batch(40)
    refined = LeaveOneOut(trained("batch_top_k"), 0.25)
    expected = refined.encode(x), refined(x)
    refined.scale_(4.0)
    torch.testing.assert_close(refined.encode(4 * x) / 4, expected[0])
    torch.testing.assert_close(refined(4 * x) / 4, expected[1])
    refined.scale_(0.25)


def test_gradients_pass_what_stays(trained):
    x = Planted().batch(8).requires_grad_()
    refined = LeaveOneOut(trained("top_k"), 0.25)
    refined(x).sum().backward()
    kept = refined.encode(x.detach()) != 0
    W_enc, W_dec = refined.dictionary.W_enc, refined.dictionary.W_dec
    torch.testing.assert_close(x.grad, (kept.float() * W_dec.sum(1)) @ W_enc, atol=1e-4, rtol=1e-4)
    refined.zero_grad()


def test_directions_are_those_inside(trained):
    refined = LeaveOneOut(trained("top_k"), 0.25)
    for by in ("decoder", "encoder"):
        assert torch.equal(Directions(refined, by).rows(3, 9), Directions(trained("top_k"), by).rows(3, 9))
