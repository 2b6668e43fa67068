"""Models that take no text: images, maps of channels, any module with arguments of its own."""

import pytest
import torch

from dictionary_learning import ActivationBuffer, Site, load_model, trainSAE
from dictionary_learning.data import ExampleStream
from dictionary_learning.errors import ModelError, SiteError
from dictionary_learning.interventions import ablate
from tests import tiny
from tests.capture.plain import first_tensor, plain_values

IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Convolutions(torch.nn.Module):
    """Maps with channels first; the rectifier works in place."""

    def __init__(self):
        super().__init__()
        self.first, self.act = torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(inplace=True)
        self.second, self.head = torch.nn.Conv2d(8, 6, 3), torch.nn.Linear(6, 5)

    def forward(self, images):
        return self.head(self.second(self.act(self.first(images))).mean((2, 3)))


def test_vision_transformer_gives_a_row_for_each_patch():
    hf = tiny.model("vit").eval()
    model = load_model(hf)
    site = model.layers()[1]
    found = model.capture({"pixel_values": IMAGES}, None, [site])[site]
    assert found.shape == (3, 5, tiny.DIM)  # four patches and the class token
    assert torch.equal(found, first_tensor(plain_values(hf, site.path, pixel_values=IMAGES)[2]))
    assert model.positions([site]) == 5
    (embedding,) = model.sites("embedding")
    assert model.capture({"pixel_values": IMAGES}, None, [embedding])[embedding].shape == (3, 4, tiny.DIM)
    (heads,) = model.sites(f"{site.path}:heads")
    assert model.n_heads(heads) == 2


def test_edits_reach_the_prediction_of_a_vision_transformer():
    model = load_model(tiny.model("vit"), example={"pixel_values": IMAGES})
    site = model.layers()[1]
    with torch.no_grad():
        clean = model.run({"pixel_values": IMAGES}, None)
        assert clean.shape == (3, 2)
        assert torch.equal(model.run({"pixel_values": IMAGES}, None, {site: lambda x: x}), clean)
        changed = model.run({"pixel_values": IMAGES}, None, {site: ablate()})
    assert bool(((changed - clean).abs().amax(-1) > 0).all())  # of each image


def test_dictionaries_train_on_patches():
    model = load_model(tiny.model("vit"))
    stream = ExampleStream(
        list(IMAGES.repeat(8, 1, 1, 1)), lambda batch: {"pixel_values": torch.stack(batch)}, ctx_len=5
    )
    model.capture(*stream.take(1), [])  # the first batch takes the example's place
    buffer = ActivationBuffer(
        stream, model, model.layers()[1].path, n_ctxs=12, ctx_len=5, refresh_batch_size=4, out_batch_size=16, end_of_data="repeat",
    )  # fmt: skip
    (dictionary,) = trainSAE(buffer, {"trainer": "top_k", "k": 4, "dict_size": 32}, 4, progress=False)
    assert dictionary.activation_dim == tiny.DIM


def test_channels_first_are_brought_to_the_end_and_back():
    module = Convolutions()
    model = load_model(module, example=IMAGES[:1], channels="first")
    found = model.capture(IMAGES, None, model.sites(["first", "head:in"]))
    assert found[Site("head", "in")].shape == (3, 1, 6)
    with torch.no_grad():
        first = module.first(IMAGES)
        # and not what the rectifier left of it
        assert torch.equal(found[Site("first")], first.flatten(2).transpose(1, 2))
        clean = module(IMAGES)
        assert torch.equal(model.run(IMAGES, None, {Site("first"): lambda x: x}), clean)
        doubled = module.head(module.second((2 * first).relu()).mean((2, 3)))
        torch.testing.assert_close(model.run((IMAGES,), None, {Site("first"): lambda x: 2 * x}), doubled)


def test_channels_last_need_not_be_said_of_square_maps():
    class Last(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.map = torch.nn.Linear(3, 8)

        def forward(self, images):
            return self.map(images.permute(0, 2, 3, 1))

    module = Last()
    model = load_model(module)
    found = model.capture(IMAGES, None, model.sites("map"))[Site("map")]
    with torch.no_grad():
        assert torch.equal(found, module(IMAGES).flatten(1, 2))


def test_maps_whose_channels_may_be_first_are_refused_until_it_is_said():
    """The last dimension of (batch, channels, height, width) would be taken for the activations, without an error."""
    with pytest.raises(SiteError, match=r"\(1, 8, 14, 14\), which may be a map with its channels first or last"):
        load_model(Convolutions(), example=IMAGES).widths([Site("first")])


def test_module_with_several_inputs_is_fed_by_position_or_by_name():
    class Sum(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = torch.nn.Linear(4, 6), torch.nn.Linear(5, 6)

        def forward(self, a, b, scale=1.0):
            return self.left(a) + scale * self.right(b)

    module, a, b = Sum(), torch.randn(3, 4), torch.randn(3, 5)
    by_position, by_name = load_model(module), load_model(module)
    for model, inputs in ((by_position, (a, b)), (by_name, {"a": a, "b": b, "scale": 2.0})):
        sites = model.sites(["left", "right:in"])
        found = model.capture(inputs, None, sites)
        with torch.no_grad():
            assert torch.equal(found[sites[0]], module.left(a).unsqueeze(1)) and torch.equal(found[sites[1]][:, 0], b)
    with torch.no_grad():
        assert torch.equal(by_name.run({"a": a, "b": b, "scale": 2.0}, None), module(a, b, 2.0))


def test_sequence_model_that_is_not_a_transformer():
    module = torch.nn.LSTM(4, 8, batch_first=True)
    model = load_model(module)
    x = torch.randn(3, 6, 4)
    with torch.no_grad():  # another kernel is called where gradients are needed
        expected = module(x)[0]
        assert torch.equal(model.run(x, None), expected)
    assert torch.equal(model.capture(x, None, [Site("")])[Site("")], expected)
    torch.testing.assert_close(model.run(x, None), expected)


def test_model_without_example_says_what_it_needs():
    with pytest.raises(ModelError, match="Give one of its inputs, as load_model\\(model, example="):
        load_model(Convolutions()).widths([Site("head")])
    with pytest.raises(ModelError, match="no tensor with a batch"):
        load_model(Convolutions()).capture({"images": "cat.png"}, None, [Site("head")])


def test_values_that_are_not_of_each_example_are_refused():
    class Flat(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rows, self.tokens = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

        def forward(self, x):
            return self.tokens(self.rows(x).flatten(0, 1))

    model = load_model(Flat(), example=torch.randn(1, 3, 4))
    with pytest.raises(SiteError, match=r"has \(3, 4\) for one example"):
        model.widths([Site("tokens")])


def test_decoder_reads_the_encoders_text_one_token_later():
    hf = tiny.model("t5").eval()
    model = load_model(hf)
    ids = torch.arange(3, 21).view(2, 9)
    site = Site("decoder.block.1")
    shifted = torch.cat([torch.zeros(2, 1, dtype=torch.long), ids[:, :-1]], dim=1)
    *_, output = plain_values(hf, site.path, ids, decoder_input_ids=shifted, use_cache=False)
    assert torch.equal(model.capture(ids, None, [site])[site], first_tensor(output))
    given = {"input_ids": ids, "decoder_input_ids": shifted[:, :5]}
    assert model.capture(given, torch.ones(2, 9, dtype=torch.bool), [site])[site].shape == (2, 5, tiny.DIM)
