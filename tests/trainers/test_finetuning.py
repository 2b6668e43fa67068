"""Trained dictionaries as the beginning of a run: of any wiring, at their own sites."""

import pytest
import torch

from dictionary_learning import load_dictionary, save_dictionary, trainSAE
from dictionary_learning.dictionaries import (
    AutoEncoder,
    AutoEncoderTopK,
    BatchTopKSAE,
    Crosscoder,
    CrossLayerTranscoder,
    HeadAutoencoders,
    JumpReluAutoEncoder,
    MatryoshkaBatchTopKSAE,
    Normalized,
    SkipAutoencoder,
    Transcoder,
)
from dictionary_learning.errors import ConfigError
from dictionary_learning.experimental.temporal import TemporalAutoencoder, TemporalTrainer
from dictionary_learning.sites import Site
from dictionary_learning.trainers import TRAINERS, TopKTrainer
from tests.contracts.test_wirings import DIM, HEADS, OUT, batches
from tests.interop import golden
from tests.tiny import Planted

TOP_K = {"name": "top_k", "k": 2}
PAIRS = ["m.0:in", "m.0:out"]


@torch.no_grad()
def fvu(dictionary, x: torch.Tensor) -> float:
    return float((dictionary(x) - x).pow(2).sum() / (x - x.mean(0)).pow(2).sum())


def further(data, dictionary, steps=1, save_dir=None, **options):
    """Returns the dictionaries after so many steps; of one step at no rate, in what they were given as."""
    rate = {} if steps > 1 else {"lr": 1e-12, "unit_norm_decoder": False}
    config = {"trainer": "top_k", "k": 2, "finetune": dictionary, "normalize": "none", **rate, **options}
    return trainSAE(data, config, steps, progress=False, save_dir=save_dir)


class TestAutoencoder:
    def trained(self, tmp_path, **options):
        data = list(Planted().batches(150, 128))
        config = {"trainer": "top_k", "k": 4, "dict_size": 64, **options}
        (dictionary,) = trainSAE(data, config, 150, save_dir=tmp_path, progress=False)
        return dictionary, tmp_path / "trainer_0"

    def test_goes_on_where_the_dictionary_was(self, tmp_path):
        dictionary, folder = self.trained(tmp_path)
        t = TopKTrainer(activation_dim=32, steps=10, k=4, finetune=str(folder), device="cpu")
        x = Planted(seed=3).batch(512)
        t.initialize(x)
        assert t.dict_size == 64 and t.dictionary.W_dec.requires_grad
        torch.testing.assert_close(t.dictionary(x), dictionary(x))
        assert t.config["finetune"] == str(folder)
        held = TopKTrainer(activation_dim=32, steps=10, k=4, finetune=dictionary, device="cpu")
        assert held.config["finetune"] == "AutoEncoderTopK"

    def test_widens_and_changes_the_nonlinearity(self, tmp_path):
        _, folder = self.trained(tmp_path)
        *data, x = Planted().batches(21, 128)
        (wider,) = trainSAE(
            data, {"trainer": "top_k", "k": 4, "dict_size": 96, "finetune": str(folder)}, 20, progress=False
        )
        assert wider.dict_size == 96
        config = {"trainer": "jump_relu", "target_l0": 4.0, "bandwidth": 0.1, "lr": 1e-3, "finetune": str(folder)}
        (jump,) = trainSAE(data, config, 20, progress=False, save_dir=tmp_path / "jump")
        fresh = AutoEncoder(32, 64)
        assert max(fvu(wider, x), fvu(jump, x)) < 0.5 * fvu(fresh, x)
        assert 1 < (jump.encode(x) > 0).sum(-1).float().mean() < 12
        loaded = load_dictionary(tmp_path / "jump" / "trainer_0")
        assert torch.equal(loaded(x), jump(x))

    @pytest.mark.parametrize("normalize", ["unit_mean_square", "none"])
    def test_keeps_the_scale_of_the_activations(self, tmp_path, normalize):
        dictionary, folder = self.trained(tmp_path)
        config = {"trainer": "top_k", "k": 4, "finetune": str(folder), "normalize": normalize, "lr": 1e-9}
        (same,) = trainSAE(list(Planted().batches(2, 64)), config, 2, progress=False)
        x = Planted(seed=3).batch(256)
        torch.testing.assert_close(same(x), dictionary(x), rtol=1e-3, atol=1e-3)

    def test_other_widths_and_normalizations_are_refused(self, tmp_path):
        _, folder = self.trained(tmp_path)
        with pytest.raises(ConfigError, match="width 32; the site has width 16"):
            trainSAE([torch.randn(64, 16)], {"trainer": "top_k", "k": 4, "finetune": str(folder)}, 1, progress=False)
        config = {"trainer": "top_k", "k": 4, "finetune": str(folder), "normalize": "layer_norm"}
        with pytest.raises(ConfigError, match="layer_norm: its weights"):
            trainSAE(list(Planted().batches(2, 64)), config, 1, progress=False)


