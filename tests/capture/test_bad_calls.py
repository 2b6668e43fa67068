"""Bad calls: errors of ours that leave the model usable; masks, ids and edits of every kind."""

import logging

import numpy as np
import pytest
import torch
import transformers
from jaxtyping import config
from safetensors.torch import load_file, save_file

from dictionary_learning import IdentityDict, ModelSet, Site, load_model
from dictionary_learning.errors import ConfigError, DataError, DictionaryLearningError, ModelError, SiteError
from dictionary_learning.interventions import ablate, graft, put, steer
from dictionary_learning.sites import SiteDict
from tests import tiny

IDS = torch.arange(3, 21).view(2, 9)
LAYER = "model.layers.1"
SMALL = {"vocab_size": 97, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
ENCODER = {**SMALL, "max_position_embeddings": 64, "pad_token_id": 1}


@pytest.fixture(autouse=True)
def unchecked():
    """Leaves types unchecked, as they are for a user."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


CALLS = {
    "ids of one dimension": lambda m: m.capture(IDS[0], sites=LAYER),
    "ids that are floats": lambda m: m.capture(IDS.float(), sites=LAYER),
    "no ids": lambda m: m.capture(IDS[:, :0], sites=LAYER),
    "text": lambda m: m.capture("w1 w2", sites=LAYER),
    "id outside the vocabulary": lambda m: m.capture(IDS + 90, sites=LAYER),
    "negative id": lambda m: m.capture({"input_ids": IDS - 100}, sites=LAYER),
    "mask of another shape": lambda m: m.capture(IDS, torch.ones(2, 8, dtype=torch.bool), LAYER),
    "mask that is added": lambda m: m.capture(IDS, torch.zeros(2, 9), LAYER),
    "mask of minus infinity": lambda m: m.capture(IDS, torch.full((2, 9), -torch.inf).triu(), LAYER),
    "mask of halves": lambda m: m.run(IDS, torch.full((2, 9), 0.5)),
    "sites in place of the mask": lambda m: m.capture(IDS, LAYER),
    "number as a site": lambda m: m.capture(IDS, sites=[3]),
    "unknown site": lambda m: m.capture(IDS, sites="nothing"),
    "no function": lambda m: m.run(IDS, {LAYER: 3}),
    "None": lambda m: m.run(IDS, None, {LAYER: None}),
    "edits twice": lambda m: m.run(IDS, {LAYER: ablate()}, {LAYER: ablate()}),
    "tuple": lambda m: m.run(IDS, {LAYER: lambda x: (x,)}),
    "array": lambda m: m.run(IDS, {LAYER: lambda x: np.zeros(x.shape)}),
    "number": lambda m: m.run(IDS, {LAYER: lambda x: 0.0}),
    "layers as text": lambda m: m.layers(["1"]),
    "keyword inputs": lambda m: m.capture({"input_ids": "cat"}, sites=LAYER),
}


@pytest.mark.parametrize("call", CALLS)
def test_bad_call_is_an_error_of_ours_and_leaves_the_model_usable(call):
    model = load_model(tiny.model("llama"))
    with pytest.raises(DictionaryLearningError):
        CALLS[call](model)
    assert model.widths(LAYER)[LAYER] == tiny.DIM
    assert model.capture(IDS, sites=LAYER)[LAYER].shape == (2, 9, tiny.DIM)


def test_bad_first_example_is_forgotten():
    model = load_model(torch.nn.Linear(4, 3))
    for bad in (torch.randn(2, 5), torch.tensor(1.0)):
        with pytest.raises(ModelError):
            model.capture(bad, sites=Site(""))
    assert model.capture(torch.randn(2, 4), sites=Site(""))[Site("")].shape == (2, 1, 3)


def test_error_names_the_id_and_the_size_of_the_embedding():
    with pytest.raises(ModelError, match="token ids from 3 to 97, and the input embedding of Llama.* has 97 rows"):
        load_model(tiny.model("llama")).run(torch.tensor([[3, 97]]))


@pytest.mark.parametrize("sites", [LAYER, [LAYER], (Site(LAYER),), "layers.1", "layers.[1-1]", f"{LAYER}:out"])
def test_site_is_found_however_it_is_named(sites):
    model = load_model(tiny.model("llama"))
    (expected,) = model.capture(IDS, None, [Site(LAYER)]).values()
    for found in (model.capture(IDS, sites=sites), model.capture(IDS, None, sites)):
        for key in (LAYER, "layers.1", Site(LAYER), f"{LAYER}:out"):
            assert torch.equal(found[key], expected) and key in found and found.get(key) is found[key]
    assert model.widths(sites)["layers.1"] == tiny.DIM
    with torch.no_grad():
        changed = model.run(IDS, None, {Site(LAYER): ablate()})
        for key in [sites] if isinstance(sites, str) else sites:
            assert torch.equal(model.run(IDS, {key: ablate()}), changed)


def test_sites_left_out_are_the_layers():
    model = load_model(tiny.model("llama"))
    assert list(model.capture(IDS)) == model.layers()


def test_value_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(KeyError, match="'b' is not among the sites a:out"):
        SiteDict({"a": 1})["b"]
    assert SiteDict({"h.1:in": 1, "g.h.1:in": 2}).get("h.1:in") == 1 and "h.1" not in SiteDict({"h.1:in": 1})


@pytest.mark.parametrize(
    "field", [{"path": 3}, {"side": "up"}, {"index": -1}, {"side": "heads", "index": 1}, {"call": -1}]
)
def test_site_with_an_impossible_field_is_refused(field):
    with pytest.raises(SiteError, match="It needs the path of a module"):
        Site(**{"path": "a", **field})


EDITS = {
    "graft": lambda keep: graft(IdentityDict(tiny.DIM), keep),
    "ablate": lambda keep: ablate(1.0, keep),
    "put": lambda keep: put(torch.ones(2, 9, tiny.DIM), keep),
    "steer": lambda keep: steer(torch.ones(tiny.DIM), 1.0, keep),
}


@pytest.mark.parametrize("name", EDITS)
def test_masks_of_edits_are_booleans_or_integers_of_the_batch_or_of_one_row(name):
    x, keep = torch.randn(2, 9, tiny.DIM), torch.rand(1, 9) > 0.5
    expected = EDITS[name](keep.expand(2, 9))(x)
    for mask in (keep, keep.long(), keep[0], keep.expand(2, 9).int()):
        assert torch.equal(EDITS[name](mask)(x), expected)
    for wrong in (keep.float(), torch.ones(2, 8, dtype=torch.bool), [True]):
        with pytest.raises((ConfigError, DataError), match="mask of tokens has shape|give a tensor|Got keep="):
            EDITS[name](wrong)(x)
    with pytest.raises(DataError, match="While a model generates"):  # one token after the prompt
        EDITS[name](keep)(x[:, :1])


@pytest.mark.parametrize("family", ["llama", "gpt2", "bart", "bert"])
def test_masks_of_integers_are_those_of_booleans(family):
    model = load_model(tiny.model(family))
    ids, mask = torch.cat([IDS, torch.full((2, 3), 2)], 1), torch.arange(12).expand(2, 12) < 9
    site = model.layers()[1]
    expected = model.capture(ids, mask, site)[site]
    for kind in (torch.long, torch.int32, torch.float):
        assert torch.equal(model.capture(ids, mask.to(kind), site)[site], expected)


def experts(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    heads = {"num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64, "num_experts_per_tok": 2}
    config, more = {
        "Mixtral": (transformers.MixtralConfig, {"num_local_experts": 4}),
        "Qwen3Moe": (transformers.Qwen3MoeConfig, {"num_experts": 4, "moe_intermediate_size": 16}),
        "Olmoe": (transformers.OlmoeConfig, {"num_experts": 4}),
        "GptOss": (transformers.GptOssConfig, {"num_local_experts": 4}),
        "Llama4": (transformers.Llama4TextConfig, {"num_local_experts": 4, "intermediate_size_mlp": 32}),
    }[name]
    made = getattr(transformers, f"{name}ForCausalLM")(config(**SMALL, **heads, **more, pad_token_id=0))
    return made.eval()


@pytest.mark.parametrize("name", ["Mixtral", "Qwen3Moe", "Olmoe", "GptOss", "Llama4"])
def test_rows_of_a_mixture_of_experts_are_the_tokens(name):
    hf = experts(name)
    model = load_model(hf)
    block = "feed_forward" if name == "Llama4" else "mlp"
    router = next(n for n, _ in hf.model.layers[1].get_submodule(block).named_children() if n in ("gate", "router"))
    inner = f"{block}.shared_expert" if name == "Llama4" else f"{block}.experts"
    paths = [f"model.layers.1.{part}" for part in (block, f"{block}.{router}", inner)]
    sites = [f"{path}:{side}" for path in paths for side in ("in", "out")]
    found = model.capture(IDS, sites=sites)
    x = found[sites[0]]
    assert torch.equal(found[f"{paths[1]}:in"], x) and torch.equal(found[f"{paths[2]}:in"], x)
    for row in range(2):  # each token has the values that its text has alone
        alone = model.capture(IDS[row : row + 1], sites=sites)
        for site in sites:
            torch.testing.assert_close(found[site][row], alone[site][0])
    with torch.no_grad():
        clean = model.run(IDS)
        for site in sites:
            assert torch.equal(model.run(IDS, {site: lambda x: x}), clean), site
        assert not torch.equal(model.run(IDS, {sites[0]: ablate()}), clean)


def test_rows_in_another_order_than_the_tokens_are_refused():
    """Inside experts, rows may be sorted by expert: as many as tokens, and another token's."""

    class Sorted(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.expert = torch.nn.Embedding(97, 4), torch.nn.Linear(4, 4)

        def forward(self, input_ids):
            x = self.embed(input_ids).flatten(0, 1)
            order = x[:, 0].argsort()
            return self.expert(x[order])[order.argsort()].view(*input_ids.shape, -1)

    with pytest.raises(SiteError, match="in the order of the text"):
        load_model(Sorted()).widths("expert:in")


def test_a_compiled_model_has_the_sites_of_the_model():
    model = load_model(torch.compile(tiny.model("llama")))
    assert model.sites("_orig_mod.model.layers.1") == [Site(LAYER)] and model.layers()[1] == Site(LAYER)
    assert torch.equal(model.capture(IDS)[LAYER], load_model(tiny.model("llama")).capture(IDS)[LAYER])


def test_one_of_several_streams_is_named_by_its_index():
    """As in Gemma 3n, whose layers return (streams, batch, ctx, dim)."""

    class Streams(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.layer = torch.nn.Embedding(97, 4), torch.nn.Identity()

        def forward(self, input_ids):
            return self.layer(torch.stack([self.embed(input_ids) + n for n in range(3)])).sum(0)

    module = Streams()
    model, clean = load_model(module), module(IDS)
    for n, site in enumerate(["layer", "layer:out[1]", "layer:out[2]"]):
        x = module.embed(IDS) + n
        assert model.widths(site)[site] == 4 and torch.equal(model.capture(IDS, sites=site)[site], x)
        assert torch.equal(model.run(IDS, {site: lambda x: x}), clean)
        torch.testing.assert_close(model.run(IDS, {site: torch.zeros_like}), clean - x)
    with pytest.raises(SiteError, match="no tensor"):
        model.widths("layer:out[3]")


POSITIONS = {
    "CTRLLMHeadModel": (transformers.CTRLConfig, {"vocab_size": 97, "n_positions": 64, "n_embd": 16, "dff": 32}),
    "RobertaModel": (transformers.RobertaConfig, ENCODER),
    "XLMRobertaModel": (transformers.XLMRobertaConfig, ENCODER),
    "CamembertModel": (transformers.CamembertConfig, ENCODER),
    "EsmModel": (transformers.EsmConfig, {**ENCODER, "mask_token_id": 2, "position_embedding_type": "absolute"}),
    "MPNetModel": (transformers.MPNetConfig, ENCODER),
    "ElectraModel": (transformers.ElectraConfig, ENCODER),
    "GPTJModel": (transformers.GPTJConfig, {"vocab_size": 97, "n_positions": 64, "n_embd": 16, "rotary_dim": 4}),
    "XGLMModel": (
        transformers.XGLMConfig,
        {"vocab_size": 97, "max_position_embeddings": 64, "d_model": 16, "ffn_dim": 32, "attention_heads": 2},
    ),
}


@pytest.mark.parametrize("name", POSITIONS)
def test_longest_context_runs_and_a_longer_one_is_refused_or_runs(name):
    config, options = POSITIONS[name]
    sizes = (
        {"n_layer": 2, "n_head": 2} if "n_positions" in options else {"num_layers": 2} if name == "XGLMModel" else {}
    )
    model = load_model(getattr(transformers, name)(config(**options, **sizes)).eval())
    longest = model.longest_context
    behind_padding = name in ("RobertaModel", "XLMRobertaModel", "CamembertModel", "EsmModel", "MPNetModel")
    assert longest == (62 if behind_padding else 64)
    assert model.capture(torch.full((1, longest), 5)).popitem()[1].shape[1] == longest
    if name == "XGLMModel":  # its table grows
        model.capture(torch.full((1, longest + 1), 5))
    else:
        with pytest.raises(ModelError, match=f"knows {longest} positions, and a context has {longest + 1} tokens"):
            model.capture(torch.full((1, longest + 1), 5))


def saved(folder):
    tiny.save_model(folder)
    return folder / "model.safetensors"


def without(file, key):
    save_file({k: v for k, v in load_file(file).items() if k != key}, file, metadata={"format": "pt"})


BROKEN = {
    "missing tensor": lambda file: without(file, "model.layers.1.mlp.up_proj.weight"),
    "missing layer": lambda file: (file.parent / "config.json").write_text(
        (file.parent / "config.json").read_text().replace('"num_hidden_layers": 3', '"num_hidden_layers": 5')
    ),
    "wrong shape": lambda file: (file.parent / "config.json").write_text(
        (file.parent / "config.json").read_text().replace('"intermediate_size": 32', '"intermediate_size": 48')
    ),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-100]),
    "no weights": lambda file: file.unlink(),
}


@pytest.mark.parametrize("how", BROKEN)
def test_folder_that_lacks_weights_is_refused(how, tmp_path):
    BROKEN[how](saved(tmp_path))
    with pytest.raises(ModelError, match="lack .* of the weights|its files cannot be used"):
        load_model(tmp_path, device="cpu", dtype="float32")


@pytest.mark.parametrize("options", [{"nosuch": 1}, {"dtype": "float7"}, {"device": "nosuch"}, {"device": "cuda:99"}])
def test_option_that_cannot_be_used_is_an_error_of_ours(options, tmp_path):
    saved(tmp_path)
    with pytest.raises((ConfigError, ModelError)):
        load_model(tmp_path, **options)


def test_processor_is_taken_for_the_tokenizer_that_it_holds():
    tokenizer = tiny.tokenizer()
    processor = type("Processor", (), {"tokenizer": tokenizer})()
    assert load_model(tiny.model("llama"), tokenizer=processor).tokenizer is tokenizer


def test_set_uses_the_tokenizer_whose_tokens_all_models_know(caplog):
    base, chat = tiny.tokenizer(), tiny.tokenizer()
    chat.add_tokens(["<chat>"])
    small, large = tiny.model("llama"), tiny.model("llama", seed=1)
    with caplog.at_level(logging.INFO):
        both = ModelSet(chat=load_model(large, tokenizer=chat), base=load_model(small, tokenizer=base))
    assert both.tokenizer is base and "The tokenizer of 'base' is used" in caplog.text
    assert ModelSet(a=load_model(small, tokenizer=base), b=large).tokenizer is base
    alone = ModelSet(a=small, b=large)
    assert alone.tokenizer is None
    found = alone.capture(IDS, sites=["a/model.layers.1", "model.layers.2"])
    assert [str(site) for site in found] == ["a/model.layers.1:out", "a/model.layers.2:out", "b/model.layers.2:out"]
    assert alone.widths("a/model.layers.1")["a/model.layers.1"] == tiny.DIM
    other = tiny.tokenizer()
    other.get_vocab = lambda: {"other": 0}
    with pytest.raises(ModelError, match="different vocabularies"):
        ModelSet(a=load_model(small, tokenizer=base), b=load_model(large, tokenizer=other))
    for bad in ("c/model.layers.1", small.model.layers[1], 3):
        with pytest.raises(SiteError):
            alone.sites(bad)
