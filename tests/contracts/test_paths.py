"""A method is the same whichever way it is named: typed, as a dictionary, as a recipe, in the shell.

Compared is what comes out: the class of the trainer, its settings, the bits that are trained, and
what the saved file says.
"""

import dataclasses
import json

import pytest
import torch

from dictionary_learning import load_dictionary, trainSAE
from dictionary_learning._run_setup import training_jobs
from dictionary_learning.dictionaries import WIRINGS, Dictionary
from dictionary_learning.dictionaries.nonlinearities import NONLINEARITIES
from dictionary_learning.errors import ConfigError
from dictionary_learning.trainers import TRAINERS, OptimizationConfig, SAETrainer, TrainerConfig
from dictionary_learning.trainers.recipes import RECIPES
from tests.contracts.test_wirings import SITES, batches
from tests.tiny import Planted

STEPS = 3
METHODS = [name for name in TRAINERS if not TRAINERS[name].Config().needs_contexts]
OF_ACTIVATIONS = [name for name in RECIPES if not RECIPES[name]().needs_contexts]


def options_of(config: type[OptimizationConfig], **further) -> dict:
    """Returns small settings that the config has."""
    names = {field.name for field in dataclasses.fields(config)}
    return {name: value for name, value in {"dict_size": 96, "k": 3, "seed": 7, **further}.items() if name in names}


def data_for(config) -> list:
    wiring = getattr(config, "wiring", None) or "autoencoder"
    return batches(wiring, STEPS, 64) if len(SITES[wiring]) > 1 else list(Planted().batches(STEPS, 64))


def train(config, data, folder) -> tuple[Dictionary, dict]:
    (trained,) = trainSAE(data, config, STEPS, save_dir=folder, progress=False, device="cpu")
    return trained, json.loads((folder / "trainer_0" / "config.json").read_text())


def check_same(first: tuple[Dictionary, dict], second: tuple[Dictionary, dict]) -> None:
    (one, said), (other, also) = first, second
    assert type(one) is type(other)
    assert said["trainer"] == also["trainer"] and said["name"] == also["name"]
    for (name, tensor), (_, same) in zip(one.state_dict().items(), other.state_dict().items(), strict=True):
        assert torch.equal(tensor, same), name


@pytest.mark.parametrize("name", METHODS)
def test_every_way_to_name_a_trainer_trains_it(name, tmp_path):
    cls = TRAINERS[name]
    options = options_of(cls.Config)
    ways = {
        "typed": cls.Config(**options),
        "class": {"trainer": cls, **options},
        "name": {"trainer": name, **options},
        "from plain data": cls.Config.from_dict(json.loads(json.dumps(options))),
    }
    trained = {way: train(config, data_for(cls.Config()), tmp_path / way) for way, config in ways.items()}
    first = trained.pop("typed")
    assert first[1]["trainer"]["trainer_class"] == cls.__name__
    assert type(load_dictionary(tmp_path / "typed" / "trainer_0")) is type(first[0])
    for other in trained.values():
        check_same(first, other)


@pytest.mark.parametrize("name", OF_ACTIVATIONS)
def test_a_recipe_is_its_trainer_with_its_settings(name, tmp_path):
    config = RECIPES[name](**options_of(type(RECIPES[name]())))
    asked = {
        field.name: value for field in dataclasses.fields(config) if (value := getattr(config, field.name)) is not None
    }
    data = data_for(config)
    recipe = train(config, data, tmp_path / "recipe")
    assert recipe[1]["trainer"]["trainer_class"] == config.trainer_class.__name__
    check_same(recipe, train({"trainer": config.trainer_class, **asked}, data, tmp_path / "class"))
    by_name = {"trainer": TRAINERS.name_of(config.trainer_class), **asked}
    check_same(recipe, train(by_name, data, tmp_path / "name"))


def test_every_config_builds_its_own_trainer_and_no_two_share_one():
    configs = [cls.Config for _, cls in TRAINERS.items()]
    assert len(set(configs)) == len(configs)
    for name, cls in TRAINERS.items():
        trainer = cls.Config(**options_of(cls.Config)).build(activation_dim=32, steps=10, device="cpu")
        assert type(trainer) is cls, name


def test_settings_are_complete_once_built_and_are_those_that_are_saved():
    """No field that a rule fills in is left open, and asking for what was used gives the same."""
    for name, cls in TRAINERS.items():
        trainer = cls.Config(**options_of(cls.Config)).build(activation_dim=32, steps=10, device="cpu")
        rules = [field.name for field in dataclasses.fields(trainer.settings) if "rule" in field.metadata]
        left = [rule for rule in rules if getattr(trainer.settings, rule) is None]
        assert not left, (name, left)
        again = trainer.settings.build(activation_dim=32, steps=10, device="cpu")
        assert again.settings == trainer.settings, name


