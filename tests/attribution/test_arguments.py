"""Metrics, gradients and progress of attribution: wrong arguments are refused, and modes do not matter."""

import logging

import numpy as np
import pytest
import torch

from dictionary_learning import _progress, load_model
from dictionary_learning.attribution import (
    Placed,
    attribute,
    attribution_graph,
    circuit,
    edges,
    faithfulness,
    log_probability,
    logit_difference,
    mean_latents,
)
from dictionary_learning.dictionaries import AutoEncoderTopK
from dictionary_learning.errors import ConfigError, DataError, ModelError
from tests import tiny
from tests.attribution.graph_cases import model as double_model, transcoders

TEXT = "w1 w2 w3 w4"
pytestmark = pytest.mark.usefixtures("as_for_a_user")
SITES = ("model.layers.0", "model.layers.2")
LOGITS = torch.randn(2, 5, tiny.VOCAB, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model():
    return load_model(tiny.model().eval(), tokenizer=tiny.tokenizer())


def dictionaries():
    torch.manual_seed(0)
    return [Placed(AutoEncoderTopK(tiny.DIM, 24, k=4), site) for site in SITES]


def quick(model, given, **options):
    return attribute(model, given, TEXT, logit_difference(5, 7), method="gradient", **options)


@pytest.mark.parametrize(
    "build",
    [
        lambda: logit_difference("w1", "w2"),
        lambda: logit_difference(True, False),
        lambda: log_probability([True, False]),
        lambda: log_probability(torch.tensor([True, False])),
        lambda: log_probability(torch.tensor([1.0, 2.0])),
        lambda: log_probability(5, position=1.5),
        lambda: log_probability(5, position=True),
        lambda: logit_difference(5, 7, position=5),
        lambda: logit_difference(5, 7, position=99),
        lambda: log_probability(5, position=-6),
        lambda: log_probability(tiny.VOCAB),
        lambda: log_probability(-1),
        lambda: log_probability([1, 2, 3]),
        lambda: log_probability(list(range(3000))),
    ],
)
def test_tokens_and_positions_that_are_none_are_refused(build):
    with pytest.raises(ConfigError, match="Got") as error:
        build()(LOGITS)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("answer", [5, np.int32(5), torch.tensor(5), [5, 5], torch.tensor([5, 5], dtype=torch.int32)])
@pytest.mark.parametrize("position", [-5, 0, 4, 4.0])
def test_tokens_may_be_given_in_any_form(answer, position):
    expected = (LOGITS[:, int(position), 5] - LOGITS[:, int(position), 7]).mean()
    assert logit_difference(answer, 7, position=position)(LOGITS) == expected


def test_gradients_do_not_depend_on_the_mode_of_the_caller(model):
    given, first, later = dictionaries(), *SITES
    expected = quick(model, given)
    chosen = expected.effects[later].top(2)
    weight = edges(model, given, expected, first, later, chosen).weight
    traced, layers, graph = double_model(), transcoders(), {"max_latents": 8}
    nodes = attribution_graph(traced, layers, TEXT, **graph)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            ids = expected.tokens.input_ids.clone()
            found = attribute(model, given, ids, logit_difference(5, 7), method="gradient")
            assert torch.equal(found.effects[later].effect, expected.effects[later].effect)
            assert torch.equal(edges(model, given, found, first, later, chosen).weight, weight)
            again = attribution_graph(traced, layers, nodes.input_ids.clone(), **graph)
        assert torch.equal(again.weight, nodes.weight)


def test_a_dictionary_that_was_made_without_gradients_is_refused(model):
    with torch.inference_mode():
        given = dictionaries()
    with pytest.raises(ModelError, match="inference_mode"):
        quick(model, given)


@pytest.mark.parametrize("inputs", ["<s>", torch.tensor([[0, 1, 2]])])
def test_means_of_no_token_are_refused(model, inputs):
    given = dictionaries()
    with pytest.raises(DataError, match="No token counts"):
        mean_latents(model, given, inputs)
    few = circuit(quick(model, given), n_nodes=3)
    with pytest.raises(DataError, match="No token counts"):
        faithfulness(model, given, inputs, logit_difference(5, 7), few)


def test_what_takes_long_says_how_far_it_has_come(model, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "dictionary_learning")
    monkeypatch.setattr(_progress, "_SECONDS_BETWEEN_LINES", 0.0)
    given, metric = dictionaries(), logit_difference(5, 7)

    def lines(what):
        found = [record.getMessage() for record in caplog.records if record.getMessage().startswith(what)]
        caplog.clear()
        return found

    attribute(model, given, TEXT, metric, n_steps=3)
    assert "6 of 6 passes" in lines("following gradients")[-1]
    found = attribute(model, given, TEXT, metric, method="ablation")
    n = sum(len(each.effect) + int(each.mask.sum()) for each in found.effects.values())
    assert f"{n} of {n} runs" in lines("ablating latents and errors")[-1]
    edges(model, given, found, *SITES, [0, 1])
    assert "2 of 2 latents" in lines("following edges")[-1]
    attribution_graph(double_model(), transcoders(), TEXT, max_latents=8, n_logits=2, logit_share=1.0)
    assert "2 of 2 passes" in lines("following effects")[-1]
