"""OpenMOSS's llamascopium (Language-Model-SAEs): autoencoders, transcoders, crosscoders, and CLTs.

Activations were scaled to the mean norm sqrt(d_model) in training. With `norm_activation:
dataset-wise` the scale of each hook is in the file, and is folded into the weights here, so that
dictionaries take activations as the model gives them, and return the latents of llamascopium.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dictionary_learning.dictionaries import Crosscoder, CrossLayerTranscoder, Dictionary
from dictionary_learning.dictionaries._normalized import Normalized
from dictionary_learning.errors import CheckpointError
from dictionary_learning.interop._archives import read_names
from dictionary_learning.interop._base import (
    Facts,
    Format,
    Loaded,
    choice,
    label,
    latents_kept,
    positive,
    setting,
    whole_number,
)
from dictionary_learning.interop._files import Files
from dictionary_learning.interop._safe import read_json
from dictionary_learning.interop._tensors import Tensors, built, coder, read_tensors, without_threshold

_WEIGHTS, _CONFIG = "sae_weights.safetensors", "config.json"
_NORM = "dataset_average_activation_norm."
_THRESHOLD = "activation_function.log_jumprelu_threshold"
_SAME = 1e-3  # norms that differ by less are equal but for rounding, as in bfloat16
_KINDS = {"relu": "relu", "jumprelu": "jump_relu", "topk": "top_k", "batchtopk": "batch_top_k"}


class Scales(NamedTuple):
    """The factors that activations were multiplied by in training."""

    read: float
    write: float


class Llamascopium(Format):
    """Reads `config.json` and `sae_weights.safetensors` with the tensors W_E, b_E, W_D and b_D."""

    name = "llamascopium"
    needed = (_WEIGHTS, _CONFIG)

    def recognizes(self, files: Files) -> bool:
        return files.wants(_WEIGHTS) and not files.has("cfg.json") and "W_E" in read_names(files, _WEIGHTS)

    def read(self, files: Files, facts: Facts) -> Loaded:
        config = read_json(files.path(_CONFIG))
        kind = choice(config, "sae_type", ("sae", "crosscoder", "clt"), None, files)
        check_encoder(config, files)
        if setting(config, "apply_decoder_bias_to_pre_encoder", bool, False, files):
            raise CheckpointError(f"'{files}' says apply_decoder_bias_to_pre_encoder, which this format has not.")
        tensors = read_tensors(files.path(_WEIGHTS))
        hooks = _hooks(config, kind, files)
        scales = _scales(tensors, config, [*hooks[0], *hooks[1]], files)
        read = {"sae": _autoencoder, "crosscoder": _crosscoder, "clt": _cross_layer}[kind]
        dictionary = read(tensors, config, hooks, scales, files)
        tensors.finish(config, dim="d_model", dict_size="d_sae")
        tensors.check_expansion(config, "expansion_factor")
        if config.get("norm_activation") == "token-wise":
            if kind != "sae" or hooks[0] != hooks[1]:
                raise CheckpointError(
                    f"'{files}' says norm_activation='token-wise' of several sites, which is not read."
                )
            dictionary = Normalized(
                dictionary, "constant_norm_rescale", site_dims=[dictionary.activation_dim], scales=[1.0]
            )
        known = self.known(files, config)
        known |= {"site": hooks[0][0] if len(hooks[0]) == 1 else list(hooks[0])}
        if hooks[0] != hooks[1]:
            known["target_site"] = hooks[1][0] if len(hooks[1]) == 1 else list(hooks[1])
        return Loaded(dictionary, known)


def _hooks(config: Mapping[str, Any], kind: str, files: Files) -> tuple[list[str], list[str]]:
    """Returns the hooks that are read, and those that are written."""
    if kind == "sae":
        hooks = [label(config, name, files) for name in ("hook_point_in", "hook_point_out")]
        if hooks[0] is None or hooks[1] is None:
            raise CheckpointError(
                f"The config of '{files}' has no hook_point_in or hook_point_out. Get the whole file."
            )
        return [hooks[0]], [hooks[1]]
    names = ("hook_points", "hook_points") if kind == "crosscoder" else ("hook_points_in", "hook_points_out")
    reads, writes = (setting(config, name, list, None, files) for name in names)
    if not reads or not writes or not all(isinstance(one, str) and one for one in (*reads, *writes)):
        raise CheckpointError(f"The config of '{files}' has no {' or '.join(names)}. Get the whole file.")
    return list(reads), list(writes)


def _check_number(hooks: tuple[list[str], list[str]], n: int, files: Files) -> None:
    """Checks that there is a hook for each site of the tensors."""
    if any(len(names) != n for names in hooks):
        raise CheckpointError(
            f"The config of '{files}' has {len(hooks[0])} hook_points that are read and {len(hooks[1])} that are "
            f"written, and its tensors have {n}: they do not belong together."
        )


def _scales(tensors: Tensors, config: Mapping[str, Any], hooks: Sequence[str], files: Files) -> dict[str, float]:
    """Returns the factor of the activations at each hook, and takes its tensors."""
    mode = normalization_of(config, files)
    dim = whole_number(config, "d_model", files) or 0
    if dim < 1:
        raise CheckpointError(f"The config of '{files}' says d_model={config.get('d_model')!r}; scales depend on it.")
    found: dict[str, float] = {}
    for hook in dict.fromkeys(hooks):
        name = f"{_NORM}{hook}"
        if mode != "dataset-wise":
            tensors.drop(name)
            found[hook] = 1.0
        else:
            norm = positive(float(tensors.take(name, "")), name, files)
            found[hook] = math.sqrt(dim) / norm
    return found


def check_encoder(config: Mapping[str, Any], files: Files) -> None:
    """Checks that the encoder is a matrix."""
    if setting(config, "use_glu_encoder", bool, False, files):
        raise CheckpointError(
            f"'{files}' says use_glu_encoder: it has a gated linear unit as encoder, which no dictionary here has."
        )


def normalization_of(config: Mapping[str, Any], files: Files) -> str:
    """Returns how activations were scaled: by their mean norm, not (any more), or each token."""
    modes = ("dataset-wise", "inference", "token-wise", "batch-wise")
    mode = choice(config, "norm_activation", modes, "dataset-wise", files)
    if mode == "batch-wise":
        raise CheckpointError(
            f"'{files}' says norm_activation='batch-wise': each batch is scaled by its own norm, so no token has "
            "latents of its own."
        )
    return mode


def _nonlinearity(
    tensors: Tensors, config: Mapping[str, Any], norms: Tensor, n_layers: int | None, files: Files
) -> tuple[dict[str, Any], list[dict[str, Tensor]]]:
    """Returns the nonlinearity, and its tensors for each coder."""
    kind = choice(config, "act_fn", tuple(_KINDS), "relu", files)
    n = n_layers or 1
    if kind == "jumprelu":
        shape = "dict_size" if n_layers is None else "layers dict_size"
        thresholds = tensors.take(_THRESHOLD, shape).float().exp().reshape(n, -1)
        # pre-activations times decoder norms are compared there
        thresholds = thresholds / norms.reshape(n, -1)
        return {"name": "jump_relu"}, [{"threshold": row} for row in thresholds]
    if kind in ("topk", "batchtopk"):
        k = latents_kept({"k": config.get("top_k")}, files)
        return {"name": _KINDS[kind], "k": k}, [without_threshold() for _ in range(n)]
    return {"name": "relu"}, [{} for _ in range(n)]


def _autoencoder(
    tensors: Tensors, config: Mapping[str, Any], hooks: Any, scales: Mapping[str, float], files: Files
) -> Dictionary:
    (read,), (write,) = hooks
    predicts, has_bias = read != write, setting(config, "use_decoder_bias", bool, True, files)
    names = {"W_enc": "W_E.T", "b_enc": "b_E", "W_dec": "W_D", **({"b_dec": "b_D"} if has_bias else {})}
    parts = tensors.parts(names, wide="output_dim" if predicts else "dim")
    by_norm = setting(config, "sparsity_include_decoder_norm", bool, True, files)
    norms = parts["W_dec"].float().norm(dim=1) if by_norm else torch.ones(len(parts["W_dec"]))
    options, (state,) = _nonlinearity(tensors, config, norms, None, files)
    parts = scaled(parts, Scales(scales[read], scales[write]))
    name = options.pop("name")
    made = coder(parts, name, state, centered=False, predicts=predicts, **options)
    made.rank_by_norm = by_norm and name in ("top_k", "batch_top_k")
    return made


def _crosscoder(
    tensors: Tensors, config: Mapping[str, Any], hooks: Any, scales: Mapping[str, float], files: Files
) -> Dictionary:
    W_E, W_D = tensors.take("W_E", "sites dim dict_size"), tensors.take("W_D", "sites dict_size dim")
    b_E, b_D = tensors.take("b_E", "sites dict_size"), tensors.take("b_D", "sites dim")
    n, dim, size = W_E.shape
    _check_number(hooks, n, files)
    by_norm = setting(config, "sparsity_include_decoder_norm", bool, True, files)
    norms = W_D.float().norm(dim=-1) if by_norm else torch.ones(n, size)  # (sites, dict_size)
    kind = config.get("act_fn", "relu")
    if kind != "relu" and not torch.allclose(norms, norms[:1].expand_as(norms), rtol=_SAME):
        raise CheckpointError(
            f"'{files}' compares latents times the decoder norm of each site, which differ: a latent may be on at one "
            "site and off at another, which no crosscoder here does."
        )
    if kind in ("topk", "batchtopk") and not torch.allclose(norms, norms[:, :1].expand_as(norms), rtol=_SAME):
        raise CheckpointError(
            f"'{files}' ranks latents by value times the decoder norm of a site, and latents have different norms; "
            "crosscoders here rank by value alone, or by the norm over all sites. Convert it to jumprelu."
        )
    options, (state,) = _nonlinearity(tensors, config, norms[0], None, files)
    factors = torch.tensor([scales[hook] for hook in hooks[0]]).reshape(n, 1, 1)
    # (dict_size, sum of widths): one encoder of all sites
    joined = {
        "W_enc": (W_E.float() * factors).permute(2, 0, 1).reshape(size, n * dim),
        "W_dec": (W_D.float() / factors).permute(1, 0, 2).reshape(size, n * dim),
        "b_enc": b_E.float().sum(0),
        "b_dec": (b_D.float() / factors.squeeze(-1)).reshape(-1),
    }
    joined |= {f"nonlinearity.{name}": tensor for name, tensor in state.items()}
    return built(Crosscoder, joined, [dim] * n, size, options, rank_by_norm=False)


def _cross_layer(
    tensors: Tensors, config: Mapping[str, Any], hooks: Any, scales: Mapping[str, float], files: Files
) -> Dictionary:
    W_E, b_E = tensors.take("W_E", "layers dim dict_size"), tensors.take("b_E", "layers dict_size")
    n, dim, size = W_E.shape
    _check_number(hooks, n, files)
    by_target = [tensors.take(f"W_D.{to}", f"from_{to} dict_size dim") for to in range(n)]
    b_D = [tensors.take(f"b_D.{to}", "dim") for to in range(n)]
    if any(len(rows) != to + 1 for to, rows in enumerate(by_target)):
        raise CheckpointError(f"'{files}' has decoders of other layers than it has encoders. Get the whole file.")
    # a latent's norm is over all layers that it writes
    squares = [sum(by_target[to][layer].float().square().sum(-1) for to in range(layer, n)) for layer in range(n)]
    norms = torch.stack([square.sqrt() for square in squares])  # pyright: ignore[reportAttributeAccessIssue]
    if not setting(config, "sparsity_include_decoder_norm", bool, True, files):
        norms = torch.ones_like(norms)
    elif config.get("act_fn", "relu") != "relu":
        raise CheckpointError(
            f"'{files}' keeps latents by value times decoder norm in each layer. Only relu is read with "
            "sparsity_include_decoder_norm; convert it to jumprelu without it."
        )
    options, states = _nonlinearity(tensors, config, norms, n, files)
    state: dict[str, Tensor] = {
        "b_dec": torch.cat([row.float() / scales[hook] for row, hook in zip(b_D, hooks[1], strict=True)])
    }
    for layer in range(n):
        rows = [by_target[to][layer].float() / scales[hooks[1][to]] for to in range(layer, n)]
        state[f"parts.{layer}.W_enc"] = W_E[layer].float().T * scales[hooks[0][layer]]
        state[f"parts.{layer}.b_enc"] = b_E[layer].float()
        state[f"parts.{layer}.W_dec"] = torch.cat(rows, dim=1)
        state |= {f"parts.{layer}.nonlinearity.{name}": tensor for name, tensor in states[layer].items()}
    return built(CrossLayerTranscoder, state, [dim] * n, n * size, options)


def scaled(parts: Mapping[str, Tensor], scales: Scales) -> dict[str, Tensor]:
    """Returns the weights for activations that are not yet multiplied by their scales."""
    # W_enc (s x) + b_enc, and x_hat / s
    factors = {"W_enc": scales.read, "W_dec": 1 / scales.write, "b_dec": 1 / scales.write}
    return {name: tensor.float() * factors.get(name, 1.0) for name, tensor in parts.items()}
