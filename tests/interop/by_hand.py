"""Files of formats that no fixture has, written by hand: small, whole, at sites of `tiny.model`."""

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

D, F, L = 16, 64, 3
"""Width, latents (of a layer) and layers; those of the fixtures and of `tests/tiny.py`."""
HOOKS = [f"blocks.{n}.hook_resid_post" for n in range(L)]


def weights(path: Path, tensors: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def settings(path: Path, config: dict[str, Any]) -> None:
    path.write_text(json.dumps(config) if path.suffix == ".json" else yaml.safe_dump(config))


def llama_scope(folder: Path, **changes: Any) -> None:
    config: dict[str, Any] = {
        "hook_point_in": HOOKS[1], "hook_point_out": HOOKS[1], "d_model": D, "d_sae": F, "expansion_factor": F / D,
        "act_fn": "jumprelu", "jump_relu_threshold": 0.9, "top_k": 4, "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": 3.0, "out": 3.0}, "apply_decoder_bias_to_pre_encoder": False,
        "use_decoder_bias": True, "use_glu_encoder": False, "sparsity_include_decoder_norm": False, **changes,
    }  # fmt: skip
    w = {"encoder.weight": torch.randn(F, D), "encoder.bias": torch.randn(F)}
    w |= {"decoder.weight": torch.randn(D, F), "decoder.bias": torch.randn(D)}
    weights(folder / "checkpoints" / "final.safetensors", w)
    settings(folder / "hyperparams.json", config)


def llamascopium(folder: Path, kind: str = "sae") -> None:
    config: dict[str, Any] = {"sae_type": kind, "d_model": D, "expansion_factor": F / D, "act_fn": "relu", "top_k": 4}
    config |= {"norm_activation": "dataset-wise", "sparsity_include_decoder_norm": False, "use_glu_encoder": False}
    if kind == "sae":
        config |= {"hook_point_in": HOOKS[1], "hook_point_out": HOOKS[1], "act_fn": "topk", "use_decoder_bias": True}
        w = {"W_E": torch.randn(D, F), "b_E": torch.randn(F), "W_D": torch.randn(F, D), "b_D": torch.randn(D)}
    elif kind == "crosscoder":
        config |= {"hook_points": HOOKS}
        w = {"W_E": torch.randn(L, D, F), "b_E": torch.randn(L, F), "W_D": torch.randn(L, F, D)}
        w |= {"b_D": torch.randn(L, D)}
    else:
        config |= {"hook_points_in": HOOKS, "hook_points_out": [f"blocks.{n}.hook_mlp_out" for n in range(L)]}
        w = {"W_E": torch.randn(L, D, F), "b_E": torch.randn(L, F)}
        w |= {f"W_D.{n}": torch.randn(n + 1, F, D) for n in range(L)} | {f"b_D.{n}": torch.randn(D) for n in range(L)}
    hooks = {hook for key, value in config.items() if "hook" in key for hook in ([value] if key[-1] != "s" and isinstance(value, str) else value)}  # fmt: skip
    w |= {f"dataset_average_activation_norm.{hook}": torch.tensor(3.0) for hook in hooks}
    weights(folder / "sae_weights.safetensors", w)
    settings(folder / "config.json", config)


def circuit_tracer(folder: Path, kind: str = "topk") -> None:
    w = {"W_enc": torch.randn(F, D), "b_enc": torch.randn(F), "W_dec": torch.randn(F, D), "b_dec": torch.randn(D)}
    w |= {"activation_function.threshold": torch.rand(F)} if kind == "jumprelu" else {}
    weights(folder / "layer_1.safetensors", w)
    config: dict[str, Any] = {"model_kind": "transcoder_set", "feature_input_hook": "hook_resid_pre"}
    config |= {"feature_output_hook": "hook_mlp_out", "activation": kind} | ({"k": 4} if kind == "topk" else {})
    settings(folder / "config.yaml", config)


def circuit_tracer_cross_layer(folder: Path) -> None:
    for n in range(L):
        own = {f"W_enc_{n}": torch.randn(F, D), f"b_enc_{n}": torch.randn(F), f"b_dec_{n}": torch.randn(D)}
        weights(folder / f"W_enc_{n}.safetensors", {**own, f"threshold_{n}": torch.rand(F)})
        weights(folder / f"W_dec_{n}.safetensors", {f"W_dec_{n}": torch.randn(F, L - n, D)})
    hooks = {"feature_input_hook": "hook_resid_pre", "feature_output_hook": "hook_mlp_out"}
    settings(folder / "config.yaml", {"model_kind": "cross_layer_transcoder", "activation": "jumprelu", **hooks})


def gemma_scope_2_layers(folder: Path, kind: str) -> None:
    for n in range(L):
        w = {"w_enc": torch.randn(D, F), "b_enc": torch.randn(F), "w_dec": torch.randn(F, L, D)}
        if kind == "clt":
            w["w_dec"][:, :n] = 0
        weights(folder / f"params_layer_{n}.safetensors", {**w, "b_dec": torch.randn(D), "threshold": torch.rand(F)})
    ends = ("", "") if kind == "crosscoder" else (".mlp", ".mlp")
    sides = ("output", "output") if kind == "crosscoder" else ("input", "output")
    hooks = [f"model.layers.{{all}}{end}.{side}" for end, side in zip(ends, sides, strict=True)]
    config = {"hf_hook_point_in": hooks[0], "hf_hook_point_out": hooks[1], "width": L * F, "type": kind}
    settings(folder / "config.json", {**config, "architecture": "jump_relu", "affine_connection": False})


def mats_sae(folder: Path) -> None:
    cfg = {"d_in": D, "d_sae": F, "hook_point": HOOKS[1], "expansion_factor": F // D, "is_transcoder": False}
    w = {"W_enc": torch.randn(D, F), "W_dec": torch.randn(F, D), "b_enc": torch.randn(F), "b_dec": torch.randn(D)}
    folder.mkdir(parents=True)
    torch.save({"cfg": cfg, "state_dict": w}, folder / "final.pt")


WRITTEN = {
    "llama_scope": llama_scope,
    "llamascopium/sae": llamascopium,
    "llamascopium/crosscoder": lambda folder: llamascopium(folder, "crosscoder"),
    "llamascopium/clt": lambda folder: llamascopium(folder, "clt"),
    "mwhanna/topk": circuit_tracer,
    "mwhanna/jumprelu": lambda folder: circuit_tracer(folder, "jumprelu"),
    "mwhanna/relu": lambda folder: circuit_tracer(folder, "relu"),
    "circuit_tracer_clt": circuit_tracer_cross_layer,
    "gemma_scope_2_clt": lambda folder: gemma_scope_2_layers(folder, "clt"),
    "gemma_scope_2_crosscoder": lambda folder: gemma_scope_2_layers(folder, "crosscoder"),
    "mats_sae": mats_sae,
}
"""Writes each, by its format and, if there are several, its kind."""
