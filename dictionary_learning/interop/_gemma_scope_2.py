"""Gemma Scope 2's dictionaries of several layers: `params_layer_<N>.safetensors` for each.

Cross-layer transcoders and crosscoders have the same files: each layer's latents read that layer,
and `w_dec` is (dict_size, layers, width). `config.json` says which they are, or the folder's name.
"""

import logging
import re
from typing import Any

import torch
from torch import Tensor

from dictionary_learning.dictionaries import Crosscoder
from dictionary_learning.errors import CheckpointError
from dictionary_learning.interop._archives import read_names
from dictionary_learning.interop._base import Facts, Format, Loaded, choice, label, setting, whole_number
from dictionary_learning.interop._circuit_tracer import cross_layer
from dictionary_learning.interop._files import Files
from dictionary_learning.interop._gemma_scope import CONFIG, HOOKS, site_of
from dictionary_learning.interop._safe import read_json
from dictionary_learning.interop._tensors import built, jump_thresholds, read_tensors

logger = logging.getLogger(__name__)

_LAYER = re.compile(r"layer_(\d+)(?:_.*)?\.safetensors|params_layer_(\d+)\.safetensors")
_PART = re.compile(r"params_layer_\d+\.safetensors")
_PLACES = re.compile(r"\{(all|\d+(?:,\d+)*)\}")
_CROSSCODER = "crosscoder"
_CROSS_LAYER = ("clt", "transcoder")
"""Words in the type of a cross-layer transcoder."""
_FOLDERS = 2
"""Levels of folders whose names may say what is in them: crosscoder/layer_7_13_width_65k_l0_big."""


class GemmaScope2CrossLayer(Format):
    """Reads a cross-layer transcoder. Rows of w_dec for earlier layers are left out."""

    name = "gemma_scope_2_clt"
    file_names = _PART
    needed = ("*layer_*.safetensors", CONFIG)

    def recognizes(self, files: Files) -> bool:
        return _has_layers(files) and not _is_crosscoder(files)

    def read(self, files: Files, facts: Facts) -> Loaded:
        kind = setting(_config(files), "type", str, "clt", files)
        if not any(word in kind for word in _CROSS_LAYER):
            raise CheckpointError(
                f"The config of '{files}' says type={kind!r}; of several layers, cross-layer transcoders (clt) and "
                "crosscoders are read."
            )
        layers = _read_layers(files)
        for number, one in enumerate(layers):
            if bool(one["W_dec"][:, :number].any()):
                logger.warning(
                    "The latents of layer %d of '%s' have decoder rows for earlier layers, which they cannot write; "
                    "these are left out.",
                    *(number, files),
                )
            one["W_dec"] = one["W_dec"][:, number:]
        return Loaded(cross_layer(layers, files), _known(self, files, len(layers)))


class GemmaScope2Crosscoder(Format):
    """Reads a crosscoder whose latents read one layer each, and write all of the later ones.

    It becomes one crosscoder: latents of the second layer follow those of the first, and their rows
    of W_enc are 0 at all layers but their own. All rows of w_dec are used, as they are stored.
    """

    name = "gemma_scope_2_crosscoder"
    file_names = _PART
    needed = ("*layer_*.safetensors", CONFIG)

    def recognizes(self, files: Files) -> bool:
        return _has_layers(files) and _is_crosscoder(files)

    def read(self, files: Files, facts: Facts) -> Loaded:
        choice(_config(files), "type", (_CROSSCODER,), _CROSSCODER, files)
        layers = _read_layers(files)
        sizes, dims = ([len(layer[name]) for layer in layers] for name in ("b_enc", "b_dec"))
        if len(set(dims)) != 1:
            raise CheckpointError(f"The layers of '{files}' have the widths {dims}. Get all of its files.")
        state = {name: torch.cat([layer[name] for layer in layers]) for name in ("b_enc", "b_dec")}
        state["W_enc"] = torch.block_diag(*(layer["W_enc"] for layer in layers))  # (dict_size, sum of widths)
        state["W_dec"] = torch.cat([layer["W_dec"].flatten(1) for layer in layers])
        thresholds = jump_thresholds(torch.cat([layer["threshold"] for layer in layers]))
        state |= {f"nonlinearity.{name}": tensor for name, tensor in thresholds.items()}
        made = built(Crosscoder, state, dims, sum(sizes), {"name": "jump_relu"}, rank_by_norm=False)
        return Loaded(made, _known(self, files, len(layers)))


