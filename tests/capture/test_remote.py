"""Models on a server: what would be sent is sent to this process."""

import pytest
import torch

from dictionary_learning import Site, TracedModel, load_model
from dictionary_learning.dictionaries import DICTIONARIES
from dictionary_learning.errors import ModelError, SiteError
from dictionary_learning.interventions import graft
from tests import tiny
from tests.contracts.dictionary_cases import NAMED, moved

IDS = torch.arange(3, 21).view(2, 9)


@pytest.fixture(scope="module", params=["llama", "gpt2", "bloom"])
def models(request, tmp_path_factory) -> tuple[TracedModel, TracedModel, str]:
    """The same model here and as on a server, and its middle layer."""
    folder = tmp_path_factory.mktemp("remote")
    tiny.model(request.param).eval().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    here = load_model(folder, dtype="float32", device="cpu")
    return here, load_model(folder, remote="local", dtype=torch.float32), here.layers()[1].path


def test_remote_activations_are_those_of_here(models):
    here, there, layer = models
    attention = {"llama": "self_attn", "gpt2": "attn", "bloom": "self_attention"}[here.module.config.model_type]
    sites = [Site(f"{layer}.{attention}"), *here.layers(), Site(f"{layer}.{attention}", "in"), *here.sites("embedding")]
    assert there.widths(sites) == here.widths(sites) and there.layers() == here.layers()
    assert next(there.module.parameters()).is_meta and there.device.type == "cpu"  # no weights here
    expected, found = here.capture(IDS, None, sites), there.capture(IDS, None, sites)
    for site in sites:
        assert torch.equal(found[site], expected[site]), site


def test_remote_edits_do_what_they_do_here(models):
    here, there, layer = models
    edits = {Site(layer): lambda x: 2 * x, Site(layer, "in"): lambda x: x.flip(-1)}
    with torch.no_grad():
        assert torch.equal(there.run(IDS, None), here.run(IDS, None))
        assert torch.equal(there.run(IDS, None, edits), here.run(IDS, None, edits))
        assert not torch.equal(there.run(IDS, None, edits), there.run(IDS, None))


def test_remote_padding_is_as_here(models):
    here, there, layer = models
    ids, mask = torch.full((2, 12), 2), torch.zeros(2, 12, dtype=torch.bool)
    ids[:, 3:], mask[:, 3:] = IDS, True
    assert torch.equal(
        there.capture(ids, mask, [Site(layer)])[Site(layer)], here.capture(ids, mask, [Site(layer)])[Site(layer)]
    )


def test_remote_edit_of_another_shape_is_refused(models):
    _, there, layer = models
    with pytest.raises(ValueError, match="return the same shape"):
        there.run(IDS, None, {Site(layer): lambda x: x[:, :1]})


def test_heads_are_not_found_without_weights(models):
    _, there, layer = models
    with pytest.raises(SiteError, match="found by running the model, which is not here"):
        there.sites(f"{layer}:heads")


def test_remote_without_a_key_is_refused(monkeypatch):
    from nnsight.schema.config import CONFIG

    monkeypatch.delenv("NDIF_API_KEY", raising=False)
    monkeypatch.setattr(CONFIG.API, "APIKEY", None)
    with pytest.raises(ModelError, match="no API key is set.*NDIF_API_KEY"):
        load_model("some/model", remote=True, tokenizer=tiny.tokenizer())


def test_object_cannot_be_remote():
    with pytest.raises(ModelError, match="a server knows models by name"):
        load_model(tiny.model("llama"), remote=True)


@pytest.mark.parametrize("name", [*NAMED, "IdentityDict"])
def test_remote_grafts_of_any_dictionary_are_those_of_here(models, name):
    """The dictionary is sent with its weights and the functions of this package that it calls."""
    here, there, layer = models
    torch.manual_seed(3)
    cls = DICTIONARIES[name]
    dictionary = moved(cls(tiny.DIM, 40, **NAMED[name])) if name in NAMED else cls(tiny.DIM)
    for keep in (None, torch.arange(9).expand(2, 9) > 3):
        with torch.no_grad():
            expected, found = (model.run(IDS, None, {layer: graft(dictionary, keep)}) for model in (here, there))
        assert torch.equal(found, expected)
