"""The whole job on a GPU: tokens/s of a small random model alone, and of training one dictionary and six from text.

About 1 minute on an H100. Random weights of SmolLM2-135M's shape, since what they are does not change the time.
"""

import argparse
import time
from typing import Any

import torch
from common import machine, table
from step_cuda import SYNCS
from transformers import LlamaConfig, LlamaForCausalLM

from dictionary_learning import ActivationBuffer, TrainerTopK, load_model, trainSAE
from dictionary_learning.data import TokenStream, as_source
from dictionary_learning.models import TracedModel
from dictionary_learning.sites import Site
from tests.tiny import documents, tokenizer

SHAPES = {
    "cuda": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9},
    "cpu": {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 12, "num_attention_heads": 3},
}
SITE, CTX, CONTEXTS = "model.layers.10", 256, 64


def random_model(device: str) -> TracedModel:
    """Returns a model of random weights, in bfloat16."""
    shape: Any = SHAPES[device]
    config = LlamaConfig(vocab_size=49_152, num_key_value_heads=3, max_position_embeddings=2048, **shape)
    module: Any = LlamaForCausalLM(config)
    return load_model(module.to(device, torch.bfloat16), tokenizer=tokenizer(), device=device)


def wait() -> None:
    """Waits for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def model_alone(model: TracedModel, texts: list[str], n_tokens: int) -> float:
    """Returns the tokens/s of the model, stopped after the site's layer, on token ids that are there."""
    stream = TokenStream(as_source(texts), model.tokenizer, ctx_len=CTX)
    batches = [stream.take(CONTEXTS) for _ in range(max(n_tokens // (CTX * CONTEXTS), 2))]
    start = 0.0
    for _ in range(2):
        wait()
        start = time.perf_counter()
        for tokens in batches:
            assert tokens is not None
            model.capture(*tokens, [Site(SITE)])
        wait()
    return len(batches) * CTX * CONTEXTS / (time.perf_counter() - start)


def job(
    model: TracedModel,
    texts: list[str],
    n_dictionaries: int,
    n_tokens: int,
    batch: int,
    prefetch: int = 0,
    cuda_graph: bool = False,
) -> float:
    """Returns the tokens/s of a run from text to trained dictionaries."""
    buffer = ActivationBuffer(
        texts,
        model,
        SITE,
        n_ctxs=8 * CONTEXTS,
        ctx_len=CTX,
        refresh_batch_size=CONTEXTS,
        out_batch_size=batch,
        prefetch=prefetch,
    )
    configs = [
        TrainerTopK.Config(k=32, dict_size=9216, seed=seed, cuda_graph=cuda_graph) for seed in range(n_dictionaries)
    ]
    start = time.perf_counter()
    trainSAE(buffer, configs, n_tokens // batch, device=model.device, progress=False)
    wait()
    return buffer.n_tokens_read / (time.perf_counter() - start)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=3_000_000)
    parser.add_argument("--batch", type=int, default=8192)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, n_tokens, batch = random_model(device), arguments.tokens, arguments.batch
    texts = documents(n_tokens // 128 + 5000, longest=400)
    job(model, texts, 1, 16 * batch, batch)  # kernels are compiled
    alone = model_alone(model, texts, n_tokens // 4)
    rows = [("machine", machine()), ("model alone, stopped after layer 10", f"{alone:,.0f} tokens/s")]
    for label, n, prefetch, cuda_graph in (
        ("one dictionary", 1, 0, False),
        ("one dictionary, prefetch=2", 1, 2, False),
        ("one dictionary, cuda_graph=True", 1, 0, True),
        ("six dictionaries", 6, 0, False),
        ("six dictionaries, cuda_graph=True", 6, 0, True),
    ):
        rate = job(model, texts, n, n_tokens, batch, prefetch, cuda_graph)
        rows.append((f"{label}, whole job", f"{rate:,.0f} tokens/s, {rate / alone:.2f} of the model alone"))
        print(rows[-1], flush=True)
    if device == "cuda":
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            job(model, texts, 1, 32 * batch, batch)
        events = sorted(profile.key_averages(), key=lambda event: -event.self_device_time_total)
        for event in events[:12]:
            print(f"  {event.self_device_time_total / 1e3:9.1f} ms of the device, {event.count:6} x {event.key[:90]}")
        waits = {event.key: event.count for event in events if any(name in event.key for name in SYNCS)}
        rows.append(("32 steps: events in which the host waits", str(waits or "none")))
    print(table(rows))


if __name__ == "__main__":
    main()
