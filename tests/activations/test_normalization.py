import json

import pytest
import torch

from dictionary_learning.activations._normalization import check_normalizers, export, fold_
from dictionary_learning.activations._normalizers import NORMALIZATIONS
from dictionary_learning.dictionaries import (
    Crosscoder,
    CrossLayerTranscoder,
    HeadAutoencoders,
    IdentityDict,
    SparseAutoencoder,
    Transcoder,
)
from dictionary_learning.dictionaries._normalized import Normalized
from dictionary_learning.errors import ConfigError, DataError

DIM, WIDTH = 6, 24
KINDS = list(dict(NORMALIZATIONS.items()))
FOLDED = [name for name in KINDS if NORMALIZATIONS[name].is_folded]
PER_TOKEN = [name for name in KINDS if not NORMALIZATIONS[name].is_folded]
NONLINEARITIES = {
    "relu": {"name": "relu"},
    "top_k": {"name": "top_k", "k": 4},
    "batch_top_k": {"name": "batch_top_k", "k": 4},
    "jump_relu": {"name": "jump_relu", "initial_threshold": 0.3},
    "gated": {"name": "gated"},
    "group_max": {"name": "group_max", "k": 4},
    "abs_top_k": {"name": "abs_top_k", "k": 4},
}
nonlinearities = pytest.mark.parametrize("nonlinearity", NONLINEARITIES.values(), ids=list(NONLINEARITIES))
kinds = pytest.mark.parametrize("kind", FOLDED)


def activations(dim=DIM, scale=7.0, n=400):
    """Correlated activations with a mean."""
    x = torch.randn(n, dim, dtype=torch.float64) @ torch.randn(dim, dim, dtype=torch.float64)
    return scale * (x + torch.randn(dim, dtype=torch.float64))


def randomized(dictionary):
    """The dictionary in double precision, with no tensor at its initial value."""
    dictionary = dictionary.double()
    with torch.no_grad():
        for name, tensor in dictionary.named_parameters():
            if "threshold" not in name:
                tensor.add_(0.4 * torch.randn_like(tensor))
        for buffer in dictionary.buffers():
            buffer.fill_(0.4)
    return dictionary.requires_grad_(False).eval()


def fitted(kind, *sites):
    return [NORMALIZATIONS[kind].fit(x) for x in sites]


def applied(normalizers, sites):
    return torch.cat([n.apply(x) for n, x in zip(normalizers, sites, strict=True)], dim=1)


def check_exact(dictionary, inputs, reads, outputs=None, writes=None, latent_factor=None):
    """Compares a dictionary on normalized activations with the finished one on the model's own."""
    x, z = torch.cat(reads, dim=1), applied(inputs, reads)
    made = dictionary.reconstruct(z)
    latents = dictionary.encode(z)
    parts = made.outputs.split([n.dim for n in outputs or inputs], dim=1)
    targets = reads if writes is None else writes
    expected = torch.cat([n.undo(y, t) for n, y, t in zip(outputs or inputs, parts, targets, strict=True)], dim=1)
    done = export(dictionary, inputs, outputs)
    # double precision, but for thresholds, which stay float32
    torch.testing.assert_close(done.reconstruct(x).outputs, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(done(x), expected, rtol=1e-5, atol=1e-6)
    if latent_factor is not None:
        torch.testing.assert_close(done.encode(x), latents * latent_factor, rtol=1e-5, atol=1e-6)
    assert torch.equal(done.encode(x) != 0, latents != 0)
    assert (latents != 0).any()
    return done


def latent_factor(normalizers):
    """By what finished latents exceed those on normalized activations, as `fold_` says."""
    return (sum(n.scale * n.scale for n in normalizers) / len(normalizers)) ** 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_undo_inverts_apply_and_descriptions_are_json(kind):
    x = activations()
    normalizer = NORMALIZATIONS[kind].fit(x)
    torch.testing.assert_close(normalizer.undo(normalizer.apply(x), x), x)
    torch.testing.assert_close(normalizer.apply(x[0]), normalizer.apply(x)[0])
    described = json.loads(json.dumps(normalizer.describe()))
    assert described["name"] == kind
    assert described["folded"] is normalizer.is_folded
    assert NORMALIZATIONS[kind].fit(x.float()).apply(x.float()).dtype == torch.float32


def test_normalized_activations_are_as_the_kinds_say():
    x = activations()
    z = {kind: NORMALIZATIONS[kind].fit(x).apply(x) for kind in KINDS}
    assert z["unit_mean_square"].pow(2).sum(1).mean() == pytest.approx(1, rel=1e-5)
    assert z["sqrt_dim"].norm(dim=1).mean() == pytest.approx(DIM**0.5, rel=1e-5)
    torch.testing.assert_close(z["constant_norm_rescale"].norm(dim=1), torch.full((400,), DIM**0.5).double())
    torch.testing.assert_close(z["layer_norm"].mean(1), torch.zeros(400).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(z["layer_norm"].std(1), torch.ones(400).double(), atol=1e-4, rtol=0)
    assert z["none"] is x


@pytest.mark.parametrize("name", ["whitening", "covariance_whitening"])
def test_whitening_is_refused_with_what_to_choose(name):
    for look_up in (NORMALIZATIONS.__getitem__, NORMALIZATIONS.canonical):
        with pytest.raises(ConfigError, match="whitening is not supported any more.*unit_mean_square"):
            look_up(name)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "none"])
