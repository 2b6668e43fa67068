import math

import pytest
import torch
from jaxtyping import config

from dictionary_learning import (
    ActivationBuffer,
    AutoEncoderTopK,
    Candidate,
    DictionaryInfo,
    EvaluationConfig,
    IdentityDict,
    Site,
    TokenFilter,
    Transcoder,
    evaluate,
    evaluate_activations,
    evaluate_dictionaries,
    load_model,
    loss_recovered,
)
from dictionary_learning.data import TokenStream, as_text_source
from dictionary_learning.dictionaries import Crosscoder
from dictionary_learning.errors import ConfigError, DataError
from dictionary_learning.evaluation._candidates import place
from dictionary_learning.evaluation._splices import n_passes
from dictionary_learning.evaluation.reports import render_json
from dictionary_learning.models import TracedModel
from tests import tiny

CONFIG = EvaluationConfig(n_tokens=400, n_fidelity_tokens=400, ctx_len=16, batch_size=4)
TEXT = tiny.documents(30, seed=7)
SITE = Site("model.layers.1")
TOP_K = {"name": "top_k", "k": 4}


def model(family: str = "llama"):
    return load_model(tiny.model(family), tokenizer=tiny.tokenizer())


def entries(report) -> dict[str, dict[str, float]]:
    return {entry["name"]: entry["metrics"] for entry in report["dictionaries"]}


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_identity_loses_nothing(family):
    site = Site(tiny.LAYER[family])
    report = evaluate_dictionaries(model(family), [Candidate("identity", IdentityDict(tiny.DIM), site)], TEXT, CONFIG)
    figures = entries(report)["identity"]
    assert figures["fvu"] == 0
    assert figures["kl"] == 0
    assert figures["ce_reconstructed"] == report["ce_clean"]
    assert figures["kl_recovered_zero"] == figures["kl_recovered_mean"] == figures["kl_recovered_resample"] == 1
    for kind in ("zero", "mean", "resample"):  # NaN where a random model does not lose by the ablation
        loses = report.ablation[report.dictionaries[0].site][f"ce_{kind}"] > report.ce_clean
        assert figures[f"ce_recovered_{kind}"] == pytest.approx(1 if loses else math.nan, nan_ok=True)


def test_a_source_is_read_from_its_beginning_each_time():
    source, candidate = as_text_source(TEXT), Candidate("one", AutoEncoderTopK(tiny.DIM, 64, 4), SITE)
    first, again = (entries(evaluate_dictionaries(model(), [candidate], source, CONFIG)) for _ in range(2))
    assert first["one"] == pytest.approx(again["one"], rel=0, nan_ok=True)


def test_figures_do_not_depend_on_batches_or_on_other_candidates():
    dictionary = AutoEncoderTopK(tiny.DIM, 64, 4)
    one = Candidate("one", dictionary, SITE)
    other = Candidate("other", IdentityDict(tiny.DIM), Site("model.layers.0.mlp"))
    expected = entries(evaluate_dictionaries(model(), [one], TEXT, CONFIG))["one"]
    everything = CONFIG.replace(n_tokens=10**6, n_fidelity_tokens=10**6)
    whole = entries(evaluate_dictionaries(model(), [one], TEXT, everything))["one"]
    for candidates, size in (([one, other], 4), ([other, one], 2), ([one], 1)):
        got = entries(evaluate_dictionaries(model(), candidates, TEXT, everything.replace(batch_size=size)))["one"]
        assert got == pytest.approx(whole, rel=1e-4, abs=1e-4, nan_ok=True)
    assert expected["n_tokens"] < whole["n_tokens"]


def test_cross_entropy_equals_that_of_plain_pytorch():
    hf = tiny.model("llama").eval()
    report = evaluate_dictionaries(
        load_model(hf, tokenizer=tiny.tokenizer()), [Candidate("i", IdentityDict(16), SITE)], TEXT, CONFIG
    )
    stream = TokenStream(as_text_source(TEXT), tiny.tokenizer(), ctx_len=16)
    total, n, handle = 0.0, 0, None
    ablated = 0.0
    for tokens in [stream.take(4) for _ in range(6)]:
        counts = (tokens.input_ids > 2) & (torch.arange(16) > 0)
        scored = counts[:, :-1] & counts[:, 1:]
        for ablate in (False, True):
            if ablate:
                handle = hf.model.layers[1].register_forward_hook(
                    lambda m, a, out, c=counts: torch.where(c.unsqueeze(-1), 0.0, out)
                )
            with torch.no_grad():
                log_p = hf(tokens.input_ids).logits.log_softmax(-1)[:, :-1]
            if handle is not None:
                handle.remove()
                handle = None
            loss = -log_p.gather(-1, tokens.input_ids[:, 1:, None]).squeeze(-1)[scored].sum().item()
            if ablate:
                ablated += loss
            else:
                total += loss
                n += int(scored.sum())
    assert report["data"]["n_tokens_predicted"] == n
    assert report["ce_clean"] == pytest.approx(total / n, rel=1e-5)
    assert report["ablation"]["model.layers.1:out"]["ce_zero"] == pytest.approx(ablated / n, rel=1e-5)


