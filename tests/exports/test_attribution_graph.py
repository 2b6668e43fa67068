"""The JSON of attribution graphs: every key of the format, ids and links that agree, and what is pruned."""

import json

import pytest
import torch

from dictionary_learning.attribution import AttributionGraph, attribution_graph, prune
from dictionary_learning.errors import CheckpointError, ConfigError
from dictionary_learning.exports import write_attribution_graph
from tests.attribution.graph_cases import TEXT, cross_layer, model, transcoders

METADATA = {
    "slug": str, "scan": str, "transcoder_list": list, "prompt_tokens": list, "prompt": str, "node_threshold": float,
    "schema_version": int,
}  # fmt: skip
NODE = {
    "node_id": str, "feature": int, "layer": str, "ctx_idx": int, "feature_type": str, "token_prob": float,
    "is_target_logit": bool, "run_idx": int, "reverse_ctx_idx": int, "jsNodeId": str, "clerp": str,
    "influence": (float, type(None)), "activation": (float, type(None)),
}  # fmt: skip
VIEW = {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""}
LATENT, ERROR = "cross layer transcoder", "mlp reconstruction error"
EVERYTHING = {"node_threshold": 1.0, "edge_threshold": 1.0}


@pytest.fixture(scope="module", params=["layers", "cross_layer"])
def graph(request):
    given = transcoders(biases=True) if request.param == "layers" else cross_layer(biases=True)
    # the model is an object, which has no name
    return attribution_graph(model(), given, TEXT, max_latents=None, n_logits=4)._replace(model="owner/tiny")


def written(graph, folder, **options):
    return json.loads(write_attribution_graph(graph, folder, slug="one", **options).read_text())


def test_every_key_is_there_with_its_type(graph, tmp_path):
    made = written(graph, tmp_path, model_id="gemma-2-2b", source_set="mine-16k")
    assert set(made) == {"metadata", "qParams", "nodes", "links"} and made["qParams"] == VIEW
    for name, kind in METADATA.items():
        assert type(made["metadata"][name]) is kind, name
    assert made["metadata"]["prompt_tokens"] == TEXT.split() and made["metadata"]["prompt"] == TEXT
    assert made["metadata"]["feature_details"] == {"neuronpedia_source_set": "mine-16k"}
    for node in made["nodes"]:
        assert set(node) == set(NODE)
        assert all(isinstance(node[name], kind) for name, kind in NODE.items())
    for link in made["links"]:
        assert {name: type(value) for name, value in link.items()} == {"source": str, "target": str, "weight": float}


def test_ids_are_unique_and_links_are_among_nodes(graph, tmp_path):
    made = written(graph, tmp_path, **EVERYTHING)
    ids = [node["node_id"] for node in made["nodes"]]
    assert len(set(ids)) == len(ids)
    ends = [(link["source"], link["target"]) for link in made["links"]]
    assert len(set(ends)) == len(ends) and {one for pair in ends for one in pair} <= set(ids)


def test_nodes_are_those_of_the_graph(graph, tmp_path):
    made = written(graph, tmp_path, **EVERYTHING)
    nodes = {
        kind: [n for n in made["nodes"] if n["feature_type"] == kind] for kind in (LATENT, ERROR, "embedding", "logit")
    }
    keys = zip(graph.layer.tolist(), graph.latent.tolist(), graph.position.tolist(), strict=True)
    known = {f"{layer}_{latent}_{position}": n for n, (layer, latent, position) in enumerate(keys)}
    for node in nodes[LATENT]:
        number = known[node["node_id"]]
        assert node["activation"] == pytest.approx(float(graph.activation[number]))
        layer, latent = int(graph.layer[number]), int(graph.latent[number])
        assert (node["layer"], node["ctx_idx"]) == (str(layer), int(graph.position[number]))
        assert node["feature"] == sum(range(layer + latent + 1)) + latent
    assert len(nodes[LATENT]) > 40 and len(nodes[ERROR]) > 10
    assert all(node["feature"] == -1 and node["activation"] is None for node in nodes[ERROR])
    assert [node["node_id"] for node in nodes["embedding"]] == [f"E_{i}_{n}" for n, i in enumerate(graph.input_ids)]
    best, *others = nodes["logit"]
    assert best["node_id"] == f"4_{int(graph.logit_ids[0])}_4" and best["is_target_logit"]
    assert best["clerp"] == f'Output "{graph.logit_tokens[0]}" (p={float(graph.probability[0]):.3f})'
    assert len(others) == 3 and not any(node["is_target_logit"] for node in others)
    assert all(node["influence"] is None for node in nodes["logit"])


