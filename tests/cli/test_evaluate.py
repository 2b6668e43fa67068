"""Which dictionaries, models and texts `evaluate` puts into one report, and where it writes it."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch

from dictionary_learning import AutoEncoderTopK, load_model, save_dictionary
from dictionary_learning.cli import build_parser, main
from dictionary_learning.errors import ConfigError
from tests import tiny

OPTIONS = ["--n-tokens", "64", "--n-fidelity-tokens", "0", "--device", "cpu", "--dtype", "float32"]
SITE = "model.layers.1:out"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a model by two names and two texts, where commands run."""
    monkeypatch.chdir(tmp_path)
    model = load_model(tiny.model(), tokenizer=tiny.tokenizer())

    # patched where models are loaded, not where load_model is imported from
    monkeypatch.setattr("dictionary_learning.models.load_pretrained", lambda *_: model.module)
    monkeypatch.setattr("dictionary_learning.models.load_tokenizer", lambda *_: tiny.tokenizer())
    for name, seed in (("one.jsonl", 0), ("two.jsonl", 1)):
        lines = [json.dumps({"text": text}) for text in tiny.documents(30, seed=seed)]
        (tmp_path / name).write_text("\n".join(lines))
    return tmp_path


def save(folder, k: int = 4, model: str = "m", data: str = "one.jsonl", limit: float = 1e6, **run):
    """Saves a dictionary as `train` does."""
    os.makedirs(folder, exist_ok=True)
    torch.manual_seed(k)
    token_filter = {"exclude_ids": [0], "exclude_first": True, "norm_limits": {SITE: limit}}
    buffer = {"model": {"name": model}, "ctx_len": 16, "pack": True, "filter": token_filter}
    sections = {"name": "top_k-4", "site": SITE, "buffer": buffer}
    sections["run"] = {"model": model, "data": data, "held_out_every": 5, **run}
    save_dictionary(AutoEncoderTopK(tiny.DIM, 64, k), folder / "trainer_0", sections)


def evaluate(*arguments: str) -> int:
    return main(["evaluate", *arguments, *OPTIONS])


def report(path) -> dict:
    return json.loads((path.parent / "report.json").read_text())


def test_runs_of_equal_names_keep_their_own_figures(place, capsys):
    found = {}
    for name, k in (("a", 4), ("b", 1)):
        save(place / name, k)
        assert evaluate(name) == 0
        found[f"{name}/top_k-4"] = report(place / name / "report.html")["dictionaries"][0]["metrics"]
    capsys.readouterr()
    before = (place / "a" / "report.json").read_text()
    assert evaluate("a", "b") == 0
    page = place / capsys.readouterr().out.strip()
    assert page.parent.parent.name == "reports"
    assert {d["name"]: d["metrics"] for d in report(page)["dictionaries"]} == found
    assert (place / "a" / "report.json").read_text() == before


@pytest.mark.parametrize("again", ["a", "./a", "a/trainer_0", "latest"])
def test_a_place_given_twice_is_refused(place, caplog, again):
    save(place / "a")
    (place / "latest").symlink_to("a")
    assert evaluate("a", again) == 2
    assert "given twice" in caplog.text


@pytest.mark.parametrize(
    ("other", "advice", "said"),
    [
        ({"model": "n"}, ["--model", "m"], "language models"),
        ({"data": "two.jsonl"}, ["--data", "one.jsonl"], "texts"),
        ({"held_out_every": 7}, ["--data", "one.jsonl"], "texts"),
        ({"text_column": "body"}, ["--data", "one.jsonl"], "texts"),
    ],
)
def test_runs_of_different_models_or_texts_are_refused(place, caplog, other, advice, said):
    save(place / "a")
    save(place / "b", **other)
    assert evaluate("a", "b") == 2
    assert f"were trained with different {said}" in caplog.text
    assert evaluate("a", "b", *advice) == 0


@pytest.mark.parametrize("other", [{"shuffle_seed": 3}, {"max_examples": 9}, {"limit": 5e5}])
def test_runs_of_one_text_are_compared(place, other):
    save(place / "a")
    save(place / "b", **other)
    assert evaluate("a", "b") == 0