def test_a_plug_in_takes_every_path(tmp_path):
    """A method of a user's own, without a Config of its own and without a decorator."""

    class Mine(TRAINERS["top_k"]):
        pass

    TRAINERS.register("mine_of_the_test")(Mine)
    options = options_of(Mine.Config)
    assert Mine.Config is not TRAINERS["top_k"].Config and Mine.Config(**options).trainer_class is Mine
    data = list(Planted().batches(STEPS, 64))
    typed = train(Mine.Config(**options), data, tmp_path / "typed")
    assert typed[1]["trainer"]["trainer_class"] == "Mine" and typed[1]["name"] == "mine_of_the_test-3"
    check_same(typed, train({"trainer": Mine, **options}, data, tmp_path / "class"))
    check_same(typed, train({"trainer": "mine_of_the_test", **options}, data, tmp_path / "name"))
    TRAINERS._entries.pop("mine_of_the_test")  # other tests are over the registry


def test_facts_of_the_run_are_accepted_in_dictionaries_and_checked():
    from dictionary_learning.activations._stream import ActivationStream

    stream = ActivationStream(list(Planted().batches(2, 64)))
    facts = {"activation_dim": 32, "steps": 2, "layer": 3, "lm_name": "tiny", "device": torch.device("cpu")}
    config = {"trainer": "top_k", "k": 3, "dict_size": 96, **facts}
    (job,) = training_jobs(config, stream, 2, torch.device("cpu"), False, None)
    assert (job.trainer.steps, job.trainer.run.layer, job.trainer.run.lm_name) == (2, 3, "tiny")
    for other in ({"activation_dim": 31}, {"steps": 50}, {"site_dims": [8, 24]}, {"output_dims": [8]}):
        with pytest.raises(ConfigError, match=f"{next(iter(other))}=.*Leave it out"):
            training_jobs({**config, **other}, stream, 2, torch.device("cpu"), False, None)


@pytest.mark.parametrize("name", METHODS)
def test_saved_settings_given_back_train_the_same(name, tmp_path):
    cls = TRAINERS[name]
    data = data_for(cls.Config())
    first = train(cls.Config(**options_of(cls.Config)), data, tmp_path / "first")
    check_same(first, train({"trainer": name, **first[1]["trainer"]}, data, tmp_path / "again"))
    other = "standard" if name != "standard" else "gated"
    with pytest.raises(ConfigError, match="trainer_class="):
        train({"trainer": other, **first[1]["trainer"]}, data, tmp_path / "other")


def test_a_plug_in_does_not_take_the_config_of_another_trainer(tmp_path):
    for shared in (TrainerConfig, *(cls.Config for _, cls in TRAINERS.items())):

        class Mine(shared.__dict__.get("trainer_class", SAETrainer)):
            Config = shared

        assert Mine.Config is not shared and issubclass(Mine.Config, shared) and Mine.Config.trainer_class is Mine
        assert shared.__dict__.get("trainer_class") is not Mine
    assert [cls.Config.trainer_class for _, cls in TRAINERS.items()] == [cls for _, cls in TRAINERS.items()]


def test_a_config_of_a_subclass_or_a_base_is_refused():
    class Mine(TRAINERS["top_k"]):
        class Config(TRAINERS["top_k"].Config):
            k = 7

    facts = {"activation_dim": 32, "steps": 3, "device": "cpu"}
    assert Mine.Config(dict_size=16).build(**facts).settings.k == 7
    for trainer, config in ((TRAINERS["top_k"], Mine.Config()), (Mine, TRAINERS["top_k"].Config())):
        with pytest.raises(ConfigError, match="give a"):
            trainer(config, **facts)


def test_a_registered_name_is_not_taken_over():
    def same_cell():
        class Mine(TRAINERS["top_k"]):
            pass

        return Mine

    for registry in (TRAINERS, RECIPES, NONLINEARITIES, WIRINGS):
        entries = dict(registry._entries)
        for name, entry in entries.items():
            registry.register(name)(entry)  # a module that runs again
            with pytest.raises(ConfigError, match="Register it under another name"):
                registry.register("new", name)(same_cell())
        assert registry._entries == entries
    TRAINERS.register("mine_of_the_test")(same_cell())
    TRAINERS.register("mine_of_the_test")(again := same_cell())
    assert TRAINERS["mine_of_the_test"] is again
    TRAINERS._entries.pop("mine_of_the_test")
