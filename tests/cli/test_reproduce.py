"""`reproduce` repeats a run of the shell, and `train --dry-run` says what one needs."""

import json
import shutil
import subprocess

import pytest
import torch
from safetensors.torch import load_file, save_file

from dictionary_learning import load_dictionary, trainSAE
from dictionary_learning._disk import sha256_of
from dictionary_learning._run_folder import DRAWN_SEEDS
from dictionary_learning.cli import _reproduce, main
from tests.cli.test_cli import arguments, folder, train  # noqa: F401  (a fixture)
from tests.tiny import Planted

SITE = ("--sites", "transformer.h.1", "--k", "2")


@pytest.fixture(scope="module")
def once(folder):  # noqa: F811
    assert train(folder, *SITE, "--seed", "3", "--save-dir", str(folder / "once")) == 0
    return folder / "once"


@pytest.fixture
def run(once, tmp_path):
    """A copy of a run, to be changed."""
    return shutil.copytree(once, tmp_path / "runs" / "run")


def edit(path, **changes):
    document = json.loads(path.read_text())
    for name, change in changes.items():
        change(document[name])
    path.write_text(json.dumps(document))


def test_a_run_of_the_shell_is_repeated_to_the_same_bytes(run, capsys, tmp_path):
    """Once in a new process; the other tests stand for it with a copy."""
    capsys.readouterr()
    assert main(["reproduce", str(run), "--save-dir", str(tmp_path / "again")]) == 0
    assert capsys.readouterr().out == "trainer_0: the same bytes\n"
    first, second = (json.loads((place / "run.json").read_text()) for place in (run, tmp_path / "again"))
    assert {**first, "volatile": 0} == {**second, "volatile": 0}
    assert "--save-dir" not in first["command"] and "--overwrite" not in first["command"]
    assert first["seeds"] == {"trainers.0.seed": 3, "data.seed": 3}


