"""Layers, the embedding and the attention heads, found in models that name them differently."""

import pytest
import torch

from dictionary_learning import ActivationBuffer, Site, load_model, trainSAE
from dictionary_learning.dictionaries import HeadAutoencoders
from dictionary_learning.errors import ConfigError, SiteError
from tests import tiny
from tests.capture.plain import first_tensor, plain_inputs

IDS = torch.arange(3, 21).view(2, 9)
LAYERS = {
    "gpt2": "transformer.h",
    "neox": "gpt_neox.layers",
    "llama": "model.layers",
    "gemma3": "model.layers",
    "qwen3": "model.layers",
    "mistral": "model.layers",
    "mixtral": "model.layers",
    "phi": "model.layers",
    "opt": "model.decoder.layers",
    "gptj": "transformer.h",
    "falcon": "transformer.h",
    "bloom": "transformer.h",
    "bert": "bert.encoder.layer",
    "roberta": "roberta.encoder.layer",
    "t5": "encoder.block",
    "bart": "model.encoder.layers",
}
PROJECTION = {
    "gpt2": "attn.c_proj",
    "neox": "attention.dense",
    "llama": "self_attn.o_proj",
    "gemma3": "self_attn.o_proj",
    "qwen3": "self_attn.o_proj",
    "mistral": "self_attn.o_proj",
    "mixtral": "self_attn.o_proj",
    "phi": "self_attn.dense",
    "opt": "self_attn.out_proj",
    "gptj": "attn.out_proj",
    "falcon": "self_attention.dense",
    "bloom": "self_attention.dense",
    "bert": "attention.output.dense",
    "roberta": "attention.output.dense",
    "t5": "layer.0.SelfAttention.o",
    "bart": "self_attn.out_proj",
}
EMBEDDING = {
    "gpt2": "transformer.wte",
    "neox": "gpt_neox.embed_in",
    "llama": "model.embed_tokens",
    "bert": "bert.embeddings.word_embeddings",
    "t5": "encoder.embed_tokens",
    "bart": "model.encoder.embed_tokens",
}


@pytest.mark.parametrize("family", LAYERS)
def test_layers_are_found_in_order(family):
    model = load_model(tiny.model(family))
    assert model.layers() == [Site(f"{LAYERS[family]}.{n}") for n in range(tiny.LAYERS)]


@pytest.mark.parametrize("family", LAYERS)
def test_heads_are_the_input_of_the_output_projection(family):
    hf = tiny.model(family).eval()
    model = load_model(hf)
    layer = model.layers()[1].path
    (site,) = model.sites(f"{layer}:heads")
    expected = plain_inputs(hf, f"{layer}.{PROJECTION[family]}", IDS)
    assert torch.equal(model.capture(IDS, None, [site])[site], expected)
    assert model.n_heads(site) == 2 and model.widths([site])[site] == 16
    assert model.sites(layer, "heads") == [site] == model.sites(Site(layer, "heads"))


def test_heads_of_a_layer_move_what_the_projection_gets():
    hf = tiny.model("bert").eval()
    model = load_model(hf)
    site = Site("bert.encoder.layer.1", "heads")
    seen = {}
    dense = model.module.get_submodule("bert.encoder.layer.1.attention.output.dense")
    dense.register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    model.run(IDS, None, {site: lambda x: torch.full_like(x, 3.0)})
    assert bool((seen["x"] == 3).all())


def test_heads_of_every_layer_by_a_pattern():
    model = load_model(tiny.model("llama"))
    assert [str(site) for site in model.sites("layers.*:heads")] == [
        f"model.layers.{n}.self_attn.o_proj:in" for n in range(3)
    ]
    assert model.layers(side="heads") == model.sites("layers.*:heads") == model.sites("layers.*.self_attn", "heads")


def test_heads_are_known_under_the_site_that_was_asked_for():
    model = load_model(tiny.model("llama"))
    alias, place = Site("model.layers.1", "heads"), Site("model.layers.1.self_attn.o_proj", "in")
    found = model.capture(IDS, None, [alias, place])
    assert torch.equal(found[alias], found[place])


