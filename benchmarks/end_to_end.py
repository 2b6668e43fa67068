"""The whole job, from text to trained dictionaries: tokens/s alone, of one dictionary, of six, and of sparsify.

About 6 minutes on 2 cores. All ratios are of figures taken in this one run.
"""

import argparse
import time
from typing import Any

import torch
from common import BATCH, CORPUS, CTX, DICT_SIZE, SITE, K, language_model, machine, peer, saved_model, table, texts

from dictionary_learning import ActivationBuffer, TrainerTopK, trainSAE
from dictionary_learning.data import TokenStream
from dictionary_learning.models import TracedModel
from dictionary_learning.sites import Site

CONTEXTS = 8


def model_alone(model: TracedModel, n_tokens: int) -> float:
    """Returns the tokens/s of the model alone, stopped after the site's layer."""
    stream = TokenStream(texts()[0], model.tokenizer, ctx_len=CTX)
    batches = [stream.take(CONTEXTS) for _ in range(n_tokens // (CTX * CONTEXTS))]
    site = [Site(SITE)]
    assert batches[0] is not None
    model.capture(*batches[0], site)
    start = time.perf_counter()
    for tokens in batches:
        assert tokens is not None
        model.capture(*tokens, site)
    return n_tokens / (time.perf_counter() - start)


def transformers_alone(model: TracedModel, n_tokens: int) -> float:
    """Returns the tokens/s of transformers' own forward pass of the same layers, which nothing is read from."""
    stream = TokenStream(texts()[0], model.tokenizer, ctx_len=CTX)
    batches: list[Any] = [stream.take(CONTEXTS) for _ in range(n_tokens // (CTX * CONTEXTS))]
    base: Any = model.module.model
    config, n_layers = base.config, base.config.num_hidden_layers
    config.num_hidden_layers = int(SITE.rsplit(".", 1)[1]) + 1  # those that its loop calls
    try:
        with torch.no_grad():
            base(batches[0].input_ids, use_cache=False)
            start = time.perf_counter()
            for tokens in batches:
                base(tokens.input_ids, use_cache=False)
            return n_tokens / (time.perf_counter() - start)
    finally:
        config.num_hidden_layers = n_layers


def whole_job(model: TracedModel, n_dictionaries: int, n_tokens: int) -> float:
    """Returns the tokens/s of a run from text to trained dictionaries; loading the model is not counted."""
    buffer = ActivationBuffer(
        texts()[0], model, SITE, n_ctxs=128, ctx_len=CTX, refresh_batch_size=CONTEXTS, out_batch_size=BATCH
    )
    configs = [TrainerTopK.Config(k=K, dict_size=DICT_SIZE, seed=seed) for seed in range(n_dictionaries)]
    start = time.perf_counter()
    trainSAE(buffer, configs, n_tokens // BATCH, progress=False)
    return n_tokens // BATCH * BATCH / (time.perf_counter() - start)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=131_072, help="tokens of each run (default: 131072)")
    n_tokens = parser.parse_args().tokens
    model = language_model()
    whole_job(model, 1, 8 * BATCH)  # warm up
    sparsify = peer("sparsify", "sparsify_job.py", str(saved_model()), str(CORPUS), str(n_tokens // 2))
    own, alone = transformers_alone(model, n_tokens // 2), model_alone(model, n_tokens // 2)
    one = whole_job(model, 1, n_tokens)
    six = whole_job(model, 6, n_tokens)
    own = (own + transformers_alone(model, n_tokens // 2)) / 2
    alone = (alone + model_alone(model, n_tokens // 2)) / 2
    rows = [
        ("machine", machine()),
        ("the model alone, layers 0 to 10, by transformers", f"{own:,.0f} tokens/s ({model.dtype})"),
        ("the model alone, stopped after layer 10, by our capture", f"{alone:,.0f} tokens/s"),
        ("one dictionary, whole job", f"{one:,.0f} tokens/s, {one / own:.2f} and {one / alone:.2f} of the model alone"),
        ("six dictionaries, whole job", f"{six:,.0f} tokens/s, {one / six:.2f} times the cost of one"),
    ]
    if sparsify:
        rate = sparsify["tokens_per_second"]
        rows.append(
            ("sparsify, whole job, one dictionary", f"{rate:,.0f} tokens/s; ours is {one / rate:.2f} times as fast")
        )
    print(table(rows))


if __name__ == "__main__":
    main()