def _config(files: Files) -> dict[str, Any]:
    return read_json(files.path(CONFIG)) if files.has(CONFIG) else {}


def _has_layers(files: Files) -> bool:
    found = _layers(files)
    return files.chosen is None and 0 in found and {"w_enc", "w_dec", "threshold"} <= read_names(files, found[0])


def _is_crosscoder(files: Files) -> bool:
    said = _config(files).get("type")
    names = files.folder.absolute().parts[-_FOLDERS:]
    return any(_CROSSCODER in name for name in names) if said is None else said == _CROSSCODER


def _layers(files: Files) -> dict[int, str]:
    matches = [(name, _LAYER.fullmatch(name)) for name in files.entries]
    return {int(match[1] or match[2]): name for name, match in matches if match is not None}


def _read_layers(files: Files) -> list[dict[str, Tensor]]:
    """Returns the weights of each layer, which have decoders for as many layers as there are.

    w_enc is (width, dict_size), and w_dec (dict_size, layers, width).
    """
    config = _config(files)
    choice(config, "architecture", ("jump_relu",), "jump_relu", files)
    found = _layers(files)
    if set(found) != set(range(len(found))):
        raise CheckpointError(f"'{files}' has the layers {sorted(found)}; those from 0 on are needed.")
    layers: list[dict[str, Tensor]] = []
    for number in range(len(found)):
        tensors = read_tensors(files.path(found[number]))
        if "affine_skip_connection" in tensors or setting(config, "affine_connection", bool, False, files):
            raise CheckpointError(
                f"'{files}' has an affine part (affine_connection), which dictionaries of several layers here have not."
            )
        one = {"W_enc": tensors.take("w_enc", "dim dict_size").T, "b_enc": tensors.take("b_enc", "dict_size")}
        one |= {"W_dec": tensors.take("w_dec", "dict_size layers dim"), "b_dec": tensors.take("b_dec", "dim")}
        layers.append({**one, "threshold": tensors.take("threshold", "dict_size")})
        tensors.finish()
        said = whole_number(config, "width", files)
        sizes = (tensors["dict_size"], tensors["dict_size"] * len(found))
        if said is not None and said not in sizes:  # of a layer, or of all together
            raise CheckpointError(
                f"The config of '{files}' says width={said!r}, and its tensors have {sizes[0]} latents in each of "
                f"{len(found)} layers: they do not belong together."
            )
        if tensors["layers"] != len(found):
            raise CheckpointError(f"'{files}' writes {tensors['layers']} layers, and has {len(found)} files.")
    return layers


def _known(format: Format, files: Files, n_layers: int) -> dict[str, Any]:
    """Returns the config, with the sites of its hook points: model.layers.{5,9}.output is two."""
    config = _config(files)
    known = format.known(files, config, model="model_name")
    sites = {section: _sites(config, key, n_layers, files) for section, key in HOOKS.items()}
    return known | {section: names for section, names in sites.items() if names}


def _sites(config: dict[str, Any], key: str, n_layers: int, files: Files) -> list[str]:
    """Returns the sites that a hook point of all layers, or a list of one for each, stands for."""
    said = config.get(key)
    if said is None:
        return []
    names = said if isinstance(said, list) else _listed(label(config, key, files) or "", n_layers)
    if not all(isinstance(name, str) and name for name in names) or len(names) != n_layers:
        raise CheckpointError(
            f"The config of '{files}' says {key}={said!r}, and there are {n_layers} layers. Give the hook points of "
            "all, as 'model.layers.{all}.output', or null."
        )
    return [site_of(name) for name in names]


def _listed(name: str, n_layers: int) -> list[str]:
    places = _PLACES.search(name)
    if places is None:
        return [name]
    numbers = map(str, range(n_layers)) if places[1] == "all" else places[1].split(",")
    return [name.replace(places[0], number) for number in numbers]


GEMMA_SCOPE_2: tuple[Format, ...] = (GemmaScope2CrossLayer(), GemmaScope2Crosscoder())
