import json
import logging
import shlex
import shutil
from pathlib import Path

import pytest

from dictionary_learning import load_dictionary
from dictionary_learning.cli import STOPPED, build_parser, main
from dictionary_learning.cli._parser import without
from dictionary_learning.cli._train import FILLED_IN
from dictionary_learning.cli._train_options import TrainArguments, sized
from dictionary_learning.config import field_docs
from dictionary_learning.errors import Stopped
from dictionary_learning.trainers import TRAINERS
from tests import tiny

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved model and a text."""
    folder = tmp_path_factory.mktemp("cli")
    tiny.save_model(folder / "model", "gpt2")
    lines = [json.dumps({"text": text}) for text in tiny.documents(60)]
    (folder / "text.jsonl").write_text("\n".join(lines))
    return folder


def arguments(folder) -> list[str]:
    return [
        "train", str(folder / "model"), str(folder / "text.jsonl"), "--save-dir", str(folder / "run"), "--overwrite",
        "--device", "cpu", "--n-tokens", "640", "--batch-size", "32", "--ctx-len", "16", "--n-ctxs", "16",
        "--refresh-batch-size", "4", "--n-eval-tokens", "64", "--n-fidelity-tokens", "32", "--held-out-every", "10",
        "--expansion-factor", "4",
    ]  # fmt: skip


def train(folder, *options: str) -> int:
    instead = {word: word != "--overwrite" for word in options if word.startswith("--")}
    return main([*without(arguments(folder), instead), *options])


def test_train_then_evaluate_then_info(folder, capsys, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.chdir(folder)  # evaluate reads what files name only here
    sites = ["transformer.h.1", "h.1.mlp"]
    assert train(folder, "--sites", *sites, "--k", "2", "4", "--lr", "1e-3", "--dtype", "float32") == 0
    run = folder / "run"
    for name in ("report.json", "report.md", "report.html", "metrics.jsonl"):
        assert (run / name).is_file()
    trained = [load_dictionary(run / f"trainer_{n}") for n in range(4)]
    assert [(d.k, d.info.config["site"]) for d in trained] == [
        (k, site) for k in (2, 4) for site in ("transformer.h.1:out", "transformer.h.1.mlp:out")
    ]
    report = json.loads((run / "report.json").read_text())
    assert len(report["dictionaries"]) == 4
    assert report["dictionaries"][0]["history"]
    assert report["data"]["source"] == "every 10th document of text.jsonl"

    assert (
        main(
            [
                "evaluate",
                str(run),
                "--save-dir",
                str(folder / "again"),
                "--n-tokens",
                "64",
                "--n-fidelity-tokens",
                "32",
                "--dtype",
                "float32",
            ]
        )
        == 0
    )
    again = json.loads((folder / "again" / "report.json").read_text())
    for before, after in zip(report["dictionaries"], again["dictionaries"], strict=True):
        assert after["metrics"] == pytest.approx(before["metrics"], rel=1e-6)
    assert again["data"] == report["data"]

    (advice,) = [one.getMessage() for one in caplog.records if "Pages of their latents" in one.getMessage()]
    words = shlex.split(advice.partition("dictionary-learning ")[2])
    asked = build_parser(words[0], words[1:]).read(words[1:])
    assert (asked.places, asked.save_dir) == ([str(run)], str(run / "latents"))
    capsys.readouterr()
    assert main(["info", str(run / "trainer_0")]) == 0
    assert '"AutoEncoderTopK"' in capsys.readouterr().out


def test_each_run_has_a_folder_of_its_own_unless_told_otherwise(folder, capsys, monkeypatch, tmp_path, caplog):
    monkeypatch.chdir(tmp_path)
    options = ["--layers", "1", "--k", "2", "--save-dir"]
    caplog.set_level("INFO")
    for k in ("2", "3"):
        assert main(["train", *arguments(folder)[1:3], *arguments(folder)[6:], "--layers", "1", "--k", k]) == 0
    runs = sorted(path for path in (tmp_path / "runs").iterdir() if not path.is_symlink())
    assert len(runs) == 2 and all(path.name.endswith(("-model-top_k", "-model-top_k-2")) for path in runs)
    assert [(tmp_path / line).parent for line in capsys.readouterr().out.splitlines()] == runs
    assert (tmp_path / "runs" / "latest").resolve() == runs[1].resolve()
    before = (runs[0] / "report.json").read_text()
    caplog.clear()
    assert main(["train", *arguments(folder)[1:3], *arguments(folder)[6:], *options, str(runs[0])]) == 2
    assert "holds another run" in caplog.text
    assert (runs[0] / "report.json").read_text() == before


@pytest.mark.parametrize(
    ("options", "predicts"),
    [(["--trainer", "temporal", "--k", "2"], False), (["--trainer", "end_to_end", "--k", "2"], True)],
)
def test_methods_that_need_contexts_get_them(folder, options, predicts):
    run = folder / options[1]
    assert train(folder, "--sites", "transformer.h.1", *options, "--save-dir", str(run)) == 0
    report = json.loads((run / "report.json").read_text())
    assert report["dictionaries"][0]["metrics"]["fvu"] > 0
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert all(("kl" in figures) == predicts for figures in last["dictionaries"].values())
    assert train(folder, "--sites", "transformer.h.1", *options, "--batch-size", "8") == 2


def test_info_says_what_will_be_used(capsys):
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    for word in ("encode and decode", "device", "torch", "top_k"):
        assert word in shown


def test_help_shows_every_option_with_its_default(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--help-all"])
    assert stopped.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    trainer = TRAINERS["top_k"].Config
    options = [n for n in (*field_docs(TrainArguments), *field_docs(trainer)) if n not in (*FILLED_IN, "model", "data")]
    for name in options:
        assert f"--{name.replace('_', '-')}" in shown
    assert "Factor of the learning rate for W_enc. (default: 0.5)" in shown
    assert "Tokens in a training step: tokens, not sequences. (default: 2048)" in shown


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--sites", "transformer.h.9"], "3 entries, 0 to 2"),
        (["--text-column", "body"], "it has: text"),
        (["--k", "1000", "--batch-size", "1024", "--n-ctxs", "64"], "cannot keep --k 1000"),
        (["--end-of-data", "stop", "--batch-size", "1000000"], "larger than the whole buffer"),
    ],
)
def test_mistake_ends_with_a_message_and_status_2(folder, caplog, options, said):
    assert train(folder, *options) == 2
    assert said in caplog.text


def test_missing_model_and_text_are_named(folder, caplog):
    assert main(["train", str(folder / "modle"), str(folder / "text.jsonl")]) == 2
    assert "Did you mean 'model'" in caplog.text
    assert main(["train", str(folder / "model"), str(folder / "txt.jsonl")]) == 2
    assert "Did you mean 'text.jsonl'" in caplog.text


def test_wrong_word_is_refused_by_the_parser(folder, caplog):
    assert train(folder, "--k", "many") == 2
    assert "'many' is not int" in caplog.text


def test_evaluating_nothing_is_refused(tmp_path, caplog):
    assert main(["evaluate", str(tmp_path)]) == 2
    assert "There is no dictionary in" in caplog.text


def cache(folder, *options: str) -> int:
    return main(
        [
            "cache", str(folder / "model"), str(folder / "text.jsonl"), "--out", str(folder / "cache"), "--device", "cpu", "--layers", "0", "1",
            "--ctx-len", "16", "--refresh-batch-size", "4", "--held-out-every", "10", "--shard-size", "100", *options,
        ]
    )  # fmt: skip


def test_cache_then_info_then_train_then_evaluate(folder, caplog, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    assert cache(folder, "--n-tokens", "500", "--dtype", "float32", "--storage-dtype", "bfloat16") == 0
    assert main(["info", str(folder / "cache"), "--verify"]) == 0
    (shown,) = json.loads(capsys.readouterr().out).values()
    assert shown["rows"] == 500 and shown["complete"] and "All checksums are right" in caplog.text
    options = ["--n-tokens", "400", "--batch-size", "32", "--device", "cpu", "--expansion-factor", "4", "--k", "3"]
    run = str(folder / "from-cache")
    assert main(["train", "--cache", str(folder / "cache"), "--save-dir", run, *options]) == 0
    trained = load_dictionary(folder / "from-cache" / "trainer_1")
    config = trained.info.config
    assert config["site"] == "transformer.h.1:out" and config["buffer"]["cache"] == str(folder / "cache")
    assert main(["train", "--cache", str(folder / "cache"), "--layers", "0", "--save-dir", run, *options]) == 2
    assert "knows sites but no layers" in caplog.text
    asked = ["--n-tokens", "64", "--n-fidelity-tokens", "32", "--dtype", "float32"]
    assert main(["evaluate", run, *asked]) == 0
    report = json.loads((folder / "from-cache" / "report.json").read_text())
    assert report["data"]["source"] == "every 10th document of text.jsonl"
    assert trained.dict_size == 4 * tiny.DIM


def test_a_cache_of_other_settings_is_refused(folder, caplog):
    assert cache(folder, "--n-tokens", "500", "--dtype", "float32", "--storage-dtype", "bfloat16") == 0
    assert cache(folder, "--n-tokens", "600", "--dtype", "float32", "--storage-dtype", "bfloat16") == 2
    assert "--n-tokens: 500 there, 600 here" in caplog.text


def test_train_wants_data_or_a_cache(folder, caplog):
    assert main(["train", str(folder / "model")]) == 2
    assert "train --cache FOLDER" in caplog.text


def test_dictionaries_of_other_packages_are_evaluated(folder, caplog, capsys, tmp_path):
    for name in ("h.0", "h.2.mlp"):
        shutil.copytree(FIXTURES / "sparsify" / "topk", tmp_path / "run" / name)
    options = [
        "--model",
        str(folder / "model"),
        "--data",
        str(folder / "text.jsonl"),
        "--n-tokens",
        "64",
        "--dtype",
        "float32",
    ]
    assert main(["evaluate", str(tmp_path / "run"), "--save-dir", str(tmp_path / "report"), *options]) == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [d["site"] for d in report["dictionaries"]] == ["transformer.h.0:out", "transformer.h.2.mlp:out"]
    saelens = str(FIXTURES / "saelens" / "standard")
    assert main(["evaluate", saelens, "--save-dir", str(tmp_path / "other"), *options]) == 2
    assert "Give --sites" in caplog.text
    assert main(["evaluate", saelens, "--sites", "h.1:in", "--save-dir", str(tmp_path / "other"), *options]) == 0
    assert main(["evaluate", saelens, "--sites", "h.1", "h.2", "h.0", *options]) == 2
    capsys.readouterr()
    assert main(["info", saelens]) == 0
    assert '"format": "sae_lens"' in capsys.readouterr().out


@pytest.mark.parametrize("wrapped", [False, True])
def test_an_interrupt_that_another_package_took_for_its_own_failure_is_one(monkeypatch, caplog, wrapped):
    def run(self) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            if not wrapped:
                raise
            raise ModuleNotFoundError("Could not import module 'LlamaConfig'.") from error

    monkeypatch.setattr("dictionary_learning.cli._evaluate.EvaluateArguments.run", run)
    assert main(["evaluate", "a"]) == 130 and "Interrupted" in caplog.text


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("_contexts.ContextsArguments", ["contexts", "m", "--save-dir", "s"]),
        ("_commands.CacheArguments", ["cache", "m", "d", "--out", "s"]),
        ("_commands.PretokenizeArguments", ["pretokenize", "d", "--model", "m", "--out", "s"]),
        ("_explain.ExplainArguments", ["explain", "s", "--latents", "1"]),
    ],
)
@pytest.mark.parametrize("error", [Stopped("Stopped by SIGTERM after 64 tokens."), KeyboardInterrupt()], ids=repr)
def test_what_the_same_command_goes_on_with_exits_with_75(place, words, error, monkeypatch, caplog):
    def run(self) -> None:
        raise error

    monkeypatch.setattr(f"dictionary_learning.cli.{place}.run", run)
    assert main(words) == STOPPED and "The same command goes on" in caplog.text


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"n_tokens": 10_000_000}, (32_768, 8_192)),
        ({"n_tokens": 100_000}, (10_000, 2_500)),
        ({"n_tokens": 20_000}, (4_096, 2_048)),
        ({"n_tokens": 20_000, "n_eval_tokens": 32_768}, (32_768, 8_192)),
        ({"n_tokens": 20_000, "n_fidelity_tokens": 0}, (4_096, 0)),
    ],
)
def test_the_evaluation_is_as_long_as_the_run_makes_worthwhile(given, expected):
    found = sized(TrainArguments(model="m", data="d", **given))
    assert (found.n_eval_tokens, found.n_fidelity_tokens) == expected


def test_the_size_of_the_evaluation_is_said_and_stored(folder, caplog):
    caplog.set_level(logging.INFO)
    line = without(arguments(folder), {"--n-eval-tokens": True, "--n-fidelity-tokens": True})
    assert main([*line, "--sites", "transformer.h.1", "--k", "2", "--n-resamples", "0"]) == 0
    assert "Evaluating on 4,096 tokens (--n-eval-tokens says another number) of " in caplog.text
    run = load_dictionary(folder / "run" / "trainer_0").info.config["run"]
    assert (run["n_eval_tokens"], run["n_fidelity_tokens"]) == (4_096, 2_048)


def test_an_interrupt_of_the_evaluation_says_that_all_is_saved_and_what_goes_on(folder, caplog, monkeypatch):
    from dictionary_learning import evaluation

    def interrupted(*_: object, **__: object):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "evaluate_dictionaries", interrupted)
    assert train(folder, "--sites", "transformer.h.1", "--k", "2") == STOPPED
    told = ["--model", str(folder / "model"), "--data", str(folder / "text.jsonl")]  # not in the current folder
    assert shlex.join(["dictionary-learning", "evaluate", str(folder / "run"), *told]) in caplog.messages[-1]
    assert load_dictionary(folder / "run" / "trainer_0").k == 2
    caplog.clear()
    assert main(["evaluate", str(folder / "run"), "--device", "cpu", "--model", str(folder / "model"),
                 "--data", str(folder / "text.jsonl")]) == 130  # fmt: skip
    assert caplog.messages[-1] == "Interrupted." and "Traceback" not in caplog.text
