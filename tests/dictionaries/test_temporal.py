"""Dictionaries of contexts, and the nonlinearities that other packages have."""

import copy

import pytest
import torch

from dictionary_learning import load_dictionary, save_dictionary
from dictionary_learning.dictionaries import Normalized, SparseAutoencoder, expand_or_convert
from dictionary_learning.errors import ConfigError
from dictionary_learning.experimental.temporal import TemporalAutoencoder
from dictionary_learning.interventions import graft

X = torch.randn(2, 6, 12, generator=torch.Generator().manual_seed(4))


def build(**options):
    return TemporalAutoencoder(12, 16, **{"k": 3, "n_heads": 2, "n_layers": 2, "bottleneck_factor": 4, **options})


@pytest.mark.parametrize(
    "options", [{}, {"k": None}, {"tied": False}, {"subtracts_b_dec": False, "has_output_bias": False}]
)
def test_saved_and_loaded_is_the_same(options, tmp_path):
    dictionary = build(**options)
    loaded = load_dictionary(save_dictionary(dictionary, tmp_path))
    assert loaded.options() == dictionary.options()
    assert torch.equal(loaded(X), dictionary(X))


def test_output_is_of_what_is_new_and_what_is_predicted():
    dictionary = build()
    novel, predicted = dictionary.encode_with_predictions(X)
    assert (novel != 0).sum(-1).max() <= 3 and predicted.abs().sum() > 0
    torch.testing.assert_close(dictionary(X), (novel + predicted) @ dictionary.W_dec + dictionary.b_dec)
    torch.testing.assert_close(dictionary.decode(novel, X), dictionary(X))
    x_hat, latents = dictionary(X, output_features=True)
    assert torch.equal(latents, novel) and torch.equal(x_hat, dictionary(X))
    torch.testing.assert_close(dictionary.reconstruct(X[0]).outputs, dictionary(X)[0])


def test_tokens_depend_on_those_before_and_not_on_those_after():
    dictionary = build()
    later, earlier = X.clone(), X.clone()
    later[:, 4:] += 1
    earlier[:, :2] += 1
    torch.testing.assert_close(dictionary.encode(later)[:, :4], dictionary.encode(X)[:, :4])
    assert not torch.allclose(dictionary(earlier)[:, 2:], dictionary(X)[:, 2:])


def test_scaling_turns_a_dictionary_of_scaled_activations_into_one_of_raw():
    dictionary = build()
    scaled = copy.deepcopy(dictionary)
    scaled.scale_(2.5)
    torch.testing.assert_close(scaled(2.5 * X), 2.5 * dictionary(X))
    with pytest.raises(ConfigError, match="one scale"):
        scaled.scale_(2.0, 3.0)


@pytest.mark.parametrize(
    "options", [{"n_heads": 3}, {"bottleneck_factor": 0}, {"k": 17}, {"k": 0}, {"n_layers": -1}, {"scale": 0.0}]
)
def test_what_does_not_fit_is_refused(options):
    with pytest.raises(ConfigError, match="TemporalAutoencoder"):
        build(**options)
    with pytest.raises(ConfigError, match="whole contexts"):
        build()(X[0, 0])


class TestContexts:
    LENGTHS = torch.tensor([5, 0, 3, 6, 1])

    def test_each_is_as_if_it_were_alone(self):
        dictionary, x = build(), torch.randn(15, 12, generator=torch.Generator().manual_seed(5))
        made = dictionary.reconstruct_contexts(x, self.LENGTHS)
        alone = [dictionary.reconstruct(part) for part in x.split(self.LENGTHS.tolist()) if len(part)]
        torch.testing.assert_close(made.outputs, torch.cat([one.outputs for one in alone]))
        torch.testing.assert_close(made.latents, torch.cat([one.latents for one in alone]))
        assert not torch.allclose(made.outputs, dictionary.reconstruct(x).outputs)

    def test_of_no_tokens_nothing_is_made(self):
        made = build().reconstruct_contexts(torch.zeros(0, 12), torch.tensor([0, 0]))
        assert made.outputs.shape == (0, 12) and made.latents.shape == (0, 16)

    def test_lengths_of_other_tokens_are_refused(self):
        with pytest.raises(ConfigError, match="14 tokens"):
            build().reconstruct_contexts(torch.zeros(14, 12), self.LENGTHS)

    def test_a_wrapped_dictionary_reads_contexts_too(self):
        x = torch.randn(15, 12, generator=torch.Generator().manual_seed(5))
        dictionary = Normalized(build(), "layer_norm")
        assert dictionary.reads_contexts and not SparseAutoencoder(12, 40, {"name": "relu"}).reads_contexts
        alone = [dictionary.reconstruct(part).outputs for part in x.split(self.LENGTHS.tolist()) if len(part)]
        torch.testing.assert_close(dictionary.reconstruct_contexts(x, self.LENGTHS).outputs, torch.cat(alone))

    def test_graft_shows_it_the_tokens_of_each_context_that_are_kept(self):
        dictionary, keep = build(), torch.tensor([[0, 1, 1, 0, 1, 1], [1, 1, 1, 1, 1, 0]]).bool()
        grafted = graft(dictionary, keep)(X)
        assert torch.equal(grafted[~keep], X[~keep])
        for n in range(2):
            torch.testing.assert_close(grafted[n][keep[n]], dictionary(X[n][keep[n]]))


