"""`info` says what is saved: as a table in a terminal, as JSON to a program."""

import json
import math
import shlex
import shutil
import signal
import sys
from pathlib import Path

import pytest

from dictionary_learning import AutoEncoderTopK, load_dictionary, save_dictionary, trainSAE
from dictionary_learning._what_is import what_is
from dictionary_learning.cli import build_parser, main
from dictionary_learning.cli._parser import without
from dictionary_learning.errors import Interrupted
from dictionary_learning.loggers import read_history
from tests.cli.test_cli import FIXTURES, arguments, cache, folder, train  # noqa: F401  (a fixture)
from tests.interop.golden import FIXTURES as GOLDEN
from tests.test_resume import StopAfter
from tests.tiny import DIM, Planted


@pytest.fixture
def terminal(monkeypatch, capsys):
    """Returns a function that runs `info` in a terminal, and returns what comes out, as lines."""

    def info(*words: str) -> list[str]:
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(sys.stdout, "isatty", lambda: True)
            assert main(["info", *words]) == 0
        return capsys.readouterr().out.splitlines()

    return info


def piped(capsys, *words: str) -> dict:
    capsys.readouterr()
    assert main(["info", *words]) == 0
    return json.loads(capsys.readouterr().out)


def cells(line: str) -> list[str]:
    return [cell for cell in line.split("  ") if cell.strip()]


def read(command: str):
    words = shlex.split(command)
    assert words[0] == "dictionary-learning"
    options = [word for word in words[2:] if word != "--json"]  # which is an option of all commands
    return build_parser(words[1], options).read(options) if words[1] != "train" else words[1:]


@pytest.fixture
def run(tmp_path):
    """Two saved dictionaries, of a model that was given as an object."""
    for n in range(2):
        model = {"name": None, "label": "LlamaForCausalLM", "revision": None, "dtype": "float32"}
        config = {"name": f"top_k-{n}", "site": "model.layers.1:out", "buffer": {"model": model}}
        save_dictionary(AutoEncoderTopK(8, 16, 2), tmp_path / "run" / f"trainer_{n}", config)
    return tmp_path / "run"


def test_a_model_without_a_name_is_to_be_given(run, terminal):
    commands = [line for line in terminal(str(run)) if "dictionary-learning evaluate" in line]
    assert commands and all("--model MODEL" in line for line in commands)
    assert "LlamaForCausalLM" not in "".join(terminal(str(run)))


def test_the_file_of_weights_is_its_folder(run, terminal, capsys):
    place = run / "trainer_1"
    file = place / "dictionary.safetensors"
    assert piped(capsys, str(file)) == piped(capsys, str(place))
    assert terminal(str(file))[:2] == terminal(str(place))[:2]


def test_damaged_weights_of_a_run_are_named(run, caplog):
    file = run / "trainer_1" / "dictionary.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    assert main(["info", str(run)]) == 2 and str(file) in caplog.text
    config = run / "trainer_0" / "config.json"
    config.write_text(config.read_text().replace('"k": 2', '"k": 3'))
    assert main(["info", str(run / "trainer_0")]) == 2 and "different saves" in caplog.text


def test_a_fact_is_given_as_to_convert(run, capsys, caplog):
    found = piped(capsys, str(GOLDEN / "third_party" / "qwen_scope"), "--k", "4")
    assert [one["peer"] for one in found.values()] == [{"k": 4}]
    assert main(["info", str(run), "--k", "4"]) == 2 and "no use for --k 4" in caplog.text


def test_a_run_is_shown_to_a_person_and_written_for_a_program(folder, terminal, capsys, monkeypatch):  # noqa: F811
    monkeypatch.chdir(folder)
    assert train(folder, "--sites", "transformer.h.1", "h.1.mlp", "--k", "2", "--dtype", "float32") == 0
    run = str(folder / "run")
    found = piped(capsys, run)
    assert found == {f"{run}/trainer_{n}": load_dictionary(f"{run}/trainer_{n}").info.config for n in (0, 1)}
    shown = terminal(run)
    metrics = [one["metrics"] for one in json.loads((folder / "run" / "report.json").read_text())["dictionaries"]]
    titles = ["dictionary", "class", "site", "size", "k", "step", "FVU", "L0", "CE recovered (zero)", "folder"]
    assert [cell.strip() for cell in cells(shown[0])] == titles
    for n, (line, figures) in enumerate(zip(shown[1:3], metrics, strict=True)):
        config = found[f"{run}/trainer_{n}"]
        assert [cell.strip() for cell in cells(line)] == [
            config["name"], "AutoEncoderTopK", config["site"], f"{DIM} x {4 * DIM}", "2", "20 of 20", f"{figures['fvu']:.4f}",
            f"{figures['l0']:.1f}", f"{figures['ce_recovered_zero']:.4f}", f"{run}/trainer_{n}",
        ]  # fmt: skip
    assert shown[3] == f"Figures are of held-out text: {run}/report.html" and shown[4].startswith("The run finished")
    commands = [read(line.strip()) for line in shown[5:]]
    assert (commands[0].places, commands[0].save_dir) == ([run], f"{run}/latents") and commands[1].paths == [run]
    assert json.loads("\n".join(terminal(run, "--json"))) == found
    (one,) = terminal(f"{run}/trainer_1")[1:2]
    assert f"{metrics[1]['fvu']:.4f}" in one  # of the run around it


