"""The wrong tensor: what has ruined results elsewhere without an error, each with what makes it impossible here."""

import json
import logging

import pytest
import torch

from dictionary_learning import IdentityDict, Site, load_dictionary, load_model, save_dictionary
from dictionary_learning.capture import TracedModel
from dictionary_learning.dictionaries import AutoEncoder
from dictionary_learning.errors import SiteError
from dictionary_learning.interventions import ablate, graft
from tests import tiny
from tests.capture.plain import first_tensor, plain_values

IDS = torch.arange(3, 21).view(2, 9)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("hidden_states[11]", "the output of layer 10 and the input of layer 11: name 'layers.10:out'"),
        ("hidden_states[0]", "is the embedding: name 'embedding'"),
        ("model.hidden_states.3:out", "the output of layer 2"),
        ("hidden_states[-1]", "Name the module whose output is meant"),
        ("hidden_states", "there is one more of them than layers"),
    ],
)
def test_index_of_a_hidden_state_is_refused_with_the_module_that_is_meant(asked, said):
    with pytest.raises(SiteError) as raised:
        load_model(tiny.model("llama")).sites(asked)
    assert said in str(raised.value)


def test_what_is_said_of_hidden_states_is_so():
    hf = tiny.model("llama").eval()
    model = load_model(hf)
    with torch.no_grad():
        states = hf(IDS, output_hidden_states=True, use_cache=False).hidden_states
    sites = [*model.sites("embedding"), *model.layers()]
    found = model.capture(IDS, None, [*sites, Site("model.norm")])
    for n in range(3):
        assert torch.equal(states[n], found[sites[n]])
    assert torch.equal(states[3], found[Site("model.norm")]) and not torch.equal(states[3], found[sites[3]])


def test_name_of_the_site_is_kept_with_the_dictionary(tmp_path):
    site = Site("model.layers.1.self_attn", "out", 1)
    save_dictionary(AutoEncoder(4, 8), tmp_path, {"site": str(site)})
    assert json.loads((tmp_path / "config.json").read_text())["site"] == "model.layers.1.self_attn:out[1]"
    assert Site.parse(load_dictionary(tmp_path).info.config["site"]) == site


@pytest.mark.parametrize("family", [*tiny.FAMILIES, "gptj", "bloom", "falcon"])
def test_edit_of_attention_leaves_what_attention_gives(family):
    """A bare tensor in place of a tuple is unpacked along the batch, and the next layer reads the first text for all."""
    hf = tiny.model(family).eval()
    model = load_model(hf)
    layer = model.layers()[1].path
    attention = {**tiny.ATTENTION, "gptj": "attn", "bloom": "self_attention", "falcon": "self_attention"}
    site = Site(f"{layer}.{attention[family]}")
    *_, output = plain_values(hf, site.path, IDS)
    kinds = []
    model.module.get_submodule(site.path).register_forward_hook(lambda *seen: kinds.append(type(seen[-1])))
    with torch.no_grad():
        clean = model.run(IDS, None)
        assert torch.equal(model.run(IDS, None, {site: graft(IdentityDict(tiny.DIM))}), clean)
    assert set(kinds) == {torch.Tensor if isinstance(output, torch.Tensor) else tuple}


def test_layer_that_begins_to_return_something_else_is_refused():
    """As when transformers turned a layer's tuple into a tensor: what was the tensor's first part is now its first text."""

    class Layer(torch.nn.Module):
        form = staticmethod(lambda x: (x,))

        def forward(self, x):
            return self.form(x)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.layer = torch.nn.Embedding(97, 4), Layer()

        def forward(self, input_ids):
            return self.layer(self.embed(input_ids))

    model = load_model(Model())
    site = Site("layer")
    assert model.capture(IDS, None, [site])[site].shape == (2, 9, 4)
    model.module.layer.form = lambda x: x
    assert model.capture(IDS, None, [site])[site].shape == (2, 9, 4)
    model.module.layer.form = lambda x: x[:1]
    with pytest.raises(SiteError, match=r"gave \(1, 9, 4\); \(2, 9, dim\) is needed"):
        model.capture(IDS, None, [site])
    model.module.layer.form = lambda x: x.mean(1, keepdim=True)
    with pytest.raises(SiteError, match=r"gave \(2, 1, 4\)"):
        model.capture(IDS, None, [site])


class InPlace(torch.nn.Module):
    """A module that changes what it is given, after it was read."""

    def __init__(self):
        super().__init__()
        self.embed, self.first, self.second = (torch.nn.Embedding(97, 4), torch.nn.Identity(), torch.nn.Identity())

    def forward(self, input_ids):
        x = self.first(self.embed(input_ids))
        x += 100
        return self.second(x)


def test_captured_values_survive_what_is_done_to_them_in_place():
    module = InPlace()
    model = load_model(module)
    found = model.capture(IDS, None, [Site("embed"), Site("first", "in"), Site("first"), Site("second")])
    x = module.embed(IDS)
    for site in (Site("embed"), Site("first", "in"), Site("first")):
        assert torch.equal(found[site], x), site
    assert torch.equal(found[Site("second")], x + 100)


def test_values_that_an_edit_remembers_survive_too():
    module = InPlace()
    seen = []
    with torch.no_grad():
        out = load_model(module).run(IDS, None, {Site("first"): seen.append})
    assert torch.equal(seen[0], module.embed(IDS)) and torch.equal(out, seen[0] + 100)