class TestWiring:
    @pytest.mark.parametrize("normalize", ["none", "unit_mean_square"])
    @pytest.mark.parametrize("wiring", ["heads", "cross_layer_transcoder", "crosscoder", "skip_transcoder"])
    def test_every_wiring_goes_on_where_it_was_and_is_found(self, wiring, normalize, tmp_path):
        data, heads = batches(wiring, 31), {"n_heads": HEADS} if wiring == "heads" else {}
        trainSAE(
            data[:15],
            {"trainer": "top_k", "k": 2, "dict_size": 96, "wiring": wiring, **heads},
            15,
            save_dir=tmp_path / "first",
            progress=False,
        )
        folder = tmp_path / "first" / "trainer_0"
        before = load_dictionary(folder)
        config = before.info.config
        (same,) = further(data, str(folder), normalize=normalize)
        reads = [config["site"]] if isinstance(config["site"], str) else config["site"]
        x = torch.cat([data[-1][Site.parse(site)] for site in reads], dim=1)
        torch.testing.assert_close(same(x), before(x), rtol=1e-4, atol=1e-4)
        (wider,) = further(data, str(folder), 5, tmp_path / "wider", dict_size=192)
        assert type(wider) is type(before) and wider.dict_size == 192
        saved = load_dictionary(tmp_path / "wider" / "trainer_0").info.config
        assert saved["trainer"]["wiring"] == wiring and saved["trainer"]["finetune"] == str(folder)
        (typed,) = trainSAE(data, TopKTrainer.Config(k=2, finetune=str(folder)), 1, progress=False)
        assert type(typed) is type(before)

    def test_sites_that_are_scaled_around_a_dictionary_stay_scaled(self):
        data = batches("crosscoder", 11)
        pursuit = {"trainer": "matching_pursuit", "k": 2, "wiring": "crosscoder"}
        (dictionary,) = trainSAE(data[:10], {**pursuit, "dict_size": 96}, 10, progress=False)
        assert isinstance(dictionary, Normalized) and len(set(dictionary.scales)) == 3
        config = {**pursuit, "finetune": dictionary, "lr": 1e-12}
        (same,) = trainSAE(data, config, 1, progress=False)
        x = torch.cat(list(data[-1].values()), dim=1)
        assert isinstance(same, Normalized) and same.scales == dictionary.scales
        torch.testing.assert_close(same(x), dictionary(x), rtol=1e-4, atol=1e-4)

    def test_transcoder_is_not_taken_for_an_autoencoder(self):
        data = batches("transcoder", 2)
        (same,) = further(data, Transcoder(DIM, 64, TOP_K, output_dim=OUT))
        assert isinstance(same, Transcoder) and same.output_dim == OUT
        with pytest.raises(ConfigError, match="predicts one site from another"):
            further([next(iter(data[0].values()))], Transcoder(DIM, 64, TOP_K))

    def test_dictionary_with_an_affine_part_serves_both_kinds_of_sites(self):
        x = Planted(DIM).batch(64)
        assert isinstance(further([x], SkipAutoencoder(DIM, 64, TOP_K))[0], SkipAutoencoder)
        pair = {"m.0:in": x, "m.0:out": x.roll(1, dims=1)}
        (made,) = further([pair], SkipAutoencoder(DIM, 64, TOP_K), wiring="transcoder")
        assert isinstance(made, SkipAutoencoder)

    def test_trainer_alone_takes_the_widths_from_the_dictionary(self):
        transcoder = Transcoder(DIM, 64, TOP_K, output_dim=OUT)
        t = TopKTrainer(activation_dim=DIM, steps=1, finetune=transcoder, device="cpu")
        x = Planted(DIM).batch(64)
        t.update(0, x, x[:, :OUT])
        assert t.dictionary.output_dim == OUT and t.config["output_dims"] == [OUT]

    def test_sites_of_other_widths_in_all_alike_are_refused(self):
        x = Planted(DIM).batch(64)
        with pytest.raises(ConfigError, match="of width 12, 20; the site has width 20, 12"):
            further([{"m.0": x[:, :20], "m.1": x[:, 20:]}], Crosscoder([12, 20], 64, TOP_K))

    def test_other_wirings_and_sizes_are_refused(self):
        data = batches("cross_layer_transcoder", 1)
        coder = CrossLayerTranscoder([DIM, DIM], 96, TOP_K, output_dims=[OUT, OUT])
        with pytest.raises(ConfigError, match="CrossLayerTranscoder with wiring='transcoder'"):
            further(data, coder, wiring="transcoder", site="m.0:in", target_site="m.0:out")
        with pytest.raises(ConfigError, match="equal parts"):
            further(data, coder, dict_size=131)
        with pytest.raises(ConfigError, match="predicts other|reads activations of width|width"):
            further(data, CrossLayerTranscoder([DIM, DIM], 96, TOP_K, output_dims=[OUT, OUT + 1]))
        heads = HeadAutoencoders(DIM, 96, TOP_K, n_heads=HEADS)
        with pytest.raises(ConfigError, match="HeadAutoencoders"):
            further([Planted(DIM).batch(64)], heads, wiring="autoencoder")


