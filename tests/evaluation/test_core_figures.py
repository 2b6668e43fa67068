"""Ablation by random tokens, splices of several sites, all tokens, and where the error is: by brute force."""

import pytest
import torch

from dictionary_learning import (
    AutoEncoderTopK,
    Candidate,
    EvaluationConfig,
    IdentityDict,
    Site,
    Transcoder,
    evaluate_dictionaries,
    load_model,
)
from dictionary_learning.data import TokenStream, as_text_source
from dictionary_learning.errors import ConfigError
from dictionary_learning.evaluation import EvaluationBatch, SparsityMetric
from dictionary_learning.evaluation._breakdown import TokenKinds, class_of_token
from dictionary_learning.evaluation._resampling import ResamplePool
from tests import tiny

CONFIG = EvaluationConfig(n_tokens=400, n_fidelity_tokens=400, ctx_len=16, batch_size=4, n_resamples=20)
TEXT = tiny.documents(30, seed=7)
SITE, OTHER = Site("model.layers.1"), Site("model.layers.2")


def traced():
    return load_model(tiny.model(), tokenizer=tiny.tokenizer())


def activations(site=SITE):
    """Returns the activations of the text that is evaluated, which tokens count, and the tokens."""
    tokens = TokenStream(as_text_source(TEXT), tiny.tokenizer(), ctx_len=16).take(28)
    keep = (tokens.input_ids > 2) & (torch.arange(16) > 0) & tokens.attention_mask
    return traced().capture(*tokens, [site])[site], keep, tokens


def test_all_tokens_and_those_of_the_filter_are_both_named():
    dictionary = AutoEncoderTopK(tiny.DIM, 64, 4)
    entry = evaluate_dictionaries(traced(), Candidate("a", dictionary, SITE), TEXT, CONFIG).dictionaries[0]
    x, keep, tokens = activations()
    for figures, mask in ((entry.metrics, keep), (entry.metrics_all_tokens, tokens.attention_mask)):
        rows = x[mask].double()
        error = (rows - dictionary(rows.float()).detach().double()).square().sum()
        assert figures["fvu"] == pytest.approx(float(error / (rows - rows.mean(0)).square().sum()), rel=1e-5)
        assert figures["n_tokens"] == int(mask.sum())
    assert entry.metrics["fvu"] != entry.metrics_all_tokens["fvu"] and "fvu" in entry.errors_all_tokens
    without = CONFIG.replace(all_tokens=False, breakdown=False, n_geometry_latents=0)
    plain = evaluate_dictionaries(traced(), Candidate("a", dictionary, SITE), TEXT, without).dictionaries[0]
    assert plain.metrics_all_tokens is plain.by_position is plain.by_token_class is plain.geometry is None
    assert plain.metrics == pytest.approx(entry.metrics, nan_ok=True)


def test_the_error_by_position_equals_brute_force():
    dictionary = AutoEncoderTopK(tiny.DIM, 64, 4)
    entry = evaluate_dictionaries(traced(), Candidate("a", dictionary, SITE), TEXT, CONFIG).dictionaries[0]
    x, keep, _ = activations()
    x = x.double()
    error = (x - dictionary(x.float()).detach().double()).square().sum(-1)
    mean = x[keep].mean(0)
    assert [group.name for group in entry.by_position] == ["1", "2-3", "4-7", "8-15"]  # 0 is excluded
    for group, places in zip(entry.by_position, (slice(1, 2), slice(2, 4), slice(4, 8), slice(8, 16)), strict=True):
        inside = torch.zeros_like(keep)
        inside[:, places] = True
        inside &= keep
        assert group.n_tokens == int(inside.sum())
        assert group.share_of_error == pytest.approx(float(error[inside].sum() / error[keep].sum()), rel=1e-5)
        assert group.mse == pytest.approx(float(error[inside].mean()), rel=1e-5)
        variance = (x[inside] - mean).square().sum()
        assert group.fvu == pytest.approx(float(error[inside].sum() / variance), rel=1e-5)
        assert (group.l0, group.errors["mse"].standard_error > 0) == (4, True)
    for groups in (entry.by_position, entry.by_token_class):
        assert sum(group.share_of_error for group in groups) == pytest.approx(1)
        assert sum(group.n_tokens for group in groups) == entry.metrics["n_tokens"]


@pytest.mark.parametrize(
    ("written", "kind"),
    [
        ("\u0120the", "word start"), ("\u2581The", "word start"), ("ing", "word part"), ("##ing", "word part"), ("\u01201984", "number"),
        ("7", "number"), (",", "punctuation"), ("\u0120(", "punctuation"), ("\u0120=", "punctuation"), ("\u0120\u0120", "space"),
        ("\u010a", "space"), ("\u2581", "space"), ("\u0120it's", "word start"), ("w12", "other"), ("<0x0A>", "other"),
        ("", "other"), ("\u8fa3\u6912", "word part"),
    ],
)  # fmt: skip
def test_kinds_of_tokens(written, kind):
    assert class_of_token(written) == kind


def test_special_tokens_are_a_kind_of_their_own():
    kinds = TokenKinds(tiny.tokenizer(), (0,), 16)
    tokens = TokenStream(as_text_source(TEXT), tiny.tokenizer(), ctx_len=16).take(4)
    columns = kinds.columns(tokens)
    special = columns[..., kinds.names.index(("class", "special"))]
    assert torch.equal(special, tokens.input_ids <= 2) and bool((columns.sum(-1) == 2).all())
    assert [name for of, name in kinds.names if of == "position"] == ["0", "1", "2-3", "4-7", "8-15"]
    assert TokenKinds(None, (), 5).positions == ["0", "1", "2-3", "4"]