@pytest.mark.parametrize(
    ("options", "is_own"),
    [
        ([], True),
        (["--model", "m"], True),
        (["--data", "one.jsonl"], True),
        (["--model", "other"], False),
        (["--data", "two.jsonl"], False),
        (["--sites", "layers.2"], False),
    ],
)
def test_only_the_first_report_on_its_own_model_and_text_is_in_the_run(place, capsys, options, is_own):
    save(place / "a")
    assert evaluate("a", *options) == 0
    page = place / capsys.readouterr().out.strip()
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert (page == place / "a" / "report.html") == is_own
    first = page.read_bytes()
    assert evaluate("a", *options) == 0
    assert place / capsys.readouterr().out.strip() != page and page.read_bytes() == first


STRANGE = {
    "pickle": ({"data": "pandas", "data_args": ["data_files=evil.pkl"]}, "--data-args"),
    "json of the user's": ({"data": "json", "data_args": ["data_files=/etc/passwd"]}, "--data-args"),
    "code of the data": ({"data": "user/name", "data_args": ["trust_remote_code=true"]}, "--data-args"),
    "file elsewhere": ({"data": "/etc/hostname.txt"}, "--data"),
    "file above": ({"data": "../two.jsonl"}, "--data"),
    "file of the home": ({"data": "~/notes.txt"}, "--data"),
    "pattern elsewhere": ({"data": "/etc/*.txt"}, "--data"),
    "link": ({"data": "linked/two.jsonl"}, "--data"),
    "address": ({"data": "https://example.org/a.txt"}, "--data"),
    "chained address": ({"data": "zip::a.txt"}, "--data"),
    "bucket": ({"data": "s3://bucket/a.txt"}, "--data"),
    "NUL": ({"data": "a\0.txt"}, "--data"),
    "list": ({"data": ["one.jsonl"]}, "--data"),
    "model elsewhere": ({"model": "/etc"}, "--model"),
    "model above": ({"model": "../model"}, "--model"),
    "model by address": ({"model": "https://example.org/model"}, "--model"),
}


@pytest.mark.parametrize("case", STRANGE)
def test_files_of_a_stranger_decide_nothing(place, caplog, monkeypatch, case):
    here = place / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    (here / "linked").symlink_to("..")
    run, option = STRANGE[case]
    save(here / "a", **run)
    opened = []
    monkeypatch.setattr("datasets.load_dataset", lambda *a, **k: opened.append(a))
    monkeypatch.setattr("dictionary_learning.data._text.files_reader", lambda *a: opened.append(a))
    assert evaluate("a") == 2
    assert f"Give {option}" in caplog.text and "stranger" in caplog.text
    assert not opened


def test_what_files_name_is_read_when_it_is_meant(place):
    save(place / "a", data=str(place / "one.jsonl"), model=str(place))
    assert evaluate("a") == 0  # below the current folder
    os.makedirs(place / "b")
    os.chdir(place / "b")
    assert evaluate("../a") == 2
    assert evaluate("../a", "--data", str(place / "one.jsonl"), "--model", str(place)) == 0


@pytest.mark.parametrize("is_link", [True, False])
def test_latest_is_found(place, capsys, is_link):
    save(place / "runs" / "a")
    if is_link:
        (place / "runs" / "latest").symlink_to("a")
    else:
        (place / "runs" / "latest").write_text("a")
    for command in (["evaluate", "runs/latest", *OPTIONS], ["info", "runs/latest"]):
        assert main(command) == 0
    assert (place / "runs" / "a" / "report.html").is_file()
    assert '"AutoEncoderTopK"' in capsys.readouterr().out


COMMANDS = {
    ("convert", "a/trainer_0", "b"): "b\n",
    ("info", "a"): "AutoEncoderTopK",
    ("pretrained", "gpt2"): "gpt2",
    ("info", "nothing"): "",
}
"""What each writes to standard output."""
BETWEEN = "\n-- next --\n"
ONE_BY_ONE = f"""
import sys
from dictionary_learning.cli import main
for words in {list(COMMANDS)}:
    sys.argv[1:] = words
    print(main(), end={BETWEEN!r}, flush=True)
    print(end={BETWEEN!r}, file=sys.stderr, flush=True)
"""


def test_results_go_to_standard_output_and_messages_to_standard_error(place):
    save(place / "a")
    done = subprocess.run([sys.executable, "-c", ONE_BY_ONE], capture_output=True, text=True, check=True)
    results, messages = (text.split(BETWEEN)[:-1] for text in (done.stdout, done.stderr))
    for expected, result, message in zip(COMMANDS.values(), results, messages, strict=True):
        shown, code = result[:-1], result[-1]
        assert expected in shown and bool(shown) == bool(expected)
        assert code == ("0" if expected else "2")
        assert message.count("\n") == (0 if expected else 1)


