"""Dictionaries at several sites: a latent acts through all that it writes, and each site has an error."""

import pytest
import torch

from dictionary_learning import load_model
from dictionary_learning.attribution import attribute, circuit, edges, faithfulness, logit_difference, mean_latents
from dictionary_learning.dictionaries import AutoEncoderTopK, Crosscoder, CrossLayerTranscoder, DictionaryInfo
from dictionary_learning.errors import ConfigError
from dictionary_learning.interventions import latent_edits_for
from tests import tiny
from tests.attribution.cases import LAYERS, OTHERS, TEXTS, TOP_K, Linear, llama, placed
from tests.contracts.dictionary_cases import moved

METRIC = logit_difference(5, 9)
METHODS = ["gradient", "patching", "integrated", "ablation"]


def of_layers(sites=tuple(LAYERS)):
    torch.manual_seed(0)
    dictionary = moved(Crosscoder((16,) * len(sites), 48, TOP_K))
    dictionary.info = DictionaryInfo(sites=sites)
    return dictionary.double()


def across_layers():
    torch.manual_seed(0)
    dictionary = moved(CrossLayerTranscoder((16, 16), 48, TOP_K))
    sites = tuple(f"{layer}.mlp" for layer in LAYERS[:2])
    dictionary.info = DictionaryInfo(sites=tuple(f"{site}:in" for site in sites), target_sites=sites)
    return dictionary.double()


BUILD = {"crosscoder": of_layers, "cross_layer_transcoder": across_layers}


@pytest.fixture(scope="module")
def model():
    return llama()


@pytest.mark.parametrize("with_baseline", [True, False])
def test_every_method_is_exact_on_a_linear_model(with_baseline):
    linear = load_model(Linear().double(), tokenizer=tiny.tokenizer(bos=False))
    dictionary = of_layers(("layers.0", "layers.1"))
    baseline = OTHERS[:1] if with_baseline else None
    found = {
        method: attribute(linear, dictionary, TEXTS[:1], METRIC, method=method, baseline=baseline, n_steps=3)
        for method in METHODS
        if with_baseline or method != "patching"
    }
    ((_, exact),) = found["ablation"].effects.items()
    assert len(exact.effect) and bool(exact.site_error.flatten(1).any(1).all())
    for attribution in found.values():
        ((_, effects),) = attribution.effects.items()
        torch.testing.assert_close(effects.effect, exact.effect, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(effects.site_error, exact.site_error, rtol=1e-4, atol=1e-5)
        assert effects.total == pytest.approx(effects.change, abs=1e-4)


@pytest.mark.parametrize("baseline", [None, OTHERS], ids=["zero", "others"])
@pytest.mark.parametrize("kind", BUILD)
def test_integrated_effects_and_errors_sum_to_the_change(model, kind, baseline):
    attribution = attribute(model, BUILD[kind](), TEXTS, METRIC, baseline=baseline, n_steps=32)
    ((_, effects),) = attribution.effects.items()
    assert effects.total == pytest.approx(effects.change, abs=5e-3)
    torch.testing.assert_close(effects.site_error.sum(0), effects.error)
    if baseline and kind == "crosscoder":  # the last residual stream is among its sites: all that the text does
        other = float(METRIC(model.run(*attribution.baseline)))
        assert effects.change == pytest.approx(attribution.metric - other, abs=1e-5)


@pytest.mark.parametrize("kind", BUILD)
def test_gradients_are_those_of_plain_hooks(model, kind):
    """d metric / d latent by torch alone: decode(latents) + error in the place of every site."""
    dictionary = BUILD[kind]()
    ((_, effects),) = attribute(model, dictionary, TEXTS[:1], METRIC, method="gradient").effects.items()
    ids = torch.tensor([tiny.tokenizer(bos=False)(TEXTS[0])["input_ids"]])
    reads, writes = [str(s) for s in dictionary.info.sites], [str(s) for s in dictionary.info.target_sites]
    writes = writes or reads
    values = model.capture(ids, None, [*reads, *writes])
    x, y = (torch.cat([values[site][0] for site in sites], -1).double() for sites in (reads, writes))
    latents = dictionary.encode(x).detach().requires_grad_()
    y_hat = dictionary.decode(latents)
    errors = [one.detach().requires_grad_() for one in (y - y_hat).split(16, -1)]
    module = model._original
    sums = [(part + error).unsqueeze(0) for part, error in zip(y_hat.split(16, -1), errors, strict=True)]
    handles = [
        module.get_submodule(site).register_forward_hook(lambda *_, put=put: put)
        for site, put in zip(writes, sums, strict=True)
    ]
    METRIC(module(ids).logits).backward()
    for handle in handles:
        handle.remove()
    module.zero_grad()
    expected = (latents.grad * latents).detach()
    got = torch.zeros_like(expected).index_put((effects.position, effects.latent), effects.effect.double())
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
    for site, error, found in zip(writes, errors, effects.site_error[:, 0], strict=True):
        # of residual streams the last is all that what follows reads
        expected = torch.zeros(5) if error.grad is None else (error.grad * error).sum(-1)
        torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-6, msg=site)
    assert [site.path for site in effects.sites] == writes


