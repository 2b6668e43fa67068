"""Inputs and outputs of every form: tensors, tuples, named tuples, lists, model outputs, keywords in any order."""

import collections
from typing import NamedTuple

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

from dictionary_learning import IdentityDict, Site, load_model
from dictionary_learning._module_io import flat, hidden, hidden_or_none, unflat, with_hidden
from dictionary_learning.errors import SiteError
from dictionary_learning.interventions import ablate, graft
from tests import tiny
from tests.capture.plain import first_tensor, plain_values

IDS = torch.arange(3, 21).view(2, 9)
LAYER = {
    **tiny.LAYER,
    **dict.fromkeys(("gptj", "bloom", "falcon"), "transformer.h.1"),
    "bert": "bert.encoder.layer.1",
    "t5": "encoder.block.1",
}


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


class Plumbing(torch.nn.Module):
    """Two streams that pass through a module which takes and gives them in a form of one's choice."""

    class Inner(torch.nn.Module):
        def __init__(self, form):
            super().__init__()
            self.form = form

        def forward(self, x, y=None, scale=1.0):
            return self.form(x * 2, y * 3 * scale)

    def __init__(self, form):
        super().__init__()
        self.embed, self.inner = torch.nn.Embedding(97, 4), self.Inner(form)

    def forward(self, input_ids):
        x = self.embed(input_ids)
        out = self.inner(scale=2.0, y=x + 1, x=x)  # keywords in another order than forward lists them
        first, second = out.values() if isinstance(out, dict) else out
        return first - second


FORMS = {
    "tuple": lambda x, y: (x, y),
    "list": lambda x, y: [x, y],
    "named tuple": Pair,
    "model output": lambda x, y: BaseModelOutput(last_hidden_state=x, hidden_states=y),
    "dict": lambda x, y: {"x": x, "y": y},
}


@pytest.mark.parametrize("form", FORMS)
def test_each_value_of_a_module_has_a_site(form):
    module = Plumbing(FORMS[form])
    model = load_model(module)
    x = module.embed(IDS).detach()
    sites = [Site("inner"), Site("inner", "out", 1), Site("inner", "in"), Site("inner", "in", 1)]
    found = model.capture(IDS, None, sites)
    for site, expected in zip(sites, (2 * x, 6 * (x + 1), x, x + 1), strict=True):
        assert torch.equal(found[site], expected), site


def test_values_within_values_are_found():
    value = ((torch.ones(1, 2, 3), None), [torch.zeros(1, 2, 3)])
    assert torch.equal(hidden(value, 1), torch.zeros(1, 2, 3))
    new = with_hidden(value, torch.full((1, 2, 3), 5.0), 1)
    assert isinstance(new[1], list) and bool((new[1][0] == 5).all()) and new[0] is value[0]


@pytest.mark.parametrize("form", FORMS)
def test_an_edit_keeps_the_form_and_reaches_its_value_alone(form):
    module = Plumbing(FORMS[form])
    model = load_model(module)
    x = module.embed(IDS).detach()
    edits = {
        Site("inner"): (7 - 6 * (x + 1)),
        Site("inner", "out", 1): 2 * x - 7,
        Site("inner", "in"): 14 - 6 * (x + 1),
        Site("inner", "in", 1): 2 * x - 42,
    }
    for site, expected in edits.items():
        with torch.no_grad():
            assert torch.equal(model.run(IDS, None, {site: lambda x: torch.full_like(x, 7)}), expected), site


def test_with_hidden_keeps_everything_else():
    kept = object()
    value = collections.OrderedDict(a=torch.zeros(2), b=kept)
    new = with_hidden(value, torch.ones(2, dtype=torch.float64))
    assert new["b"] is kept and new["a"].dtype == torch.float32 and torch.equal(value["a"], torch.zeros(2))
    assert isinstance(with_hidden(Pair(torch.zeros(2), torch.zeros(2)), torch.ones(2), 1), Pair)
    assert hidden_or_none((None, torch.zeros(2))) is None and hidden_or_none(torch.zeros(2), 1) is None


@pytest.mark.parametrize("family", LAYER)
def test_layers_that_give_tuples_and_layers_that_give_tensors_are_read_and_written_alike(family):
    """Which give which differs from one transformers to the next."""
    hf = tiny.model(family).eval()
    model, path = load_model(hf), LAYER[family]
    named = {"t5": {"decoder_input_ids": IDS, "use_cache": False}, "bert": {}}.get(family, {"use_cache": False})
    *_, output = plain_values(hf, path, IDS, **named)
    site = Site(path)
    assert torch.equal(model.capture(IDS, None, [site])[site], first_tensor(output))
    with torch.no_grad():
        clean = model.run(IDS, None)
        assert torch.equal(model.run(IDS, None, {site: graft(IdentityDict(tiny.DIM))}), clean)
        assert not torch.equal(model.run(IDS, None, {site: ablate()}), clean)


def test_second_of_a_tuple_that_is_no_activation_is_refused():
    model = load_model(Plumbing(lambda x, y: (x, y.unsqueeze(1).expand(-1, 3, -1, -1))))  # as weights of attention
    with pytest.raises(SiteError, match=r"has \(1, 3, 2, 4\) for one text of 2 tokens"):
        model.widths([Site.parse("inner:out[1]")])
    model = load_model(tiny.model("bloom"))
    with pytest.raises(SiteError, match="no tensor"):
        model.widths([Site.parse("transformer.h.0:out[7]")])


def test_second_input_of_a_module_is_captured():
    """BERT adds a layer's input to what its attention returned: the second input of the module that does."""
    hf = tiny.model("bert").eval()
    by_position, by_name, _ = plain_values(hf, "bert.encoder.layer.1.attention.output", IDS)
    given = [*by_position, *by_name.values()]
    site = Site.parse("bert.encoder.layer.1.attention.output:in[1]")
    assert torch.equal(load_model(hf).capture(IDS, None, [site])[site], given[1])


def test_flat_and_unflat_are_inverse():
    for shape, channels, expected in [
        ((2, 5), None, (2, 1, 5)),
        ((2, 3, 5), None, (2, 3, 5)),
        ((2, 3, 4, 5), "last", (2, 12, 5)),
        ((2, 5, 3, 4), "first", (2, 12, 5)),
        ((2, 5, 2, 3, 4), "first", (2, 24, 5)),
        ((2, 3, 5), "first", (2, 3, 5)),
    ]:
        x = torch.randn(shape)
        assert flat(x, channels).shape == expected
        assert torch.equal(unflat(flat(x, channels), x, channels), x)
        assert unflat(flat(x, channels), x, channels).stride() == x.stride()
