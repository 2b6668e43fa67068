"""SAELens: `cfg.json` and `sae_weights.safetensors` of versions 2 to 6, checkpoints too.

`sae_lens_legacy` converts settings of before 6.0 to the form of 6.x. Where latents are compared
after multiplication with the norm of their decoder row (`rescale_acts_by_decoder_norm`), the norms
are folded into the encoder, which changes neither latents nor output.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dictionary_learning.dictionaries import Coder, Dictionary, Normalized
from dictionary_learning.errors import CheckpointError
from dictionary_learning.experimental.temporal import TemporalAutoencoder
from dictionary_learning.interop._base import FORMATS, Facts, Format, Loaded, choice, positive, setting
from dictionary_learning.interop._building import Weights, built, jump_thresholds, without_threshold
from dictionary_learning.interop._files import Files
from dictionary_learning.interop._sae_lens_legacy import is_legacy, modernized
from dictionary_learning.interop._safe import read_json, read_yaml
from dictionary_learning.interop._tensors import Tensors, read_tensors

logger = logging.getLogger(__name__)

WEIGHTS = "sae_weights.safetensors"
CONFIG = "cfg.json"
SCALER = "activation_scaler.json"
TEMPORAL_WEIGHTS = "latest_ckpt.safetensors"
TEMPORAL_CONFIG = "conf.yaml"
TRANSCODERS = {
    "transcoder": "standard",
    "skip_transcoder": "standard",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
}
"""The autoencoder that each transcoder is like."""
AUTOENCODERS = ("standard", "topk", "abstopk", "jumprelu", "gated")
NORMALIZATIONS = {
    "none": None,
    "layer_norm": "layer_norm_eps_in",
    "constant_norm_rescale": "constant_norm_rescale",
    "expected_average_only_in": None,
    "covariance_whitening": None,
    "constant_scalar_rescale": None,
}
"""How tokens are normalized. The fourth and fifth are for training; final saves fold them."""
UNIT = 1e-5
"""How far from 1 norms may be that were normalized in float32."""


class SAELens(Format):
    """Reads all architectures of 6.x and 5.x, and their training checkpoints."""

    name = "sae_lens"
    about = "SAELens: cfg.json and sae_weights.safetensors"
    needed = (WEIGHTS, CONFIG, SCALER)
    writes = True

    def recognizes(self, files: Files) -> bool:
        return files.wants(WEIGHTS) and (files.has(CONFIG) or not files.has("config.json"))

    def read(self, files: Files, facts: Facts) -> Loaded:
        given = read_json(files.path(CONFIG))
        config = modernized(given, files) if is_legacy(given) else given
        tensors = read_tensors(files.path(WEIGHTS))
        architecture = choice(config, "architecture", (*AUTOENCODERS, *TRANSCODERS, *_READERS), "standard", files)
        dictionary = _READERS.get(architecture, read_coder)(tensors, config, architecture, files)
        tensors.finish(config, dim="d_in", dict_size="d_sae", output_dim="d_out")
        metadata = setting(config, "metadata", dict, {}, files)
        known = self.known(given, metadata, model="model_name", site="hook_name")
        if config.get("reshape_activations") == "hook_z":
            known["reshape_activations"] = "hook_z"  # heads one after another, as in sites of this package
        if files.has(SCALER):
            scale = read_json(files.path(SCALER)).get("scaling_factor")
            known |= {} if scale is None else {"activation_scale": positive(scale, "scaling_factor", files)}
        return Loaded(_normalized(dictionary, config, files), known)

    def write(self, dictionary: Dictionary, folder: Path, config: Mapping[str, Any]) -> None:
        from dictionary_learning.interop._sae_lens_writing import write

        write(dictionary, folder, config)


class Temporal(Format):
    """Reads temporal autoencoders as their authors release them, tied or not, with TopK or ReLU."""

    name = "temporal"
    about = "temporal autoencoders: conf.yaml and latest_ckpt.safetensors"
    needed = (TEMPORAL_WEIGHTS, TEMPORAL_CONFIG)

    def read(self, files: Files, facts: Facts) -> Loaded:
        config = read_yaml(files.path(TEMPORAL_CONFIG))
        settings = setting(config, "sae", dict, {}, files)
        tensors = read_tensors(files.path(TEMPORAL_WEIGHTS))
        scale = positive(settings.get("scaling_factor", 1.0), "scaling_factor", files)
        names = {"W_dec": "D", "b_dec": "b", "W_enc": "E"}
        dictionary = _read_temporal(tensors, settings, files, names, scale=1 / scale)
        tensors.finish(setting(config, "llm", dict, {}, files), dim="dimin")
        return Loaded(dictionary, self.known(config))


FORMATS.register("sae_lens")(SAELens())
FORMATS.register("temporal")(Temporal())


def read_coder(tensors: Tensors, config: Mapping[str, Any], architecture: str, files: Files) -> Dictionary:
    """Returns a dictionary of one encoder and one decoder."""
    predicts = architecture in TRANSCODERS
    kind = TRANSCODERS.get(architecture, architecture)
    wide = "output_dim" if predicts else "dim"
    W_enc, W_dec = tensors.take("W_enc", "dim dict_size").T, tensors.take("W_dec", f"dict_size {wide}")
    W_skip = tensors.take("W_skip", f"{wide} dim") if "skip" in architecture else None  # of the raw input
    if not predicts:
        W_dec = _finetuned(W_dec, tensors)  # (dict_size, dim)
    # a gated autoencoder has its biases in the nonlinearity
    b_enc = None if kind == "gated" else tensors.take("b_enc", "dict_size")
    nonlinearity, options, state = _nonlinearity(kind, tensors, config, files)
    if kind in ("topk", "abstopk") and setting(config, "rescale_acts_by_decoder_norm", bool, False, files):
        W_enc, b_enc, W_dec = _folded(W_enc, b_enc, W_dec)
    return Weights(
        W_enc=W_enc,
        b_enc=b_enc,
        W_dec=W_dec,
        b_dec=tensors.take("b_dec", wide),
        W_skip=W_skip,
        nonlinearity=nonlinearity,
        options=options,
        state=state,
        centered=not predicts and setting(config, "apply_b_dec_to_input", bool, True, files),
        predicts=predicts,
    ).dictionary()


def _folded(W_enc: Tensor, b_enc: Tensor | None, W_dec: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """Returns the parts with unit decoder rows, and latents multiplied by the norms of the rows."""
    norms = W_dec.float().norm(dim=1)  # (dict_size,)
    if bool(((norms - 1).abs() <= UNIT).all()):
        return W_enc, b_enc, W_dec
    b_enc = None if b_enc is None else b_enc.float() * norms
    rows = torch.where(norms > 0, norms, 1.0).unsqueeze(1)  # a latent that writes nothing becomes zero
    return W_enc.float() * norms.unsqueeze(1), b_enc, W_dec.float() / rows  # (dict_size, dim) both


def _finetuned(W_dec: Tensor, tensors: Tensors) -> Tensor:
    """Returns the decoder with the factor of each latent that fine-tuning in 5.x learned."""
    names = ("scaling_factor", "finetuning_scaling_factor")
    factors = [tensors.take(name, "dict_size") for name in names if name in tensors]
    if not factors or bool((factors[0] == 1).all()):
        return W_dec
    return W_dec.float() * factors[0].float().unsqueeze(1)


def _nonlinearity(
    kind: str, tensors: Tensors, config: Mapping[str, Any], files: Files
) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """Returns the name of the nonlinearity, its options, and its tensors."""
    if kind == "topk":
        return "top_k", {"k": _k(config, files)}, without_threshold()
    if kind == "abstopk":
        return "abs_top_k", {"k": _k(config, files)}, {}
    if kind == "gated":
        names = {"gate_bias": "b_gate", "mag_bias": "b_mag", "r_mag": "r_mag"}
        return "gated", {}, {ours: tensors.take(theirs, "dict_size") for ours, theirs in names.items()}
    if kind == "jumprelu":
        # early training files hold the logarithms
        if "threshold" not in tensors and "log_threshold" in tensors:
            return "jump_relu", {}, jump_thresholds(tensors.take("log_threshold", "dict_size").exp())
        tensors.drop("log_threshold")
        return "jump_relu", {}, jump_thresholds(tensors.take("threshold", "dict_size"))
    if choice(config, "activation", ("relu", "tanh-relu"), "relu", files) == "relu":
        return "relu", {}, {}
    return "tanh_relu", {}, {"limit": torch.ones(tensors["dict_size"])}


def _k(config: Mapping[str, Any], files: Files) -> int:
    k = config.get("k")
    if isinstance(k, float) and k.is_integer():
        k = int(k)  # YAML and older JSON have 32.0
    if not isinstance(k, int) or isinstance(k, bool):
        raise CheckpointError(f"The config of '{files}' says k={k!r}; a whole number of latents is needed. Add it.")
    return k


def _batch_top_k(tensors: Tensors, config: Mapping[str, Any], architecture: str, files: Files) -> Coder:
    """Returns a checkpoint of BatchTopK, which SAELens saves as JumpReLU only at the end.

    The threshold there is of latents times norms; with norms folded in, it is one of latents.
    """
    W_enc, W_dec = tensors.take("W_enc", "dim dict_size").T, tensors.take("W_dec", "dict_size dim")
    b_enc: Tensor | None = tensors.take("b_enc", "dict_size")
    if setting(config, "rescale_acts_by_decoder_norm", bool, True, files):
        W_enc, b_enc, W_dec = _folded(W_enc, b_enc, W_dec)
    return Weights(
        W_enc=W_enc,
        b_enc=b_enc,
        W_dec=W_dec,
        b_dec=tensors.take("b_dec", "dim"),
        nonlinearity="batch_top_k",
        options={"k": max(round(positive(config.get("k"), "k", files)), 1)},
        state=jump_thresholds(tensors.take("topk_threshold", "")),
        centered=setting(config, "apply_b_dec_to_input", bool, True, files),
    ).dictionary()


def _pursuit(tensors: Tensors, config: Mapping[str, Any], architecture: str, files: Files) -> Coder:
    centered = setting(config, "apply_b_dec_to_input", bool, True, files)
    W_dec, b_dec = tensors.take("W_dec", "dict_size dim"), tensors.take("b_dec", "dim")
    options = {
        "k": setting(config, "max_iterations", int, None, files) or tensors["dim"],
        "residual_threshold": setting(config, "residual_threshold", float, 0.01, files),
        "stop_on_duplicate_support": setting(config, "stop_on_duplicate_support", bool, True, files),
    }
    return Weights(
        W_enc=None,
        W_dec=W_dec,
        b_dec=b_dec if centered else None,  # without the subtraction, SAELens does not add b_dec either
        nonlinearity="stopped_pursuit",
        options=options,
        centered=centered,
    ).dictionary()


def _temporal(tensors: Tensors, config: Mapping[str, Any], architecture: str, files: Files) -> Dictionary:
    scaled = config.get("normalize_activations") == "constant_scalar_rescale"
    scale = config.get("activation_normalization_factor", 1.0) if scaled else 1.0
    subtracts = setting(config, "apply_b_dec_to_input", bool, True, files)
    names = {"W_dec": "W_dec", "b_dec": "b_dec", "W_enc": "W_enc"}
    return _read_temporal(
        tensors,
        config,
        files,
        names,
        scale=1 / positive(scale, "activation_normalization_factor", files),
        subtracts_b_dec=subtracts,
        has_output_bias=subtracts or not setting(config, "tied_weights", bool, True, files),
    )


def _read_temporal(
    tensors: Tensors, config: Mapping[str, Any], files: Files, names: Mapping[str, str], **options: Any
) -> Dictionary:
    """Returns a temporal autoencoder from its matrices and the attention layers in a file."""
    tied = setting(config, "tied_weights", bool, True, files)
    n_layers = setting(config, "n_attn_layers", int, 1, files)
    selects = choice(config, "sae_diff_type", ("topk", "relu"), "topk", files) == "topk"
    state = {"W_dec": tensors.take(names["W_dec"], "dict_size dim"), "b_dec": tensors.take(names["b_dec"], "dim")}
    if not tied:
        state["W_enc"] = tensors.take(names["W_enc"], "dim dict_size").T
    shapes = {"k_ctx": "narrow", "q_target": "narrow", "v_ctx": "dict_size", "c_proj": "dict_size"}
    for layer in range(min(n_layers, len(tensors))):  # a config may claim any number
        for part, out in shapes.items():
            name = f"attn_layers.{layer}.{part}"
            state[f"{name}.weight"] = tensors.take(f"{name}.weight", f"{out} dict_size")
            state[f"{name}.bias"] = tensors.take(f"{name}.bias", out)
    return built(
        TemporalAutoencoder,
        state,
        tensors["dim"],
        tensors["dict_size"],
        n_layers=n_layers,
        k=setting(config, "kval_topk", int, None, files) if selects else None,
        n_heads=setting(config, "n_heads", int, 8, files),
        bottleneck_factor=setting(config, "bottleneck_factor", int, 64, files),
        tied=tied,
        **options,
    )


_READERS = {
    "batchtopk": _batch_top_k,
    "matryoshka_batchtopk": _batch_top_k,
    "matching_pursuit": _pursuit,
    "temporal": _temporal,
}


def _normalized(dictionary: Dictionary, config: Mapping[str, Any], files: Files) -> Dictionary:
    """Returns the dictionary with the normalization of each token around it."""
    name = config.get("normalize_activations", "none")
    if name is None or isinstance(name, bool):
        name = "expected_average_only_in" if name else "none"
    name = choice({"normalize_activations": name}, "normalize_activations", NORMALIZATIONS, "none", files)
    if name in ("expected_average_only_in", "covariance_whitening"):
        logger.warning(
            "'%s' was trained on activations that were scaled outside of it (%s). Give it activations scaled in the same way, or, "
            "where the config has activation_scale, call dictionary.scale_(1 / dictionary.info.config['activation_scale']).",
            files,
            name,
        )
    if name == "constant_scalar_rescale" and not isinstance(dictionary, TemporalAutoencoder):
        raise CheckpointError(f"'{files}' says normalize_activations={name}, which temporal dictionaries alone have.")
    token = NORMALIZATIONS[name]
    return dictionary if token is None else Normalized(dictionary, token)
