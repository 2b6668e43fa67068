"""The demo in small: it trains, reports, writes pages, and then a latent is taken apart by script and notebook."""

import importlib
import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

from dictionary_learning import load_session
from dictionary_learning.interpretation import ContextStore, logit_lens
from tests import tiny

ROOT = Path(__file__).parent.parent.parent
DEMO = ROOT / "demo"
SCRIPT, NOTEBOOK = DEMO / "interpret.py", DEMO / "interpret.ipynb"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which the demo has run, with a tiny model and text."""
    root = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.syspath_prepend(DEMO)
        tiny.save_model("model")
        (root / "text.txt").write_text("\n".join(tiny.documents(60)))
        small = ["--n-tokens", "640", "--batch-size", "64", "--n-ctxs", "16", "--ctx-len", "16", "--k", "2", "4"]
        small += ["--held-out-every", "3", "--n-eval-tokens", "128", "--n-fidelity-tokens", "64", "--device", "cpu"]
        words = ["--model", "model", "--data", "text.txt", "--sites", "model.layers.1", "--save-dir", "run"]
        patch.setattr(sys, "argv", ["demo.py", *words, *small, "--dtype", "float32", "--seed", "3"])
        assert importlib.import_module("demo").demo() == 0
    sys.modules.pop("demo", None)  # the name of the folder, too
    return root


def test_demo_ends_with_pages_that_its_report_links_to(place):
    names = [entry["name"] for entry in json.loads((place / "run" / "report.json").read_text())["dictionaries"]]
    store = ContextStore.open(place / "run" / "latents" / "contexts")
    assert names == ["top_k-2", "top_k-4"] == store.names
    assert '<a href="./latents/index.html">' in (place / "run" / "report.html").read_text()
    assert "](./latents/index.html)" in (place / "run" / "report.md").read_text()
    assert (place / "run" / "latents" / "index.html").is_file()
    assert store.data["ctx_len"] == 16  # as in training


@pytest.fixture
def said(place, monkeypatch, capsys):
    """What the script says, and the names that it leaves behind."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("RUN", "run")
    names = runpy.run_path(str(SCRIPT))
    return capsys.readouterr().out, names


def test_script_takes_the_latent_of_its_rule_apart(place, said, monkeypatch):
    out, names = said
    monkeypatch.chdir(place)
    model, dictionaries, *_ = load_session("run")
    contexts, lens = (
        ContextStore.open("run/latents/contexts")["top_k-2"],
        logit_lens(model, dictionaries["top_k-2"], 20),
    )
    keys = []
    for latent in range(contexts.dict_size):
        peaks = {int(one.token_ids[one.peak]) for one in contexts.contexts(latent).top}
        n_words = len(peaks & set(lens.promoted[latent].tolist()))  # a token is a word here
        keys.append((min(n_words, 2), float(contexts.statistics.maximum[latent] * lens.promoted_logits[latent, 0])))
    assert names["latent"] == keys.index(max(keys)) and max(keys)[0] == 2
    assert f"Latent {names['latent']} is active on" in out and "tokens: [" in out
    effects = names["effects"]
    assert int(effects.n_tokens) > 0 and f"changes by {float(effects.ce_increase):+.3f} nats" in out
    steered = re.findall(r"^\d x: (.*)$", out, re.M)
    assert len(steered) == 3 and all(text.startswith(names["prompt"]) for text in steered)


def test_steering_of_the_script_is_that_of_a_plain_hook(place, said):
    _, names = said
    module, dictionary, latent = names["model"]._original, names["dictionary"], names["latent"]
    ids = names["made"].input_ids[:, : names["made"].n_prompt]

    def add(_, __, output):
        x = output[0] if isinstance(output, tuple) else output
        added = 2 * names["largest"] * dictionary.W_dec[latent]
        y = torch.where((ids_now > 2).unsqueeze(-1), x + added, x)
        return (y, *output[1:]) if isinstance(output, tuple) else y

    handle = module.model.layers[1].register_forward_hook(add)
    try:
        for _ in range(names["made"].generated.shape[1]):
            ids_now = ids
            with torch.no_grad():
                ids = torch.cat([ids, module(ids).logits[:, -1:].argmax(-1)], dim=1)
    finally:
        handle.remove()
    assert torch.equal(ids, names["made"].input_ids)


def test_run_without_pages_is_read_anew(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.setenv("RUN", "run")
    pages = place / "run" / "latents"
    pages.rename(place / "aside")
    try:
        names = runpy.run_path(str(SCRIPT))
    finally:
        (place / "aside").rename(pages)
    assert names["store"].folder == place / "run" / "contexts" and len(names["store"]) == 2


def notebook():
    return pytest.importorskip("nbformat").read(NOTEBOOK, as_version=4)


@pytest.fixture
def maker(monkeypatch):
    pytest.importorskip("nbclient")
    monkeypatch.syspath_prepend(DEMO)
    return importlib.import_module("make_notebook")


def test_notebook_is_the_script(maker):
    expected, found = maker.notebook_of(SCRIPT.read_text()), notebook()
    cells = [[(one.cell_type, one.id, one.source) for one in each.cells] for each in (expected, found)]
    assert cells[0] == cells[1], "run python demo/make_notebook.py"
    code = "\n\n\n".join(one.source for one in found.cells if one.cell_type == "code")
    assert all(line in code for line in re.findall(r"^(?!#|\"\"\").+$", SCRIPT.read_text().split("# %%", 1)[1], re.M))


def test_notebook_has_what_a_run_of_the_demo_gave():
    text = NOTEBOOK.read_text()
    assert len(text) < 300_000
    outputs = [output for cell in notebook().cells if cell.cell_type == "code" for output in cell.outputs]
    assert {output.output_type for output in outputs} == {"stream", "execute_result"}
    shown = [output for output in outputs if output.output_type == "execute_result"]
    assert len(shown) == 2 and all("dl-tokens" in output.data["text/html"] for output in shown)
    assert not re.search(r'"/(home|work|root|tmp|Users)/', text)


def test_page_of_the_demo_shows_what_the_notebook_said():
    (shown,) = re.findall(r"```text\n(.*?)\n```", (ROOT / "docs" / "demo.md").read_text(), re.S)
    cells = [cell for cell in notebook().cells if cell.cell_type == "code"]
    said = "".join(output.text for cell in cells for output in cell.outputs if output.output_type == "stream")
    assert shown.splitlines() == [line for line in said.splitlines() if line.strip()]


def test_notebook_runs_as_the_script_does(maker, place, said):
    out, names = said
    made = maker.run(maker.notebook_of(SCRIPT.read_text()), place)
    streams = [
        output.text for cell in made.cells if cell.cell_type == "code" for output in cell.outputs if "text" in output
    ]
    assert "".join(streams) == out
    views = [output.data["text/html"] for cell in made.cells for output in cell.get("outputs", ()) if "data" in output]
    assert views == [names["contexts"].show(names["latent"], n=5).html, views[1]] and "dl-tokens" in views[1]
