import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dictionary_learning import (
    AutoEncoder,
    AutoEncoderTopK,
    BatchTopKSAE,
    IdentityDict,
    SparseAutoencoder,
    load_dictionary,
    save_dictionary,
)
from dictionary_learning.dictionaries import Crosscoder, InitConfig, Transcoder, geometric_median
from dictionary_learning.dictionaries.nonlinearities import NONLINEARITIES
from dictionary_learning.errors import CheckpointError, ConfigError

BUILD = {
    "AutoEncoder": lambda: AutoEncoder(12, 40),
    "AutoEncoderTopK": lambda: AutoEncoderTopK(12, 40, 3),
    "BatchTopKSAE": lambda: BatchTopKSAE(12, 40, 3),
    "SparseAutoencoder": lambda: SparseAutoencoder(12, 40, {"name": "top_k", "k": 5}),
    "IdentityDict": lambda: IdentityDict(12),
}
"""Autoencoders with what only they have; all classes are in tests/contracts/test_dictionaries.py."""


@pytest.fixture(params=list(BUILD))
def dictionary(request):
    """A dictionary with no tensor at its initial value."""
    built = BUILD[request.param]()
    with torch.no_grad():
        for tensor in built.parameters():
            tensor.add_(0.3 * torch.randn_like(tensor))
        for buffer in built.buffers():
            buffer.fill_(0.7)
    return built


def test_forward_is_decode_of_encode(dictionary):
    x = torch.randn(6, 12)
    latents = dictionary.encode(x)
    assert latents.shape == (6, dictionary.dict_size)
    torch.testing.assert_close(dictionary(x), dictionary.decode(latents))
    x_hat, again = dictionary(x, output_features=True)
    torch.testing.assert_close(x_hat, dictionary(x))
    assert torch.equal(again, latents)


def test_leading_dimensions_do_not_matter(dictionary):
    x = torch.randn(2, 3, 12)
    flat = x.view(6, 12)
    torch.testing.assert_close(dictionary.encode(x).view(6, -1), dictionary.encode(flat))
    torch.testing.assert_close(dictionary(x).view(6, -1), dictionary(flat))
    torch.testing.assert_close(dictionary(flat[0]), dictionary(flat)[0])
    assert dictionary(x[:0]).shape == (0, 3, 12)


def test_saved_and_loaded_is_the_same(dictionary, tmp_path):
    folder = save_dictionary(dictionary, tmp_path / "saved", {"site": "a:out"})
    loaded = load_dictionary(folder)
    config = loaded.info.config
    assert type(loaded) is type(dictionary)
    assert config["site"] == "a:out"
    for name, tensor in dictionary.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
        assert loaded.state_dict()[name].dtype == tensor.dtype
    x = torch.randn(6, 12)
    assert torch.equal(loaded(x), dictionary(x))
    assert torch.equal(type(dictionary).from_pretrained(folder)(x), dictionary(x))


def test_scaling_turns_a_dictionary_of_scaled_activations_into_one_of_raw(dictionary):
    x = torch.randn(50, 12)
    expected, latents = dictionary(x / 2.5, output_features=True)
    dictionary.scale_(2.5)
    torch.testing.assert_close(dictionary(x), expected * 2.5)
    scaled = latents * 2.5 if not isinstance(dictionary, IdentityDict) else x
    torch.testing.assert_close(dictionary.encode(x), scaled)


def test_top_k_keeps_the_largest_by_brute_force():
    dictionary = AutoEncoderTopK(12, 40, 3)
    x = torch.randn(20, 12)
    pre = (x - dictionary.b_dec) @ dictionary.W_enc.T + dictionary.b_enc
    for row, latents in zip(pre.relu(), dictionary.encode(x), strict=True):
        kept = row.sort(descending=True).indices[:3]
        expected = torch.zeros(40).index_copy_(0, kept, row[kept])
        torch.testing.assert_close(latents, expected)


def test_return_topk_gives_the_known_four():
    dictionary = AutoEncoderTopK(12, 40, 3)
    x = torch.randn(2, 5, 12)
    dense, values, indices, post = dictionary.encode(x, return_topk=True)
    assert (dense.shape, values.shape, indices.shape, post.shape) == ((2, 5, 40), (2, 5, 3), (2, 5, 3), (2, 5, 40))
    torch.testing.assert_close(dense.gather(-1, indices), values)
    torch.testing.assert_close(post.gather(-1, indices), values)


def test_threshold_is_used_only_once_learnt():
    dictionary = AutoEncoderTopK(12, 40, 3)
    x = torch.randn(5, 12)
    with pytest.raises(ConfigError, match="no learnt threshold"):
        dictionary.encode(x, use_threshold=True)
    dictionary.threshold.fill_(0.5)
    pre = dictionary.pre_activations(x)
    torch.testing.assert_close(dictionary.encode(x, use_threshold=True), pre * (pre > 0.5))


