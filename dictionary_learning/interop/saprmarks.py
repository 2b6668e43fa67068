"""dictionary_learning as it was before this package (Marks, Karvonen and Mueller): `ae.pt` and `config.json`.

What is stored is kept: that package's own `load_dictionary` rescales an `AutoEncoder` to decoder rows of unit norm, which gives other
latents for the same output; `fold_decoder_norm_` does that on purpose. A threshold of -1, of a run that never learnt one, lets all positive
latents through there, and is read as 0, which does the same.
"""

import itertools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dictionary_learning.dictionaries import (
    AutoEncoder,
    AutoEncoderNew,
    AutoEncoderTopK,
    BatchTopKSAE,
    Dictionary,
    GatedAutoEncoder,
    JumpReluAutoEncoder,
    MatryoshkaBatchTopKSAE,
)
from dictionary_learning.disk import write_atomically, write_json
from dictionary_learning.errors import CheckpointError, did_you_mean
from dictionary_learning.interop.archives import read_pt
from dictionary_learning.interop.base import FORMATS, Facts, Format, Loaded, positive, setting
from dictionary_learning.interop.building import Weights, built, jump_thresholds
from dictionary_learning.interop.files import Files
from dictionary_learning.interop.safe import read_json
from dictionary_learning.interop.tensors import Tensors

logger = logging.getLogger(__name__)

WEIGHTS = "ae.pt"
CONFIG = "config.json"
_CLASSES = (
    AutoEncoder,
    AutoEncoderNew,
    GatedAutoEncoder,
    AutoEncoderTopK,
    BatchTopKSAE,
    MatryoshkaBatchTopKSAE,
    JumpReluAutoEncoder,
)
_NAMES = {cls.__name__: cls.__name__ for cls in _CLASSES} | {"MatroyshkaBatchTopKSAE": "MatryoshkaBatchTopKSAE"}
"""What config.json calls them; misspelt for two weeks of January 2025."""


class DictionaryLearning(Format):
    """Reads all classes, of all times since 2024, backups of interrupted runs among them; writes the seven classes it has."""

    name = "dictionary_learning"
    about = "dictionary_learning before this package: ae.pt and config.json"
    facts = ("dict_class", "k")
    needed = (WEIGHTS, CONFIG)
    writes = True

    def recognizes(self, files: Files) -> bool:
        return bool(_weights(files))

    def read(self, files: Files, facts: Facts) -> Loaded:
        found = _weights(files)
        if len(found) != 1:
            raise CheckpointError(f"'{files}' holds {', '.join(found) or 'no ae.pt'}; one is needed. Name the file.")
        path = files.path(found[0])
        config = _config(files)
        trainer = setting(config, "trainer", dict, {}, files)
        held, scale = read_pt(path), 1.0
        if not isinstance(held, dict):
            raise CheckpointError(f"'{path}' holds a {type(held).__name__}; tensors by name are needed.")
        if "ae" in held and "optimizer" in held:
            # a backup: biases are still those of scaled activations
            trainer = {**setting(held, "config", dict, {}, path), **trainer}
            scale = 1.0 if held.get("norm_factor") is None else positive(held["norm_factor"], "norm_factor", path)
            held = setting(held, "ae", dict, {}, path)
        dictionary = _dictionary(Tensors(held, str(path)), {**trainer, **facts}, str(path))
        if scale != 1.0:
            dictionary.scale_(scale)
        plain = {
            name: value for name, value in trainer.items() if isinstance(value, (str, int, float, list, type(None)))
        }
        known: dict[str, Any] = {"format": self.name, "peer": config, "trainer": plain}
        for ours, theirs in (("model", "lm_name"), ("site", "submodule_name")):
            if isinstance(trainer.get(theirs), str):
                known[ours] = trainer[theirs]
        return Loaded(dictionary, known)

    def write(self, dictionary: Dictionary, folder: Path, config: Mapping[str, Any]) -> None:
        name = type(dictionary).__name__
        _check_writable(dictionary)
        tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in _state(dictionary).items()}
        trainer = {
            "trainer_class": "converted",
            "lm_name": _text(config.get("model")),
            "layer": None,
            "submodule_name": _text(config.get("site")),
            "wandb_name": name,
            **(config["trainer"] if isinstance(config.get("trainer"), Mapping) else {}),
            "dict_class": name,
            "activation_dim": dictionary.activation_dim,
            "dict_size": dictionary.dict_size,
        }
        if "k" in tensors:
            trainer["k"] = int(tensors["k"])
        peer = config.get("peer")
        buffer = peer.get("buffer") if isinstance(peer, Mapping) else None
        document = {"trainer": trainer, "buffer": buffer or {"d_submodule": dictionary.activation_dim}}
        write_atomically(folder / WEIGHTS, lambda temporary: torch.save(tensors, temporary))
        write_json(folder / CONFIG, document)


FORMATS.register("dictionary_learning", "saprmarks")(DictionaryLearning())


