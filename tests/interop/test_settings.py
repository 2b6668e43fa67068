"""Each setting of a config that changes what a dictionary is or computes is read, or refused by its name."""

import json
import logging
import shutil

import pytest
import torch
import yaml

from dictionary_learning import load_dictionary
from dictionary_learning.errors import CheckpointError
from dictionary_learning.interop import FORMATS
from tests.interop import by_hand, golden

OTHER_HOOK = "blocks.0.hook_resid_pre"
SIZES = {"d_in": 15, "d_sae": 63}
_PLACE = {"hook_name": OTHER_HOOK, "model_name": "another"}
_SAE_LENS = {
    "architecture": "gated", "apply_b_dec_to_input": False, "normalize_activations": "layer_norm",
    "reshape_activations": "hook_x", "metadata": _PLACE, **SIZES,
}  # fmt: skip
_TRANSCODER = {
    **_SAE_LENS,
    "apply_b_dec_to_input": True,
    "d_out": 9,
    "metadata": {**_PLACE, "hook_name_out": OTHER_HOOK},
}
_OLD = {"apply_b_dec_to_input": False, "activation_fn_str": "topk", "normalize_activations": True, **SIZES}
_GEMMA = {
    "architecture": "topk", "affine_connection": True, "width": 63, "type": "transcoder",
    "hf_hook_point_in": "model.layers.1.output", "hf_hook_point_out": "model.layers.1.mlp.output",
    "model_name": "another",
}  # fmt: skip
_GEMMA_LAYERS = {**_GEMMA, "type": "sae", "hf_hook_point_out": [f"model.layers.{n}.mlp.output" for n in (2, 1, 0)]}
_MOSS = {
    "d_model": 15, "expansion_factor": 3, "act_fn": "jumprelu", "norm_activation": "token-wise",
    "use_glu_encoder": True, "apply_decoder_bias_to_pre_encoder": True, "sparsity_include_decoder_norm": True, "sae_type": "lorsa",
}  # fmt: skip
_MOSS_RELU = {key: value for key, value in _MOSS.items() if "norm" not in key or key == "norm_activation"}
"""Of ReLU, the norms by which latents are compared change nothing."""
_MWHANNA = {
    "model_kind": "foo", "feature_input_hook": "mlp.hook_in", "feature_output_hook": "mlp.hook_out", "activation": "foo",
}  # fmt: skip
_TRAINER = {
    "activation_dim": 15,
    "dict_size": 63,
    "dict_class": "GatedAutoEncoder",
    "submodule_name": "m",
    "lm_name": "m",
}
_SPARSIFY = {
    "k": 5, "activation": "groupmax", "d_in": 15, "num_latents": 63, "skip_connection": True, "transcode": True,
    "signed": True,
}  # fmt: skip
_TEMPORAL = {"bottleneck_factor": 4, "exp_factor": 3, "kval_topk": 5, "n_attn_layers": 2, "n_heads": 1, "sae_diff_type": "relu", "scaling_factor": 0.4, "tied_weights": False}  # fmt: skip
CASES: dict[str, tuple[str, dict]] = {
    "dictionary_learning/AutoEncoderTopK": ("config.json", {"trainer": {**_TRAINER, "dict_class": "BatchTopKSAE", "k": 5}}),
    "dictionary_learning/MatryoshkaBatchTopKSAE": ("config.json", {"trainer": {**_TRAINER, "k": 5, "group_sizes": [1, 63]}}),
    "sparsify/topk": ("cfg.json", _SPARSIFY),
    "sparsify/groupmax": ("cfg.json", {"activation": "topk", "k": 8, "signed": True}),
    "sparsify/topk_expansion_factor": ("cfg.json", {"expansion_factor": 3}),
    "saelens/standard": ("cfg.json", {**_SAE_LENS, "activation": "tanh-relu"}),
    "saelens/gated": ("cfg.json", {**_SAE_LENS, "architecture": "standard", "activation": "tanh-relu"}),
    "saelens/topk_rescale_unfolded": ("cfg.json", {**_SAE_LENS, "k": 5, "rescale_acts_by_decoder_norm": False}),
    "saelens/jumprelu": ("cfg.json", _SAE_LENS),
    "saelens/transcoder": ("cfg.json", _TRANSCODER),
    "saelens/skip_transcoder": ("cfg.json", _TRANSCODER),
    "saelens/matching_pursuit": ("cfg.json", {**_SAE_LENS, "max_iterations": 2, "residual_threshold": 2.0}),
    "saelens/temporal": (
        "cfg.json",
        {
            "architecture": "standard", "apply_b_dec_to_input": False, "n_heads": 1, "n_attn_layers": 1,
            "bottleneck_factor": 4, "sae_diff_type": "relu", "kval_topk": 5, "tied_weights": False,
            "activation_normalization_factor": 0.9, "normalize_activations": "none", "metadata": _PLACE, **SIZES,
        },
    ),
    "saelens_legacy/standard": ("cfg.json", {**_OLD, "finetuning_scaling_factor": True, "hook_name": OTHER_HOOK}),
    "saelens_legacy/finetuning_scaling_factor": ("cfg.json", {**_OLD, "finetuning_scaling_factor": False}),
    "saelens_legacy/topk": ("cfg.json", {**_OLD, "activation_fn_str": "relu", "activation_fn_kwargs": {"k": 5}}),
    "saelens_legacy/gated": ("cfg.json", {"activation_fn_str": "tanh-relu"}),
    "saelens_legacy/old_key_names": ("cfg.json", {"hook_point": OTHER_HOOK, "activation_fn": "tanh-relu"}),
    "gemma_scope_2/jumprelu": ("config.json", _GEMMA),
    "gemma_scope_2/transcoder": ("config.json", {**_GEMMA, "type": "sae"}),
    "gemma_scope_2/transcoder_affine": ("config.json", {**_GEMMA, "affine_connection": False, "type": "sae"}),
    "third_party/llama_scope_r1": (
        "config.json",
        {
            **_MOSS, "act_fn": "topk", "hook_point_in": OTHER_HOOK, "hook_point_out": OTHER_HOOK, "use_decoder_bias": False,
            "apply_decoder_bias_to_pre_encoder": True,
        },
    ),
    "third_party/temporal": ("conf.yaml", {"sae": _TEMPORAL, "llm": {"dimin": 15}}),
    "third_party/mwhanna_transcoder": ("config.yaml", {**_MWHANNA, "activation": "jumprelu", "k": 4}),
    "llama_scope": (
        "hyperparams.json",
        {
            **_MOSS, "d_sae": 63, "act_fn": "topk", "jump_relu_threshold": 0.5, "dataset_average_activation_norm": {"in": 2.0},
            "apply_decoder_bias_to_pre_encoder": True, "use_decoder_bias": False, "hook_point_in": OTHER_HOOK,
            "hook_point_out": OTHER_HOOK,
        },
    ),
    "llamascopium/sae": (
        "config.json", {**_MOSS, "top_k": 5, "use_decoder_bias": False, "hook_point_in": OTHER_HOOK, "hook_point_out": OTHER_HOOK},
    ),
    "llamascopium/crosscoder": ("config.json", {**_MOSS_RELU, "hook_points": by_hand.HOOKS[:2]}),
    "llamascopium/clt": ("config.json", {**_MOSS_RELU, "hook_points_in": by_hand.HOOKS[:2], "hook_points_out": by_hand.HOOKS[1:]}),
    "mwhanna/topk": ("config.yaml", {**_MWHANNA, "activation": "relu", "k": 5}),
    "mwhanna/jumprelu": ("config.yaml", {**_MWHANNA, "activation": "relu", "k": 5}),
    "mwhanna/relu": ("config.yaml", {**_MWHANNA, "activation": "jumprelu", "k": 5}),
    "circuit_tracer_clt": ("config.yaml", {**_MWHANNA, "activation": "topk", "k": 5}),
    "gemma_scope_2_clt": ("config.json", _GEMMA_LAYERS),
    "gemma_scope_2_crosscoder": ("config.json", _GEMMA_LAYERS),
    "mats_sae": ("final.pt", {"cfg": {**SIZES, "is_transcoder": True, "hook_point": OTHER_HOOK, "expansion_factor": 3}}),
}  # fmt: skip
"""Of each reader files, the settings beside the weights, and another value of each setting."""
WITHOUT = {"own", "gemma_scope", "openai", "qwen_scope", "goodfire", "deepseek_r1", "saprmarks"}
"""Formats without settings in a file, and ours, whose weights repeat them (`test_safety`)."""
SIZES_AND_NAMES = {
    "d_in", "d_sae", "d_model", "expansion_factor", "exp_factor", "width", "activation_dim", "dict_size", "dimin",
    "hook_name", "hook_name_out", "hook_point", "hook_point_in", "hook_point_out", "hf_hook_point_in", "hf_hook_point_out",
    "feature_input_hook", "feature_output_hook", "submodule_name", "model_name",
}  # fmt: skip
ODD: tuple = (0, False, "", [], {})
"""Values that Python takes for nothing; null alone says nothing."""
X = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(3))


