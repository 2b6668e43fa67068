"""What the benchmarks share: the model, the text, timing, and the peers' environments."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dictionary_learning.data import TextSource, file_source
from dictionary_learning.models import TracedModel, load_model

ROOT = Path(__file__).parent.parent
CACHE = ROOT / ".cache"
CORPUS = ROOT / "demo" / "sotu.jsonl.zst"
SITE = "model.layers.10"
DICT_SIZE, K, BATCH, CTX = 9216, 32, 2048, 256
PEERS = Path(os.environ.get("PEERS", CACHE / "peers"))
"""A folder with one virtual environment for each peer, as benchmarks/peers/setup.sh makes them."""


def language_model() -> TracedModel:
    """Returns the demo's language model, in the dtype that this machine is fast at."""
    return load_model(saved_model())


def saved_model() -> Path:
    """Returns the folder of the demo's model in the form that every peer reads; made from the GGUF file the first time."""
    folder = CACHE / "models" / "SmolLM2-135M-Instruct"
    if not (folder / "config.json").is_file():
        sys.path.insert(0, str(ROOT / "demo"))
        from fetch_model import fetch_model
        from transformers import LlamaForCausalLM

        loaded = load_model(fetch_model(), dtype="bfloat16", device="cpu")
        config: Any = loaded.module.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        plain = LlamaForCausalLM(config).to(torch.bfloat16)  # pyright: ignore[reportArgumentType]
        plain.load_state_dict(loaded.module.state_dict())
        plain.tie_weights()
        plain.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
    return folder


def texts() -> tuple[TextSource, TextSource]:
    """Returns the text to train on, and the text held out: every 20th document."""
    return file_source(CORPUS).hold_out(20)


def median_ms(function: Callable[[], Any], repeats: int = 7) -> float:
    """Returns the median time of a call in milliseconds, after two that are not counted."""
    times = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:]) * 1e3


def peer(name: str, script: str, *arguments: str) -> dict[str, Any] | None:
    """Runs a script in a peer's environment; returns the JSON of its last line, or None where the peer is not installed."""
    python = PEERS / name / "bin" / "python"
    if not python.is_file():
        print(f"{name} is not installed in {PEERS}; benchmarks/peers/setup.sh {name} installs it.")
        return None
    # -E: with its own packages, not those of PYTHONPATH
    command = [str(python), "-E", str(ROOT / "benchmarks" / "peers" / script), *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        print(f"{name} failed: {result.stderr.strip().splitlines()[-1]}")
        return None
    return json.loads(result.stdout.strip().splitlines()[-1])


def machine() -> str:
    """Returns a line about the machine."""
    cpu = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []:
        if line.startswith("model name"):
            cpu = line.split(":")[1].strip()
            break
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {device}, torch {torch.__version__}"


def table(rows: list[tuple[str, str]]) -> str:
    """Returns rows as a Markdown table."""
    return "\n".join(["| figure | measured |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])
