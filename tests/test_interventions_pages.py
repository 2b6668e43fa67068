"""The Python of the pages on interventions and attribution runs as it stands there, with a small model."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import dictionary_learning
from dictionary_learning.dictionaries import AutoEncoderTopK, Crosscoder, Dictionary, DictionaryInfo, Transcoder
from tests import tiny

DOCS = Path(__file__).parent.parent / "docs"
WORDS = [
    "The",
    "treaty",
    "was",
    "signed",
    ".",
    "We",
    "must",
    "act",
    "state",
    "of",
    "the",
    "union",
    "is",
    "are",
    "keys",
    "key",
    "on",
    "table",
]


def built(name: str) -> Dictionary:
    """Returns the dictionary that a page loads."""
    torch.manual_seed(0)
    if "crosscoder" in name:
        made, sites, targets = Crosscoder((8, 8), 64, {"name": "top_k", "k": 4}), ("layers.3", "layers.9"), ()
    elif "transcoder" in name:
        made, sites, targets = Transcoder(8, 64, {"name": "top_k", "k": 4}), ("layers.2.mlp:in",), ("layers.2.mlp",)
    else:
        layer = 15 if "demo" in name else 3 + 4 * int(name[-1])
        made, sites, targets = AutoEncoderTopK(8, 64, 4), (f"model.layers.{layer}",), ()
    made.info = DictionaryInfo(sites=sites, target_sites=targets)
    return made


@pytest.fixture
def small(monkeypatch):
    """Puts a small model with a vocabulary of the pages' words in the place of the named one."""
    monkeypatch.setattr(tiny, "WORDS", [*WORDS, *(f"w{i}" for i in range(tiny.VOCAB - 3 - len(WORDS)))])
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tiny.VOCAB, hidden_size=8, intermediate_size=8, num_hidden_layers=16, num_attention_heads=1,
        num_key_value_heads=1, max_position_embeddings=128, bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    model = dictionary_learning.load_model(LlamaForCausalLM(config).eval(), tokenizer=tiny.tokenizer())
    monkeypatch.setattr(dictionary_learning, "load_model", lambda name: model)
    monkeypatch.setattr(dictionary_learning, "load_dictionary", built)


def executed(page: str, n_blocks: int, folder: Path) -> dict[str, Any]:
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.S)
    assert len(blocks) == n_blocks
    names: dict[str, Any] = {}
    for number, block in enumerate(blocks):
        place = folder / f"{page}.{number}.py"
        place.write_text(block)  # nnsight reads the body of a trace from its file
        exec(compile(block, place, "exec"), names)
    return names


@pytest.mark.filterwarnings("ignore")
def test_python_of_the_interventions_page_runs(small, tmp_path):
    names = executed("interventions.md", 7, tmp_path)
    assert names["made"].input_ids.shape[0] == 2 and len(names["made"].texts) == 2
    assert names["result"].shape == (1, names["ids"].shape[1] + 5)
    assert len(names["both"]) == 3 and names["logits"].shape[-1] == tiny.VOCAB


def test_python_of_the_attribution_page_runs(small, tmp_path):
    names = executed("attribution.md", 5, tmp_path)
    assert names["same_length"] and max(map(abs, names["gaps"])) < 1e-3
    assert names["between"].weight.shape[0] == 10
    assert names["graph"].n_active > 0 and bool(names["kept"].nodes.any())
    assert names["few"].n_nodes <= 50 and isinstance(names["result"].faithfulness, float)
