"""The commands that reproduce published figures are understood, and name figures that reports have."""

import importlib.util
import sys
from pathlib import Path

import pytest

from dictionary_learning.cli import _train as train
from dictionary_learning.cli._arguments import read_config, read_configs
from dictionary_learning.trainers import TRAINERS

ROOT = Path(__file__).parent.parent
spec = importlib.util.spec_from_file_location("published", ROOT / "benchmarks" / "published.py")
published = importlib.util.module_from_spec(spec)
sys.modules["published"] = published
spec.loader.exec_module(published)
FIGURES = {"frac_variance_explained", "cossim", "relative_reconstruction_bias", "ce_recovered_zero", "l0", "kl"}
KNOWN = {"f1", "mcc", "uniqueness", "explained_variance"}


@pytest.mark.parametrize("name", published.PUBLISHED)
def test_settings_are_understood(name):
    entry = published.PUBLISHED[name]
    if entry.trainer is not None:
        assert set(entry.expected) <= KNOWN
        options = dict(entry.trainer)
        TRAINERS[options.pop("trainer")].Config.from_dict(options)
        return
    assert set(entry.expected) <= FIGURES
    arguments = [*entry.arguments, "--n-tokens", "1000"]
    namespace = train.build_parser(arguments).read(arguments)
    assert read_config(namespace, train.TrainArguments).n_tokens == 1000
    method = train.method_of(namespace.trainer, namespace.recipe)
    (config,) = read_configs(namespace, method.trainer.Config, method.recipe)
    assert config.dict_size in (4096, 16384, 32768, 131072)
    assert getattr(config, "lr", None) is None or config.lr < 1e-2