def test_weights_are_the_direct_effects(graph, tmp_path):
    made = written(graph, tmp_path)
    pruned = prune(graph)
    assert len(made["links"]) == int(pruned.edges.sum())
    weights = sorted(link["weight"] for link in made["links"])
    assert weights == pytest.approx(sorted(graph.weight[pruned.edges].tolist()))


def by_hand(latents: int, weight: list[list[float]], probability: list[float], n_layers: int = 2) -> AttributionGraph:
    """Returns a graph of one token, whose layers have errors."""
    n = latents
    return AttributionGraph(
        "m", "a", n_layers, torch.tensor([7]), ("a",), torch.arange(n), torch.zeros(n, dtype=torch.long),
        torch.arange(n), torch.ones(n), torch.arange(len(probability)), tuple("bc"[: len(probability)]),
        torch.tensor(probability), torch.tensor(weight), n,
    )  # fmt: skip


def test_influence_goes_over_all_paths():
    # latents 0 and 1, errors 2 and 3, token 4, logit 5
    weight = [[0, 0, 0, 0, 2.0, 0], [3.0, 0, 1.0, 0, 0, 0], [0, -4.0, 0, 0.0, 4.0, 0]]
    graph = by_hand(2, weight, [0.5])
    pruned = prune(graph, node_threshold=1.0, edge_threshold=1.0)
    # latent 1 has half of the logit, latent 0 three quarters of that, the token a half and all of latent 0
    influence = torch.tensor([0.1875, 0.25, 0.0625, 0, 0.25 + 0.1875, 0])
    share = influence / influence.sum()
    expected = torch.stack([share[influence >= one].sum() for one in influence[[0, 2, 4]]])
    torch.testing.assert_close(pruned.entered[[0, 2, 4]], expected)
    assert pruned.nodes.tolist() == [True, True, True, False, True, True]
    assert pruned.edges.nonzero().tolist() == [[0, 4], [1, 0], [1, 2], [2, 1], [2, 4]]


def test_fewest_nodes_reach_the_threshold():
    weight = [[0, 0, 0, 0, 2.0, 0], [3.0, 0, 1.0, 0, 0, 0], [0, -4.0, 0, 0.0, 4.0, 0]]
    graph = by_hand(2, weight, [0.5])
    # token 0.467, latent 1 0.267, latent 0 0.2, error 0.067: the sums are 0.467, 0.733, 0.933, 1
    for threshold, nodes in ((0.9, [0, 1, 4, 5]), (0.95, [0, 1, 2, 4, 5]), (0.0, [4, 5])):
        found = prune(graph, node_threshold=threshold, edge_threshold=1.0)
        assert found.nodes.nonzero().flatten().tolist() == nodes, threshold
    # without latent 0, nothing is left that leads to latent 1
    assert prune(graph, node_threshold=0.5, edge_threshold=1.0).nodes.nonzero().flatten().tolist() == [4, 5]


def test_latents_that_lost_their_edges_are_dropped_in_turn():
    weight = [[0, 0, 0, 0, 2.0, 0], [3.0, 0, 1.0, 0, 0, 0], [0, -0.1, 0, 0.0, 9.9, 0]]
    found = prune(by_hand(2, weight, [0.5]), node_threshold=1.0, edge_threshold=0.9)
    assert found.nodes.nonzero().flatten().tolist() == [4, 5]  # latent 1 leads nowhere, so latent 0 does not
    assert found.edges.nonzero().tolist() == [[2, 4]]