class TestBatchTopK:
    def test_keeps_the_largest_of_all_tokens_by_brute_force(self):
        dictionary = BatchTopKSAE(12, 40, 3)
        x = torch.randn(2, 5, 12) * torch.logspace(-1, 1, 5).unsqueeze(1)
        latents = dictionary.encode(x, use_threshold=False)
        pre = dictionary.pre_activations(x).relu()
        cut = pre.flatten().sort(descending=True).values[3 * 10 - 1]
        torch.testing.assert_close(latents, pre * (pre >= cut))
        counts = (latents > 0).sum(-1)
        assert counts.sum() == 30 and counts.max() > 3 > counts.min()  # tokens that need more get more

    def test_without_a_threshold_nothing_is_encoded_silently(self):
        with pytest.raises(ConfigError, match="no learnt threshold"):
            BatchTopKSAE(12, 40, 3).encode(torch.randn(5, 12))

    def test_latents_above_the_threshold_do_not_depend_on_the_batch(self):
        dictionary = BatchTopKSAE(12, 40, 3)
        dictionary.threshold.fill_(0.5)
        x = torch.randn(20, 12)
        torch.testing.assert_close(dictionary.encode(x)[:1], dictionary.encode(x[:1]))

    def test_return_active_gives_the_known_three(self):
        dictionary = BatchTopKSAE(12, 40, 1)
        x = torch.randn(2, 5, 12)
        dense, active, post = dictionary.encode(x, return_active=True, use_threshold=False)
        assert (dense.shape, active.shape, post.shape) == ((2, 5, 40), (40,), (2, 5, 40))
        assert torch.equal(active, (dense.view(10, 40) > 0).any(0)) and 0 < active.sum() < 40
        one, active, _ = dictionary.encode(x[0, 0], return_active=True, use_threshold=False)
        assert torch.equal(active, one > 0)


def test_threshold_stays_float32():
    dictionary = AutoEncoderTopK(12, 40, 3)
    dictionary.threshold.fill_(0.1)
    dictionary.to(torch.bfloat16)
    assert dictionary.dtype == torch.bfloat16
    assert dictionary.threshold.dtype == torch.float32
    assert float(dictionary.threshold) == pytest.approx(0.1, abs=1e-8)


def test_relative_norms_say_where_a_latent_writes():
    built = Crosscoder([4, 4], 3, {"name": "relu"})
    with torch.no_grad():
        built.W_dec.copy_(
            torch.tensor([[2.0, 0, 0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 1, 0, 0, 0], [0, 0, 0, 0.5, 0, 2, 0, 0]])
        )
    torch.testing.assert_close(built.relative_norms(), torch.tensor([0.0, 0.5, 0.875]))
    torch.testing.assert_close(built.relative_norms(1, 0), torch.tensor([1.0, 0.5, 0.125]))


def test_views_have_the_orientation_of_linear_layers():
    dictionary = AutoEncoderTopK(12, 40, 3)
    assert dictionary.encoder.weight.shape == (40, 12)
    assert dictionary.decoder.weight.shape == (12, 40)
    assert dictionary.decoder.weight.data_ptr() == dictionary.W_dec.data_ptr()