def test_heads_of_an_adapter_are_the_adapters_input():
    """The adapter's own matrix comes first, and is given the same tensor; an edit of that alone would miss the adapter."""

    class Adapter(torch.nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base_layer, self.low = base, torch.nn.Linear(16, 16)

        def forward(self, x):
            return self.base_layer(x) + self.low(x)

    hf = tiny.model("llama")
    hf.model.layers[1].self_attn.o_proj = Adapter(hf.model.layers[1].self_attn.o_proj)
    assert load_model(hf).sites("model.layers.1:heads") == [Site("model.layers.1.self_attn.o_proj", "in")]


@pytest.mark.parametrize(
    ("family", "path", "said"),
    [
        ("mamba", "backbone.layers.1", "names a number of attention heads"),
        ("llama", "model.layers.1.mlp", "No output projection of attention was found in 'model.layers.1.mlp'"),
    ],
)
def test_heads_where_there_is_no_attention_are_refused(family, path, said):
    with pytest.raises(SiteError, match=said):
        load_model(tiny.model(family)).sites(f"{path}:heads")


def test_layers_of_a_hybrid_without_attention_have_no_heads():
    from transformers import JambaConfig, JambaForCausalLM

    config = JambaConfig(
        vocab_size=97, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        attn_layer_period=2, attn_layer_offset=1, num_experts=2, mamba_d_state=4,
    )  # fmt: skip
    model = load_model(JambaForCausalLM(config))
    assert model.sites("model.layers.1:heads") == [Site("model.layers.1.self_attn.o_proj", "in")]
    with pytest.raises(SiteError, match="mixes tokens is not 16 wide"):
        model.sites("model.layers.0:heads")


def test_number_of_heads_is_refused_where_the_width_does_not_fit():
    hf = tiny.model("llama")
    hf.model.layers[0].odd = torch.nn.Linear(16, 3)
    hf.model.layers[0].register_forward_hook(lambda layer, args, output: (layer.odd(first_tensor(output)), output)[1])
    with pytest.raises(SiteError, match="3 wide, which 2 heads cannot share"):
        load_model(hf).n_heads("model.layers.0.odd")


@pytest.mark.parametrize("family", ["gpt2", "bloom", "opt"])
def test_dictionaries_of_heads_train_where_the_config_has_other_names(family):
    model = load_model(tiny.model(family), tokenizer=tiny.tokenizer())
    buffer = ActivationBuffer(
        tiny.documents(100), model, model.layers()[1].path, io="heads", n_ctxs=24, ctx_len=16, refresh_batch_size=8, out_batch_size=64,
    )  # fmt: skip
    (dictionary,) = trainSAE(
        buffer, {"trainer": "top_k", "k": 4, "dict_size": 32, "wiring": "heads"}, 4, progress=False
    )
    assert isinstance(dictionary, HeadAutoencoders) and len(dictionary.parts) == 2


@pytest.mark.parametrize("family", EMBEDDING)
def test_embedding_is_found_under_any_name(family):
    hf = tiny.model(family)
    model = load_model(hf)
    (site,) = model.sites("embedding")
    assert site == Site(EMBEDDING[family])
    expected = hf.get_input_embeddings().weight[IDS]
    if family == "bart":
        expected = expected * hf.get_submodule("model.encoder.embed_tokens").embed_scale
    torch.testing.assert_close(model.capture(IDS, None, [site])[site], expected.detach(), rtol=0, atol=0)
    alias = Site("embedding")
    assert torch.equal(model.capture(IDS, None, [alias])[alias], expected)


def test_module_called_embedding_is_meant_by_its_name():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.Embedding(97, 4)

        def forward(self, input_ids):
            return self.embedding(input_ids)

    assert load_model(Model()).sites("embedding") == [Site("embedding")]
    hf = tiny.model("llama")
    hf.get_input_embeddings = lambda: None
    with pytest.raises(SiteError, match="does not name the module that embeds"):
        load_model(hf).sites("embedding")


def test_lists_of_experts_are_no_layers():
    class Expert(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(8))

        def forward(self, x):
            return sum(expert(x) for expert in self.experts)

    class Mixture(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(97, 4)
            self.blocks = torch.nn.ModuleList(Expert() for _ in range(2))

        def forward(self, input_ids):
            x = self.embed(input_ids)
            for block in self.blocks:
                x = block(x)
            return x

    assert load_model(Mixture()).layers() == [Site("blocks.0"), Site("blocks.1")]


def test_layers_of_a_model_of_text_and_images_are_the_texts():
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    text = LlamaConfig(vocab_size=97, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    vision = CLIPVisionConfig(
        hidden_size=8, num_hidden_layers=5, num_attention_heads=4, intermediate_size=8, image_size=16, patch_size=8
    )
    model = load_model(
        LlavaForConditionalGeneration(LlavaConfig(text_config=text, vision_config=vision, image_token_index=96))
    )
    assert [site.path for site in model.layers()] == [f"model.language_model.layers.{n}" for n in range(2)]
    (site,) = model.sites("model.language_model.layers.1:heads")
    assert model.n_heads(site) == 2  # and not the vision model's 4
    assert model.capture(IDS, None, [site])[site].shape == (2, 9, 16)


def test_layers_are_chosen_by_number_and_stride():
    model = load_model(tiny.model("gpt2"))
    assert model.layers([0, -1]) == [Site("transformer.h.0"), Site("transformer.h.2")]
    assert model.layers(layer_stride=2) == [Site("transformer.h.0"), Site("transformer.h.2")]
    assert model.layers([1], side="in_and_out") == [Site("transformer.h.1", "in"), Site("transformer.h.1")]
    with pytest.raises(SiteError, match="3 layers, 0 to 2"):
        model.layers([0, 3])
    with pytest.raises(SiteError, match="give one of the two"):
        model.layers([0], 2)
    with pytest.raises(ConfigError, match="at least 1"):
        model.layers(layer_stride=0)


def test_model_without_lists_has_no_layers():
    with pytest.raises(SiteError, match="no list of layers"):
        load_model(torch.nn.Sequential(torch.nn.Linear(2, 2)), example=torch.ones(1, 2)).layers()


def test_in_and_out_gives_both_sides_of_each_module():
    model = load_model(tiny.model("llama"))
    expected = [Site(f"model.layers.{n}.mlp", side) for n in (0, 1) for side in ("in", "out")]
    assert model.sites("layers.[01].mlp", "in_and_out") == expected
    assert model.sites("layers.[01].mlp:in", "in_and_out") == expected
