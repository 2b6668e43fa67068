"""The Python of the pages on interventions and attribution runs as it stands there, with a small model."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import dictionary_learning
from dictionary_learning.cli import main
from dictionary_learning.dictionaries import AutoEncoderTopK, Crosscoder, Dictionary, DictionaryInfo, Transcoder
from dictionary_learning.interpretation import ContextStore
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
CONFIG = LlamaConfig(
    vocab_size=tiny.VOCAB, hidden_size=8, intermediate_size=8, num_hidden_layers=16, num_attention_heads=1,
    num_key_value_heads=1, max_position_embeddings=128, bos_token_id=0, eos_token_id=1, pad_token_id=2,
)  # fmt: skip
MODEL = "HuggingFaceTB/SmolLM2-135M"
LINES = {"interventions.md": 3, "attribution.md": 2, "exports.md": 2}
"""Pages whose first lines of shell make what they read, and how many dictionaries that are, of one layer or all."""
TINY = [
    "--device", "cpu", "--dtype", "float32", "--batch-size", "64", "--ctx-len", "32", "--n-ctxs", "16",
    "--refresh-batch-size", "4", "--n-eval-tokens", "64", "--n-fidelity-tokens", "0", "--n-resamples", "0",
    "--ablations", "none", "--n-geometry-latents", "0", "--held-out-every", "5",
    "--together", "false", "--all-tokens", "false", "--breakdown", "false",
]  # fmt: skip


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
    model = dictionary_learning.load_model(LlamaForCausalLM(CONFIG).eval(), tokenizer=tiny.tokenizer())
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


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder in which the lines at the top of the pages were run, each once and in small."""
    place = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "WORDS", [*WORDS, *(f"w{i}" for i in range(tiny.VOCAB - 3 - len(WORDS)))])
        patch.chdir(place)
        torch.manual_seed(0)
        LlamaForCausalLM(CONFIG).save_pretrained("model")
        tiny.tokenizer().save_pretrained("model")
        (place / "text.txt").write_text("\n\n".join(" ".join(WORDS * n) for n in range(1, 30)))
        lines = [line for page in LINES for line in re.findall(r"^```bash\n(.*?)```", (DOCS / page).read_text(), re.S | re.M)[0].splitlines()]  # fmt: skip
        for line in dict.fromkeys(lines):
            words = shlex.split(line.replace(MODEL, "model").replace("demo/sotu.jsonl.zst", "text.txt"))
            smaller = {"--n-tokens": "128", "--k": "2"}
            words = [smaller.get(before, word) for before, word in zip(["", *words], words, strict=False)]
            further = TINY if words[1] == "train" else ["--device", "cpu"]
            assert words[0] == "dictionary-learning" and main([*words[1:], *further]) == 0, line
    return place


@pytest.mark.parametrize("page", LINES)
def test_lines_at_the_top_of_a_page_make_what_it_reads(runs, page):
    """The dictionaries of the page are those that the other tests put in their place."""
    python = "\n".join(re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.S))
    named = re.findall(r'load_dictionary\(f?"(.*?)"\)(?: for n in range\((\d+)\))?', python)
    named += re.findall(r'`load_dictionary\("(.*?)"\)`()', (DOCS / page).read_text())
    assert len(named) == LINES[page]
    for name, n in named:
        # of all layers, those that this model has
        for number in range(min(int(n), CONFIG.num_hidden_layers) if n else 1):
            found = dictionary_learning.load_dictionary(runs / name.format(n=number))
            kind = Crosscoder if "crosscoder" in name else Transcoder if "transcoder" in name else AutoEncoderTopK
            assert isinstance(found, kind) and found.info.sites, name
    stored = re.findall(r'store\["(.*?)"\]', python)
    if stored:
        assert {name.replace("-32", "-2") for name in stored} <= set(ContextStore.open(runs / "store"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", ["interventions.md", "attribution.md"])
def test_python_of_the_pages_runs_on_what_their_lines_made(runs, page, tmp_path, monkeypatch):
    monkeypatch.chdir(runs)
    real = dictionary_learning.load_model
    monkeypatch.setattr(dictionary_learning, "load_model", lambda name: real("model", dtype="float32"))
    names = executed(page, 7 if page == "interventions.md" else 5, tmp_path)
    assert len(names["both"]) == 3 if page == "interventions.md" else names["graph"].n_active > 0
