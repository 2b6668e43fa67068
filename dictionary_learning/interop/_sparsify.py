"""EleutherAI's sparsify: `cfg.json` and `sae.safetensors`, in a folder for each hookpoint."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dictionary_learning._disk import write_json
from dictionary_learning.dictionaries import Coder, Dictionary, SkipAutoencoder, SparseAutoencoder, Transcoder
from dictionary_learning.dictionaries._serialization import write_tensors
from dictionary_learning.dictionaries.nonlinearities import GroupMax, TopK
from dictionary_learning.errors import CheckpointError
from dictionary_learning.interop._base import FORMATS, Facts, Format, Loaded, choice, setting
from dictionary_learning.interop._building import Weights, without_threshold
from dictionary_learning.interop._files import Files
from dictionary_learning.interop._safe import read_json
from dictionary_learning.interop._tensors import read_tensors

WEIGHTS = "sae.safetensors"
CONFIG = "cfg.json"
_HOOKPOINT = re.compile(r"(\w+\.)*((layers?|h|blocks?)\.\d+(\.\w+)*|embed\w*|wte)")
_NONLINEARITIES = {"topk": "top_k", "groupmax": "group_max"}


class Sparsify(Format):
    """Reads autoencoders and transcoders of all versions; writes TopK and GroupMax.

    Transcoders before February 2025 say nothing of `transcode`, and do subtract b_dec. `signed` of
    summer 2024 keeps the latents of largest absolute value; later versions of sparsify itself
    ignore it.
    """

    name = "sparsify"
    about = "EleutherAI's sparsify: cfg.json and sae.safetensors"
    needed = (WEIGHTS, CONFIG)
    writes = True

    def read(self, files: Files, facts: Facts) -> Loaded:
        config = read_json(files.path(CONFIG))
        path = files.path(WEIGHTS)
        tensors = read_tensors(path)
        activation = choice(config, "activation", _NONLINEARITIES, "topk", files)
        signed = setting(config, "signed", bool, False, files)
        k = setting(config, "k", int, None, files)
        if k is None:
            raise CheckpointError(
                f"'{path.parent / CONFIG}' does not say how many latents are kept: k is needed. Add it."
            )
        predicts = setting(config, "transcode", bool, False, files)
        weights = Weights(
            **tensors.parts("encoder.weight", "encoder.bias", "W_dec", "b_dec"),
            W_skip=tensors.maybe("W_skip", "dim dim"),
            nonlinearity="abs_top_k" if signed else _NONLINEARITIES[activation],
            options={"k": k},
            state=without_threshold() if activation == "topk" and not signed else {},
            centered=not predicts,  # files that say nothing of transcode subtract b_dec
            predicts=predicts,
        )
        tensors.finish(config, dim="d_in", dict_size="num_latents")
        if setting(config, "skip_connection", bool, False, files) != (weights.W_skip is not None):
            raise CheckpointError(
                f"'{path.parent / CONFIG}' says skip_connection={config.get('skip_connection')}, and '{path}' "
                f"{'has' if weights.W_skip is not None else 'has no'} W_skip: they are of different dictionaries."
            )
        if activation == "groupmax" and tensors["dict_size"] % k:
            raise CheckpointError(
                f"'{files}' groups {tensors['dict_size']} latents into k={k}; sparsify has groups of one size."
            )
        # the folder of a dictionary is named after its hookpoint, unless a user has renamed it
        hookpoint = next((part for part in reversed(files.folder.parts[-2:]) if _HOOKPOINT.fullmatch(part)), None)
        return Loaded(weights.dictionary(), self.known(config, {"folder": hookpoint}, site="folder"))

    def write(self, dictionary: Dictionary, folder: Path, config: Mapping[str, Any]) -> None:
        coder = _writable(dictionary)
        tensors = {
            "encoder.weight": coder.W_enc,
            "encoder.bias": coder.b_enc,
            "W_dec": coder.W_dec,
            "b_dec": coder.b_dec,
        }
        write_tensors(folder / WEIGHTS, {**tensors, "W_skip": coder.W_skip})
        settings = {
            "activation": "groupmax" if isinstance(coder.nonlinearity, GroupMax) else "topk",
            "expansion_factor": max(coder.dict_size // coder.activation_dim, 1),
            "normalize_decoder": False,
            "num_latents": coder.dict_size,  # decides before expansion_factor
            "k": coder.nonlinearity.options()["k"],
            "multi_topk": False,
            "skip_connection": coder.W_skip is not None,
            "transcode": isinstance(coder, Transcoder),
            "d_in": coder.activation_dim,
        }
        write_json(folder / CONFIG, settings)


FORMATS.register("sparsify")(Sparsify())


def _writable(dictionary: Dictionary) -> Coder:
    name = type(dictionary).__name__
    if not isinstance(dictionary, (SparseAutoencoder, SkipAutoencoder, Transcoder)):
        raise CheckpointError(
            f"sparsify has autoencoders and transcoders of one site; this is a {name}. Convert it to own, which holds every class."
        )
    kind = type(dictionary.nonlinearity)
    if kind not in (TopK, GroupMax):
        raise CheckpointError(
            f"sparsify has TopK and GroupMax; this {name} has {kind.__name__}. Convert it to another format, or to TopK by "
            'expand_or_convert(..., nonlinearity={"name": "top_k", "k": 32}).'
        )
    if kind is GroupMax and dictionary.dict_size % dictionary.nonlinearity.options()["k"]:
        raise CheckpointError("sparsify has groups of one size; k does not divide dict_size here. Convert it to own.")
    if isinstance(dictionary, Transcoder) and dictionary.output_dim != dictionary.activation_dim:
        raise CheckpointError(
            f"sparsify has transcoders of one width; this reads {dictionary.activation_dim} and writes {dictionary.output_dim}. "
            "Convert it to sae_lens or own."
        )
    if isinstance(dictionary, SparseAutoencoder) and not dictionary.centered:
        raise CheckpointError(
            f"sparsify subtracts b_dec from an autoencoder's input, and this {name} does not. Convert it to sae_lens or own."
        )
    if dictionary.rank_by_norm:
        raise CheckpointError(
            f"sparsify ranks latents by value, and this {name} by value times the norm of their decoder row. Convert it to own."
        )
    return dictionary
