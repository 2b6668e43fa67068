"""Effects of latents and errors: exact on linear models, complete elsewhere, those of ablations by hand."""

import pytest
import torch

from dictionary_learning import load_model
from dictionary_learning.attribution import Placed, attribute, log_probability, logit_difference
from dictionary_learning.dictionaries import AutoEncoderTopK
from dictionary_learning.errors import ConfigError, DataError, ModelError
from dictionary_learning.experimental.temporal import TemporalAutoencoder
from dictionary_learning.interventions import latent_edits, read_latents
from tests import tiny
from tests.attribution.cases import BUILD, LAYERS, OTHERS, TEXTS, Linear, llama, placed

METRIC = logit_difference(5, 9)
METHODS = ["gradient", "patching", "integrated", "ablation"]


@pytest.fixture(scope="module")
def model():
    return llama()


@pytest.fixture(scope="module")
def linear():
    return load_model(Linear().double(), tokenizer=tiny.tokenizer(bos=False))


@pytest.mark.parametrize("with_baseline", [True, False])
def test_every_method_is_exact_on_a_linear_model(linear, with_baseline):
    dictionaries = [placed(lambda: AutoEncoderTopK(16, 48, 6), f"layers.{n}", seed=n) for n in range(2)]
    texts, others = TEXTS[:1], OTHERS[:1]  # this model knows no padding
    baseline = others if with_baseline else None
    found = {
        method: attribute(linear, dictionaries, texts, METRIC, method=method, baseline=baseline, n_steps=3)
        for method in METHODS
        if with_baseline or method != "patching"
    }
    for site, exact in found["ablation"].effects.items():
        assert len(exact.effect) and exact.error.any()
        for attribution in found.values():
            effects = attribution.effects[site]
            torch.testing.assert_close(effects.effect, exact.effect, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(effects.error, exact.error, rtol=1e-4, atol=1e-5)
            assert effects.total == pytest.approx(effects.change, abs=1e-4)


@pytest.mark.parametrize("baseline", [None, OTHERS], ids=["zero", "others"])
@pytest.mark.parametrize("kind", BUILD)
def test_integrated_effects_and_errors_sum_to_the_change(model, kind, baseline):
    dictionary = BUILD[kind]()
    attribution = attribute(model, dictionary, TEXTS, METRIC, baseline=baseline, n_steps=24)
    ((_, effects),) = attribution.effects.items()
    assert effects.total == pytest.approx(effects.change, abs=5e-3)
    clean = float(METRIC(model.run(*attribution.tokens)))
    assert attribution.metric == pytest.approx(clean)
    if baseline and kind in ("top_k", "relu", "normalized"):  # the residual stream: all that the text does
        other = float(METRIC(model.run(*attribution.baseline)))
        assert effects.change == pytest.approx(clean - other, abs=1e-5)


def test_the_middle_of_steps_is_of_second_order(model):
    dictionary = BUILD["top_k"]()
    errors = []
    for n_steps in (8, 16, 32):
        ((_, effects),) = attribute(model, dictionary, TEXTS, METRIC, n_steps=n_steps).effects.items()
        errors.append(abs(effects.total - effects.change))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1) and errors[1] / errors[2] == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("method", ["gradient", "patching"])
@pytest.mark.parametrize("prompts", ["texts", "chats"])
def test_what_gradients_at_one_point_miss_is_warned_of(model, caplog, method, prompts):
    given, baseline = TEXTS, OTHERS
    if prompts == "chats":
        ids = [model.tokenizer(text)["input_ids"] for text in (*TEXTS, *OTHERS)]
        turn = [model.tokenizer.eos_token_id, 5, 6]  # of markers and a role, as chat templates write them
        chats = [[*turn, *one, turn[0], *turn] for one in ids]
        given, baseline = chats[: len(TEXTS)], chats[len(TEXTS) :]
    found = attribute(model, BUILD["relu"](), given, METRIC, method=method, baseline=baseline)
    ((_, effects),) = found.effects.items()
    assert abs(effects.total - effects.change) > 0.1 * abs(effects.change)
    (said,) = caplog.messages
    assert f"With method='{method}', effects at " in said and "method='integrated' follows it" in said


def test_too_few_steps_are_warned_of(model, caplog):
    for n_steps, warns in ((1, True), (32, False)):
        caplog.clear()
        ((_, effects),) = attribute(model, BUILD["relu"](), TEXTS, METRIC, n_steps=n_steps).effects.items()
        assert (abs(effects.total - effects.change) > 0.1 * abs(effects.change)) == warns
        assert [f"n_steps={n_steps}" in record.getMessage() for record in caplog.records] == [True] * warns


