"""The Python of docs/start.md runs as it stands there, but for what no test can download, and in small."""

import re
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import dictionary_learning
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
    "n_ctxs=512": "n_ctxs=16", "out_batch_size=2048": "out_batch_size=256", "steps=50": "steps=3, progress=False",
    "10_000": "512", "4_096": "512", "1_024": "256", "max_new_tokens=30": "max_new_tokens=4",
}  # fmt: skip
FOLDER = ".cache/models/SmolLM2-135M-Instruct"


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A folder with the demo's text and a small model, with a vocabulary of the page's words, where the page has its own."""
    monkeypatch.setattr(tiny, "WORDS", [*WORDS, *(f"w{i}" for i in range(tiny.VOCAB - 3 - len(WORDS)))])
    torch.manual_seed(0)
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=tiny.VOCAB, bos_token_id=0, eos_token_id=1, pad_token_id=2, hidden_size=8, intermediate_size=8,
            num_hidden_layers=16, num_attention_heads=1, num_key_value_heads=1, max_position_embeddings=128,
            tie_word_embeddings=True,
        )
    ).save_pretrained(tmp_path / FOLDER)  # fmt: skip
    tiny.tokenizer().save_pretrained(tmp_path / FOLDER)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_jobs_of_the_start_page_run_each_by_itself(small, monkeypatch, capsys):
    """Without a network, and without the names of the job before."""
    real = dictionary_learning.load_model
    monkeypatch.setattr(dictionary_learning, "load_model", lambda place: real({FOLDER: place}[place], device="cpu"))
    jobs = python_of_the_page()
    train, read, hub, evaluate = jobs
    names = run(train)
    assert [str(site) for site in names["dictionary"].info.sites] == ["model.layers.15:out"]
    names = run(read)
    assert names["theirs"].info.format == "sae_lens" and names["store"]["theirs"].site == "model.layers.15:out"
    assert (small / "runs" / "first" / "latent.html").is_file()
    capsys.readouterr()
    run(evaluate)
    assert (small / "runs" / "first" / "report.html").is_file()
    first, *texts = capsys.readouterr().out.splitlines()
    assert first.startswith("unexplained ") and first.endswith(" nats") and len(texts) == 3
    assert "list_pretrained" in hub


def test_release_of_the_start_page_is_listed_with_its_site_and_model(monkeypatch):
    hub = python_of_the_page()[2]
    loaded = []
    monkeypatch.setattr(dictionary_learning, "load_model", loaded.append)
    real = dictionary_learning.list_pretrained

    def listed(**wanted: str) -> list[Any]:
        release = real(**wanted)[0]

        def load(site: str) -> None:
            assert site in release.sites and release.model == "gpt2-small"
            loaded.append(site)

        return [types.SimpleNamespace(load=load)]

    monkeypatch.setattr(dictionary_learning, "list_pretrained", listed)
    run(hub)
    assert loaded == ["openai-community/gpt2", "blocks.8.hook_resid_pre"]


def python_of_the_page() -> list[str]:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "start.md").read_text(), re.S)
    assert len(blocks) == 4
    return blocks


def run(block: str) -> dict[str, Any]:
    """Returns the names that a block defines, which knows no other's."""
    for large, little in SMALLER.items():
        block = block.replace(large, little)
    names: dict[str, Any] = {}
    exec(compile(block, "start.md", "exec"), names)
    return names
