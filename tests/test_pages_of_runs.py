"""The Python of pages that read runs works as it stands there, on small runs that the lines of the pages make."""

import functools
import itertools
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
from dictionary_learning.sites import Site
from tests import tiny

DOCS = Path(__file__).parent.parent / "docs"
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in DOCS.glob("*.md"))]
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
MODEL, TEXT = "HuggingFaceTB/SmolLM2-135M", "demo/sotu.jsonl.zst"
LINES = {"interventions.md": 3, "attribution.md": 2, "exports.md": 2}
"""Pages whose first lines of shell make what they read, and how many dictionaries they load by themselves."""
RUNS = ("interventions.md", "attribution.md", "evaluation.md", "downstream.md", "contexts.md", "dashboards.md")
"""Pages whose Python reads what their lines make, and nothing that costs more than a test may."""
SMALLER = {"64": "4", "32": "2", "100_000": "128", "20_000": "256"}
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
        layer = 15 if "layer15" in name else 3 + 4 * int(name[-1])
        made, sites, targets = AutoEncoderTopK(8, 64, 4), (f"model.layers.{layer}",), ()
    made.info = DictionaryInfo(sites=sites, target_sites=targets)
    return made


@pytest.fixture
def small(monkeypatch):
    """Puts a small model with a vocabulary of the pages' words in the place of the named one."""
    monkeypatch.setattr(tiny, "WORDS", [*WORDS, *(f"w{i}" for i in range(tiny.VOCAB - 3 - len(WORDS)))])
    torch.manual_seed(0)
    model = dictionary_learning.load_model(LlamaForCausalLM(CONFIG).eval(), tokenizer=tiny.tokenizer())
    monkeypatch.setattr(dictionary_learning, "load_model", lambda name, dtype=None: model)
    monkeypatch.setattr(dictionary_learning, "load_dictionary", built)


def executed(page: str, folder: Path) -> dict[str, Any]:
    names: dict[str, Any] = {}
    for number, block in enumerate(python_of(page)):
        place = folder / f"{page}.{number}.py"
        place.write_text(block)  # nnsight reads the body of a trace from its file
        exec(compile(block, place, "exec"), names)
    return names


@pytest.mark.filterwarnings("ignore")
def test_python_of_the_interventions_page_runs(small, tmp_path):
    names = executed("interventions.md", tmp_path)
    assert names["made"].input_ids.shape[0] == 2 and len(names["made"].texts) == 2
    assert names["result"].shape == (1, names["ids"].shape[1] + 5)
    assert len(names["both"]) == 3 and names["logits"].shape[-1] == tiny.VOCAB


def test_python_of_the_attribution_page_runs(small, tmp_path):
    names = executed("attribution.md", tmp_path)
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
        lines = [line for page in {**LINES, **dict.fromkeys(RUNS)} for line in first_lines(page)]
        for line in dict.fromkeys(lines):
            words = shlex.split(line.replace(MODEL, "model").replace(TEXT, "text.txt"))
            words = [SMALLER.get(word, word) for word in words]
            further = TINY if words[1] == "train" else ["--device", "cpu"]
            assert words[0] == "dictionary-learning" and main([*words[1:], *further]) == 0, line
    return place


def first_lines(page: str) -> list[str]:
    """Returns the commands of the first block of shell of a page."""
    block = re.findall(r"^```bash\n(.*?)```", (DOCS / page).read_text(), re.S | re.M)[0]
    return block.replace("\\\n", " ").splitlines()


