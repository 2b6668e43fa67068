"""Files of llamascopium, circuit-tracer and Gemma Scope 2, written by hand from their formats."""

import json
import math

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from dictionary_learning import load_dictionary, save_dictionary
from dictionary_learning.dictionaries import Crosscoder, CrossLayerTranscoder, Transcoder
from dictionary_learning.errors import CheckpointError
from tests.interop import by_hand

D, F, L = 8, 24, 3
CLOSE = {"atol": 1e-5, "rtol": 1e-4}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def write(folder, tensors, config=None, weights="sae_weights.safetensors", name="config.json"):
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / weights)
    if config is not None:
        (folder / name).write_text(json.dumps(config) if name.endswith("json") else yaml.safe_dump(config))
    return folder


def sae(hook_out="blocks.1.hook_resid_post", **changes):
    hook = "blocks.1.hook_resid_post"
    config = {
        "sae_type": "sae",
        "d_model": D,
        "expansion_factor": F / D,
        "hook_point_in": hook,
        "hook_point_out": hook_out,
    }
    config |= {"act_fn": "topk", "top_k": 4, "norm_activation": "dataset-wise", **changes}
    tensors = {"W_E": torch.randn(D, F), "b_E": torch.randn(F), "W_D": torch.randn(F, D), "b_D": torch.randn(D)}
    for one in {hook, hook_out}:
        tensors[f"dataset_average_activation_norm.{one}"] = torch.tensor(3.0 if one == hook else 5.0)
    return tensors, config


@pytest.mark.parametrize("by_norm", [True, False])
@pytest.mark.parametrize("act_fn", ["relu", "topk", "jumprelu"])
def test_llamascopium_autoencoder(tmp_path, act_fn, by_norm):
    tensors, config = sae(act_fn=act_fn, sparsity_include_decoder_norm=by_norm)
    if act_fn == "jumprelu":
        tensors["activation_function.log_jumprelu_threshold"] = torch.randn(F)
    loaded = load_dictionary(write(tmp_path / "sae", tensors, config))
    assert loaded.info.format == "llamascopium" and loaded.info.sites == ("blocks.1.hook_resid_post",)
    x, s = torch.randn(32, D), math.sqrt(D) / 3
    pre = (s * x) @ tensors["W_E"] + tensors["b_E"]
    norms = tensors["W_D"].norm(dim=1) if by_norm else torch.ones(F)
    gated = pre * norms
    if act_fn == "relu":
        f = gated.relu() / norms
    elif act_fn == "topk":
        f = torch.zeros_like(gated).scatter(1, gated.topk(4).indices, gated.topk(4).values.relu()) / norms
    else:
        f = gated * (gated > tensors["activation_function.log_jumprelu_threshold"].exp()) / norms
    torch.testing.assert_close(loaded.encode(x), f, **CLOSE)
    torch.testing.assert_close(loaded(x), (f @ tensors["W_D"] + tensors["b_D"]) / s, **CLOSE)


def test_llamascopium_transcoder_without_bias_and_folded_scale(tmp_path):
    tensors, config = sae("blocks.1.hook_mlp_out", act_fn="relu", norm_activation="inference", use_decoder_bias=False)
    tensors.pop("b_D")
    loaded = load_dictionary(write(tmp_path / "t", tensors, config))
    assert isinstance(loaded, Transcoder) and loaded.info.target_sites == ("blocks.1.hook_mlp_out",)
    x = torch.randn(5, D)
    torch.testing.assert_close(loaded(x), (x @ tensors["W_E"] + tensors["b_E"]).relu() @ tensors["W_D"], **CLOSE)
    tensors, config = sae("blocks.1.hook_mlp_out", act_fn="relu")
    loaded = load_dictionary(write(tmp_path / "scaled", tensors, config))
    a, b = math.sqrt(D) / 3, math.sqrt(D) / 5
    expected = ((a * x @ tensors["W_E"] + tensors["b_E"]).relu() @ tensors["W_D"] + tensors["b_D"]) / b
    torch.testing.assert_close(loaded(x), expected, **CLOSE)


def test_llamascopium_scales_each_token(tmp_path):
    tensors, config = sae(act_fn="relu", norm_activation="token-wise")
    loaded = load_dictionary(write(tmp_path / "t", tensors, config))
    x = torch.randn(5, D)
    s = math.sqrt(D) / x.norm(dim=1, keepdim=True)
    expected = ((s * x @ tensors["W_E"] + tensors["b_E"]).relu() @ tensors["W_D"] + tensors["b_D"]) / s
    torch.testing.assert_close(loaded(x), expected, **CLOSE)


