import contextlib
import dataclasses
import json
import logging
import math
import tempfile
from pathlib import Path

import jaxtyping
import pytest
import torch

from dictionary_learning import (
    ActivationBuffer,
    AutoEncoderTopK,
    Site,
    TrainerTopK,
    load_dictionary,
    load_model,
    trainSAE,
)
from dictionary_learning.errors import ConfigError, DataError, DivergenceError, UnknownNameError
from dictionary_learning.loggers import read_history
from dictionary_learning.trainers import TRAINERS
from tests import tiny
from tests.tiny import Planted

CONFIG = TrainerTopK.Config(k=3, dict_size=64)


def train(configs=CONFIG, data=None, steps=30, **options):
    data = Planted().batches(100, 64) if data is None else data
    return trainSAE(data, configs, steps, **{"device": "cpu", "progress": False, **options})


def buffer(submodule, **options) -> ActivationBuffer:
    model = load_model(tiny.model("llama"), tokenizer=tiny.tokenizer())
    sizes = {"n_ctxs": 16, "ctx_len": 16, "refresh_batch_size": 8, "out_batch_size": 32, "end_of_data": "repeat"}
    return ActivationBuffer(tiny.documents(40), model, submodule, **{**sizes, **options})


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_known_dictionary_config_trains_and_is_not_changed():
    config = {
        "trainer": TrainerTopK, "dict_class": AutoEncoderTopK, "activation_dim": 32, "dict_size": 64, "k": 3, "lr": 1e-3,
        "layer": 3, "lm_name": "some/model", "device": "cpu", "steps": 30, "warmup_steps": 5, "wandb_name": "mine",
    }  # fmt: skip
    before = dict(config)
    (dictionary,) = train([config])
    assert isinstance(dictionary, AutoEncoderTopK)
    assert config == before
    (again,) = train([config])
    assert same(dictionary, again)


def test_typed_and_named_configs_mean_the_same():
    typed, named = train([CONFIG, {"trainer": "top_k", "k": 3, "dict_size": 64}])
    assert same(typed, named)


def test_identical_trainers_end_in_the_same_bits_and_leave_the_data_alone():
    batches = list(Planted().batches(30, 64))
    copies = [x.clone() for x in batches]
    one, two = train([CONFIG, CONFIG], batches, normalize_activations=True)
    assert same(one, two)
    assert all(torch.equal(a, b) for a, b in zip(batches, copies, strict=True))


def test_logging_perturbs_nothing(tmp_path):
    quiet = train(log_steps=1000)
    loud = train(log_steps=1, save_dir=tmp_path, verbose=True, save_steps=[3, 7], backup_steps=5)
    assert same(quiet[0], loud[0])


def test_several_trainers_on_several_sites():
    data = buffer(["model.layers.0", "model.layers.1.mlp"])
    configs = [
        TrainerTopK.Config(k=2, expansion_factor=4),
        TrainerTopK.Config(k=4, expansion_factor=2, site="model.layers.0"),
    ]
    dictionaries = train(configs, data)
    assert [(d.k, d.dict_size) for d in dictionaries] == [(2, 64), (2, 64), (4, 32)]


def test_dictionary_of_a_site_does_not_depend_on_its_neighbours():
    alone = train(TrainerTopK.Config(k=2), buffer("model.layers.0"), 10)
    beside = train(TrainerTopK.Config(k=2, site="model.layers.0"), buffer(["model.layers.0", "model.layers.1"]), 10)
    assert same(alone[0], beside[0])


