"""Training by what the model loses."""

import pytest
import torch

from dictionary_learning import trainSAE
from dictionary_learning.contexts import ContextStream, Predictions
from dictionary_learning.errors import ConfigError, DataError, DataExhaustedError
from dictionary_learning.evaluation._fidelity import FidelityMetric
from dictionary_learning.interventions import graft
from dictionary_learning.models import TracedModel
from dictionary_learning.sites import Site
from dictionary_learning.trainers import TRAINERS
from tests.tiny import documents, model, tokenizer

SITE = Site("model.layers.1")


def stream(submodule="model.layers.1", **options) -> ContextStream:
    traced = TracedModel(model(), tokenizer())
    return ContextStream(documents(120), traced, submodule, ctx_len=16, batch_size=4, **options)


def trainer(name: str = "end_to_end", **options):
    return TRAINERS[name](activation_dim=16, dict_size=48, steps=60, device="cpu", **options)


def test_losses_are_those_that_evaluation_measures():
    batches = stream()
    batch, dictionary = next(batches), trainer(k=3).dictionary
    got = batch.model_loss_fn({SITE: dictionary(batch[SITE])})
    predictions = Predictions(batches.model.run(*batch.tokens), batch.tokens, batch.keep)
    metric = FidelityMetric()
    with torch.no_grad():
        metric.update(predictions, batches.model.run(*batch.tokens, {SITE: graft(dictionary, batch.keep)}))
    assert got["ce"].item() == pytest.approx(metric.ce, rel=1e-5)
    assert got["kl"].item() == pytest.approx(metric.kl, rel=1e-5)


def test_untouched_activations_lose_nothing():
    batch = next(stream())
    assert batch.model_loss_fn({SITE: batch[SITE]})["kl"].abs() < 1e-6


def test_gradients_are_those_of_finite_differences_and_reach_the_dictionary_alone():
    batches = stream()
    batch = next(batches)
    t = trainer(k=3)
    t.initialize(batch[SITE])

    def loss() -> torch.Tensor:
        latents, _ = t.dictionary.encode_latents(batch[SITE])
        return batch.model_loss_fn({SITE: t.dictionary.decode_latents(latents, batch[SITE])})["kl"]

    loss().backward()
    assert all(p.grad is None for p in batches.model.module.parameters())
    bias = t.dictionary.b_dec
    place, step = int(bias.grad.abs().argmax()), 3e-2
    with torch.no_grad():
        direction = torch.zeros_like(bias)
        direction[place] = step
        # through the decoder alone: the encoder's own part of this bias's gradient moves with it, and top-k may switch
        up, down = (float(_moved(t, batch, sign * direction)) for sign in (1, -1))
    t.dictionary.zero_grad()
    decoded = t.dictionary.decode_latents(t.dictionary.encode_latents(batch[SITE])[0], batch[SITE]).detach()
    rows = decoded.requires_grad_(True)
    batch.model_loss_fn({SITE: rows})["kl"].backward()
    assert (up - down) / (2 * step) == pytest.approx(float(rows.grad.sum(0)[place]), rel=0.1, abs=1e-4)


def _moved(t, batch, direction) -> torch.Tensor:
    latents, _ = t.dictionary.encode_latents(batch[SITE])
    return batch.model_loss_fn({SITE: t.dictionary.decode_latents(latents, batch[SITE]) + direction})["kl"]


def test_divergence_is_lower_than_with_training_on_errors():
    """On the same contexts, for the same number of steps."""

    def repeated() -> ContextStream:
        return ContextStream(
            documents(24) * 40, TracedModel(model(), tokenizer()), "model.layers.1", ctx_len=16, batch_size=4
        )

    def divergence(loss_fn: str) -> float:
        rate = 0.083 * (0.2 if loss_fn == "kl" else 1)  # the law's at this width, without its limit
        config = {"trainer": "end_to_end", "loss_fn": loss_fn, "dict_size": 48, "k": 2, "lr": rate}
        (dictionary,) = trainSAE(repeated(), config, 200, progress=False)
        losses = [
            b.model_loss_fn({SITE: dictionary(b[SITE])})["kl"] for b, _ in zip(repeated(), range(8), strict=False)
        ]
        return float(torch.stack(losses).mean())

    assert divergence("kl") < 0.97 * divergence("reconstruction")


def test_transcoder_is_trained_end_to_end():
    data = stream("model.layers.1.mlp", io="in_and_out")
    config = {"trainer": "end_to_end", "k": 3, "dict_size": 48, "wiring": "transcoder", "loss_fn": "ce"}
    (dictionary,) = trainSAE(data, config, 3, progress=False)
    assert type(dictionary).__name__ == "Transcoder"


def test_activations_alone_are_refused():
    with pytest.raises(ConfigError, match="Train on a ContextStream"):
        trainSAE([torch.randn(64, 16)], {"trainer": "end_to_end", "k": 3}, 1, progress=False)
    with pytest.raises(ConfigError, match="micro_acc_steps"):
        trainer(micro_acc_steps=2)


def test_looking_at_a_sample_takes_nothing():
    one, two = stream(), stream()
    one.sample(100)
    for _ in range(3):
        assert torch.equal(next(one)[SITE], next(two)[SITE])


class TestEndOfData:
    def test_text_begins_again_only_where_it_is_asked_for(self):
        one = ContextStream(documents(6), TracedModel(model(), tokenizer()), "model.layers.1", ctx_len=16, batch_size=2)
        ids = [batch.tokens.input_ids for batch in one]
        two = ContextStream(
            documents(6),
            TracedModel(model(), tokenizer()),
            "model.layers.1",
            ctx_len=16,
            batch_size=2,
            end_of_data="repeat",
        )
        again = [next(two).tokens.input_ids for _ in range(2 * len(ids))]
        assert len(ids) > 1 and all(torch.equal(a, b) for a, b in zip(ids + ids, again, strict=True))

    def test_end_is_told_and_text_that_counts_for_nothing_is_refused(self):
        traced = TracedModel(model(), tokenizer())
        ended = ContextStream(documents(6), traced, "model.layers.1", ctx_len=16, batch_size=2, end_of_data="error")
        with pytest.raises(DataExhaustedError, match="has ended"):
            list(ended)
        nothing = ContextStream([""], traced, "model.layers.1", ctx_len=16, end_of_data="repeat")
        with pytest.raises(DataError, match="no token that counts"):
            next(nothing)