def test_a_run_that_was_stopped_says_how_it_goes_on(folder, terminal, tmp_path):  # noqa: F811
    data, options = list(Planted().batches(8, 32)), {"save_dir": tmp_path / "run", "progress": False, "log_steps": 1}
    with pytest.raises(Interrupted):
        trainSAE(data, {"trainer": "top_k", "k": 3, "dict_size": 48}, 8, loggers=[StopAfter(3, signal.SIGTERM)], **options)  # fmt: skip
    options |= {"save_dir": tmp_path / "whole"}
    trainSAE(data, {"trainer": "jump_relu", "dict_size": 48, "normalize": "unit_mean_square"}, 8, **options)
    shown = terminal(str(tmp_path / "whole"))
    (last,) = read_history(tmp_path / "whole" / "metrics.jsonl", load_dictionary(tmp_path / "whole" / "trainer_0").info.name)[-1:]  # fmt: skip
    assert f"{last['fvu']:.4f}" in shown[1] and f"{last['l0']:.1f}" in shown[1] and math.isfinite(last["fvu"])
    assert shown[2] == "Figures are of the last training batch that was logged."
    # nothing tells the model and the text of a run on tensors
    asked = read(shown[4].strip())
    assert (asked.dictionaries, asked.model, asked.data) == ([str(tmp_path / "whole")], "MODEL", "DATA")
    assert train(folder, "--sites", "transformer.h.1", "--k", "2", "--save-dir", str(tmp_path / "a"), "--dtype", "float32") == 0  # fmt: skip
    record = json.loads((tmp_path / "a" / "run.json").read_text())
    record["volatile"]["sessions"][-1] |= {"outcome": "Interrupted", "last_step": 7}
    (tmp_path / "a" / "run.json").write_text(json.dumps(record))
    shown = terminal(str(tmp_path / "a"))
    assert any(line.startswith("Interrupted after step 7") for line in shown)
    (resuming,) = [read(line.strip()) for line in shown if " train " in line]
    assert resuming[-3:] == ["--save-dir", str(tmp_path / "a"), "--resume"]
    whole = dict.fromkeys(("--save-dir",), True) | {"--overwrite": False}
    assert resuming[1:-3] == without([*arguments(folder)[1:], "--sites", "transformer.h.1", "--k", "2", "--dtype", "float32"], whole)  # fmt: skip


def test_files_of_other_packages_and_damaged_reports(terminal, tmp_path):
    shown = terminal(str(FIXTURES / "saelens" / "standard"))
    loaded = load_dictionary(FIXTURES / "saelens" / "standard")
    assert f"{loaded.activation_dim} x {loaded.dict_size}" in shown[1] and type(loaded).__name__ in shown[1]
    run = tmp_path / "run"
    shutil.copytree(FIXTURES / "sparsify" / "topk", run / "h.0")
    for text in ("{", "[]", '{"dictionaries": [3]}', '{"dictionaries": [{"name": "h.0", "metrics": {"fvu": "x"}}]}'):
        Path(run / "report.json").write_text(text)
        assert "FVU" not in terminal(str(run))[0]


def test_a_run_in_the_format_of_another_package_has_its_figures(folder, terminal, tmp_path):  # noqa: F811
    run = tmp_path / "run"
    options = ["--k", "2", "3", "--save-format", "dictionary_learning", "--save-dir", str(run), "--n-resamples", "0"]
    assert train(folder, "--sites", "transformer.h.1", *options) == 0
    entries = json.loads((run / "report.json").read_text())["dictionaries"]
    shown = terminal(str(run))
    for line, entry in zip(shown[1:3], entries, strict=True):
        assert "not finished" not in what_is(run)
        assert f"{entry['metrics']['fvu']:.4f}" in line and "AutoEncoderTopK" in line and f"{DIM} x {4 * DIM}" in line


def test_a_cache_is_a_list_of_facts(folder, terminal, capsys):  # noqa: F811
    assert cache(folder, "--n-tokens", "64", "--dtype", "float32") == 0
    place = str(folder / "cache")
    shown, (found,) = terminal(place), piped(capsys, place).values()
    assert shown[0] == place and "  rows: 64" in shown and "  complete: true" in shown and found["rows"] == 64
    shutil.rmtree(place)