def test_mean_ablation_uses_the_mean_of_the_tokens_that_count():
    traced = model()
    report = evaluate_dictionaries(traced, [Candidate("i", IdentityDict(16), SITE)], TEXT, CONFIG)
    assert math.isfinite(report["ablation"][str(SITE)]["ce_mean"])
    assert report["ablation"][str(SITE)]["ce_mean"] != report["ablation"][str(SITE)]["ce_zero"]


def test_tokens_left_out_are_neither_changed_nor_scored():
    everything_out = TokenFilter(exclude_ids=tuple(range(3, 60)), exclude_first=True)
    candidate = Candidate("d", AutoEncoderTopK(16, 64, 4), SITE)
    some = evaluate_dictionaries(model(), [candidate], TEXT, CONFIG, token_filter=everything_out)
    full = evaluate_dictionaries(model(), [candidate], TEXT, CONFIG)
    assert some["data"]["n_tokens_scored"] < full["data"]["n_tokens_scored"]
    assert some["data"]["n_tokens_read"] == full["data"]["n_tokens_read"]
    assert "the token ids 3, 4" in some["data"]["filter"]


def test_norm_limits_leave_tokens_out():
    candidate = Candidate("d", IdentityDict(16), SITE)
    full = evaluate_dictionaries(model(), [candidate], TEXT, CONFIG)
    traced = model()
    tokens = TokenStream(as_text_source(TEXT), traced.tokenizer, ctx_len=16).take(24)
    limit = traced.capture(*tokens, [SITE])[SITE].norm(dim=-1).median().item()
    some = evaluate_dictionaries(traced, [candidate], TEXT, CONFIG, norm_limits={SITE: limit})
    assert 0.2 < some["data"]["n_tokens_scored"] / full["data"]["n_tokens_scored"] < 0.8


def test_without_fidelity_there_are_no_losses():
    report = evaluate_dictionaries(
        model(), [Candidate("i", IdentityDict(16), SITE)], TEXT, CONFIG.replace(n_fidelity_tokens=0)
    )
    assert "ce_clean" not in report
    assert "kl" not in entries(report)["i"]


def test_wrong_width_and_empty_text_are_refused():
    with pytest.raises(
        ConfigError,
        match="'d' does not fit 'model.layers.1:out' in LlamaForCausalLM: .* width 8; the site has width 16",
    ):
        evaluate_dictionaries(model(), [Candidate("d", IdentityDict(8), SITE)], TEXT, CONFIG)
    with pytest.raises(DataError, match="no token that counts"):
        evaluate_dictionaries(model(), [Candidate("d", IdentityDict(16), SITE)], [""], CONFIG)


@pytest.mark.parametrize("site", ["model.layers.1", "model.layers.1:out", "layers.1", ["model.layers.1"], SITE])
def test_sites_may_be_strings(site):
    """A candidate alone stands for a list of one, too."""
    dictionary = AutoEncoderTopK(16, 64, 4)
    expected = evaluate_dictionaries(model(), [Candidate("d", dictionary, SITE)], TEXT, CONFIG)
    again = evaluate_dictionaries(model(), Candidate("d", dictionary, site), TEXT, CONFIG)
    assert render_json(again) == render_json(expected)  # a figure may be NaN, which equals nothing


@pytest.mark.parametrize("key", [SITE, "model.layers.1:out", "model.layers.1"])
def test_norm_limits_may_be_named_by_strings(key):
    report = evaluate_dictionaries(
        model(), Candidate("d", IdentityDict(16), SITE), TEXT, CONFIG, norm_limits={key: 1e9}
    )
    assert report["data"]["n_tokens_scored"] > 0
    with pytest.raises(DataError, match="no token that counts"):
        evaluate_dictionaries(model(), Candidate("d", IdentityDict(16), SITE), TEXT, CONFIG, norm_limits={key: 0.0})