@pytest.mark.parametrize("kind", BUILD)
def test_gradients_are_those_of_plain_hooks(model, kind):
    """d metric / d latent by torch alone: decode(latents) + error in the site's place."""
    dictionary = BUILD[kind]()
    ((site, effects),) = attribute(model, dictionary, TEXTS[:1], METRIC, method="gradient").effects.items()
    ids = torch.tensor([tiny.tokenizer(bos=False)(TEXTS[0])["input_ids"]])
    read = model.sites(list(dictionary.info.sites))[0]
    values = model.capture(ids, None, [read, site])
    x, y = values[read][0].double(), values[site][0].double()
    latents = dictionary.encode(x).detach().requires_grad_()
    arguments = (latents, x) if kind in ("normalized", "transcoder") else (latents,)
    y_hat = dictionary.decode(*arguments)
    error = (y - y_hat).detach().requires_grad_()
    module = model._original
    place = module.get_submodule(site.path)
    put = (y_hat + error).unsqueeze(0)
    if site.side == "in":
        handle = place.register_forward_pre_hook(lambda _, args: (put, *args[1:]))
    else:
        handle = place.register_forward_hook(lambda *_: put)
    METRIC(module(ids).logits).backward()
    handle.remove()
    module.zero_grad()
    expected = (latents.grad * latents).detach()
    got = torch.zeros_like(expected).index_put((effects.position, effects.latent), effects.effect.double())
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(effects.error[0].double(), (error.grad * error).sum(-1), rtol=1e-4, atol=1e-6)
    assert len(effects.effect) == int((latents != 0).sum())  # active ones only


@pytest.mark.parametrize("kind", BUILD)
def test_ablation_is_that_of_edited_latents(model, kind):
    dictionary = BUILD[kind]()
    attribution = attribute(model, dictionary, TEXTS, METRIC, method="ablation")
    ((_, effects),) = attribution.effects.items()
    for entry in effects.top(3).tolist():
        keep = torch.zeros(2, 5, dtype=torch.bool)
        keep[effects.row[entry], effects.position[entry]] = True
        edits = latent_edits(model, dictionary, ablate=[int(effects.latent[entry])], keep=keep)
        with torch.no_grad():
            without = float(METRIC(model.run(*attribution.tokens, edits)))
        assert float(effects.effect[entry]) == pytest.approx(attribution.metric - without, abs=1e-5)