def test_saved_files_hold_everything(tmp_path):
    data = buffer("model.layers.1", max_activation_norm_multiple=5.0)
    (dictionary,) = train(
        TrainerTopK.Config(k=2, lr=1e-3), data, 20, save_dir=tmp_path, save_steps=[5], run_cfg={"note": "x"}
    )
    loaded = load_dictionary(tmp_path / "trainer_0")
    config = loaded.info.config
    assert same(loaded, dictionary)
    assert config["site"] == "model.layers.1:out"
    assert config["trainer"]["lr"] == 1e-3
    assert config["trainer"]["trainer_class"] == "TrainerTopK"
    assert config["trainer"]["submodule_name"] == "model.layers.1"
    # a class is no name that loads a model
    assert config["buffer"]["model"]["name"] is None and loaded.info.model is None
    assert config["buffer"]["model"]["label"] == "LlamaForCausalLM"
    assert config["buffer"]["filter"]["norm_limits"]["model.layers.1:out"] > 0
    assert config["run"] == {"note": "x"}
    assert config["trained"] == {"step": 20, "steps": 20}
    assert "torch" in config["versions"]
    early = load_dictionary(tmp_path / "trainer_0" / "checkpoints" / "step_5").info.config
    assert early["trained"]["step"] == 5


def test_figures_are_written_line_by_line(tmp_path):
    train([CONFIG, CONFIG], save_dir=tmp_path, log_steps=10)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["tokens"]) for line in lines] == [(10, 640), (20, 1280), (30, 1920)]
    assert list(lines[0]["dictionaries"]) == ["top_k-3", "top_k-3 #2"]
    history = read_history(tmp_path / "metrics.jsonl", "top_k-3 #2")
    assert {"fvu", "l0", "loss", "l2_loss", "lr", "dead_features", "effective_l0"} <= history[0].keys()
    assert history[-1]["fvu"] < history[0]["fvu"]


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_normalized_training_gives_dictionaries_of_raw_activations(tmp_path, scale):
    batches = [scale * x for x in Planted().batches(60, 128)]
    (dictionary,) = train(CONFIG, batches, 60, normalize_activations=True, save_dir=tmp_path)
    x = batches[-1]
    fvu = (dictionary(x) - x).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    assert fvu < 0.5
    loaded = load_dictionary(tmp_path / "trainer_0")
    config = loaded.info.config
    assert torch.equal(loaded(x), dictionary(x))
    factor = torch.cat(batches).pow(2).sum(-1).mean().sqrt()
    (described,) = config["normalization"].values()
    assert float(factor) == pytest.approx(described["scale"], rel=1e-3)


def test_estimating_the_scale_takes_nothing_from_the_stream():
    seen = []

    def stream():
        for x in Planted().batches(10, 64):
            seen.append(len(x))
            yield x

    (dictionary,) = train(CONFIG, stream(), 10, normalize_activations=True)
    whole = list(Planted().batches(10, 64))
    (expected,) = train(CONFIG, whole, 10, normalize_activations=True)
    assert len(seen) == 10
    assert same(dictionary, expected)


def test_data_that_ends_early_ends_the_run_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        (dictionary,) = train(data=Planted().batches(7, 64))
    assert "ended after 7 of 30 steps" in caplog.text
    assert dictionary.W_dec.isfinite().all()


def test_autocast_trains():
    (dictionary,) = train(autocast_dtype=torch.bfloat16)
    assert dictionary.dtype == torch.float32
    assert dictionary.W_dec.isfinite().all()


def test_mapping_of_sites_is_taken_as_data():
    data = [{"a": x, Site("b", "in"): x[:, :8]} for x in Planted().batches(10, 64)]
    a, b = train(TrainerTopK.Config(k=2), data, 10)
    assert (a.activation_dim, b.activation_dim) == (32, 8)


@pytest.mark.parametrize(
    ("configs", "error", "said"),
    [
        ([], ConfigError, "Got no trainer config"),
        ([{"k": 3}], ConfigError, "the key 'trainer'"),
        ([{"trainer": "topk", "k": 3}], UnknownNameError, "Did you mean 'top_k'"),
        ([{"trainer": "top_k", "kk": 3}], UnknownNameError, "Unknown option"),
        ([{"trainer": "top_k", "activation_dim": 7}], ConfigError, "have width 32. Leave it out"),
        ([{"trainer": "top_k", "site": "other"}], ConfigError, "names the site 'other:out'"),
    ],
)
def test_bad_config_is_refused(configs, error, said):
    with pytest.raises(error, match=said):
        train(configs)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "gave no activations"),
        ([torch.zeros(3)], r"a floating-point tensor \(batch, dim\) is needed"),
        (["text"], "gave a str"),
        ([torch.zeros(4, 3, 8)], "is needed"),
    ],
)
def test_bad_data_is_refused(data, said):
    with pytest.raises(DataError, match=said):
        train(data=data)


