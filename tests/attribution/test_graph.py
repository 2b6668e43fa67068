"""Attribution graphs: direct effects are those of the frozen model, and sum to what each node is."""

import pytest
import torch

from dictionary_learning import load_model
from dictionary_learning.attribution import Placed, attribution_graph
from dictionary_learning.dictionaries import AutoEncoderTopK, Crosscoder, Transcoder
from dictionary_learning.errors import ConfigError, DataError, ModelError
from dictionary_learning.interventions import read_latents
from tests import tiny
from tests.attribution.graph_cases import TEXT, FrozenLlama, cross_layer, model, transcoders
from tests.attribution.scaled import FACTORS, scaled

ALL = {"max_latents": None, "n_logits": 4}


def values_of(traced, graph):
    """Returns what the effects on each latent and logit should sum to."""
    with torch.no_grad():
        logits = traced.run(graph.input_ids.unsqueeze(0))[0, -1].double()
    return torch.cat([graph.activation, logits[graph.logit_ids] - logits.mean()])


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("kind", ["top_k", "relu", "cross_layer"])
# every family, and every kind with both sorts of norm
@pytest.mark.covering(shows=lambda family, kind: {family, (kind, family in ("gpt2", "neox"))})
def test_effects_on_a_node_sum_to_its_value(family, kind):
    """To 1e-5 where a norm computes in float32, as in Llama; no dictionary has a bias here."""
    traced = model(family)
    given = cross_layer(family) if kind == "cross_layer" else transcoders(family, name=kind)
    graph = attribution_graph(traced, given, TEXT, **ALL)
    assert len(graph.latent) == graph.n_active > 50 and graph.weight.dtype == torch.float64
    torch.testing.assert_close(graph.weight.sum(1), values_of(traced, graph), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("name", FACTORS)
def test_logits_have_the_models_factor_and_no_cap(name):
    module = scaled(name).double()
    traced = load_model(module, tokenizer=tiny.tokenizer(bos=False))
    graph = attribution_graph(traced, transcoders(), TEXT, **ALL)
    seen = []
    handle = module.lm_head.register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        logits = module(graph.input_ids.unsqueeze(0)).logits[0, -1]
    handle.remove()
    raw = seen[0][0, -1] * FACTORS[name]
    assert torch.allclose(raw, logits, rtol=1e-6) == (name != "gemma2")
    sums = graph.weight.sum(1)[len(graph.latent) :]
    torch.testing.assert_close(sums, raw[graph.logit_ids] - raw.mean(), rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(graph.probability.double(), logits.softmax(-1)[graph.logit_ids], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("after", ["log_softmax", "norm"])
def test_logits_that_are_no_multiple_are_refused(after):
    class Other(type(tiny.model())):
        def forward(self, *args, **kwargs):
            made = super().forward(*args, **kwargs)
            made.logits = (
                made.logits.log_softmax(-1)
                if after == "log_softmax"
                else made.logits / made.logits.norm(dim=-1, keepdim=True)
            )
            return made

    module = tiny.model()
    module.__class__ = Other
    with pytest.raises(ModelError, match="neither a multiple"):
        attribution_graph(load_model(module.double().eval(), tokenizer=tiny.tokenizer()), transcoders(), TEXT)


@pytest.mark.parametrize("kind", ["skip", "no_skip", "cross_layer"])
def test_effects_are_those_of_the_linear_map_by_hand(kind):
    traced = model()
    given = cross_layer(biases=True) if kind == "cross_layer" else transcoders(biases=True, skip=kind == "skip")
    graph = attribution_graph(traced, given, TEXT, **ALL)
    ids, ctx, n = graph.input_ids.unsqueeze(0), len(graph.input_ids), len(graph.latent)
    frozen = FrozenLlama(traced, ids)
    with torch.no_grad():
        embedded = traced.module.get_input_embeddings()(ids)[0]
        added = torch.zeros(graph.n_nodes, tiny.LAYERS, ctx, tiny.DIM, dtype=torch.float64)
        start = torch.zeros(graph.n_nodes, ctx, tiny.DIM, dtype=torch.float64)
        sites = [f"model.layers.{layer}.mlp{side}" for layer in range(tiny.LAYERS) for side in (":in", "")]
        captured = [captured[0] for captured in traced.capture(ids, None, sites).values()]
        x, y = captured[0::2], captured[1::2]
        coders = [part.coder for part in given.coders()] if kind == "cross_layer" else given
        made = given.reconstruct(torch.cat(x, 1)).outputs.split(tiny.DIM, 1) if kind == "cross_layer" else [
            one.reconstruct(rows).outputs for one, rows in zip(given, x, strict=True)
        ]  # fmt: skip
        for number, (layer, position, latent) in enumerate(
            zip(graph.layer.tolist(), graph.position.tolist(), graph.latent.tolist(), strict=True)
        ):
            parts = (graph.activation[number] * coders[layer].W_dec[latent]).split(tiny.DIM)
            for offset, part in enumerate(parts):
                added[number, layer + offset, position] = part
        for layer in range(tiny.LAYERS):
            for position in range(ctx):
                added[n + layer * ctx + position, layer, position] = (y[layer] - made[layer])[position]
        for position in range(ctx):
            start[n + tiny.LAYERS * ctx + position, position] = embedded[position]
        skips = [one.W_skip for one in given] if kind == "skip" else None
        head = traced.module.get_output_embeddings().weight
        for source in range(graph.n_nodes):
            reads = frozen.reads(start[source], added[source], skips)
            on_latents = [
                reads[layer][position] @ coders[layer].W_enc[latent]
                for layer, position, latent in zip(graph.layer, graph.position, graph.latent, strict=True)
            ]
            on_logits = (head[graph.logit_ids] - head.mean(0)) @ reads[-1][-1]
            expected = torch.cat([torch.stack(on_latents), on_logits])
            torch.testing.assert_close(graph.weight[:, source], expected, rtol=1e-5, atol=1e-5)


def test_latents_are_those_that_are_read():
    traced, given = model(), transcoders(biases=True)
    graph = attribution_graph(traced, given, TEXT, **ALL)
    for layer, one in enumerate(given):
        own, dense = graph.layer == layer, torch.zeros(5, 48, dtype=torch.float64)
        dense[graph.position[own], graph.latent[own]] = graph.activation[own]
        torch.testing.assert_close(dense, read_latents(traced, one, TEXT).dense()[0].double())
    order = torch.stack([graph.layer, graph.position, graph.latent], 1).tolist()
    assert order == sorted(order)


def test_a_layer_without_a_transcoder_is_an_error_as_a_whole():
    traced = model()
    graph = attribution_graph(traced, transcoders(layers=[1]), TEXT, **ALL)
    torch.testing.assert_close(graph.weight.sum(1), values_of(traced, graph), rtol=1e-5, atol=2e-5)
    assert set(graph.layer.tolist()) == {1} and graph.n_layers == 3
    by_layer = graph.weight[-1, len(graph.latent) : len(graph.latent) + 15].reshape(3, 5)
    assert bool((by_layer[2, -1] != 0) & (by_layer[0] != 0).all())


def test_special_tokens_have_errors_and_no_latents():
    traced = model()
    traced.tokenizer = tiny.tokenizer()
    given = transcoders()
    graph = attribution_graph(traced, given, TEXT, **ALL)
    assert graph.tokens[0] == "<s>" and 0 not in graph.position.tolist()
    torch.testing.assert_close(graph.weight.sum(1), values_of(traced, graph), rtol=1e-5, atol=2e-5)
    assert 0 in attribution_graph(traced, given, TEXT, special_tokens=True, **ALL).position.tolist()


def test_effects_lead_forwards_only():
    graph = attribution_graph(model(), transcoders(), TEXT, **ALL)
    n = len(graph.latent)
    assert not graph.weight[:, -4:].any()  # from logits
    later = graph.layer.unsqueeze(1) <= graph.layer
    assert not graph.weight[:n, :n][later].any()
    assert not graph.weight[:n, :n][graph.position.unsqueeze(1) < graph.position].any()


def test_the_batch_size_and_the_attention_change_nothing():
    traced, given = model(), transcoders()
    whole = attribution_graph(traced, given, TEXT, **ALL)
    traced._original.set_attn_implementation("eager")
    small = attribution_graph(traced, given, TEXT, batch_size=7, **ALL)
    torch.testing.assert_close(small.weight, whole.weight, rtol=1e-5, atol=2e-5)


def test_fewer_latents_are_those_of_most_influence():
    """With a batch of one all are ranked again after four, so the first ones are those of a whole graph."""
    traced, given = model(), transcoders()
    whole = attribution_graph(traced, given, TEXT, **ALL)
    some = attribution_graph(traced, given, TEXT, max_latents=12, n_logits=4, batch_size=1)
    assert len(some.latent) == 12 and some.n_active == whole.n_active == len(whole.latent)
    places = {key: n for n, key in enumerate(zip(*_keys(whole), strict=True))}
    own = torch.tensor([places[key] for key in zip(*_keys(some), strict=True)])
    others = torch.arange(len(whole.latent), whole.n_nodes)
    kept = torch.cat([own, others])
    torch.testing.assert_close(some.weight[:12], whole.weight[own][:, kept], rtol=1e-6, atol=1e-9)
    shares = whole.weight[-4:].abs() / whole.weight[-4:].abs().sum(1, keepdim=True)
    direct = (whole.probability.double() @ shares)[: len(whole.latent)]
    assert set(direct.topk(4).indices.tolist()) <= set(own.tolist())


def _keys(graph):
    return graph.layer.tolist(), graph.position.tolist(), graph.latent.tolist()


def test_logits_are_the_likeliest_or_those_asked_for():
    traced, given = model(), transcoders(layers=[0])
    with torch.no_grad():
        p = traced.run(torch.tensor([traced.tokenizer(TEXT).input_ids]))[0, -1].float().softmax(-1)
    graph = attribution_graph(traced, given, TEXT, logit_share=0.1, max_latents=1)
    n = len(graph.logit_ids)
    assert graph.logit_ids.tolist() == p.topk(n).indices.tolist()
    assert float(graph.probability[:-1].sum()) < 0.1 <= float(graph.probability.sum())
    asked = attribution_graph(traced, given, TEXT, answers=[7, 5], max_latents=1)
    assert asked.logit_ids.tolist() == [7, 5] and asked.logit_tokens == ("w4", "w2")
    torch.testing.assert_close(asked.probability, p[[7, 5]])


def test_a_graph_without_latents_is_complete():
    traced, (one,) = model(), transcoders(layers=[0], name="relu")
    with torch.no_grad():
        one.b_enc.fill_(-1e6)
    graph = attribution_graph(traced, one, TEXT)
    assert graph.n_active == len(graph.latent) == 0 and graph.weight.shape == (len(graph.logit_ids), graph.n_nodes)


def placed(dictionary, site="model.layers.1", target=None):
    return Placed(dictionary.double(), site, target)


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"transcoders": placed(AutoEncoderTopK(16, 48, 6))}, ConfigError, "does not predict MLPs"),
        ({"transcoders": placed(Crosscoder((16, 16), 48, {"name": "relu"}), ["model.layers.0", "model.layers.1"])},
         ConfigError, "Crosscoder does not predict"),
        ({"transcoders": [transcoders()[0], transcoders()[0]]}, ConfigError, "layer 0"),
        ({"transcoders": placed(Transcoder(16, 48, {"name": "relu"}), "model.layers.1.mlp", "model.layers.0.mlp")},
         ConfigError, "before"),
        ({"transcoders": placed(Transcoder(16, 48, {"name": "relu"}), "model.layers.1.mlp:in", "model.norm")},
         ConfigError, "in no layer"),
        ({"transcoders": []}, ConfigError, "no transcoder"),
        ({"transcoders": [5]}, ConfigError, "Got a int"),
        ({"prompt": [TEXT, TEXT]}, DataError, "one prompt"),
        ({"prompt": ""}, DataError, "no token"),
        ({"answers": [99]}, ConfigError, "from 0 to 96"),
        ({"answers": [3, 3]}, ConfigError, "different"),
        ({"answers": []}, ConfigError, "answers"),
        ({"n_logits": 0}, ConfigError, "n_logits"),
        ({"logit_share": 1.5}, ConfigError, "logit_share"),
        ({"max_latents": 0}, ConfigError, "max_latents"),
    ],
    ids=tiny.plain_id,
)  # fmt: skip
def test_wrong_arguments_are_refused(given, error, match):
    arguments = {"transcoders": transcoders(), "prompt": TEXT, **given}
    with pytest.raises(error, match=match):
        attribution_graph(model(), **arguments)


def test_attention_that_is_not_known_is_refused(monkeypatch):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def own(module, query, key, value, mask, **options):
        return (value.repeat_interleave(2, 1) * key.mean()).transpose(1, 2).contiguous(), None

    traced = model()
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", own)
    with pytest.raises(ModelError, match="attn_implementation"):
        attribution_graph(traced, transcoders(), TEXT)


def test_a_graph_leaves_no_trace():
    traced = model()
    with torch.no_grad():
        attribution_graph(traced, transcoders(), TEXT, max_latents=3)
    module = traced._original
    assert all(p.grad is None for p in module.parameters())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
