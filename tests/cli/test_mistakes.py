"""Whatever is asked for wrongly ends with one line that says so, and status 2."""

import os
import re
import subprocess
import sys

import pytest

from dictionary_learning.cli import COMMANDS, build_parser, main
from dictionary_learning.cli._stopping import resuming
from dictionary_learning.errors import ConfigError
from dictionary_learning.trainers import TRAINERS


def mistake(caplog, *arguments: str) -> str:
    """Returns the line that a wrong command ends with."""
    caplog.clear()
    assert main(arguments) == 2
    (record,) = caplog.records
    assert "\n" not in record.getMessage()
    return record.getMessage()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tain", "m", "d"], "Unknown command 'tain'. Did you mean 'train'"),
        (["train", "m", "d", "--recip", "gao_2024"], "Unknown option --recip. Did you mean '--recipe'"),
        (["train", "m", "d", "--train", "jump_relu"], "Unknown option --train. Did you mean '--trainer'"),
        (["train", "m", "d", "--lea", "1"], "Unknown option --lea"),
        (["evaluate", "r", "--modle", "m"], "Did you mean '--model'"),
        (["info", "--verif"], "Did you mean '--verify'"),
        (["convert", "a"], "destination"),
        (["train", "m", "d", "more"], "unrecognized arguments: more"),
        (["train", "m", "d", "--trainer", "jump_rely"], "Did you mean 'jump_relu'"),
        (["train", "m", "d", "--trainer"], "expected one argument"),
        (["train", "m", "d", "--recipe", "gao_2025"], "Did you mean 'gao_2024'"),
        (["train", "m", "d", "--trainer", "jump_relu", "--recipe", "gao_2024"], "which is one of top_k"),
        (["train", "m", "d", "--overwrite", "perhaps"], "perhaps"),
        (["--import", "no_such_module_anywhere", "info"], "--import no_such_module_anywhere failed"),
        (["train", "m", "d", "--batch-size", "1"], "needs at least 128 tokens (one context)"),
        (["train", "m", "d", "--batch-size", "128", "--k", "129"], "needs at least 129 tokens (--k 129)"),
        (["train", "--cache", "c", "--batch-size", "8", "--k", "9"], "needs at least 9 tokens (--k 9)"),
        (["train", "--cache", "c", "--trainer", "end_to_end"], "whole contexts"),
        (["train", "m"], "Give a model and data"),
        (["train", "m", "d", "--k", "4", "--k", "8"], "Got --k more than once, and only the last would count. Give all values"),
        (["train", "m", "d", "--dict-size", "32", "--dict_size=64"], "Got --dict-size more than once"),
        (["train", "m", "d", "--trainer", "top_k", "--trainer", "batch_top_k"], "Got --trainer more than once"),
        (["train", "m", "d", "--recipe", "sparsify", "--recipe", "gao_2024"], "Got --recipe more than once"),
        (["train", "m", "d", "--trainer", "top_k", "batch_top_k"], "Got --trainer top_k with batch_top_k, and it names one method"),
        (["train", "m", "d", "--trainer", "top_k", "batch_top_k"], "name them in a run file, as 'methods: {"),
        (["train", "m", "d", "--trainer=top_k", "--trainer=batch_top_k"], "name them in a run file, as 'methods: {"),
        (["train", "m", "d", "--recipe", "sparsify", "gao_2024"], "name them in a run file, as 'methods: {"),
        (["train", "m", "d", "--overwrite", "--overwrite", "false"], "Got --overwrite more than once"),
        (["evaluate", "r", "--model", "m", "--model", "n"], "Got --model more than once"),
        (["cache", "m", "d", "--out", "a", "--out", "b"], "Got --out more than once"),
        (["convert", "a", "b", "--to", "own", "--to", "sparsify"], "Got --to more than once"),
        (["train", "m", "d", "--save-dir", ""], "Got an empty --save-dir"),
        (["evaluate", "r", "--save-dir", ""], "Got an empty --save-dir"),
        (["cache", "m", "d", "--out", ""], "Got an empty --out"),
    ],
)  # fmt: skip
def test_one_line_says_what_is_wrong(caplog, arguments, said):
    assert said in mistake(caplog, *arguments)


@pytest.mark.parametrize("command", ["train", "evaluate", "cache", "pretokenize"])
def test_counts_have_a_least_value(caplog, command):
    counts = {
        "train": ["n-tokens", "batch-size", "n-ctxs", "ctx-len", "held-out-every", "n-eval-tokens", "log-steps"],
        "evaluate": ["n-tokens", "batch-size", "ctx-len", "max-examples"],
        "cache": ["n-tokens", "shard-size", "refresh-batch-size", "layer-stride"],
        "pretokenize": ["ctx-len", "max-examples"],
    }  # fmt: skip
    places = {"evaluate": ["r"], "cache": ["m", "d", "--out", "o"], "pretokenize": ["d", "--model", "m", "--out", "o"]}
    for count in counts[command]:
        for value in ("0", "-5"):
            line = mistake(caplog, command, *places.get(command, ["m", "d"]), f"--{count}", value)
            assert re.search(rf"Got --{count} {value}; it must be at least \d", line)