def test_a_site_that_is_not_there_is_told_of_before_data_are_read():
    class Data:
        def __init__(self):
            self.widths = {Site("a"): 32}
            self.sites = list(self.widths)

        def __iter__(self):
            yield from iter(lambda: pytest.fail("data were read"), None)

    configs = [{"trainer": "top_k", "k": 3, "site": "a"}, {"trainer": "top_k", "k": 3, "site": "other"}]
    with pytest.raises(ConfigError, match="names the site 'other:out'"):
        train(configs, Data())


def test_constant_activations_cannot_be_normalized():
    with pytest.raises(DataError, match="cannot be normalized"):
        train(data=[torch.zeros(8, 4)], normalize_activations=True)


class Failing:
    """A logger that raises when it is to log."""

    def __init__(self, error: BaseException | None):
        self.error, self.closed = error, False

    def log(self, figures, step, tokens):
        if self.error is not None:
            raise self.error

    def close(self):
        self.closed = True


def test_logger_that_fails_costs_a_warning_and_not_the_run(caplog):
    other = Failing(None)
    assert train(loggers=[Failing(RuntimeError("disk full")), other], log_steps=1)
    assert other.closed and caplog.text.count("disk full") == 1


def test_run_that_is_interrupted_closes_its_loggers():
    other = Failing(None)
    with pytest.raises(KeyboardInterrupt):
        train(loggers=[other, Failing(KeyboardInterrupt())], log_steps=1)
    assert other.closed


@pytest.mark.parametrize(
    ("config", "normalize", "expected"),
    [
        ({"trainer": "top_k"}, False, "none"),
        ({"trainer": "top_k"}, True, "unit_mean_square"),
        ({"trainer": "top_k"}, "sqrt_dim", "sqrt_dim"),
        ({"trainer": "top_k", "normalize": "layer_norm"}, True, "layer_norm"),
        ({"trainer": "jump_relu"}, False, "unit_mean_square"),  # what its bandwidth is made for
        ({"trainer": "jump_relu", "normalize": "none"}, True, "none"),
    ],
)
def test_normalization_is_the_config_s_then_the_method_s_then_the_run_s(tmp_path, config, normalize, expected):
    config = {"dict_size": 64, **config, **({"k": 4} if config["trainer"] == "top_k" else {})}
    train(config, list(Planted().batches(3, 128)), 3, normalize_activations=normalize, save_dir=tmp_path)
    saved = load_dictionary(tmp_path / "trainer_0").info.config
    (described,) = saved["normalization"].values()
    assert described["name"] == expected == saved["trainer"]["normalize"]


