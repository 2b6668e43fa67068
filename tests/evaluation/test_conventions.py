"""Figures of other packages, against their formulas written out token by token."""

import math

import pytest
import torch
from markupsafe import escape

from dictionary_learning import AutoEncoderTopK, Candidate, EvaluationConfig, Site, evaluate_dictionaries, load_model
from dictionary_learning.data import TokenBatch, TokenStream, as_text_source
from dictionary_learning.evaluation._conventions import CONVENTIONS, Logits, SpecialTokens
from dictionary_learning.evaluation.reports import RENDERERS
from dictionary_learning.evaluation.reports._contents import BASELINES, DASH, DETAILS, TABLE, decimal
from dictionary_learning.evaluation.reports._conventional import DEFINED, PACKAGES, lines_of, rows_of
from tests import tiny

IDS = SpecialTokens((0, 1, 2), 2)


def example(seed: int = 0):
    torch.manual_seed(seed)
    x = torch.randn(30, 5).double() + 2
    return x, x + 0.4 * torch.randn_like(x), torch.randn(30, 12).double() * (torch.rand(30, 12) < 0.2)


def mean(values) -> float:
    values = list(values)
    return float(sum(values)) / len(values)


def both(name: str):
    """Returns what a convention makes of two batches, and those batches."""
    convention, batches = CONVENTIONS[name](IDS), [example(0), example(1)]
    for one in batches:
        convention.update(*one)
    return convention.compute(), batches


def test_dictionary_learning_averages_its_batches():
    found, batches = both("dictionary_learning")

    def unexplained(x, y):
        e = x - y
        above = sum(float((e[:, d] - e[:, d].mean()).square().sum()) for d in range(5))
        return above / sum(float((x[:, d] - x[:, d].mean()).square().sum()) for d in range(5))

    assert found["frac_variance_explained"] == pytest.approx(mean(1 - unexplained(x, y) for x, y, _ in batches))
    assert found["l2_loss"] == pytest.approx(
        mean(mean((a - b).norm() for a, b in zip(x, y, strict=True)) for x, y, _ in batches)
    )
    assert found["l0"] == pytest.approx(mean(mean((row != 0).sum() for row in f) for *_, f in batches))
    assert found["l1_loss"] == pytest.approx(mean(mean(row.abs().sum() for row in f) for *_, f in batches))
    bias = (mean(y.square().sum(-1)) / mean((x * y).sum(-1)) for x, y, _ in batches)
    assert found["relative_reconstruction_bias"] == pytest.approx(mean(bias))
    assert found["frac_alive"] == mean(any(bool((f[:, i] != 0).any()) for *_, f in batches) for i in range(12))
    x, _, f = batches[0]
    blind = CONVENTIONS["dictionary_learning"](IDS)
    blind.update(x, x + 7, f)
    assert blind.compute()["frac_variance_explained"] == pytest.approx(1)  # a constant error goes unseen


def test_saelens_explains_the_variance_about_the_mean_of_all():
    found, batches = both("saelens")
    x, y = torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])
    expected = 1 - (x - y).square().sum() / (x - x.mean(0)).square().sum()
    assert found["explained_variance"] == pytest.approx(float(expected))
    legacy = mean(
        1 - float((a - b).square().sum() / (a - xs.mean(0)).square().sum())
        for xs, ys, _ in batches
        for a, b in zip(xs, ys, strict=True)
    )
    assert found["explained_variance_legacy"] == pytest.approx(legacy)
    assert found["mse"] == pytest.approx(mean((x - y).square().sum(-1)))
    assert found["l2_ratio"] == pytest.approx(mean(y.norm(dim=-1) / x.norm(dim=-1)))


def test_saebench_has_its_mistakes():
    found, batches = both("saebench")
    x, y = torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])
    power = mean(x.square().sum(-1))
    assert found["explained_variance"] == pytest.approx(1 - mean((x - y).square().sum(-1)) / (power - (power / 5) ** 2))
    assert found["mse"] == pytest.approx(mean(mean((a - b).square().sum(-1) / 30) for a, b, _ in batches))
    assert found["l1"] == pytest.approx(mean(mean(f.sum(-1)) for *_, f in batches))
    density = torch.cat([b[2] for b in batches]).ne(0).double().mean(0)
    assert found["freq_over_10_percent"] == pytest.approx(float((density > 0.1).double().mean()))


@pytest.mark.parametrize("name", ["dictionary_learning", "saelens", "saebench"])
def test_losses_equal_brute_force(name):
    convention = CONVENTIONS[name](IDS)
    ids = torch.tensor([[0, 5, 6, 1, 7, 8], [0, 9, 4, 3, 2, 2]])
    tokens = TokenBatch(ids, torch.tensor([[1] * 6, [1] * 4 + [0] * 2]))
    logits = Logits(*(torch.randn(2, 6, 11) for _ in range(3)))
    convention.update(*example())
    convention.update_losses(tokens, logits)
    found = convention.compute()

    def losses(one):
        for row in range(2):
            for t in range(5):
                target, source = int(ids[row, t + 1]), int(ids[row, t])
                counts = target != 2 if name == "dictionary_learning" else source > 2
                if counts:
                    yield -math.log(one[row, t].double().softmax(-1)[target])

    clean, spliced, zero = (mean(losses(one)) for one in logits)
    if name == "dictionary_learning":
        assert found["loss_reconstructed"] == pytest.approx(spliced, rel=1e-5)
        assert found["frac_recovered"] == pytest.approx((spliced - zero) / (clean - zero), rel=1e-4)
        return
    assert found["ce_loss_with_sae"] == pytest.approx(spliced, rel=1e-5)
    assert found["ce_loss_with_ablation"] == pytest.approx(zero, rel=1e-5)

    def divergences(one):
        for row, t in ((0, 1), (0, 2), (0, 4), (0, 5), (1, 1), (1, 2), (1, 3)):
            p, q = logits.clean[row, t].double().softmax(-1), one[row, t].double().softmax(-1)
            yield float((p * (p / q).log()).sum())

    assert found["kl_div_with_sae"] == pytest.approx(mean(divergences(logits.spliced)), rel=1e-4)
    score = 1 - mean(divergences(logits.spliced)) / mean(divergences(logits.zero))
    assert found["kl_div_score"] == pytest.approx(score, rel=1e-4)