class TestSettings:
    """What is not said is the dictionary's own."""

    def test_number_of_latents(self):
        x = Planted(32).batch(64)
        config = {"trainer": "top_k", "finetune": AutoEncoderTopK(32, 64, 5)}
        assert trainSAE([x], config, 1, progress=False)[0].k == 5
        assert trainSAE([x], {**config, "k": 7}, 1, progress=False)[0].k == 7
        assert trainSAE([x], {"trainer": "top_k", "finetune": AutoEncoder(32, 64)}, 1, progress=False)[0].k == 32
        t = TemporalTrainer(
            activation_dim=32,
            steps=1,
            finetune=TemporalAutoencoder(32, 64, 6, n_heads=1, bottleneck_factor=1),
            device="cpu",
        )
        assert t.dictionary.k == t.config["k"] == 6

    def test_groups(self):
        x, config = Planted(32).batch(64), {"trainer": "matryoshka_batch_top_k", "normalize": "none", "lr": 1e-12}
        grouped = MatryoshkaBatchTopKSAE(32, 70, 4, [7, 21, 42])
        t = TRAINERS["matryoshka_batch_top_k"](activation_dim=32, steps=1, finetune=grouped, device="cpu")
        assert t.settings.group_sizes == [7, 21, 42] and t.settings.k == 4
        assert len(t.loss(x).terms) == 3
        (wider,) = trainSAE([x], {**config, "finetune": grouped, "dict_size": 140}, 1, progress=False)
        assert wider.group_sizes == (7, 21, 112)
        (other,) = trainSAE([x], {**config, "finetune": grouped, "group_fractions": (0.5, 0.5)}, 1, progress=False)
        assert other.group_sizes == (35, 35)
        plain = BatchTopKSAE(32, 64, 4)
        (made,) = trainSAE([x], {**config, "finetune": plain}, 1, progress=False)
        assert isinstance(made, MatryoshkaBatchTopKSAE) and made.group_sizes == (2, 4, 8, 16, 34)
        torch.testing.assert_close(made.W_dec, plain.W_dec)


