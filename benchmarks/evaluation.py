"""What an evaluation costs beside the model's forward passes that it needs.

    python benchmarks/evaluation.py [--tokens 8192] [--rounds 3]

One dictionary (TopK, 9,216 latents, random weights) at layer 10 of the demo's model, with every metric. Passes: one as the model is,
one with the dictionary in its place, and one for each ablation. The model alone makes as many on the same contexts, with its logits, in
turn with the evaluation; the smallest times of the rounds are compared. `--dictionaries N` shares the clean pass and the ablations.
"""

import argparse
import time

import torch
from common import CTX, DICT_SIZE, SITE, K, language_model, machine, texts

from dictionary_learning import AutoEncoderTopK, Candidate, EvaluationConfig, evaluate_dictionaries
from dictionary_learning.data import TokenStream

CONTEXTS, WIDTH = 8, 576


def main() -> None:
    """Measures, and prints the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dictionaries", type=int, default=1)
    given = parser.parse_args()
    model = language_model()
    text = texts()[1]
    stream = TokenStream(text, model.tokenizer, ctx_len=CTX)
    batches = [stream.take(CONTEXTS) for _ in range(-(-given.tokens // (CTX * CONTEXTS)))]
    candidates = [
        Candidate(str(n), AutoEncoderTopK(WIDTH, DICT_SIZE, K).to(model.device), SITE)
        for n in range(given.dictionaries)
    ]
    config = EvaluationConfig(n_tokens=given.tokens, n_fidelity_tokens=given.tokens, ctx_len=CTX, batch_size=CONTEXTS)
    n_passes = 1 + len(candidates) + len(config.ablations)
    alone: list[float] = []
    whole: list[float] = []
    for _ in range(given.rounds):
        start = time.perf_counter()
        with torch.no_grad():
            for batch in batches:
                assert batch is not None
                model.module(input_ids=batch.input_ids.to(model.device), use_cache=False)
        alone.append(time.perf_counter() - start)
        start = time.perf_counter()
        evaluate_dictionaries(model, candidates, text, config)
        whole.append(time.perf_counter() - start)
    ratio = min(whole) / (n_passes * min(alone))
    print(
        f"{machine()}\n{given.tokens:,} tokens, {len(candidates)} dictionaries: {min(whole):.1f} s; a pass {min(alone):.1f} s"
    )
    print(f"{ratio:.2f} times the {n_passes} forward passes")


if __name__ == "__main__":
    main()