@pytest.mark.parametrize("name", ["dictionary_learning", "saelens", "saebench"])
def test_an_evaluation_gives_them_beside_the_canonical_ones(name):
    torch.manual_seed(0)
    dictionary = AutoEncoderTopK(tiny.DIM, 64, 4)
    config = EvaluationConfig(n_tokens=10**6, n_fidelity_tokens=10**6, ctx_len=16, batch_size=100, n_resamples=0)
    text, candidate = tiny.documents(20), Candidate("a", dictionary, Site("model.layers.1"))
    model = load_model(tiny.model(), tokenizer=tiny.tokenizer())
    plain = evaluate_dictionaries(model, candidate, text, config)
    report = evaluate_dictionaries(model, candidate, text, config.replace(convention=name))
    entry = report.dictionaries[0]
    assert entry.metrics == pytest.approx(plain.dictionaries[0].metrics, nan_ok=True)
    assert (report.convention, plain.dictionaries[0].convention_metrics) == (name, None)
    tokens = TokenStream(as_text_source(text), tiny.tokenizer(), ctx_len=16).take(100)
    x = model.capture(*tokens, ["model.layers.1"])[Site("model.layers.1")]
    mask = tokens.attention_mask if name == "dictionary_learning" else tokens.attention_mask & (tokens.input_ids > 2)
    rows = x[mask]
    assert entry.convention_metrics["cossim"] == pytest.approx(
        float(torch.cosine_similarity(rows, dictionary(rows), dim=-1).mean().detach()), rel=1e-4
    )
    assert math.isfinite(
        entry.convention_metrics["frac_recovered" if name == "dictionary_learning" else "ce_loss_with_sae"]
    )


def test_saelens_itself_gives_the_same_variance():
    evals = pytest.importorskip("sae_lens.evals", reason="SAELens is not installed")
    calculator = evals.ExplainedVarianceCalculator()
    x, y, latents = example()
    calculator.add_batch(x, y)
    convention = CONVENTIONS["saelens"](IDS)
    convention.update(x, y, latents)
    assert convention.compute()["explained_variance"] == pytest.approx(float(calculator.compute()), rel=1e-5)


@pytest.mark.parametrize("name", [name for name, _ in CONVENTIONS.items()])
def test_every_form_of_a_report_shows_them_beside_ours_with_their_definitions(name):
    model = load_model(tiny.model(), tokenizer=tiny.tokenizer())
    text = as_text_source(tiny.documents(12, seed=3))
    config = EvaluationConfig(
        n_tokens=120, n_fidelity_tokens=60, batch_size=2, ctx_len=12, convention=name, n_geometry_latents=0
    )
    torch.manual_seed(0)
    candidate = Candidate("mine", AutoEncoderTopK(tiny.DIM, 32, 3), Site("model.layers.0"))
    report = evaluate_dictionaries(model, candidate, text, config)
    figures = report.dictionaries[0].convention_metrics
    assert set(DEFINED[name]) == set(figures)  # each has a definition, and none is of another
    known = {metric.key for metric in (*TABLE, *DETAILS)} | {"ce_clean", *BASELINES}
    assert {one.ours for one in DEFINED[name].values()} <= known | {None}
    ours = {row.key: row.ours for row in rows_of(report)}
    (ablated,) = report.ablation.values()
    own = {"ce_clean": report.ce_clean, **dict(ablated.items()), **report.dictionaries[0].metrics}
    expected = {key: DASH if one.ours is None else decimal(own[one.ours]) for key, one in DEFINED[name].items()}
    assert ours == expected and sum(value != DASH for value in ours.values()) > 7
    shown = {form: RENDERERS[form](report) for form in ("markdown", "html")}
    for form, text in shown.items():
        assert f"As {PACKAGES[name]} computes them" in text
        for key, value in figures.items():
            meaning = DEFINED[name][key].meaning
            meaning = meaning.replace("<x, x_hat>", "`<x, x_hat>`") if form == "markdown" else str(escape(meaning))
            assert key in text and decimal(value) in text and meaning in text
    (head, line) = lines_of(report)
    assert head[0] == f"by {PACKAGES[name]}" and line[0] == "mine" and f"(ours {ours['l0']})" in line[1]
    plain = evaluate_dictionaries(model, candidate, as_text_source(tiny.documents(12, seed=3)),
                                  config.replace(convention="canonical"))  # fmt: skip
    assert lines_of(plain) == [] and all("computes them" not in RENDERERS[form](plain) for form in shown)
