"""Formats with one file for each dictionary, without settings beside it."""

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from dictionary_learning.dictionaries import AutoEncoderNew, Normalized
from dictionary_learning.errors import CheckpointError
from dictionary_learning.interop._archives import Inert, read_names, read_pt
from dictionary_learning.interop._base import PLAIN, Facts, Format, Loaded, check_fact, choice, latents_kept, setting
from dictionary_learning.interop._files import ENDINGS, WHOLE, Files
from dictionary_learning.interop._pickles import read_pickle
from dictionary_learning.interop._sae_lens import modernized, read_coder
from dictionary_learning.interop._tensors import Tensors, coder, read_tensors, without_threshold

_PARTS: tuple[str, ...] = ("W_enc", "b_enc", "W_dec", "b_dec")
_L0 = re.compile(r"L0_(\d+)")
_STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")
_OPENAI_SETTINGS = ("activation", "activation_state_dict", "activation.k", "activation.postact_fn")
"""Entries that are no tensors; only the public code writes the last two."""
_RECTIFIERS = {"ReLU": "relu", "Identity": "identity"}
_SELECTORS = {"ReLU": "top_k", "Identity": "top_k_unrectified"}


class OpenAI(Format):
    """Reads ReLU, TopK and Identity, tied or not, of December 2023 and later.

    TopK goes with a normalization of each token, of which the file says nothing else.
    """

    name = "openai"
    needed = ("*.pt",)

    def recognizes(self, files: Files) -> bool:
        return _names_in(files) >= {"pre_bias", "latent_bias"}

    def read(self, files: Files, facts: Facts) -> Loaded:
        path = files.only_weights(".pt")
        held = read_pt(path)
        said = {name: held.pop(name) for name in _OPENAI_SETTINGS if name in held}
        tensors = Tensors(held, path)
        tensors.drop(*_STATISTICS)
        activation = choice(said, "activation", ("ReLU", "TopK", "Identity"), "ReLU", path)
        state = setting(said, "activation_state_dict", dict, {}, path)
        _check_openai(said, state, activation, path)
        tied = "decoder.linear.weight"  # the encoder itself
        decoder = tied if tied in tensors else "decoder.weight.T"
        names = {"W_enc": "encoder.weight", "b_enc": "latent_bias", "W_dec": decoder, "b_dec": "pre_bias"}
        parts = tensors.parts(names)
        if activation == "TopK":
            k = latents_kept(state, path)
            name = _SELECTORS[choice(state, "postact_fn", _SELECTORS, "ReLU", path)]
            thresholds = without_threshold() if name == "top_k" else {}
            dictionary = Normalized(coder(parts, name, thresholds, k=k), "layer_norm_eps_in")
        else:
            dictionary = coder(parts, _RECTIFIERS[activation])
        tensors.finish()
        return Loaded(dictionary, self.known(files, {"activation": activation, **state}))


def _check_openai(said: Mapping[str, Any], state: Mapping[str, Any], activation: str, where: object) -> None:
    """Checks that settings are those of the activation, also where they stand twice."""
    names = ("k", "postact_fn") if activation == "TopK" else ()
    odd = [name for name in state if name not in names]
    odd += [name for name in names if said.get(f"activation.{name}", state.get(name)) != state.get(name)]
    odd += [name for name in ("k", "postact_fn") if f"activation.{name}" in said and name not in names]
    if odd:
        raise CheckpointError(
            f"'{where}' says activation={activation!r}, activation_state_dict={dict(state)} and "
            f"{ {name: value for name, value in said.items() if '.' in name} }, which contradict each other in "
            f"{', '.join(odd)}. Get the file again."
        )


