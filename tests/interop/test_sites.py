"""Where a saved dictionary belongs: among the sites of data, in a model, and by the names of TransformerLens."""

import json

import pytest

from dictionary_learning import (
    AutoEncoderTopK,
    DictionaryInfo,
    Site,
    Transcoder,
    as_custom_sae,
    load_dictionary,
    load_model,
    save_dictionary,
    write_dictionary,
)
from dictionary_learning.capture._hook_names import hook_name, layer_of, model_name
from dictionary_learning.cli import main
from dictionary_learning.errors import CheckpointError, ConfigError
from dictionary_learning.interop._saved import match_site, match_sites, saved_at, sites_in_model
from dictionary_learning.interventions._places import places_of
from tests import tiny

DATA = [Site("model.layers.0"), Site("model.layers.3"), Site("model.layers.3", "in"), Site("model.layers.3.mlp")]
HOOKS = {
    "model.layers.10:out": "blocks.10.hook_resid_post",
    "model.layers.10": "blocks.10.hook_resid_post",
    "layers.10": "blocks.10.hook_resid_post",
    "transformer.h.2:in": "blocks.2.hook_resid_pre",
    "gpt_neox.layers.0.mlp:out": "blocks.0.hook_mlp_out",
    "transformer.h.3.attn:out": "blocks.3.hook_attn_out",
    "model.layers.4.self_attn:out": "blocks.4.hook_attn_out",
    "model.layers.4:heads": "blocks.4.attn.hook_z",
    "model.layers.4.self_attn.o_proj:in": "blocks.4.attn.hook_z",
    "transformer.h.4.mlp.c_proj:in": "blocks.4.mlp.hook_post",
    "model.layers.5.output": "blocks.5.hook_resid_post",
    "resid_post_layer_3": "blocks.3.hook_resid_post",
    "blocks.8.hook_resid_pre": "blocks.8.hook_resid_pre",
    "blocks.0.attn.hook_z": "blocks.0.attn.hook_z",
}
UNKNOWN = [
    *("embedding", "model.layers.3.mlp:in", "model.layers.3:out[1]", "model.layers.3.mlp.experts.5:out", "m.1:out"),
    *("model.vision_tower.encoder.layers.3:out", "encoder.layers.3:out", "synthetic:out", "trainer_0", "a:b"),
]


@pytest.mark.parametrize(("site", "hook"), HOOKS.items())
def test_sites_have_the_hooks_of_transformer_lens(site, hook):
    assert hook_name(site) == hook
    assert layer_of(hook) == int(next(part for part in hook.split(".") if part.isdigit()))


@pytest.mark.parametrize("site", UNKNOWN)
def test_what_is_not_certain_has_no_hook(site):
    assert hook_name(site) is None


def test_gemma_normalizes_what_the_mlp_returns():
    assert hook_name("model.layers.5.mlp:out", "google/gemma-2-2b") is None
    assert hook_name("model.layers.5.post_feedforward_layernorm:out", "google/gemma-3-1b-pt") == "blocks.5.hook_mlp_out"
    assert hook_name("model.layers.5.post_attention_layernorm:out", "meta-llama/Llama-3.1-8B") is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt2", "gpt2"),
        ("EleutherAI/pythia-70m", "EleutherAI/pythia-70m"),
        ("/models/mine", None),
        ("./m", None),
        ("C:\\m", None),
    ],
)
def test_local_folders_are_no_names_of_models(name, expected):
    assert model_name(name) == expected


def our_run(folder, site="model.layers.10:out", target=None, dictionary=None):
    config = {
        "name": "top_k-3",
        "site": site,
        "buffer": {"model": {"name": "EleutherAI/pythia-70m"}},
        "trainer": {"k": 3},
    }
    config |= {"target_site": target} if target else {}
    return save_dictionary(dictionary or AutoEncoderTopK(12, 40, 3), folder / "trainer_0", config)


def metadata(folder):
    return json.loads((folder / "cfg.json").read_text())["metadata"]


def test_saelens_finds_the_place_of_our_dictionaries(tmp_path):
    our_run(tmp_path)
    assert main(["convert", str(tmp_path), str(tmp_path / "out"), "--to", "sae_lens"]) == 0
    said = metadata(tmp_path / "out")
    assert said["hook_name"] == "blocks.10.hook_resid_post" and said["model_name"] == "EleutherAI/pythia-70m"
    write_dictionary(load_dictionary(tmp_path / "trainer_0"), tmp_path / "theirs", "dictionary_learning")
    assert json.loads((tmp_path / "theirs" / "config.json").read_text())["trainer"]["layer"] == 10


def test_site_without_a_hook_is_refused_unless_the_hook_is_given(tmp_path):
    dictionary = load_dictionary(our_run(tmp_path, "model.layers.3.mlp:in"))
    with pytest.raises(CheckpointError, match="none is known for model.layers.3.mlp:in. Give hook_name="):
        write_dictionary(dictionary, tmp_path / "out", "sae_lens")
    assert not (tmp_path / "out").exists()
    given = {"hook_name": "blocks.3.ln2.hook_normalized", "model_name": "pythia-70m"}
    said = metadata(write_dictionary(dictionary, tmp_path / "out", "sae_lens", **given))
    assert (said["hook_name"], said["model_name"]) == ("blocks.3.ln2.hook_normalized", "pythia-70m")