def test_ablation_is_that_of_edited_latents(model):
    dictionary = of_layers()
    attribution = attribute(model, dictionary, TEXTS, METRIC, method="ablation", special_tokens=True)
    ((_, effects),) = attribution.effects.items()
    for entry in effects.top(3).tolist():
        keep = torch.zeros(2, 5, dtype=torch.bool)
        keep[effects.row[entry], effects.position[entry]] = True
        options = {"ablate": [int(effects.latent[entry])], "keep": keep, "special_tokens": True}
        made = latent_edits_for(model, dictionary, attribution.tokens, **options)
        held = {}
        for site in effects.sites:  # tokens that do not change are held too
            clean = model.capture(*attribution.tokens, [site])[site]
            changed = made.edits[site](clean)
            new = clean if changed is None else changed
            held[site] = lambda x, new=new: new
        with torch.no_grad():
            without = float(METRIC(model.run(*attribution.tokens, held)))
        assert float(effects.effect[entry]) == pytest.approx(attribution.metric - without, abs=1e-5)


def test_other_dictionaries_are_what_they_are_alone(model):
    several = [of_layers(), placed(lambda: AutoEncoderTopK(16, 48, 6), f"{LAYERS[1]}.mlp"), across_layers()]
    several[2].info = DictionaryInfo(
        sites=("model.layers.0.mlp:in", "model.layers.2.mlp:in"),
        target_sites=("model.layers.0.mlp", "model.layers.2.mlp"),
    )
    together = attribute(model, several, TEXTS[1], METRIC, method="gradient")
    assert len(together.effects) == 3
    for dictionary in several:
        ((site, effects),) = attribute(model, dictionary, TEXTS[1], METRIC, method="gradient").effects.items()
        torch.testing.assert_close(together.effects[site].effect, effects.effect, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(together.effects[site].site_error, effects.site_error, rtol=1e-4, atol=1e-6)


def test_what_needs_one_site_says_so(model):
    dictionary = of_layers()
    found = attribute(model, dictionary, TEXTS, METRIC, method="gradient")
    (site,) = found.effects
    for refused in (
        lambda: edges(model, dictionary, found, site, LAYERS[2], [0]),
        lambda: mean_latents(model, dictionary, TEXTS),
        lambda: faithfulness(model, dictionary, TEXTS, METRIC, circuit(found, n_nodes=3)),
    ):
        with pytest.raises(ConfigError, match="reads 3 sites and writes 3"):
            refused()
    with pytest.raises(ConfigError, match="Two dictionaries"):
        attribute(model, [dictionary, placed(lambda: AutoEncoderTopK(16, 48, 6), LAYERS[1])], TEXTS, METRIC)
