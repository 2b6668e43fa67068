"""Rows that are given as one table, or as a file, are refused with advice that works as it stands."""

import re

import numpy
import pytest
import safetensors.torch
import torch

from dictionary_learning import trainSAE
from dictionary_learning.dictionaries import AutoEncoderTopK
from dictionary_learning.errors import DataError
from dictionary_learning.evaluation import evaluate_activations

CONFIG = {"trainer": "top_k", "k": 3, "dict_size": 48}
GIVEN = {
    "tensor": lambda rows: rows,
    "array": lambda rows: rows.numpy(),
    "acts.pt": lambda rows: torch.save(rows, "acts.pt") or "acts.pt",
    "acts.npy": lambda rows: numpy.save("acts.npy", rows.numpy()) or "acts.npy",
    "acts.safetensors": lambda rows: safetensors.torch.save_file({"x": rows}, "acts.safetensors") or "acts.safetensors",
}


@pytest.mark.parametrize("given", GIVEN)
def test_advice_on_a_table_of_rows_works(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = GIVEN[given](torch.randn(600, 16))
    with pytest.raises(DataError) as refused:
        trainSAE(data, CONFIG, 2, progress=False)
    names = {"torch": torch, "numpy": numpy, "safetensors": safetensors, "data": data}
    if reader := re.search(r"data = (.*?)\. Give", str(refused.value)):
        names["data"] = eval(reader[1], names)
    advice = re.search(r"Give (.*); that times 10", str(refused.value))
    assert advice is not None
    batches = eval(advice[1], names)
    assert [len(batch) for batch in batches * 2] == [256, 256, 88] * 2
    (dictionary,) = trainSAE(batches, CONFIG, 2, progress=False)
    assert dictionary.activation_dim == 16


def test_advice_on_a_table_to_evaluate_on_works():
    activations = torch.randn(600, 16)
    dictionary = AutoEncoderTopK(16, 48, 3)
    with pytest.raises(DataError) as refused:
        evaluate_activations(dictionary, activations)
    advice = re.search(r"give (activations.*)\.$", str(refused.value))
    assert advice is not None
    found = evaluate_activations(dictionary, eval(advice[1], {"activations": activations}))
    assert found == evaluate_activations(dictionary, [activations])


def test_a_text_is_told_where_it_belongs():
    with pytest.raises(DataError, match=r"ActivationBuffer\('text.jsonl', model, site\)"):
        trainSAE("text.jsonl", CONFIG, 2, progress=False)
