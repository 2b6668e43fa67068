"""Sites of several models: each names its owner, in whatever way it was asked for."""

import pytest
import torch

from dictionary_learning import ModelSet, Site, load_model
from tests import tiny

IDS = torch.arange(3, 21).view(2, 9)


@pytest.fixture
def both() -> ModelSet:
    return ModelSet(**{name: load_model(tiny.model(seed=n), tokenizer=tiny.tokenizer()) for n, name in enumerate("ab")})


def test_layers_are_those_of_each_model(both):
    expected = [Site(f"{name}/model.layers.{n}") for name in "ab" for n in (0, 2)]
    assert both.layers(layer_stride=2) == expected == both.sites("model.layers.[02]")


def test_heads_and_embedding_are_found_in_each_model(both):
    heads = both.sites("model.layers.1:heads")
    assert heads == [Site(f"{name}/model.layers.1.self_attn.o_proj", "in") for name in "ab"]
    assert [both.n_heads(site) for site in heads] == [2, 2]
    assert both.sites("b/embedding") == [Site("b/model.embed_tokens")]


def test_both_sides_and_positions_keep_their_owner(both):
    pairs = both.sites("a/model.layers.1.mlp", "in_and_out")
    assert pairs == [Site("a/model.layers.1.mlp", "in"), Site("a/model.layers.1.mlp")]
    (second,) = both.sites("a/model.layers.1.mlp:in[1]")
    assert second == Site("a/model.layers.1.mlp", "in", 1)
    found = both.capture(IDS, None, pairs)
    inner = both.models["a"].capture(IDS, None, [Site("model.layers.1.mlp")])
    assert torch.equal(found[pairs[1]], inner[Site("model.layers.1.mlp")])
