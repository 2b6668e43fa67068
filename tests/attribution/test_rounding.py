"""In few bits the logits come in steps: whatever computes effects says so, once for a model."""

import logging

import pytest
import torch

from dictionary_learning import load_model
from dictionary_learning.attribution import attribute, attribution_graph, circuit, faithfulness, logit_difference
from dictionary_learning.dictionaries import AutoEncoderTopK
from tests import tiny
from tests.attribution.cases import placed
from tests.attribution.graph_cases import transcoders

METRIC, TEXT = logit_difference(5, 9), "w1 w2 w3"


def of_layer():
    return placed(lambda: AutoEncoderTopK(16, 48, 6), "layers.1")


def faithful(model):
    kept = circuit(attribute(load_model(tiny.model()), of_layer(), [3, 4, 5], METRIC, method="gradient"), n_nodes=3)
    return faithfulness(model, of_layer(), TEXT, METRIC, kept)


WAYS = {
    **{
        method: lambda model, method=method: attribute(model, of_layer(), TEXT, METRIC, method=method)
        for method in ("gradient", "integrated", "ablation")
    },
    "faithfulness": faithful,
    "graph": lambda model: attribution_graph(model, transcoders(), TEXT),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("way", WAYS)
def test_effects_in_few_bits_are_warned_of_once(caplog, way, dtype):
    model = load_model(tiny.model().to(dtype).eval(), tokenizer=tiny.tokenizer())
    with caplog.at_level(logging.WARNING, "dictionary_learning"):
        for _ in range(2):
            WAYS[way](model)
    said = [message for message in caplog.messages if "comes in steps" in message]
    assert len(said) == (dtype in (torch.bfloat16, torch.float16))
    assert all(
        f"in {str(dtype).removeprefix('torch.')}" in message and "dtype='float32'" in message for message in said
    )
