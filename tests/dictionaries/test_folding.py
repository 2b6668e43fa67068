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
    HeadAutoencoders,
    JumpReluAutoEncoder,
    MatchingPursuitSAE,
    Transcoder,
)
from dictionary_learning.dictionaries._folding import fold_decoder_norm_
from dictionary_learning.errors import ConfigError
from tests.dictionaries.kinds import perturbed

FOLDABLE = {
    "relu": lambda: AutoEncoder(12, 40),
    "april": lambda: AutoEncoderNew(12, 40),
    "gated": lambda: GatedAutoEncoder(12, 40),
    "jump_relu": lambda: JumpReluAutoEncoder(12, 40, 0.5),
    "ranked_top_k": lambda: AutoEncoderTopK(12, 40, 3, rank_by_norm=True),
    "ranked_batch_top_k": lambda: BatchTopKSAE(12, 40, 3, rank_by_norm=True),
    "transcoder": lambda: Transcoder(12, 40, {"name": "relu"}, output_dim=7, skip=True),
    "crosscoder": lambda: Crosscoder([5, 7], 40, {"name": "top_k", "k": 3}),
    "cross_layer": lambda: CrossLayerTranscoder([6, 6], 40, {"name": "jump_relu", "initial_threshold": 0.2}),
    "heads": lambda: HeadAutoencoders(12, 40, {"name": "relu"}, n_heads=2),
}


@pytest.fixture(params=list(FOLDABLE))
def dictionary(request):
    """One of each kind that can be folded, with rows of unequal norms."""
    return perturbed(FOLDABLE[request.param]())


def test_outputs_stay_and_latents_carry_the_norms(dictionary):
    x = torch.randn(30, 12)
    outputs, latents, norms = dictionary(x), dictionary.encode(x), dictionary.decoder_norms()
    trained, _ = dictionary.encode_latents(x)
    written = dictionary.decode_latents(trained, x)
    fold_decoder_norm_(dictionary)
    torch.testing.assert_close(dictionary.decoder_norms(), torch.ones(40))
    torch.testing.assert_close(dictionary(x), outputs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(dictionary.encode(x), latents * norms, rtol=1e-4, atol=1e-5)
    again, _ = dictionary.encode_latents(x)
    torch.testing.assert_close(dictionary.decode_latents(again, x), written, rtol=1e-4, atol=1e-5)


def test_folding_again_changes_nothing(dictionary):
    fold_decoder_norm_(dictionary)
    before = {name: tensor.clone() for name, tensor in dictionary.state_dict().items()}
    fold_decoder_norm_(dictionary)
    for name, tensor in dictionary.state_dict().items():
        torch.testing.assert_close(tensor, before[name])


@pytest.mark.parametrize("name", ["relu", "jump_relu", "ranked_top_k"])
def test_rows_of_zeros_stay_with_their_latents(name):
    dictionary = perturbed(FOLDABLE[name]())
    with torch.no_grad():
        dictionary.W_dec[4] = 0
    x = torch.randn(30, 12)
    outputs, latents, encoder = dictionary(x), dictionary.encode(x), dictionary.W_enc[4].clone()
    fold_decoder_norm_(dictionary)
    assert not dictionary.W_dec[4].any()
    assert torch.equal(dictionary.W_enc[4], encoder)
    torch.testing.assert_close(dictionary.encode(x)[:, 4], latents[:, 4])
    torch.testing.assert_close(dictionary(x), outputs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("build", [AutoEncoderTopK, BatchTopKSAE, AbsTopKSAE])
def test_one_norm_for_all_is_folded(build):
    dictionary = build(12, 40, 3)
    with torch.no_grad():
        dictionary.W_dec.mul_(2.5)
        for buffer in dictionary.buffers():
            buffer.fill_(0.7)
    x = torch.randn(30, 12)
    outputs, latents = dictionary(x), dictionary.encode(x)
    fold_decoder_norm_(dictionary)
    torch.testing.assert_close(dictionary(x), outputs)
    torch.testing.assert_close(dictionary.encode(x), 2.5 * latents)
    torch.testing.assert_close(dictionary.decoder_norms(), torch.ones(40))


@pytest.mark.parametrize("build", [AutoEncoderTopK, BatchTopKSAE, AbsTopKSAE, MatchingPursuitSAE])
def test_latents_that_are_compared_by_value_are_refused_and_left(build):
    dictionary = perturbed(build(12, 40, 3))
    before = {name: tensor.clone() for name, tensor in dictionary.state_dict().items()}
    with pytest.raises(ConfigError, match="of norm|have norms from"):
        fold_decoder_norm_(dictionary)
    assert all(torch.equal(tensor, before[name]) for name, tensor in dictionary.state_dict().items())


def test_of_several_parts_all_are_folded_or_none():
    dictionary = HeadAutoencoders(12, 40, {"name": "top_k", "k": 3}, n_heads=2)
    first, second = (part.coder for part in dictionary.coders())
    with torch.no_grad():
        first.W_dec.mul_(2.0)
        second.W_dec[3] *= 2.0
    before = first.W_dec.clone()
    with pytest.raises(ConfigError, match="TopK compares"):
        fold_decoder_norm_(dictionary)
    assert torch.equal(first.W_dec, before)


def test_a_tied_dictionary_of_unit_rows_is_left_as_it_is():
    dictionary = MatchingPursuitSAE(12, 40, 3)
    before = dictionary.W_dec.clone()
    fold_decoder_norm_(dictionary)
    assert torch.equal(dictionary.W_dec, before)
