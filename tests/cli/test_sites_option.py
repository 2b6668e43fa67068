"""Which sites `train` takes: by name, by the numbers of layers, by stride, or all."""

import pytest

from dictionary_learning import load_model
from dictionary_learning.cli._arguments import add_config, read_config
from dictionary_learning.cli._parser import Parser
from dictionary_learning.cli._train_options import TrainArguments
from dictionary_learning.errors import ConfigError
from tests import tiny


def sites(*, family: str = "llama", **options) -> list[str]:
    arguments = TrainArguments(model="m", data="d", **options)
    return [str(site) for site in arguments.sites_of(load_model(tiny.model(family)))]


def test_all_layers_are_meant_where_nothing_is_said():
    assert sites() == [f"model.layers.{n}:out" for n in range(3)]
    assert sites(family="gpt2") == [f"transformer.h.{n}:out" for n in range(3)]


def test_layers_by_number_and_stride():
    assert sites(layers=(0, 2)) == sites(layer_stride=2) == ["model.layers.0:out", "model.layers.2:out"]
    assert sites(layers=(1,), io="heads") == ["model.layers.1.self_attn.o_proj:in"]


def test_in_and_out_gives_both_sides():
    assert sites(sites=("layers.1.mlp",), io="in_and_out") == ["model.layers.1.mlp:in", "model.layers.1.mlp:out"]


def test_sites_and_layers_together_are_refused():
    with pytest.raises(ConfigError, match="Give one of them"):
        sites(sites=("layers.1.mlp",), layers=(1,))


def test_options_are_read_with_either_kind_of_dash():
    parser = Parser("train")
    add_config(parser, TrainArguments)
    for written in (["--layer-stride", "2"], ["--layer_stride", "2"], ["--layer_stride=2"]):
        read = read_config(parser.read(["m", "d", *written]), TrainArguments)
        assert read.layer_stride == 2 and read.layers == ()
    read = read_config(parser.read(["m", "d", "--layers", "0", "5", "10"]), TrainArguments)
    assert read.layers == (0, 5, 10) and read.layer_stride == 1
    assert "--layer_stride" not in parser.format_help()
