"""What a dictionary knows of its training need not be said again: its site, and which tokens count."""

import pytest
import torch

from dictionary_learning import ActivationBuffer, TrainerTopK, load_dictionary, load_model, trainSAE
from dictionary_learning.activations._filters import TokenFilter
from dictionary_learning.attribution import Placed, attribute, logit_difference
from dictionary_learning.dictionaries import AutoEncoderTopK, DictionaryInfo, IdentityDict
from dictionary_learning.errors import ConfigError
from dictionary_learning.evaluation import Candidate, EvaluationConfig, evaluate_dictionaries
from dictionary_learning.evaluation._candidates import place
from dictionary_learning.evaluation.reports import render_json
from dictionary_learning.sites import Site
from tests import tiny

SITES = ["model.layers.0", "model.layers.1"]
CONFIG = EvaluationConfig(
    n_tokens=256, n_fidelity_tokens=128, ctx_len=16, batch_size=4, n_resamples=0, n_geometry_latents=0
)
HELD_OUT = tiny.documents(40, seed=1)
RULES = {
    "default": {},
    "limits": {"max_activation_norm_multiple": 1.05},
    "bos": {"remove_bos": False},
    "no limits": {"max_activation_norm_multiple": None},
    "tokens": {"exclude_tokens": ("w3", 7)},
    "positions": {"seqpos_slice": (2, 9)},
}


@pytest.fixture(scope="module")
def model():
    return load_model(tiny.model(), tokenizer=tiny.tokenizer())


def trained(model, rule, folder=None):
    sizes = {"ctx_len": 16, "n_ctxs": 32, "refresh_batch_size": 4, "out_batch_size": 32}
    buffer = ActivationBuffer(tiny.documents(60), model, SITES, **sizes, **RULES[rule])
    return buffer, trainSAE(buffer, TrainerTopK.Config(k=4, dict_size=32), steps=3, save_dir=folder)


@pytest.mark.parametrize("rule", RULES)
def test_site_filter_and_limits_are_those_of_the_training(model, rule, tmp_path):
    buffer, own = trained(model, rule, tmp_path)
    loaded = [load_dictionary(tmp_path / f"trainer_{n}") for n in range(2)]
    said = [Candidate(str(n), d, site) for n, (d, site) in enumerate(zip(own, buffer.sites, strict=True))]
    limits = buffer.norm_limits or {}
    expected = evaluate_dictionaries(model, said, HELD_OUT, CONFIG, token_filter=buffer.filter, norm_limits=limits)
    for found in (own, loaded):
        short = [Candidate(str(n), d) for n, d in enumerate(found)]
        assert render_json(evaluate_dictionaries(model, short, HELD_OUT, CONFIG)) == render_json(expected)
    # the limits belong to the filter
    same = evaluate_dictionaries(model, said, HELD_OUT, CONFIG, token_filter=buffer.filter)
    assert render_json(same) == render_json(expected)
    # what is said counts
    first = evaluate_dictionaries(model, short, HELD_OUT, CONFIG, token_filter=TokenFilter(seqpos_slice=(1,)))
    assert first.data.n_tokens_scored == 256 // 16


def test_different_filters_are_asked_for(model):
    candidates = [Candidate(rule, trained(model, rule)[1][0]) for rule in ("bos", "tokens")]
    with pytest.raises(ConfigError, match=r"'bos' and 'tokens' were trained with different token filters"):
        evaluate_dictionaries(model, candidates, HELD_OUT, CONFIG)
    assert evaluate_dictionaries(model, candidates, HELD_OUT, CONFIG, token_filter=TokenFilter())


def test_a_site_that_is_not_known_is_asked_for(model):
    with pytest.raises(ConfigError, match=r"'a' does not know at which site .* Give Candidate\('a', dictionary, "):
        evaluate_dictionaries(model, Candidate("a", IdentityDict(tiny.DIM)), HELD_OUT, CONFIG)


def test_the_site_may_have_the_name_of_another_package(model):
    dictionary = AutoEncoderTopK(tiny.DIM, 32, 4)
    dictionary.info = DictionaryInfo(sites=("blocks.1.hook_resid_post",), model=model.name, format="sae_lens")
    assert place(model, Candidate("a", dictionary))[0].reads == (Site("model.layers.1"),)


def test_an_attribution_needs_no_site_either(model):
    dictionary = trained(model, "default")[1][0]
    found = [
        attribute(model, one, tiny.documents(1)[0], logit_difference(5, 6)) for one in (dictionary, Placed(dictionary))
    ]
    assert torch.equal(*(torch.as_tensor(next(iter(each.effects.values()))[0]) for each in found))