def _weights(files: Files) -> list[str]:
    if files.wants(WEIGHTS):
        return [WEIGHTS]
    return [name for name in files.weights(".pt") if name.startswith("ae_") and name[3:-3].isdigit()]


def _config(files: Files) -> dict[str, Any]:
    """Returns config.json: beside the weights, or above the folder of checkpoints."""
    for place in (files, files.above()) if files.folder.name == "checkpoints" else (files,):
        if place.has(CONFIG):
            return read_json(place.path(CONFIG))
    return {}


def _dictionary(tensors: Tensors, settings: Mapping[str, Any], where: str) -> Dictionary:
    name = settings.get("dict_class") or _class_of(tensors, where)
    if not isinstance(name, str) or name not in _NAMES:
        raise CheckpointError(
            f"'{where}' is of the class {name!r}.{did_you_mean(str(name), _NAMES)} Known: {', '.join(_NAMES)}."
        )
    dictionary = _READERS[_NAMES[name]](tensors, settings)
    tensors.finish()
    tensors.check(settings.get("activation_dim"), "dim", "activation_dim")
    tensors.check(settings.get("dict_size"), "dict_size", "dict_size")
    return dictionary


def _class_of(tensors: Tensors, where: str) -> str:
    """Returns the class that the names of the tensors belong to, where only one has them."""
    if "gate_bias" in tensors:
        return "GatedAutoEncoder"
    if "decoder.bias" in tensors:
        return "AutoEncoderNew"
    if "bias" in tensors:
        return "AutoEncoder"
    if "group_sizes" in tensors:
        return "MatryoshkaBatchTopKSAE"
    if "W_enc" in tensors and "threshold" in tensors:
        return "JumpReluAutoEncoder"
    if "b_dec" in tensors:
        raise CheckpointError(
            f"'{where}' has no {CONFIG} that names its class, and its tensors are those of AutoEncoderTopK and of BatchTopKSAE alike, "
            f"which keep other latents. Put its {CONFIG} beside it, or give dict_class=."
        )
    raise CheckpointError(
        f"'{where}' has no {CONFIG}, and its tensors are of no class that is known. Give dict_class=."
    )


def _linear(tensors: Tensors) -> dict[str, Any]:
    return {"W_enc": tensors.take("encoder.weight", "dict_size dim"), "W_dec": _decoder(tensors)}


def _decoder(tensors: Tensors) -> torch.Tensor:
    # from July to August 2024 TopK held the decoder by rows
    if "decoder" in tensors:
        return tensors.take("decoder", "dict_size dim")
    return tensors.take("decoder.weight", "dim dict_size").T


def _standard(tensors: Tensors, settings: Mapping[str, Any]) -> Dictionary:
    weights = Weights(
        **_linear(tensors), b_enc=tensors.take("encoder.bias", "dict_size"), b_dec=tensors.take("bias", "dim")
    )
    return weights.dictionary()


def _new(tensors: Tensors, settings: Mapping[str, Any]) -> Dictionary:
    b_enc, b_dec = tensors.take("encoder.bias", "dict_size"), tensors.take("decoder.bias", "dim")
    return Weights(**_linear(tensors), b_enc=b_enc, b_dec=b_dec, centered=False).dictionary(AutoEncoderNew)


def _gated(tensors: Tensors, settings: Mapping[str, Any]) -> Dictionary:
    state = {name: tensors.take(name, "dict_size") for name in ("gate_bias", "mag_bias", "r_mag")}
    b_dec = tensors.take("decoder_bias", "dim")
    return Weights(**_linear(tensors), b_dec=b_dec, nonlinearity="gated", state=state).dictionary()


def _top_k(tensors: Tensors, settings: Mapping[str, Any]) -> Dictionary:
    return _selecting(
        tensors, settings, "top_k", _linear(tensors), tensors.take("encoder.bias", "dict_size")
    ).dictionary()


def _batch_top_k(tensors: Tensors, settings: Mapping[str, Any]) -> Dictionary:
    b_enc = tensors.take("encoder.bias", "dict_size")
    return _selecting(tensors, settings, "batch_top_k", _linear(tensors), b_enc).dictionary()


def _matryoshka(tensors: Tensors, settings: Mapping[str, Any]) -> Dictionary:
    rows = _rows(tensors)
    weights = _selecting(tensors, settings, "batch_top_k", rows, tensors.take("b_enc", "dict_size"))
    groups, bounds = tensors.whole("group_sizes"), tensors.whole("group_indices")
    if groups is None and bounds is not None:
        groups = [stop - start for start, stop in itertools.pairwise(bounds)]
    if groups is None:
        raise CheckpointError(
            f"'{tensors.where}' has no group_sizes; a MatryoshkaBatchTopKSAE needs them. Get the whole file."
        )
    state = {"W_enc": weights.W_enc, "W_dec": weights.W_dec, "b_enc": weights.b_enc, "b_dec": weights.b_dec}
    state = {name: tensor for name, tensor in state.items() if tensor is not None}
    state["nonlinearity.threshold"] = weights.state["threshold"]
    k = weights.options["k"]
    return built(MatryoshkaBatchTopKSAE, state, tensors["dim"], tensors["dict_size"], k, groups)