def test_random_tokens_do_not_depend_on_batches():
    x = torch.arange(5000.0).unsqueeze(1)
    keep = torch.rand(20, 8) < 0.7
    found = []
    for size in (7, 5000):
        pool = ResamplePool(seed=3)
        for rows in x.split(size):
            pool.add({SITE: rows})
        parts = keep.split(size % 20 or 20)
        found.append(torch.cat([pool.edits(part)[SITE](torch.full((*part.shape, 1), -1.0)) for part in parts]))
    assert torch.equal(*found)
    assert torch.equal(found[0].squeeze(-1) == -1, ~keep)  # other tokens keep their activations
    assert len(found[0].unique()) > 90 and found[0].max() > 4000


def test_resample_ablation_equals_a_hook_that_does_it():
    hf = tiny.model()
    model = load_model(hf, tokenizer=tiny.tokenizer())
    report = evaluate_dictionaries(model, Candidate("i", IdentityDict(16), SITE), TEXT, CONFIG)
    x, keep, tokens = activations()
    pool = ResamplePool(seed=0)
    n = -(-400 // 64)  # batches until 400 tokens are read
    for values, mask in zip(x.split(4)[:n], keep.split(4)[:n], strict=True):
        pool.add({SITE: values[mask]})
    total, count = 0.0, 0
    for ids, mask in list(zip(tokens.input_ids.split(4), keep.split(4), strict=True))[: 400 // 64]:
        edit = pool.edits(mask)[SITE]
        handle = hf.model.layers[1].register_forward_hook(lambda m, a, out, e=edit: e(out))
        with torch.no_grad():
            log_p = hf(ids).logits.log_softmax(-1)[:, :-1]
        handle.remove()
        scored = mask[:, :-1] & mask[:, 1:]
        total -= float(log_p.gather(-1, ids[:, 1:, None]).squeeze(-1)[scored].sum())
        count += int(scored.sum())
    assert report.ablation[str(SITE)].ce_resample == pytest.approx(total / count, rel=1e-5)


def test_chosen_ablations_are_measured_and_no_others():
    config = CONFIG.replace(ablations=("mean",))
    report = evaluate_dictionaries(traced(), Candidate("i", IdentityDict(16), SITE), TEXT, config)
    assert set(report.ablation[str(SITE)]) == {"ce_mean", "kl_mean", "errors"}
    assert "ce_recovered_zero" not in report.dictionaries[0].metrics
    with pytest.raises(ConfigError, match="'noise' is none of zero, mean, resample"):
        CONFIG.replace(ablations=("mean", "noise"))


def test_dictionaries_of_several_sites_are_spliced_in_together():
    hf = tiny.model()
    first, second = AutoEncoderTopK(tiny.DIM, 64, 4), AutoEncoderTopK(tiny.DIM, 64, 6)
    transcoder = Transcoder(tiny.DIM, 32, {"name": "top_k", "k": 4})
    candidates = [
        Candidate("a", first, SITE), Candidate("b", second, OTHER), Candidate("other a", second, SITE),
        Candidate("t", transcoder, "model.layers.2.mlp:in", "model.layers.2.mlp"),
    ]  # fmt: skip
    report = evaluate_dictionaries(load_model(hf, tokenizer=tiny.tokenizer()), candidates, TEXT, CONFIG)
    (together,) = report.together  # the second of a site has nobody to be spliced in with
    assert together.names == ("a", "b", "t") and together.errors["kl"].standard_error > 0
    _, keep, tokens = activations()
    total, count = 0.0, 0
    for ids, mask in list(zip(tokens.input_ids.split(4), keep.split(4), strict=True))[: 400 // 64]:

        def spliced(d, m=mask):
            return lambda module, inputs, out: torch.where(m.unsqueeze(-1), d(out), out)

        def across(module, inputs, out, m=mask):
            return torch.where(m.unsqueeze(-1), transcoder(inputs[0]), out)

        layers = hf.model.layers
        handles = [layers[1].register_forward_hook(spliced(first)), layers[2].mlp.register_forward_hook(across),
                   layers[2].register_forward_hook(spliced(second))]  # fmt: skip
        with torch.no_grad():
            log_p = hf(ids).logits.log_softmax(-1)[:, :-1]
        for handle in handles:
            handle.remove()
        scored = mask[:, :-1] & mask[:, 1:]
        total -= float(log_p.gather(-1, ids[:, 1:, None]).squeeze(-1)[scored].sum())
        count += int(scored.sum())
    assert together.metrics["ce_reconstructed"] == pytest.approx(total / count, rel=1e-5)
    alone = evaluate_dictionaries(traced(), candidates, TEXT, CONFIG.replace(together=False))
    assert alone.together is None
    for one, two in zip(alone.dictionaries, report.dictionaries, strict=True):
        assert one.metrics == pytest.approx(two.metrics, nan_ok=True)


def test_dead_latents_by_the_tokens_seen():
    latents = torch.zeros(10, 4)
    latents[0, 0] = latents[3, 1] = latents[9, 2] = 1
    metric = SparsityMetric()
    for part in latents.split(3):
        metric.update(EvaluationBatch(torch.zeros(len(part), 1), torch.zeros(len(part), 1), part))
    assert metric.dead_by_tokens() == {"tokens": [1, 2, 4, 8, 10], "frac_dead": [0.75, 0.75, 0.5, 0.5, 0.25]}
    assert metric.density()["resolution"] == 0.1 and metric.density()["n_dense"] == 0
    assert metric.compute()["frac_dense"] == 0  # a tenth is not more than a tenth
