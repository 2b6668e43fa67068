"""Pages of real dictionaries, from a store of contexts and from the command line."""

import json
import shutil

import pytest
import torch

from dictionary_learning import AutoEncoderTopK, DictionaryInfo, load_model, save_dictionary
from dictionary_learning.cli import main
from dictionary_learning.dashboards import pages_of, write_dashboard
from dictionary_learning.errors import ConfigError
from dictionary_learning.interpretation import collect_contexts
from tests import tiny
from tests.dashboards.test_writing import data

SITE = "transformer.h.1:out"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A saved model, a text, two dictionaries of one site, and their contexts."""
    root = tmp_path_factory.mktemp("connecting")
    module = tiny.model("gpt2")
    module.save_pretrained(root / "model")
    tiny.tokenizer().save_pretrained(root / "model")
    (root / "text.txt").write_text("\n".join(tiny.documents(40)))
    model = load_model(module, tokenizer=tiny.tokenizer())
    made = {}
    for seed, name in enumerate(("first", "second")):
        torch.manual_seed(seed)
        made[name] = AutoEncoderTopK(tiny.DIM, 40, 4)
        made[name].info = DictionaryInfo(sites=(SITE,), name=name)
        save_dictionary(made[name], root / "run" / name)
    texts = tiny.documents(40)
    store = collect_contexts(model, made, texts, root / "store", n_tokens=600, ctx_len=16, window=(6, 3))
    return root, model, made, store


def test_pages_hold_what_is_computed_of_the_dictionaries(place):
    _, model, made, store = place
    first, second = pages_of(store, made, model, n=4, map_method="pca")
    assert (first.name, first.site, first.dict_size, first.kind) == ("first", SITE, 40, "AutoEncoderTopK")
    assert torch.equal(first.statistics.density, store["first"].statistics.density)
    rows = torch.nn.functional.normalize(made["first"].W_dec.detach(), dim=-1)
    similar = (rows @ rows.T).fill_diagonal_(-2)
    assert torch.equal(first.neighbors.latents, similar.topk(4).indices)
    others = torch.nn.functional.normalize(made["second"].W_dec.detach(), dim=-1)
    assert torch.equal(first.matches["second"].latents[:, 0], (rows @ others.T).argmax(1))
    assert first.effects.promoted.shape == (40, 4) and second.map.shape == (40, 2)
    assert [len(page.explanations) for page in pages_of(store)] == [0, 0] and pages_of(store)[0].effects is None


def test_dictionary_that_was_not_read_is_refused(place):
    _, _, made, store = place
    with pytest.raises(ConfigError, match="dictionary of the store 'third'"):
        pages_of(store, {"third": made["first"]})
    with pytest.raises(ConfigError, match="has 8 latents, and that of the store 40"):
        pages_of(store, {"first": AutoEncoderTopK(tiny.DIM, 8, 4)})


def test_command_writes_pages_of_a_store(place, tmp_path, capsys):
    root = place[0]
    assert main(["dashboard", str(root / "store"), "--save-dir", str(tmp_path / "pages")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "pages" / "index.html")
    manifest = data(tmp_path / "pages" / "data" / "manifest.js")
    assert [one["name"] for one in manifest["dictionaries"]] == ["first", "second"]
    assert "tokens of" in manifest["about"]
    panel = data(tmp_path / "pages" / "data" / "0" / "panels-0.js")["latents"][0]
    assert "neighbors" not in panel and len(panel["quantiles"]) == 5


def test_command_reads_dictionaries_that_are_in_no_store(place, tmp_path):
    root, pages = place[0], tmp_path / "pages"
    words = ["dashboard", str(root / "run"), "--model", str(root / "model"), "--data", str(root / "text.txt")]
    words += ["--save-dir", str(pages), "--n-tokens", "300", "--ctx-len", "16", "--dtype", "float32", "--n-shown", "3"]
    words += ["--map", "pca"]
    assert main([*words, "--device", "cpu", "--title", "Mine"]) == 0
    manifest = data(pages / "data" / "manifest.js")
    assert manifest["title"] == "Mine" and len(manifest["dictionaries"]) == 2
    panel = data(pages / "data" / "1" / "panels-1.js")["latents"][0]
    assert len(panel["neighbors"][0]) == len(panel["promoted"][0]) == 3 and panel["matches"][0][0] == 0
    # the same command again takes the contexts that are there
    index = json.loads((pages / "contexts" / "index.json").read_text())
    assert main([*words, "--device", "cpu"]) == 0
    assert json.loads((pages / "contexts" / "index.json").read_text()) == index
    # contexts and dictionaries are connected by name
    shutil.copytree(pages / "contexts", tmp_path / "store")
    words = ["dashboard", str(tmp_path / "store"), str(root / "run"), "--model", str(root / "model")]
    assert (
        main([*words, "--save-dir", str(tmp_path / "again"), "--dtype", "float32", "--n-shown", "3", "--map", "pca"])
        == 0
    )
    again = data(tmp_path / "again" / "data" / "1" / "panels-1.js")["latents"][0]
    assert again == panel


def test_mistakes_of_the_commands_are_said(place, tmp_path, caplog):
    root = place[0]
    for words, message in (
        (["dashboard", str(root / "store"), "--save-dir", str(root)], "holds other files"),
        (["dashboard", str(root / "text.txt"), "--save-dir", str(tmp_path / "a")], "text.txt"),
        (["dashboard", str(root / "run"), "--save-dir", str(tmp_path / "a")], "Give --model"),
        (
            ["dashboard", str(root / "store"), str(root / "store"), "--save-dir", str(tmp_path / "a")],
            "Two of the stores",
        ),
        (["serve", str(root / "run")], "Give --model"),
        (["serve", str(root / "run"), "--port", "70000"], "port"),
    ):
        caplog.clear()
        assert main(words) == 2
        assert message in caplog.records[-1].getMessage()


def test_a_dictionary_of_one_latent_has_a_page_without_neighbors(tmp_path):
    model = load_model(tiny.model(), tokenizer=tiny.tokenizer())
    one = AutoEncoderTopK(tiny.DIM, 1, 1)
    options = {"sites": {"a": "model.layers.1"}, "n_tokens": 64, "ctx_len": 16, "batch_size": 2}
    store = collect_contexts(model, {"a": one}, tiny.documents(20), tmp_path / "store", **options)
    (page,) = pages_of(store, {"a": one}, map_method="pca")
    assert page.neighbors is None and page.dict_size == 1
    write_dashboard([page], tmp_path / "pages")