def each():
    for name, (_, values) in CASES.items():
        for key, value in values.items():
            nested = value if isinstance(value, dict) and key != "dataset_average_activation_norm" else {"": value}
            yield from ((name, key, inner, other) for inner, other in nested.items())


def put(name, folder):
    if name in by_hand.WRITTEN:
        torch.manual_seed(0)
        by_hand.WRITTEN[name](folder)
    else:
        shutil.copytree(golden.folder(name), folder)
    (path,) = folder.rglob(CASES[name][0])
    return path


def change(path, key, inner, value):
    if path.suffix == ".pt":
        held = torch.load(path, weights_only=True)
    else:
        held = (json.loads if path.suffix == ".json" else yaml.safe_load)(path.read_text())
    if inner:
        held[key][inner] = value
    else:
        held[key] = value
    if path.suffix == ".pt":
        torch.save(held, path)
    else:
        path.write_text(json.dumps(held) if path.suffix == ".json" else yaml.safe_dump(held))


def seen(name, folder):
    """Returns what a user sees of a dictionary: its places, its class, and what it computes."""
    loaded = load_dictionary(folder, **golden.FACTS.get(name, {})).requires_grad_(False)
    x = X.repeat(1, 1, loaded.activation_dim // 16)
    info = loaded.info
    return (info.sites, info.target_sites, info.model, type(loaded)), (loaded.encode(x), loaded(x))


def test_every_format_with_settings_is_here():
    names = {golden.format_of(name) if name not in by_hand.WRITTEN else name.split("/")[0] for name in CASES}
    assert names | WITHOUT == set(FORMATS)


@pytest.mark.parametrize(("name", "key", "inner", "value"), list(each()))
def test_another_setting_is_another_dictionary_or_refused(name, key, inner, value, tmp_path, caplog):
    path = put(name, tmp_path / "d")
    before = seen(name, tmp_path / "d")
    caplog.set_level(logging.WARNING)
    change(path, key, inner, value)
    try:
        after = seen(name, tmp_path / "d")
    except CheckpointError as error:
        # what contradicts the tensors may be named by them
        names = (inner or key, str(value), "tensor", "k is needed", "hook_points", "(dict_size=")
        assert any(name in str(error) for name in names), str(error)
        assert "damaged" not in str(error)
        return
    same = all(torch.equal(one, other) for one, other in zip(before[1], after[1], strict=True))
    warned = "not known here" in caplog.text or "scaled outside of it" in caplog.text
    assert before[0] != after[0] or not same or warned


@pytest.mark.parametrize(
    ("name", "key", "inner"), [case[:3] for case in each() if (case[2] or case[1]) in SIZES_AND_NAMES]
)
def test_sizes_and_names_of_a_wrong_type_are_refused_by_their_name(name, key, inner, tmp_path):
    path = put(name, tmp_path / "d")
    for value in ODD:
        change(path, key, inner, value)
        with pytest.raises(CheckpointError, match=f"{inner or key}|hook_name") as caught:  # or by its later name
            load_dictionary(tmp_path / "d", **golden.FACTS.get(name, {}))
        assert "damaged" not in str(caught.value)


@pytest.mark.parametrize(
    "key",
    ["scaling_factor", "n_heads", "n_attn_layers", "bottleneck_factor", "tied_weights", "sae_diff_type", "kval_topk"],
)
def test_temporal_settings_have_no_defaults(key, tmp_path):
    change(put("third_party/temporal", tmp_path / "d"), "sae", key, None)
    with pytest.raises(CheckpointError, match=f"does not say {key}"):
        load_dictionary(tmp_path / "d")


def test_scales_of_one_site_are_one(tmp_path):
    path = put("llama_scope", tmp_path / "d")
    change(path, "dataset_average_activation_norm", "out", 5.0)
    with pytest.raises(CheckpointError, match=r"\.out=5.0, and reads and writes one site"):
        load_dictionary(tmp_path / "d")
    change(path, "hook_point_in", "", None)
    with pytest.raises(CheckpointError, match="Add hook_point_in"):
        load_dictionary(tmp_path / "d")


@pytest.mark.parametrize("name", ["saelens/standard", "saelens_legacy/standard", "saelens_legacy/old_key_names"])
def test_one_head_is_warned_of_and_has_no_site(name, tmp_path, caplog):
    path = put(name, tmp_path / "d")
    if name == "saelens/standard":
        change(path, "metadata", "hook_head_index", 3)
    else:
        change(path, "hook_point_head_index" if "old" in name else "hook_head_index", "", 3)
    loaded = load_dictionary(tmp_path / "d")
    assert loaded.info.sites == () and "of one attention head (hook_head_index=3)" in caplog.text


def test_whitening_that_may_be_another_run_s_is_warned_of(tmp_path, caplog):
    put("saelens/standard", tmp_path / "d")
    load_dictionary(tmp_path / "d")
    assert "whitening" not in caplog.text
    (tmp_path / "d" / "activation_whitening.safetensors").write_bytes(b"")
    load_dictionary(tmp_path / "d")
    assert "whitening of activations" in caplog.text
