"""Dictionaries of contexts are trained on contexts, and measured on them."""

import pytest
import torch

from dictionary_learning import evaluate, load_dictionary, trainSAE
from dictionary_learning.activations._filters import TokenFilter
from dictionary_learning.buffer import ActivationBuffer
from dictionary_learning.contexts import ContextStream
from dictionary_learning.errors import ConfigError
from dictionary_learning.evaluation import Candidate, EvaluationConfig, evaluate_dictionaries
from dictionary_learning.experimental.temporal import TemporalAutoencoder, TemporalTrainer, lubana_2025
from dictionary_learning.models import TracedModel
from dictionary_learning.sites import Site
from dictionary_learning.trainers import TopKTrainer
from tests import tiny
from tests.interop import golden

SITE = Site("model.layers.1")
CONFIG = {"trainer": "temporal", "k": 4, "dict_size": 64, "lr": 3e-3}


def model() -> TracedModel:
    return TracedModel(tiny.model(), tiny.tokenizer())


def stream(**options) -> ContextStream:
    return ContextStream(
        tiny.documents(200), model(), SITE.path, ctx_len=16, batch_size=8, **{"predict": False, **options}
    )


def moving(n: int, ctx: int = 12, dim: int = 32) -> torch.Tensor:
    """Returns contexts of which each token is most of the one before, and something new."""
    new = tiny.Planted(dim).batch(n * ctx).view(n, ctx, dim)
    tokens = [new[:, 0]]
    for t in range(1, ctx):
        tokens.append(0.8 * tokens[-1] + 0.6 * new[:, t])
    return torch.stack(tokens, dim=1)


def test_attention_learns_what_the_tokens_before_tell():
    x, held_out = moving(320).split([256, 64])
    errors = {}
    for n_layers in (0, 1):
        t = TemporalTrainer(activation_dim=32, dict_size=128, k=2, n_layers=n_layers, steps=200, lr=5e-3, device="cpu")
        for _ in range(200):
            t.update(t.step, x.flatten(0, 1), lengths=torch.full((256,), 12))
        y = held_out.flatten(0, 1)
        made = t.export().requires_grad_(False).reconstruct_contexts(y, torch.full((64,), 12)).outputs
        errors[n_layers] = float((made - y).square().sum() / (y - y.mean(0)).square().sum())
    assert errors[1] < 0.8 * errors[0] < 0.8


def test_contexts_of_a_model_are_learnt_from_and_saved(tmp_path):
    (dictionary,) = trainSAE(stream(), CONFIG, 8, save_dir=tmp_path, progress=False)
    loaded = load_dictionary(tmp_path / "trainer_0")
    config = loaded.info.config
    assert isinstance(loaded, TemporalAutoencoder) and config["site"] == str(SITE)
    x = torch.randn(2, 5, tiny.DIM)
    assert torch.equal(loaded(x), dictionary(x))
    (further,) = trainSAE(stream(), {**CONFIG, "finetune": str(tmp_path / "trainer_0"), "lr": 1e-12}, 1, progress=False)
    torch.testing.assert_close(further(x), dictionary(x), rtol=1e-3, atol=1e-3)


def test_the_papers_recipe_trains():
    (dictionary,) = trainSAE(stream(), lubana_2025(k=4), 2, progress=False)
    assert dictionary.dict_size == 4 * tiny.DIM and dictionary.bottleneck_factor == 1