def test_initial_encoder_is_the_decoders_transpose_with_unit_rows():
    dictionary = AutoEncoderTopK(12, 40, 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(dictionary.W_enc, dictionary.W_dec)
    torch.testing.assert_close(dictionary.W_dec.norm(dim=1), torch.ones(40))
    again = AutoEncoderTopK(12, 40, 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(again.W_dec, dictionary.W_dec)


def test_bad_shapes_are_refused():
    with pytest.raises(ConfigError, match="cannot keep k=50 of dict_size=40"):
        AutoEncoderTopK(12, 40, 50)
    with pytest.raises(ConfigError, match="k must be at least 1"):
        AutoEncoderTopK(12, 40, 0)
    with pytest.raises(ConfigError, match="dict_size=0"):
        AutoEncoder(12, 0)
    with pytest.raises(ConfigError, match="width 11; this dictionary takes width 12"):
        AutoEncoder(12, 40).encode(torch.randn(2, 11))


@pytest.mark.parametrize("name", list(NONLINEARITIES))
def test_nonlinearity_is_built_again_from_its_options(name):
    own = {
        "relu": {},
        "identity": {},
        "tanh_relu": {},
        "gated": {},
        "jump_relu": {"initial_threshold": 0.2, "kernel": "gaussian", "gradient_to_input": True},
    }
    built = NONLINEARITIES[name](**own.get(name, {"k": 3}))
    again = NONLINEARITIES[name](**built.options())
    for nonlinearity in (built, again):
        nonlinearity.setup(9)
        for buffer in nonlinearity.buffers():
            buffer.fill_(0.2)
    assert again.options() == built.options()
    if not built.is_tied:  # which sees activations, not pre-activations
        pre = torch.randn(5, 9)
        assert torch.equal(built(pre), again(pre))


@pytest.mark.parametrize("name", ["top_k", "batch_top_k", "group_max", "abs_top_k", "matching_pursuit"])
def test_latents_that_are_compared_have_no_scale_for_each(name):
    with pytest.raises(ConfigError, match="compares latents with each other"):
        NONLINEARITIES[name](3).scale_latents_(torch.ones(9))


@pytest.mark.parametrize("name", ["relu", "gated", "jump_relu"])
def test_pointwise_nonlinearities_commute_with_a_scale_for_each_latent(name):
    nonlinearity = NONLINEARITIES[name]()
    nonlinearity.setup(9)
    with torch.no_grad():
        for p in nonlinearity.parameters():
            p.add_(torch.rand_like(p))
    pre, factors = torch.randn(50, 9), 0.1 + 3 * torch.rand(9)
    expected = nonlinearity(pre) * factors
    nonlinearity.scale_latents_(factors)
    torch.testing.assert_close(nonlinearity(pre * factors), expected)


@pytest.mark.parametrize("name", ["relu", "gated", "top_k", "group_max"])
def test_start_is_as_if_the_center_were_subtracted(name):
    options = {} if name in ("relu", "gated") else {"k": 3}
    built = Transcoder(12, 40, {"name": name, **options})
    x = torch.randn(60, 12) + 4
    centered = built.encode(x - x.mean(0))
    built.initialize_from_data(x, x, InitConfig("mean", scale_encoder=False))
    torch.testing.assert_close(built.encode(x), centered)
    torch.testing.assert_close(built.b_dec.detach(), x.mean(0))
    built.initialize_from_data(x, x, InitConfig("mean"))
    x_hat, latents = built(x, output_features=True)
    scale = (latents[centered > 0] / centered[centered > 0]).mean()
    torch.testing.assert_close(latents, centered * scale)
    errors = [(x - built.b_dec - s * (x_hat - built.b_dec)).pow(2).sum() for s in (1.0, 0.99, 1.01)]
    assert errors[0] == min(errors)


class TestGeometricMedian:
    def test_is_the_point_of_least_distance(self):
        points = torch.randn(200, 3) + torch.tensor([1.0, 2.0, 3.0])
        points[:20] += 100  # the mean is far off
        median = geometric_median(points)

        def total(y: torch.Tensor) -> torch.Tensor:
            return (points - y).norm(dim=-1).sum()

        for direction in torch.eye(3):
            for step in (-0.05, 0.05):
                assert total(median) <= total(median + step * direction) + 1e-4

    def test_is_finite_on_a_point(self):
        # the median is one of the points, and the first guess, the mean, is that point
        points = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        torch.testing.assert_close(geometric_median(points), torch.zeros(2), atol=1e-4, rtol=0)
        torch.testing.assert_close(geometric_median(torch.ones(4, 2)), torch.ones(2))

    def test_keeps_the_dtype(self):
        assert geometric_median(torch.randn(9, 2).bfloat16()).dtype == torch.bfloat16


class TestDamagedFiles:
    @pytest.fixture
    def folder(self, tmp_path):
        return save_dictionary(AutoEncoderTopK(12, 40, 3), tmp_path / "d")

    def refused(self, folder, said):
        with pytest.raises(CheckpointError, match=said):
            load_dictionary(folder)

    def test_missing_folder(self, folder):
        self.refused(folder.parent / "e", "There is no folder")

    def test_missing_config(self, folder):
        (folder / "config.json").unlink()
        self.refused(folder, "It holds: dictionary.safetensors")

    def test_missing_weights(self, folder):
        (folder / "dictionary.safetensors").unlink()
        self.refused(folder, "no dictionary.safetensors")

    def test_truncated_weights(self, folder):
        path = folder / "dictionary.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
        self.refused(folder, "may be cut off")

    def test_no_json(self, folder):
        (folder / "config.json").write_text("{")
        self.refused(folder, "is not JSON")

    def test_files_of_different_saves(self, folder):
        config = json.loads((folder / "config.json").read_text())
        config["dictionary"]["k"] = 5
        (folder / "config.json").write_text(json.dumps(config))
        self.refused(folder, "different saves")

    def test_values_that_are_not_finite(self, folder):
        path = folder / "dictionary.safetensors"
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
            metadata = file.metadata()
        tensors["W_dec"][3, 3] = torch.nan
        save_file(tensors, path, metadata)
        self.refused(folder, "not finite in W_dec")

    def test_another_class(self, folder):
        with pytest.raises(CheckpointError, match="holds a AutoEncoderTopK, not a IdentityDict"):
            IdentityDict.from_pretrained(folder)

    def test_failed_write_leaves_the_old_file(self, folder, monkeypatch):
        before = (folder / "dictionary.safetensors").read_bytes()

        def fail(*_):
            raise OSError("disk full")

        monkeypatch.setattr("dictionary_learning.dictionaries._serialization.save_file", fail)
        with pytest.raises(CheckpointError, match="disk full"):
            save_dictionary(AutoEncoderTopK(12, 40, 3), folder)
        assert (folder / "dictionary.safetensors").read_bytes() == before
        assert sorted(p.name for p in folder.iterdir()) == ["config.json", "dictionary.safetensors"]
