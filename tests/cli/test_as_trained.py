"""Commands that read a run read it as it was trained, but for what they are told, be it the default."""

import json

import pytest

from dictionary_learning import EvaluationConfig, evaluate_dictionaries, load_dictionary, load_model
from dictionary_learning.cli import main
from dictionary_learning.data import TokenStream, as_source
from dictionary_learning.evaluation import Candidate
from dictionary_learning.interpretation import ContextStore
from tests import tiny
from tests.cli.test_cli import train

SITE = "transformer.h.1"
SMALL = ["--n-tokens", "64", "--n-fidelity-tokens", "32", "--n-resamples", "0", "--n-geometry-latents", "0"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run in float64 on padded documents, of a text with a record that has none."""
    place = tmp_path_factory.mktemp("as_trained")
    tiny.model("gpt2").save_pretrained(place / "model")
    tiny.tokenizer().save_pretrained(place / "model")
    records = [{"text": text} for text in tiny.documents(60)]
    records.insert(3, {"title": "no text"})
    (place / "text.jsonl").write_text("\n".join(map(json.dumps, records)))
    options = ["--sites", SITE, "--k", "2", "--dtype", "float64", "--pack", "false", "--on-bad-document", "skip"]
    assert train(place, *options, "--n-resamples", "0", "--n-geometry-latents", "0") == 0
    return place / "run"


@pytest.fixture
def evaluate(run, monkeypatch, tmp_path):
    monkeypatch.chdir(run.parent)  # what files name is read only here

    def evaluate(*options: str) -> dict:
        assert main(["evaluate", str(run), *SMALL, "--device", "cpu", "--save-dir", str(tmp_path), *options]) == 0
        return json.loads((tmp_path / "report.json").read_text())

    return evaluate


def figures(report: dict) -> dict[str, float]:
    return {name: value for name, value in report["dictionaries"][0]["metrics"].items() if value is not None}


def test_the_model_has_the_dtype_of_the_training(run, evaluate, caplog):
    caplog.set_level("INFO")
    report = evaluate()
    assert report["model"]["dtype"] == "float64" and "loaded in float64, as in training" in caplog.text
    assert figures(report) == pytest.approx(figures(json.loads((run / "report.json").read_text())), rel=1e-9)
    caplog.clear()
    assert evaluate("--dtype", "float32")["model"]["dtype"] == "float32" and "as in training" not in caplog.text


def test_contexts_are_of_the_model_of_the_training(run, monkeypatch, tmp_path):
    monkeypatch.chdir(run.parent)
    line = ["contexts", str(run), "--save-dir", str(tmp_path / "a"), "--n-tokens", "64", "--device", "cpu"]
    assert main(line) == 0 and ContextStore.open(tmp_path / "a").model["dtype"] == "float64"


def test_dictionaries_of_other_dtypes_are_not_of_one_model(run, monkeypatch, tmp_path, caplog):
    monkeypatch.chdir(run.parent)
    other = tmp_path / "other" / "trainer_0"
    other.mkdir(parents=True)
    for path in (run / "trainer_0").iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    config = json.loads((other / "config.json").read_text())
    config["buffer"]["model"]["dtype"] = "float32"
    (other / "config.json").write_text(json.dumps(config))
    line = ["evaluate", str(run), str(other), *SMALL, "--device", "cpu", "--save-dir", str(tmp_path / "report")]
    assert main(line) == 2 and "different dtypes of the model (float64 and float32)" in caplog.text
    assert "--dtype" in caplog.text
    assert main([*line, "--dtype", "float64"]) == 0


def test_a_default_that_is_said_counts(run, evaluate):
    """`--pack true` and no `--pack` are the same to a new run, and another to this one."""
    as_trained, packed = evaluate(), evaluate("--pack", "true")
    model = load_model(str(run.parent / "model"), device="cpu", dtype="float64")
    text = as_source(run.parent / "text.jsonl", on_bad_document="skip").hold_out(10)[1]
    dictionary = load_dictionary(run / "trainer_0")
    for report, pack in ((as_trained, False), (packed, True)):
        stream = TokenStream(text.fresh(), model.tokenizer, ctx_len=16, pack=pack, n_embeddings=tiny.VOCAB)
        config = EvaluationConfig(n_tokens=64, n_fidelity_tokens=32, ctx_len=16, pack=pack, n_resamples=0, n_geometry_latents=0)  # fmt: skip
        limits = dictionary.info.config["buffer"]["filter"]["norm_limits"]
        (expected,) = evaluate_dictionaries(model, [Candidate("a", dictionary, SITE)], stream, config, norm_limits=limits).dictionaries  # fmt: skip
        assert report["dictionaries"][0]["metrics"]["fvu"] == pytest.approx(expected.metrics["fvu"], rel=1e-6)
    assert figures(packed)["fvu"] != pytest.approx(figures(as_trained)["fvu"], rel=1e-6)


def test_a_default_of_the_text_that_is_said_counts(run, evaluate, monkeypatch, caplog, tmp_path):
    line = ["evaluate", str(run), *SMALL, "--device", "cpu", "--save-dir"]
    assert main([*line, str(tmp_path / "a"), "--on-bad-document", "error"]) == 2 and "text.jsonl" in caplog.text
    caplog.clear()
    assert (
        main([*line, str(tmp_path / "b"), "--on-bad-document", "skip", "--text-column", "text"]) == 0
    )  # both as in training
    assert "not read as in training" not in caplog.text
    # what is not said stays: a part of the text, with records that are skipped
    assert main([*line, str(tmp_path / "c"), "--max-examples", "50"]) == 0
    assert "not read as in training" in caplog.text
