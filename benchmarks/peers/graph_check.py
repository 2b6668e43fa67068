"""Runs inside circuit-tracer's environment: compares its attribution graph with one of ours (see graph_peer.py).

Errors at the first position are left out: circuit-tracer sets them to 0.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from circuit_tracer.attribution.attribute import attribute  # pyright: ignore[reportMissingImports]
from circuit_tracer.attribution.targets import LogitTarget  # pyright: ignore[reportMissingImports]
from circuit_tracer.frontend.graph_models import Model  # pyright: ignore[reportMissingImports]
from circuit_tracer.graph import Graph  # pyright: ignore[reportMissingImports]
from circuit_tracer.replacement_model.replacement_model_nnsight import (  # pyright: ignore[reportMissingImports]
    NNSightReplacementModel,
)
from circuit_tracer.utils.create_graph_files import create_graph_files  # pyright: ignore[reportMissingImports]
from circuit_tracer.utils.hf_utils import load_transcoder_from_hub  # pyright: ignore[reportMissingImports]
from safetensors.torch import load_file


def reordered(theirs: Any, keys: list[tuple[int, ...]]) -> torch.Tensor:
    """Returns the places of our latents among theirs."""
    selected = theirs.active_features[theirs.selected_features].tolist()
    places = {tuple(key): n for n, key in enumerate(selected)}
    assert set(places) == set(keys), f"{len(places)} latents there, {len(keys)} here"
    return torch.tensor([places[key] for key in keys])


def main(folder: Path, prompt: str) -> dict[str, Any]:
    """Returns the largest differences, and whether both write the same nodes and links."""
    ours = load_file(folder / "graph.safetensors")
    transcoders, _ = load_transcoder_from_hub(
        str(folder / "transcoders"), device=torch.device("cpu"), dtype=torch.float32
    )
    model = NNSightReplacementModel.from_pretrained_and_transcoders(
        str(folder / "model"), transcoders, device=torch.device("cpu"), dtype=torch.float32
    )
    theirs = attribute(ours["input_ids"], model, max_n_logits=10, desired_logit_prob=0.95, batch_size=16)
    assert theirs.input_tokens.tolist() == ours["input_ids"].tolist()
    assert theirs.logit_token_ids.tolist() == ours["logit_ids"].tolist()
    keys = [tuple(key) for key in ours["latents"].tolist()]
    own, n = reordered(theirs, keys), len(keys)
    order = torch.cat([own, torch.arange(n, len(theirs.adjacency_matrix))])
    adjacency = theirs.adjacency_matrix[order][:, order].float()
    kept, ctx = torch.ones(len(adjacency), dtype=torch.bool), len(ours["input_ids"])
    kept[n : n + model.cfg.n_layers * ctx : ctx] = False  # errors at the first position
    weights = float((adjacency - ours["adjacency"])[:, kept].abs().max())
    activations = theirs.activation_values[theirs.selected_features][own]

    rebuilt = Graph(
        input_string=prompt, input_tokens=ours["input_ids"], active_features=ours["latents"],
        adjacency_matrix=ours["adjacency"], cfg=model.cfg, selected_features=torch.arange(n),
        activation_values=ours["activation"], logit_probabilities=ours["probability"], scan="tiny",
        logit_targets=[LogitTarget(model.tokenizer.decode(one), one) for one in ours["logit_ids"].tolist()],
    )  # fmt: skip
    rebuilt.cfg.tokenizer_name = str(folder / "model")
    create_graph_files(rebuilt, "one", str(folder / "theirs"))
    text = (folder / "graphs" / "one.json").read_text()
    parsed = Model.model_validate_json(text)  # of their reader
    made, expected = json.loads(text), json.loads((folder / "theirs" / "one.json").read_text())
    return {
        "weights": weights,
        "largest weight": float(adjacency.abs().max()),
        "activations": float((activations - ours["activation"]).abs().max()),
        "latents": n,
        "nodes": len(parsed.nodes),
        "links": len(parsed.links),
        "same graph": same(made, expected),
    }


def same(made: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Returns whether two files have the same nodes, fields and links, to rounding.

    Where an error has the id of a latent, circuit-tracer's file has two nodes of one id; ours gives
    the error another. Such ids are left out.
    """
    ids = [node["node_id"] for node in expected["nodes"]]
    twice = {one for one in ids if ids.count(one) > 1}
    made, expected = without(made, twice | {f"{one}_error" for one in twice}), without(expected, twice)
    nodes, others = ({node["node_id"]: node for node in one["nodes"]} for one in (made, expected))
    links, further = ({(k["source"], k["target"]): k["weight"] for k in one["links"]} for one in (made, expected))
    if nodes.keys() != others.keys() or links.keys() != further.keys():
        missing = nodes.keys() ^ others.keys(), links.keys() ^ further.keys()
        print("nodes and links of one alone:", *missing, file=sys.stderr)
        return False
    for name, node in nodes.items():
        for field, value in node.items():
            other = others[name][field]
            close = abs(value - other) < 1e-4 if isinstance(value, float) and other is not None else value == other
            if not close:
                print(name, field, value, other, file=sys.stderr)
                return False
    return all(abs(weight - further[ends]) < 1e-4 for ends, weight in links.items())


def without(graph: dict[str, Any], ids: set[str]) -> dict[str, Any]:
    """Returns a graph without some nodes and their links."""
    return {
        "nodes": [node for node in graph["nodes"] if node["node_id"] not in ids],
        "links": [link for link in graph["links"] if not {link["source"], link["target"]} & ids],
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2])))
