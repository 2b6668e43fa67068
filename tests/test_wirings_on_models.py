"""Wirings trained from a model's activations, and grafted back: through the buffer, on several architectures."""

import pytest
import torch

from dictionary_learning import ActivationBuffer, Candidate, EvaluationConfig, evaluate_dictionaries, trainSAE
from dictionary_learning._model_set import ModelSet
from dictionary_learning.dictionaries import (
    Crosscoder,
    CrossLayerTranscoder,
    HeadAutoencoders,
    IdentityDict,
    Transcoder,
)
from dictionary_learning.errors import ModelError, SiteError
from dictionary_learning.interventions import graft_across
from dictionary_learning.models import TracedModel
from dictionary_learning.sites import Site
from tests.tiny import ATTENTION, DIM, FAMILIES, documents, model, tokenizer

LAYERS = {
    "gpt2": "transformer.h",
    "neox": "gpt_neox.layers",
    "llama": "model.layers",
    "gemma3": "model.layers",
    "qwen3": "model.layers",
}
PROJECTION = {"gpt2": "c_proj", "neox": "dense", "llama": "o_proj", "gemma3": "o_proj", "qwen3": "o_proj"}
STEPS = 12
CONFIG = {"trainer": "top_k", "k": 4, "dict_size": 48}
EVALUATION = EvaluationConfig(n_tokens=400, n_fidelity_tokens=200, ctx_len=16, batch_size=4)


def buffer(traced, submodule, **options) -> ActivationBuffer:
    return ActivationBuffer(
        documents(150),
        traced,
        submodule,
        n_ctxs=24,
        ctx_len=16,
        refresh_batch_size=8,
        out_batch_size=64,
        end_of_data="repeat",
        **options,
    )


def traced(family: str = "llama", seed: int = 0) -> TracedModel:
    return TracedModel(model(family, seed), tokenizer())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("wiring", ["transcoder", "skip_transcoder"])
@pytest.mark.covering(shows=lambda family, wiring: {family, wiring})  # what is read is the same
def test_transcoder_of_an_mlp(family, wiring):
    lm = traced(family)
    path = f"{LAYERS[family]}.1.mlp"
    (dictionary,) = trainSAE(buffer(lm, path, io="in_and_out"), {**CONFIG, "wiring": wiring}, STEPS, progress=False)
    assert isinstance(dictionary, Transcoder) and dictionary.activation_dim == DIM
    candidate = Candidate("t", dictionary, Site(path, "in"), Site(path, "out"))
    figures = evaluate_dictionaries(lm, [candidate], documents(60), EVALUATION)["dictionaries"][0]
    assert figures["site"] == f"{path}:out" and figures["reads"] == f"{path}:in"
    assert figures["metrics"]["fvu"] < 1 and figures["metrics"]["kl"] >= 0


@pytest.mark.parametrize("family", FAMILIES)
def test_crosscoder_of_layers(family):
    lm = traced(family)
    sites = [f"{LAYERS[family]}.{n}" for n in range(3)]
    config = {**CONFIG, "trainer": "batch_top_k", "wiring": "crosscoder"}
    (dictionary,) = trainSAE(buffer(lm, sites), config, STEPS, progress=False)
    assert isinstance(dictionary, Crosscoder) and dictionary.activation_dim == 3 * DIM
    candidate = Candidate("c", dictionary, tuple(map(Site.parse, sites)))
    figures = evaluate_dictionaries(lm, [candidate], documents(60), EVALUATION)["dictionaries"][0]["metrics"]
    assert figures["fvu"] < 1 and torch.isfinite(torch.tensor(figures["ce_reconstructed"]))


