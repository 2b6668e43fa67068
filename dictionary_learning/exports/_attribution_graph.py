"""Attribution graphs as circuit-tracer and Neuronpedia read them.

A folder has a file for each graph, and `graph-metadata.json`, which lists them.
"""

import json
import os
import re
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from dictionary_learning._border import checked, renamed, short
from dictionary_learning._disk import write_json
from dictionary_learning.attribution import AttributionGraph, Pruned, prune
from dictionary_learning.errors import CheckpointError, ConfigError
from dictionary_learning.exports._neuronpedia import check_set

METADATA = "graph-metadata.json"
_NAME = re.compile(r"[a-zA-Z0-9_.-]+")
_LATENT = "cross layer transcoder"
"""The kind of latents, of which the format has one, also where transcoders are of one layer."""


@renamed(scan="model_id")
@checked()
def write_attribution_graph(
    graph: AttributionGraph,
    path: str | os.PathLike[str],
    *,
    slug: str,
    model_id: str | None = None,
    node_threshold: float = 0.8,
    edge_threshold: float = 0.98,
    source_set: str | None = None,
    description: str = "",
) -> Path:
    """Writes a graph, without what matters little, for circuit-tracer and Neuronpedia.

    Args:
        graph: What `attribution_graph` returned.
        path: The folder, which may have other graphs.
        slug: The name of the graph, and of its file; an older one of that name is replaced.
        model_id: What tells a reader the model and transcoders: at Neuronpedia the id of the model,
            as gemma-2-2b, for circuit-tracer the repository of the transcoders. By default the last
            part of the model's name. In the file, and as an older name here, it is `scan`.
        node_threshold: The share of the influence on the logits that the nodes have.
        edge_threshold: The same of edges.
        source_set: The name of the set of dictionaries at Neuronpedia, where it has pages of them.
        description: What is shown with the graph.

    Returns:
        The file of the graph.

    Raises:
        ConfigError: The slug has other characters than letters, digits and `_.-`, or there is no
            model_id and the model has no name.
        CheckpointError: The folder lists its graphs in a form that is not known.
    """
    others = check_place(path, slug, model_id, source_set)
    if model_id is None and not graph.model:
        raise ConfigError("The model of this graph has no name: it was given as an object. Give model_id=.")
    name = model_id if model_id is not None else re.sub(r"[^a-zA-Z0-9_.-]", "-", Path(graph.model).name)
    folder, pruned = Path(path), prune(graph, node_threshold=node_threshold, edge_threshold=edge_threshold)
    thresholds = {"node_threshold": node_threshold, "edge_threshold": edge_threshold}
    metadata = {
        "slug": slug,
        "scan": name,
        "transcoder_list": [],
        "prompt_tokens": list(graph.tokens),
        "prompt": graph.prompt,
        "node_threshold": node_threshold,
        "schema_version": 1,
        "info": {
            "description": description,
            "generator": {"name": "dictionary-learning", "version": version("dictionary-learning")},
            "create_time_ms": int(time.time() * 1000),
        },
        "generation_settings": {"max_n_logits": len(graph.logit_ids), "max_feature_nodes": len(graph.latent)},
        "pruning_settings": thresholds,
    }
    if source_set is not None:
        metadata["feature_details"] = {"neuronpedia_source_set": source_set}
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{slug}.json"
    write_json(file, {"metadata": metadata, "qParams": _view(), **_nodes_and_links(graph, pruned)})
    write_json(folder / METADATA, {"graphs": [*others, metadata]})
    return file


def check_place(path: str | os.PathLike[str], slug: str, model_id: str | None, source_set: str | None) -> list[Any]:
    """Returns what a folder lists of other graphs; to be called before a graph is computed.

    Raises:
        ConfigError: A name cannot be written.
        CheckpointError: The folder lists its graphs in a form that is not known, or is a file.
    """
    if _NAME.fullmatch(slug) is None or slug in (".", "..", Path(METADATA).stem):
        raise ConfigError(f"Got slug={short(slug)}; give a name of letters, digits and '_.-', as 'my-graph'.")
    if model_id == "":
        raise ConfigError("Got model_id=''; give the id of the model at Neuronpedia, or the transcoders' repository.")
    if source_set is not None:
        check_set(source_set)
    if Path(path).is_file():
        raise CheckpointError(f"'{path}' is a file. Give a folder for graphs.")
    return _others(Path(path) / METADATA, slug)


