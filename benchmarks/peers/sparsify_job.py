"""sparsify's whole job, in its own environment. usage: sparsify_job.py MODEL CORPUS.jsonl.zst TOKENS

Prints a line of JSON: tokens per second from tokenized text to a trained dictionary at layer 10.
"""

import io
import json
import sys
import tempfile
import time

import torch
import zstandard

torch.cuda.is_bf16_supported = lambda *_, **__: False  # it asks CUDA about every machine
from datasets import Dataset  # noqa: E402
from sparsify import SaeConfig, TrainConfig, Trainer  # noqa: E402
from sparsify.data import chunk_and_tokenize  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

model_path, corpus, n_tokens, ctx = sys.argv[1], sys.argv[2], int(sys.argv[3]), 256
with open(corpus, "rb") as file:
    lines = io.TextIOWrapper(
        zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True), encoding="utf-8"
    )
    documents = [json.loads(line) for line in lines]
tokenizer = AutoTokenizer.from_pretrained(model_path)
tokenizer.model_max_length = ctx
tokenized = chunk_and_tokenize(Dataset.from_list(documents), tokenizer, max_seq_len=ctx, num_proc=1)
tokenized = tokenized.select(range(n_tokens // ctx))
model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.bfloat16)
config = TrainConfig(
    SaeConfig(expansion_factor=16, k=32),
    batch_size=8,
    layers=[10],
    log_to_wandb=False,
    save_dir=tempfile.mkdtemp(),
    save_every=10**9,
)
trainer = Trainer(config, tokenized, model)
start = time.perf_counter()
trainer.fit()
print(json.dumps({"peer": "sparsify", "tokens_per_second": n_tokens / (time.perf_counter() - start)}))