LLAMA = {
    "hook_point_in": "blocks.1.hook_resid_post", "hook_point_out": "blocks.1.hook_resid_post", "d_model": D,
    "d_sae": F, "expansion_factor": F / D, "act_fn": "jumprelu", "jump_relu_threshold": 0.9, "top_k": 4,
    "norm_activation": "dataset-wise", "dataset_average_activation_norm": {"in": 3.0, "out": 3.0},
    "apply_decoder_bias_to_pre_encoder": False, "use_decoder_bias": True, "sparsity_include_decoder_norm": False,
}  # fmt: skip


def llama_scope(folder, **changes):
    config = {**LLAMA, **changes}
    w = {"encoder.weight": torch.randn(F, D), "encoder.bias": torch.randn(F), "decoder.weight": torch.randn(D, F)}
    w |= {"decoder.bias": torch.randn(D)} if config["use_decoder_bias"] else {}
    write(folder / "checkpoints", w, None, "final.safetensors")
    (folder / "hyperparams.json").write_text(json.dumps(config))
    return w, config


@pytest.mark.parametrize("act_fn", ["relu", "topk", "jumprelu"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sparsity_include_decoder_norm": True},
        {"apply_decoder_bias_to_pre_encoder": True},
        {"norm_activation": "token-wise"},
        {"norm_activation": "inference"},
        {"use_decoder_bias": False},
        {"hook_point_out": "blocks.1.hook_mlp_out", "dataset_average_activation_norm": {"in": 3.0, "out": 5.0}},
    ],
)
def test_llama_scope_reads_each_setting(tmp_path, act_fn, changes):
    w, config = llama_scope(tmp_path, act_fn=act_fn, **changes)
    loaded = load_dictionary(tmp_path)
    assert loaded.info.format == "llama_scope" and loaded.info.sites == ("blocks.1.hook_resid_post",)
    predicts = config["hook_point_out"] != config["hook_point_in"]
    assert isinstance(loaded, Transcoder) == predicts
    assert loaded.info.target_sites == (("blocks.1.hook_mlp_out",) if predicts else ())
    x, root = torch.randn(32, D), math.sqrt(D)
    b_dec = w.get("decoder.bias", torch.zeros(D))
    read, write_ = root / 3, root / (5 if predicts else 3)
    if config["norm_activation"] == "token-wise":
        read = write_ = root / x.norm(dim=1, keepdim=True)
    elif config["norm_activation"] == "inference":
        read = write_ = 1.0
    z = read * x - (b_dec if config["apply_decoder_bias_to_pre_encoder"] else 0)
    pre = z @ w["encoder.weight"].T + w["encoder.bias"]
    compared = pre * (w["decoder.weight"].norm(dim=0) if config["sparsity_include_decoder_norm"] else 1)
    if act_fn == "jumprelu":
        f = pre.relu() * (compared > 0.9 * (read if isinstance(read, float) else 1))
    elif act_fn == "topk":
        kept = compared.topk(4).indices
        f = torch.zeros_like(pre).scatter(1, kept, pre.gather(1, kept).relu())
    else:
        f = pre.relu()
    torch.testing.assert_close(loaded.encode(x), f, **CLOSE)
    torch.testing.assert_close(loaded(x), (f @ w["decoder.weight"].T + b_dec) / write_, **CLOSE)


HOOKS = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]


def crosscoder(act_fn, norms, **changes):
    """Decoder rows of a latent have one norm at both sites."""
    W_D = torch.nn.functional.normalize(torch.randn(2, F, D), dim=-1) * norms.unsqueeze(1)
    tensors = {"W_E": torch.randn(2, D, F), "b_E": torch.randn(2, F), "W_D": W_D, "b_D": torch.randn(2, D)}
    tensors |= {f"dataset_average_activation_norm.{hook}": torch.tensor(n + 2.0) for n, hook in enumerate(HOOKS)}
    if act_fn == "jumprelu":
        tensors["activation_function.log_jumprelu_threshold"] = torch.randn(F)
    config = {"sae_type": "crosscoder", "d_model": D, "hook_points": HOOKS, "act_fn": act_fn, "top_k": 4, **changes}
    return tensors, config


