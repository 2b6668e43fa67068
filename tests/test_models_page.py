"""The Python of docs/models.md runs as it stands there, but for the models, which no test can download."""

import re
from pathlib import Path
from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM

import dictionary_learning
from tests import tiny

PAGE = Path(__file__).parent.parent / "docs" / "models.md"


def test_python_of_the_models_page_runs(monkeypatch):
    llama = LlamaConfig(
        vocab_size=tiny.VOCAB, hidden_size=8, intermediate_size=8, num_hidden_layers=11, num_attention_heads=2,
    )  # fmt: skip
    named = {
        "HuggingFaceTB/SmolLM2-135M-Instruct": lambda: LlamaForCausalLM(llama),
        "google-bert/bert-base-uncased": lambda: tiny.model("bert"),
        "google-t5/t5-small": lambda: tiny.model("t5"),
        "google/vit-base-patch16-224": lambda: tiny.model("vit"),
    }
    real = dictionary_learning.load_model

    def load(model: Any, **options: Any) -> dictionary_learning.TracedModel:
        return real(named[model]() if isinstance(model, str) else model, **options)

    monkeypatch.setattr(dictionary_learning, "load_model", load)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "models.md", "exec"), names)
    assert len(blocks) == 5
    assert names["by_head"].shape == (2, 4, 2, 4)
    assert str(names["heads"]) == "model.layers.10.self_attn.o_proj:in"
    assert names["activations"].shape == (2, 2, tiny.DIM)
    assert names["dictionary"].dict_size == 64
