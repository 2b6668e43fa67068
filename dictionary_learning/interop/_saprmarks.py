"""dictionary_learning before this package (Marks, Karvonen, Mueller): `ae.pt`, `config.json`.

Weights are loaded as they are stored. That package's own `load_dictionary` rescales an
`AutoEncoder` to unit decoder rows, which changes latents and keeps the output; `fold_decoder_norm_`
does the same on purpose. A threshold of -1, of a run that never learned one, lets all positive
latents through there; it is read as 0, which does the same.
"""

import itertools
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dictionary_learning._disk import write_atomically, write_json
from dictionary_learning.capture._hook_names import hook_name, layer_of
from dictionary_learning.dictionaries import (
    DICTIONARIES,
    AutoEncoder,
    AutoEncoderNew,
    AutoEncoderTopK,
    BatchTopKSAE,
    Dictionary,
    DictionaryInfo,
    GatedAutoEncoder,
    JumpReluAutoEncoder,
    MatryoshkaBatchTopKSAE,
)
from dictionary_learning.errors import CheckpointError, did_you_mean
from dictionary_learning.interop._archives import read_names, read_pt
from dictionary_learning.interop._base import (
    PLAIN,
    Facts,
    Format,
    Loaded,
    check_fact,
    latents_kept,
    own_part,
    positive,
    setting,
)
from dictionary_learning.interop._files import Files
from dictionary_learning.interop._tensors import Tensors, built, coder, jump_thresholds, stored_parts

logger = logging.getLogger(__name__)

WEIGHTS = "ae.pt"
CONFIG = "config.json"
_LINEAR = {"W_enc": "encoder.weight", "W_dec": "decoder.weight.T", "b_dec": "b_dec", "b_enc": "encoder.bias"}
_MATRICES = {"W_enc": "W_enc.T", "W_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec"}
_CLASSES = {
    AutoEncoder: {**_LINEAR, "b_dec": "bias"},
    AutoEncoderNew: {**_LINEAR, "b_dec": "decoder.bias"},
    # a gated autoencoder has its biases in the nonlinearity
    GatedAutoEncoder: {"W_enc": "encoder.weight", "W_dec": "decoder.weight.T", "b_dec": "decoder_bias"},
    AutoEncoderTopK: _LINEAR,
    BatchTopKSAE: _LINEAR,
    MatryoshkaBatchTopKSAE: _MATRICES,
    JumpReluAutoEncoder: _MATRICES,
}
"""The names of the parts in each class's files."""
_TRAINERS = {"TrainerTopK": "TopKTrainer", "TrainerStandard": "StandardTrainer"}
"""Trainers whose classes have other names here."""
_SETTINGS = {"l1_penalty": "sparsity_penalty", "top_k_aux": "k_aux"}
"""Settings that have other names here, and theirs first."""
_NAMES = {cls.__name__: cls for cls in _CLASSES} | {"MatroyshkaBatchTopKSAE": MatryoshkaBatchTopKSAE}
"""The classes by their names in config.json, one of them misspelt for two weeks of January 2025."""
_SIGNS = {
    GatedAutoEncoder: {"gate_bias"},
    AutoEncoderNew: {"decoder.bias"},
    AutoEncoder: {"bias"},
    MatryoshkaBatchTopKSAE: {"group_sizes"},
    JumpReluAutoEncoder: {"W_enc", "threshold"},
}
"""Tensors by which a class is known, in the order in which they decide."""