def test_transcoder_has_two_hooks(tmp_path):
    made = Transcoder(12, 40, {"name": "relu"}, output_dim=12)
    folder = our_run(tmp_path, "model.layers.3:in", "model.layers.3.mlp:out", made)
    said = metadata(write_dictionary(load_dictionary(folder), tmp_path / "out", "sae_lens"))
    assert (said["hook_name"], said["hook_name_out"]) == ("blocks.3.hook_resid_pre", "blocks.3.hook_mlp_out")


@pytest.mark.parametrize("to", ["own", "sae_lens"])
def test_edits_of_a_transcoder_that_was_written_are_at_its_target(to, tmp_path):
    """Without its target, a transcoder of a layer's input would be taken to write the layer's output."""
    model = load_model(tiny.model("gpt2"), tokenizer=tiny.tokenizer())
    made = Transcoder(tiny.DIM, 40, {"name": "relu"}, output_dim=tiny.DIM)
    made.info = DictionaryInfo(sites=("transformer.h.1:in",), target_sites=("transformer.h.1.mlp:out",))
    loaded = load_dictionary(write_dictionary(made, tmp_path / "a", to))
    again = load_dictionary(write_dictionary(loaded, tmp_path / "b", to))
    for one in (loaded, again):
        reads, writes = places_of(model, one, None, None)
        assert (list(reads), list(writes)) == ([Site("transformer.h.1", "in")], [Site("transformer.h.1.mlp")])


def test_a_transcoder_of_sparsify_predicts_what_the_module_returns(tmp_path):
    made = Transcoder(12, 40, {"name": "top_k", "k": 4}, output_dim=12)
    info = load_dictionary(write_dictionary(made, tmp_path / "layers.3.mlp", "sparsify")).info
    assert (info.sites, info.target_sites) == (("layers.3.mlp:in",), ("layers.3.mlp:out",))


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_unit_rows_may_be_folded_by_other_tools(factor, tmp_path):
    dictionary = AutoEncoderTopK(12, 40, 3).requires_grad_(False)
    dictionary.W_dec.mul_(factor / dictionary.W_dec.norm(dim=1, keepdim=True))
    folder = write_dictionary(dictionary, tmp_path, "sae_lens")
    settings = json.loads((folder / "cfg.json").read_text())
    assert settings["rescale_acts_by_decoder_norm"] == (factor == 1.0)
    assert (load_dictionary(folder).W_dec == dictionary.W_dec).all()


def test_custom_sae_takes_the_hook_of_our_site(tmp_path):
    cfg = as_custom_sae(load_dictionary(our_run(tmp_path))).cfg
    assert (cfg.hook_name, cfg.hook_layer, cfg.model_name) == ("blocks.10.hook_resid_post", 10, "EleutherAI/pythia-70m")


@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("model.layers.3:out", DATA[1]),
        ("layers.3", DATA[1]),
        ("layers.3:in", DATA[2]),
        ("layers.3.mlp", DATA[3]),
        ("blocks.3.hook_resid_pre", DATA[2]),
        ("blocks.3.hook_mlp_out", DATA[3]),
        ("layers.7", None),
        ("trainer_0", None),
        ("a:b", None),
    ],
)
def test_names_are_matched_with_the_sites_of_data(name, site):
    assert match_site(name, DATA) == site


def test_files_say_more_than_names():
    info = DictionaryInfo(sites=("layers.3:in",), target_sites=("layers.3.mlp",))
    assert match_sites(info, DATA, name="layers.0") == (DATA[2],)
    assert match_sites(info, DATA, name="layers.0", target=True) == (DATA[3],)
    assert match_sites(DictionaryInfo(), DATA, name="layers.0") == (DATA[0],)
    assert match_sites(DictionaryInfo(), DATA, name="layers.0", target=True) is None
    assert match_sites(DictionaryInfo(sites=("layers.3", "layers.9")), DATA) is None


def test_sites_of_a_model_are_found_by_files_hooks_and_names():
    model = load_model(tiny.model("gpt2"), tokenizer=tiny.tokenizer())
    for info, name, site in (
        (DictionaryInfo(sites=("transformer.h.1:out",), format="own"), "", Site("transformer.h.1")),
        (DictionaryInfo(sites=("blocks.1.hook_resid_post",), format="sae_lens"), "x", Site("transformer.h.1")),
        (DictionaryInfo(sites=("blocks.1.hook_mlp_out",), format="sae_lens"), "x", Site("transformer.h.1.mlp")),
        (DictionaryInfo(sites=("blocks.2.hook_resid_pre",), format="sae_lens"), "x", Site("transformer.h.2", "in")),
        (DictionaryInfo(format="sparsify"), "h.1.mlp", Site("transformer.h.1.mlp")),
    ):
        assert sites_in_model(info, model, name=name) == (site,)
    with pytest.raises(ConfigError, match="do not say at which site"):
        sites_in_model(DictionaryInfo(), model, name="trainer_0")


def test_all_dictionaries_at_a_place(tmp_path):
    our_run(tmp_path)
    (one,) = saved_at(str(tmp_path))
    assert (one.name, one.folder, one.config["site"]) == ("top_k-3", tmp_path / "trainer_0", "model.layers.10:out")