def test_several_sites_are_each_what_they_are_alone(model):
    """No dictionary blocks another's gradients, and none counts twice."""
    dictionaries = [BUILD[kind]() for kind in ("relu", "jump_relu", "top_k", "transcoder")]
    for method in METHODS:
        options = {"method": method, "baseline": OTHERS[1], "n_steps": 2, "batch_size": 64}
        together = attribute(model, dictionaries, TEXTS[1], METRIC, **options)
        for dictionary in dictionaries:
            alone = attribute(model, dictionary, TEXTS[1], METRIC, **options)
            ((site, effects),) = alone.effects.items()
            torch.testing.assert_close(together.effects[site].effect, effects.effect, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(together.effects[site].error, effects.error, rtol=1e-4, atol=1e-6)
    assert [str(site) for site in together.effects] == [
        "model.layers.0:out", "model.layers.1.mlp:out", "model.layers.1:out", "model.layers.2:in",
    ]  # fmt: skip


def test_a_batch_is_the_mean_of_its_rows(model):
    dictionary = BUILD["top_k"]()
    ((_, together),) = attribute(model, dictionary, TEXTS, METRIC).effects.items()
    for row, text in enumerate(TEXTS):
        ((_, alone),) = attribute(model, dictionary, text, METRIC).effects.items()
        own = together.row == row
        torch.testing.assert_close(2 * together.effect[own], alone.effect, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(together.latent[own], alone.latent)
        torch.testing.assert_close(
            2 * together.error[row, -alone.error.shape[1] :], alone.error[0], rtol=1e-4, atol=1e-6
        )


def test_sums_are_those_of_the_entries(model):
    ((_, effects),) = attribute(model, BUILD["top_k"](), TEXTS, METRIC).effects.items()
    dense = torch.zeros(2, 5, 48).index_put((effects.row, effects.position, effects.latent), effects.effect)
    torch.testing.assert_close(effects.by_latent(), dense.sum((0, 1)))
    torch.testing.assert_close(effects.by_token(), dense.sum(2))
    best = effects.top(4)
    assert effects.effect[best].abs().tolist() == dense.abs().flatten().topk(4).values.tolist()
    reading = read_latents(model, BUILD["top_k"](), TEXTS[:1])
    row = effects.row == 0
    own = torch.zeros(5, 48).index_put((effects.position[row], effects.latent[row]), effects.activation[row])
    torch.testing.assert_close(own, reading.dense()[0].float())


def test_special_tokens_count_only_when_asked(model):
    model = load_model(model._original, tokenizer=tiny.tokenizer())
    dictionary = BUILD["top_k"]()
    for special, expected in ((False, [False, True, True]), (True, [True] * 3)):
        found = attribute(model, dictionary, "<s> w1 w2", METRIC, special_tokens=special).effects["layers.1"]
        assert found.mask.tolist() == [expected]
        assert (found.error != 0).tolist() == [expected]
    keep = torch.tensor([False, False, True])
    found = attribute(model, dictionary, "<s> w1 w2", METRIC, keep=keep).effects["layers.1"]
    assert set(found.position.tolist()) == {2}


def test_metrics_are_those_of_the_last_token(model):
    tokens = attribute(model, BUILD["top_k"](), TEXTS, METRIC).tokens
    logits = model.run(*tokens)
    ends = torch.stack(
        [model.run(torch.tensor([tiny.tokenizer(bos=False)(text)["input_ids"]]))[0, -1] for text in TEXTS]
    )
    torch.testing.assert_close(METRIC(logits).double(), (ends[:, 5] - ends[:, 9]).mean(), rtol=1e-4, atol=1e-5)
    by_row = log_probability([4, 8])(logits)
    log_p = ends.log_softmax(-1)
    torch.testing.assert_close(by_row.double(), (log_p[0, 4] + log_p[1, 8]) / 2, rtol=1e-4, atol=1e-5)
    first = logit_difference(torch.tensor([3, 4]), 5, position=2)(logits)
    expected = logits[:, 2, [3, 4]].diagonal() - logits[:, 2, 5]
    torch.testing.assert_close(first.double(), expected.mean(), rtol=1e-4, atol=1e-5)


def none_at_all(logits):
    return torch.ones(())


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"dictionaries": Placed(TemporalAutoencoder(16, 64, 4, n_heads=1), LAYERS[0])}, ConfigError, "tokens before"),
        ({"dictionaries": AutoEncoderTopK(16, 48, 6)}, ConfigError, "does not know its site"),
        ({"dictionaries": [BUILD["top_k"](), BUILD["normalized"]()]}, ConfigError, "Two dictionaries"),
        ({"dictionaries": []}, ConfigError, "no dictionary"),
        ({"dictionaries": [5]}, ConfigError, "Got a int"),
        ({"metric": 5}, ConfigError, "function of logits"),
        ({"metric": lambda logits: logits[0, -1]}, ConfigError, "one number"),
        ({"metric": lambda logits: 5.0}, ConfigError, "one number"),
        ({"metric": none_at_all}, ModelError, "no gradient"),
        ({"metric": logit_difference(5, 99)}, ConfigError, "from 0 to 96"),
        ({"metric": log_probability([1, 2, 3])}, ConfigError, "3 tokens for 2 rows"),
        ({"method": "patching"}, ConfigError, "give baseline"),
        ({"method": "magic"}, ConfigError, "method"),
        ({"n_steps": 0}, ConfigError, "n_steps"),
        ({"baseline": TEXTS[:1]}, DataError, "equal numbers of tokens"),
        ({"baseline": TEXTS[::-1]}, DataError, "other padding"),
        ({"inputs": ""}, DataError, "no token"),
        ({"metric": lambda logits: logits.sum() * float("nan")}, ConfigError, "metric is nan"),
    ],
    ids=tiny.plain_id,
)  # fmt: skip
def test_wrong_arguments_are_refused(model, given, error, match):
    arguments = {"dictionaries": BUILD["top_k"](), "inputs": TEXTS, "metric": METRIC, **given}
    with pytest.raises(error, match=match):
        attribute(model, **arguments)


def test_attribution_leaves_no_trace(model):
    module = model._original
    with torch.no_grad():  # gradients are recorded all the same
        attribute(model, BUILD["transcoder"](), TEXTS, METRIC, n_steps=2)
    assert all(p.grad is None for p in module.parameters())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def test_a_text_of_special_tokens_alone_is_refused(model):
    model = load_model(model._original, tokenizer=tiny.tokenizer())
    with pytest.raises(DataError, match="No token counts"):
        attribute(model, BUILD["top_k"](), ["<s>", "<s>"], METRIC)


def test_top_wants_a_number(model):
    with pytest.raises(ConfigError, match="n=-1"):
        next(iter(attribute(model, BUILD["top_k"](), TEXTS, METRIC, n_steps=1).effects.values())).top(-1)
