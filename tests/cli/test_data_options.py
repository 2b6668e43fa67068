import pytest

from dictionary_learning._trained_on import TextReading, reading_of, text_of
from dictionary_learning.cli import main
from dictionary_learning.cli._evaluate import EvaluateArguments, read_text
from dictionary_learning.cli._options import DataArguments
from dictionary_learning.data import as_source
from dictionary_learning.errors import ConfigError
from tests import tiny

TEXTS = [f"document {n}" for n in range(40)]


@pytest.fixture
def path(tmp_path) -> str:
    """A text file."""
    (tmp_path / "a.txt").write_text("\n".join(TEXTS))
    return str(tmp_path / "a.txt")


def test_held_out_documents_do_not_depend_on_shuffle_and_number(path):
    expected = TEXTS[::10]
    for arguments in (DataArguments(), DataArguments(shuffle_seed=3), DataArguments(shuffle_seed=4, max_examples=5)):
        rest, held = arguments.divided(path, 10)
        assert list(held) == expected
        assert not set(rest) & set(expected)


def test_limits_are_those_asked_for(path):
    taken = list(DataArguments(shuffle_seed=3, max_examples=5).source(path))
    assert len(taken) == 5
    assert taken != TEXTS[:5]


def test_settings_of_a_run_say_how_its_data_was_read():
    options = {"text_column": "body", "data_args": ("revision=main",)}
    found = reading_of({**DataArguments(**options).to_dict(), "model": "other settings", "data": "x"})
    assert found == TextReading(**options)


def test_arguments_of_the_library_are_read(monkeypatch):
    import datasets

    asked = {}

    def load(name, **arguments):
        asked.update(arguments)
        return datasets.Dataset.from_dict({"text": TEXTS})

    monkeypatch.setattr(datasets, "load_dataset", load)
    DataArguments(data_args=("revision=main", "num_proc=2", "trust=true")).source("user/name")
    assert asked == {"split": "train", "streaming": True, "revision": "main", "num_proc": 2, "trust": True}
    with pytest.raises(ConfigError, match="give name=value"):
        DataArguments(data_args=("revision",)).source("user/name")


@pytest.mark.parametrize(
    ("asked", "expected", "warned"),
    [
        ({}, TEXTS[::10], False),
        ({"shuffle_seed": 2}, TEXTS[::10], False),
        ({"max_examples": 3}, TEXTS[:3], True),  # and shuffled as in training
    ],
)
def test_evaluation_reads_what_was_held_out_unless_it_is_told_otherwise(
    path, asked, expected, warned, caplog, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    trained = {**DataArguments(shuffle_seed=2).to_dict(), "data": path, "held_out_every": 10}
    arguments = EvaluateArguments(dictionaries=("any",), **asked)
    found = list(read_text(arguments, arguments.data, text_of({"run": trained})))
    assert found == (list(DataArguments(shuffle_seed=2, **asked).source(path)) if warned else expected)
    assert len(found) == len(expected)
    assert ("may be evaluated on" in caplog.text) == warned


@pytest.mark.parametrize("options", [[], ["--on-bad-document", "skip"]])
def test_bad_record_is_an_error_or_skipped_as_the_shell_asks(options, tmp_path, monkeypatch):
    monkeypatch.setattr("dictionary_learning.models.load_tokenizer", lambda *_: tiny.tokenizer())
    (tmp_path / "a.jsonl").write_text('{"text": "w1"}\n{"text": null}\n{"text": "w2"}\n')
    out = tmp_path / "out"
    status = main(["pretokenize", str(tmp_path / "a.jsonl"), "--model", "m", "--out", str(out), *options])
    if options:
        assert status == 0 and [row.ids for row in as_source(out)] == [[0, 4, 0, 5]]
    else:
        assert status == 2 and not out.exists()