class TestWider:
    @pytest.mark.parametrize("options", [{}, {"tied": False}, {"k": None, "n_layers": 1}])
    def test_predictions_of_the_latents_that_were_there_stay(self, options):
        dictionary = build(**options)
        made = expand_or_convert(dictionary.bfloat16(), expansion=1.5, generator=torch.Generator().manual_seed(1))
        assert made.dict_size == 24 and made.dtype == torch.float32
        latents = torch.rand(2, 6, 24)
        for own, old in zip(made.attn_layers, dictionary.float().attn_layers, strict=True):
            torch.testing.assert_close(own(latents)[..., :16], old(latents[..., :16]))
        assert torch.equal(made.W_dec[:16], dictionary.W_dec) and torch.equal(made.b_dec, dictionary.b_dec)
        torch.testing.assert_close(made.W_dec[16:].norm(dim=1), dictionary.W_dec.norm(dim=1).mean().expand(8))
        loss = made(X).square().sum()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())

    def test_a_copy_is_the_same_with_another_k_or_none(self):
        dictionary = build()
        assert torch.equal(expand_or_convert(dictionary)(X), dictionary(X))
        novel, _ = dictionary.encode_with_predictions(X)
        fewer = expand_or_convert(dictionary, nonlinearity={"name": "top_k", "k": 2})
        assert fewer.k == 2 and torch.equal(fewer.encode(X), novel * (novel >= novel.topk(2, -1).values[..., -1:]))
        assert expand_or_convert(dictionary, nonlinearity={"name": "relu"}).k is None
        with pytest.raises(ConfigError, match="JumpReLU"):
            expand_or_convert(dictionary, nonlinearity={"name": "jump_relu"})
        with pytest.raises(ConfigError, match="multiple"):
            expand_or_convert(dictionary, expansion=1.1)


def test_first_reconstruction_is_best_at_the_scale_of_the_decoder():
    dictionary, x = build(n_layers=0, k=None), 3 * X.flatten(0, 1)
    dictionary.scale_decoder_(x)

    def error(factor):
        other = copy.deepcopy(dictionary)
        other.W_dec.data *= factor
        return (other.reconstruct(x).outputs - x).square().sum()

    assert error(1.0) < min(error(0.98), error(1.02))


def pursued(x, W, k, threshold, stops):
    """Returns latents found one token and one round after another."""
    rows = []
    for token in x:
        rest, latents = token, torch.zeros(len(W), dtype=x.dtype)
        for _ in range(k):
            i = int((W @ rest).relu().argmax())
            value = (W[i] @ rest).relu()
            before = latents != 0
            latents = latents.index_add(0, torch.tensor([i]), value.reshape(1))
            rest = rest - value * W[i]
            if (stops and torch.equal(latents != 0, before)) or (threshold > 0 and rest.norm() < threshold):
                break
        rows.append(latents)
    return torch.stack(rows)


@pytest.mark.parametrize("threshold", [0.0, 1.2])
@pytest.mark.parametrize("stops", [True, False])
@pytest.mark.parametrize("unit", [True, False])
def test_stopped_pursuit_is_what_a_loop_finds(threshold, stops, unit):
    options = {"name": "stopped_pursuit", "k": 6, "residual_threshold": threshold, "stop_on_duplicate_support": stops}
    dictionary = SparseAutoencoder(12, 40, options).double()
    if not unit:
        dictionary.W_dec.data *= 0.7
    x = 2 * X.reshape(-1, 12).double()
    expected = pursued(x - dictionary.b_dec, dictionary.W_dec, 6, threshold, stops)
    got = dictionary.encode(x)
    torch.testing.assert_close(got, expected)
    weights = torch.randn_like(got)
    ours, theirs = (torch.autograd.grad((v * weights).sum(), dictionary.W_dec)[0] for v in (got, expected))
    torch.testing.assert_close(ours, theirs)
