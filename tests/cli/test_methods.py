"""Every trainer and recipe trains from the shell, without further options, and builds what its name says."""

import dataclasses
import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dictionary_learning import ActivationBuffer, ContextStream, load_dictionary, load_model, trainSAE
from dictionary_learning.cli import main
from dictionary_learning.cli._options import CaptureArguments
from dictionary_learning.cli._parser import option_of
from dictionary_learning.data import as_source
from dictionary_learning.trainers import TRAINERS, OptimizationConfig
from dictionary_learning.trainers.recipes import RECIPES
from tests import tiny

OPTIONS = [
    "--ctx-len", "16", "--batch-size", "32", "--n-tokens", "64", "--n-ctxs", "8", "--refresh-batch-size", "4",
    "--n-eval-tokens", "32", "--n-fidelity-tokens", "0", "--held-out-every", "5", "--device", "cpu",
]  # fmt: skip
OF_A_RECIPE = {
    "bussmann_2024_batch_top_k": "batch_top_k",
    "sparsify_group_max": "group_max",
    "minder_2025": "batch_top_k",
    "gao_2024": "top_k",
    "dunefsky_2024": "standard",
    "ameisen_2025": "jump_relu",
    "lubana_2025": "temporal",
}


@pytest.fixture(scope="module")
def traced():
    return load_model(tiny.model(), tokenizer=tiny.tokenizer())