@pytest.mark.parametrize("page", LINES)
def test_lines_at_the_top_of_a_page_make_what_it_reads(runs, page):
    """The dictionaries of the page are those that the other tests put in their place."""
    python = "\n".join(python_of(page))
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
@pytest.mark.parametrize("page", RUNS)
def test_python_of_the_pages_runs_on_what_their_lines_made(runs, page, tmp_path, monkeypatch):
    """And every dictionary is at the site that it was trained on, under the k that it has."""
    monkeypatch.chdir(runs)
    Path("tasks.csv").write_text("text,label\n" + "".join(f"{' '.join(WORDS[n:])},{n % 2}\n" for n in range(12)))
    real = dictionary_learning.load_model
    monkeypatch.setattr(dictionary_learning, "load_model", lambda name, dtype=None: real("model", dtype="float32"))
    names = executed(page, tmp_path)
    candidates = [one for one in [*names.get("candidates", []), names.get("candidate")] if one is not None]
    assert candidates or page not in ("evaluation.md", "downstream.md", "contexts.md")
    known = [(one.site, one.dictionary.info.sites) for one in candidates]
    assert all(site is None or Site.parse(str(site)) in map(Site.parse, sites) for site, sites in known)
    for label, dictionary in names["dictionaries"].items() if "k 64" in names.get("dictionaries", ()) else ():
        found = dictionary_learning.load_dictionary(dictionary) if isinstance(dictionary, str) else dictionary
        assert f"k {found.k}" == "k " + SMALLER[label.removeprefix("k ")]


def python_of(page: str) -> list[str]:
    """Returns the blocks of Python of a page, in small."""
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.S)
    small = {TEXT: "text.txt", "16_384": "64", "4_096": "32", "20_000": "256", "[7, 12, 40]": "[1, 2, 3]"}
    return [functools.reduce(lambda block, pair: block.replace(*pair), small.items(), block) for block in blocks]


TRAINED = re.compile(r"^(?:\s*)(?:srun )?((?:torchrun .*? -m )?dictionary[-_]learning train .*--save-dir \S+.*)$", re.M)
MADE_ELSEWHERE = {"latest", "demo", "mine"}
"""The newest run, that of `make demo`, and that of the README's first block."""


def text_of(page: str) -> str:
    """Returns a page in which a command is one line."""
    return (DOCS.parent / page).read_text().replace("\\\n", " ")


def recipes(page: str) -> dict[str, set[str]]:
    """Returns what makes each run of a page: commands, and blocks of Python."""
    found: dict[str, set[str]] = {}
    for command in TRAINED.findall(text_of(page)):
        words = command.split()
        found.setdefault(words[words.index("--save-dir") + 1].rsplit("runs/")[-1], set()).add(" ".join(words))
    for block in re.findall(r"```python\n(.*?)```", text_of(page), re.S):
        for name in re.findall(r'save_dir="runs/(\w+)"', block):
            found.setdefault(name, set()).add(block)
    return found


def test_name_of_a_run_means_one_recipe_on_all_pages():
    together: dict[str, set[str]] = {}
    for page in PAGES:
        for name, ways in recipes(page).items():
            together[name] = together.get(name, set()) | ways
    assert {name: ways for name, ways in together.items() if len(ways) > 1} == {}
    assert len(together) > 12


@pytest.mark.parametrize("page", PAGES)
def test_page_makes_the_runs_that_it_reads(page):
    read = set(re.findall(r"\bruns/(\w+)", text_of(page))) - set(recipes(page))
    if page != "docs/migrating.md":
        assert {name for name in read if name not in MADE_ELSEWHERE} == set()
    assert "demo" not in read or "make demo" in text_of(page)


@pytest.mark.parametrize("page", PAGES)
def test_sites_and_labels_of_a_page_are_those_of_its_runs(page):
    """The dictionaries of a run are those of one k after another, each on all sites."""
    shell = {name: words.split() for name, ways in recipes(page).items() for words in ways if "learning train" in words}
    blocks = re.findall(r"```python\n(.*?)```", text_of(page), re.S)
    loaded = "\n".join(blocks) if any(f"runs/{name}" in block for name in shell for block in blocks) else ""
    layers = {layer for words in shell.values() for layer in values(words, "--layers")}
    assert set(re.findall(r'"(?:model\.)?layers\.(\d+)[".:]', loaded)) <= layers
    for label, name, number in re.findall(r'"k (\d+)": (?:load_dictionary\()?"runs/(\w+)/trainer_(\d+)"', loaded):
        words = shell[name]
        assert values(words, "--k")[int(number) // len(values(words, "--layers"))] == label


def values(words: list[str], option: str) -> list[str]:
    """Returns the values of an option of a command."""
    after = words[words.index(option) + 1 :] if option in words else []
    return list(itertools.takewhile(lambda word: not word.startswith("--"), after))