def test_a_name_is_not_empty():
    with pytest.raises(ConfigError, match="name ''"):
        evaluate_dictionaries(model(), Candidate("", IdentityDict(16), SITE), TEXT, CONFIG)


@pytest.mark.parametrize("sites", [(SITE, SITE), (SITE, Site("model.layers.0.mlp"))])
def test_candidates_of_one_name_keep_their_own_figures(sites):
    good, bad = IdentityDict(16), AutoEncoderTopK(16, 64, 1)
    report = evaluate_dictionaries(
        model(), [Candidate("d", d, s) for d, s in zip((good, bad), sites, strict=True)], TEXT, CONFIG
    )
    apart = [
        evaluate_dictionaries(model(), Candidate("d", d, s), TEXT, CONFIG)["dictionaries"][0]
        for d, s in zip((good, bad), sites, strict=True)
    ]
    assert [entry["name"] for entry in report["dictionaries"]] == ["d", "d #2"]
    for entry, alone in zip(report["dictionaries"], apart, strict=True):
        assert entry["metrics"] == pytest.approx(alone["metrics"], rel=1e-6, nan_ok=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_tokens_that_are_not_finite_are_excluded_and_counted(value, caplog):
    hf = tiny.model("llama")
    word = 7

    def spoil(module, inputs, output):
        return torch.where((inputs[0] == word).unsqueeze(-1), value, output)

    clean = load_model(hf, tokenizer=tiny.tokenizer())
    expected = evaluate_dictionaries(
        clean, Candidate("d", AutoEncoderTopK(16, 64, 4), "model.layers.0:in"), TEXT, CONFIG
    )
    hf.model.embed_tokens.register_forward_hook(spoil)
    spoiled = load_model(hf, tokenizer=tiny.tokenizer())
    dictionary = AutoEncoderTopK(16, 64, 4)
    report = evaluate_dictionaries(spoiled, Candidate("d", dictionary, "model.layers.0:in"), TEXT, CONFIG)
    n = report["data"]["n_tokens_nonfinite"]
    assert n > 0 and expected["data"]["n_tokens_nonfinite"] == 0
    assert report["data"]["n_tokens_scored"] == expected["data"]["n_tokens_scored"] - n
    assert all(math.isfinite(v) for v in entries(report)["d"].values()), entries(report)
    assert math.isfinite(report["ce_clean"]) and report["data"]["n_tokens_predicted"] > 0
    assert f"{n} tokens have a NaN or an infinity" in caplog.text


def test_dictionaries_with_a_nan_are_refused_by_the_tensor():
    dictionary = AutoEncoderTopK(16, 64, 4)
    for name, tensor in dictionary.state_dict().items():
        if tensor.is_floating_point() and tensor.ndim:
            with torch.no_grad():
                before = tensor.clone()
                tensor.view(-1)[0] = float("nan")
            for call in (
                lambda: evaluate(dictionary, [torch.randn(4, 16)]),
                lambda: evaluate_activations(dictionary, [torch.randn(4, 16)]),
                lambda: evaluate_dictionaries(model(), Candidate("d", dictionary, SITE), TEXT, CONFIG),
            ):
                with pytest.raises(ConfigError, match=f"holds a NaN or an infinity in {name}"):
                    call()
            tensor.copy_(before)


def test_what_is_no_dictionary_is_refused():
    with pytest.raises(ConfigError, match=r"Got a NoneType to evaluate; give Candidate\(name, dictionary\)"):
        evaluate_dictionaries(model(), [Candidate("d", None, SITE)], TEXT, CONFIG)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="Got no dictionary"):
        evaluate_dictionaries(model(), [], TEXT, CONFIG)


