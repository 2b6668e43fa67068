"""Commands that are printed can be run as they stand, and give what the undisturbed run would have given."""

import dataclasses
import json
import logging
import shlex
import signal
import typing
from pathlib import Path

import pytest
import yaml

import dictionary_learning.evaluation as evaluation
from dictionary_learning._run_folder import COMMAND
from dictionary_learning._shell_words import option, place, shown_command
from dictionary_learning._what_is import what_is
from dictionary_learning.cli import STOPPED, build_parser, main
from dictionary_learning.cli._arguments import read_config
from dictionary_learning.cli._evaluate import EvaluateArguments
from dictionary_learning.cli._model_options import ModelArguments
from dictionary_learning.cli._parser import option_of, without
from dictionary_learning.cli._stopping import evaluating, options_of_evaluations, showing
from dictionary_learning.cli._train_options import TrainArguments, sized
from dictionary_learning.config import field_types
from tests.cli.test_cli import arguments, folder  # noqa: F401  (a fixture)

OF_MODELS = [field.name for field in dataclasses.fields(ModelArguments)]
TOGETHER = {"n_eval_tokens", "n_fidelity_tokens", "eval_batch_size", "eval_seed", "convention", "n_resamples"} | {
    "ablations", "together", "all_tokens", "breakdown", "n_geometry_latents",
}  # fmt: skip


def other_value(name):
    """Returns a value of an option that is not its default."""
    hint = field_types(TrainArguments)[name]
    default = next(field.default for field in dataclasses.fields(TrainArguments) if field.name == name)
    if typing.get_origin(hint) is tuple:
        choices = typing.get_args(typing.get_args(hint)[0])
        return (choices[0],) if choices else ("trust=1", "b=x y")
    choices = [one for one in typing.get_args(hint) if one not in (type(None), int, str)]
    if isinstance(default, bool):
        return not default
    if choices:
        return choices[-1]
    if name == "device":
        return "cpu"
    return 7 if int in (hint, *typing.get_args(hint)) else "named"


def read(words):
    """Returns the options that a printed command gives to `evaluate`."""
    assert words[0] == "evaluate"
    return read_config(build_parser("evaluate", words[1:]).read(words[1:]), EvaluateArguments)


def test_options_of_evaluations_are_all_of_them():
    assert set(options_of_evaluations()) == TOGETHER


@pytest.mark.parametrize("name", sorted({*TOGETHER, *OF_MODELS}))
def test_what_evaluates_a_run_has_its_options(name):
    value = other_value(name)
    told = sized(TrainArguments(model="gpt2", data="owner/text", **{name: value}))
    found = read(evaluating("run", told))
    assert getattr(found, EvaluateArguments.aliases.get(name, name)) == value
    for other, own in EvaluateArguments.aliases.items():
        assert getattr(found, own) == getattr(told, other)
    if name in OF_MODELS:
        words = showing(Path("run"), told)
        assert words[0] == "dashboard" and option_of(name) in words


