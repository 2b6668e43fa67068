import pytest
import torch

from dictionary_learning.dictionaries import (
    AutoEncoderTopK,
    Crosscoder,
    HeadAutoencoders,
    Transcoder,
    load_dictionary,
    save_dictionary,
)
from dictionary_learning.dictionaries._normalized import PER_TOKEN, Normalized
from dictionary_learning.errors import ConfigError, UnknownNameError

BUILD = {
    "layer_norm": lambda: Normalized(AutoEncoderTopK(12, 40, 3), "layer_norm"),
    "constant_norm": lambda: Normalized(AutoEncoderTopK(12, 40, 3), "constant_norm_rescale", scales=[2.0]),
    "two_sites": lambda: Normalized(
        Crosscoder((4, 8), 40, {"name": "top_k", "k": 3}), "layer_norm", site_dims=(4, 8), scales=(1, 3)
    ),
    "scales": lambda: Normalized(
        Crosscoder((4, 8), 40, {"name": "matching_pursuit", "k": 3}), None, site_dims=(4, 8), scales=(0.5, 3)
    ),
    "heads": lambda: Normalized(HeadAutoencoders(12, 40, {"name": "relu"}, n_heads=2), "layer_norm"),
}


@pytest.fixture(params=list(BUILD))
def dictionary(request):
    built = BUILD[request.param]()
    with torch.no_grad():
        for tensor in built.parameters():
            tensor.add_(0.3 * torch.randn_like(tensor))
    return built


def test_forward_is_decode_of_encode(dictionary):
    x = 5 * torch.randn(6, 12) + 2
    latents = dictionary.encode(x)
    torch.testing.assert_close(dictionary(x), dictionary.decode(latents, x))
    x_hat, again = dictionary(x, output_features=True)
    torch.testing.assert_close(x_hat, dictionary(x))
    assert torch.equal(again, latents)


def test_leading_dimensions_do_not_matter(dictionary):
    x = torch.randn(2, 3, 12)
    torch.testing.assert_close(dictionary.encode(x).view(6, -1), dictionary.encode(x.view(6, 12)))
    torch.testing.assert_close(dictionary(x).view(6, -1), dictionary(x.view(6, 12)))
    torch.testing.assert_close(dictionary(x[0, 0]), dictionary(x)[0, 0])
    assert dictionary(x[:0]).shape == (0, 3, 12)
    assert dictionary(x.bfloat16()).dtype == torch.float32


def test_saved_and_loaded_is_the_same(dictionary, tmp_path):
    folder = save_dictionary(dictionary, tmp_path / "saved")
    loaded = load_dictionary(folder)
    assert isinstance(loaded, Normalized)
    assert loaded.options() == dictionary.options()
    assert type(loaded.dictionary) is type(dictionary.dictionary)
    x = torch.randn(6, 12)
    assert torch.equal(loaded(x), dictionary(x))
    assert torch.equal(Normalized.from_pretrained(folder)(x), dictionary(x))


def test_scaling_turns_a_dictionary_of_scaled_activations_into_one_of_raw(dictionary):
    x = torch.randn(50, 12)
    expected, latents = dictionary(x / 2.5, output_features=True)
    dictionary.scale_(2.5)
    torch.testing.assert_close(dictionary(x), 2.5 * expected)
    torch.testing.assert_close(dictionary.encode(x), latents)
    with pytest.raises(ConfigError, match="one scale"):
        dictionary.scale_(2.0, 3.0)


def test_tokens_are_normalized_each_by_itself():
    dictionary = BUILD["layer_norm"]()
    x = torch.randn(6, 12)
    rescaled = x * torch.rand(6, 1).add(1) + torch.randn(6, 1)
    torch.testing.assert_close(dictionary.encode(rescaled), dictionary.encode(x), rtol=1e-3, atol=1e-4)  # 1e-5 is added
    mean, deviation = x.mean(1, keepdim=True), x.std(1, keepdim=True) + 1e-5
    torch.testing.assert_close(dictionary(x), dictionary.dictionary((x - mean) / deviation) * deviation + mean)


def test_tokens_of_zeros_stay_finite():
    for name in PER_TOKEN:
        assert Normalized(AutoEncoderTopK(12, 40, 3), name)(torch.zeros(2, 12)).isfinite().all()


def test_decoding_needs_the_activations():
    dictionary = BUILD["layer_norm"]()
    with pytest.raises(ConfigError, match="decode\\(latents, x\\)"):
        dictionary.decode(torch.zeros(2, 40))
    assert BUILD["scales"]().decode(torch.zeros(2, 40)).shape == (2, 12)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="predicts other activations"):
        Normalized(Transcoder(12, 40, {"name": "relu"}), "layer_norm")
    with pytest.raises(ConfigError, match="Give widths with that sum"):
        Normalized(AutoEncoderTopK(12, 40, 3), "layer_norm", site_dims=(4, 4))
    with pytest.raises(UnknownNameError, match="layer_norm"):
        Normalized(AutoEncoderTopK(12, 40, 3), "layer_nrm")
    with pytest.raises(ConfigError, match="width 5"):
        BUILD["layer_norm"]().encode(torch.randn(2, 5))
