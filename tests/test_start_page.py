"""The Python of docs/start.md runs as it stands there, but for what no test can download, and in small."""

import re
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import dictionary_learning
from dictionary_learning.dictionaries import AutoEncoder, DictionaryInfo
from tests import tiny

ROOT = Path(__file__).parent.parent
WORDS = [
    "The",
    "treaty",
    "was",
    "signed",
    "in",
    "Paris",
    ".",
    "We",
    "must",
    "not",
    "go",
    "to",
    "war",
    "again",
    "most",
    "important",
    "thing",
    "is",
    "of",
    "the",
    "and",
]
SMALLER = {
    "n_ctxs=1024": "n_ctxs=16", "out_batch_size=2048": "out_batch_size=256", "steps=100": "steps=3, progress=False",
    "20_000": "512", "16_384": "512", "4_096": "256", "max_new_tokens=30": "max_new_tokens=4",
}  # fmt: skip


@pytest.fixture
def small(monkeypatch):
    """Puts small models, with a vocabulary of the page's words, in the place of the named ones."""
    monkeypatch.setattr(tiny, "WORDS", [*WORDS, *(f"w{i}" for i in range(tiny.VOCAB - 3 - len(WORDS)))])
    torch.manual_seed(0)
    size = {"vocab_size": tiny.VOCAB, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    llama = LlamaConfig(
        **size, hidden_size=8, intermediate_size=8, num_hidden_layers=16, num_attention_heads=1, num_key_value_heads=1,
        max_position_embeddings=128, tie_word_embeddings=True,
    )  # fmt: skip
    gpt2 = GPT2Config(**size, n_embd=8, n_layer=12, n_head=1, n_positions=128)
    made = {
        "HuggingFaceTB/SmolLM2-135M": dictionary_learning.load_model(
            LlamaForCausalLM(llama), tokenizer=tiny.tokenizer()
        ),
        "openai-community/gpt2": dictionary_learning.load_model(GPT2LMHeadModel(gpt2), tokenizer=tiny.tokenizer()),
    }
    for name, model in made.items():
        monkeypatch.setattr(model, "name", name)
    monkeypatch.setattr(dictionary_learning, "load_model", made.__getitem__)
    real = dictionary_learning.list_pretrained

    def listed(**wanted: str) -> list[Any]:
        release = real(**wanted)[0]

        def load(site: str) -> AutoEncoder:
            assert site in release.sites and release.model == "gpt2-small"
            theirs = AutoEncoder(8, 64)
            theirs.info = DictionaryInfo(sites=(site,), model=release.model, format="sae_lens")
            return theirs

        return [types.SimpleNamespace(load=load)]

    monkeypatch.setattr(dictionary_learning, "list_pretrained", listed)


def test_python_of_the_start_page_runs(small, tmp_path, monkeypatch, capsys):
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "start.md").read_text(), re.S)
    names: dict[str, Any] = {}
    for block in blocks:
        for large, little in SMALLER.items():
            block = block.replace(large, little)
        exec(compile(block, "start.md", "exec"), names)
    assert len(blocks) == 3
    assert [str(site) for site in names["dictionary"].info.sites] == ["model.layers.15:out"]
    assert names["store"]["theirs"].site == "transformer.h.8:in" and len(names["promoted"]) == 10
    assert (tmp_path / "runs" / "first" / "report.html").is_file()
    first, *texts = capsys.readouterr().out.splitlines()
    assert first.startswith("unexplained ") and first.endswith(" nats") and len(texts) == 3
