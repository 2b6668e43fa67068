"""Effects of latents equal what is computed by hand: with the model's own weights, or a plain hook."""

import importlib.util

import pytest
import torch

from dictionary_learning import load_model
from dictionary_learning.dictionaries import (
    AutoEncoder,
    AutoEncoderTopK,
    Crosscoder,
    CrossLayerTranscoder,
    HeadAutoencoders,
    IdentityDict,
    Transcoder,
)
from dictionary_learning.dictionaries._info import DictionaryInfo
from dictionary_learning.dictionaries._normalized import Normalized
from dictionary_learning.errors import (
    ConfigError,
    DictionaryLearningError,
    MissingDependencyError,
    ModelError,
)
from dictionary_learning.interpretation import (
    ablation_effects,
    coactivation,
    latent_map,
    logit_lens,
    nearest_latents,
)
from dictionary_learning.interpretation._directions import Directions
from tests import tiny
from tests.attribution.scaled import FACTORS, scaled
from tests.interpretation.brute import CTX, activations, contexts, dense_latents, usual_keep

SITE = "model.layers.1"
TEXTS = tiny.documents(40)
READ = {"n_tokens": 400, "ctx_len": CTX, "batch_size": 4}
TOP_K = {"name": "top_k", "k": 6}
NORM = {
    "gpt2": "transformer.ln_f", "neox": "gpt_neox.final_layer_norm", "llama": "model.norm", "gemma3": "model.norm",
    "qwen3": "model.norm", "mistral": "model.norm", "mixtral": "model.norm", "phi": "model.final_layernorm",
    "opt": "model.decoder.final_layer_norm", "gptj": "transformer.ln_f", "falcon": "transformer.ln_f",
    "bloom": "transformer.ln_f", "mamba": "backbone.norm_f", "t5": "decoder.final_layer_norm",
}  # fmt: skip


def family(name: str):
    """Returns a model none of whose norms has its initial weights."""
    built = tiny.model(name)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.4 * torch.randn(parameter.shape, generator=generator))
    return built


def sae(dict_size: int = 24):
    torch.manual_seed(3)
    dictionary = AutoEncoderTopK(tiny.DIM, dict_size, k=6)
    dictionary.info = DictionaryInfo(sites=(SITE,))
    return dictionary


@pytest.fixture(scope="module")
def model():
    return load_model(tiny.model(), tokenizer=tiny.tokenizer())


@pytest.mark.parametrize("name", FACTORS)
def test_logit_lens_has_the_factor_of_the_models_logits(name):
    module, dictionary = scaled(name), sae()
    norm = module.model.norm
    rows = dictionary.W_dec.detach()
    rows = rows - rows.mean(dim=1, keepdim=True) if name == "cohere" else rows
    scale = norm.weight.detach() + (1 if name == "gemma2" else 0)
    logits = FACTORS[name] * (rows * scale) @ module.lm_head.weight.detach().T
    found = logit_lens(load_model(module, tokenizer=tiny.tokenizer()), dictionary, n=5)
    torch.testing.assert_close(found.promoted_logits, logits.topk(5).values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NORM)