def _others(path: Path, slug: str) -> list[Any]:
    """Returns what a folder lists of other graphs."""
    if not path.is_file():
        return []
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["graphs"]
        return [one for one in listed if one["slug"] != slug]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"'{path}' is no list of graphs. Remove it, or write to another folder.") from error


def _view() -> dict[str, Any]:
    """Returns what the viewer shows first: nothing is pinned or clicked."""
    return {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""}


def _nodes_and_links(graph: AttributionGraph, pruned: Pruned) -> dict[str, list[dict[str, Any]]]:
    nodes = _nodes(graph, pruned)
    rows, sources = pruned.edges.nonzero(as_tuple=True)
    targets = graph.targets[rows]
    links = [
        {"source": nodes[source]["node_id"], "target": nodes[target]["node_id"], "weight": weight}
        for source, target, weight in zip(
            sources.tolist(), targets.tolist(), graph.weight[rows, sources].tolist(), strict=True
        )
        if source in nodes and target in nodes
    ]
    ends = {link[end] for link in links for end in ("source", "target")}
    kept = [n for n in nodes.values() if n["node_id"] in ends or n["feature_type"] in ("embedding", "logit")]
    return {"nodes": kept, "links": links}


def _nodes(graph: AttributionGraph, pruned: Pruned) -> dict[int, dict[str, Any]]:
    """Returns the nodes that are kept, by number."""
    n_latents, ctx = len(graph.latent), len(graph.input_ids)
    n_errors = graph.n_layers * ctx
    found: dict[int, dict[str, Any]] = {}
    taken: set[str] = set()
    numbers: Sequence[int] = torch.where(pruned.nodes)[0].tolist()
    for number in numbers:
        if number < n_latents:
            node = _latent(int(graph.layer[number]), int(graph.latent[number]), int(graph.position[number]))
            node["activation"] = float(graph.activation[number])
        elif number < n_latents + n_errors:
            layer, position = divmod(number - n_latents, ctx)
            node = _error(layer, position, taken)
        elif number < n_latents + n_errors + ctx:
            position = number - n_latents - n_errors
            node = _token(int(graph.input_ids[position]), position)
        else:
            node = _logit(graph, number - n_latents - n_errors - ctx)
        node["influence"] = None if node["feature_type"] == "logit" else float(pruned.entered[number])
        taken.add(node["node_id"])
        found[number] = node
    return found


def _latent(layer: int, latent: int, position: int) -> dict[str, Any]:
    total = layer + latent
    return _node(
        node_id=f"{layer}_{latent}_{position}",
        feature=total * (total + 1) // 2 + latent,  # Cantor's number of the pair
        layer=str(layer),
        ctx_idx=position,
        feature_type=_LATENT,
        jsNodeId=f"{layer}_{latent}-0",
    )


def _error(layer: int, position: int, taken: set[str]) -> dict[str, Any]:
    # the same id as of latent number `layer` of layer 0, which may be there too
    name = f"0_{layer}_{position}"
    return _node(
        node_id=f"{name}_error" if name in taken else name,
        feature=-1,
        layer=str(layer),
        ctx_idx=position,
        feature_type="mlp reconstruction error",
        jsNodeId=f"{layer}_{position}-0",
    )


def _token(token: int, position: int) -> dict[str, Any]:
    return _node(
        node_id=f"E_{token}_{position}",
        feature=position,
        layer="E",
        ctx_idx=position,
        feature_type="embedding",
        jsNodeId=f"E_{token}-{position}",
    )


def _logit(graph: AttributionGraph, number: int) -> dict[str, Any]:
    token, probability = int(graph.logit_ids[number]), float(graph.probability[number])
    layer, position = graph.n_layers + 1, len(graph.input_ids) - 1
    return _node(
        node_id=f"{layer}_{token}_{position}",
        feature=token,
        layer=str(layer),
        ctx_idx=position,
        feature_type="logit",
        token_prob=probability,
        is_target_logit=number == 0,
        jsNodeId=f"L_{token}-{position}",
        clerp=f'Output "{graph.logit_tokens[number]}" (p={probability:.3f})',
    )


def _node(**fields: Any) -> dict[str, Any]:
    """Returns a node with all fields of the format."""
    empty = {"token_prob": 0.0, "is_target_logit": False, "run_idx": 0, "reverse_ctx_idx": 0, "clerp": ""}
    return {**empty, **fields, "influence": None, "activation": None}