def test_normalized_activations_are_undone():
    (dictionary,) = trainSAE(stream(), {**CONFIG, "normalize": "unit_mean_square"}, 4, progress=False)
    batch = next(stream())
    t = trainSAE(stream(), {**CONFIG, "normalize": "none", "finetune": dictionary, "lr": 1e-12}, 1, progress=False)[0]
    torch.testing.assert_close(t(batch[SITE]), dictionary(batch[SITE]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["saelens/temporal", "saelens/temporal_untied_relu", "third_party/temporal"])
def test_loaded_ones_are_trained_further(name):
    dictionary = load_dictionary(golden.folder(name))
    k = {"k": None, "sparsity_penalty": 0.1} if dictionary.k is None else {"k": dictionary.k}
    t = TemporalTrainer(
        activation_dim=dictionary.activation_dim, steps=5, lr=1e-4, finetune=str(golden.folder(name)), device="cpu", **k
    )
    x = torch.randn(20, dictionary.activation_dim)
    before = dictionary.reconstruct(x).outputs
    t.initialize(x)
    torch.testing.assert_close(t.dictionary.reconstruct(x).outputs, before)
    assert t.config["n_heads"] == dictionary.n_heads and t.config["tied"] == dictionary.tied
    first = t.update(0, x)
    for _ in range(4):
        last = t.update(0, x)
    assert last < first


def test_penalty_holds_a_rectifier_back():
    l0 = {}
    for penalty in (1e-4, 4.0):
        config = {"k": None, "sparsity_penalty": penalty, "dict_size": 128, "steps": 60, "lr": 1e-2}
        t = TemporalTrainer(activation_dim=32, device="cpu", **config)
        for x in tiny.Planted(32).batches(60, 64):
            t.update(t.step, x)
        l0[penalty] = t.metrics()["l0"]
        assert {"l2_loss", "sparsity_loss"} <= set(t.metrics())
    assert l0[4.0] < 0.7 * l0[1e-4]


class TestRefused:
    def test_shuffled_tokens(self):
        sizes = {"n_ctxs": 16, "ctx_len": 16, "refresh_batch_size": 4, "out_batch_size": 20}
        held = ActivationBuffer(tiny.documents(50), model(), SITE.path, **sizes)
        with pytest.raises(ConfigError, match="ContextStream"):
            trainSAE(held, CONFIG, 1, progress=False)
        with pytest.raises(ConfigError, match="shuffled tokens"):
            evaluate(TemporalAutoencoder(tiny.DIM, 64, 4, n_heads=1, bottleneck_factor=1), held)

    def test_settings(self):
        common = {"activation_dim": 32, "steps": 1, "device": "cpu"}
        rectified = TemporalAutoencoder(32, 64, None, n_heads=1, bottleneck_factor=1)
        with pytest.raises(ConfigError, match="sparsity_penalty"):
            TemporalTrainer(finetune=rectified, **common)
        with pytest.raises(ConfigError, match="micro_acc_steps=2"):
            TemporalTrainer(micro_acc_steps=2, **common)
        with pytest.raises(ConfigError, match="TemporalAutoencoder"):
            TopKTrainer(k=4, finetune=TemporalAutoencoder(32, 64, 4, n_heads=1, bottleneck_factor=1), **common)
        with pytest.raises(ConfigError, match="AutoEncoderTopK"):
            dictionary = TopKTrainer(k=4, dict_size=64, **common).dictionary
            TemporalTrainer(finetune=dictionary, **common)

    def test_what_the_model_loses_where_it_did_not_predict(self):
        batch = next(stream())
        with pytest.raises(ConfigError, match="predict=True"):
            batch.model_loss_fn({SITE: batch[SITE]})


def test_activations_are_the_same_whether_the_model_predicts_or_not():
    with_, without = next(stream(predict=True)), next(stream())
    assert torch.equal(with_[SITE], without[SITE]) and torch.equal(with_.lengths, without.lengths)
    assert len(without[SITE]) == without.lengths.sum()


def test_evaluation_is_of_each_context_by_itself():
    (dictionary,) = trainSAE(stream(), CONFIG, 4, progress=False)
    report = evaluate_dictionaries(
        model(),
        [Candidate("temporal", dictionary, SITE)],
        tiny.documents(40),
        EvaluationConfig(n_tokens=400, n_fidelity_tokens=128, ctx_len=16, batch_size=4),
        token_filter=TokenFilter(exclude_first=True),
    )
    batches = ContextStream(tiny.documents(40), model(), SITE.path, ctx_len=16, batch_size=4, predict=False)
    batches.filter = TokenFilter(exclude_first=True)
    rows = [x for batch, _ in zip(batches, range(7), strict=False) for x in batch[SITE].split(batch.lengths.tolist())]
    outputs = torch.cat([dictionary.reconstruct(x.float()).outputs for x in rows])
    x = torch.cat(rows).float()
    fvu = (outputs - x).square().sum() / (x - x.mean(0)).square().sum()
    assert report["dictionaries"][0]["metrics"]["fvu"] == pytest.approx(float(fvu), rel=1e-4)
