"""A run's folder belongs to one process, and to one run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dictionary_learning._run_folder import (
    LOCK,
    claim_run_folder,
    new_folder,
    point_latest_at,
    remove_run,
    resolve_latest,
)
from dictionary_learning.errors import ConfigError

HOLD = """
import sys, time
from dictionary_learning._run_folder import claim_run_folder
with claim_run_folder(sys.argv[1]):
    print("claimed", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that has claimed a folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "claimed\n"
    yield process
    process.kill()
    process.communicate()


def test_folder_of_another_process_is_refused_and_taken_over_after_its_death(tmp_path, holder):
    with pytest.raises(ConfigError, match=f"Process {holder.pid} .* writes into"), claim_run_folder(tmp_path):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / LOCK).exists()
    with claim_run_folder(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_lock_of_an_older_process_of_the_same_number_is_stale(tmp_path, holder):
    lock = json.loads((tmp_path / LOCK).read_text())
    (tmp_path / LOCK).write_text(json.dumps({**lock, "started": "another time"}))
    with claim_run_folder(tmp_path):
        pass


def test_lock_of_another_machine_is_respected(tmp_path):
    (tmp_path / LOCK).write_text(json.dumps({"pid": 1, "started": "1", "host": "elsewhere"}))
    with pytest.raises(ConfigError, match="Process 1 on elsewhere"), claim_run_folder(tmp_path):
        pass


@pytest.mark.parametrize("written", ["trainer_0/dictionary.safetensors", "metrics.jsonl", "trainer_3/x", "trainer_0"])
def test_folder_with_a_run_is_refused_or_cleared(tmp_path, written):
    for path in (tmp_path / written, tmp_path / "notes.txt", tmp_path / "report.html"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    with pytest.raises(ConfigError, match="holds another run"), claim_run_folder(tmp_path):
        pass
    assert (tmp_path / written).exists() and not (tmp_path / LOCK).exists()
    with claim_run_folder(tmp_path, keep=True):
        remove_run(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == [LOCK, "notes.txt"]


def test_claims_nest_and_are_given_up_on_an_error(tmp_path):
    folder = tmp_path / "new"
    with pytest.raises(ZeroDivisionError), claim_run_folder(folder):
        (folder / "metrics.jsonl").write_text("x")
        with claim_run_folder(folder) as inner:  # as trainSAE does within the command line
            assert inner == folder
        assert (folder / LOCK).exists()
        raise ZeroDivisionError
    assert [path.name for path in folder.iterdir()] == ["metrics.jsonl"]


def test_folder_of_a_run_that_wrote_nothing_goes(tmp_path):
    with claim_run_folder(tmp_path / "new"):
        pass
    assert not (tmp_path / "new").exists()


def test_a_file_in_its_place_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="cannot be a run's folder"), claim_run_folder(tmp_path / "file"):
        pass


def test_new_folders_have_names_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda _: "20260101-120000")
    folders = []
    for _ in range(3):
        folders.append(new_folder(tmp_path, "Owner Model/x", "top_k"))
        folders[-1].mkdir()
    assert [folder.name for folder in folders] == [
        f"20260101-120000-Owner-Model-x-top_k{end}" for end in ("", "-2", "-3")
    ]


@pytest.mark.parametrize("has_links", [True, False])
def test_latest_names_the_newest_run(tmp_path, monkeypatch, has_links):
    if not has_links:
        monkeypatch.setattr(os, "symlink", lambda *_, **__: (_ for _ in ()).throw(OSError("no links here")))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "which").write_text(name)
        point_latest_at(tmp_path / name)
        resolved = resolve_latest(str(tmp_path / "latest"))
        assert (Path(resolved) / "which").read_text() == name
    assert resolve_latest(str(tmp_path / "a")) == str(tmp_path / "a")


def test_a_real_folder_called_latest_stays(tmp_path, caplog):
    (tmp_path / "latest").mkdir()
    (tmp_path / "a").mkdir()
    point_latest_at(tmp_path / "a")
    assert not (tmp_path / "latest").is_symlink() and "folder of its own" in caplog.text


def test_files_of_the_users_are_no_run_and_stay(tmp_path):
    mine = ["trainer_notes.md", "trainer_best/x", "tensorboard/mine", "checkpoints/mine.pt", "metrics.jsonl.bak"]
    runs = ["trainer_12/x", "checkpoints/step_3/x", "checkpoints/.step_4.ab.unfinished/x", "report.md",
            "tensorboard/events.out.tfevents.1.host.2.0", "metrics.jsonl"]  # fmt: skip

    def write(names):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text("x")

    write(mine)
    with claim_run_folder(tmp_path):  # is no run
        pass
    write(runs)
    with pytest.raises(ConfigError, match="holds another run"), claim_run_folder(tmp_path):
        pass
    remove_run(tmp_path)
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert left == sorted(mine)