class DictionaryLearning(Format):
    """Reads all classes since 2024, and backups of interrupted runs; writes the seven classes."""

    name = "dictionary_learning"
    facts = ("dict_class", "k")
    needed = (WEIGHTS, CONFIG)
    writes = True

    def recognizes(self, files: Files) -> bool:
        return bool(_weights(files))

    def read(self, files: Files, facts: Facts) -> Loaded:
        named = [files.chosen] if files.chosen is not None and files.chosen.endswith((".pt", ".pth")) else []
        found = _weights(files) or named  # one that was named may have any name
        if len(found) != 1:
            raise CheckpointError(f"'{files}' holds {', '.join(found) or 'no ae.pt'}; one is needed. Name the file.")
        path = files.path(found[0])
        config = files.settings(CONFIG)
        trainer = setting(config, "trainer", dict, {}, files)
        held, scale = read_pt(path), 1.0
        if isinstance(held, dict) and "ae" in held and "optimizer" in held:
            # a backup: its biases are those of scaled activations
            trainer = {**setting(held, "config", dict, {}, path), **trainer}
            scale = 1.0 if held.get("norm_factor") is None else positive(held["norm_factor"], "norm_factor", path)
            held = held["ae"]
        said = {key: value for key, value in trainer.items() if value is not None}
        setting(said, "dict_class", str, None, path)
        # a class that is not known here may be one of these by another name
        said |= facts if said.get("dict_class") not in _NAMES else {}
        dictionary = _dictionary(Tensors(held, path), {**facts, **said})
        check_fact(facts, "k", getattr(dictionary, "k", "nothing"), path)
        if "dict_class" in facts and _NAMES[facts["dict_class"]] is not type(dictionary):
            check_fact(facts, "dict_class", type(dictionary).__name__, path)
        if scale != 1.0:
            dictionary.scale_(scale)
        plain = {name: value for name, value in trainer.items() if isinstance(value, (*PLAIN, list))}
        known = self.known(files, config, trainer, model="lm_name", site="submodule_name")
        return Loaded(dictionary, {**known, "trainer": plain})

    def check(self, dictionary: Dictionary) -> None:
        if not _is_plug_in(dictionary):
            _writable(dictionary)

    def write(self, dictionary: Dictionary, folder: Path, config: Mapping[str, Any]) -> None:
        tensors = _tensors(dictionary)
        # into an open file: of a path, torch.save stores the name, here that of a temporary file
        write_atomically(folder / WEIGHTS, lambda temporary: _save(tensors, temporary))
        write_json(folder / CONFIG, _config(dictionary, config))

    def write_step(self, dictionary: Dictionary, folder: Path, step: int, config: Mapping[str, Any]) -> None:
        tensors = _tensors(dictionary)
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "checkpoints" / f"ae_{step}.pt", lambda temporary: _save(tensors, temporary))
        write_json(folder / CONFIG, _config(dictionary, config))


def _tensors(dictionary: Dictionary) -> dict[str, Tensor]:
    if _is_plug_in(dictionary):
        state: dict[str, Tensor] = dictionary.state_dict()
    else:
        own = _writable(dictionary)
        state = {**stored_parts(own, _CLASSES[_known_class(own)]), **own.nonlinearity.state_dict()}
        if hasattr(own, "k"):
            state["k"] = torch.tensor(own.k, dtype=torch.int32)
        if isinstance(own, MatryoshkaBatchTopKSAE):
            state["group_sizes"] = torch.tensor(own.group_sizes)
    return {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}


