"""A reader of standard output that leaves, as `head -0`, harms nothing; the exit status is that of the work."""

import json
import logging
import os
import shlex
import sys

import pytest

from dictionary_learning import _saving
from dictionary_learning.cli import main
from dictionary_learning.cli._output import write_line
from tests.cli.test_cli import folder, train  # noqa: F401  (a fixture)


@pytest.fixture(params=[1, -1], ids=["by lines", "by blocks"])
def closed(request, monkeypatch):
    """Makes standard output a pipe whose reader has left."""
    opened = []

    def close():
        reader, writer = os.pipe()
        os.close(reader)
        opened.append(os.fdopen(writer, "w", buffering=request.param))
        monkeypatch.setattr(sys, "stdout", opened[-1])

    yield close
    for file in opened:
        file.close()


def test_a_run_is_complete(folder, closed, caplog):  # noqa: F811
    caplog.set_level(logging.INFO)
    closed()
    assert train(folder, "--layers", "1", "--k", "2") == 0
    assert "failed" not in caplog.text and "Pages of their latents" in caplog.text
    assert json.loads((folder / "run" / "report.json").read_text())["dictionaries"]
    for name, words in {
        "evaluate": ["--save-dir", str(folder / "again")],
        "info": [],
        "dashboard": ["--save-dir", str(folder / "pages")],
    }.items():
        read = ["--model", str(folder / "model"), "--data", str(folder / "text.jsonl"), "--n-tokens", "64"]
        closed()
        assert main([name, str(folder / "run"), *(read if words else []), *words]) == 0
    assert (folder / "again" / "report.html").is_file() and (folder / "pages" / "index.html").is_file()


@pytest.mark.parametrize("status", [0, 1])
def test_the_status_is_that_of_the_work(closed, monkeypatch, status):
    def run(*_):
        write_line("a result")
        return status

    monkeypatch.setattr("dictionary_learning.cli._run", run)
    closed()
    assert main(["info"]) == status


def test_help_ends_as_always(closed):
    closed()
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "--help"])
    assert ended.value.code == 0


def test_a_pipe_that_breaks_elsewhere_is_an_error(monkeypatch, caplog):
    def run(*_):
        raise BrokenPipeError("the other side of a connection left")

    monkeypatch.setattr("dictionary_learning.cli._run", run)
    assert main(["info"]) == 2 and "connection" in caplog.text


@pytest.mark.parametrize("room", ["beside", "nowhere"])
def test_what_a_full_disk_has_no_room_for_is_said_to_be_where_it_is(folder, tmp_path, caplog, monkeypatch, room):  # noqa: F811
    """Every line names the place, the command that evaluates can be run, and the status is that of an error."""
    caplog.set_level(logging.INFO)
    run, save = tmp_path / "full" / "run", _saving._save

    def fails(dictionary, place, *further):
        if str(place).startswith(str(run)):
            raise OSError("No space left on device")
        return save(dictionary, place, *further)

    def no_room(*_, **__):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(_saving, "_save", fails)
        patch.setattr("dictionary_learning.evaluation.reports.write_report", no_room)
        if room == "nowhere":
            patch.setattr(_saving.tempfile, "mkdtemp", no_room)
        assert train(folder, "--layers", "1", "--k", "2", "--save-dir", str(run)) == 2
    places = [str(place / "trainer_0") for place in run.parent.glob("run-*")]
    assert len(places) == (room == "beside")
    last = caplog.messages[-1]
    assert f"'{run}'" not in last and "Saved" not in caplog.text
    assert (
        f"Not all dictionaries are in '{run}': trainer_0 is {f'in {places[0]!r}' if places else 'nowhere'}"
        in caplog.text
    )
    if places:
        words = shlex.split(last.rpartition("dictionary-learning ")[2])
        assert words[:2] == ["evaluate", places[0]]
        assert main([*words, "--save-dir", str(tmp_path / "report")]) == 0