@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.8, 0.95, 1.0])
def test_a_threshold_keeps_its_share(graph, threshold):
    found = prune(graph, node_threshold=threshold, edge_threshold=1.0)
    more = prune(graph, node_threshold=min(threshold + 0.1, 1.0), edge_threshold=1.0)
    assert bool((found.nodes <= more.nodes).all())
    # a node that enters later than the first to reach the threshold is not kept
    last = found.entered[found.entered >= threshold - 1e-9].min()
    fixed = len(graph.input_ids) + len(graph.logit_ids)
    assert bool((found.entered[:-fixed][found.nodes[:-fixed]] <= last + 1e-9).all())


def test_an_error_has_another_id_than_a_latent_of_the_first_layer(tmp_path):
    # latent number 1 of layer 0, and the error of layer 1, both at position 0
    graph = by_hand(1, [[0, 0, 0, 1.0, 0], [1.0, 0, 1.0, 1.0, 0]], [0.5])
    graph = graph._replace(latent=torch.tensor([1]))
    made = written(graph, tmp_path, **EVERYTHING)
    assert [node["node_id"] for node in made["nodes"]] == ["0_1_0", "0_1_0_error", "E_7_0", "3_0_0"]
    assert {link["source"] for link in made["links"]} == {"0_1_0", "0_1_0_error", "E_7_0"}


def test_a_folder_lists_its_graphs(graph, tmp_path):
    for slug in ("a", "b", "a"):
        write_attribution_graph(graph, tmp_path, slug=slug, description=slug)
    listed = json.loads((tmp_path / "graph-metadata.json").read_text())["graphs"]
    assert [one["slug"] for one in listed] == ["b", "a"]
    assert listed[1] == json.loads((tmp_path / "a.json").read_text())["metadata"]


@pytest.mark.parametrize(
    ("given", "match"),
    [({"slug": "../a"}, "slug"), ({"slug": ""}, "slug"), ({"slug": "graph-metadata"}, "slug"), ({"model_id": ""}, "model_id"),
     ({"node_threshold": 1.5}, "node_threshold"), ({"edge_threshold": -1}, "edge_threshold"), ({"graph": 5}, "graph")],
    ids=str,
)  # fmt: skip
def test_wrong_arguments_are_refused(graph, tmp_path, given, match):
    with pytest.raises(ConfigError, match=match):
        write_attribution_graph(**{"graph": graph, "path": tmp_path, "slug": "a", **given})
    assert not list(tmp_path.iterdir())


def test_a_model_without_a_name_needs_an_id(graph, tmp_path):
    assert written(graph, tmp_path)["metadata"]["scan"] == "tiny"
    assert attribution_graph(model(), transcoders(biases=True), TEXT).model == ""
    with pytest.raises(ConfigError, match="given as an object. Give model_id="):
        written(graph._replace(model=""), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_list_of_another_form_is_kept(graph, tmp_path):
    (tmp_path / "graph-metadata.json").write_text("[5]")
    with pytest.raises(CheckpointError, match="no list of graphs"):
        write_attribution_graph(graph, tmp_path, slug="a")
    assert (tmp_path / "graph-metadata.json").read_text() == "[5]" and not (tmp_path / "a.json").exists()


def test_scan_is_an_older_name_of_the_id(graph, tmp_path):
    one, other = (written(graph, tmp_path / name, **{name: "me/set"}) for name in ("model_id", "scan"))
    assert one["metadata"]["scan"] == other["metadata"]["scan"] == "me/set" and one["nodes"] == other["nodes"]
    with pytest.raises(ConfigError, match="scan and model_id"):
        write_attribution_graph(graph, tmp_path, slug="a", scan="a", model_id="b")
