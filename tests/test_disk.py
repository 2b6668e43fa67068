"""Files are complete or absent, and the process is left as it was."""

import os
import stat
import threading

import pytest

from dictionary_learning._disk import remove_unfinished, write_atomically, write_json


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize("mask", [0o000, 0o022, 0o027, 0o077])
def test_files_have_the_mode_that_the_umask_gives(mask, tmp_path):
    before = os.umask(mask)
    try:
        write_json(tmp_path / "a.json", {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o666 & ~mask


def test_the_umask_of_the_process_is_not_touched(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask is of all threads"))
    write_json(tmp_path / "a.json", {"a": 1})


def test_failed_writes_leave_the_old_file_and_nothing_else(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(ZeroDivisionError):
        write_atomically(tmp_path / "a.json", lambda path: 1 / 0)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == '{\n  "a": 1\n}\n'


def test_many_threads_write_one_file(tmp_path):
    threads = [threading.Thread(target=write_json, args=(tmp_path / "a.json", {"n": n})) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_what_a_killed_writer_left_is_removed(tmp_path):
    (tmp_path / ".a.json.0123.unfinished").write_text("half")
    remove_unfinished(tmp_path)
    assert list(tmp_path.iterdir()) == []
