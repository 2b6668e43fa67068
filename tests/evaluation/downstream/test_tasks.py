"""Labelled texts: every form gives the same task, and what is odd is refused or left out aloud."""

import gzip
import json
import logging
import math
import zipfile

import datasets
import numpy as np
import pytest
import zstandard

from dictionary_learning.errors import ConfigError, DataError, MissingDependencyError, UnknownNameError
from dictionary_learning.evaluation.downstream import ProbeTask, as_probe_tasks, sae_probes_tasks
from dictionary_learning.evaluation.downstream._splitting import split_task

ROWS = [('a cat, or "two"', "yes"), ("a dog\nof två", "no"), ("ein Haus 家", "yes"), ("🙂 again", "no")]
TASK = ProbeTask("task", tuple(text for text, _ in ROWS), (1, 0, 1, 0), ("no", "yes"))


def csv_bytes(delimiter=","):
    lines = ["text{0}label"] + ['"' + text.replace('"', '""') + '"{0}' + label for text, label in ROWS]
    return "\n".join(lines).format(delimiter).encode("utf-8-sig")


def jsonl_bytes():
    return "\n".join(json.dumps({"prompt": text, "target": label}) for text, label in ROWS).encode()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("task.csv", csv_bytes()),
        ("task.tsv", csv_bytes("\t")),
        ("task.jsonl", jsonl_bytes()),
        ("task.jsonl", "\n".join(json.dumps(row) for row in ROWS).encode()),
        ("task.csv.gz", gzip.compress(csv_bytes())),
        ("task.csv.zst", zstandard.ZstdCompressor().compress(csv_bytes())),
    ],
)
def test_files_of_every_form_are_the_same_task(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    assert as_probe_tasks(tmp_path / name) == [TASK]
    assert as_probe_tasks(str(tmp_path)) == [TASK]


@pytest.mark.parametrize(
    "given",
    [
        ROWS,
        [{"sentence": text, "class": label} for text, label in ROWS],
        {"text": [text for text, _ in ROWS], "labels": [label for _, label in ROWS]},
        datasets.Dataset.from_dict({"text": [t for t, _ in ROWS], "label": [label for _, label in ROWS]}),
        datasets.Dataset.from_dict({"text": [t for t, _ in ROWS], "label": [1, 0, 1, 0]}).cast_column(
            "label", datasets.ClassLabel(names=["no", "yes"])
        ),
        {"task": ROWS},
        [TASK],
        iter(ROWS),
    ],
    ids=["pairs", "rows", "columns", "dataset", "class labels", "named", "tasks", "iterator"],
)
def test_objects_of_every_form_are_the_same_task(given):
    assert as_probe_tasks(given) == [TASK]


def test_long_texts_of_csv_are_read(tmp_path):
    long = "word, " * 40_000
    (tmp_path / "a.csv").write_text(f'text,label\n"{long}",1\n"b\nc",\n', encoding="utf-8")
    with pytest.raises(DataError, match="Example 2 .* has the label ''"):
        as_probe_tasks(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text(f'text,label\n"{long}",1\n"b\nc",0\n', encoding="utf-8")
    assert as_probe_tasks(tmp_path / "a.csv")[0].texts == (long, "b\nc")


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([True, False, True, False], ("False", "True")),
        ([1, "1", 1.0, 0], ("0", "1")),
        ([10, 9, 10, 9], ("9", "10")),
        (np.array([3, 1, 3, 1]), ("1", "3")),
        ([" ja ", "nein", "ja", "nein"], ("ja", "nein")),
    ],
)
def test_labels_of_one_meaning_are_one_class(labels, classes):
    task = as_probe_tasks({"text": list("abcd"), "label": labels})[0]
    assert task.classes == classes


@pytest.mark.parametrize("label", [None, math.nan, "", " ", "nan", "NaN", 0.5, [1], np.nan])
def test_missing_labels_and_numbers_are_refused(label):
    with pytest.raises(DataError, match=r"Example 2 .*'b'.* has the label"):
        as_probe_tasks([("a", 1), ("b", label)])


def test_empty_and_repeated_texts_are_left_out_aloud(caplog):
    rows = [("a", 0), ("a", 0), ("", 1), ("  ", 1), ("b", 0), ("b", 1), ("c", 1)]
    with caplog.at_level(logging.WARNING):
        assert as_probe_tasks(rows)[0].texts == ("a", "c")
    assert "left out 2 empty texts, 2 repeated ones, and 1 texts with several labels" in caplog.text