def test_a_run_without_a_seed_is_repeated_with_the_one_it_drew(folder, tmp_path, monkeypatch, capsys):  # noqa: F811
    assert (
        train(
            folder, "--sites", "transformer.h.1", "--k", "2", "4", "--seed", "none", "--save-dir", str(tmp_path / "r")
        )
        == 0
    )

    real = subprocess.run

    def here(words, **options):
        if "train" not in words:
            return real(words, **options)
        env = options["env"]
        monkeypatch.setenv(DRAWN_SEEDS, env[DRAWN_SEEDS])
        return subprocess.CompletedProcess(words, main(words[words.index("train") :]))

    monkeypatch.setattr(_reproduce.subprocess, "run", here)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert main(["reproduce", str(tmp_path / "r"), "--save-dir", str(tmp_path / "again")]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [f"trainer_{n}: the same bytes" for n in range(2)]


def test_a_repetition_beside_the_run_stays_only_where_it_differs(run, monkeypatch):
    def repeat(command, again, document):
        shutil.copytree(run, again)
        return 0

    monkeypatch.setattr(_reproduce, "_run_again", repeat)
    before = set(run.parent.iterdir())
    assert main(["reproduce", str(run)]) == 0 and set(run.parent.iterdir()) == before

    def damaged(command, again, document):
        repeat(command, again, document)
        edit(again / "run.json", dictionaries=lambda d: d.update(trainer_0="0"))
        return 0

    monkeypatch.setattr(_reproduce, "_run_again", damaged)
    assert main(["reproduce", str(run)]) == 1
    (kept,) = set(run.parent.iterdir()) - before
    assert "again" in kept.name
    shutil.rmtree(kept)


def test_what_differs_is_shown_relative_to_the_largest_value(run, capsys, tmp_path, monkeypatch):
    def repeat(command, again, document):
        shutil.copytree(run, again)
        path = again / "trainer_0" / "dictionary.safetensors"
        tensors = load_file(path)
        tensors["b_dec"] += 0.5 * tensors["b_dec"].abs().max()
        save_file(tensors, path)
        edit(
            again / "run.json",
            dictionaries=lambda d: d.update(trainer_0=sha256_of(path)),
            environment=lambda e: e["versions"].update(torch="9.9"),
        )
        return 0

    monkeypatch.setattr(_reproduce, "_run_again", repeat)
    capsys.readouterr()
    assert main(["reproduce", str(run), "--save-dir", str(tmp_path / "again")]) == 1
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("trainer_0: differs: W_dec 0, W_enc 0, b_dec 0.5, b_enc 0")
    assert (
        len(shown) == 2 and shown[1].startswith("environment.versions.torch: '") and shown[1].endswith("', now '9.9'")
    )
    shutil.rmtree(tmp_path / "again" / "trainer_0")
    monkeypatch.setattr(_reproduce, "_run_again", lambda *_: 0)
    assert main(["reproduce", str(run), "--save-dir", str(tmp_path / "again")]) == 1
    assert "trainer_0: not in the repetition" in capsys.readouterr().out
    (run / "trainer_0" / "dictionary.safetensors").write_bytes(b"")
    assert main(["reproduce", str(run), "--save-dir", str(tmp_path / "again")]) == 1
    assert "is not what the run wrote" in capsys.readouterr().out


def test_a_run_in_the_format_of_another_package_is_compared_too(folder, capsys, tmp_path, monkeypatch):  # noqa: F811
    assert train(folder, *SITE, "--seed", "3", "--save-format", "dictionary_learning") == 0
    run = folder / "run"

    def repeat(command, again, document):
        shutil.copytree(run, again)
        state = torch.load(run / "trainer_0" / "ae.pt", weights_only=True)
        state["b_dec"] += 0.5 * state["b_dec"].abs().max()
        torch.save(state, again / "trainer_0" / "ae.pt")
        changed = sha256_of(again / "trainer_0" / "ae.pt")
        edit(again / "run.json", dictionaries=lambda d: d.update(trainer_0=changed))
        return 0

    monkeypatch.setattr(_reproduce, "_run_again", repeat)
    capsys.readouterr()
    assert main(["reproduce", str(run), "--save-dir", str(tmp_path / "again")]) == 1
    assert "trainer_0: differs: b_dec 0.5, decoder.weight 0" in capsys.readouterr().out


def test_what_cannot_be_repeated_says_why(run, caplog, tmp_path, monkeypatch):
    trainSAE(
        list(Planted().batches(2, 64)), {"trainer": "top_k", "k": 3, "dict_size": 48}, 2, save_dir=tmp_path / "python",
        progress=False, device="cpu",
    )  # fmt: skip
    cases = {
        "was trained from Python": {},
        "not finished (step 7)": {
            "volatile": lambda v: v.update(sessions=[{"outcome": "Interrupted", "last_step": 7}])
        },
        "had a password or token": {"command": lambda c: c.extend(["--data-args", "token=(not stored)"])},
        "which is not here": {"volatile": lambda v: v.update(directory=str(tmp_path / "gone"))},
    }
    for number, (message, changes) in enumerate(cases.items()):
        place = tmp_path / "python" if not changes else tmp_path / str(number)
        if changes:
            shutil.copytree(run, place)
            edit(place / "run.json", **changes)
        caplog.clear()
        assert main(["reproduce", str(place)]) == 2
        assert message in caplog.text
    assert main(["reproduce", str(tmp_path)]) == 2 and "has no run.json" in caplog.text
    monkeypatch.setattr(_reproduce, "_run_again", lambda *_: 75)
    assert main(["reproduce", str(run)]) == 75


def test_a_dry_run_shows_the_plan_and_writes_nothing(folder, capsys):  # noqa: F811
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    capsys.readouterr()
    plan = ["--save-dir", str(folder / "dry"), "--checkpoint-steps", "5", "--dry-run"]
    assert train(folder, *SITE, "--lr", "1e-3", "1e-4", *plan) == 0
    shown = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    shown = {name: value.strip() for name, value in shown.items()}
    assert shown["tokens to train on"] == "640" and shown["steps"] == "20 of 32 tokens"
    assert int(shown["tokens to read, about"].replace(",", "")) > 640
    assert shown["dictionaries"].startswith("2 with ") and shown["disk: checkpoints"].startswith("3 x ")
    assert shown["names"] == "top_k-2, top_k-2 #2" and shown["sites"] == "transformer.h.1:out"
    times = ("time: activations", "time: training", "time: evaluation at the end, about", "time: all, without loading")
    for name in ("memory: model", "memory: optimizer", "disk: all", *times):
        assert shown[name][0].isdigit()
    assert not (folder / "dry").exists()
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_dry_run_tells_the_time_of_evaluations_while_training(folder, capsys):  # noqa: F811
    capsys.readouterr()
    assert train(folder, *SITE, "--evaluate-every", "5", "--dry-run") == 0
    assert "time: evaluations in training" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["temporal", "end_to_end"])
def test_a_dry_run_of_methods_on_contexts(folder, capsys, method):  # noqa: F811
    assert train(folder, *SITE, "--trainer", method, "--dry-run") == 0
    assert "time: training" in capsys.readouterr().out


def test_a_dry_run_on_a_cache_and_one_that_does_not_fit(folder, capsys, monkeypatch, tmp_path):  # noqa: F811
    cache = ["--layers", "1", "--out", str(tmp_path / "cache"), "--ctx-len", "16", "--refresh-batch-size", "4"]
    assert main(["cache", str(folder / "model"), str(folder / "text.jsonl"), *cache]) == 0
    command = ["train", "--cache", str(tmp_path / "cache"), "--k", "2", "--n-tokens", "320", "--batch-size", "32"]
    assert main([*command, "--dry-run"]) == 0
    assert "tokens to read" not in capsys.readouterr().out
    monkeypatch.setattr("dictionary_learning.cli._dry_run.free_memory", lambda device: 1000)
    assert main([*command, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert ": too much" in shown and "time: training" not in shown


def test_one_seed_in_the_shell_is_that_of_everything(folder):  # noqa: F811
    for seeds in (["4"], ["5", "4"]):
        assert train(folder, *SITE, "--seed", *seeds) == 0
        configs = [load_dictionary(folder / "run" / f"trainer_{n}").info.config for n in range(len(seeds))]
        assert [config["trainer"]["seed"] for config in configs] == [int(seed) for seed in seeds]
        assert {config["buffer"]["seed"] for config in configs} == {int(seeds[0])}