def test_runs_are_compared_whether_they_have_reports_or_not(place, capsys, caplog):
    for name, k in (("a", 4), ("b", 1)):
        save(place / name, k)
    assert main(["compare", "a", "b", *OPTIONS, "--json"]) == 0
    together = json.loads(capsys.readouterr().out)
    assert "report.html" in caplog.text and together["differences"][0]["reference"] == "a/top_k-4"
    for name in "ab":
        assert evaluate(name) == 0
    capsys.readouterr()
    assert main(["compare", "a", "b/report.json", "--format", "csv", "--metrics", "fvu", "l0"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split(",")[2] for row in rows] == ["metric", "fvu", "l0"]
    (fvu,) = [one for one in together["differences"] if one["metric"] == "fvu"]
    assert float(rows[1].split(",")[5]) == pytest.approx(fvu["difference"], rel=1e-5)
    assert main(["compare", "a", "b"]) == 0
    assert "top_k-4 #2 minus top_k-4" in capsys.readouterr().out
    assert main(["compare", "a", "b", "--metrics", "vfu"]) == 2
    assert "have the metric 'vfu'" in caplog.text
    assert main(["compare", "a", "b", "--json", "--format", "csv"]) == 2


def test_a_comparison_across_texts_is_refused(place, caplog):
    save(place / "a")
    save(place / "b", data="two.jsonl")
    for name in "ab":
        assert evaluate(name) == 0
    assert main(["compare", "a", "b"]) == 2
    assert "The reports differ in" in caplog.text and "tokens" in caplog.text
    save(place / "c")
    assert main(["compare", "a/report.json", "c"]) == 2
    assert "Give reports alone" in caplog.text


@pytest.mark.parametrize(
    ("command", "places", "told", "own"),
    [
        ("evaluate", ["a"], {"n_eval_tokens": 64, "eval_batch_size": 2, "eval_seed": 3, "out": "b"},
         {"n_tokens": 64, "batch_size": 2, "seed": 3, "save_dir": "b"}),
        ("compare", ["a", "b"], {"n_eval_tokens": 64}, {"n_tokens": 64}),
        ("train", ["m", "text.txt"], {"out": "b"}, {"save_dir": "b"}),
        ("cache", ["m", "text.txt"], {"save_dir": "b"}, {"out": "b"}),
        ("pretokenize", ["text.txt", "--model", "m"], {"save_dir": "b"}, {"out": "b"}),
    ],
)  # fmt: skip
def test_what_another_command_calls_it_is_understood_in_the_shell_and_in_a_file(command, places, told, own):
    parser = build_parser(command, places)
    words = [word for name, value in told.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    read = parser.read([*places, *words])
    assert {name: getattr(read, name) for name in own} == own
    assert {*own} <= read.given
    other = build_parser(command, places)
    other.take(told, "run.yaml")
    assert {name: getattr(other.read(places), name) for name in own} == own
    twice = [f"--{next(iter(own)).replace('_', '-')}", "1"]
    with pytest.raises(ConfigError, match="which are names of one option"):
        parser.read([*places, *words, *twice])


def test_the_table_names_its_ablation_and_explains_its_errors(place, caplog):
    caplog.set_level("INFO")
    for name, more, told in (
        ("a", ["--ablations", "zero", "mean"], "CE recovered (zero)"),
        ("b", ["--ablations", "mean"], "CE recovered (mean)"),
        ("c", ["--ablations", "none"], None),
    ):
        save(place / name)
        caplog.clear()
        assert main(["evaluate", name, *OPTIONS[:2], *OPTIONS[4:], "--n-fidelity-tokens", "64", *more]) == 0
        said = [record.getMessage() for record in caplog.records]
        number = next(i for i, line in enumerate(said) if line.startswith("dictionary "))
        columns = re.split(r" {2,}", said[number])
        assert columns == ["dictionary", "FVU", "L0", "CE increase", *([told] if told else []), "folder"]
        row = re.split(r" {2,}", said[number + 1])
        metrics = report(place / name / "report.html")["dictionaries"][0]["metrics"]
        assert row[3].split(" ")[0] == f"{metrics['ce_increase']:.4f}" and "\u00b1" in row[3]
        assert any(line.startswith("\u00b1 is the standard error over ") for line in said)
    save(place / "d")
    caplog.clear()
    assert evaluate("d") == 0  # without fidelity
    head = next(line for line in caplog.text.splitlines() if "FVU" in line)
    assert "CE" not in head
