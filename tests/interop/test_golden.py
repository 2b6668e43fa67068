"""What other packages saved computes here what it computes there."""

import pytest
import torch

from dictionary_learning import fold_decoder_norm_, load_dictionary
from dictionary_learning.dictionaries import DICTIONARIES, Normalized
from dictionary_learning.interop import FORMATS
from dictionary_learning.interop._base import format_of as detected
from dictionary_learning.interop._files import Files
from tests.interop import golden

WITH = {
    extra: [name for name in golden.NAMES if extra in golden.io(name)]
    for extra in (
        "x_edge",
        "latents_load_dictionary",
        "latents_use_threshold",
        "latents_batchtopk",
        "latents_final",
        "latents_output_features",
        "reconstruction_without_skip",
        "top_indices",
        "z_pred",
        "fvu",
        "mu",
    )
}


def load(name: str):
    return load_dictionary(golden.folder(name), **golden.FACTS.get(name, {})).requires_grad_(False)


def is_batch_top_k_checkpoint(name: str) -> bool:
    return name.startswith("saelens/") and name.endswith("batchtopk_checkpoint")


def check(name: str, x: str, suffix: str) -> None:
    """Checks that latents and reconstruction of some activations are those that the package gave."""
    dictionary = load(name)
    expected = golden.io(name)
    golden.check_latents(dictionary.encode(expected[x]), expected[f"latents{suffix}"])
    golden.check_close(dictionary(expected[x]), expected[f"reconstruction{suffix}"])


def test_there_are_as_many_as_were_collected():
    assert len(golden.NAMES) == 99
    assert all(names for names in WITH.values())


@pytest.mark.parametrize("name", golden.NAMES)
def test_latents_and_reconstruction_are_those_of_the_package(name):
    dictionary = load(name)
    expected = golden.io(name)
    x = expected["x"]
    if is_batch_top_k_checkpoint(name):  # in training it keeps as many of a batch
        latents = dictionary.encode(x, use_threshold=False)
        x_hat = dictionary.decode(latents)
    else:
        latents, x_hat = dictionary.encode(x), dictionary(x)
    golden.check_latents(latents, expected["latents"])
    golden.check_close(x_hat, expected["reconstruction"])
    assert dictionary.dtype == torch.float32
    assert dictionary.info.format == golden.format_of(name)


@pytest.mark.parametrize("name", golden.NAMES)
def test_format_is_detected_alone(name):
    files = Files(golden.folder(name))
    assert detected(files).name == golden.format_of(name)
    assert [known for known in FORMATS if FORMATS[known].recognizes(files)][:1] == [golden.format_of(name)]


@pytest.mark.parametrize("name", WITH["x_edge"])
def test_exact_ties_are_off(name):
    check(name, "x_edge", "_edge")


@pytest.mark.parametrize("name", WITH["latents_load_dictionary"])
def test_rescaling_is_folding(name):
    """Their own loader rescales; ours keeps what is stored, and folding gives the same."""
    dictionary = load(name)
    expected = golden.io(name)
    fold_decoder_norm_(dictionary)
    golden.check_latents(dictionary.encode(expected["x"]), expected["latents_load_dictionary"])
    golden.check_close(dictionary(expected["x"]), expected["reconstruction_load_dictionary"])


@pytest.mark.parametrize("name", WITH["latents_batchtopk"])
def test_a_batch_together_keeps_the_same(name):
    dictionary = load(name)
    expected = golden.io(name)
    golden.check_latents(dictionary.encode(expected["x"], use_threshold=False), expected["latents_batchtopk"])


@pytest.mark.parametrize("name", WITH["latents_use_threshold"])
def test_threshold_of_top_k_is_kept(name):
    dictionary = load(name)
    expected = golden.io(name)
    golden.check_latents(dictionary.encode(expected["x"], use_threshold=True), expected["latents_use_threshold"])


