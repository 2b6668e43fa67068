"""OpenAI's sparse_autoencoder: one `.pt` for each layer, with the activation inside and no config.

TopK goes with a normalization of each token, of which the file says nothing else.
"""

from typing import Any

import torch

from dictionary_learning.dictionaries import Normalized
from dictionary_learning.errors import CheckpointError
from dictionary_learning.interop.archives import read_pt
from dictionary_learning.interop.base import FORMATS, Facts, Format, Loaded, choice, setting
from dictionary_learning.interop.building import Weights
from dictionary_learning.interop.files import Files
from dictionary_learning.interop.keys import keys_in
from dictionary_learning.interop.places import single_files
from dictionary_learning.interop.tensors import Tensors

_STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")
_SETTINGS = ("activation", "activation_state_dict", "activation.k", "activation.postact_fn")
"""What is no tensor; the last two are written by the public code, and not in the released files."""
_RECTIFIERS = {"ReLU": "relu", "Identity": "identity"}
_SELECTORS = {"ReLU": "top_k", "Identity": "top_k_unrectified"}


class OpenAI(Format):
    """Reads ReLU, TopK and Identity, tied or not, as of December 2023 and later."""

    name = "openai"
    about = "OpenAI's sparse_autoencoder: <layer>.pt with pre_bias and latent_bias"
    needed = ("*.pt",)

    def recognizes(self, files: Files) -> bool:
        found = single_files(files, ".pt")
        return len(found) == 1 and keys_in(files, found[0]) >= {"pre_bias", "latent_bias"}

    def read(self, files: Files, facts: Facts) -> Loaded:
        path = files.path(one_of(single_files(files, ".pt"), files))
        held = named_tensors(read_pt(path), path)
        said = {name: held.pop(name) for name in _SETTINGS if name in held}
        tensors = Tensors(held, str(path))
        tensors.drop(*_STATISTICS)
        activation = choice(said, "activation", ("ReLU", "TopK", "Identity"), "ReLU", path)
        state = setting(said, "activation_state_dict", dict, {}, path)
        W_enc = tensors.take("encoder.weight", "dict_size dim")
        tied = tensors.maybe("decoder.linear.weight", "dict_size dim")
        weights = Weights(
            W_enc=W_enc,
            b_enc=tensors.take("latent_bias", "dict_size"),
            W_dec=tensors.take("decoder.weight", "dim dict_size").T if tied is None else tied,
            b_dec=tensors.take("pre_bias", "dim"),
            **_nonlinearity(activation, state, path),
        )
        tensors.finish()
        coder = weights.dictionary()
        dictionary = Normalized(coder, "layer_norm_eps_in") if activation == "TopK" else coder
        return Loaded(dictionary, {"format": self.name, "peer": {"activation": activation, **state}})


FORMATS.register("openai")(OpenAI())


def _nonlinearity(activation: str, state: dict[str, Any], where: object) -> dict[str, Any]:
    if activation != "TopK":
        return {"nonlinearity": _RECTIFIERS[activation]}
    k = setting(state, "k", int, None, where)
    if k is None:
        raise CheckpointError(f"'{where}' has activation TopK and no k in activation_state_dict. Get the whole file.")
    name = _SELECTORS[choice(state, "postact_fn", _SELECTORS, "ReLU", where)]
    found: dict[str, Any] = {"nonlinearity": name, "options": {"k": k}}
    return {**found, "state": {"threshold": torch.tensor(-1.0)}} if name == "top_k" else found


def named_tensors(held: Any, where: object) -> dict[Any, Any]:
    """Returns what a `.pt` file holds, if it is a dictionary.

    Raises:
        CheckpointError: it is none.
    """
    if not isinstance(held, dict):
        raise CheckpointError(f"'{where}' holds a {type(held).__name__}; tensors by name are needed.")
    return dict(held)


def one_of(names: list[str], files: Files) -> str:
    """Returns the only file of weights.

    Raises:
        CheckpointError: there is none, or several.
    """
    if len(names) != 1:
        raise CheckpointError(
            f"'{files}' has {', '.join(names) or 'no file of weights'}; one is needed. Name it by site=."
        )
    return names[0]