@pytest.mark.parametrize(
    ("act_fn", "by_norm", "same"),
    [(act_fn, by_norm, act_fn == "topk" and by_norm) for act_fn in ("relu", "jumprelu", "topk") for by_norm in (True, False)],
)  # fmt: skip
def test_llamascopium_crosscoder(tmp_path, act_fn, by_norm, same):
    norms = torch.full((F,), 2.5) if same else torch.rand(F) + 0.5
    tensors, config = crosscoder(act_fn, norms, sparsity_include_decoder_norm=by_norm)
    loaded = load_dictionary(write(tmp_path / "c", tensors, config))
    assert isinstance(loaded, Crosscoder) and loaded.info.sites == tuple(HOOKS)
    x, s = torch.randn(32, 2, D), (math.sqrt(D) / torch.tensor([2.0, 3.0])).unsqueeze(1)
    pre = torch.einsum("bnd,ndf->bf", s * x, tensors["W_E"]) + tensors["b_E"].sum(0)
    compared = pre * norms if by_norm else pre
    if act_fn == "jumprelu":
        f = pre * (compared > tensors["activation_function.log_jumprelu_threshold"].exp())
    elif act_fn == "topk":
        f = torch.zeros_like(pre).scatter(1, compared.topk(4).indices, pre.gather(1, compared.topk(4).indices).relu())
    else:
        f = pre.relu()
    torch.testing.assert_close(loaded.encode(x.flatten(1)), f, **CLOSE)
    out = (torch.einsum("bf,nfd->bnd", f, tensors["W_D"]) + tensors["b_D"]) / s
    torch.testing.assert_close(loaded(x.flatten(1)), out.flatten(1), **CLOSE)


@pytest.mark.parametrize("act_fn", ["jumprelu", "topk", "batchtopk"])
def test_llamascopium_crosscoders_of_other_norms_are_refused(tmp_path, act_fn):
    tensors, config = crosscoder(act_fn, torch.rand(F) + 0.5)
    if act_fn != "jumprelu":
        with pytest.raises(CheckpointError, match="latents have different norms"):
            load_dictionary(write(tmp_path / "c", tensors, config))
    tensors["W_D"] = tensors["W_D"] * torch.tensor([1.0, 2.0]).reshape(2, 1, 1)
    with pytest.raises(CheckpointError, match="decoder norm of each site"):
        load_dictionary(write(tmp_path / "d", tensors, config))
    config["sparsity_include_decoder_norm"] = False
    assert isinstance(load_dictionary(write(tmp_path / "e", tensors, config)), Crosscoder)


def test_llamascopium_cross_layer_transcoder(tmp_path):
    reads, writes = ([f"blocks.{n}.{hook}" for n in range(L)] for hook in ("hook_resid_mid", "hook_mlp_out"))
    tensors = {"W_E": torch.randn(L, D, F), "b_E": torch.randn(L, F)}
    for to in range(L):
        tensors[f"W_D.{to}"], tensors[f"b_D.{to}"] = torch.randn(to + 1, F, D), torch.randn(D)
    for n, hook in enumerate([*reads, *writes]):
        tensors[f"dataset_average_activation_norm.{hook}"] = torch.tensor(n + 1.0)
    config = {"sae_type": "clt", "d_model": D, "hook_points_in": reads, "hook_points_out": writes, "act_fn": "relu"}
    loaded = load_dictionary(write(tmp_path / "c", tensors, config))
    assert isinstance(loaded, CrossLayerTranscoder) and loaded.info.target_sites == tuple(writes)
    x = torch.randn(4, L, D)
    f = [(math.sqrt(D) / (n + 1) * x[:, n] @ tensors["W_E"][n] + tensors["b_E"][n]).relu() for n in range(L)]
    torch.testing.assert_close(loaded.encode(x.flatten(1)), torch.cat(f, 1), **CLOSE)
    for to, out in enumerate(loaded(x.flatten(1)).split(D, 1)):
        raw = sum(f[n] @ tensors[f"W_D.{to}"][n] for n in range(to + 1)) + tensors[f"b_D.{to}"]
        torch.testing.assert_close(out, raw * (L + to + 1) / math.sqrt(D), **CLOSE)
    with pytest.raises(CheckpointError, match="decoder norm"):
        load_dictionary(write(tmp_path / "d", tensors, {**config, "act_fn": "topk"}))


