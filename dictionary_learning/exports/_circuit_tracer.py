"""Transcoders of all layers as circuit-tracer reads them: `config.yaml` and weights of each layer.

Its readers take files with exactly these tensors, and compute z = W_enc x + b_enc, latents
z * 1[z > threshold] or relu(z), and latents W_dec + b_dec (+ W_skip x). Weights are stored so that
the decoder rows of a latent can be sliced out of the file.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from torch import Tensor

from dictionary_learning._border import checked, short
from dictionary_learning._disk import write_atomically
from dictionary_learning.dictionaries import CrossLayerTranscoder, Dictionary, SkipAutoencoder, Transcoder
from dictionary_learning.dictionaries._serialization import check_finite, write_tensors
from dictionary_learning.dictionaries.nonlinearities import TopK
from dictionary_learning.errors import CheckpointError, ConfigError
from dictionary_learning.exports._affine import affine_form
from dictionary_learning.exports._mlp_hooks import MLPHooks, hooks_of

CONFIG = "config.yaml"
_OWN_FILES = re.compile(r"(layer|W_enc|W_dec)_\d+\.safetensors|config\.yaml")
_TAKEN = "gemma-scope"
"""In the name of a repository, it makes circuit-tracer choose another reader."""


@checked()
def write_circuit_tracer(
    transcoders: Dictionary | Sequence[Dictionary],
    path: str | os.PathLike[str],
    *,
    model_name: str | None = None,
    repository: str | None = None,
    selection: Literal["threshold", "top_k"] = "threshold",
    feature_input_hook: str | None = None,
    feature_output_hook: str | None = None,
) -> Path:
    """Writes transcoders of all layers of a model, or a cross-layer one, for circuit-tracer.

    Args:
        transcoders: One of each layer from 0 on, in any order if their files say their sites; or
            one `CrossLayerTranscoder`. None is changed.
        path: The folder to write; it is returned. circuit-tracer loads it by its absolute path.
        model_name: The name of the language model, instead of the known one.
        repository: The repository of the hub that the folder will be uploaded to, as user/name.
            Without it, `config.yaml` names the files on this machine.
        selection: How TopK selects: by its learned threshold, or as the k largest. The second is
            honored by circuit-tracer when it loads from the hub only, and lets negative
            pre-activations pass where fewer than k are positive.
        feature_input_hook: The hook that is read, instead of what the sites say, as `mlp.hook_in`.
        feature_output_hook: The hook that is written, as `mlp.hook_out`.

    Raises:
        CheckpointError: The format cannot express a dictionary, layers are missing, or the folder
            holds other files of such a set. Nothing has been written then.
    """
    given = [transcoders] if isinstance(transcoders, Dictionary) else list(transcoders)
    if repository is not None and (_TAKEN in repository or "/" not in repository):
        raise ConfigError(
            f"Got repository={repository!r}; give user/name, without '{_TAKEN}' in it: circuit-tracer takes that for "
            "another format."
        )
    if not given:
        raise CheckpointError("There are no transcoders to write. Give one of each layer.")
    for one in given:
        if not isinstance(one, Dictionary):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(
                f"Got transcoders={short(transcoders)}; give dictionaries, as load_dictionary returns them."
            )
        check_finite(one)
    hooks = [hooks_of(one.info) for one in given]
    folder, k = Path(path), None
    place = repository or str(folder.absolute())
    if len(given) == 1 and isinstance(given[0], CrossLayerTranscoder):
        files, kind = _cross_layer(given[0], hooks[0], selection), {"model_kind": "cross_layer_transcoder"}
    else:
        given, hooks = _in_order(given, hooks)
        files, k = _per_layer(given, selection)
        start = f"hf://{place}" if repository else place
        kind = {"model_kind": "transcoder_set", "transcoders": [f"{start}/{name}" for name in files]}
    name = model_name or given[0].info.model
    config: dict[str, Any] = {"model_name": name, "scan": place, **kind}
    config |= _named_hooks(hooks, feature_input_hook, feature_output_hook)
    if name is None:
        raise CheckpointError(
            "circuit-tracer finds the language model by its name, and the files of these dictionaries do not say it. "
            "Give model_name='...' (--model-id)."
        )
    if k is not None:
        config |= {"activation": "topk", "k": k}
    _write(folder, files, config)
    return folder


def _per_layer(given: Sequence[Dictionary], selection: str) -> tuple[dict[str, dict[str, Tensor]], int | None]:
    """Returns the tensors of each file, and the k of a set that selects the largest."""
    sizes = {(one.activation_dim, one.output_dim, one.dict_size) for one in given}
    if len(sizes) != 1 or any(one.output_dim != one.activation_dim for one in given):
        shown = ", ".join(f"{one.activation_dim} to {one.output_dim} with {one.dict_size} latents" for one in given)
        raise CheckpointError(
            f"circuit-tracer has one width and one number of latents for all layers; these have {shown}. "
            "Train them alike."
        )
    kept = {_k_of(one) for one in given} if selection == "top_k" else {None}
    if len(kept) != 1:
        raise CheckpointError(f"The layers keep different numbers of latents ({kept}). Use selection='threshold'.")
    k, files = kept.pop(), dict[str, dict[str, Tensor]]()
    for layer, one in enumerate(given):
        if not isinstance(one, (Transcoder, SkipAutoencoder)):
            raise CheckpointError(
                f"circuit-tracer has transcoders, which predict an MLP's output; this is a {type(one).__name__}. Train "
                "with wiring='transcoder', 'skip_transcoder' or 'cross_layer_transcoder'."
            )
        form = affine_form(one, keep_k=k)
        b_dec = form.W_dec.new_zeros(one.output_dim) if form.b_dec is None else form.b_dec
        tensors = {"W_enc": form.W_enc, "W_dec": form.W_dec, "b_enc": form.b_enc, "b_dec": b_dec}
        further = {"W_skip": form.W_skip, "activation_function.threshold": form.threshold}
        files[f"layer_{layer}.safetensors"] = tensors | {n: t for n, t in further.items() if t is not None}
    return files, k


def _cross_layer(given: CrossLayerTranscoder, hooks: MLPHooks, selection: str) -> dict[str, dict[str, Tensor]]:
    """Returns the tensors of each file."""
    if len({*given.site_dims, *given.output_dims}) != 1:
        raise CheckpointError(
            f"circuit-tracer has one width for all layers; these have {given.site_dims} and {given.output_dims}."
            " Train on sites of one width."
        )
    if hooks.layers and hooks.layers != tuple(range(len(given.site_dims))):
        raise CheckpointError(
            f"circuit-tracer needs all layers from 0 on, in order; this transcoder has "
            f"{list(hooks.layers)}. Train on all."
        )
    if selection == "top_k":
        raise CheckpointError("circuit-tracer has no k for cross-layer transcoders. Use selection='threshold'.")
    files: dict[str, dict[str, Tensor]] = {}
    biases = None if given.b_dec is None else given.b_dec.detach().float().split(given.output_dims)
    for layer, part in enumerate(given.coders()):
        form = affine_form(part.coder)
        dim, n_written = given.site_dims[0], len(given.site_dims) - layer
        b_dec = form.W_dec.new_zeros(dim) if biases is None else biases[layer]
        encoder = {f"W_enc_{layer}": form.W_enc, f"b_enc_{layer}": form.b_enc, f"b_dec_{layer}": b_dec}
        if form.threshold is not None:
            encoder[f"threshold_{layer}"] = form.threshold
        files[f"W_enc_{layer}.safetensors"] = encoder
        # latents first, then the layers that are written: the rows of a latent are one slice
        decoder = form.W_dec.reshape(part.coder.dict_size, n_written, dim)
        files[f"W_dec_{layer}.safetensors"] = {f"W_dec_{layer}": decoder}
    return files


def _in_order(given: list[Dictionary], hooks: list[MLPHooks]) -> tuple[list[Dictionary], list[MLPHooks]]:
    """Returns the transcoders by layer, where their sites say it."""
    if any(isinstance(one, CrossLayerTranscoder) for one in given):
        raise CheckpointError("A cross-layer transcoder holds all layers. Give it alone.")
    if not all(len(one.layers) == 1 for one in hooks):
        return given, hooks
    order = sorted(range(len(given)), key=lambda n: hooks[n].layers[0])
    layers = [hooks[n].layers[0] for n in order]
    if layers != list(range(len(given))):
        raise CheckpointError(
            f"circuit-tracer needs one transcoder of each layer from 0 on; these are of layers "
            f"{layers}. Give all of them."
        )
    return [given[n] for n in order], [hooks[n] for n in order]


def _named_hooks(hooks: Sequence[MLPHooks], reads: str | None, writes: str | None) -> dict[str, str]:
    """Returns the hooks that all layers read and write, unless others are given."""
    found: dict[str, str] = {}
    known = {"input": (reads, {one.reads for one in hooks}), "output": (writes, {one.writes for one in hooks})}
    for what, (given, names) in known.items():
        hook = given or (names.pop() if len(names) == 1 else None)
        if hook is None:
            raise CheckpointError(
                f"The sites of these transcoders are no hooks that circuit-tracer knows. Give "
                f"feature_{what}_hook=, such as 'mlp.hook_{what.removesuffix('put')}' for the {what} of an MLP."
            )
        found[f"feature_{what}_hook"] = hook
    return found


def _k_of(dictionary: Dictionary) -> int:
    nonlinearity = getattr(dictionary, "nonlinearity", None)
    if not isinstance(nonlinearity, TopK) or getattr(dictionary, "rank_by_norm", False):
        raise CheckpointError(
            f"selection='top_k' is for TopK by value; this {type(dictionary).__name__} has "
            f"{type(nonlinearity).__name__}, or ranks by norm. Use selection='threshold'."
        )
    return nonlinearity.k


def _write(folder: Path, files: Mapping[str, Mapping[str, Tensor]], config: Mapping[str, Any]) -> None:
    held = [one.name for one in folder.iterdir() if _OWN_FILES.fullmatch(one.name)] if folder.is_dir() else []
    others = sorted(set(held) - {*files, CONFIG})
    if others:
        raise CheckpointError(
            f"'{folder}' holds {others[0]} of another set, which would be taken for a part of this one. Write "
            "to another folder."
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).unlink(missing_ok=True)
    for name, tensors in files.items():
        write_tensors(folder / name, tensors)
    # last: a folder with it counts as complete
    text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
    write_atomically(folder / CONFIG, lambda temporary: temporary.write_text(text, encoding="utf-8"))