@pytest.mark.parametrize("bad", [torch.zeros(100, DIM), torch.full((100, DIM), torch.nan), torch.zeros(0, DIM)])
def test_degenerate_samples_are_refused(kind, bad):
    with pytest.raises(DataError):
        NORMALIZATIONS[kind].fit(bad)


@pytest.mark.parametrize("kind", PER_TOKEN)
def test_tokens_of_one_dimension_are_not_normalized_by_themselves(kind):
    with pytest.raises(DataError, match=kind):
        NORMALIZATIONS[kind].fit(torch.randn(23, 1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_finite_rows_decide(kind, value):
    x = activations()
    damaged = torch.cat([x, x[:3].clone().fill_(value), torch.cat([x[:1, 1:], x.new_full((1, 1), value)], dim=1)])
    expected, got = (NORMALIZATIONS[kind].fit(sample).describe() for sample in (x, damaged))
    assert got.keys() == expected.keys()
    assert got == pytest.approx(expected)


@kinds
@nonlinearities
@pytest.mark.parametrize("centered", [True, False])
def test_autoencoders_finish_exactly(kind, nonlinearity, centered):
    x = activations()
    dictionary = randomized(SparseAutoencoder(DIM, WIDTH, nonlinearity, apply_b_dec_to_input=centered))
    normalizers = fitted(kind, x)
    done = check_exact(dictionary, normalizers, [x], latent_factor=latent_factor(normalizers))
    assert done is dictionary


@pytest.mark.parametrize("kind", PER_TOKEN)
@nonlinearities
def test_per_token_autoencoders_are_wrapped(kind, nonlinearity):
    x = activations()
    dictionary = randomized(SparseAutoencoder(DIM, WIDTH, nonlinearity))
    done = check_exact(dictionary, fitted(kind, x), [x], latent_factor=1.0)
    assert isinstance(done, Normalized)
    assert done.dictionary is dictionary


@kinds
@nonlinearities
@pytest.mark.parametrize("rank_by_norm", [True, False])
def test_transcoders_with_skip_and_other_widths_finish_exactly(kind, nonlinearity, rank_by_norm):
    x, y = activations(), activations(9, 0.2)
    dictionary = randomized(Transcoder(DIM, WIDTH, nonlinearity, output_dim=9, skip=True, rank_by_norm=rank_by_norm))
    check_exact(dictionary, fitted(kind, x), [x], fitted(kind, y), [y])


@pytest.mark.parametrize(
    ("reads", "writes"), [("none", "sqrt_dim"), ("unit_mean_square", "none"), ("sqrt_dim", "unit_mean_square")]
)
@pytest.mark.parametrize("nonlinearity", [NONLINEARITIES["batch_top_k"], NONLINEARITIES["gated"]], ids=["k", "gated"])
def test_inputs_and_outputs_may_have_different_kinds(reads, writes, nonlinearity):
    x, y = activations(), activations(9, 0.2)
    dictionary = randomized(Transcoder(DIM, WIDTH, nonlinearity, output_dim=9, skip=True, rank_by_norm=True))
    check_exact(dictionary, fitted(reads, x), [x], fitted(writes, y), [y])


@pytest.mark.parametrize("kind", KINDS)
@nonlinearities
@pytest.mark.parametrize("rank_by_norm", [True, False])
def test_crosscoders_of_two_widths_and_scales_finish_exactly(kind, nonlinearity, rank_by_norm):
    sites = [activations(4, 30.0), activations(9, 0.2)]
    dictionary = randomized(Crosscoder((4, 9), WIDTH, nonlinearity, rank_by_norm=rank_by_norm))
    check_exact(dictionary, fitted(kind, *sites), sites)


def test_latents_of_several_scales_are_in_their_root_mean_square():
    sites = [activations(4, 30.0), activations(9, 0.2)]
    dictionary = randomized(Crosscoder((4, 9), WIDTH, {"name": "top_k", "k": 4}, rank_by_norm=False))
    normalizers = fitted("sqrt_dim", *sites)
    check_exact(dictionary, normalizers, sites, latent_factor=latent_factor(normalizers))


def test_ranking_by_norm_becomes_ranking_by_value_where_scales_differ():
    sites = [activations(4, 30.0), activations(9, 0.2)]
    dictionary = randomized(Crosscoder((4, 9), WIDTH, {"name": "batch_top_k", "k": 4}))
    norms, normalizers = dictionary.decoder_norms(), fitted("sqrt_dim", *sites)
    done = check_exact(dictionary, normalizers, sites, latent_factor=norms * latent_factor(normalizers))
    assert done.options()["rank_by_norm"] is False


@kinds
@nonlinearities
def test_cross_layer_transcoders_finish_exactly(kind, nonlinearity):
    reads, writes = [activations(4, 30.0), activations(5, 2.0)], [activations(6, 0.3), activations(7, 10.0)]
    dictionary = randomized(CrossLayerTranscoder((4, 5), WIDTH, nonlinearity, output_dims=(6, 7)))
    check_exact(dictionary, fitted(kind, *reads), reads, fitted(kind, *writes), writes)


@pytest.mark.parametrize("kind", KINDS)
@nonlinearities
def test_heads_finish_exactly_with_a_normalizer_for_each(kind, nonlinearity):
    heads = [activations(4, 30.0), activations(4, 0.2)]
    check_exact(randomized(HeadAutoencoders(8, WIDTH, nonlinearity, n_heads=2)), fitted(kind, *heads), heads)


@kinds
def test_heads_finish_with_one_normalizer_for_all(kind):
    x = activations(8)
    dictionary = randomized(HeadAutoencoders(8, WIDTH, {"name": "relu"}, n_heads=2))
    check_exact(dictionary, fitted(kind, x), [x])


@pytest.mark.parametrize("kind", ["unit_mean_square", *PER_TOKEN])
def test_matching_pursuit_finishes_exactly_with_scales(kind):
    pursuit = {"name": "matching_pursuit", "k": 4}
    x = activations()
    check_exact(randomized(SparseAutoencoder(DIM, WIDTH, pursuit)), fitted(kind, x), [x])
    sites = [activations(4, 30.0), activations(9, 0.2)]
    done = check_exact(randomized(Crosscoder((4, 9), WIDTH, pursuit)), fitted(kind, *sites), sites)
    assert isinstance(done, Normalized)
    done.scale_(3.0)
    assert done(torch.cat(sites, dim=1)).isfinite().all()


def test_finished_in_single_precision_is_close():
    x = activations().float()
    dictionary = randomized(SparseAutoencoder(DIM, WIDTH, {"name": "relu"})).float()
    normalizers = fitted("sqrt_dim", x)
    expected = normalizers[0].undo(dictionary(normalizers[0].apply(x)), x)
    # sums of activations around 50, rounded in float32
    torch.testing.assert_close(export(dictionary, normalizers)(x), expected, rtol=1e-4, atol=1e-3)


def test_what_cannot_be_finished_is_refused_beforehand_and_unchanged():
    x, y = activations(), activations()
    pursuit = randomized(SparseAutoencoder(DIM, WIDTH, {"name": "matching_pursuit", "k": 4}))
    transcoder = randomized(Transcoder(DIM, WIDTH, {"name": "relu"}))
    crosscoder = randomized(Crosscoder((DIM, DIM), WIDTH, {"name": "relu"}))
    autoencoder = randomized(SparseAutoencoder(DIM, WIDTH, {"name": "relu"}))
    refused = [
        (pursuit, fitted("sqrt_dim", x), fitted("none", x), "one matrix"),
        (transcoder, fitted("layer_norm", x), fitted("layer_norm", y), "predicts other activations"),
        (crosscoder, fitted("layer_norm", x) + fitted("none", y), None, "one normalization for all sites"),
        (autoencoder, fitted("unit_mean_square", x), fitted("sqrt_dim", y), "one normalizer for both"),
        (autoencoder, fitted("unit_mean_square", activations(5)), None, "width 5"),
        (IdentityDict(DIM), fitted("sqrt_dim", x[:, :2]) + fitted("none", x[:, 2:]), None, "no weights"),
    ]
    for dictionary, inputs, outputs, message in refused:
        before = {name: tensor.clone() for name, tensor in dictionary.state_dict().items()}
        for function in (check_normalizers, export):
            with pytest.raises(ConfigError, match=message):
                function(dictionary, inputs, outputs)
        assert all(torch.equal(before[name], tensor) for name, tensor in dictionary.state_dict().items())
    with pytest.raises(ConfigError, match="export"):
        fold_(autoencoder, fitted("layer_norm", x))
