"""Models by name: the class that they were saved from, spread over devices, offloaded to disk."""

import pytest
import torch
from transformers import BertModel, LlamaForSequenceClassification

from dictionary_learning import Site, load_model
from tests import tiny

IDS = torch.arange(3, 21).view(2, 9)


@pytest.mark.parametrize("family", ["llama", "bert", "t5", "vit", "mamba"])
def test_model_is_loaded_as_the_class_it_was_saved_from(family, tmp_path):
    hf = tiny.model(family).eval()
    hf.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    model = load_model(tmp_path, dtype="float32", device="cpu")
    assert type(model.module) is type(hf)
    for name, parameter in hf.named_parameters():
        assert torch.equal(model.module.get_parameter(name), parameter), name  # none was made up
    assert (model.tokenizer is None) is (family == "vit")


@pytest.mark.parametrize("kind", [BertModel, LlamaForSequenceClassification])
def test_models_with_another_head_or_none_keep_it(kind, tmp_path):
    whole = tiny.model("bert" if kind is BertModel else "llama")
    hf = kind(whole.config)
    hf.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    model = load_model(tmp_path, dtype="float32", device="cpu")
    assert type(model.module) is kind
    assert model.capture(IDS, None, model.layers()[:1])[model.layers()[0]].shape == (2, 9, tiny.DIM)


PLACES = {
    "one device": {"": "cpu"},
    "disk": {
        "model.embed_tokens": "cpu",
        "model.layers.0": "cpu",
        "model.layers.1": "disk",
        "model.layers.2": "disk",
        "model.norm": "cpu",
        "model.rotary_emb": "cpu",
        "lm_head": "cpu",
    },
}


@pytest.mark.parametrize("places", PLACES)
def test_model_spread_by_a_device_map_gives_the_same(places, tmp_path):
    pytest.importorskip("accelerate")
    tiny.save_model(tmp_path / "model")
    whole = load_model(tmp_path / "model", dtype="float32", device="cpu")
    spread = load_model(
        tmp_path / "model", dtype="float32", device_map=PLACES[places], offload_folder=str(tmp_path / "disk")
    )
    assert spread.device.type == "cpu"
    if places == "disk":
        assert next(spread.module.model.layers[1].parameters()).is_meta
    sites = [*whole.layers(), *whole.sites(["embedding", "layers.1:heads", "layers.2.mlp:in", "layers.2.self_attn"])]
    expected, found = whole.capture(IDS, None, sites), spread.capture(IDS, None, sites)
    assert spread.sites("layers.1:heads") == whole.sites("layers.1:heads")
    for site in sites:
        assert torch.equal(found[site], expected[site]), site
    edits = {Site("model.layers.1"): lambda x: 2 * x, Site("model.layers.2.mlp", "in"): lambda x: x + 1}
    with torch.no_grad():
        assert torch.equal(spread.run(IDS, None, edits), whole.run(IDS, None, edits))


@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_model_is_read_and_written(bits, tmp_path):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

    # its kernels for CPUs take widths that are multiples of 64
    config = LlamaConfig(
        vocab_size=97, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    settings = BitsAndBytesConfig(load_in_8bit=bits == 8, load_in_4bit=bits == 4)
    model = load_model(tmp_path, dtype="float16", device="cpu", quantization_config=settings)
    site, heads = Site("model.layers.1"), model.sites("model.layers.1:heads")[0]
    assert heads == Site("model.layers.1.self_attn.o_proj", "in") and model.n_heads(heads) == 2
    assert model.capture(IDS, None, [site])[site].dtype == torch.float16
    with torch.no_grad():
        clean = model.run(IDS, None)
        assert torch.equal(model.run(IDS, None, {site: lambda x: x}), clean)
        assert not torch.equal(model.run(IDS, None, {site: lambda x: 0 * x}), clean)
