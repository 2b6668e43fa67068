"""A run of many tiny steps that logs, saves and evaluates: memory, files and threads do not grow.

    python benchmarks/long_run.py [--steps 20000] [--prefetch 1]

A small random model is read through a buffer with a thread, whose text repeats. Every 10 steps are
logged, a dictionary is saved 100 times, a checkpoint 40 times, and 20 times the saved
dictionary is loaded and evaluated on the model. The largest figures of the last half are compared
with those of the second quarter. About 4 minutes on one core.
"""

import argparse
import gc
import os
import tempfile
import threading
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dictionary_learning import load_dictionary, load_model
from dictionary_learning.buffer import ActivationBuffer
from dictionary_learning.evaluation import Candidate, EvaluationConfig, evaluate_dictionaries
from dictionary_learning.models import TracedModel
from dictionary_learning.training import trainSAE

WORDS = [f"w{n}" for n in range(94)]
SITE = "model.layers.1"
GROWTH = 1.01
"""How much larger resident memory may become: the allocator keeps a little."""


class Held(NamedTuple):
    """What a process holds."""

    resident: int
    tensors: int
    threads: int
    files: int


def held() -> Held:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    tensors = sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())
    return Held(pages * os.sysconf("SC_PAGE_SIZE"), tensors, threading.active_count(), len(os.listdir("/proc/self/fd")))


def language_model() -> TracedModel:
    torch.manual_seed(0)
    vocabulary = {"<s>": 0, "</s>": 1, "<pad>": 2, **{word: n for n, word in enumerate(WORDS, 3)}}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    return load_model(LlamaForCausalLM(LlamaConfig(vocab_size=97, **sizes)), tokenizer=tokenizer)


class Watch:
    """A logger that evaluates what was saved, and notes the figures of the process."""

    def __init__(self, model: TracedModel, text: list[str], folder: Path, every: int):
        self.model, self.text, self.folder, self.every = model, text, folder, every
        self.found: list[Held] = []

    def log(self, figures: Any, step: int, tokens: int) -> None:
        if step % self.every:
            return
        dictionary = load_dictionary(self.folder / "trainer_0" / "checkpoints" / "latest")
        settings = EvaluationConfig(n_tokens=256, n_fidelity_tokens=128, ctx_len=16, batch_size=4)
        evaluate_dictionaries(self.model, [Candidate("latest", dictionary, f"{SITE}:out")], self.text, settings)
        self.found.append(held())
        now = self.found[-1]
        print(
            f"step {step:6}: {now.resident / 1e6:6.1f} MB, {now.tensors} tensors, {now.threads} threads, {now.files} files"
        )

    def close(self) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--prefetch", type=int, default=1)
    arguments = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    text = [" ".join(WORDS[n] for n in torch.randint(94, (30,), generator=generator).tolist()) for _ in range(200)]
    model, steps = language_model(), arguments.steps
    with tempfile.TemporaryDirectory() as temporary:
        watch = Watch(model, text, Path(temporary), steps // 20)
        data = ActivationBuffer(
            text, model, SITE, n_ctxs=64, ctx_len=16, refresh_batch_size=8, out_batch_size=64,
            end_of_data="repeat", prefetch=arguments.prefetch,
        )  # fmt: skip
        trainSAE(
            data, [{"trainer": "top_k", "k": 3, "dict_size": 64}, {"trainer": "jump_relu", "dict_size": 64}], steps,
            save_dir=temporary, log_steps=10, backup_steps=steps // 100, checkpoint_steps=steps // 40, save_steps=[steps // 2],
            loggers=[watch], progress=False, device="cpu",
        )  # fmt: skip
        data.close()
    warm, late = watch.found[5:10], watch.found[10:]
    before, after = (Held(*map(max, zip(*part, strict=True))) for part in (warm, late))
    print(f"second quarter at most {before}\nlast half at most      {after}")
    grows = after.resident > GROWTH * before.resident or after[1:] > before[1:]
    print("GROWS" if grows else "nothing grows")
    raise SystemExit(int(grows))


if __name__ == "__main__":
    main()
