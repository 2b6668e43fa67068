"""What a pass that collects contexts costs beside the model alone, and how much memory it takes.

    python benchmarks/contexts.py [--tokens 200000] [--repeats 3] [--memory 100000]

Four dictionaries of 4,608 latents (two TopK, BatchTopK, JumpReLU; about 32 active each, random weights) read layer 10 of the
demo's model. The model alone reads the same batches, in turn with the pass: whole, with its
logits, and stopped after the last layer that is read. The medians of the rounds are compared. With --memory, one random
dictionary of so many latents is collected in a process of its own, which reports its largest size.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import K, language_model, machine, table, texts

from dictionary_learning import AutoEncoderTopK, BatchTopKSAE, Dictionary, JumpReluAutoEncoder
from dictionary_learning.data import TokenBatch, TokenStream
from dictionary_learning.interpretation import ContextStore, collect_contexts
from dictionary_learning.models import TracedModel
from dictionary_learning.sites import Site

LATENTS, CTX, CONTEXTS = 4608, 128, 16
WIDTH = 576


def batches(model: TracedModel, n_tokens: int) -> list[TokenBatch]:
    """Returns the contexts that the pass will read, too."""
    stream = TokenStream(texts()[0], model.tokenizer, ctx_len=CTX)
    taken = [stream.take(CONTEXTS) for _ in range(-(-n_tokens // (CTX * CONTEXTS)))]
    return [one for one in taken if one is not None]


def dictionaries(model: TracedModel, site: str, batch: TokenBatch) -> dict[str, Dictionary]:
    """Returns four dictionaries, of which those with thresholds have some 32 active latents."""
    torch.manual_seed(0)
    made: dict[str, Dictionary] = {
        "top_k-32": AutoEncoderTopK(WIDTH, LATENTS, K),
        "top_k-64": AutoEncoderTopK(WIDTH, LATENTS, 2 * K),
        "batch_top_k-32": BatchTopKSAE(WIDTH, LATENTS, K),
        "jump_relu": JumpReluAutoEncoder(WIDTH, LATENTS),
    }
    x = model.capture(*batch, [Site(site)])[Site(site)][:, 1:].flatten(0, 1).float()
    for name in ("batch_top_k-32", "jump_relu"):
        one: Any = made[name]
        pre = one.pre_activations(x).detach().flatten()
        threshold = pre.kthvalue(int(len(pre) * (1 - K / LATENTS))).values
        for kind, tensor in [*one.named_buffers(), *one.named_parameters()]:
            if "threshold" in kind:
                tensor.data.fill_(threshold)
    return made


def seconds(function: Any) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def peak() -> float:
    """Returns the largest size of this process in GB. Unlike ru_maxrss, it is not that of the parent."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1e6


def memory(n_latents: int, n_tokens: int) -> None:
    """Collects the contexts of one large dictionary, and prints the sizes of the process."""
    model = language_model()
    torch.manual_seed(0)
    dictionary = AutoEncoderTopK(WIDTH, n_latents, K)
    before = peak()
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"sites": {"a": "model.layers.10"}, "n_tokens": n_tokens, "ctx_len": CTX}
        took = seconds(lambda: collect_contexts(model, {"a": dictionary}, texts()[0], folder, **options))
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()) / 1e9
        opened = statistics.median(seconds(lambda: ContextStore.open(folder)) for _ in range(5)) * 1e3
        store = ContextStore.open(folder)["a"]
        read = (
            statistics.median(seconds(lambda i=i: store.contexts(i)) for i in range(0, n_latents, n_latents // 50))
            * 1e3
        )
    after = peak()
    print(
        f"{n_latents:,} latents, {n_tokens:,} tokens: max_rss {after:.2f} GB (before the pass {before:.2f} GB), {took:.0f} s, "
        f"{size:.2f} GB on disk, opened in {opened:.1f} ms, a latent read in {read:.1f} ms"
    )


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", type=int, default=100_000, help="latents of the large dictionary; 0 for none")
    parser.add_argument("--only-memory", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only_memory:
        memory(given.memory, given.tokens)
        return
    model, site = language_model(), "model.layers.10"
    read = batches(model, given.tokens)
    four = dictionaries(model, site, read[0])
    n_tokens = sum(int(one.attention_mask.sum()) for one in read)

    def collect() -> None:
        with tempfile.TemporaryDirectory() as folder:
            collect_contexts(
                model, four, texts()[0], folder, sites=dict.fromkeys(four, site), n_tokens=n_tokens, ctx_len=CTX
            )

    found: dict[str, list[float]] = {"whole": [], "stopped": [], "pass": []}
    model.run(*read[0])
    for _ in range(given.repeats):  # in turn, so that other work on the machine weighs on all alike
        found["whole"].append(seconds(lambda: [model.run(*one) for one in read]))
        found["pass"].append(seconds(collect))
        found["stopped"].append(seconds(lambda: [model.capture(*one, [Site(site)]) for one in read]))
    whole, stopped, took = (statistics.median(found[name]) for name in ("whole", "stopped", "pass"))
    rows = [
        ("machine", machine()),
        ("tokens", f"{n_tokens:,}, {given.repeats} rounds"),
        ("model alone, whole", f"{whole:.1f} s ({model.dtype})"),
        ("model alone, to layer 10", f"{stopped:.1f} s"),
        (
            "pass, four dictionaries",
            f"{took:.1f} s: {took / whole:.2f} of the whole model, {took / stopped:.2f} of its part",
        ),
    ]
    print(table(rows))
    if given.memory:
        script = [
            sys.executable,
            __file__,
            "--only-memory",
            "--memory",
            str(given.memory),
            "--tokens",
            str(given.tokens // 4),
        ]
        subprocess.run(script, check=True)


if __name__ == "__main__":
    main()
