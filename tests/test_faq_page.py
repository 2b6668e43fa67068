"""The Python of docs/faq.md runs as it stands there, with a small model in place of the named one."""

import re
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

import dictionary_learning
from tests import tiny

PAGE = Path(__file__).parent.parent / "docs" / "faq.md"


def test_python_of_the_faq_runs(monkeypatch):
    llama = LlamaConfig(
        vocab_size=tiny.VOCAB, hidden_size=8, intermediate_size=8, num_hidden_layers=17, num_attention_heads=1,
        max_position_embeddings=64, bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    small = dictionary_learning.load_model(LlamaForCausalLM(llama), tokenizer=tiny.tokenizer(), device="cpu")
    monkeypatch.setattr(dictionary_learning, "load_model", {"HuggingFaceTB/SmolLM2-135M": small}.__getitem__)
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    for block in blocks:
        exec(compile(block, "faq.md", "exec"), names)
    assert len(blocks) == 4
    assert [str(site) for site in names["dictionary"].info.sites] == ["model.layers.15:out"]
    assert {1, 5} <= set(names["buffer"].filter.exclude_ids)
    assert len(names["strongest"]) == 4


@pytest.mark.parametrize("link", re.findall(r"\]\((\w+\.md)(#[\w-]+)?\)", PAGE.read_text()), ids="".join)
def test_links_of_the_faq_lead_to_headings(link):
    page, heading = link
    text = (PAGE.parent / page).read_text()
    headings = [
        re.sub(r"[^\w -]", "", line.lstrip("# ")).lower().replace(" ", "-")
        for line in text.splitlines()
        if line.startswith("#")
    ]
    assert not heading or heading[1:] in headings
