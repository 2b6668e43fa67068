"""Small caches to try, and what is in them."""

import hashlib
from pathlib import Path

import torch

from dictionary_learning import load_model
from dictionary_learning.activations.cache import ActivationCache, write_cache
from dictionary_learning.sites import Site
from tests import tiny

DOCUMENTS = tiny.documents(60)
SITES = ["model.layers.0", "model.layers.1.mlp:in"]
FIRST = Site("model.layers.0")


def traced(seed: int = 0):
    return load_model(tiny.model("llama", seed), tokenizer=tiny.tokenizer())


def write(path, sites=SITES, documents=DOCUMENTS, **options):
    sizes = {"ctx_len": 16, "refresh_batch_size": 4, "shard_size": 100, "max_activation_norm_multiple": None}
    return write_cache(path, documents, options.pop("model", None) or traced(), sites, **{**sizes, **options})


def all_rows(cache: ActivationCache) -> dict[tuple[int, int], torch.Tensor]:
    """Returns the rows at the first site by document and position."""
    found = {}
    while not cache._at_end():
        rows = cache.rows()
        for x, document, position in zip(
            rows.activations[FIRST], rows.document.tolist(), rows.position.tolist(), strict=True
        ):
            assert (document, position) not in found
            found[document, position] = x
    return found


def bytes_of(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def iter_rows(cache):
    while not cache._at_end():
        yield cache.rows()
