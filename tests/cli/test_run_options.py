"""Options of `train` about checkpoints, caches and devices, and the command that it prints: by what comes out."""

import json
import shlex
import shutil

import pytest
import torch

from dictionary_learning import load_dictionary, trainSAE
from dictionary_learning.activations.cache import ActivationCache
from dictionary_learning.cli import build_parser, main
from dictionary_learning.cli._arguments import read_config
from dictionary_learning.cli._parser import without
from dictionary_learning.cli._train_data import make_source
from dictionary_learning.cli._train_options import TrainArguments
from dictionary_learning.interpretation import ContextStore
from dictionary_learning.trainers import TrainerTopK
from tests import tiny
from tests.cli.test_cli import arguments, cache, folder, train  # noqa: F401  (a fixture)

SITE = ("--sites", "transformer.h.1", "--k", "2", "--dtype", "float32")
QUICK = ("--n-fidelity-tokens", "0", "--n-resamples", "0", "--n-geometry-latents", "0", "--ablations", "none")


def once(folder, *options: str) -> int:  # noqa: F811
    """Trains in a folder that is not overwritten."""
    instead = {word: True for word in options if word.startswith("--")} | {"--overwrite": False}
    return main([*without(arguments(folder), instead), *options])


def weights(run) -> bytes:
    return (run / "trainer_0" / "dictionary.safetensors").read_bytes()


def logged(run) -> list[dict]:
    return [{**json.loads(line), "seconds": 0} for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def held(folder):  # noqa: F811
    """A cache of all rows in several files."""
    assert cache(folder, "--dtype", "float32") == 0
    return folder / "cache"


def test_resume_from_ends_with_the_bytes_of_resume_and_of_a_whole_run(folder, tmp_path, monkeypatch):  # noqa: F811
    options = (*SITE, *QUICK, "--checkpoint-steps", "8", "--log-steps", "1", "--keep-checkpoints", "9")
    whole, same, other = (tmp_path / name for name in ("whole", "same", "other"))
    assert train(folder, *options, "--save-dir", str(whole)) == 0
    # a run that was killed after step 8
    shutil.copytree(whole, same)
    shutil.rmtree(same / "trainer_0")
    for later in ("step_16", "step_20"):
        shutil.rmtree(same / "checkpoints" / later)
    assert once(folder, *options, "--save-dir", str(same), "--resume") == 0
    assert once(folder, *options, "--save-dir", str(other), "--resume-from", str(whole / "checkpoints" / "step_8")) == 0
    assert weights(whole) == weights(same) == weights(other)
    assert [one["step"] for one in logged(other)] == list(range(9, 21))
    assert logged(other) == logged(whole)[8:] == logged(same)[8:]
    # of a run, its newest checkpoint: the last step, after which nothing is left to do
    newest = tmp_path / "newest"
    assert once(folder, *options, "--save-dir", str(newest), "--resume-from", str(whole)) == 0
    assert weights(newest) == weights(whole) and (whole / "checkpoints" / "step_8").is_dir()


CACHES = {
    (): {"seed": 0},
    ("--cache-window", "1"): {"seed": 0, "window": 1},
    ("--cache-order", "false"): {"seed": None},
    ("--storage-device", tiny.DEVICE): {"seed": 0, "device": tiny.DEVICE},
}


@pytest.mark.parametrize("said", CACHES, ids=" ".join)
def test_rows_of_a_cache_are_those_of_python_and_so_is_the_run(held, said, tmp_path):
    line = [
        "--cache",
        str(held),
        "--batch-size",
        "32",
        "--n-tokens",
        "320",
        "--device",
        tiny.DEVICE,
        "--sites",
        "transformer.h.1",
        *said,
    ]
    parsed = read_config(build_parser("train", line).read(line), TrainArguments)
    ours = make_source(parsed, None, None, [TrainerTopK.Config(k=2)])
    theirs = ActivationCache(held, ["transformer.h.1"], out_batch_size=32, end_of_data="repeat", **CACHES[said])
    pairs = [(next(ours), next(theirs)) for _ in range(8)]
    assert all(torch.equal(x, y) and x.device == y.device for x, y in pairs)
    assert main(["train", *line, "--k", "2", "--dict-size", "48", "--save-dir", str(tmp_path / "run")]) == 0
    theirs = ActivationCache(held, ["transformer.h.1"], out_batch_size=32, end_of_data="repeat", **CACHES[said])
    config = TrainerTopK.Config(k=2, dict_size=48)
    trainSAE(theirs, config, 10, save_dir=tmp_path / "python", progress=False, device=tiny.DEVICE)
    assert weights(tmp_path / "run") == weights(tmp_path / "python")


def test_these_orders_of_a_cache_are_different_and_of_the_same_rows(held):
    found = {}
    for said, options in CACHES.items():
        rows = torch.cat(list(ActivationCache(held, ["transformer.h.1"], out_batch_size=32, **options))).cpu()
        found[said] = rows
    plain, window, written, device = found.values()
    for rows in found.values():
        assert torch.equal(rows.sort(0).values, plain.sort(0).values)
    assert not torch.equal(plain, window) and not torch.equal(plain, written) and torch.equal(plain, device)


def test_a_buffer_lies_where_it_is_told(folder, tmp_path):  # noqa: F811
    options = (*SITE, *QUICK)
    assert train(folder, *options, "--save-dir", str(tmp_path / "a")) == 0
    assert train(folder, *options, "--save-dir", str(tmp_path / "b"), "--storage-device", tiny.DEVICE) == 0
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    instead = {word: True for word in options if word.startswith("--")}
    line = [*without(arguments(folder)[1:], instead), *options, "--storage-device", tiny.DEVICE]
    parsed = read_config(build_parser("train", line).read(line), TrainArguments)
    source = make_source(
        parsed, parsed.load(parsed.model), parsed.divided(parsed.data, 10)[0], [TrainerTopK.Config(k=2)]
    )
    assert next(source).device.type == tiny.DEVICE


def test_the_command_that_train_prints_writes_the_pages(folder, monkeypatch, caplog, capsys):  # noqa: F811
    monkeypatch.chdir(folder)
    caplog.set_level("INFO")
    assert train(folder, *SITE, "--expansion-factor", "2", "--n-resamples", "0") == 0
    run = folder / "run"
    (advice,) = [one.getMessage() for one in caplog.records if "Pages of their latents" in one.getMessage()]
    words = shlex.split(advice.partition(": ")[2])
    capsys.readouterr()
    assert words[0] == "dictionary-learning" and main(words[1:]) == 0
    page = capsys.readouterr().out.strip()
    assert page == str(run / "latents" / "index.html")
    name = load_dictionary(run / "trainer_0").info.name
    store = ContextStore.open(run / "latents" / "contexts")
    assert list(store) == [name] and store[name].dict_size == 2 * tiny.DIM and store.model["dtype"] == "float32"
    shown = (run / "latents" / "data" / "manifest.js").read_text()
    assert name in shown and "latents/index.html" in (run / "report.html").read_text()
