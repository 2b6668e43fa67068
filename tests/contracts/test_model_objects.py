"""Every kind of model object is captured, edited and evaluated alike."""

from typing import Any

import jaxtyping
import nnsight
import pytest
import torch

from dictionary_learning import (
    Candidate,
    EvaluationConfig,
    IdentityDict,
    ModelSet,
    Site,
    evaluate_dictionaries,
    load_model,
)
from dictionary_learning.errors import ModelError
from dictionary_learning.interventions import graft
from tests import tiny

IDS = torch.arange(3, 21).view(2, 9)
LAYER = "model.layers.1"


class Wrapped(torch.nn.Module):
    """A module of one's own that takes anything but token ids by their usual name."""

    def __init__(self):
        super().__init__()
        self.model = tiny.model("llama").eval().model

    def forward(self, embeddings):
        return self.model(inputs_embeds=embeddings, use_cache=False).last_hidden_state


def folder(tmp_path):
    tiny.save_model(tmp_path)
    return tmp_path


KINDS = {
    "folder": lambda tmp: load_model(folder(tmp), dtype="float32", device="cpu"),
    "folder as text": lambda tmp: load_model(str(folder(tmp)), dtype="float32", device="cpu"),
    "remote": lambda tmp: load_model(folder(tmp), remote="local", dtype=torch.float32),
    "module": lambda tmp: load_model(tiny.model("llama"), tokenizer=tiny.tokenizer()),
    "module and tokenizer by name": lambda tmp: load_model(tiny.model("llama"), tokenizer=str(folder(tmp))),
    "module without tokenizer": lambda tmp: load_model(tiny.model("llama")),
    "nnsight": lambda tmp: load_model(nnsight.NNsight(tiny.model("llama")), tokenizer=tiny.tokenizer()),
    "nnsight with tokenizer": lambda tmp: load_model(
        nnsight.TransformersModel(tiny.model("llama"), tokenizer=tiny.tokenizer(), task="text-generation")
    ),
    "traced": lambda tmp: load_model(load_model(tiny.model("llama"), tokenizer=tiny.tokenizer())),
    "any module": lambda tmp: load_model(Wrapped(), example=torch.randn(1, 3, tiny.DIM)),
    "set": lambda tmp: load_model(
        ModelSet(a=tiny.model("llama"), b=load_model(tiny.model(), tokenizer=tiny.tokenizer()))
    ),
}


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def model(kind, tmp_path) -> Any:
    return KINDS[kind](tmp_path)


def inputs(kind: str) -> torch.Tensor:
    return tiny.model("llama").model.embed_tokens(IDS).detach() if kind == "any module" else IDS


def test_activations_are_those_of_the_model_itself(kind, model):
    expected = load_model(tiny.model("llama")).capture(IDS, sites=LAYER)[LAYER]
    name = f"a/{LAYER}" if kind == "set" else LAYER
    (site,) = model.sites(name)
    assert model.widths(name)[name] == tiny.DIM and site in model.layers()
    for found in (model.capture(inputs(kind), None, [site]), model.capture(inputs(kind), sites=name)):
        assert torch.equal(found[name], expected) and torch.equal(found[site], expected)


def test_edits_reach_the_prediction(kind, model):
    x = inputs(kind)
    if kind == "set":
        with pytest.raises(ModelError, match="no common prediction"):
            model.run(x, {LAYER: torch.zeros_like})
        return
    with torch.no_grad():
        clean = model.run(x)
        assert torch.equal(model.run(x, {LAYER: graft(IdentityDict(tiny.DIM))}), clean)
        assert torch.equal(model.run(x, None, {Site(LAYER): lambda x: None}), clean)
        assert not torch.equal(model.run(x, {LAYER: torch.zeros_like}), clean)


def test_dictionaries_are_evaluated(kind, model, monkeypatch):
    name = f"a/{LAYER}" if kind == "set" else LAYER
    config = EvaluationConfig(n_tokens=64, n_fidelity_tokens=0 if kind == "set" else 32, ctx_len=16, batch_size=2)
    candidates = [Candidate("identity", IdentityDict(tiny.DIM), Site(name))]
    if model.tokenizer is None:
        pytest.skip("it reads no text")
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", kind == "set")  # a set passes for a model
    report = evaluate_dictionaries(model, candidates, tiny.documents(), config)
    (result,) = report["dictionaries"]
    assert result["metrics"]["fvu"] == 0 and result["site"] == f"{name}:out"
    assert kind == "set" or result["metrics"]["ce_increase"] == 0
