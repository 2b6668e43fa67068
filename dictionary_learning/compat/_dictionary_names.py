"""Attributes, files and classes of dictionaries by their names in dictionary-learning 0.1."""

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from dictionary_learning.dictionaries._folding import fold_decoder_norm_
from dictionary_learning.dictionaries._named import (
    AutoEncoder,
    AutoEncoderNew,
    AutoEncoderTopK,
    BatchTopKSAE,
    GatedAutoEncoder,
    JumpReluAutoEncoder,
    MatryoshkaBatchTopKSAE,
)
from dictionary_learning.dictionaries._views import write_
from dictionary_learning.errors import CheckpointError, ConfigError
from dictionary_learning.interop._releases import load_release
from dictionary_learning.ops._row_updates import normalize_rows_, remove_parallel_part_

logger = logging.getLogger(__name__)

_TOP_K = (AutoEncoderTopK, BatchTopKSAE, MatryoshkaBatchTopKSAE)
_BIASES: dict[type, dict[str, str]] = {
    AutoEncoder: {"bias": "b_dec"},
    GatedAutoEncoder: {
        "decoder_bias": "b_dec",
        "r_mag": "nonlinearity.r_mag",
        "gate_bias": "nonlinearity.gate_bias",
        "mag_bias": "nonlinearity.mag_bias",
    },
}
"""Parameters by their names there, and here."""
_UNIT_NORMS = 1e-3
"""Distance of norms from 1 that is told."""


def older_attribute(ae: Any, name: str) -> Any:
    """Returns an attribute of dictionary-learning 0.1.

    Raises:
        AttributeError: The class has none of this name.
    """
    own = _biases_of(ae).get(name)
    if own is not None:
        return ae.get_parameter(own)
    method = _METHODS.get(name)
    if method is not None and isinstance(ae, method[0]):
        return functools.partial(method[1], ae)
    raise AttributeError(f"'{type(ae).__name__}' has no attribute '{name}'.")


def write_older_attribute(ae: Any, name: str, values: Tensor) -> bool:
    """Writes values into the parameter that has this name there; returns whether there is one.

    An `nn.Parameter` too is written: a second one in its place would be trained without effect.

    Raises:
        ConfigError: They have another shape.
    """
    own = _biases_of(ae).get(name)
    if own is None and name == "threshold" and hasattr(ae.nonlinearity, "threshold"):
        own = "nonlinearity.threshold"
    if own is None:
        return False
    write_(ae.get_parameter(own) if own != "nonlinearity.threshold" else ae.nonlinearity.threshold, values, name)
    return True


def own_state(ae: Any, state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns tensors of an `ae.pt` by our names; others are returned as they are.

    Raises:
        CheckpointError: k or the groups are not those of the dictionary.
    """
    found = dict(state)
    renamed = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.bias": "b_dec"}
    renamed |= _biases_of(ae)
    is_older = any(name in found for name in ("encoder.weight", "decoder.weight", "threshold"))
    if not is_older:
        return state
    if "W_enc" in found:  # (activation_dim, dict_size) there
        found["W_enc"] = found["W_enc"].T.contiguous()
    if "decoder.weight" in found:
        found["W_dec"] = found.pop("decoder.weight").T.contiguous()
    if "threshold" in found:
        threshold = found.pop("threshold")
        # what exceeds it is rectified there, so a negative one acts as zero
        is_jump = isinstance(ae, JumpReluAutoEncoder)
        found["nonlinearity.threshold"] = threshold.float().clamp_min(0) if is_jump else threshold
    for name, mine in (("k", [getattr(ae, "k", None)]), ("group_sizes", list(getattr(ae, "group_sizes", ())))):
        if name in found and (theirs := torch.as_tensor(found.pop(name)).flatten().tolist()) != mine:
            raise CheckpointError(f"The tensors are of a dictionary with {name}={theirs}, and this one has {mine}. "
                                  "Build it with the same.")  # fmt: skip
    return {renamed.get(name, name): tensor for name, tensor in found.items()}


def warn_of_norms(ae: AutoEncoder) -> None:
    """Warns of a dictionary whose latents dictionary-learning 0.1 rescales when it loads it."""
    norms = ae.decoder_norms().detach()
    if ae.info.format == "dictionary_learning" and bool(((norms - 1).abs() > _UNIT_NORMS).any()):
        logger.warning(
            "Decoder rows of '%s' have norms from %.3g to %.3g, and are loaded as they are stored. dictionary-learning "
            "0.1 gives them unit norm, which rescales latents: normalize_decoder=True does so, False says not to.",
            ae.info.source, float(norms.min()), float(norms.max()),
        )  # fmt: skip


def of_release(
    cls: type[Any], device: Any = None, *, release: Any = None, sae_id: str | None = None, **options: Any
) -> Any:
    """Returns a dictionary of a release of SAELens, as SAELens names it.

    Args:
        cls: Its class.
        device: The CPU by default.
        release: The release, or a place of files.
        sae_id: Which of its dictionaries.
        options: Further ones of `load_dictionary`.

    Raises:
        ConfigError: There is no release.
        CheckpointError: It has no such dictionary, or one of another class.
    """
    if not isinstance(release, str):
        raise ConfigError("load_from_sae_lens=True needs release= and sae_id=, as SAELens names them.")
    loaded: Any = load_release(release, sae_id, device, expected_class=cls.__name__, **options)
    if not isinstance(loaded, cls):
        raise CheckpointError(f"'{release}' holds a {type(loaded).__name__}. Use load_dictionary.")
    return loaded


def _biases_of(ae: Any) -> dict[str, str]:
    return next((_BIASES[cls] for cls in type(ae).__mro__ if cls in _BIASES), {})


@torch.no_grad()
def _to_unit_norm(ae: Any) -> Tensor:
    normalize_rows_(ae.W_dec.data)
    return ae.W_dec.data


@torch.no_grad()
def _remove_parallel(ae: Any) -> None:
    if ae.W_dec.grad is not None:
        remove_parallel_part_(ae.W_dec.grad, torch.nn.functional.normalize(ae.W_dec, dim=1))


_METHODS: dict[str, tuple[tuple[type, ...], Callable[..., Any]]] = {
    "normalize_decoder": ((AutoEncoder, AutoEncoderNew, JumpReluAutoEncoder), fold_decoder_norm_),
    "set_decoder_norm_to_unit_norm": (_TOP_K, _to_unit_norm),
    "remove_gradient_parallel_to_decoder_directions": (_TOP_K, _remove_parallel),
}