@pytest.mark.parametrize("changes", [{"norm_activation": "batch-wise"}, {"use_glu_encoder": True}, {"sae_type": "lorsa"}, {"d_model": 9}, {"hook_point_in": None}])  # fmt: skip
def test_llamascopium_refusals(tmp_path, changes):
    tensors, config = sae(**changes)
    with pytest.raises(CheckpointError):
        load_dictionary(write(tmp_path / "x", tensors, config))


def transcoder(**further):
    return {
        "W_enc": torch.randn(F, D),
        "b_enc": torch.randn(F),
        "W_dec": torch.randn(F, D),
        "b_dec": torch.randn(D),
        **further,
    }


@pytest.mark.parametrize("kind", ["relu", "topk", "jumprelu", "skip"])
def test_circuit_tracer_transcoders(tmp_path, kind):
    config = {
        "model_kind": "transcoder_set",
        "feature_input_hook": "hook_resid_mid",
        "feature_output_hook": "hook_mlp_out",
    }
    config |= {"model_name": "some/model", **({"activation": "topk", "k": 3} if kind == "topk" else {})}
    tensors = transcoder()
    if kind == "jumprelu":
        tensors["activation_function.threshold"] = torch.rand(F)
    if kind == "skip":
        tensors["W_skip"] = torch.randn(D, D)
    folder = write(tmp_path / "set", tensors, config, "layer_1.safetensors", "config.yaml")
    write(folder, transcoder(), None, "layer_0.safetensors")
    loaded = load_dictionary(folder / "layer_1.safetensors")
    assert isinstance(loaded, Transcoder) and loaded.info.model == "some/model"
    assert (loaded.info.sites, loaded.info.target_sites) == (("blocks.1.hook_resid_mid",), ("blocks.1.hook_mlp_out",))
    x = torch.randn(16, D)
    pre = x @ tensors["W_enc"].T + tensors["b_enc"]
    f = pre.relu()
    if kind == "topk":
        f = torch.zeros_like(pre).scatter(1, pre.topk(3).indices, pre.topk(3).values.relu())
    if kind == "jumprelu":
        f = pre * (pre > tensors["activation_function.threshold"])
    out = f @ tensors["W_dec"] + tensors["b_dec"] + (x @ tensors["W_skip"].T if kind == "skip" else 0)
    torch.testing.assert_close(loaded.encode(x), f, **CLOSE)
    torch.testing.assert_close(loaded(x), out, **CLOSE)
    if kind == "topk":
        (folder / "config.yaml").write_text(yaml.safe_dump({**config, "k": None}))
        with pytest.raises(CheckpointError, match="k"):
            load_dictionary(folder / "layer_1.safetensors")


@pytest.mark.parametrize("said", ["jumprelu", "relu", None])
def test_a_jumprelu_without_thresholds_is_not_read_as_relu(tmp_path, said):
    config = {"model_kind": "transcoder_set", **({"activation": said} if said else {})}
    folder = write(tmp_path / "set", transcoder(), config, "layer_0.safetensors", "config.yaml")
    if said == "jumprelu":
        with pytest.raises(CheckpointError, match=r"has no activation_function\.threshold"):
            load_dictionary(folder / "layer_0.safetensors")
    else:
        assert load_dictionary(folder / "layer_0.safetensors").encode(torch.randn(9, D)).any()
    whole = write(
        tmp_path / "whole", transcoder(**{"activation_function.threshold": torch.full((F,), 99.0)}), config,
        "layer_0.safetensors", "config.yaml",
    )  # fmt: skip
    if said == "relu":
        with pytest.raises(CheckpointError, match="activation='relu', and the file has"):
            load_dictionary(whole / "layer_0.safetensors")
    else:
        assert not load_dictionary(whole / "layer_0.safetensors").encode(torch.randn(9, D)).any()


def check_cross_layer(loaded, W_enc, b_enc, W_dec, b_dec, thresholds):
    """W_dec[s][t] is the decoder from layer s to layer s + t."""
    assert isinstance(loaded, CrossLayerTranscoder)
    x = torch.randn(6, L, D)
    f = []
    for n in range(L):
        pre = x[:, n] @ W_enc[n].T + b_enc[n]
        f.append(pre.relu() if thresholds is None else pre * (pre > thresholds[n]))
    torch.testing.assert_close(loaded.encode(x.flatten(1)), torch.cat(f, 1), **CLOSE)
    for to, out in enumerate(loaded(x.flatten(1)).split(D, 1)):
        torch.testing.assert_close(out, sum(f[n] @ W_dec[n][:, to - n] for n in range(to + 1)) + b_dec[to], **CLOSE)


