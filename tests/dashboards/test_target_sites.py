"""What a dictionary writes, where its files do not say it: typed, in the shell, and where it has no use."""

import pytest
import torch

from dictionary_learning import DictionaryInfo, Transcoder, load_model, save_dictionary
from dictionary_learning.cli import main
from dictionary_learning.dashboards import pages_of
from dictionary_learning.errors import ConfigError, SiteError
from dictionary_learning.interpretation import collect_contexts
from tests import tiny
from tests.dashboards.test_writing import data

READ, HEADS, MLP = "model.layers.1.mlp:in", "model.layers.1.self_attn.o_proj:in", "model.layers.1.mlp"
"""It reads the input of an MLP, and writes what the heads of a layer have before their projection."""
OPTIONS = {"n_tokens": 300, "ctx_len": 16}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A saved model, a text, and two transcoders that do not say what they write."""
    root = tmp_path_factory.mktemp("target_sites")
    module = tiny.model()
    module.save_pretrained(root / "model")
    tiny.tokenizer().save_pretrained(root / "model")
    (root / "text.txt").write_text("\n".join(tiny.documents(40)))
    made = {}
    for seed, name in enumerate(("first", "second")):
        torch.manual_seed(seed)
        made[name] = Transcoder(tiny.DIM, 40, {"name": "top_k", "k": 4})
        made[name].info = DictionaryInfo(sites=(READ,), name=name)
        save_dictionary(made[name], root / "run" / name)
    return root, load_model(module, tokenizer=tiny.tokenizer()), made


def effects(model, dictionary, target: str) -> torch.Tensor:
    """Returns what each latent adds to the logits (dict_size, vocab), by hand."""
    module = model._original
    rows = dictionary.W_dec.detach()
    if target == HEADS:
        rows = rows @ module.model.layers[1].self_attn.o_proj.weight.T
    return rows @ (module.lm_head.weight * module.model.norm.weight).T


def promoted(pages, number: int) -> list[list[str]]:
    """Returns the tokens that each latent promotes, as the pages of the shell show them."""
    found = []
    for part in range(2):
        file = data(pages / "data" / str(number) / f"panels-{part}.js")
        found += [[file["tokens"][place] for place in one["promoted"][0]] for one in file["latents"]]
    return found


def expected(model, dictionary, target: str) -> list[list[str]]:
    ids = effects(model, dictionary, target).topk(3).indices
    words = ["<s>", "</s>", "<pad>", *tiny.WORDS]
    return [[words[i] for i in row] for row in ids.tolist()]


def command(root, pages, *more: str) -> list[str]:
    words = ["dashboard", str(root / "run"), "--model", str(root / "model"), "--data", str(root / "text.txt")]
    small = ["--n-tokens", "300", "--ctx-len", "16", "--dtype", "float32", "--n-shown", "3", "--map", "pca"]
    return [*words, "--save-dir", str(pages), *small, "--device", "cpu", *more]


def test_typed_targets_are_those_of_the_logits(place, tmp_path):
    _, model, made = place
    store = collect_contexts(model, made, tiny.documents(40), tmp_path / "store", **OPTIONS)
    for targets in ({"first": HEADS, "second": MLP}, {"first": MLP, "second": HEADS}):
        for page in pages_of(store, made, model, target_sites=targets, n=3, map_method="pca"):
            best = effects(model, made[page.name], targets[page.name]).topk(3)
            assert torch.equal(page.effects.promoted, best.indices)
            torch.testing.assert_close(page.effects.promoted_logits, best.values, rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match="dictionary with a target site 'third'"):
        pages_of(store, made, model, target_sites={"third": MLP})
    with pytest.raises(SiteError, match="nosuch"):
        pages_of(store, made, model, target_sites={"first": "model.nosuch"})


@pytest.mark.parametrize("targets", [(HEADS, MLP), (HEADS,), (MLP,)])
def test_targets_of_the_shell_are_one_for_each_or_one_for_all(place, tmp_path, targets):
    root, model, made = place
    assert main(command(root, tmp_path / "pages", "--target-sites", *targets)) == 0
    for number, name in enumerate(made):
        assert promoted(tmp_path / "pages", number) == expected(model, made[name], targets[number % len(targets)])


def test_target_of_the_files_counts_unless_another_is_given(place, tmp_path):
    root, model, made = place
    for name, dictionary in made.items():
        dictionary.info = DictionaryInfo(sites=(READ,), target_sites=(HEADS,), name=name)
        save_dictionary(dictionary, tmp_path / "run" / name)
    words = command(root, tmp_path / "own")
    words[1] = str(tmp_path / "run")
    assert main(words) == 0
    assert promoted(tmp_path / "own", 0) == expected(model, made["first"], HEADS)
    words[words.index("--save-dir") + 1] = str(tmp_path / "given")
    assert main([*words, "--target-sites", MLP]) == 0
    assert promoted(tmp_path / "given", 1) == expected(model, made["second"], MLP)


def test_targets_that_cannot_be_are_said(place, tmp_path, caplog):
    root, model, made = place
    collect_contexts(model, made, tiny.documents(40), tmp_path / "store", **OPTIONS)
    store = ["dashboard", str(tmp_path / "store"), "--save-dir", str(tmp_path / "a")]
    for words, message in (
        (command(root, tmp_path / "a", "--target-sites", MLP, MLP, MLP), "3 of --target-sites for 2 dictionaries"),
        (command(root, tmp_path / "a", "--target-sites", "model.layers.9.mlp"), "model.layers.9.mlp"),
        (
            command(root, tmp_path / "a", "--target-sites", "model.layers.1.mlp.gate_proj"),
            "'model.layers.1.mlp.gate_proj:out' is 32 wide",
        ),
        ([*store, "--target-sites", MLP], "--target-sites"),
        ([*store, "--sites", MLP], "--sites"),
        ([*store, "--model", str(root / "model")], "--model"),
        ([*store, "--data", str(root / "text.txt")], "--data"),
    ):
        caplog.clear()
        assert main(words) == 2, words
        assert message in caplog.records[-1].getMessage()