@pytest.fixture
def train(traced, tmp_path, monkeypatch):
    """Trains on a small model, without the report's page, and returns the saved configs."""
    monkeypatch.setattr(CaptureArguments, "load", lambda self, model: traced)
    monkeypatch.setattr("dictionary_learning.cli._evaluate.report_on", lambda *_: SimpleNamespace(show=print))
    (tmp_path / "text.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in tiny.documents(30)))

    def run(*options: str) -> list[dict]:
        assert (
            main(
                ["train", "any", str(tmp_path / "text.jsonl"), "--save-dir", str(tmp_path / "run"), *OPTIONS, *options]
            )
            == 0
        )
        return [json.loads(path.read_text()) for path in sorted(tmp_path.glob("run/trainer_*/config.json"))]

    return run


@pytest.mark.parametrize("name", list(RECIPES))
def test_shell_gives_a_recipe_the_options_that_python_gives_it(name, monkeypatch):
    recipe, found = RECIPES[name], []
    monkeypatch.setattr("dictionary_learning.cli._train._train", lambda *arguments: found.extend(arguments[3]))
    several = {"dict_size": [32, 2048], "seed": [3, 4]}
    if hasattr(recipe(), "k"):
        several["k"] = [4, 8]
    words = [word for option, values in several.items() for word in (option_of(option), *map(str, values))]
    assert main(["train", "m", "d", "--recipe", name, *words]) == 0
    names = [field.name for field in dataclasses.fields(recipe()) if field.name in several]
    expected = [
        recipe(**dict(zip(names, each, strict=True))) for each in itertools.product(*(several[one] for one in names))
    ]
    assert found == expected and len(found) == 2 ** len(several)
    for ours, python in zip(found, expected, strict=True):
        run = {"activation_dim": 16, "steps": 10, "device": "cpu"}
        if getattr(ours, "wiring", None) in (None, "autoencoder"):
            assert ours.build(**run).settings == python.build(**run).settings


def test_shell_gives_a_recipe_of_a_user_s_its_options(monkeypatch):
    """A setting that the recipe derives from another."""
    found = []
    monkeypatch.setattr("dictionary_learning.cli._train._train", lambda *arguments: found.extend(arguments[3]))
    monkeypatch.setitem(
        RECIPES._entries, "mine", lambda k=2, **more: TRAINERS["top_k"].Config(k=k, lr=k / 1000, **more)
    )
    assert main(["train", "m", "d", "--recipe", "mine", "--k", "4", "8"]) == 0
    assert [(config.k, config.lr) for config in found] == [(4, 0.004), (8, 0.008)]


@pytest.mark.parametrize("size", [{"dict_size": 2048}, {"expansion_factor": 128}])
def test_rate_of_sparsify_is_that_of_its_size(size):
    settings = RECIPES["sparsify"](**size).build(activation_dim=16, steps=10, device="cpu").settings
    assert settings.lr == pytest.approx(5e-3 * 8**0.5)


@pytest.mark.parametrize("wrong", ["model", "data", "layer", "finetune"])
def test_a_mistake_leaves_the_old_run(train, tmp_path, monkeypatch, wrong):
    options = ["--save-dir", str(tmp_path / "run"), *OPTIONS, "--overwrite", "--expansion-factor", "4"]
    train("--layers", "1", "--tensorboard")
    before = {path: path.read_bytes() for path in sorted((tmp_path / "run").rglob("*")) if path.is_file()}
    more = {
        "layer": ["--layers", "99"],
        "finetune": ["--finetune", str(tmp_path / "run" / "trainer_0"), "--layers", "1"],
    }
    if wrong == "model":
        monkeypatch.undo()  # loads what is named
    place = tmp_path / ("text.jsonl" if wrong != "data" else "none.jsonl")
    assert main(["train", "no/such-model", str(place), *options, *more.get(wrong, [])]) == 2
    assert {path: path.read_bytes() for path in sorted((tmp_path / "run").rglob("*")) if path.is_file()} == before


def test_a_run_that_is_overwritten_keeps_its_own_events(train, tmp_path):
    train("--layers", "1", "--tensorboard", "--expansion-factor", "4")
    old = set((tmp_path / "run" / "tensorboard").iterdir())
    train("--layers", "1", "--tensorboard", "--expansion-factor", "4", "--overwrite")
    new = set((tmp_path / "run" / "tensorboard").iterdir())
    assert len(new) == 1 and new != old


def train_in_python(config: OptimizationConfig, traced, folder: Path) -> None:
    """Trains as a script would that says what `OPTIONS` say."""
    text, _ = as_source(str(folder / "text.jsonl")).hold_out(5)
    shared = {"ctx_len": 16, "end_of_data": "repeat"}
    if config.needs_contexts:
        data = ContextStream(text, traced, "model.layers.1", batch_size=2, predict=config.needs_predictions, **shared)
    else:
        sizes = {"n_ctxs": 8, "refresh_batch_size": 4, "out_batch_size": 32}
        data = ActivationBuffer(text, traced, "model.layers.1", **sizes, **shared)
    trainSAE(data, config, 2, save_dir=folder / "python", progress=False, device="cpu")


@pytest.mark.parametrize("name", [name for name, _ in TRAINERS.items()])
def test_every_trainer_trains_the_same_bits_as_in_python(train, name, traced, tmp_path):
    (config,) = train("--trainer", name, "--sites", "model.layers.1", "--expansion-factor", "4")
    assert config["trainer"]["trainer_class"] == TRAINERS[name].__name__
    train_in_python(TRAINERS[name].Config(expansion_factor=4), traced, tmp_path)
    ours, python = (load_dictionary(tmp_path / run / "trainer_0") for run in ("run", "python"))
    assert ours.info.config["trainer"] == python.info.config["trainer"] == config["trainer"]
    assert type(ours) is type(python)
    for (tensor_name, tensor), other in zip(ours.state_dict().items(), python.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), tensor_name


@pytest.mark.parametrize("way", ["words", "file", "recipe"])
@pytest.mark.parametrize(
    "settings",
    [{"decoder_init_data_share": 0.5}, {"init_encoder_as_decoder_transpose": False}, {"orthogonal_init": True}],
    ids=lambda settings: next(iter(settings)),
)
def test_initial_weights_are_those_of_python_however_they_are_said(train, traced, tmp_path, settings, way):
    common = {"dict_size": 64, "k": 4}
    chosen = {"recipe": "gao_2024"} if way == "recipe" else {"trainer": "top_k"}
    asked = {"sites": ["model.layers.1"], **chosen, **common, **settings}
    if way == "words":
        said = ((option_of(name), str(value[0] if isinstance(value, list) else value)) for name, value in asked.items())
        words = [word for pair in said for word in pair]
    else:
        (tmp_path / "run.json").write_text(json.dumps(asked))
        words = ["--config", str(tmp_path / "run.json")]
    (config,) = train(*words)
    own = TRAINERS["top_k"].Config(**common, **settings)
    # the recipe's settings for a run of this length are those that it wrote
    python = own if way != "recipe" else type(own).from_dict(_settings_in(config["trainer"], type(own)))
    train_in_python(python, traced, tmp_path)
    ours, other = (load_dictionary(tmp_path / run / "trainer_0") for run in ("run", "python"))
    for (name, tensor), same in zip(ours.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(tensor, same), name
    assert {name: config["trainer"][name] for name in settings} == settings


def _settings_in(saved: dict, config: type[OptimizationConfig]) -> dict:
    names = {field.name for field in dataclasses.fields(config)} - {"site", "target_site", "dict_class"}
    return {name: value for name, value in saved.items() if name in names}


@pytest.mark.parametrize("words", [["--threshold-beta", "0.5"], ["--threshold-start-step", "3"]], ids=" ".join)
def test_what_a_method_does_not_read_is_refused_in_the_shell(tmp_path, caplog, monkeypatch, train, words):
    with pytest.raises(AssertionError):
        train("--trainer", "group_max", "--sites", "model.layers.1", *words)
    assert "has no effect with a method that has no threshold" in caplog.text and words[0] in caplog.text
    assert not list(tmp_path.glob("run/trainer_*"))


@pytest.mark.parametrize("name", [name for name, _ in RECIPES.items()])
def test_every_recipe_trains(train, name):
    has_wiring = getattr(RECIPES[name](), "wiring", None) is not None  # others differ in no site, and one is faster
    configs = train("--recipe", name, *([] if has_wiring else ["--layers", "1"]))
    expected = TRAINERS[OF_A_RECIPE[name]] if name in OF_A_RECIPE else RECIPES[name]().trainer_class
    found = {config["trainer"]["trainer_class"] for config in configs}
    assert found == {expected.__name__}


@pytest.mark.parametrize(
    ("recipe", "reads", "writes", "latents"),
    [
        ("paulo_2025", ["model.layers.0.mlp:in"], "model.layers.0.mlp:out", 16 * tiny.DIM),
        ("dunefsky_2024", ["model.layers.0.mlp:in"], "model.layers.0.mlp:out", 16 * tiny.DIM),
        ("minder_2025", [f"model.layers.{n}:out" for n in range(3)], None, 16 * tiny.DIM),
        ("ameisen_2025", [f"model.layers.{n}.mlp:in" for n in range(3)], [f"model.layers.{n}.mlp:out" for n in range(3)], 15 * tiny.DIM),
    ],
)  # fmt: skip
def test_recipes_choose_sites_and_sizes(train, recipe, reads, writes, latents):
    config = train("--recipe", recipe)[0]
    site = config["site"]
    assert ([site] if isinstance(site, str) else site) == reads
    assert config.get("target_site") == writes
    assert config["trainer"]["dict_size"] == latents


def test_what_is_asked_for_is_not_adapted(train):
    config = train("--recipe", "minder_2025", "--k", "5", "--expansion-factor", "2")[0]
    assert config["trainer"]["k"] == 5
    assert config["trainer"]["dict_size"] == 2 * 3 * tiny.DIM
    assert train("--recipe", "lubana_2025", "--layers", "1", "--overwrite")[0]["trainer"]["k"] == 4 * tiny.DIM // 8


def test_an_evaluation_that_fails_costs_a_warning_and_not_the_run(train, monkeypatch, caplog, tmp_path):
    def failing(*_):
        raise RuntimeError("no room for a plot")

    monkeypatch.setattr("dictionary_learning.cli._evaluate.report_on", failing)
    assert len(train("--trainer", "top_k")) >= 1
    assert "The evaluation failed (RuntimeError: no room for a plot)" in caplog.text
    assert f"dictionary-learning evaluate {tmp_path / 'run'}" in caplog.text