@pytest.mark.parametrize("has_threshold", [True, False])
def test_circuit_tracer_cross_layer(tmp_path, has_threshold):
    W_enc, b_enc, b_dec = torch.randn(L, F, D), torch.randn(L, F), torch.randn(L, D)
    W_dec, thresholds = [torch.randn(F, L - n, D) for n in range(L)], torch.rand(L, F)
    for n in range(L):
        own = {f"W_enc_{n}": W_enc[n], f"b_enc_{n}": b_enc[n], f"b_dec_{n}": b_dec[n]}
        own |= {f"threshold_{n}": thresholds[n]} if has_threshold else {}
        write(tmp_path / "clt", own, None, f"W_enc_{n}.safetensors")
        write(tmp_path / "clt", {f"W_dec_{n}": W_dec[n]}, None, f"W_dec_{n}.safetensors")
    config = {
        "model_kind": "cross_layer_transcoder",
        "feature_input_hook": "hook_resid_mid",
        "model_name": "some/model",
    }
    (tmp_path / "clt" / "config.yaml").write_text(yaml.safe_dump(config))
    loaded = load_dictionary(tmp_path / "clt")
    assert loaded.info.sites == tuple(f"blocks.{n}.hook_resid_mid" for n in range(L))
    check_cross_layer(loaded, W_enc, b_enc, W_dec, b_dec, thresholds if has_threshold else None)
    (tmp_path / "clt" / "W_enc_2.safetensors").unlink()
    with pytest.raises(CheckpointError):
        load_dictionary(tmp_path / "clt")


def test_gemma_scope_2_cross_layer(tmp_path):
    W_enc, b_enc, b_dec = torch.randn(L, F, D), torch.randn(L, F), torch.randn(L, D)
    W_dec, thresholds = [torch.randn(F, L, D) for _ in range(L)], torch.rand(L, F)
    for n in range(L):
        own = {"w_enc": W_enc[n].T, "b_enc": b_enc[n], "b_dec": b_dec[n], "w_dec": W_dec[n], "threshold": thresholds[n]}
        write(tmp_path / "clt", own, None, f"params_layer_{n}.safetensors")
    loaded = load_dictionary(tmp_path / "clt")
    check_cross_layer(loaded, W_enc, b_enc, [W_dec[n][:, n:] for n in range(L)], b_dec, thresholds)


def several_layers(folder, config=None, causal=True):
    """Writes Gemma Scope 2's files of several layers; returns them, with a new first axis for the layers."""
    made = {"w_enc": torch.randn(L, D, F), "b_enc": torch.randn(L, F), "w_dec": torch.randn(L, F, L, D)}
    made |= {"b_dec": torch.randn(L, D), "threshold": torch.rand(L, F)}
    for n in range(1, L if causal else 0):
        made["w_dec"][n, :, :n] = 0
    for n in range(L):
        write(folder, {name: tensor[n] for name, tensor in made.items()}, config, f"params_layer_{n}.safetensors")
    return made


CROSSCODER = {
    "hf_hook_point_in": "model.layers.{5,9,12}.output", "hf_hook_point_out": "model.layers.{5,9,12}.output",
    "width": L * F, "model_name": "google/gemma-3-270m-pt", "architecture": "jump_relu", "l0": 150,
    "affine_connection": False, "type": "crosscoder",
}  # fmt: skip


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("says", ["config", "folder"])
def test_gemma_scope_2_crosscoder(tmp_path, says, causal):
    folder = tmp_path / ("any" if says == "config" else "crosscoder/layer_5_9_12_width_72_l0_big")
    w = several_layers(folder, CROSSCODER if says == "config" else None, causal)
    loaded = load_dictionary(folder)
    assert isinstance(loaded, Crosscoder) and loaded.info.format == "gemma_scope_2_crosscoder"
    assert (loaded.site_dims, loaded.dict_size) == ((D,) * L, L * F)
    if says == "config":
        layers = tuple(f"model.layers.{n}:out" for n in (5, 9, 12))
        assert loaded.info.sites == loaded.info.target_sites == layers
        assert loaded.info.model == "google/gemma-3-270m-pt"
    x = torch.randn(6, L, D)
    pre = torch.einsum("bld,ldf->blf", x, w["w_enc"]) + w["b_enc"]  # a layer's latents read that layer
    f = pre.relu() * (pre > w["threshold"])
    x_hat = torch.einsum("blf,lfmd->bmd", f, w["w_dec"]) + w["b_dec"]
    assert 0 < (f > 0).float().mean() < 1
    torch.testing.assert_close(loaded.encode(x.flatten(1)), f.flatten(1), **CLOSE)
    torch.testing.assert_close(loaded(x.flatten(1)), x_hat.flatten(1), **CLOSE)
    save_dictionary(loaded, tmp_path / "own")
    torch.testing.assert_close(load_dictionary(tmp_path / "own")(x.flatten(1)), x_hat.flatten(1), **CLOSE)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("listed", [True, False])