def test_logit_lens_is_decoder_times_norm_times_unembedding(name):
    module, dictionary = family(name), AutoEncoderTopK(tiny.DIM, 24, k=6)
    norm, unembedding = module.get_submodule(NORM[name]), module.get_output_embeddings()
    rows = dictionary.W_dec.detach()
    if isinstance(norm, torch.nn.LayerNorm):
        rows = rows - rows.mean(dim=1, keepdim=True)
    scale = norm.weight.detach() + (1 if name == "gemma3" else 0)
    logits = (rows * scale) @ unembedding.weight.detach().T * (tiny.DIM**-0.5 if name == "t5" else 1)
    found = logit_lens(module, dictionary, 5)
    torch.testing.assert_close(found.promoted_logits, logits.topk(5).values, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.suppressed_logits, logits.topk(5, largest=False).values, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits.gather(1, found.promoted), found.promoted_logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits.gather(1, found.suppressed), found.suppressed_logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.low, logits.amin(1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.high, logits.amax(1), atol=1e-4, rtol=1e-4)
    assert found.histogram.sum(1).unique().tolist() == [logits.shape[1]]
    expected = torch.stack([torch.histc(row, 50, float(row.min()), float(row.max())) for row in logits])
    assert (found.histogram - expected).abs().sum() <= 0.02 * logits.numel()  # some lie within rounding of an edge


def test_lens_in_chunks_is_the_same(monkeypatch):
    whole = logit_lens(family("llama"), sae(), 4)
    monkeypatch.setattr("dictionary_learning.interpretation._effects._MOST", 97 * 5)
    for a, b in zip(whole, logit_lens(family("llama"), sae(), 4), strict=True):
        torch.testing.assert_close(a, b)


def test_lens_does_not_change_the_model():
    module = family("gpt2").train()
    module.transformer.h[0].eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    logit_lens(module, AutoEncoderTopK(tiny.DIM, 24, k=6), 3)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert module.training and not module.transformer.h[0].mlp.training
    assert not any(part._forward_hooks for part in module.modules())


@pytest.mark.parametrize("name", ["bert", "roberta", "bart"])
def test_model_without_a_final_norm_is_refused(name):
    with pytest.raises(ModelError, match="no norm between"):
        logit_lens(tiny.model(name), sae(), 3)


def test_other_wrong_requests_of_the_lens_are_refused(model):
    with pytest.raises(ModelError, match="names no unembedding"):
        logit_lens(load_model(torch.nn.Linear(4, 4), example=torch.zeros(1, 2, 4)), sae(), 3)
    with pytest.raises(ConfigError, match="97 tokens in the vocabulary"):
        logit_lens(model, sae(), 98)
    with pytest.raises(ConfigError, match="directions of width 8"):
        logit_lens(model, AutoEncoderTopK(8, 16, k=2), 3)
    with pytest.raises(ConfigError, match="writes 1 sites"):
        logit_lens(model, sae(), 3, write=1)
    with pytest.raises(ConfigError, match="no directions"):
        logit_lens(model, IdentityDict(tiny.DIM), 3)
    with pytest.raises(DictionaryLearningError):
        logit_lens(model, sae(), 0)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_latents_of_heads_go_through_the_projection(name):
    module = family(name)
    path = {"llama": f"{SITE}.self_attn.o_proj", "gpt2": "transformer.h.1.attn.c_proj"}[name]
    dictionary = HeadAutoencoders(tiny.DIM, 24, TOP_K, n_heads=2)
    found = logit_lens(module, dictionary, 3, site=f"{path}:in")
    weight = module.get_submodule(path).weight.detach()
    rows = torch.zeros(24, tiny.DIM)
    for n, part in enumerate(dictionary.parts):
        rows[12 * n : 12 * n + 12, 8 * n : 8 * n + 8] = part.W_dec.detach()
    plain = AutoEncoder(tiny.DIM, 24)
    plain.W_dec.data = rows @ (weight if name == "gpt2" else weight.T)
    torch.testing.assert_close(found.promoted_logits, logit_lens(module, plain, 3).promoted_logits)


def test_directions_are_those_of_the_coders():
    generator = torch.Generator().manual_seed(0)
    crosscoder = Crosscoder((16, 4), 24, TOP_K, generator=generator)
    assert torch.equal(Directions(crosscoder, write=-1).rows(3, 9), crosscoder.W_dec[3:9, 16:].detach())
    layers = CrossLayerTranscoder((6, 5), 24, TOP_K, output_dims=(3, 4), generator=generator)
    whole = Directions(layers).all_unit_rows()
    assert whole.shape == (24, 7) and not whole[12:, :3].any()
    for latent, row in enumerate(Directions(layers, write=1).rows(0, 24)):
        one = torch.zeros(1, 24).index_fill(1, torch.tensor([latent]), 1.0)
        torch.testing.assert_close(row, (layers.decode(one) - layers.decode(0 * one))[0, 3:].detach())
    inside = AutoEncoderTopK(16, 24, k=3)
    assert torch.equal(Directions(Normalized(inside, "layer_norm")).rows(0, 24), inside.W_dec.detach())


@pytest.mark.parametrize("by", ["decoder", "encoder"])
@pytest.mark.parametrize("most", [1 << 24, 24 * 5])
def test_nearest_latents_are_those_of_all_cosines(by, most, monkeypatch):
    monkeypatch.setattr("dictionary_learning.interpretation._neighbors._MOST", most)
    torch.manual_seed(0)
    one, other = Transcoder(6, 24, TOP_K, output_dim=9), Transcoder(6, 30, TOP_K, output_dim=9)
    with torch.no_grad():
        for d in (one, other):
            d.W_enc.add_(torch.randn_like(d.W_enc))
            d.W_dec.mul_(torch.rand(d.dict_size, 1) + 0.5)
    rows, others = ({"decoder": d.W_dec, "encoder": d.W_enc}[by].detach() for d in (one, other))
    cosines = torch.nn.functional.cosine_similarity(rows.unsqueeze(1), rows.unsqueeze(0), dim=-1)
    expected = (cosines - 10 * torch.eye(24)).topk(4)
    found = nearest_latents(one, 4, by=by)
    torch.testing.assert_close(found.similarities, expected.values)
    assert torch.equal(found.latents, expected.indices)
    cosines = torch.nn.functional.cosine_similarity(rows.unsqueeze(1), others.unsqueeze(0), dim=-1)
    found = nearest_latents(one, 30, by=by, other=other)
    torch.testing.assert_close(found.similarities, cosines.topk(30).values)


def test_wrong_requests_for_neighbors_are_refused():
    with pytest.raises(ConfigError, match="there are 23 other"):
        nearest_latents(sae(), 24)
    with pytest.raises(ConfigError, match="width 16 and 8"):
        nearest_latents(sae(), 3, other=AutoEncoder(8, 24))
    with pytest.raises(ConfigError):
        nearest_latents(sae(), 3, by="middle")
    with pytest.raises(ConfigError):
        nearest_latents(sae(), 0)


def test_map_by_pca_has_the_two_largest_spreads():
    dictionary = sae(60)
    found = latent_map(dictionary, "pca")
    rows = torch.nn.functional.normalize(dictionary.W_dec.detach(), dim=1)
    u, s, _ = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
    torch.testing.assert_close(found.abs(), (u * s)[:, :2].abs(), atol=1e-4, rtol=1e-3)
    assert torch.equal(found, latent_map(dictionary, "pca"))


@pytest.mark.skipif(importlib.util.find_spec("umap") is None, reason="umap-learn is not installed")
@pytest.mark.filterwarnings("ignore")
def test_map_by_umap_puts_near_directions_together_and_is_seeded():
    dictionary = sae(60)
    groups = torch.arange(60) % 3
    centers = torch.eye(tiny.DIM)[:3]
    dictionary.W_dec.data = centers[groups] + 0.1 * torch.randn(60, tiny.DIM)
    found = latent_map(dictionary, "umap", seed=1)
    apart = torch.cdist(found, found)
    same = groups.unsqueeze(0) == groups.unsqueeze(1)
    assert apart[same].mean() < 0.3 * apart[~same].mean()
    assert torch.equal(found, latent_map(dictionary, "auto", seed=1))


def test_map_without_umap_is_pca_or_refused(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert torch.equal(latent_map(sae()), latent_map(sae(), "pca"))
    with pytest.raises(MissingDependencyError, match="umap-learn"):
        latent_map(sae(), "umap")
    with pytest.raises(ConfigError):
        latent_map(sae(), "tsne")


def read(model, dictionary):
    tokens = contexts(TEXTS, 400)
    keep = usual_keep(tokens)
    return tokens, keep, dense_latents(dictionary, activations(model._original, SITE, tokens), keep)


@pytest.mark.parametrize("most", [1 << 23, 20 * 7])
def test_coactivation_counts_pairs(model, most, monkeypatch):
    monkeypatch.setattr("dictionary_learning.interpretation._coactivation._MOST", most)
    dictionary = sae()
    _, keep, dense = read(model, dictionary)
    active = (dense[keep] > 0).float()
    for latents in (None, [5, 2, 19]):
        chosen = active if latents is None else active[:, latents]
        found = coactivation(model, dictionary, TEXTS, latents, **READ)
        assert found.n_tokens == len(active) and torch.equal(found.counts, (chosen.T @ chosen).long())
        for i in range(3):
            for j in range(3):
                either = ((chosen[:, i] + chosen[:, j]) > 0).sum()
                assert float(found.jaccard[i, j]) == pytest.approx(float((chosen[:, i] * chosen[:, j]).sum() / either))
                phi = torch.corrcoef(torch.stack([chosen[:, i], chosen[:, j]]))[0, 1]
                assert float(found.phi[i, j]) == pytest.approx(float(phi), abs=1e-5)


def ablated(model, dictionary, tokens, keep, latent):
    """Returns the logits with a latent's part subtracted by a plain hook."""

    def subtract(_, args, output):
        x = output[0] if isinstance(output, tuple) else output
        part = dictionary.encode(x)[..., latent : latent + 1] * dictionary.W_dec[latent] * keep.unsqueeze(-1)
        return (x - part, *output[1:]) if isinstance(output, tuple) else x - part

    handle = model._original.get_submodule(SITE).register_forward_hook(subtract)
    with torch.no_grad():
        logits = model._original(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask.long()).logits
    handle.remove()
    return logits


@pytest.mark.parametrize("n_contexts", [1000, 3])
def test_ablation_equals_a_plain_hook(model, n_contexts):
    dictionary = sae()
    tokens, keep, dense = read(model, dictionary)
    with torch.no_grad():
        clean = model._original(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask.long()).logits
    found = ablation_effects(model, dictionary, TEXTS, [3, 11], n=4, n_contexts=n_contexts, **READ)
    for row, latent in enumerate([3, 11]):
        active = dense[..., latent] > 0
        rows = active.any(1).nonzero().squeeze(1)[:n_contexts]
        changed = ablated(model, dictionary, tokens, keep, latent)
        kls, ces, changes, later_kls, later_ces = [], [], [], [], []
        for r in rows.tolist():
            first = int(active[r].nonzero()[0])
            for c in range(first, CTX - 1):
                if not (keep[r, c] and keep[r, c + 1]):
                    continue
                log_p, log_q = clean[r, c].log_softmax(-1), changed[r, c].log_softmax(-1)
                kl, ce = (
                    float((log_p.exp() * (log_p - log_q)).sum()),
                    float((log_p - log_q)[tokens.input_ids[r, c + 1]]),
                )
                later_kls.append(kl)
                later_ces.append(ce)
                if active[r, c]:
                    kls.append(kl)
                    ces.append(ce)
                    changes.append(log_q.exp() - log_p.exp())
        change = torch.stack(changes).mean(0)
        mean = [sum(one) / len(one) for one in (kls, ces, later_kls, later_ces)]
        figures = (found.kl, found.ce_increase, found.later_kl, found.later_ce_increase)
        assert [float(one[row]) for one in figures] == pytest.approx(mean, rel=2e-3, abs=1e-5)
        assert int(found.n_tokens[row]) == len(kls) > 0
        torch.testing.assert_close(found.promoted_changes[row], change.topk(4).values, atol=1e-5, rtol=1e-3)
        torch.testing.assert_close(
            found.suppressed_changes[row], change.topk(4, largest=False).values, atol=1e-5, rtol=1e-3
        )
        torch.testing.assert_close(change[found.promoted[row]], found.promoted_changes[row], atol=1e-5, rtol=1e-3)


def test_ablation_of_a_transcoder_changes_what_it_writes(model):
    dictionary = Transcoder(tiny.DIM, 24, TOP_K, generator=torch.Generator().manual_seed(0))
    dictionary.info = DictionaryInfo(sites=(f"{SITE}.mlp:in",))
    found = ablation_effects(model, dictionary, TEXTS, [1, 2, 3], n=2, **READ)
    assert (found.kl[found.n_tokens > 0] > 0).all() and (found.n_tokens > 0).any()
    named = ablation_effects(model, dictionary, TEXTS, [1, 2, 3], n=2, target=f"{SITE}.mlp", **READ)
    torch.testing.assert_close(found.kl, named.kl, equal_nan=True)


def test_dead_latent_has_no_effect(model):
    dictionary = AutoEncoder(tiny.DIM, 24)
    dictionary.b_enc.data[5] = -1000.0
    found = ablation_effects(model, dictionary, TEXTS, [5], site=SITE, **READ)
    assert int(found.n_tokens[0]) == 0 and found.kl.isnan().all() and found.promoted_changes.isnan().all()


@pytest.mark.parametrize("latents", [[], [24], [-1], [3, 3]])
def test_latents_that_do_not_exist_are_refused(model, latents):
    for function in (coactivation, ablation_effects):
        with pytest.raises(ConfigError, match=r"atent"):
            function(model, sae(), TEXTS, latents, **READ)


def test_dictionaries_of_several_sites_are_not_ablated(model):
    dictionary = Crosscoder((16, 16), 24, TOP_K)
    with pytest.raises(ConfigError, match="several sites"):
        ablation_effects(model, dictionary, TEXTS, [1], site=["model.layers.0", SITE], **READ)
    dictionary = Transcoder(16, 24, TOP_K)
    with pytest.raises(ConfigError, match="target="):
        ablation_effects(model, dictionary, TEXTS, [1], site=SITE, **READ)
    with pytest.raises(ConfigError, match="vocabulary"):
        ablation_effects(model, sae(), TEXTS, [1], n=98, **READ)
