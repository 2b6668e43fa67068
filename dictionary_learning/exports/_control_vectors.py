"""Directions as GGUF control vectors, which llama.cpp adds to the residual stream.

The tensor `direction.N` is added to what layer N returns, counted from 0. llama.cpp has none for
layer 0.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning._border import checked, short
from dictionary_learning._brief import brief
from dictionary_learning._coercion import check_range, coerce
from dictionary_learning._disk import write_atomically
from dictionary_learning.dictionaries import Coder, Dictionary, DictionaryInfo
from dictionary_learning.errors import CheckpointError, ConfigError, MissingDependencyError, SiteError
from dictionary_learning.sites import Site

_ARCHITECTURE = "controlvector"
_LAYER = re.compile(r"(?:.*\.)?(?:layers|h|blocks)\.(\d+)")
_HOOK = re.compile(r"blocks\.(\d+)\.hook_resid_(pre|post)")


class ControlDirection(NamedTuple):
    """What is added to the output of a layer."""

    layer: int
    vector: Float[Tensor, "dim"]

    __repr__ = brief


@checked()
@torch.no_grad()
def control_direction(
    dictionary: Dictionary, strengths: Mapping[int, float], *, layer: int | None = None
) -> ControlDirection:
    """Returns what latents of these strengths add to the residual stream.

    vector = sum of strength * W_dec[latent]

    A strength is a value of the latent, so its largest activation is a natural unit.

    Args:
        dictionary: With one decoder, such as an autoencoder of the residual stream.
        strengths: By latent.
        layer: The layer whose output gets the vector; by default what the site says: N for
            `layers.N:out`, and N - 1 for `layers.N:in`.

    Raises:
        ConfigError: A latent is not there, or no layer is known.
        CheckpointError: The dictionary has no single decoder.
    """
    if not isinstance(dictionary, Coder) or len(dictionary.site_dims) != 1:
        raise CheckpointError(
            f"A control vector is of one place in the residual stream; this {type(dictionary).__name__} writes "
            "several, or normalizes tokens. Give an autoencoder or transcoder of one site."
        )
    if not strengths:
        raise ConfigError("Got strengths={}; give the strength of a latent at least.")
    for latent, strength in strengths.items():
        if not (0 <= latent < dictionary.dict_size and _is_finite(strength)):
            raise ConfigError(
                f"Got strengths={{{latent}: {strength}}}; the dictionary has latents 0 to {dictionary.dict_size - 1}, "
                "and strengths are finite numbers."
            )
    layer = _layer_of(dictionary.info) if layer is None else layer
    rows = dictionary.W_dec[list(strengths)].float()  # (n, dim)
    return ControlDirection(layer, rows.new_tensor(list(map(float, strengths.values()))) @ rows)


@checked()
def write_control_vector(
    directions: Mapping[int, Tensor], path: str | os.PathLike[str], *, model_hint: str = "llama"
) -> Path:
    """Writes a GGUF file for `llama-cli --control-vector`; returns its path.

    Args:
        directions: What is added to the output of each layer, by the number of the layer from 1 on.
        path: The file.
        model_hint: The architecture of the language model, as llama.cpp names it.

    Raises:
        ConfigError: A layer is 0, or vectors differ in width or are not finite.
        MissingDependencyError: The package gguf is not installed.
    """
    wrong = next((one for one in directions.items() if not _is_direction(*one)), None)
    if wrong is not None or not directions:
        raise ConfigError(
            f"Got directions={short(directions)}; give a vector for each layer, as {{10: dictionary.W_dec[5]}}."
        )
    widths = {tuple(vector.shape) for vector in directions.values()}
    if len(widths) != 1 or len(next(iter(widths))) != 1:
        raise ConfigError(
            f"Got vectors of shapes {sorted(widths)}; give one vector of the model's width for each layer."
        )
    for layer, vector in directions.items():
        if layer < 1:
            raise ConfigError(
                f"Got a direction for layer {layer}; llama.cpp adds vectors to the outputs of layers 1 and later. "
                "Give another layer."
            )
        if not bool(vector.isfinite().all()):
            raise ConfigError(f"The direction of layer {layer} holds values that are not finite. Check the strengths.")
    try:
        import gguf
    except ImportError:
        raise MissingDependencyError("gguf", "A control vector") from None

    def write(temporary: Path) -> None:
        writer = gguf.GGUFWriter(temporary, _ARCHITECTURE)
        writer.add_string(f"{_ARCHITECTURE}.model_hint", model_hint)
        writer.add_uint32(f"{_ARCHITECTURE}.layer_count", len(directions))
        for layer in sorted(directions):
            # a copy: the writer keeps what it is given until the end
            writer.add_tensor(f"direction.{layer}", directions[layer].detach().float().cpu().numpy().copy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, write)
    return file


def _is_finite(strength: Any) -> bool:
    try:
        check_range(coerce(strength, float), {})
    except (TypeError, ValueError):
        return False
    return True


def _is_direction(layer: Any, vector: Any) -> bool:
    return isinstance(layer, int) and isinstance(vector, Tensor)


def _layer_of(info: DictionaryInfo) -> int:
    """Returns the layer whose output a dictionary writes."""
    names = info.target_sites or info.sites
    for name in names if len(names) == 1 else ():
        if hook := _HOOK.fullmatch(name):
            return int(hook[1]) - (hook[2] == "pre")
        try:
            site = Site.parse(name)
        except SiteError:
            continue
        match = _LAYER.fullmatch(site.path)
        if match is not None and site.side in ("in", "out") and not site.index:
            return int(match[1]) - (site.side == "in")
    raise ConfigError(
        f"The site of this dictionary ({', '.join(names) or 'none'}) is no input or output of a layer. Give layer=, "
        "the number of the layer whose output gets the vector."
    )
