"""circuit-tracer's transcoders and cross-layer transcoders, and Gemma Scope 2's: a file a layer.

All are for activations as the model gives them, and none subtracts b_dec from its input.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dictionary_learning.dictionaries import CrossLayerTranscoder
from dictionary_learning.errors import CheckpointError
from dictionary_learning.interop._archives import read_names
from dictionary_learning.interop._base import Facts, Format, Loaded, check_fact, choice, latents_kept, warn_unknown
from dictionary_learning.interop._files import Files
from dictionary_learning.interop._tensors import built, coder, jump_thresholds, read_tensors

_YAML = "config.yaml"
_PARTS = {"W_enc": "W_enc", "b_enc": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
_THRESHOLD = "activation_function.threshold"
_SETTINGS = (
    *("model_kind", "model_name", "feature_input_hook", "feature_output_hook", "activation", "k", "transcoders"),
    *("scan", "repo_id", "subfolder", "revision"),
)
_FILE = re.compile(r"W_(enc|dec)_(\d+)\.safetensors")


class CircuitTracer(Format):
    """Reads `layer_<N>.safetensors` with the `config.yaml` of its set: ReLU, JumpReLU or TopK.

    With a threshold in the file it is JumpReLU, which a config may say too; TopK is said by the
    config alone (`activation`, `k`), or by k=.
    """

    name = "mwhanna"
    facts = ("k",)
    needed = ("layer_*.safetensors", _YAML)

    def recognizes(self, files: Files) -> bool:
        found = files.weights(".safetensors")
        names = read_names(files, found[0]) if len(found) == 1 and found[0].startswith("layer_") else frozenset()
        return set(_PARTS.values()) <= names and names <= {*_PARTS.values(), "W_skip", _THRESHOLD, "k"}

    def read(self, files: Files, facts: Facts) -> Loaded:
        name = files.only_weights(".safetensors")
        tensors, config = read_tensors(name), _config(files, "transcoder_set")
        skip = {"W_skip": "W_skip"} if "W_skip" in tensors else {}
        parts = tensors.parts({**_PARTS, **skip}, wide="output_dim")
        stored = tensors.integers("k")
        known = self.known(
            files, config, model="model_name", site="feature_input_hook", target_site="feature_output_hook"
        )
        layer = re.search(r"layer_(\d+)", name.name)
        for section in ("site", "target_site"):
            if isinstance(known.get(section), str) and layer and not known[section].startswith("blocks."):
                known[section] = f"blocks.{layer[1]}.{known[section]}"
        said = stored[0] if stored else config.get("k")
        kind = "topk" if stored or "k" in facts else _activation(config, _THRESHOLD in tensors, files)
        if kind == "topk":
            check_fact(facts, "k", said, files)
            k = latents_kept({"k": facts.get("k", said)}, files, f"Its {_YAML} does, or give k=.")
            # it keeps the largest as they are, also negative ones
            made = coder(parts, "top_k_unrectified", centered=False, predicts=True, k=k)
        elif kind == "jumprelu":
            state = jump_thresholds(tensors.take(_THRESHOLD, "dict_size"))
            made = coder(parts, "jump_relu", state, centered=False, predicts=True)
        else:
            made = coder(parts, centered=False, predicts=True)
        tensors.finish()
        return Loaded(made, known)


class CircuitTracerCrossLayer(Format):
    """Reads `W_enc_<N>.safetensors` and `W_dec_<N>.safetensors` of all layers of one transcoder."""

    name = "circuit_tracer_clt"
    file_names = _FILE
    needed = ("W_enc_*.safetensors", "W_dec_*.safetensors", _YAML)

    def recognizes(self, files: Files) -> bool:
        return files.chosen is None and files.has("W_enc_0.safetensors") and files.has("W_dec_0.safetensors")

    def read(self, files: Files, facts: Facts) -> Loaded:
        config = _config(files, "cross_layer_transcoder")
        matches = [_FILE.fullmatch(name) for name in files.entries]
        numbers = sorted(int(match[2]) for match in matches if match is not None and match[1] == "enc")
        n = len(numbers)
        if numbers != list(range(n)):
            raise CheckpointError(f"'{files}' has the layers {numbers}; those from 0 to {n - 1} are needed.")
        layers: list[dict[str, Tensor]] = []
        for layer in range(n):
            encoder = read_tensors(files.path(f"W_enc_{layer}.safetensors"))
            decoder = read_tensors(files.path(f"W_dec_{layer}.safetensors"))
            one = {
                "W_enc": encoder.take(f"W_enc_{layer}", "dict_size dim"),
                "b_enc": encoder.take(f"b_enc_{layer}", "dict_size"),
                "b_dec": encoder.take(f"b_dec_{layer}", "dim"),
                "W_dec": decoder.take(f"W_dec_{layer}", "dict_size layers dim"),
            }
            if f"threshold_{layer}" in encoder:
                one["threshold"] = encoder.take(f"threshold_{layer}", "dict_size")
            encoder.finish()
            decoder.finish()
            if one["W_dec"].shape[1] != n - layer:
                raise CheckpointError(
                    f"W_dec_{layer} of '{files}' writes {one['W_dec'].shape[1]} layers; with {n} layers it writes "
                    f"{n - layer}. Get all files."
                )
            layers.append(one)
        known = self.known(
            files, config, model="model_name", site="feature_input_hook", target_site="feature_output_hook"
        )
        for section in ("site", "target_site"):
            if section in known:
                known[section] = [f"blocks.{layer}.{known[section]}" for layer in range(n)]
        if _activation(config, "threshold" in layers[0], files) == "topk":
            raise CheckpointError(f"'{files}' says activation='topk', which cross-layer transcoders have not.")
        return Loaded(cross_layer(layers, files), known)


def _config(files: Files, kind: str) -> dict[str, Any]:
    """Returns the settings of a set, which has to be of a kind if it says one."""
    config = {name: value for name, value in files.settings(_YAML).items() if value is not None}
    warn_unknown(config, _SETTINGS, files)
    choice(config, "model_kind", (kind,), kind, files)
    return config


def _activation(config: Mapping[str, Any], has_threshold: bool, files: Files) -> str:
    """Returns the activation; weights with thresholds are JumpReLU, and others are not."""
    found = "jumprelu" if has_threshold else "relu"
    kind = choice(config, "activation", ("relu", "topk", "jumprelu"), found, files)
    if kind not in (found, "topk"):
        raise CheckpointError(
            f"The {_YAML} of '{files}' says activation={kind!r}, and the file {'has' if has_threshold else 'has no'} "
            f"{_THRESHOLD}: it would be {found}. Get the whole file, or correct the activation."
        )
    if kind != "topk" and "k" in config:
        raise CheckpointError(
            f"The {_YAML} of '{files}' says k={config['k']!r} without activation: topk. Add one, or remove the other; "
            "k= says it, too."
        )
    return kind


def cross_layer(layers: list[dict[str, Tensor]], files: Files) -> Any:
    """Returns the transcoder of layers, each with W_dec (dict_size, layers that it writes, dim)."""
    has_thresholds = {"threshold" in layer for layer in layers}
    widths = {tuple(layer["W_enc"].shape) for layer in layers}
    if len(has_thresholds) != 1 or len(widths) != 1:
        raise CheckpointError(f"The layers of '{files}' are of different kinds or sizes. Get all of its files.")
    ((size, dim),) = widths
    n, kind = len(layers), "jump_relu" if has_thresholds == {True} else "relu"
    state: dict[str, Tensor] = {"b_dec": torch.cat([layer["b_dec"] for layer in layers])}
    for number, layer in enumerate(layers):
        state |= {f"parts.{number}.{name}": layer[name] for name in ("W_enc", "b_enc")}
        # (dict_size, layers, dim) to (dict_size, sum of widths)
        state[f"parts.{number}.W_dec"] = layer["W_dec"].reshape(size, -1)
        if kind == "jump_relu":
            own: Mapping[str, Tensor] = jump_thresholds(layer["threshold"])
            state |= {f"parts.{number}.nonlinearity.{name}": tensor for name, tensor in own.items()}
    return built(CrossLayerTranscoder, state, [dim] * n, n * size, {"name": kind})


CIRCUIT_TRACER: tuple[Format, ...] = (CircuitTracer(), CircuitTracerCrossLayer())
