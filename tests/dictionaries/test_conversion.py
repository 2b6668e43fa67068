import pytest
import torch

from dictionary_learning.dictionaries import (
    AbsTopKSAE,
    AutoEncoder,
    AutoEncoderNew,
    AutoEncoderTopK,
    BatchTopKSAE,
    Crosscoder,
    CrossLayerTranscoder,
    GatedAutoEncoder,
    GroupMaxSAE,
    HeadAutoencoders,
    IdentityDict,
    JumpReluAutoEncoder,
    MatchingPursuitSAE,
    MatryoshkaBatchTopKSAE,
    SparseAutoencoder,
    Transcoder,
)
from dictionary_learning.dictionaries._conversion import expand_or_convert
from dictionary_learning.errors import ConfigError
from tests.dictionaries.kinds import perturbed

BUILD = {
    "relu": lambda: AutoEncoder(12, 40),
    "april": lambda: AutoEncoderNew(12, 40),
    "gated": lambda: GatedAutoEncoder(12, 40),
    "jump_relu": lambda: JumpReluAutoEncoder(12, 40, bandwidth=0.3),
    "top_k": lambda: AutoEncoderTopK(12, 40, 3, rank_by_norm=True),
    "batch_top_k": lambda: BatchTopKSAE(12, 40, 3),
    "matryoshka": lambda: MatryoshkaBatchTopKSAE(12, 40, 3, [10, 30]),
    "abs_top_k": lambda: AbsTopKSAE(12, 40, 3),
    "matching_pursuit": lambda: MatchingPursuitSAE(12, 40, 3),
    "generic": lambda: SparseAutoencoder(12, 40, {"name": "group_max", "k": 3}),
    "transcoder": lambda: Transcoder(12, 40, {"name": "top_k", "k": 3}, output_dim=7, skip=True),
    "crosscoder": lambda: Crosscoder([5, 7], 40, {"name": "batch_top_k", "k": 3}),
}


@pytest.fixture(params=list(BUILD))
def dictionary(request):
    """One of each kind, with no tensor at its initial value."""
    return perturbed(BUILD[request.param]())


def test_a_copy_is_the_same_and_apart(dictionary):
    x = torch.randn(30, 12)
    expected = dictionary(x)
    made = expand_or_convert(dictionary.requires_grad_(False))
    assert type(made) is type(dictionary)
    assert made.options() == dictionary.options()
    assert torch.equal(made(x), expected)
    assert all(parameter.requires_grad for parameter in made.parameters())
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
    assert torch.equal(dictionary(x), expected)


def test_existing_latents_are_first_and_unchanged_in_a_wider_one(dictionary):
    if dictionary.options().get("nonlinearity", {}).get("name") == "group_max":
        with pytest.raises(ConfigError, match="3 groups"):
            expand_or_convert(dictionary, expansion=2)
        return
    x = torch.randn(30, 12)
    made = expand_or_convert(dictionary, expansion=2.5, generator=torch.Generator().manual_seed(1))
    assert type(made) is type(dictionary)
    assert made.dict_size == 100 and made.options()["dict_size"] == 100
    assert torch.equal(made.W_dec[:40], dictionary.W_dec)
    torch.testing.assert_close(made.W_dec[40:].norm(dim=1), torch.ones(60))
    assert torch.equal(made.W_enc[:40], dictionary.W_enc)
    if not made.is_tied:
        torch.testing.assert_close(made.W_enc[40:].norm(dim=1), dictionary.W_enc.norm(dim=1).mean().expand(60))
        torch.testing.assert_close(made.pre_activations(x)[:, :40], dictionary.pre_activations(x))
    if made.W_enc.shape == made.W_dec.shape:
        cosines = torch.nn.functional.cosine_similarity(made.W_enc[40:], made.W_dec[40:])
        torch.testing.assert_close(cosines, torch.ones(60))
    for name, tensor in dictionary.nonlinearity.state_dict().items():
        own = made.nonlinearity.state_dict()[name]
        assert torch.equal(own[:40] if own.ndim else own, tensor)
    again = expand_or_convert(dictionary, expansion=2.5, generator=torch.Generator().manual_seed(1))
    assert torch.equal(made.W_dec, again.W_dec)


def test_the_last_group_grows():
    made = expand_or_convert(perturbed(BUILD["matryoshka"]()), expansion=2)
    assert made.group_sizes == (10, 70)


@pytest.mark.parametrize("name", ["april", "jump_relu", "crosscoder"])
def test_new_latents_see_centered_activations_though_b_dec_is_not_subtracted(name):
    dictionary = perturbed(BUILD[name]())
    made = expand_or_convert(dictionary, expansion=3)
    # at the center of the activations, new latents are at the median of the existing ones
    at_center = made.pre_activations(dictionary.b_dec.detach())
    torch.testing.assert_close(at_center[40:], at_center[:40].median().expand(80), rtol=1e-4, atol=1e-5)


def test_thresholds_of_new_latents_are_the_median():
    dictionary = perturbed(JumpReluAutoEncoder(12, 40))
    made = expand_or_convert(dictionary, expansion=2)
    assert torch.equal(made.threshold[40:], dictionary.threshold.median().expand(40))


@pytest.mark.parametrize("name", ["top_k", "batch_top_k", "matryoshka", "transcoder", "crosscoder"])
def test_jump_relu_takes_the_learnt_threshold(name):
    dictionary, x = perturbed(BUILD[name]()), torch.randn(30, 12)
    norms = dictionary.decoder_norms() if dictionary.rank_by_norm else torch.ones(40)
    pre = dictionary.pre_activations(x)
    made = expand_or_convert(dictionary, nonlinearity={"name": "jump_relu", "bandwidth": 0.1})
    assert made.nonlinearity.bandwidth == 0.1
    torch.testing.assert_close(made.encode(x), pre * (pre * norms > 0.7))