def test_what_is_evaluated_is_said_again_where_files_may_not_choose_it(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here" / "linked").symlink_to(tmp_path / "model")

    def said(**options):
        words = evaluating("run", TrainArguments(**options))
        assert words[:2] == ["evaluate", "run"] and words[-2:] == ["--save-dir", "run"]
        return words[2:-2]

    for name in (str(tmp_path / "model"), "../model", "linked"):
        assert said(model=name, data="owner/text") == ["--model", name]
    assert said(model="gpt2", data="/far.txt") == ["--data", "/far.txt"]
    assert said(model="gpt2", data="owner/text") == [] == said(data="/a/cache")
    args = ("data_files=/far.json", "revision=main")
    assert said(model="gpt2", data="owner/text", data_args=args) == ["--data-args", *args]
    assert said(model="gpt2", data="owner/text", mix=("/far.txt text_column=a",)) == ["--mix", "/far.txt text_column=a"]
    token = COMMAND.set(("--import", "mine", "train", "gpt2", "owner/text"))
    try:
        assert evaluating("run", TrainArguments(model="gpt2"))[:4] == ["--import", "mine", "evaluate", "run"]
    finally:
        COMMAND.reset(token)


def test_words_that_begin_with_a_dash_are_no_options():
    assert (place("-run"), place("run"), place("/a/-run")) == ("./-run", "run", "/a/-run")
    assert option("--model", "-m") == ["--model=-m"] and option("--ablations", "zero", "mean") == [
        "--ablations", "zero", "mean",
    ]  # fmt: skip
    assert shown_command(["info", "a b"]) == "dictionary-learning info 'a b'"


def test_what_an_unfinished_folder_goes_on_with_can_be_run_in_a_folder_with_a_dash(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, words in (("-run", ["train", "m", "d"]), ("-grid", ["sweep", "grid.yaml"])):
        place = tmp_path / name
        place.mkdir()
        run = place if words[0] == "train" else place / "group_0"
        run.mkdir(exist_ok=True)
        (run / "run.json").write_text(json.dumps({"command": words, "run": {"steps": 9}}))
        if words[0] == "sweep":
            (place / "sweep.json").write_text(json.dumps({"groups": [["a"]]}))
        assert f"dictionary-learning {' '.join(words)} --save-dir ./{name} --resume" in what_is(name)


def signaled(*_, **__):
    signal.raise_signal(signal.SIGTERM)
    raise AssertionError("the signal was not noticed")


def commands_in(text):
    """Returns the words of all commands in messages, without the program."""
    found = (line.partition("dictionary-learning ")[2] for line in text.splitlines())
    return [shlex.split(command) for command in found if command]


FIGURES = ("dictionaries", "together", "ablation", "ce_clean", "data", "convention", "model")


def test_commands_of_a_run_in_a_folder_with_a_dash_give_what_it_would_have_given(
    folder, tmp_path, monkeypatch, caplog, capsys  # noqa: F811
):  # fmt: skip
    caplog.set_level(logging.INFO)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")  # model and text are elsewhere
    words = [*without(arguments(folder), {"--save-dir": True, "--overwrite": False}), "--layers", "1", "--k", "2"]
    words += ["--ablations", "zero", "--n-resamples", "20", "--convention", "saelens", "--breakdown", "false"]
    words += ["--eval-seed", "3", "--eval-batch-size", "4", "--all-tokens", "false", "--n-geometry-latents", "5"]
    assert main([*words, "--save-dir", "whole"]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "evaluate_dictionaries", signaled)
        assert main([*words, "--save-dir=-run"]) == STOPPED
    (going_on,) = commands_in(caplog.records[-1].getMessage())
    assert main(going_on) == 0
    whole, own = (json.loads((tmp_path / "here" / one / "report.json").read_text()) for one in ("whole", "-run"))
    for report in (whole, own):
        for entry in report["dictionaries"]:
            entry["history"] = [{**line, "seconds": 0} for line in entry["history"]]
            entry.pop("config")
    assert {name: own.get(name) for name in FIGURES} == {name: whole.get(name) for name in FIGURES}
    caplog.clear()
    capsys.readouterr()
    # what is printed at the end of a run, and by info
    assert main([*words, "--save-dir=-other"]) == 0
    (pages,) = commands_in(caplog.text)
    assert main([*pages, "--n-tokens", "64"]) == 0
    capsys.readouterr()
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert main(["info", "./-run"]) == 0
    shown = commands_in(capsys.readouterr().out)
    assert [one[0] for one in shown] == ["dashboard", "info"]
    assert main([*shown[0], "--n-tokens", "64"]) == main(shown[1]) == 0


@pytest.mark.parametrize("save_format", ["own", "sae_lens", "sparsify", "dictionary_learning"])
def test_a_run_in_every_format_ends_with_the_report_of_the_undisturbed_one(
    folder, tmp_path, monkeypatch, caplog, save_format  # noqa: F811
):  # fmt: skip
    """Files of other packages do not say how the text was read, and what was held out."""
    monkeypatch.chdir(folder)
    words = [*without(arguments(folder), {"--save-dir": True, "--overwrite": False}), "--layers", "1", "--k", "2"]
    words += ["--dtype", "float32", "--n-resamples", "0", "--save-format", save_format, "--checkpoint-steps", "10"]
    assert main([*words, "--save-dir", str(tmp_path / "whole")]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "evaluate_dictionaries", signaled)
        assert main([*words, "--save-dir", str(tmp_path / "run")]) == STOPPED
    (going_on,) = commands_in(caplog.records[-1].getMessage())
    assert main(going_on) == 0
    whole, own = (json.loads((tmp_path / one / "report.json").read_text()) for one in ("whole", "run"))
    assert (own["data"], own["ce_clean"]) == (whole["data"], whole["ce_clean"])
    assert [one["metrics"] for one in own["dictionaries"]] == [one["metrics"] for one in whole["dictionaries"]]


@pytest.mark.parametrize("name", ["sweep", "benchmark"])
def test_commands_of_grids_in_a_folder_with_a_dash_can_be_run(folder, tmp_path, monkeypatch, caplog, name):  # noqa: F811
    caplog.set_level(logging.INFO)
    monkeypatch.chdir(tmp_path)
    told = {"methods": {"top_k": {"k": [2], "dict_size": 48}}, "n_tokens": 320, "n_eval_tokens": 64}
    if name == "sweep":
        told |= {"model": str(folder / "model"), "data": str(folder / "text.jsonl"), "layers": [1]}
        told |= {"ctx_len": 16, "n_ctxs": 16, "batch_size": 32, "n_fidelity_tokens": 32}
    else:
        told |= {"case": "small", "seeds": [0]}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(told))
    words = [name, *(["synthetic"] if name == "benchmark" else []), "grid.yaml", "--save-dir=-grid"]
    with monkeypatch.context() as patch:
        patch.setattr(
            f"dictionary_learning.sweeps.{'run_sweep' if name == 'sweep' else 'benchmark_synthetic'}", signaled
        )
        assert main(words) == STOPPED
    (going_on,) = commands_in(caplog.records[-1].getMessage())
    assert main(going_on) == 0
    for command in commands_in(caplog.text)[1:]:
        assert main(command) == 0


def test_files_that_name_model_and_text_are_refused_at_once_before_weights_are_loaded(
    folder, tmp_path, monkeypatch, caplog  # noqa: F811
):  # fmt: skip
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    words = [*without(arguments(folder), {"--save-dir": True, "--overwrite": False}), "--layers", "1", "--k", "2"]
    assert main([*words, "--save-dir", "run"]) == 0
    monkeypatch.setattr("dictionary_learning.interop._saved.load_many", signaled)
    for command in ("evaluate", "dashboard", "contexts"):
        caplog.clear()
        assert main([command, "run", "--save-dir", "out"]) == 2
        message = caplog.records[-1].getMessage()
        assert str(folder / "model") in message and f"--data {folder / 'text.jsonl'}" in message
    for command in ("serve", "downstream"):
        caplog.clear()
        more = ["--tasks", "absorption"] if command == "downstream" else []
        assert main([command, "run", *more]) == 2
        assert f"Give --model {folder / 'model'}" in caplog.records[-1].getMessage()