def test_change_in_place_that_is_not_returned_is_refused():
    model = load_model(tiny.model("llama"))
    with pytest.raises(SiteError, match="changed its argument in place and returned nothing"):
        model.run(IDS, None, {Site("model.layers.1"): lambda x: (x.zero_(), None)[1]})


def test_activations_are_those_of_the_model_itself():
    """Not of a re-implementation with folded or centred weights."""
    hf = tiny.model("gpt2").eval()
    model = load_model(hf)
    for site in model.layers():
        *_, output = plain_values(hf, site.path, IDS, use_cache=False)
        assert torch.equal(model.capture(IDS, None, [site])[site], first_tensor(output))


def test_forward_pass_stops_after_the_last_site_whatever_it_is():
    hf = tiny.model("llama")
    model = load_model(hf)
    ran = []
    for n in range(3):
        model.module.get_submodule(f"model.layers.{n}").register_forward_hook(lambda *_, n=n: ran.append(n))
    for n in range(3):
        model.widths([Site(f"model.layers.{n}")])
        ran.clear()
        model.capture(IDS, None, [Site("model.layers.0"), Site(f"model.layers.{n}")])
        # the hook of the last itself does not run: the pass stops inside it
        assert ran == list(range(n)), n


def test_dictionary_of_another_model_is_warned_of(caplog):
    model = TracedModel(tiny.model("llama"), name="one/model")
    assert model.check_trained_on(model.describe()) and not caplog.records
    assert model.check_trained_on({}) and model.check_trained_on({**model.describe(), "dtype": "bfloat16"})
    with caplog.at_level(logging.WARNING):
        assert not model.check_trained_on({"name": "other/model", "revision": "abc"})
    assert "What was trained on 'other/model' at revision abc is used with" in caplog.text
    unnamed = load_model(tiny.model("llama"))
    # a model without a name may be any of its class
    assert unnamed.check_trained_on({"name": "other/model"}) and unnamed.check_trained_on(unnamed.describe())
    assert not unnamed.check_trained_on(load_model(tiny.model("gpt2")).describe())


def test_batched_edit_changes_every_text():
    model = load_model(tiny.model("llama"))
    direction = torch.randn(tiny.DIM)
    with torch.no_grad():
        clean = model.run(IDS, None)
        for site in model.layers():
            changed = model.run(IDS, None, {site: lambda x: x + direction})
            assert bool(((changed - clean).abs().amax(-1) > 0).all()), site
            # and to each text what it does to it alone
            alone = torch.cat([model.run(row[None], None, {site: lambda x: x + direction}) for row in IDS])
            torch.testing.assert_close(changed, alone)


def test_edit_that_nothing_reads_is_warned_of_once(caplog):
    class Unread(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.probe = torch.nn.Embedding(97, 4), torch.nn.Linear(4, 4)

        def forward(self, input_ids):
            x = self.embed(input_ids)
            self.probe(x)
            return x

    model = load_model(Unread())
    for _ in range(2):
        model.run(IDS, None, {Site("embed"): ablate(), Site("probe"): ablate()})
    assert [r.message for r in caplog.records] == [
        "Replacing the activations at 'probe:out' of Unread does not change what the model predicts: nothing reads them."
    ]


def test_ablated_latent_changes_the_output_with_and_without_the_error():
    """A graft has no error term unless it is added; added with the reconstruction untouched, it would undo any edit."""
    model = load_model(tiny.model("llama"))
    site = Site("model.layers.1")
    torch.manual_seed(0)
    dictionary = AutoEncoder(tiny.DIM, 32)

    def without(x, drop, error):
        latents = dictionary.encode(x)
        kept = latents.clone()
        kept[..., drop] = 0
        return dictionary.decode(kept) + (x - dictionary.decode(latents) if error else 0)

    with torch.no_grad():
        x = model.capture(IDS, None, [site])[site]
        live = int(dictionary.encode(x).sum((0, 1)).argmax())
        dead = int(dictionary.encode(x).sum((0, 1)).argmin())
        for error in (False, True):
            whole = model.run(IDS, None, {site: lambda x, e=error: without(x, slice(0, 0), e)})
            assert not torch.equal(model.run(IDS, None, {site: lambda x, e=error: without(x, live, e)}), whole)
            if float(dictionary.encode(x)[..., dead].sum()) == 0:
                assert torch.equal(model.run(IDS, None, {site: lambda x, e=error: without(x, dead, e)}), whole)


def test_first_keyword_is_not_taken_for_the_hidden_states():
    """Keywords come in the order of `forward`'s parameters, whatever the order of the call."""

    class Block(torch.nn.Module):
        def forward(self, hidden_states, position_embeddings=None):
            return hidden_states

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.block = torch.nn.Embedding(97, 4), Block()

        def forward(self, input_ids):
            x = self.embed(input_ids)
            return self.block(position_embeddings=(x[..., :2], x[..., 2:]), hidden_states=x)

    module = Model()
    site = Site("block", "in")
    assert torch.equal(load_model(module).capture(IDS, None, [site])[site], module.embed(IDS))


def test_two_edits_of_one_place_are_refused():
    model = load_model(tiny.model("llama"))
    edits = {Site("model.layers.1", "heads"): ablate(), Site("model.layers.1.self_attn.o_proj", "in"): lambda x: x}
    with pytest.raises(SiteError, match="the same place by different names"):
        model.run(IDS, None, edits)