def test_jump_relu_without_a_known_threshold_is_refused():
    for dictionary in (AutoEncoderTopK(12, 40, 3), GroupMaxSAE(12, 40, 4)):
        with pytest.raises(ConfigError, match="calibrate"):
            expand_or_convert(dictionary, nonlinearity={"name": "jump_relu"})


def test_gated_becomes_jump_relu_exactly_and_back():
    dictionary, x = GatedAutoEncoder(12, 40), 2 * torch.randn(50, 12)
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    made = expand_or_convert(dictionary, nonlinearity={"name": "jump_relu"})
    assert type(made) is JumpReluAutoEncoder
    torch.testing.assert_close(made.encode(x), dictionary.encode(x), rtol=1e-4, atol=1e-5)
    assert (made.threshold > 0).any() and (made.threshold == 0).any()
    torch.testing.assert_close(expand_or_convert(made, nonlinearity={"name": "gated"}).encode(x), made.encode(x))


def test_relu_becomes_top_k_of_the_same_latents():
    dictionary, x = perturbed(AutoEncoder(12, 40)), torch.randn(30, 12)
    made = expand_or_convert(dictionary, nonlinearity={"name": "top_k", "k": 4})
    assert type(made) is AutoEncoderTopK and made.k == 4
    values, indices = dictionary.encode(x).topk(4)
    torch.testing.assert_close(made.encode(x), torch.zeros(30, 40).scatter(1, indices, values))


def test_a_tied_dictionary_becomes_one_with_an_encoder():
    dictionary, x = perturbed(MatchingPursuitSAE(12, 40, 3)), torch.randn(30, 12)
    made = expand_or_convert(dictionary, nonlinearity={"name": "relu"}, expansion=2)
    torch.testing.assert_close(made.encode(x)[:, :40], ((x - dictionary.b_dec) @ dictionary.W_dec.T).relu())


def test_a_threshold_of_another_k_is_not_kept():
    dictionary = perturbed(BUILD["matryoshka"]())
    same, other = (expand_or_convert(dictionary, nonlinearity={"name": "batch_top_k", "k": k}) for k in (3, 5))
    assert float(same.threshold) == pytest.approx(0.7) and float(other.threshold) == -1
    assert type(other) is MatryoshkaBatchTopKSAE and other.k == 5
    assert float(expand_or_convert(dictionary, nonlinearity={"name": "top_k", "k": 3}).threshold) == pytest.approx(0.7)


def test_the_copy_is_in_float32():
    made = expand_or_convert(BatchTopKSAE(12, 40, 3).bfloat16(), expansion=2)
    assert {tensor.dtype for tensor in made.state_dict().values()} == {torch.float32}


def test_settings_that_cannot_be_used_are_refused():
    with pytest.raises(ConfigError, match="at least 1"):
        expand_or_convert(AutoEncoder(12, 40), expansion=0.5)
    with pytest.raises(ConfigError, match="unknown|Unknown"):
        expand_or_convert(AutoEncoder(12, 40), nonlinearity={"name": "jump_rely"})


BLOCKS = {
    "cross_layer": lambda: CrossLayerTranscoder([5, 7], 40, {"name": "top_k", "k": 3}, output_dims=[4, 6]),
    "heads": lambda: HeadAutoencoders(12, 40, {"name": "batch_top_k", "k": 3}, n_heads=2),
}


class TestBlocks:
    @pytest.mark.parametrize("name", list(BLOCKS))
    def test_a_copy_is_the_same_and_apart(self, name):
        dictionary, x = perturbed(BLOCKS[name]()), torch.randn(30, 12)
        made = expand_or_convert(dictionary.requires_grad_(False))
        assert type(made) is type(dictionary) and made.options() == dictionary.options()
        assert torch.equal(made(x), dictionary(x))
        with torch.no_grad():
            for parameter in made.parameters():
                assert parameter.requires_grad
                parameter.zero_()
        assert dictionary(x).abs().sum() > 0

    @pytest.mark.parametrize("name", list(BLOCKS))
    def test_each_coder_grows_behind_the_latents_that_it_has(self, name):
        dictionary, x = perturbed(BLOCKS[name]()), torch.randn(30, 12)
        made = expand_or_convert(dictionary, expansion=1.5, generator=torch.Generator().manual_seed(1))
        assert made.dict_size == 60 and made.options()["dict_size"] == 60
        before, after = dictionary.pre_activations(x), made.pre_activations(x)
        torch.testing.assert_close(after[:, :20], before[:, :20])
        torch.testing.assert_close(after[:, 30:50], before[:, 20:])
        again = expand_or_convert(dictionary, expansion=1.5, generator=torch.Generator().manual_seed(1))
        assert torch.equal(made(x), again(x))

    @pytest.mark.parametrize("name", list(BLOCKS))
    def test_another_nonlinearity_is_that_of_each_coder(self, name):
        dictionary, x = perturbed(BLOCKS[name]()), torch.randn(30, 12)
        made = expand_or_convert(dictionary, nonlinearity={"name": "jump_relu"})
        pre = dictionary.pre_activations(x)
        torch.testing.assert_close(made.encode(x), torch.where(pre > 0.7, pre, 0.0))

    def test_what_is_not_trained_is_refused(self):
        with pytest.raises(ConfigError, match="IdentityDict"):
            expand_or_convert(IdentityDict(12))
