"""`contexts` finds the latents of saved dictionaries, of a run or of folders, and continues."""

import pytest

from dictionary_learning.cli import main
from dictionary_learning.interpretation import ContextStore
from tests import tiny

SITE = "model.layers.1"
SMALL = ["--n-tokens", "300", "--batch-size", "4", "--window", "3", "2", "--n-top", "3", "--n-quiet", "2"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run of two dictionaries, its model and its text."""
    root = tmp_path_factory.mktemp("contexts")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        tiny.save_model("model")
        (root / "text.txt").write_text("\n".join(tiny.documents(40)))
        train = ["train", "model", "text.txt", "--sites", SITE, "--ctx-len", "16", "--refresh-batch-size", "2"]
        train += ["--n-ctxs", "4", "--batch-size", "32", "--n-tokens", "64", "--k", "4", "6", "--dict-size", "32"]
        train += ["--held-out-every", "3", "--n-eval-tokens", "32", "--n-fidelity-tokens", "0", "--dtype", "float32"]
        assert main([*train, "--device", "cpu", "--save-dir", "run"]) == 0
    return root


def test_run_has_model_dictionaries_and_held_out_text(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    words = ["contexts", "run", "--save-dir", "store", *SMALL, "--device", "cpu"]
    assert main(words) == 0
    assert capsys.readouterr().out.strip() == "store"
    store = ContextStore.open("store")
    assert len(store) == 2 and store.data["ctx_len"] == 16
    texts = (place / "text.txt").read_text().splitlines()
    first = store.token_text(store.contexts[0, 0])[1:]  # begins with BOS
    began = " ".join(first[: first.index("<s>")] if "<s>" in first else first)
    # every third document was held out
    assert [n % 3 for n, text in enumerate(texts) if text.startswith(began)] == [0]
    assert all(latents.top for name in store for latents in store[name] if latents.quantiles[0])
    assert main(words) == 0  # it is there already
    assert main([*words, "--n-top", "4"][:-2] + ["--seed", "1"]) == 2


def test_folders_of_the_same_name_and_another_site(place, monkeypatch):
    monkeypatch.chdir(place)
    one = ["contexts", "model", "--dictionaries", "run/trainer_0", "run/trainer_1", "--data", "text.txt"]
    assert main([*one, "--sites", "model.layers.0", "--save-dir", "other", *SMALL, "--device", "cpu"]) == 0
    store = ContextStore.open("other")
    assert {store[name].site for name in store} == {"model.layers.0:out"}


def test_what_is_missing_is_named(place, monkeypatch, caplog):
    monkeypatch.chdir(place)
    for words, said in (
        (["model", "--save-dir", "a"], "holds no dictionary"),
        (["model", "--dictionaries", "run", "--save-dir", "a", "--window", "3"], "tokens before and after"),
        (["run", "--save-dir", "a", "--data", "nothing.txt"], "nothing.txt"),
    ):
        caplog.clear()
        assert main(["contexts", *words, "--device", "cpu"]) == 2
        assert said in caplog.records[-1].getMessage()
