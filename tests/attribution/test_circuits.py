"""Edges are derivatives, and circuits do what plain hooks do."""

import pytest
import torch

from dictionary_learning.attribution import (
    Circuit,
    Kept,
    attribute,
    circuit,
    edges,
    faithfulness,
    logit_difference,
    mean_latents,
)
from dictionary_learning.errors import ConfigError, SiteError
from dictionary_learning.sites import SiteDict
from tests import tiny
from tests.attribution.cases import BUILD, LAYERS, OTHERS, TEXTS, llama

METRIC = logit_difference(5, 9)
TEXT = TEXTS[:1]


@pytest.fixture(scope="module")
def model():
    return llama()


@pytest.fixture(scope="module")
def dictionaries():
    return [BUILD[kind]() for kind in ("relu", "top_k")]


@pytest.fixture(scope="module")
def attribution(model, dictionaries):
    return attribute(model, dictionaries, TEXT, METRIC, baseline=OTHERS[:1], method="patching")


def later_latents(model, dictionary, site, added):
    """Returns the latents (ctx, dict_size) of a later dictionary after a change at an earlier site."""
    ids = torch.tensor([tiny.tokenizer(bos=False)(TEXT[0])["input_ids"]])
    seen = []
    module = model._original
    handles = [
        module.get_submodule(site).register_forward_hook(lambda _, __, out: out + added),
        module.get_submodule(dictionary.info.sites[0].partition(":")[0]).register_forward_hook(
            lambda _, __, out: seen.append(out)
        ),
    ]
    with torch.no_grad():
        module(ids)
        [handle.remove() for handle in handles]
        return dictionary.encode(seen[0][0])


def test_an_edge_is_the_derivative_of_the_later_latent(model, dictionaries, attribution):
    """Differences of plain forward passes; norms are computed in float32, so the steps are not small."""
    up, down = dictionaries
    chosen = attribution.effects[LAYERS[1]].top(4)
    found = edges(model, dictionaries, attribution, LAYERS[0], LAYERS[1], chosen)
    first, later = attribution.effects[LAYERS[0]], attribution.effects[LAYERS[1]]
    assert found.weight.shape == (4, len(first.effect)) and found.error.shape == (4, 1, 5)
    step = 1e-3
    for entry in found.weight.abs().amax(0).topk(5).indices.tolist():
        direction = torch.zeros(1, 5, 16, dtype=torch.float64)
        direction[0, first.position[entry]] = up.W_dec[first.latent[entry]].detach()
        ahead, behind = (later_latents(model, down, LAYERS[0], s * step * direction) for s in (1, -1))
        slope = ((ahead - behind) / (2 * step))[later.position[chosen], later.latent[chosen]]
        difference = first.activation[entry] - first.baseline[entry]
        expected = later.gradient[chosen] * slope * difference
        torch.testing.assert_close(found.weight[:, entry].double(), expected, rtol=1e-2, atol=1e-4)


def test_edges_and_errors_are_the_whole_derivative_along_the_difference(model, dictionaries, attribution):
    down = dictionaries[1]
    chosen = attribution.effects[LAYERS[1]].top(6)
    found = edges(model, dictionaries, attribution, LAYERS[0], LAYERS[1], chosen)
    clean, other = (model.capture(*tokens, [LAYERS[0]])[LAYERS[0]] for tokens in attribution[3:5])
    step = 1e-3
    ahead, behind = (later_latents(model, down, LAYERS[0], s * step * (clean - other)) for s in (1, -1))
    later = attribution.effects[LAYERS[1]]
    slope = ((ahead - behind) / (2 * step))[later.position[chosen], later.latent[chosen]]
    total = (found.weight.sum(1) + found.error.sum((1, 2))).double()
    torch.testing.assert_close(total, later.gradient[chosen] * slope, rtol=1e-2, atol=1e-4)


def test_paths_stop_where_asked(model):
    dictionaries = [BUILD["relu"](), BUILD["jump_relu"]()]
    attribution = attribute(model, dictionaries, TEXT, METRIC, method="gradient")
    down = f"{LAYERS[2]}:in"
    chosen = attribution.effects[down].top(3)
    whole = edges(model, dictionaries, attribution, LAYERS[0], down, chosen)
    nothing = edges(model, dictionaries, attribution, LAYERS[0], down, chosen, stop_at=LAYERS[1])
    without = edges(model, dictionaries, attribution, LAYERS[0], down, chosen, stop_at=f"{LAYERS[1]}.mlp")
    assert whole.weight.any() and not nothing.weight.any()
    assert without.weight.any() and not torch.allclose(without.weight, whole.weight)


def test_edges_to_transcoders_are_those_of_what_they_read(model):
    dictionaries = [BUILD["relu"](), BUILD["transcoder"]()]
    attribution = attribute(model, dictionaries, TEXTS, METRIC, method="gradient")
    found = edges(model, dictionaries, attribution, LAYERS[0], f"{LAYERS[1]}.mlp", [0, 3])
    assert found.weight.any()
    with pytest.raises(SiteError, match="does not come after"):
        edges(model, dictionaries, attribution, f"{LAYERS[1]}.mlp", LAYERS[0], [0])


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"chosen": [0, 0]}, ConfigError, "different places"),
        ({"chosen": [10**6]}, ConfigError, "different places"),
        ({"upstream": LAYERS[2]}, SiteError, "has no effects"),
        ({"upstream": LAYERS[1]}, SiteError, "does not come after"),
        ({"stop_at": LAYERS[0]}, SiteError, "between"),
        ({"dictionaries": BUILD["relu"]()}, SiteError, "no dictionary at"),
    ],
    ids=str,
)
def test_wrong_edges_are_refused(model, dictionaries, attribution, given, error, match):
    good = {"dictionaries": dictionaries, "upstream": LAYERS[0], "downstream": LAYERS[1], "chosen": [0]}
    with pytest.raises(error, match=match):
        edges(model, attribution=attribution, **{**good, **given})