@pytest.fixture
def unchecked():
    """Leaves types unchecked, as they are for a user."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"run_cfg": "abc"}, "a mapping"),
        ({"run_cfg": [1, 2]}, "a mapping"),
        ({"run_cfg": 5}, "a mapping"),
        ({"loggers": 5}, "a list"),
        ({"loggers": [print]}, "`log` and `close`"),
        ({"save_dir": ""}, "save_dir=''"),
        ({"save_dir": 5}, "save_dir=5"),
        ({"save_steps": [5]}, "give save_dir"),
        ({"backup_steps": 5}, "give save_dir"),
        ({"checkpoint_steps": 5}, "give save_dir"),
        ({"transcoder": True, "activations_split_by_head": True}, "two wirings"),
    ],
    ids=str,
)
def test_bad_argument_is_refused_before_any_data_are_read(unchecked, options, said):
    def data():
        raise AssertionError("read")
        yield

    with pytest.raises(ConfigError, match=said):
        train(data=data(), **options)


def test_a_single_logger_is_refused(unchecked):
    with pytest.raises(ConfigError, match="a list"):
        train(loggers=Failing(None))


class Breaking:
    """A logger that puts files where the run will write folders."""

    def __init__(self, *places: Path):
        self.places = places

    def log(self, figures, step, tokens):
        for place in self.places:
            if not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text("in the way")

    def close(self):
        pass


@pytest.mark.parametrize("has_room", [True, False])
def test_what_cannot_be_saved_at_the_end_is_saved_elsewhere(tmp_path, monkeypatch, caplog, has_room):
    run = tmp_path / "parent" / "run"
    (tmp_path / "system").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "system"))
    if not has_room:
        make = tempfile.mkdtemp

        def beside_is_full(prefix, dir):
            if Path(dir) == run.parent:
                raise OSError("No space left on device")
            return make(prefix=prefix, dir=dir)

        monkeypatch.setattr(tempfile, "mkdtemp", beside_is_full)
    one, two = train([CONFIG, CONFIG], save_dir=run, loggers=[Breaking(run / "trainer_0")], log_steps=1)
    assert same(load_dictionary(run / "trainer_1"), two)
    (other,) = (run.parent if has_room else tmp_path / "system").glob("run-*")
    assert same(load_dictionary(other / "trainer_0"), one)
    assert str(other) in caplog.text


def test_copies_that_cannot_be_written_cost_a_warning(tmp_path, caplog):
    in_the_way = Breaking(tmp_path / "trainer_0" / "checkpoints")
    (dictionary,) = train(save_dir=tmp_path, save_steps=[5], backup_steps=10, loggers=[in_the_way], log_steps=1)
    assert same(load_dictionary(tmp_path / "trainer_0"), dictionary)
    assert caplog.text.count("could not be written") == 1 + 3


@pytest.mark.parametrize("saves", [True, False])
def test_divergence_of_one_dictionary_loses_no_other(tmp_path, saves):
    bad = {"trainer": "top_k", "k": 3, "dict_size": 64, "schedule": lambda step: math.nan}
    with pytest.raises(DivergenceError, match="not finite") as raised:
        train([bad, CONFIG], save_dir=tmp_path / "run" if saves else None)
    (good,) = raised.value.dictionaries
    assert same(good, train()[0])
    assert saves == (tmp_path / "run" / "trainer_1").exists() and not (tmp_path / "run" / "trainer_0").exists()


@pytest.mark.parametrize("method", list(TRAINERS))
def test_a_normalization_that_a_method_does_not_take_is_said(method, caplog):
    config = TRAINERS[method].Config
    own = next(field.default for field in dataclasses.fields(config) if field.name == "normalize")
    k = {"k": 4} if "k" in {field.name for field in dataclasses.fields(config)} else {}
    data = list(Planted().batches(2, 64))
    with contextlib.suppress(ConfigError):  # a method that reads contexts
        train(config(dict_size=16, **k), data, 2, normalize_activations="sqrt_dim")
    assert (f"has '{own}'" in caplog.text) == (own is not None)


@pytest.mark.parametrize("normalize", [False, True])
def test_what_a_run_starts_from_is_not_overwritten(tmp_path, normalize):
    train(save_dir=tmp_path / "a", normalize_activations=normalize)
    written = {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()}
    for source in (tmp_path / "a", tmp_path / "a" / "trainer_0", tmp_path / "a" / ".." / "a" / "trainer_0"):
        with pytest.raises(ConfigError, match="Give another folder"):
            train({"trainer": "top_k", "finetune": source}, save_dir=tmp_path / "a", overwrite=True)
    assert {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()} == written
    train({"trainer": "top_k", "finetune": tmp_path / "a"}, save_dir=tmp_path / "b", overwrite=True)


def test_old_run_stays_until_training_starts(tmp_path):
    train(save_dir=tmp_path)
    for options in ({"data": []}, {"configs": {"trainer": "top_k", "finetune": tmp_path / "none"}}):
        with pytest.raises((DataError, ConfigError, Exception)):
            train(save_dir=tmp_path, overwrite=True, **options)
        assert (tmp_path / "trainer_0").exists()
    train(save_dir=tmp_path, overwrite=True)


def test_a_folder_that_holds_a_run_is_refused_before_any_data_are_read(tmp_path):
    train(save_dir=tmp_path)
    data = iter(list(Planted().batches(2, 64)))
    with pytest.raises(ConfigError, match="holds another run"):
        train(data=data, save_dir=tmp_path)
    assert len(list(data)) == 2