def test_gemma_scope_2_cross_layer_with_its_config(tmp_path, causal, listed, caplog):
    hook = "model.layers.{all}.pre_feedforward_layernorm.output"
    config = {**CROSSCODER, "type": "clt", "hf_hook_point_in": hook, "hf_hook_point_out": hook.replace("pre", "post")}
    if listed:
        config |= {key: [config[key].replace("{all}", str(n)) for n in range(L)] for key in config if "hook" in key}
    w = several_layers(tmp_path / "clt", config, causal)
    loaded = load_dictionary(tmp_path / "clt")
    assert loaded.info.format == "gemma_scope_2_clt"
    assert ("decoder rows for earlier layers" in caplog.text) == (not causal)
    assert loaded.info.sites == tuple(f"model.layers.{n}.pre_feedforward_layernorm:out" for n in range(L))
    assert loaded.info.target_sites == tuple(f"model.layers.{n}.post_feedforward_layernorm:out" for n in range(L))
    W_dec = [w["w_dec"][n][:, n:] for n in range(L)]
    check_cross_layer(loaded, w["w_enc"].transpose(1, 2), w["b_enc"], W_dec, w["b_dec"], w["threshold"])


def test_gemma_scope_2_files_that_do_not_belong_together(tmp_path):
    several_layers(tmp_path / "a", {**CROSSCODER, "hf_hook_point_in": "model.layers.{5,9}.output"})
    with pytest.raises(CheckpointError, match=r"hf_hook_point_in='model.layers.\{5,9\}.output', and there are 3"):
        load_dictionary(tmp_path / "a")
    (tmp_path / "a" / "params_layer_1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"layers \[0, 2\]"):
        load_dictionary(tmp_path / "a")
    several_layers(tmp_path / "b", {**CROSSCODER, "type": "clt"})
    with pytest.raises(CheckpointError, match="type='clt'"):
        load_dictionary(tmp_path / "b", format="gemma_scope_2_crosscoder")
    w = several_layers(tmp_path / "c", CROSSCODER)
    own = {name: tensor[2] for name, tensor in w.items()} | {"affine_skip_connection": torch.randn(D, D)}
    write(tmp_path / "c", own, None, "params_layer_2.safetensors")
    with pytest.raises(CheckpointError, match="affine part"):
        load_dictionary(tmp_path / "c")
    write(tmp_path / "c", {**{name: tensor[2] for name, tensor in w.items()}, "w_dec": torch.randn(F, 2, D)}, None, "params_layer_2.safetensors")  # fmt: skip
    with pytest.raises(CheckpointError, match="writes 2 layers"):
        load_dictionary(tmp_path / "c")


def test_top_k_of_circuit_tracer_keeps_the_largest_also_where_they_are_negative(tmp_path):
    by_hand.circuit_tracer(tmp_path)
    raw = load_file(tmp_path / "layer_1.safetensors")
    loaded = load_dictionary(tmp_path)
    x = 3 * torch.randn(50, raw["W_enc"].shape[1])
    pre = x @ raw["W_enc"].T + raw["b_enc"] - 12  # fewer than k are positive in most rows
    with torch.no_grad():
        loaded.b_enc -= 12
    kept = pre.topk(4)
    expected = torch.zeros_like(pre).scatter(1, kept.indices, kept.values)
    assert bool((expected < 0).any())
    torch.testing.assert_close(loaded.encode(x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loaded(x), expected @ raw["W_dec"] + raw["b_dec"], rtol=1e-4, atol=1e-4)