def test_cross_layer_transcoder_of_all_mlps():
    lm = traced()
    paths = [f"model.layers.{n}.mlp" for n in range(3)]
    (dictionary,) = trainSAE(
        buffer(lm, paths, io="in_and_out"), {**CONFIG, "wiring": "cross_layer_transcoder"}, STEPS, progress=False
    )
    assert isinstance(dictionary, CrossLayerTranscoder) and len(dictionary.parts) == 3
    reads, writes = (tuple(Site(path, side) for path in paths) for side in ("in", "out"))
    report = evaluate_dictionaries(lm, [Candidate("c", dictionary, reads, writes)], documents(60), EVALUATION)
    assert report["dictionaries"][0]["metrics"]["fvu"] < 1


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_of_an_attention_output(family):
    """The input of the output projection; how many heads there are is found in the model's config."""
    lm = traced(family)
    site = f"{LAYERS[family]}.1.{ATTENTION[family]}.{PROJECTION[family]}:in"
    (dictionary,) = trainSAE(buffer(lm, site), CONFIG, STEPS, activations_split_by_head=True, progress=False)
    assert isinstance(dictionary, HeadAutoencoders) and len(dictionary.parts) == 2
    report = evaluate_dictionaries(lm, [Candidate("h", dictionary, Site.parse(site))], documents(60), EVALUATION)
    assert report["dictionaries"][0]["metrics"]["fvu"] < 1


def test_perfect_transcoder_changes_nothing():
    """What an MLP computes, put in its output's place, gives the same prediction; the rest of the tokens keep theirs."""
    lm = traced()
    path = "model.layers.1.mlp"
    tokens = torch.randint(3, 90, (2, 8))
    mlp = model().get_submodule(path)  # the same weights, not the module that is traced

    class Same(IdentityDict):
        def forward(self, x, output_features=False):
            return mlp(x)

    clean = lm.run(tokens, None)
    edits = graft_across(Same(DIM), Site(path, "in"), Site(path, "out"))
    torch.testing.assert_close(lm.run(tokens, None, edits), clean)
    nobody = torch.zeros(2, 8, dtype=torch.bool)
    dictionary = Transcoder(DIM, 32, {"name": "relu"})
    edits = graft_across(dictionary, Site(path, "in"), Site(path, "out"), nobody)
    torch.testing.assert_close(lm.run(tokens, None, edits), clean)


class TestModelSet:
    def test_crosscoder_of_two_models(self):
        both = ModelSet(base=traced(seed=0), chat=traced(seed=1))
        data = buffer(both, "model.layers.1")
        assert [str(site) for site in data.sites] == ["base/model.layers.1:out", "chat/model.layers.1:out"]
        config = {**CONFIG, "trainer": "batch_top_k", "wiring": "crosscoder"}
        (dictionary,) = trainSAE(data, config, STEPS, progress=False)
        assert isinstance(dictionary, Crosscoder)
        shares = dictionary.relative_norms()
        assert shares.shape == (48,) and bool(((shares >= 0) & (shares <= 1)).all())

    def test_rows_are_the_same_tokens_of_each_model(self):
        base, chat = traced(seed=0), traced(seed=1)
        both = ModelSet(base=base, chat=chat)
        tokens = torch.randint(3, 90, (2, 8))
        sites = both.sites("model.layers.[01]")
        found = both.capture(tokens, None, sites)
        assert len(sites) == 4
        for site, x in found.items():
            owner = base if site.path.startswith("base/") else chat
            inner = Site(site.path.partition("/")[2])
            assert torch.equal(x, owner.capture(tokens, None, [inner])[inner])

    def test_what_cannot_be_is_refused(self):
        with pytest.raises(ModelError, match="at least two"):
            ModelSet(base=traced())
        other = tokenizer()
        other.get_vocab = lambda: {"another": 0}
        with pytest.raises(ModelError, match="different vocabularies"):
            ModelSet(a=traced(), b=TracedModel(model(), other))
        both = ModelSet(a=traced(), b=traced(seed=1))
        with pytest.raises(SiteError, match="the set has a, b"):
            both.sites("c/model.layers.1")
        with pytest.raises(ModelError, match="n_fidelity_tokens=0"):
            both.run(torch.zeros(1, 2, dtype=torch.long), None)