class MatsSAE(Format):
    """Reads autoencoders with ReLU of mats_sae_training, from which SAELens grew, up to 2.0.

    The settings are an object of that package. Its attributes are read, its class is not.
    """

    name = "mats_sae"
    needed = ("*.pt", "*.pkl.gz", "*.pkl")

    def recognizes(self, files: Files) -> bool:
        return len(files.weights(*_PICKLED)) == 1 or _names_in(files) >= {"cfg", "state_dict"}

    def read(self, files: Files, facts: Facts) -> Loaded:
        pickled = bool(files.weights(*_PICKLED))
        path = files.only_weights(*_PICKLED) if pickled else files.only_weights(".pt")
        held = read_pickle(path) if pickled else read_pt(path)
        if not isinstance(held, dict) or not {"cfg", "state_dict"} <= held.keys():
            raise CheckpointError(f"'{path}' holds no cfg and state_dict, as mats_sae_training wrote them.")
        cfg = held.get("cfg")
        values = cfg.state if isinstance(cfg, Inert) else cfg
        if not isinstance(values, Mapping):
            raise CheckpointError(
                f"'{path}' has a {type(cfg).__name__} as cfg; settings are needed. Get the whole file."
            )
        settings = {str(name): value for name, value in values.items()}
        config = modernized(settings, path)
        # those that are no plain values, such as devices and dtypes, have no effect here
        given = {name: value for name, value in settings.items() if isinstance(value, PLAIN)}
        tensors = Tensors(held.get("state_dict"), path)
        if config["architecture"] != "standard":
            raise CheckpointError(
                f"'{path}' has architecture={config['architecture']!r}; files of that time have standard."
            )
        dictionary = read_coder(tensors, config, "standard", files)
        tensors.finish(config, dim="d_in", dict_size="d_sae")
        tensors.check_expansion(config, "expansion_factor")
        return Loaded(dictionary, self.known(files, given, config["metadata"], model="model_name", site="hook_name"))


class TwoMatrices(Format):
    """Reads files of two matrices and two biases; b_dec is not subtracted.

    Args:
        name: the name of the format.
        needed: patterns of its files.
        parts: the names of W_enc, b_enc, W_dec and b_dec; see `Tensors.parts`.
        needs_k: whether it keeps k latents, of which only the name of the repository knows the
            number (...-L0_50).
    """

    def __init__(self, name: str, needed: tuple[str, ...], *parts: str, needs_k: bool = False):
        self.name, self.needed, self.facts = name, needed, ("k",) if needs_k else ()
        self.parts: dict[str, str] = dict(zip(_PARTS, parts, strict=True))
        self.needs_k = needs_k

    def recognizes(self, files: Files) -> bool:
        found = files.weights(*ENDINGS)
        fits = len(found) == 1 and found[0] not in WHOLE and any(fnmatchcase(found[0], name) for name in self.needed)
        return fits and read_names(files, found[0]) == {part.removesuffix(".T") for part in self.parts.values()}

    def read(self, files: Files, facts: Facts) -> Loaded:
        tensors = read_tensors(files.only_weights(*ENDINGS))
        parts = tensors.parts(self.parts)
        tensors.finish()
        if self.needs_k:
            known = self.known(files, {"k": _k(files, facts)})
            return Loaded(coder(parts, "top_k", without_threshold(), centered=False, k=known["peer"]["k"]), known)
        return Loaded(coder(parts, centered=False, named=AutoEncoderNew), self.known(files, {}))


_PICKLES = ("*.pt", "*.pth")
_PICKLED = (".pkl.gz", ".pkl")
SINGLE_FILES: tuple[Format, ...] = (
    OpenAI(),
    MatsSAE(),
    TwoMatrices("qwen_scope", ("*.sae.pt",), "W_enc", "b_enc", "W_dec.T", "b_dec", needs_k=True),
    TwoMatrices(
        *("goodfire", _PICKLES),
        *("encoder_linear.weight", "encoder_linear.bias", "decoder_linear.weight.T", "decoder_linear.bias"),
    ),
    TwoMatrices(
        "deepseek_r1", _PICKLES, "encoder.weight", "encoder.bias", "decoder.weight.T", "decoder.bias"
    ),
)  # fmt: skip


def _names_in(files: Files) -> frozenset[str]:
    """Returns the names at the top of the only `.pt` file; none where there are several."""
    found = files.weights(".pt")
    return read_names(files, found[0]) if len(found) == 1 else frozenset()


def _k(files: Files, facts: Mapping[str, Any]) -> int:
    matches = [_L0.search(part) for part in reversed(files.folder.absolute().parts)]
    named = next((int(match[1]) for match in matches if match), None)
    check_fact(facts, "k", named, files)
    return latents_kept({"k": named, **facts}, files, "The name of its repository does (…-L0_50). Give k=.")
