"""The README's Python runs as it stands there, but for the model, which no test can download."""

import json
import re
import shutil
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import dictionary_learning
from tests import tiny
from tests.data.kinds import lines

ROOT = Path(__file__).parent.parent


@pytest.fixture
def small_model(monkeypatch):
    """Puts a model with as many layers as the README's, and next to no width, in the place of the named one."""
    config = LlamaConfig(
        vocab_size=tiny.VOCAB, hidden_size=8, intermediate_size=8, num_hidden_layers=16, num_attention_heads=1,
        num_key_value_heads=1, max_position_embeddings=128, tie_word_embeddings=True,
    )  # fmt: skip
    real = dictionary_learning.load_model
    small = real(LlamaForCausalLM(config), tokenizer=tiny.tokenizer())
    monkeypatch.setattr(dictionary_learning, "load_model", lambda name: small)


def test_python_of_the_readme_runs(small_model, tmp_path, monkeypatch):
    block = python_of_the_readme()[0]
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    monkeypatch.chdir(tmp_path)
    block = (
        block.replace("k in (32, 64)", "k in (2, 4)")
        .replace('"n_ctxs": 1024', '"n_ctxs": 64')
        .replace("steps=100", "steps=5")
    )
    exec(compile(block, "README.md", "exec"), {})
    report = json.loads((tmp_path / "runs" / "mine" / "report.json").read_text())
    assert [d["name"] for d in report["dictionaries"]] == [
        f"model.layers.15{part}:out-{k}" for k in (2, 4) for part in ("", ".mlp")
    ]
    assert (tmp_path / "runs" / "mine" / "trainer_3" / "dictionary.safetensors").is_file()


def test_wirings_of_the_readme_train(small_model, tmp_path, monkeypatch):
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    monkeypatch.chdir(tmp_path)
    block = python_of_the_readme()[1].replace("10_000", "2").replace("k=32", "k=2").replace('"k": 32', '"k": 2')
    block = re.sub(r"ActivationBuffer\((.*)\)", r"ActivationBuffer(\1, n_ctxs=64, out_batch_size=256)", block)
    exec(compile(block, "README.md", "exec"), {})


def test_python_of_the_methods_page_runs(small_model):
    block, of_contexts = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "methods.md").read_text(), re.S)
    names: dict[str, Any] = {}
    block = block.replace("steps=20", "steps=3, progress=False").replace("20_000", "4_000")
    exec(compile(block, "methods.md", "exec"), names)
    assert names["wider"].dict_size == 1024
    exec(compile(of_contexts, "methods.md", "exec"), names)


def test_python_of_the_data_page_runs(small_model, tmp_path, monkeypatch):
    import datasets

    monkeypatch.chdir(tmp_path)
    texts = tiny.documents(120)
    lines("corpus.jsonl.zst", [{"body": text} for text in texts])
    Path("books").mkdir()
    lines("books/one.txt", texts)
    np.arange(3, 90, dtype="uint32").tofile("tokens.bin")
    hub = {
        "HuggingFaceFW/fineweb": {"text": texts},
        "user/chats": {"messages": [[{"role": "user", "content": "w1"}]]},
    }
    monkeypatch.setattr(datasets, "load_dataset", lambda name, *_, **arguments: datasets.Dataset.from_dict(hub[name]))
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "data.md").read_text(), re.S)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "data.md", "exec"), names)
    assert len(blocks) == 6
    assert names["activations"].shape == (256, 8)
    assert names["stream"].take(1).input_ids.shape == (1, 128)


def test_python_of_the_cache_page_runs(small_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines("corpus.jsonl", [{"text": text} for text in tiny.documents(400)])
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "cache.md").read_text(), re.S)
    names: dict[str, Any] = {}
    exec(compile(block.replace("steps=20", "steps=3, progress=False"), "cache.md", "exec"), names)
    assert names["cache"].n_rows == 2000 and names["dictionary"].dict_size == 64
    assert next(names["mixed"])[dictionary_learning.Site("model.layers.8")].shape == (512, 8)


def test_python_of_the_formats_page_runs(tmp_path, monkeypatch, capsys):
    """Repositories are folders of the same names, and what would be uploaded is kept."""
    monkeypatch.chdir(tmp_path)
    fixtures = ROOT / "tests" / "fixtures"
    shutil.copytree(fixtures / "sparsify" / "multi_hookpoint", "EleutherAI/sae-llama-3-8b-32x")
    dictionary_learning.save_dictionary(dictionary_learning.AutoEncoder(16, 64), "runs/mine/trainer_0")
    (tmp_path / "runs" / "mine" / "report.json").write_text(json.dumps({"dictionaries": []}))
    uploaded = []
    commit = types.SimpleNamespace(commit_url="address")
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda api, repository, **_: uploaded.append(repository))
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", lambda api, **_: commit)
    monkeypatch.setattr("huggingface_hub.HfApi.upload_file", lambda api, **_: commit)
    x = torch.randn(32, 16)
    names = {"activations": x, "data": [x] * 3}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "formats.md").read_text(), re.S):
        exec(compile(block.replace("steps=3", "steps=3, progress=False"), "formats.md", "exec"), names)
    assert uploaded == ["you/dictionaries-of-your-model", "you/a-whole-run"]
    assert list(names["dictionaries"]) == ["layers.0", "layers.2", "layers.10"]
    assert sorted(p.name for p in (tmp_path / "converted" / "run").iterdir()) == ["layers.0", "layers.10", "layers.2"]
    assert "gpt2-small-res-jb" in capsys.readouterr().out


def python_of_the_readme() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)


def test_commands_of_the_readme_are_in_the_makefile():
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", readme, re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target
    assert "make test" in (ROOT / ".ci" / "run").read_text()
