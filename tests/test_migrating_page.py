"""The Python of docs/migrating.md runs as it stands there, with small models, little text and a release in files."""

import re
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import dictionary_learning
from dictionary_learning import AutoEncoder, DictionaryInfo
from dictionary_learning.compat.saelens import SAE
from dictionary_learning.interop import _releases
from dictionary_learning.interop._releases import Release
from tests import tiny

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "migrating.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    llama = LlamaConfig(
        vocab_size=tiny.VOCAB, hidden_size=tiny.DIM, intermediate_size=8, num_hidden_layers=17, num_attention_heads=1,
        max_position_embeddings=64, bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    gpt2 = GPT2Config(vocab_size=tiny.VOCAB, n_embd=tiny.DIM, n_layer=9, n_head=2, n_positions=64, bos_token_id=0)
    for name, model in (("llama", LlamaForCausalLM(llama)), ("gpt2", GPT2LMHeadModel(gpt2))):
        model.save_pretrained(tmp_path / name)
        tiny.tokenizer().save_pretrained(tmp_path / name)
    texts = datasets.Dataset.from_dict({"text": tiny.documents(40, seed=3)})
    monkeypatch.setattr(datasets, "load_dataset", lambda *name, **options: texts)
    sae = SAE(AutoEncoder(tiny.DIM, 64))
    sae.info = DictionaryInfo(sites=("blocks.8.hook_resid_pre",), model="gpt2-small")
    sae.save_model("release/blocks.8.hook_resid_pre")
    release = Release("gpt2-small-res-jb", "release", "gpt2-small", "sae_lens", ("blocks.8.hook_resid_pre",))
    monkeypatch.setattr(_releases, "_all", lambda: (release,))
    return {
        "HuggingFaceTB/SmolLM2-135M": "llama", "openai-community/gpt2": "gpt2",
        "training_tokens=400_000": "training_tokens=512, train_batch_size_tokens=128, context_size=16, "
        "n_batches_in_buffer=4, store_batch_size_prompts=4",
        "lr_warm_up_steps=10,": "lr_warm_up_steps=1,",
        "chunk_and_tokenize(text,": "chunk_and_tokenize(text, max_seq_len=16, tokenizer=",
    }  # fmt: skip


def test_python_of_the_page_runs(small):
    names: dict[str, Any] = {}
    for block in BLOCKS:
        for large, little in small.items():
            block = block.replace(large, little)
        exec(compile(block, "migrating.md", "exec"), names)
    assert len(BLOCKS) == PAGE.count("```python") == 6
    first, second = (names[name].info.config["trainer"] for name in ("first", "second"))
    # as the text says: the second has the rates of 0.1, plain Adam and no decay
    assert (first["schedule"], second["schedule"]) == ("linear", "constant") and first["lr"] > 10 * second["lr"]
    assert (second["beta1"], second["beta2"], second["decoder_lr_factor"]) == (0.9, 0.999, 1.0)
    assert names["latents"].shape[-1] == 64 and isinstance(names["sae"], SAE) and names["sae"].cfg.d_sae
    assert Path("saes/unnamed/layers.15/cfg.json").is_file()


def test_names_of_the_page_are_those_of_the_tables():
    """What the page says is refused is refused where it is imported, and nothing else."""
    rows = [line.split("|")[1:3] for line in PAGE.splitlines() if line.startswith("| `") and "refused: `" in line]
    told = [name for names, _ in rows for name in re.findall(r"`([A-Z]\w+)`", names)]
    from dictionary_learning.compat.saelens._names import NAMES

    assert len(told) >= 9 and set(told) - {"PretokenizeRunner"} <= set(NAMES)
    assert all(hasattr(dictionary_learning, name) for name in ("ActivationBuffer", "write_cache", "push_to_hub"))
