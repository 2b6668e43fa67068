"""EleutherAI's sparsify: `cfg.json` and `sae.safetensors`, in a folder for each hookpoint."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dictionary_learning._disk import write_json
from dictionary_learning.dictionaries import Coder, Dictionary, SkipAutoencoder, SparseAutoencoder, Transcoder
from dictionary_learning.dictionaries._serialization import write_tensors
from dictionary_learning.dictionaries.nonlinearities import GroupMax, TopK
from dictionary_learning.errors import CheckpointError
from dictionary_learning.interop._base import Facts, Format, Loaded, choice, latents_kept, setting, whole_number
from dictionary_learning.interop._files import Files
from dictionary_learning.interop._loading import load_dictionary, load_many
from dictionary_learning.interop._safe import read_json
from dictionary_learning.interop._tensors import coder, read_tensors, stored_parts, without_threshold

WEIGHTS = "sae.safetensors"
CONFIG = "cfg.json"
_HOOKPOINT = re.compile(r"(\w+\.)*((layers?|h|blocks?)\.\d+(\.\w+)*|embed\w*|wte)")
_NONLINEARITIES = {"topk": "top_k", "groupmax": "group_max"}
_PARTS = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "W_dec", "b_dec": "b_dec"}
_SKIP = {"W_skip": "W_skip"}


class Sparsify(Format):
    """Reads autoencoders and transcoders of all versions; writes TopK and GroupMax.

    Transcoders before February 2025 say nothing of `transcode`, and do subtract b_dec. `signed` of
    summer 2024 keeps the latents of largest absolute value; later versions of sparsify itself
    ignore it.
    """

    name = "sparsify"
    needed = (WEIGHTS, CONFIG)
    writes = True

    def read(self, files: Files, facts: Facts) -> Loaded:
        config, path = read_json(files.path(CONFIG)), files.path(WEIGHTS)
        tensors = read_tensors(path)
        activation = choice(config, "activation", _NONLINEARITIES, "topk", files)
        signed = setting(config, "signed", bool, False, files)
        if signed and activation != "topk":
            raise CheckpointError(f"'{files}' says signed and activation={activation!r}; TopK alone has signs.")
        k = latents_kept(config, path.parent / CONFIG, "Add it.")
        has_skip = "W_skip" in tensors
        predicts = setting(config, "transcode", bool, False, files)
        dictionary = coder(
            tensors.parts({**_PARTS, **(_SKIP if has_skip else {})}),
            "abs_top_k" if signed else _NONLINEARITIES[activation],
            without_threshold() if activation == "topk" and not signed else None,
            centered=not predicts,  # files that say nothing of transcode subtract b_dec
            predicts=predicts,
            k=k,
        )
        counted = whole_number(config, "num_latents", files)  # 0 there means that expansion_factor says it
        tensors.finish({**config, "num_latents": counted or None}, dim="d_in", dict_size="num_latents")
        if not counted:
            tensors.check_expansion(config, "expansion_factor")
        if setting(config, "skip_connection", bool, False, files) != has_skip:
            raise CheckpointError(
                f"'{path.parent / CONFIG}' says skip_connection={config.get('skip_connection')}, and '{path}' "
                f"{'has' if has_skip else 'has no'} W_skip: they are of different dictionaries."
            )
        if activation == "groupmax" and tensors["dict_size"] % k:
            raise CheckpointError(
                f"'{files}' groups {tensors['dict_size']} latents into k={k}; sparsify has groups of one size."
            )
        # the folder of a dictionary is named after its hookpoint, unless a user has renamed it
        hookpoint = next((part for part in reversed(files.folder.parts[-2:]) if _HOOKPOINT.fullmatch(part)), None)
        if not predicts or hookpoint is None:
            return Loaded(dictionary, self.known(files, config, {"folder": hookpoint}, site="folder"))
        ends = {"in": f"{hookpoint}:in", "out": f"{hookpoint}:out"}  # of a module, what it reads and returns
        return Loaded(dictionary, self.known(files, config, ends, site="in", target_site="out"))

    def write(self, dictionary: Dictionary, folder: Path, config: Mapping[str, Any]) -> None:
        own = _writable(dictionary)
        said = config.get("trainer")
        trainer: Mapping[str, Any] = said if isinstance(said, Mapping) else {}
        write_tensors(folder / WEIGHTS, stored_parts(own, {**_PARTS, **_SKIP}))
        settings = {
            "activation": "groupmax" if isinstance(own.nonlinearity, GroupMax) else "topk",
            "expansion_factor": max(own.dict_size // own.activation_dim, 1),
            "normalize_decoder": bool(trainer.get("unit_norm_decoder", False)),
            "num_latents": own.dict_size,  # decides before expansion_factor
            "k": own.nonlinearity.options()["k"],
            "multi_topk": False,
            "skip_connection": own.W_skip is not None,
            "transcode": isinstance(own, Transcoder),
            "d_in": own.activation_dim,
        }
        write_json(folder / CONFIG, settings)


class Sae:
    """The loaders of sparsify's `Sae`, for any format; they return dictionaries of this package."""

    load_from_disk = staticmethod(load_dictionary)

    @staticmethod
    def load_from_hub(
        name: str, hookpoint: str | None = None, device: torch.device | str | None = None, **options: Any
    ) -> Dictionary:
        """Loads the dictionary of a hookpoint from the hub, or from a local folder."""
        return load_dictionary(name, device, site=hookpoint, **options)

    @staticmethod
    def load_many(
        name: str | os.PathLike, local: bool = True, device: torch.device | str | None = None, **options: Any
    ) -> dict[str, Dictionary]:
        """Loads all dictionaries of a run by hookpoint, in natural order; `local` has no effect."""
        return load_many(name, device, **options)


def _writable(dictionary: Dictionary) -> Coder:
    """Returns the dictionary, unless sparsify computes something else from its weights."""
    name = type(dictionary).__name__
    if not isinstance(dictionary, (SparseAutoencoder, SkipAutoencoder, Transcoder)):
        raise CheckpointError(
            f"sparsify has autoencoders and transcoders of one site; this is a {name}. Convert it to own, which holds "
            "every class."
        )
    kind = type(dictionary.nonlinearity)
    if kind not in (TopK, GroupMax):
        raise CheckpointError(
            f"sparsify has TopK and GroupMax; this {name} has {kind.__name__}. Convert it to another format, or to "
            'TopK by expand_or_convert(..., nonlinearity={"name": "top_k", "k": 32}).'
        )
    k, (reads, writes) = dictionary.nonlinearity.options()["k"], (dictionary.activation_dim, dictionary.output_dim)
    keeps_b_dec = isinstance(dictionary, SparseAutoencoder) and not dictionary.centered
    differences = {
        "has groups of one size; k does not divide dict_size here": kind is GroupMax and dictionary.dict_size % k != 0,
        f"has transcoders of one width; this reads {reads} and writes {writes}": reads != writes,
        f"subtracts b_dec from an autoencoder's input, and this {name} does not": keeps_b_dec,
        f"ranks by value, and this {name} by value times the norm of the decoder row": dictionary.rank_by_norm,
    }
    for difference, differs in differences.items():
        if differs:
            raise CheckpointError(f"sparsify {difference}. Convert it to another format; own holds every class.")
    return dictionary