def _config(dictionary: Dictionary, config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the contents of config.json, with the keys that are read there and by SAEBench."""
    name = (_known_class(dictionary) or type(dictionary)).__name__
    info = DictionaryInfo.from_config(config)
    site = info.sites[0] if info.sites else None
    asked = config["trainer"] if isinstance(config.get("trainer"), Mapping) else {}
    trainer: dict[str, Any] = {
        "trainer_class": "converted",
        "submodule_name": site,
        "wandb_name": name,
        **asked,
        "dict_class": name,
        "activation_dim": dictionary.activation_dim,
        "dict_size": dictionary.dict_size,
    }
    trainer["trainer_class"] = _TRAINERS.get(trainer["trainer_class"], trainer["trainer_class"])
    trainer["lm_name"] = asked.get("lm_name") or info.model
    if asked.get("layer") is None:
        trainer["layer"] = layer_of(hook_name(site, info.model) or "") if site else None
    for theirs, ours in _SETTINGS.items():
        if ours in trainer:
            trainer.setdefault(theirs, trainer[ours])
    if isinstance(dictionary, MatryoshkaBatchTopKSAE):
        trainer["group_sizes"] = list(dictionary.group_sizes)
    if hasattr(dictionary, "k"):
        trainer["k"] = int(dictionary.k)  # pyright: ignore[reportArgumentType]
    if type(dictionary) not in _CLASSES:
        trainer["own_class"] = type(dictionary).__name__
    peer = config.get("peer")
    buffer = peer.get("buffer") if isinstance(peer, Mapping) else config.get("buffer")
    buffer = {"d_submodule": dictionary.activation_dim, **(buffer if isinstance(buffer, Mapping) else {})}
    return {"trainer": trainer, "buffer": buffer}


def _known_class(dictionary: Any) -> Any:
    """Returns the class there that computes what a dictionary computes, or None."""
    mro = type(dictionary).__mro__
    at = next((n for n, cls in enumerate(mro) if cls in _CLASSES), None)
    # a subclass of one's own that encodes otherwise is none of them
    if at is None or own_part(dictionary):
        return None
    if mro[at] in (AutoEncoder, AutoEncoderNew):  # they differ in this alone
        return AutoEncoder if dictionary.centered else AutoEncoderNew
    return mro[at]


def _is_plug_in(dictionary: Any) -> bool:
    """Returns whether a class is of neither package, so that its tensors are its own."""
    return _known_class(dictionary) is None and not any(type(dictionary) is cls for _, cls in DICTIONARIES.items())


def _weights(files: Files) -> list[str]:
    """Returns the files of weights: by name, or the only one of any name with such tensors."""
    if files.wants(WEIGHTS):
        return [WEIGHTS]
    found = files.weights(".pt", ".pth")
    steps = [name for name in found if re.fullmatch(r"ae_\d+\.pt", name)]
    return steps or [name for name in found if len(found) == 1 and _holds_one(files, name)]


def _holds_one(files: Files, name: str) -> bool:
    """Returns whether a file has tensors that this format alone has, or the entries of a backup."""
    names = read_names(files, name)
    # AutoEncoderNew's are those of other packages, too, and W_enc and W_dec alone as well
    classes = [parts for cls, parts in _CLASSES.items() if cls is not AutoEncoderNew]
    own = [{part.removesuffix(".T") for part in parts.values()} for parts in classes]
    return {"ae", "optimizer"} <= names or any(
        parts <= names and ("W_enc" not in parts or "threshold" in names) for parts in own
    )


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    with open(path, "wb") as file:
        torch.save(tensors, file)


def _dictionary(tensors: Tensors, settings: Mapping[str, Any]) -> Dictionary:
    name = settings.get("dict_class") or _class_of(tensors, settings.get("expected_class"))
    if not isinstance(name, str) or name not in _NAMES:
        raise CheckpointError(
            f"'{tensors.where}' is of the class {name!r}.{did_you_mean(str(name), _NAMES)} Known: {', '.join(_NAMES)}. "
            "A class of your own is built in its own module, and loads these tensors by "
            "load_state_dict(torch.load('ae.pt'))."
        )
    cls = _NAMES[name]
    names = _CLASSES[cls]
    if names is _LINEAR and "decoder" in tensors:
        names = {**_LINEAR, "W_dec": "decoder"}  # from July to August 2024 TopK stored the decoder by rows
    parts = tensors.parts(names)
    if cls is AutoEncoder:
        dictionary = coder(parts)
    elif cls is AutoEncoderNew:
        dictionary = coder(parts, centered=False, named=AutoEncoderNew)
    elif cls is GatedAutoEncoder:
        state = {name: tensors.take(name, "dict_size") for name in ("gate_bias", "mag_bias", "r_mag")}
        dictionary = coder(parts, "gated", state)
    elif cls is JumpReluAutoEncoder:
        bandwidth = settings.get("bandwidth")
        is_known = isinstance(bandwidth, (int, float)) and 0 < bandwidth < 1e6
        state = jump_thresholds(tensors.take("threshold", "dict_size"))
        # unlike AutoEncoder, JumpReLU does not subtract b_dec there
        dictionary = coder(parts, "jump_relu", state, centered=False, bandwidth=bandwidth if is_known else 0.001)
    else:
        dictionary = _top_k(cls, parts, tensors, settings)
    tensors.finish(settings, dim="activation_dim", dict_size="dict_size")
    return dictionary


def _top_k(
    cls: type[Dictionary], parts: Mapping[str, Tensor], tensors: Tensors, settings: Mapping[str, Any]
) -> Dictionary:
    """Returns one of the classes that keep k latents of a token, or of a batch."""
    stored = tensors.integers("k")
    # with annealing, a checkpoint holds the k of its step, and the config the final k
    if stored and settings.get("k_anneal_steps") is None:
        _check_said(settings, "k", stored[0], tensors.where)
    k = stored[0] if stored else latents_kept(settings, tensors.where, f"Put its {CONFIG} beside it, or give k=.")
    threshold = torch.tensor(float(tensors.take("threshold", "")) if "threshold" in tensors else -1.0)
    if cls is AutoEncoderTopK:
        return coder(parts, "top_k", {"threshold": threshold}, k=k)
    if threshold < 0:
        logger.warning(
            "'%s' has no learned threshold: all positive latents fire, as in its own package.", tensors.where
        )
    threshold = threshold.clamp_min(0)  # above -1 and above 0 are the same for rectified latents
    if cls is BatchTopKSAE:
        return coder(parts, "batch_top_k", {"threshold": threshold}, k=k)
    groups, bounds = tensors.integers("group_sizes"), tensors.integers("group_indices")
    if groups is None and bounds is not None:
        groups = [stop - start for start, stop in itertools.pairwise(bounds)]  # as before 2025
    if groups is None:
        raise CheckpointError(
            f"'{tensors.where}' has no group_sizes; a MatryoshkaBatchTopKSAE needs them. Get the whole file."
        )
    _check_said(settings, "group_sizes", groups, tensors.where)
    state = {**parts, "nonlinearity.threshold": threshold}
    return built(MatryoshkaBatchTopKSAE, state, tensors["dim"], tensors["dict_size"], k, groups)


def _check_said(settings: Mapping[str, Any], name: str, stored: Any, where: object) -> None:
    said = settings.get(name)
    if said is not None and said != stored:
        raise CheckpointError(
            f"The {CONFIG} beside '{where}' says {name}={said!r}, and its tensors have {stored!r}: they do not belong "
            "together."
        )


def _class_of(tensors: Tensors, expected: str | None) -> str:
    """Returns the class that the tensors' names belong to; of two classes, the expected one."""
    for cls, names in _SIGNS.items():
        if all(name in tensors for name in names):
            return cls.__name__
    if "b_dec" in tensors and expected in ("AutoEncoderTopK", "BatchTopKSAE"):
        return expected
    if "b_dec" in tensors:
        raise CheckpointError(
            f"'{tensors.where}' has no {CONFIG} that names its class, and its tensors are those of AutoEncoderTopK "
            f"and of BatchTopKSAE alike, which keep other latents. Put its {CONFIG} beside it, give dict_class=, or "
            "call the class's from_pretrained."
        )
    raise CheckpointError(f"'{tensors.where}' has no {CONFIG}, and tensors of no known class. Give dict_class=.")


def _writable(dictionary: Any) -> Any:
    """Returns the dictionary, unless its class there computes something else from its weights."""
    name = type(dictionary).__name__
    known = _known_class(dictionary)
    if known is None:
        raise CheckpointError(
            f"dictionary_learning has no class for a {name}; it has {', '.join(cls.__name__ for cls in _CLASSES)}. "
            "Convert it to another format, or to one of these by expand_or_convert(..., nonlinearity=...)."
        )
    if dictionary.centered == (known in (AutoEncoderNew, JumpReluAutoEncoder)):
        raise CheckpointError(
            f"A {name} of dictionary_learning {'does not subtract' if dictionary.centered else 'subtracts'} b_dec "
            f"from its input, and this one {'does' if dictionary.centered else 'does not'}; the file cannot say so. "
            "Convert it to sae_lens or own."
        )
    if dictionary.rank_by_norm:
        raise CheckpointError(
            f"dictionary_learning ranks latents by value, and this {name} by value times the norm of their decoder "
            "row. Apply fold_decoder_norm_ to a copy first, and build it without rank_by_norm."
        )
    return dictionary