@pytest.mark.parametrize("name", [name for name, trainer in TRAINERS.items() if not hasattr(trainer.Config, "k")])
def test_trainers_without_k_say_so(caplog, name):
    line = mistake(caplog, "train", "m", "d", "--trainer", name, "--k", "32")
    assert f"The trainer {name} has no --k, which is an option of " in line and "top_k" in line


@pytest.mark.parametrize(
    "options",
    [["--ctx-len", "99"], ["--n-ctxs", "3"], ["--storage-dtype", "int8"], ["--seqpos-slice", "3"], ["--remove-bos", "false"],
     ["--io", "in"], ["--pack", "false"], ["--prefetch", "2"], ["--max-examples", "5"], ["--layers", "0"]],
)  # fmt: skip
def test_what_a_cache_decides_is_refused(caplog, options):
    assert f"Got {options[0]} with --cache" in mistake(caplog, "train", "--cache", "c", *options)


def test_convert_lists_formats_that_it_writes(caplog):
    line = mistake(caplog, "convert", "a", "b", "--to", "foo")
    assert "Known: dictionary_learning, own, sae_lens, sparsify." in line


@pytest.mark.parametrize("body", ["raise RuntimeError('two\\nlines')", "def (", "import no_such_module_anywhere"])
def test_a_module_that_fails_is_named_in_one_line(caplog, tmp_path, monkeypatch, body):
    name = f"failing_module_{abs(hash(body))}"
    (tmp_path / f"{name}.py").write_text(body)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert f"--import {name} failed (" in mistake(caplog, "--import", name, "info")


def test_command_that_goes_on_has_each_option_once(monkeypatch):
    words = ["train", "--overwrite", "m", "--save_dir=a", "d", "--resume", "true", "--save-dir", "b", "--k", "4"]
    found = []
    monkeypatch.setattr("dictionary_learning.cli._run", lambda *_: found.extend(resuming("c")) or 0)
    assert main(words) == 0
    assert " ".join(found) == "train m d --k 4 --save-dir c --resume"


def test_flags_need_no_value(caplog):
    for flag in (["--overwrite"], ["--overwrite", "true"], ["--overwrite=true"]):
        assert "no_such_data" in mistake(caplog, "train", *flag, "no_such_model", "no_such_data.txt", "--save-dir", "x")


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown and about in shown for name, about in COMMANDS.items())
    assert main([]) == 2


def test_help_imports_no_torch():
    script = "import sys; from dictionary_learning.cli import main\n"
    for command in ("--help", "evaluate", "cache", "pretokenize", "info", "convert", "pretrained"):
        words = [command] if command.startswith("-") else [command, "--help"]
        script += f"try: main({words})\nexcept SystemExit: pass\n"
    script += "sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_a_module_of_the_users_is_imported_first(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_method_of_a_test.py").write_text(
        "import dataclasses\n"
        "from dictionary_learning.trainers import TRAINERS, TopKTrainer\n"
        "@TRAINERS.register('my_top_k')\n"
        "class MyTrainer(TopKTrainer):\n"
        "    @dataclasses.dataclass(frozen=True, kw_only=True)\n"
        "    class Config(TopKTrainer.Config):\n"
        "        my_setting: float = 0.5\n"
        "        'A setting of my own.'\n"
    )
    monkeypatch.chdir(tmp_path)
    try:
        with pytest.raises(SystemExit):
            main(["train", "--import", "my_method_of_a_test.py", "--trainer", "my_top_k", "--help"])
        shown = capsys.readouterr().out
        assert "--my-setting" in shown and "A setting of my own." in shown
    finally:
        TRAINERS._entries.pop("my_top_k", None)


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell")
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_streams_that_the_shell_closed_are_no_error(closed):
    command = f"'{sys.executable}' -m dictionary_learning pretrained gemma-scope-2b {closed}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert (done.returncode, "Error" in done.stderr) == (0, False)


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "reproduce"])
def test_two_names_of_one_option_are_refused_by_both(command):
    parser = build_parser(command, [])
    for told, name in parser.aliases.items():
        for one, other in ((told, name), (name, told)):
            words = [f"--{one.replace('_', '-')}", "4", f"--{other.replace('_', '-')}", "8"]
            with pytest.raises(ConfigError, match=f"Got {words[0]} and {words[2]}, which are names of one option"):
                parser.read(words)
        with pytest.raises(ConfigError, match=f"has '{told}' and '{name}', which are names of one option"):
            parser.take({told: 4, name: 8}, "run.yaml")
