"""`dictionary-learning explain`: what it asks is what it says beforehand."""

import json
import shutil

import pytest

from dictionary_learning import AutoEncoderTopK, load_model
from dictionary_learning.cli import main
from dictionary_learning.cli._explain import read_latents
from dictionary_learning.errors import ConfigError
from dictionary_learning.interpretation import ContextStore, collect_contexts
from dictionary_learning.interpretation.explanations import load_explanations
from tests import tiny
from tests.interpretation.planted import Counting, right
from tests.stub_server import Reply, serving

MODEL_OUTPUT = "model.layers.1"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Contexts of two dictionaries."""
    folder = tmp_path_factory.mktemp("store") / "store"
    model = load_model(tiny.model(), tokenizer=tiny.tokenizer())
    made = {name: AutoEncoderTopK(tiny.DIM, 24, 4) for name in ("one", "two")}
    sites = dict.fromkeys(made, MODEL_OUTPUT)
    options = {"n_tokens": 800, "ctx_len": 16, "window": (4, 2), "n_quiet": 20, "per_quantile": 8}
    collect_contexts(model, made, tiny.documents(60), folder, sites=sites, **options)
    return folder


def test_baseline_explains_and_writes_beside_the_dictionary(store, capsys, caplog):
    arguments = ["explain", str(store), "--dictionary", "two", "--latents", "0-5", "9"]
    assert main([*arguments, "--scores", "detection", "fuzzing", "simulation", "embedding"]) == 0
    path = capsys.readouterr().out.strip()
    assert path == str(store / "1" / "explanations.json")
    found = load_explanations(path)
    assert set(found) <= {0, 1, 2, 3, 4, 5, 9} and len(found) > 4
    for (one,) in found.values():
        assert one.explainer == "baseline" and all(0 <= score <= 1 for score in one.scores.values())
    ContextStore.open(store)["two"].contexts(0)  # the store is still one


def test_dry_run_asks_nothing_and_counts_right(store, capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def answer(request, n):
        user = request.body["messages"][1]["content"]
        said = "EXPLANATION: words" if user.startswith("ACTIVE") else str([1] * user.count("\n"))
        return Reply({"choices": [{"message": {"content": said}}]})

    with serving(answer) as stub:
        arguments = [
            "explain",
            str(store),
            "--dictionary",
            "one",
            "--latents",
            "all",
            "--judge",
            f"openai:m@{stub.url}",
        ]
        assert main([*arguments, "--dry-run", "--prompt-price", "1", "--answer-price", "2"]) == 0
        said = capsys.readouterr().out
        assert not stub.requests and not (store / "0" / "answers.jsonl").exists() and "in money" in said
        assert main(arguments) == 0
        n = int(said.split(" requests")[0].split(", ")[-1])
        assert len(stub.requests) == n > 24
        assert main(arguments) == 0 and len(stub.requests) == n
    lines = (store / "0" / "answers.jsonl").read_text().splitlines()
    assert len(lines) == n and {json.loads(line)["kind"] for line in lines} == {"explain", "detection", "fuzzing"}


def test_without_scores_only_words_are_asked_for(store, monkeypatch):
    judge = Counting(right)
    monkeypatch.setattr("dictionary_learning.interpretation.explanations._names.Baseline", lambda: judge)
    assert main(["explain", str(store), "--dictionary", "one", "--latents", "1", "--scores", "none"]) == 0
    assert {p.kind for p in judge.asked} == {"explain"}


def test_info_says_what_a_store_holds_and_whether_it_is_whole(store, capsys, caplog, tmp_path):
    assert main(["info", str(store), "--verify"]) == 0
    (said,) = json.loads(capsys.readouterr().out).values()
    assert said["dictionaries"]["one"] == {"class": "AutoEncoderTopK", "dict_size": 24, "site": "model.layers.1:out"}
    assert "All checksums are right" in caplog.text
    shutil.copytree(store, tmp_path / "copy")
    path = tmp_path / "copy" / "1" / "statistics.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert main(["info", str(tmp_path / "copy"), "--verify"]) == 2
    assert "statistics.safetensors" in caplog.text


def test_dictionary_must_be_named_where_there_are_several(store, caplog):
    assert main(["explain", str(store), "--latents", "1"]) == 2
    assert "one, two" in caplog.text


@pytest.mark.parametrize(
    ("words", "latents"),
    [(("3",), [3]), (("2-4", "3", "0"), [2, 3, 4, 0]), (("all",), list(range(6)))],
)
def test_latents_are_numbers_and_ranges(words, latents):
    assert read_latents(words, 6) == latents


@pytest.mark.parametrize("word", ["6", "4-2", "0-6", "-1", "x", "1-", "٣", "all-3"])
def test_other_latents_are_refused(word):
    with pytest.raises(ConfigError, match="--latents"):
        read_latents((word,), 6)