def _jump_relu(tensors: Tensors, settings: Mapping[str, Any]) -> Dictionary:
    state = jump_thresholds(tensors.take("threshold", "dict_size"))
    b_enc, b_dec = tensors.take("b_enc", "dict_size"), tensors.take("b_dec", "dim")
    options = {"bandwidth": _bandwidth(settings)}
    return Weights(
        **_rows(tensors),
        b_enc=b_enc,
        b_dec=b_dec,
        nonlinearity="jump_relu",
        options=options,
        state=state,
        centered=False,
    ).dictionary()


_READERS = {
    "AutoEncoder": _standard,
    "AutoEncoderNew": _new,
    "GatedAutoEncoder": _gated,
    "AutoEncoderTopK": _top_k,
    "BatchTopKSAE": _batch_top_k,
    "MatryoshkaBatchTopKSAE": _matryoshka,
    "JumpReluAutoEncoder": _jump_relu,
}


def _rows(tensors: Tensors) -> dict[str, Any]:
    return {"W_enc": tensors.take("W_enc", "dim dict_size").T, "W_dec": tensors.take("W_dec", "dict_size dim")}


def _selecting(tensors: Tensors, settings: Mapping[str, Any], kind: str, rows: dict[str, Any], b_enc: Any) -> Weights:
    k, threshold = tensors.whole("k"), tensors.maybe("threshold", "")
    # with annealing, a checkpoint holds the k of its step, and the config the last one
    k = k[0] if k else setting(settings, "k", int, None, tensors.where)
    if k is None:
        raise CheckpointError(f"Neither '{tensors.where}' nor its {CONFIG} says how many latents are kept. Give k=.")
    learnt = -1.0 if threshold is None else float(threshold)
    if learnt < 0 and kind == "batch_top_k":
        logger.warning(
            "'%s' has no learnt threshold: all positive latents fire, as its own package has it.", tensors.where
        )
        learnt = 0.0
    return Weights(
        **rows,
        b_enc=b_enc,
        b_dec=tensors.take("b_dec", "dim"),
        nonlinearity=kind,
        options={"k": k},
        state={"threshold": torch.tensor(learnt)},
    )


def _bandwidth(settings: Mapping[str, Any]) -> float:
    value = settings.get("bandwidth", 0.001)
    return float(value) if isinstance(value, (int, float)) and 0 < value < 1e6 else 0.001


def _check_writable(dictionary: Dictionary) -> None:
    name = type(dictionary).__name__
    if type(dictionary) not in _CLASSES:
        raise CheckpointError(
            f"dictionary_learning has no class for a {name}; it has {', '.join(cls.__name__ for cls in _CLASSES)}. Convert it to "
            "another format, or to one of these by expand_or_convert(..., nonlinearity=...)."
        )
    if dictionary.centered != (type(dictionary) not in (AutoEncoderNew, JumpReluAutoEncoder)):
        raise CheckpointError(
            f"A {name} of dictionary_learning {'does not subtract' if dictionary.centered else 'subtracts'} b_dec from its input, and "
            f"this one {'does' if dictionary.centered else 'does not'}; the file cannot say so. Convert it to sae_lens or own."
        )
    if dictionary.rank_by_norm:
        raise CheckpointError(
            f"dictionary_learning compares latents by value, and this {name} by value times the norm of what they write. Apply "
            "fold_decoder_norm_ to a copy first, and build it without rank_by_norm."
        )


def _state(dictionary: Any) -> dict[str, torch.Tensor]:
    """Returns the tensors by the names that the class has there."""
    if isinstance(dictionary, (MatryoshkaBatchTopKSAE, JumpReluAutoEncoder)):
        state = {
            "W_enc": dictionary.W_enc.T,
            "b_enc": dictionary.b_enc,
            "W_dec": dictionary.W_dec,
            "b_dec": dictionary.b_dec,
        }
    else:
        state = {"encoder.weight": dictionary.W_enc, "decoder.weight": dictionary.W_dec.T}
        b_dec = {AutoEncoder: "bias", AutoEncoderNew: "decoder.bias", GatedAutoEncoder: "decoder_bias"}
        state[b_dec.get(type(dictionary), "b_dec")] = dictionary.b_dec
        if dictionary.b_enc is not None:
            state["encoder.bias"] = dictionary.b_enc
    state |= dict(dictionary.nonlinearity.state_dict())
    if isinstance(dictionary, (AutoEncoderTopK, BatchTopKSAE, MatryoshkaBatchTopKSAE)):
        state["k"] = torch.tensor(dictionary.k, dtype=torch.int32)
    if isinstance(dictionary, MatryoshkaBatchTopKSAE):
        state["group_sizes"] = torch.tensor(dictionary.group_sizes)
    return state


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