class TestSingle:
    def buffer(self) -> ActivationBuffer:
        return ActivationBuffer(TEXT, model(), SITE, n_ctxs=8, ctx_len=16, refresh_batch_size=4, out_batch_size=32)

    def test_known_keys_with_a_buffer(self):
        figures = evaluate(AutoEncoderTopK(16, 64, 4), self.buffer(), batch_size=4, n_batches=2)
        known = "l2_loss l1_loss l0 frac_variance_explained cossim l2_ratio relative_reconstruction_bias loss_original loss_reconstructed "
        known += "loss_zero frac_recovered frac_alive"
        assert set(known.split()) <= figures.keys()
        assert figures["n_tokens"] == 64

    def test_batches_of_tensors_give_no_losses(self):
        figures = evaluate(IdentityDict(8), [torch.randn(10, 8), torch.randn(5, 8)], n_batches=5)
        assert figures["n_tokens"] == 15
        assert figures["fvu"] == 0
        assert "loss_original" not in figures

    def test_normalized_batches_are_measured_in_their_own_units(self):
        x = torch.randn(200, 8) * 30
        dictionary = AutoEncoderTopK(8, 32, 2)
        x_unit = x * (8**0.5 / x.norm(dim=-1).mean())
        y = dictionary(x_unit).detach()
        figures = evaluate(dictionary, [x], normalize_batch=True)
        variance = (x_unit - x_unit.mean(0)).pow(2).sum()
        assert figures["fvu"] == pytest.approx(float((x_unit - y).pow(2).sum() / variance), rel=1e-4)
        assert figures["l2_loss"] == pytest.approx(float((x_unit - y).norm(dim=-1).mean()), rel=1e-4)

    def test_the_callers_dictionary_is_not_moved(self):
        dictionary = AutoEncoderTopK(8, 32, 2)
        with pytest.raises(ConfigError, match="device='meta'"):  # a copy without values cannot be measured
            evaluate(dictionary, [torch.randn(4, 8)], device="meta")
        assert dictionary.device == torch.device("cpu")

    def test_rows_that_are_not_finite_are_excluded_and_counted(self):
        x = torch.randn(20, 8)
        dictionary = AutoEncoderTopK(8, 32, 2)
        expected = evaluate_activations(dictionary, [x])
        bad = torch.cat([x[:7], torch.full((2, 8), float("inf")), x[7:], torch.full((1, 8), float("nan"))])
        assert evaluate_activations(dictionary, [bad]) == pytest.approx({**expected, "n_tokens_nonfinite": 3})
        with pytest.raises(DataError, match="3 rows, each with a NaN"):
            evaluate(dictionary, [torch.full((3, 8), float("nan"))])

    def test_empty_and_several_sites_are_refused(self):
        with pytest.raises(DataError, match="no activations"):
            evaluate(IdentityDict(8), [])
        with pytest.raises(DataError, match="a tensor .* of one site is needed"):
            evaluate(IdentityDict(8), [{Site("a"): torch.zeros(2, 8)}])

    def test_loss_recovered_of_the_identity(self):
        original, reconstructed, zero = loss_recovered(
            TEXT[:5], model(), "model.layers.1", IdentityDict(16), max_len=32
        )
        assert original == reconstructed
        assert zero != original


@pytest.fixture(scope="module")
def llama():
    return model()


@pytest.fixture
def transcoder():
    torch.manual_seed(0)
    return Transcoder(tiny.DIM, 32, {"name": "top_k", "k": 4})


def test_a_transcoder_is_measured_on_the_output_of_its_module(llama, transcoder):
    told = Candidate("t", transcoder, "model.layers.1.mlp:in", "model.layers.1.mlp")
    expected = evaluate_dictionaries(llama, told, TEXT, CONFIG)
    again = evaluate_dictionaries(llama, told._replace(target=None), TEXT, CONFIG)
    assert render_json(again) == render_json(expected)
    transcoder.info = DictionaryInfo(sites=("model.layers.1.mlp:in",), target_sites=("model.layers.2",))
    entry = evaluate_dictionaries(llama, told._replace(target=None), TEXT, CONFIG)["dictionaries"][0]
    assert (entry["reads"], entry["site"]) == ("model.layers.1.mlp:in", "model.layers.2:out")


def test_a_transcoder_without_a_known_target_is_refused(llama, transcoder):
    with pytest.raises(ConfigError, match=r"Give Candidate\(name, dictionary, site, target\)"):
        evaluate_dictionaries(llama, Candidate("t", transcoder, SITE), TEXT, CONFIG)


@pytest.mark.parametrize("given", [Site("layers.1"), Site("model.layers.[1]"), "layers.1", [Site("layers.1")]])
def test_every_name_of_a_site_is_found(llama, given):
    (entry,) = evaluate_dictionaries(llama, Candidate("a", IdentityDict(tiny.DIM), given), TEXT, CONFIG)["dictionaries"]
    assert entry["site"] == "model.layers.1:out"


def test_a_module_is_a_site(llama, request):
    request.addfinalizer(lambda: config.update("jaxtyping_disable", False))
    identity = IdentityDict(tiny.DIM)
    module = llama.module.model.layers[1]
    (entry,) = evaluate_dictionaries(llama, Candidate("a", identity, module), TEXT, CONFIG)["dictionaries"]
    assert entry["site"] == "model.layers.1:out"
    config.update("jaxtyping_disable", True)  # as for a user
    with pytest.raises(ConfigError, match="Got norm_limits=3.0"):
        evaluate_dictionaries(llama, Candidate("a", identity, SITE), TEXT, CONFIG, norm_limits=3.0)


