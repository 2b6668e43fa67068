"""SAELens: `cfg.json` and `sae_weights.safetensors`, of versions 2 to 6, final saves and checkpoints.

Settings of before 6.0 are brought into the form of today by `sae_lens_legacy`. Where latents are compared after being multiplied by the norm
of what they write (`rescale_acts_by_decoder_norm`), the norms are folded into the encoder: latents and output stay the same.
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
from dictionary_learning.interop.base import FORMATS, Facts, Format, Loaded, choice, positive, setting
from dictionary_learning.interop.building import Weights, built, jump_thresholds
from dictionary_learning.interop.files import Files
from dictionary_learning.interop.sae_lens_legacy import is_legacy, modernized
from dictionary_learning.interop.safe import read_json, read_safetensors
from dictionary_learning.interop.tensors import Tensors

logger = logging.getLogger(__name__)

WEIGHTS = "sae_weights.safetensors"
CONFIG = "cfg.json"
SCALER = "activation_scaler.json"
TRANSCODERS = {
    "transcoder": "standard",
    "skip_transcoder": "standard",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
}
"""What each transcoder is apart from predicting."""
ARCHITECTURES = (
    "standard",
    "topk",
    "abstopk",
    "batchtopk",
    "matryoshka_batchtopk",
    "jumprelu",
    "gated",
    "matching_pursuit",
    "temporal",
    *TRANSCODERS,
)
NORMALIZATIONS = {
    "none": None,
    "layer_norm": "layer_norm_eps_in",
    "constant_norm_rescale": "constant_norm_rescale",
    "expected_average_only_in": None,
    "covariance_whitening": None,
    "constant_scalar_rescale": None,
}
"""What is done to each token when the dictionary is used. The two before the last are for training and folded in a final save."""
_UNIT = 1e-5
"""How far from 1 norms may be that were made 1 in float32."""


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
        path = files.path(WEIGHTS)
        tensors = Tensors(read_safetensors(path), str(path))
        architecture = choice(config, "architecture", ARCHITECTURES, "standard", files)
        dictionary = _READERS.get(architecture, read_coder)(tensors, config, architecture, files)
        tensors.finish()
        for size, word in (("d_in", "dim"), ("d_sae", "dict_size"), ("d_out", "output_dim")):
            if word in tensors.sizes:
                tensors.check(config.get(size), word, size)
        metadata = setting(config, "metadata", dict, {}, files)
        known: dict[str, Any] = {"format": self.name, "peer": given}
        for ours, theirs in (("model", "model_name"), ("site", "hook_name")):
            if isinstance(metadata.get(theirs), str):
                known[ours] = metadata[theirs]
        if config.get("reshape_activations") == "hook_z":
            known["reshape_activations"] = "hook_z"  # heads one after another, as sites of this package have them
        if files.has(SCALER):
            scale = read_json(files.path(SCALER)).get("scaling_factor")
            known |= {} if scale is None else {"activation_scale": positive(scale, "scaling_factor", files)}
        return Loaded(_normalized(dictionary, config, files), known)

    def write(self, dictionary: Dictionary, folder: Path, config: Mapping[str, Any]) -> None:
        from dictionary_learning.interop.sae_lens_writing import write

        write(dictionary, folder, config)


FORMATS.register("sae_lens")(SAELens())


def read_coder(tensors: Tensors, config: Mapping[str, Any], architecture: str, files: Files) -> Dictionary:
    """Returns a dictionary of one encoder and one decoder.

    Args:
        tensors: by the names of SAELens.
        config: settings in the form of 6.x.
        architecture: one of `ARCHITECTURES`.
        files: where they are from.

    Raises:
        CheckpointError: they do not fit each other.
    """
    predicts = architecture in TRANSCODERS
    kind = TRANSCODERS.get(architecture, architecture)
    wide = "output_dim" if predicts else "dim"
    W_enc, W_dec = tensors.take("W_enc", "dim dict_size").T, tensors.take("W_dec", f"dict_size {wide}")
    b_dec = tensors.take("b_dec", wide)
    has_skip = "skip" in architecture
    W_skip = tensors.take("W_skip", f"{wide} dim") if has_skip else None
    if not predicts:
        W_dec = _finetuned(W_dec, tensors)
    nonlinearity, options, state, b_enc = _NONLINEARITIES[kind](tensors, config, files)
    if kind in ("topk", "abstopk") and setting(config, "rescale_acts_by_decoder_norm", bool, False, files):
        W_enc, b_enc, W_dec = folded(W_enc, b_enc, W_dec)
    weights = Weights(
        W_enc=W_enc,
        b_enc=b_enc,
        W_dec=W_dec,
        b_dec=b_dec,
        W_skip=W_skip,
        nonlinearity=nonlinearity,
        options=options,
        state=state,
        centered=not predicts and setting(config, "apply_b_dec_to_input", bool, True, files),
        predicts=predicts,
    )
    return weights.dictionary()


def folded(W_enc: Tensor, b_enc: Tensor | None, W_dec: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """Returns the parts with decoder rows of unit norm and latents multiplied by the norms they had; unit rows stay as they are."""
    norms = W_dec.float().norm(dim=1)
    if bool(((norms - 1).abs() <= _UNIT).all()):
        return W_enc, b_enc, W_dec
    rows = torch.where(norms > 0, norms, 1.0).unsqueeze(1)
    b_enc = None if b_enc is None else b_enc.float() * norms
    # a latent that writes nothing is zero there
    return W_enc.float() * norms.unsqueeze(1), b_enc, W_dec.float() / rows


def _finetuned(W_dec: Tensor, tensors: Tensors) -> Tensor:
    """Returns the decoder with what latents are multiplied by before decoding, which fine-tuning in 5.x learnt."""
    names = ("scaling_factor", "finetuning_scaling_factor")
    factors = [tensors.take(name, "dict_size") for name in names if name in tensors]
    if not factors or bool((factors[0] == 1).all()):
        return W_dec
    return W_dec.float() * factors[0].float().unsqueeze(1)


def _standard(tensors: Tensors, config: Mapping[str, Any], files: Files) -> tuple:
    name = choice(config, "activation", ("relu", "tanh-relu"), "relu", files)
    b_enc = tensors.take("b_enc", "dict_size")
    if name == "relu":
        return "relu", {}, {}, b_enc
    return "tanh_relu", {}, {"limit": torch.ones(len(b_enc))}, b_enc


def _top_k(tensors: Tensors, config: Mapping[str, Any], files: Files) -> tuple:
    options = {"k": _k(config, files)}
    return "top_k", options, {"threshold": torch.tensor(-1.0)}, tensors.take("b_enc", "dict_size")


def _abs_top_k(tensors: Tensors, config: Mapping[str, Any], files: Files) -> tuple:
    return "abs_top_k", {"k": _k(config, files)}, {}, tensors.take("b_enc", "dict_size")


def _jump_relu(tensors: Tensors, config: Mapping[str, Any], files: Files) -> tuple:
    # early training files hold the logarithms
    if "log_threshold" in tensors and "threshold" not in tensors:
        threshold = tensors.take("log_threshold", "dict_size").exp()
    else:
        threshold = tensors.take("threshold", "dict_size")
        tensors.drop("log_threshold")
    return "jump_relu", {}, jump_thresholds(threshold), tensors.take("b_enc", "dict_size")


def _gated(tensors: Tensors, config: Mapping[str, Any], files: Files) -> tuple:
    names = {"gate_bias": "b_gate", "mag_bias": "b_mag", "r_mag": "r_mag"}
    state = {ours: tensors.take(theirs, "dict_size") for ours, theirs in names.items()}
    return "gated", {}, state, None


_NONLINEARITIES = {
    "standard": _standard,
    "topk": _top_k,
    "abstopk": _abs_top_k,
    "jumprelu": _jump_relu,
    "gated": _gated,
}


def _k(config: Mapping[str, Any], files: Files) -> int:
    k = config.get("k")
    if isinstance(k, float) and k.is_integer():
        k = int(k)
    if not isinstance(k, int) or isinstance(k, bool):
        raise CheckpointError(f"The config of '{files}' says k={k!r}; a whole number of latents is needed. Add it.")
    return k


def _batch_top_k(tensors: Tensors, config: Mapping[str, Any], architecture: str, files: Files) -> Coder:
    """Returns a checkpoint of BatchTopK, which is saved as JumpReLU only at the end.

    With norms folded in, its threshold, of value times norm, is one of values.
    """
    W_enc, W_dec = tensors.take("W_enc", "dim dict_size").T, tensors.take("W_dec", "dict_size dim")
    b_enc: Tensor | None = tensors.take("b_enc", "dict_size")
    if setting(config, "rescale_acts_by_decoder_norm", bool, True, files):
        W_enc, b_enc, W_dec = folded(W_enc, b_enc, W_dec)
    threshold = tensors.take("topk_threshold", "").float().clamp_min(0)
    return Weights(
        W_enc=W_enc,
        b_enc=b_enc,
        W_dec=W_dec,
        b_dec=tensors.take("b_dec", "dim"),
        nonlinearity="batch_top_k",
        options={"k": max(round(positive(config.get("k"), "k", files)), 1)},
        state={"threshold": threshold},
        centered=setting(config, "apply_b_dec_to_input", bool, True, files),
    ).dictionary()


def _pursuit(tensors: Tensors, config: Mapping[str, Any], architecture: str, files: Files) -> Coder:
    centered = setting(config, "apply_b_dec_to_input", bool, True, files)
    W_dec, b_dec = tensors.take("W_dec", "dict_size dim"), tensors.take("b_dec", "dim")
    rounds = setting(config, "max_iterations", int, None, files)
    options = {
        "k": rounds or tensors["dim"],
        "residual_threshold": setting(config, "residual_threshold", float, 0.01, files),
        "stop_on_duplicate_support": setting(config, "stop_on_duplicate_support", bool, True, files),
    }
    # without the subtraction, b_dec is not added either
    return Weights(
        W_enc=None,
        W_dec=W_dec,
        b_dec=b_dec if centered else None,
        nonlinearity="stopped_pursuit",
        options=options,
        centered=centered,
    ).dictionary()


def _temporal(tensors: Tensors, config: Mapping[str, Any], architecture: str, files: Files) -> Dictionary:
    scale = 1.0
    if config.get("normalize_activations") == "constant_scalar_rescale":
        scale = 1 / positive(
            config.get("activation_normalization_factor", 1.0), "activation_normalization_factor", files
        )
    tied = setting(config, "tied_weights", bool, True, files)
    subtracts = setting(config, "apply_b_dec_to_input", bool, True, files)
    state = {"W_dec": tensors.take("W_dec", "dict_size dim"), "b_dec": tensors.take("b_dec", "dim")}
    if not tied:
        state["W_enc"] = tensors.take("W_enc", "dim dict_size").T
    return temporal(
        tensors,
        state,
        k=setting(config, "kval_topk", int, None, files)
        if choice(config, "sae_diff_type", ("topk", "relu"), "topk", files) == "topk"
        else None,
        n_heads=setting(config, "n_heads", int, 8, files),
        n_layers=setting(config, "n_attn_layers", int, 1, files),
        bottleneck_factor=setting(config, "bottleneck_factor", int, 64, files),
        tied=tied,
        subtracts_b_dec=subtracts,
        has_output_bias=subtracts or not tied,
        scale=scale,
    )


def temporal(tensors: Tensors, state: dict[str, Tensor], *, n_layers: int, **options: Any) -> Dictionary:
    """Returns a dictionary of contexts from its matrices and the layers of attention in a file.

    Raises:
        CheckpointError: layers are missing or of other shapes.
    """
    shapes = {"k_ctx": "narrow", "q_target": "narrow", "v_ctx": "dict_size", "c_proj": "dict_size"}
    for layer in range(min(n_layers, len(tensors))):
        for part, out in shapes.items():
            name = f"attn_layers.{layer}.{part}"
            state[f"{name}.weight"] = tensors.take(f"{name}.weight", f"{out} dict_size")
            state[f"{name}.bias"] = tensors.take(f"{name}.bias", out)
    return built(TemporalAutoencoder, state, tensors["dim"], tensors["dict_size"], n_layers=n_layers, **options)


_READERS = {
    "batchtopk": _batch_top_k,
    "matryoshka_batchtopk": _batch_top_k,
    "matching_pursuit": _pursuit,
    "temporal": _temporal,
}


def _normalized(dictionary: Dictionary, config: Mapping[str, Any], files: Files) -> Dictionary:
    """Returns the dictionary with what is done to each token before and after it."""
    name = config.get("normalize_activations", "none")
    if name is True or name is False or name is None:
        name = "expected_average_only_in" if name else "none"
    name = choice({"normalize_activations": name}, "normalize_activations", NORMALIZATIONS, "none", files)
    if name in ("expected_average_only_in", "covariance_whitening"):
        logger.warning(
            "'%s' was trained on activations that were scaled outside of it (%s): give it activations scaled in the same way, or, where "
            "the config has activation_scale, call dictionary.scale_(1 / config['activation_scale']).",
            files,
            name,
        )
    if name == "constant_scalar_rescale" and not isinstance(dictionary, TemporalAutoencoder):
        raise CheckpointError(f"'{files}' says normalize_activations={name}, which temporal dictionaries alone have.")
    token = NORMALIZATIONS[name]
    return dictionary if token is None else Normalized(dictionary, token)