class TestNorms:
    """Rows of a loaded dictionary may have any norm, and training keeps rows at unit norm: the first step must not change what it does."""

    def unequal(self, dictionary):
        with torch.no_grad():
            norms = torch.linspace(0.5, 2, dictionary.dict_size).unsqueeze(1)
            dictionary.W_dec.mul_(norms)
            dictionary.W_enc.add_(0.3 * torch.randn_like(dictionary.W_enc))
        return dictionary

    def test_what_has_thresholds_is_folded(self):
        x = Planted(32).batch(64)
        dictionary = self.unequal(JumpReluAutoEncoder(32, 64))
        dictionary.nonlinearity.threshold.data.uniform_(0, 0.3)
        config = {"trainer": "jump_relu", "target_l0": 4.0, "finetune": dictionary, "normalize": "none", "lr": 1e-12}
        (same,) = trainSAE([x], config, 1, progress=False)
        torch.testing.assert_close(same.W_dec.norm(dim=1), torch.ones(64))
        torch.testing.assert_close(same(x), dictionary(x), rtol=1e-4, atol=1e-4)

    def test_what_is_compared_by_value_keeps_its_rows(self):
        x = Planted(32).batch(64)
        dictionary = self.unequal(AutoEncoderTopK(32, 64, 4))
        (same,) = trainSAE(
            [x],
            {"trainer": "top_k", "k": 4, "finetune": dictionary, "normalize": "none", "lr": 1e-12},
            1,
            progress=False,
        )
        torch.testing.assert_close(same(x), dictionary(x), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(same.W_dec.norm(dim=1), dictionary.W_dec.norm(dim=1))
        with pytest.raises(ConfigError, match="rows have norms"):
            further([x], dictionary, k=4, unit_norm_decoder=True)

    def test_another_nonlinearity_compares_latents_by_what_they_write(self):
        x, dictionary = Planted(32).batch(64), self.unequal(AutoEncoder(32, 64))
        before = dictionary.encode(x) * dictionary.W_dec.norm(dim=1)
        config = {"trainer": "top_k", "k": 4, "finetune": dictionary, "normalize": "none", "lr": 1e-12}
        (made,) = trainSAE([x], config, 1, progress=False)
        kept = before * (before >= before.topk(4, dim=1).values[:, -1:])
        torch.testing.assert_close(made.encode(x), kept, rtol=1e-4, atol=1e-4)


class TestSites:
    def test_a_dictionary_goes_on_at_its_own_site(self, tmp_path):
        data = [{"m.0": x, "m.1": x.flip(1)} for x in Planted(16).batches(4, 64)]
        trainSAE(
            data, {"trainer": "top_k", "k": 2, "dict_size": 64, "site": "m.1"}, 3, save_dir=tmp_path, progress=False
        )
        (made,) = further(data, str(tmp_path / "trainer_0"), save_dir=tmp_path / "second")
        assert load_dictionary(tmp_path / "second" / "trainer_0").info.config["site"] == "m.1:out"
        assert made.dict_size == 64

    def test_data_of_another_site_is_warned_of(self, tmp_path, caplog):
        save_dictionary(AutoEncoderTopK(16, 32, 2), tmp_path, {"site": "m.4:out"})
        further([{"m.0": Planted(16).batch(64)}], str(tmp_path))
        assert "was trained at m.4:out; the data has m.0:out" in caplog.text

    def test_all_dictionaries_of_a_run_go_on(self, tmp_path):
        data = [{"m.0": x, "m.1": x.flip(1)} for x in Planted(16).batches(4, 64)]
        first = trainSAE(data, {"trainer": "top_k", "k": 2, "dict_size": 64}, 3, save_dir=tmp_path, progress=False)
        second = further(data, str(tmp_path), save_dir=tmp_path / "second")
        x = data[0]["m.0"]
        assert len(second) == 2
        for n, (a, b) in enumerate(zip(first, second, strict=True)):
            torch.testing.assert_close(a(x), b(x), rtol=1e-4, atol=1e-4)
            assert load_dictionary(tmp_path / "second" / f"trainer_{n}").info.config["site"] == f"m.{n}:out"

    def test_folders_named_by_hookpoint_find_the_sites_of_the_model(self):
        x = Planted(16).batch(64)
        data = [{f"model.layers.{n}": x for n in (0, 2, 3)}]
        made = further(data, str(golden.folder("sparsify/multi_hookpoint")), k=4)
        expected = [load_dictionary(golden.folder("sparsify/multi_hookpoint"), site=f"layers.{n}") for n in (0, 2)]
        assert len(made) == 2
        for a, b in zip(made, expected, strict=True):
            torch.testing.assert_close(a(x), b(x), rtol=1e-3, atol=1e-3)
        (one,) = further(data, str(golden.folder("sparsify/multi_hookpoint")), k=4, site="model.layers.2:out")
        torch.testing.assert_close(one(x), expected[1](x), rtol=1e-3, atol=1e-3)
        with pytest.raises(ConfigError, match="3 dictionaries"):
            further([{"model.layers.5": x}], str(golden.folder("sparsify/multi_hookpoint")), k=4)

    def test_dictionaries_may_be_given_by_site(self):
        data = [{"m.0": x, "m.1": x.flip(1)} for x in Planted(16).batches(1, 64)]
        given = {"m.1:out": AutoEncoderTopK(16, 64, 2), "m.0:out": AutoEncoderTopK(16, 32, 2)}
        assert [d.dict_size for d in further(data, given)] == [64, 32]

    def test_several_of_one_place_are_all_trained(self, tmp_path):
        for n, size in enumerate((32, 64)):
            save_dictionary(AutoEncoderTopK(16, size, 2), tmp_path / f"trainer_{n}", {"site": "m.0:out"})
        assert [d.dict_size for d in further([{"m.0": Planted(16).batch(64)}], str(tmp_path))] == [32, 64]