def test_tasks_of_one_name_get_a_number():
    assert [task.name for task in as_probe_tasks([TASK, TASK, {"other": ROWS}])] == ["task", "task #2", "other"]


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ([], DataError, "no task"),
        (7, ConfigError, "tasks=7"),
        ([("a", 1, 2)], ConfigError, r"\(text, label\)"),
        ([{"words": "a", "label": 1}], DataError, "no column text or prompt"),
        ([(3, 1)], DataError, "has 3 as text"),
        ({"text": ["a"], "label": [1, 2]}, DataError, "1 texts and 2 labels"),
        ([(str(n), n) for n in range(300)], DataError, "300 different labels"),
        ("nowhere.csv", DataError, "nowhere.csv"),
        ("nowhere.xlsx", DataError, "nowhere.xlsx"),
    ],
)
def test_what_is_no_task_is_refused(given, error, said):
    with pytest.raises(error, match=said):
        as_probe_tasks(given)


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b"\x28\xb5\x2f\xfd\x00", b"{", b'"a', b""])
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "csv.zst", "csv.gz"])
def test_damaged_files_are_refused(tmp_path, suffix, data):
    (tmp_path / f"a.{suffix}").write_bytes(data)
    with pytest.raises(DataError):
        as_probe_tasks(tmp_path / f"a.{suffix}")


PACKERS = {".zst": zstandard.ZstdCompressor().compress, ".gz": gzip.compress}


@pytest.mark.parametrize("suffix", PACKERS)
def test_several_frames_are_read_and_a_cut_file_is_refused(tmp_path, suffix):
    pack, path = PACKERS[suffix], tmp_path / f"task.csv{suffix}"
    lines = csv_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(map(pack, lines)))
    assert as_probe_tasks(path) == [TASK]
    # each cut but those between frames, where nothing tells what is missing
    whole = pack(csv_bytes())
    for n in range(1, len(whole)):
        path.write_bytes(whole[:n])
        with pytest.raises(DataError, match="cannot be read"):
            as_probe_tasks(path)


@pytest.fixture
def wheel(tmp_path):
    """A wheel as that of sae-probes 0.4.2 is made, with two binary tasks."""
    path = tmp_path / "sae_probes-0.4.2-py3-none-any.whl"
    pack = zstandard.ZstdCompressor().compress
    master = "Dataset Tag,Dataset save name,Data type\n"
    master += "one,cleaned_data/5_one.csv,Binary Classification\ntwo,cleaned_data/6_two.csv,Binary Classification\n"
    master += "three,cleaned_data/7_three.csv,Continuous Data\n"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("sae_probes/data/probing_datasets_MASTER.csv.zst", pack(master.encode()))
        for name in ("5_one", "6_two", "7_three"):
            rows = "prompt,prompt_len,target\na,2,0\nb,2,1\n"
            file.writestr(f"sae_probes/data/cleaned_data/{name}.csv.zst", pack(rows.encode()))
    return path


def test_the_wheel_of_sae_probes_is_read_in_place_and_unpacked(wheel, tmp_path):
    found = sae_probes_tasks("all", path=wheel)
    assert [task.name for task in found] == ["5_one", "6_two"]
    assert found[0] == ProbeTask("5_one", ("a", "b"), (0, 1), ("0", "1"))
    zipfile.ZipFile(wheel).extractall(tmp_path / "there")
    for place in (tmp_path / "there", tmp_path / "there" / "sae_probes"):
        assert sae_probes_tasks("two", path=place) == [found[1]]


def test_sae_probes_says_what_is_missing(wheel, tmp_path, monkeypatch):
    with pytest.raises(UnknownNameError, match="7_three"):
        sae_probes_tasks(["7_three"], path=wheel)
    with pytest.raises(DataError, match="no data of sae-probes"):
        sae_probes_tasks(path=tmp_path)
    (tmp_path / "no.whl").write_text("x")
    with pytest.raises(DataError, match="no wheel"):
        sae_probes_tasks(path=tmp_path / "no.whl")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="sae-probes"):
        sae_probes_tasks()


def big(sizes, seed=0):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    return ProbeTask(
        "t", tuple(f"w{n}" for n in range(len(labels))), tuple(labels.tolist()), tuple(map(str, range(len(sizes))))
    )


@pytest.mark.parametrize("sizes", [(40, 40), (200, 11), (30, 50, 9), (4, 4)])
@pytest.mark.parametrize("balanced", [True, False])
def test_no_text_is_in_training_and_test(sizes, balanced):
    task = big(sizes)
    split = split_task(task, n_train=50, n_test=20, balanced=balanced, seed=1)
    assert len(set(split.texts)) == len(split.texts)
    assert len(split.problems) == (1 if len(sizes) == 2 else len(sizes))
    by_text = dict(zip(task.texts, task.labels, strict=True))
    for problem in split.problems:
        assert problem.train.max() < split.n_train <= problem.test.min()
        for part in (problem.train, problem.test):
            assert [task.classes[by_text[split.texts[n]]] == problem.name for n in part] == problem.truth[part].tolist()
            assert 0 < problem.truth[part].sum() < len(part)
            if balanced:
                assert 2 * problem.truth[part].sum() == len(part)
    again = split_task(task, n_train=50, n_test=20, balanced=balanced, seed=1)
    assert again.texts == split.texts
    assert split_task(task, n_train=50, n_test=20, balanced=balanced, seed=2).texts != split.texts


@pytest.mark.parametrize("sizes", [(10,), (10, 3), ()])
def test_one_class_is_no_task(sizes):
    with pytest.raises(DataError, match="two classes with at least 4"):
        split_task(big(sizes), n_train=50, n_test=20, balanced=True, seed=0)