def by_hand(model, dictionaries, kept, means=None):
    """Returns the metric when plain hooks rewrite each site as decode(kept latents) + kept error."""
    handles = []
    for dictionary in dictionaries:
        site = dictionary.info.sites[0]
        inside, errors = kept[site]
        fill, filled_error = means[site] if means else (torch.zeros(48), torch.zeros(16))

        def hook(_, __, x, d=dictionary, inside=inside, errors=errors, fill=fill, filled_error=filled_error):
            f = d.encode(x)
            e = x - d.decode(f)
            f = torch.where(inside, f, fill.to(f))
            return d.decode(f) + torch.where(errors.unsqueeze(-1), e, filled_error.to(e))

        handles.append(model._original.get_submodule(site).register_forward_hook(hook))
    ids = torch.tensor([tiny.tokenizer(bos=False)(TEXT[0])["input_ids"]])
    with torch.no_grad():
        value = float(METRIC(model._original(ids).logits))
    [handle.remove() for handle in handles]
    return value


@pytest.mark.parametrize("with_means", [False, True])
@pytest.mark.parametrize("by_position", [False, True])
def test_faithfulness_is_that_of_plain_hooks(model, dictionaries, by_position, with_means):
    attribution = attribute(model, dictionaries, TEXT, METRIC)
    found = circuit(attribution, n_nodes=30, by_position=by_position)
    assert found.n_nodes == 30
    means = mean_latents(model, dictionaries, TEXTS) if with_means else None
    got = faithfulness(model, dictionaries, TEXT, METRIC, found, means=means)
    plain = means and {layer: tuple(means[layer]) for layer in LAYERS[:2]}
    kept = {layer: tuple(found.kept[layer]) for layer in LAYERS[:2]}
    inverse = {layer: tuple(~part for part in parts) for layer, parts in kept.items()}
    nothing = {layer: tuple(part & False for part in parts) for layer, parts in kept.items()}
    expected = [by_hand(model, dictionaries, which, plain) for which in (kept, inverse, nothing)]
    assert [got.circuit, got.complement, got.empty] == pytest.approx(expected, abs=1e-4)
    assert got.model == pytest.approx(attribution.metric)
    assert got.faithfulness == pytest.approx((expected[0] - expected[2]) / (got.model - expected[2]), abs=1e-3)
    assert got.completeness == pytest.approx((expected[1] - expected[2]) / (got.model - expected[2]), abs=1e-3)


def test_everything_is_faithful_and_nothing_is_not(model):
    dictionaries = [BUILD[kind]() for kind in ("relu", "transcoder", "heads", "jump_relu")]
    attribution = attribute(model, dictionaries, TEXTS, METRIC, method="gradient")
    whole = {
        site: Kept(torch.ones(1, 48, dtype=torch.bool), torch.ones(1, dtype=torch.bool)) for site in attribution.effects
    }
    got = faithfulness(model, dictionaries, TEXTS, METRIC, Circuit(SiteDict(whole)))
    assert got.faithfulness == pytest.approx(1, abs=1e-4) and got.completeness == pytest.approx(0, abs=1e-4)
    got = faithfulness(model, dictionaries, TEXTS, METRIC, Circuit(SiteDict(whole)).complement())
    assert got.faithfulness == pytest.approx(0, abs=1e-4) and got.completeness == pytest.approx(1, abs=1e-4)


def test_means_are_those_of_the_dense_latents(model, dictionaries):
    means = mean_latents(model, dictionaries, TEXTS)
    for dictionary, layer in zip(dictionaries, LAYERS, strict=False):
        ids = [torch.tensor([tiny.tokenizer(bos=False)(text)["input_ids"]]) for text in TEXTS]
        x = torch.cat([model.capture(one, None, [layer])[layer][0] for one in ids])
        f = dictionary.encode(x)
        torch.testing.assert_close(means[layer].latents, f.mean(0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(means[layer].error, (x - dictionary.decode(f)).mean(0), rtol=1e-5, atol=1e-6)


def test_circuits_have_the_largest_effects(model, dictionaries):
    attribution = attribute(model, dictionaries, TEXT, METRIC)
    sums = {site: effects.by_latent() for site, effects in attribution.effects.items()}
    found = circuit(attribution, threshold=0.05)
    for site, kept in found.kept.items():
        assert torch.equal(kept.latents[0], sums[site].abs() >= 0.05)
    few, more = (circuit(attribution, n_nodes=n) for n in (3, 9))
    assert (few.n_nodes, more.n_nodes) == (3, 9)
    assert all((kept.latents <= more.kept[site].latents).all() for site, kept in few.kept.items())


def test_wrong_circuits_are_refused(model, dictionaries):
    attribution = attribute(model, dictionaries, TEXT, METRIC)
    for options in ({}, {"n_nodes": 3, "threshold": 0.1}):
        with pytest.raises(ConfigError, match="exactly one"):
            circuit(attribution, **options)
    with pytest.raises(ConfigError, match="n_nodes"):
        circuit(attribution, n_nodes=0)
    found = circuit(attribution, n_nodes=5, by_position=True)
    with pytest.raises(ConfigError, match="5 positions"):
        faithfulness(model, dictionaries, "w1 w2", METRIC, found)
    with pytest.raises(ConfigError, match="Give the dictionary"):
        faithfulness(model, dictionaries[:1], TEXT, METRIC, found)