@pytest.mark.parametrize("name", WITH["latents_final"])
def test_checkpoint_computes_what_its_final_save_does(name):
    check(name, "x", "_final")


@pytest.mark.parametrize("name", WITH["latents_output_features"])
def test_forward_scales_features_where_the_package_does(name):
    dictionary = load(name)
    expected = golden.io(name)
    _, features = dictionary(expected["x"], output_features=True)
    golden.check_latents(features, expected["latents_output_features"])


@pytest.mark.parametrize("name", WITH["reconstruction_without_skip"])
def test_skip_reads_raw_activations(name):
    dictionary = load(name)
    expected = golden.io(name)
    without = dictionary(expected["x"]) - expected["x"] @ dictionary.W_skip.T
    torch.testing.assert_close(without, expected["reconstruction_without_skip"], atol=2e-5, rtol=1e-5)  # a difference


@pytest.mark.parametrize("name", WITH["top_indices"])
def test_kept_latents_are_the_same(name):
    dictionary = load(name)
    expected = golden.io(name)
    latents = dictionary.encode(expected["x"])
    golden.check_close(latents.gather(1, expected["top_indices"].long()), expected["top_acts"])


@pytest.mark.parametrize("name", WITH["fvu"])
def test_error_of_transcoders_is_the_same(name):
    dictionary = load(name)
    expected = golden.io(name)
    x, y = expected["x"], expected["y"]
    fvu = (dictionary(x) - y).square().sum() / (y - y.mean(0)).square().sum()
    golden.check_close(fvu, expected["fvu"].reshape(()))


@pytest.mark.parametrize("name", WITH["z_pred"])
def test_predicted_latents_of_contexts_are_the_same(name):
    dictionary = load(name)
    expected = golden.io(name)
    novel, predicted = dictionary.encode_with_predictions(expected["x"])
    golden.check_close(predicted, expected["z_pred"])
    golden.check_close(dictionary.decode(novel, expected["x"]), expected["reconstruction"])
    if "reconstruction_novel_only" in expected:
        golden.check_close(dictionary.decode(novel), expected["reconstruction_novel_only"])


@pytest.mark.parametrize("name", WITH["mu"])
def test_statistics_of_tokens_are_the_same(name):
    dictionary = load(name)
    assert isinstance(dictionary, Normalized)
    expected = golden.io(name)
    torch.testing.assert_close(expected["x"].mean(1, keepdim=True), expected["mu"].reshape(-1, 1))


def test_backup_is_scaled_to_raw_activations():
    expected = golden.io("dictionary_learning/backup_interrupted/trainer_0")
    assert not torch.allclose(expected["latents"], expected["latents_unscaled_model_on_x_over_norm_factor"])


@pytest.mark.parametrize("step", [8, 16])
def test_checkpoints_find_their_config_above(step):
    run = golden.folder("dictionary_learning/run_two_trainers/trainer_0")
    dictionary = load_dictionary(run / "checkpoints" / f"ae_{step}.pt")
    assert type(dictionary) is DICTIONARIES["BatchTopKSAE"]
    assert dictionary.info.config["trainer"]["dict_class"] == "BatchTopKSAE"
    by_site = load_dictionary(run / "checkpoints", site=f"ae_{step}")
    assert torch.equal(by_site.W_enc, dictionary.W_enc)


def test_loading_draws_no_random_numbers():
    before = torch.random.get_rng_state()
    for name in golden.NAMES[::7]:
        load(name)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_scale_of_a_checkpoint_is_known():
    """With it, the checkpoint becomes what the final save of the same run is."""
    checkpoint = load("saelens/standard_checkpoint_expected_average")
    final = load("saelens/standard_folded_expected_average")
    x = golden.io("saelens/standard_folded_expected_average")["x"]
    checkpoint.scale_(1 / checkpoint.info.config["activation_scale"])
    torch.testing.assert_close(checkpoint(x), final(x), atol=1e-5, rtol=1e-5)  # folded in another order