def test_a_report_has_the_context_length_of_the_stream(llama):
    stream = TokenStream(as_text_source(TEXT), tiny.tokenizer(), ctx_len=16)
    longer = CONFIG.replace(ctx_len=32, pack=False)
    report = evaluate_dictionaries(llama, Candidate("a", IdentityDict(tiny.DIM), SITE), stream, longer)
    assert report["data"]["ctx_len"] == 16


def test_one_scored_token_has_a_report(llama):
    report = evaluate_dictionaries(llama, Candidate("a", IdentityDict(tiny.DIM), SITE), ["w1 w2"], CONFIG)
    density = report["dictionaries"][0]["density"]
    assert sum(density["counts"]) + density["n_never_fired"] == tiny.DIM


@pytest.mark.parametrize("wrong", [{"n_tokens": 0}, {"batch_size": -1}, {"n_fidelity_tokens": -1}, {"ctx_len": 1}])
def test_amounts_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=f"EvaluationConfig.{next(iter(wrong))} is"):
        EvaluationConfig(**wrong)


def test_both_sides_of_a_module_are_not_mixed(llama):
    sizes = {"n_ctxs": 8, "ctx_len": 16, "refresh_batch_size": 4, "out_batch_size": 20}
    buffer = ActivationBuffer(TEXT, llama, "model.layers.1.mlp", io="in_and_out", **sizes)
    with pytest.raises(DataError, match=r"shape \(20, 2, 16\); \(batch, activation_dim\) of one site"):
        evaluate(AutoEncoderTopK(tiny.DIM, 32, 4), buffer)


OTHERS = {
    "model": (DictionaryInfo(sites=(str(SITE),), model="another/model"), "is used with"),
    "described model": (
        DictionaryInfo(sites=(str(SITE),), config={"buffer": {"model": {"name": "another/model"}}}),
        "is used with",
    ),
    "site": (DictionaryInfo(sites=("model.layers.0",)), "was trained at model.layers.0, and is evaluated at"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_model_or_site_gives_a_warning(llama, other, caplog, monkeypatch):
    monkeypatch.setattr(llama, "known_name", "this/one")  # one that was given as an object has none
    identity = IdentityDict(tiny.DIM)
    identity.info, message = OTHERS[other]
    evaluate_dictionaries(
        llama, [Candidate(name, identity, SITE) for name in "ab"][: 1 + (other != "site")], TEXT, CONFIG
    )
    assert [message in record.getMessage() for record in caplog.records].count(True) == 1


@pytest.mark.parametrize("name", ["layers.1", "model.layers.1:out", "blocks.1.hook_resid_post"])
def test_the_own_site_gives_no_warning(llama, name, caplog):
    identity = IdentityDict(tiny.DIM)
    identity.info = DictionaryInfo(sites=(name,), model=llama.name)
    evaluate_dictionaries(llama, Candidate("a", identity, SITE), TEXT, CONFIG)
    assert not [record for record in caplog.records if "trained" in record.getMessage()]


@pytest.mark.parametrize("ablations", [(), ("zero", "mean")])
@pytest.mark.parametrize("together", [True, False])
def test_passes_are_counted_before_they_are_made(monkeypatch, ablations, together):
    traced, made = model(), []
    in_and_out = [Site("model.layers.1.mlp", "in"), Site("model.layers.1.mlp")]
    candidates = [
        Candidate("sae", AutoEncoderTopK(tiny.DIM, 64, 4), SITE),
        Candidate("transcoder", Transcoder(tiny.DIM, 64, TOP_K), *in_and_out),
        Candidate("crosscoder", Crosscoder([tiny.DIM, tiny.DIM], 64, TOP_K), ["model.layers.0", "model.layers.2"]),
    ]
    config = CONFIG.replace(n_tokens=64, n_fidelity_tokens=64, ablations=ablations, together=together)
    expected = n_passes([(one.reads, one.writes) for one in place(traced, candidates)], config)
    for name in ("run", "capture"):
        method = getattr(TracedModel, name)
        monkeypatch.setattr(TracedModel, name, lambda *a, _m=method, **k: made.append(1) or _m(*a, **k))
    evaluate_dictionaries(traced, candidates, TEXT, config)
    assert len(made) == expected + 1  # the activations of the one batch
