"""Held-out FVU at equal tokens, ours and the peers' own defaults, on the same activations in the same order.

389,120 tokens of the residual stream after layer 10, batch 2,048, 9,216 latents, k 32; no token at the first position of a context.
Held out are the contexts that follow, and the last documents of the corpus, which are from another century.
About 5 minutes on 2 cores, and 10 more for the peers.
"""

import argparse
import json

import torch
from common import BATCH, CACHE, CORPUS, CTX, DICT_SIZE, K, language_model, machine, peer, table
from safetensors.torch import load_file, save_file

from dictionary_learning import TrainerTopK, trainSAE
from dictionary_learning.data import TokenStream, as_text_source, file_source
from dictionary_learning.evaluation import EvaluationBatch, ReconstructionMetric
from dictionary_learning.models import TracedModel
from dictionary_learning.sites import Site

STEPS = 190
HELD_OUT = 16_384
N_TRAIN = -(-STEPS * BATCH // (CTX - 1))
N_HELD = -(-HELD_OUT // (CTX - 1))


def activations(sites: list[str]) -> dict[str, dict[str, torch.Tensor]]:
    """Returns "train", "near" and "far" rows of each site, captured once and kept in the cache."""
    folder = CACHE / "activations"
    paths = {site: folder / f"{site}.safetensors" for site in sites}
    missing = [site for site in sites if not paths[site].is_file()]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        model = language_model()
        documents = list(file_source(CORPUS))
        parts: dict[str, list[dict[Site, torch.Tensor]]] = {"train": [], "near": [], "far": []}
        ahead = TokenStream(as_text_source(documents), model.tokenizer, ctx_len=CTX)
        behind = TokenStream(as_text_source(documents[:-6:-1]), model.tokenizer, ctx_len=CTX)
        for part, stream, n in (("train", ahead, N_TRAIN), ("near", ahead, N_HELD), ("far", behind, N_HELD)):
            for start in range(0, n, 8):
                tokens = stream.take(min(8, n - start))
                assert tokens is not None
                captured = model.capture(*tokens, [Site.parse(site) for site in missing])
                parts[part].append({site: x[:, 1:].flatten(0, 1).half() for site, x in captured.items()})
        for site in missing:
            joined = {part: torch.cat([rows[Site.parse(site)] for rows in batches]) for part, batches in parts.items()}
            save_file(joined, paths[site])
    return {site: load_file(path) for site, path in paths.items()}


def documents_after(model: TracedModel) -> list[str]:
    """Returns the documents that begin after the "train" and "near" rows."""
    documents = list(file_source(CORPUS))
    stream = TokenStream(as_text_source(documents), model.tokenizer, ctx_len=CTX)
    stream.take(N_TRAIN + N_HELD)
    return [str(document) for document in documents[stream.source.position :]]


def batches(rows: torch.Tensor, seed: int = 0) -> list[torch.Tensor]:
    """Returns the training batches, shuffled."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[: STEPS * BATCH]
    return [rows[part].float() for part in order.split(BATCH)]


@torch.no_grad()
def fvu(dictionary: torch.nn.Module, rows: torch.Tensor) -> float:
    """Returns the share of the variance of rows that a dictionary leaves unexplained."""
    metric = ReconstructionMetric()
    for x in rows[:HELD_OUT].float().split(BATCH):
        metric.update(EvaluationBatch(x, dictionary(x), torch.zeros(len(x), 1)))
    return metric.compute()["fvu"]


def ours(site: str, data: dict[str, torch.Tensor], seed: int) -> dict[str, float]:
    """Trains with default settings; returns the FVU on both parts held out."""
    config = TrainerTopK.Config(k=K, dict_size=DICT_SIZE, seed=seed)
    (dictionary,) = trainSAE(batches(data["train"], seed), config, STEPS, progress=False)
    return {part: fvu(dictionary, data[part]) for part in ("near", "far")}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--sites", nargs="+", default=["model.layers.10"])
    parser.add_argument("--peers", nargs="*", default=["sparsify", "dl", "saelens"])
    arguments = parser.parse_args()
    rows = [("machine", machine())]
    for site, data in activations(arguments.sites).items():
        for seed in range(arguments.seeds):
            figures = ours(site, data, seed)
            rows.append((f"ours, {site}, seed {seed}", f"{figures['near']:.4f} near, {figures['far']:.4f} far"))
        for name in arguments.peers:
            path = CACHE / "activations" / f"{site}.safetensors"
            found = peer(
                name,
                "top_k_step.py",
                name,
                str(path),
                json.dumps({"steps": STEPS, "batch": BATCH, "dict_size": DICT_SIZE, "k": K}),
            )
            if found:
                rows.append(
                    (
                        f"{name}, {site}",
                        f"{found['near']:.4f} near, {found['far']:.4f} far, {found['ms']:.0f} ms a step",
                    )
                )
    print(table(rows))


if __name__ == "__main__":
    main()
