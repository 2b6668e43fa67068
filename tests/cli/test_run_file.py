"""Options in a file: they mean what the words of a command mean."""

import dataclasses
import json
import re

import pytest
import yaml

from dictionary_learning import _plain, load_dictionary
from dictionary_learning._text_reading import TextReading
from dictionary_learning.cli import _reproduce, _train, build_parser, main
from dictionary_learning.cli._arguments import read_config
from dictionary_learning.cli._run_file import read_file, text_of_run_file
from dictionary_learning.cli._train_options import TrainArguments
from dictionary_learning.config import field_types
from dictionary_learning.errors import ConfigError
from dictionary_learning.trainers import TRAINERS, TrainerConfig, TrainerTopK
from dictionary_learning.trainers.recipes import RECIPES
from tests import tiny

GIVEN = {
    "device": "cpu", "n_tokens": 128, "batch_size": 32, "ctx_len": 16, "n_ctxs": 16, "refresh_batch_size": 4,
    "n_eval_tokens": 64, "n_fidelity_tokens": 0, "held_out_every": 10, "sites": ["transformer.h.1"], "dtype": "float32",
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A saved model and a text."""
    place = tmp_path_factory.mktemp("files")
    tiny.save_model(place / "model", "gpt2")
    (place / "text.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in tiny.documents(60)))
    return place


def given(place, **settings):
    return {"model": str(place / "model"), "data": str(place / "text.jsonl"), **GIVEN, **settings}


def words(settings):
    found = [settings.pop("model"), settings.pop("data")]
    for name, value in settings.items():
        found += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value])]
    return found


def as_toml(settings):
    return "\n".join(f"{name} = {json.dumps(value)}" for name, value in settings.items())


WRITERS = {"yaml": yaml.safe_dump, "json": json.dumps, "toml": as_toml}


def write(path, settings):
    path.write_text(WRITERS[path.suffix[1:]](settings))
    return str(path)


def trained(folder):
    return [load_dictionary(path) for path in sorted(folder.glob("trainer_*"))]


def assert_same(some, others):
    assert len(some) == len(others) > 0
    for one, other in zip(some, others, strict=True):
        assert type(one) is type(other)
        assert all((one.state_dict()[name] == value).all() for name, value in other.state_dict().items())


def failed(caplog, *arguments):
    caplog.clear()
    assert main(arguments) == 2
    return caplog.records[-1].getMessage()


@pytest.fixture(scope="module")
def by_words(place):
    """A run of two dictionaries from options alone."""
    settings = given(place, trainer="batch_top_k", k=[2, 4], expansion_factor=2, lr=1e-3)
    assert main(["train", *words(settings), "--save-dir", str(place / "words")]) == 0
    return place / "words"


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_is_what_the_words_are(place, by_words, tmp_path, kind):
    settings = given(place, trainer="batch_top_k", k=[2, 4], expansion_factor=2, lr=1e-3)
    path = write(tmp_path / f"run.{kind}", settings)
    assert main(["train", "--config", path, "--save-dir", str(tmp_path / "run")]) == 0
    assert_same(trained(tmp_path / "run"), trained(by_words))


def test_words_go_before_the_file(place, by_words, tmp_path):
    settings = given(place, recipe="gao_2024", k=9, **{"expansion-factor": 7}, lr=1.0, seed=3)
    path = write(tmp_path / "run.yaml", {**settings, "data": "nowhere.jsonl"})
    instead = ["--trainer", "batch_top_k", "--k", "2", "4", "--expansion-factor=2", "--lr", "1e-3", "--seed", "0"]
    line = [str(place / "model"), str(place / "text.jsonl"), *instead, "--save-dir", str(tmp_path / "run")]
    assert main(["train", "--config", path, *line]) == 0
    assert_same(trained(tmp_path / "run"), trained(by_words))


def test_a_run_writes_the_file_that_repeats_it(by_words, tmp_path, capsys):
    kept = yaml.safe_load((by_words / "run.yaml").read_text())
    assert kept["trainer"] == "batch_top_k" and kept["k"] == [2, 4] and kept["ctx_len"] == 16
    assert not {"save_dir", "config", "warmup_steps"} & set(kept)
    assert main(["train", "--config", str(by_words / "run.yaml"), "--save-dir", str(tmp_path / "run")]) == 0
    assert_same(trained(tmp_path / "run"), trained(by_words))
    assert yaml.safe_load((tmp_path / "run" / "run.yaml").read_text()) == kept


def test_reproduce_reads_what_the_run_kept_and_not_the_file(place, tmp_path, monkeypatch):
    """In this process; `test_reproduce` has one of a process of its own."""

    def repeat(command, again, document):
        return main([*command, "--save-dir", str(again)])

    monkeypatch.setattr(_reproduce, "_run_again", repeat)
    path = tmp_path / "mine.yaml"
    write(path, given(place, k=2, expansion_factor=2))
    assert main(["train", "--config", str(path), "--save-dir", str(tmp_path / "run")]) == 0
    write(path, given(place, k=3, expansion_factor=4))  # changed afterwards
    assert main(["reproduce", str(tmp_path / "run")]) == 0


def test_several_methods_train_as_each_alone(place, tmp_path):
    methods = {
        "first": {"trainer": "top_k", "k": 2},
        "jump_relu": {"seed": 1},
        "sites": {"recipe": "gao_2024", "k": 3, "site": "transformer.h.0"},
    }
    settings = given(place, sites=["transformer.h.0", "transformer.h.1"], grid={"dict_size": 32}, methods=methods)
    assert main(["train", "--config", write(tmp_path / "m.yaml", settings), "--save-dir", str(tmp_path / "m")]) == 0
    kinds = [(type(one).__name__, one.info.config["site"]) for one in trained(tmp_path / "m")]
    assert kinds == [
        ("AutoEncoderTopK", "transformer.h.0:out"), ("AutoEncoderTopK", "transformer.h.1:out"),
        ("JumpReluAutoEncoder", "transformer.h.0:out"), ("JumpReluAutoEncoder", "transformer.h.1:out"),
        ("Normalized", "transformer.h.0:out"),
    ]  # fmt: skip
    alone = given(place, trainer="top_k", k=2, dict_size=32, sites=["transformer.h.0", "transformer.h.1"])
    assert main(["train", *words(alone), "--save-dir", str(tmp_path / "alone")]) == 0
    assert_same(trained(tmp_path / "m")[:2], trained(tmp_path / "alone"))
    again = ["train", "--config", str(tmp_path / "m" / "run.yaml"), "--save-dir", str(tmp_path / "again")]
    assert main(again) == 0
    assert_same(trained(tmp_path / "again"), trained(tmp_path / "m"))


def test_wirings_that_are_mixed_without_sites_say_the_few_things_that_help(place, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(_plain, "_MOST_NAMED", 2)  # this model has 6 sites, and others 60
    methods = {"top_k": {"k": 2, "site": "transformer.h.1"}, "other": {"trainer": "top_k", "wiring": "transcoder"}}
    settings = given(place, grid={"dict_size": 32}, methods=methods)
    settings.pop("sites", None)
    assert main(["train", "--config", write(tmp_path / "m.yaml", settings), "--save-dir", str(tmp_path / "m")]) == 2
    said = caplog.messages[-1]
    assert (
        "names the site 'transformer.h.1:out'; the data has 6 sites, transformer.h.0.mlp:in to transformer.h.2.mlp:out."
        in said
    )
    assert "Did you mean 'transformer.h.1.mlp:out'" in said and said.endswith(
        "Name it by --sites too, or leave it out."
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kk": 3}, "has 'kk'. There is no such option. Did you mean 'k'"),
        ({"sparsity_penalty": 3}, "The trainer top_k has no --sparsity-penalty, which is an option of"),
        ({"k": "many"}, "'many' is not int"),
        ({"k": []}, "has k: [], and it is empty"),
        ({"k": {"a": 1}}, "a mapping is no value"),
        ({"k": None, "ctx_len": None}, "'none' is not int"),
        ({"pack": "perhaps"}, "'perhaps' is not"),
        ({"help": True}, "has 'help'. There is no such option"),
        ({"trainer": "top_kk"}, "Did you mean 'top_k'"),
        ({"trainer": "top_k", "recipe": "bricken_2023"}, "Give one of the two"),
        ({"trainer": ["top_k", "batch_top_k"]}, "has trainer: ['top_k', 'batch_top_k'], and no list: a run file"),
        ({"recipe": 5}, "has recipe: 5"),
        ({"bos": "None"}, "'None' is not document | context | both | none."),
        ({"exclude_tokens": [[5]]}, "a list in a list"),
        ({"mix": 5}, "Got 5 in mix"),
        ({"batch-size": 3}, "has 'batch_size' twice"),
        ({"methods": [1]}, "Got methods: [1] in the run file"),
        ({"methods": {}}, "Got a sweep without methods"),
        ({"methods": {"top_k": {}}, "trainer": "top_k"}, "Got --trainer top_k with a run file that has 'methods'"),
        ({"methods": {"top_k": {}}, "k": 3}, "has 'k'. The run file has 'methods': give --k there"),
        ({"methods": {"top_k": {"kk": 3}}}, "Did you mean 'k'"),
        ({"methods": {"top_k": {"k": 4}}, "batch_size": 16, "grid": {"k": 99}}, "Give it in one place"),
    ],
)  # fmt: skip
def test_what_a_file_has_wrong_is_named(place, tmp_path, caplog, settings, said):
    path = write(tmp_path / "run.yaml", given(place, **settings))
    assert said in failed(caplog, "train", "--config", path, "--save-dir", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("k: 1\nk: 2", "'k' is there twice, again in line 2"), ("methods: {top_k: {k: 1, k: 2}}", "'k' is there twice"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["yaml", "json"])
def test_no_key_is_there_twice(tmp_path, caplog, text, said, kind):
    (tmp_path / f"a.{kind}").write_text(text)
    assert said in failed(caplog, "train", "--config", str(tmp_path / f"a.{kind}"))


def test_null_says_nothing(place, tmp_path):
    """Where nothing is the default, and for lists, which have no null."""
    nothing = dict.fromkeys(("mix", "exclude_tokens", "weights", "bos", "save_steps", "system_prompt", "data_args"))
    values = read_file(write(tmp_path / "a.yaml", given(place, **nothing)))
    parser = build_parser("train", [], values)
    parser.take(values, "a.yaml")
    found = parser.read([])
    assert not set(nothing) & found.given
    default = {field.name: field.default for field in dataclasses.fields(TrainArguments)}
    assert all(getattr(read_config(found, TrainArguments), name) == default[name] for name in nothing)


def test_options_with_words_show_them():
    parser = build_parser("train", [])
    flags = {action.dest for action in parser._actions if action.option_strings and action.metavar == ""}
    hints = {**field_types(TrainArguments), **field_types(TrainerTopK.Config)}
    assert {hints[name] for name in flags if name in hints} == {bool}
    words = {action.dest: action.metavar for action in parser._actions}
    assert str(words["normalize_activations"]).startswith("true|none|unit_mean_square")


@pytest.mark.parametrize(
    ("text", "name"),
    [("[1, 2]", "a.yaml"), ("k: [", "a.yaml"), ("k = ", "a.toml"), ("\xff", "a.json"), ("3", "a.json")],
)
def test_what_is_no_run_file_is_refused(tmp_path, caplog, text, name):
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    assert name in failed(caplog, "train", "--config", str(tmp_path / name))
    assert "nowhere.yaml' cannot be read" in failed(caplog, "train", "--config", "nowhere.yaml")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["--config"], "names no file"),
        (["--config", "--k", "3"], "names no file"),
        (["--config", "a.yaml", "--config=b.yaml"], "more than once"),
    ],
)
def test_config_is_one_file(caplog, line, said):
    assert said in failed(caplog, "train", *line)


def test_other_commands_read_files_too(by_words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(by_words.parent)
    path = write(tmp_path / "e.yaml", {"dictionaries": [str(by_words)], "n_tokens": 64, "n_fidelity_tokens": 0})
    capsys.readouterr()
    assert main(["evaluate", "--config", path, "--json", "--save-dir", str(tmp_path / "report")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["folder"] for one in found["dictionaries"]] == [str(by_words / f"trainer_{n}") for n in (0, 1)]
    assert all(one["metrics"]["fvu"] > 0 for one in found["dictionaries"])


def test_every_option_of_train_has_a_group():
    for name in TRAINERS:
        parser = _train.build_parser(["--trainer", name], {})
        shown = {option for action in parser.group("options")._group_actions for option in action.option_strings}
        assert shown == set()


def test_help_is_short_and_help_all_is_whole(capsys):
    shown = []
    for option in ("--help", "--help-all"):
        with pytest.raises(SystemExit):
            main(["train", option])
        shown.append(capsys.readouterr().out)
    short, whole = (len(text.splitlines()) for text in shown)
    assert short < 100 < 300 < whole
    assert all(f"\n  --{name} " in shown[0] for name in ("trainer", "k", "wiring", "layers", "n-tokens", "save-dir"))


@pytest.mark.parametrize("words", [["--trainer", name] for name in TRAINERS] + [["--recipe", name] for name in RECIPES])
def test_help_of_a_method_shows_its_own_settings_alone(capsys, words):
    config = TRAINERS[words[1]].Config if words[0] == "--trainer" else type(RECIPES[words[1]]())
    with pytest.raises(SystemExit):
        main(["train", *words, "--help"])
    shown = capsys.readouterr().out
    common = {field.name for field in dataclasses.fields(TrainerConfig)}
    own = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(config) if field.name not in common}
    assert own and set(re.findall(r"^  (--[\w-]+)", shown, re.M)) == {*own, "--help-all"}
    assert words[1] in shown


def test_quiet_writes_only_results(by_words, tmp_path, capsys, caplog, monkeypatch):
    monkeypatch.chdir(by_words.parent)
    asked = ["evaluate", str(by_words), "--n-tokens", "64", "--n-fidelity-tokens", "0", "--quiet"]
    assert main([*asked, "--save-dir", str(tmp_path / "report")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "report" / "report.html") and not caplog.records


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_shells_complete_commands_and_options(capsys, shell):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "--dict-size" in script and "--sparsity-penalty" in script and "reproduce" in script


def part_of(tmp_path, part):
    (tmp_path / "part.yaml").write_text(yaml.safe_dump({"mix": part}, sort_keys=False))
    (reading,) = TextReading(mix=tuple(read_file(tmp_path / "part.yaml")["mix"])).parts()
    return reading


@pytest.mark.parametrize(
    "prompt",
    [
        "be brief max_examples=5",
        "x=1",
        " padded ",
        "",
        "none",
        '"quoted"',
        "it's",
        "line\nof=two",
        'a "b" c=d \\n',
        "[1]",
    ],
)
def test_a_mapping_of_a_mixture_stays_one(tmp_path, prompt):
    """No value is taken for settings, on the way in or in the file that the run writes."""
    part = {"data": "b c=d.jsonl", "system_prompt": prompt, "data_args": {"revision": "main, a=b", "n": 3}}
    data, reading = part_of(tmp_path, [part])
    assert data == part["data"] and reading.system_prompt == prompt and reading.max_examples is None
    assert reading.data_args == ("revision=main, a=b", "n=3")
    words = read_file(tmp_path / "part.yaml")["mix"]
    kept = yaml.safe_load(text_of_run_file("train", {"mix": words}))["mix"]
    assert kept == [{**part, "data_args": list(reading.data_args)}]
    assert part_of(tmp_path, kept) == (data, reading)


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"data": "b.jsonl", "removal_frequncy": 0}, "the setting removal_frequncy"),
        ({"data": "b.jsonl", "weights": 2}, "the setting weights"),
        ({"data": "b.jsonl", "max_examples": [5]}, "one value"),
        ({"data": ""}, "name its data"),
        (5, "Got 5 in mix; give the name of data"),
        ([["b.jsonl", "body"]], "Got ['b.jsonl', 'body'] in mix"),
        ("b.jsonl system_prompt=w7 w8 removal_frequncy=0", "the setting removal_frequncy"),
        ("b.jsonl text_column=a text_column=b", "text_column twice"),
        ("b.jsonl text-column=a text_column=b", "text_column twice"),
        ('b.jsonl system_prompt="\\d"', "cannot be read"),
        ("text_column=body", "no data"),
    ],
)
def test_a_part_of_a_mixture_that_cannot_be_is_refused(tmp_path, part, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        part_of(tmp_path, part)


def test_a_value_in_quotes_is_text(tmp_path):
    for quoted in ("'w7 removal_frequncy=0'", '"w7 removal_frequncy=0"'):
        _, reading = part_of(tmp_path, f"b.jsonl system_prompt={quoted} chat-seed=3")
        assert (reading.system_prompt, reading.chat_seed) == ("w7 removal_frequncy=0", 3)
    _, reading = part_of(tmp_path, "b.jsonl system_prompt=it's w7 x==1 text_column=body")
    assert (reading.system_prompt, reading.text_column) == ("it's w7 x==1", "body")
