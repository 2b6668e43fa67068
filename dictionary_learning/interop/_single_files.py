"""Formats with one file for each dictionary, without settings beside it."""

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from dictionary_learning.dictionaries import AutoEncoderNew, Normalized
from dictionary_learning.errors import CheckpointError
from dictionary_learning.interop._archives import Inert, read_names, read_pt
from dictionary_learning.interop._base import FORMATS, Facts, Format, Loaded, choice, setting
from dictionary_learning.interop._building import Weights, without_threshold
from dictionary_learning.interop._files import ENDINGS, WHOLE, Files
from dictionary_learning.interop._sae_lens import read_coder
from dictionary_learning.interop._sae_lens_legacy import modernized
from dictionary_learning.interop._safe import read_yaml
from dictionary_learning.interop._tensors import Tensors, read_tensors

_L0 = re.compile(r"L0_(\d+)")
_STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")
_OPENAI_SETTINGS = ("activation", "activation_state_dict", "activation.k", "activation.postact_fn")
"""Entries that are no tensors; only the public code writes the last two."""
_RECTIFIERS = {"ReLU": "relu", "Identity": "identity"}
_SELECTORS = {"ReLU": "top_k", "Identity": "top_k_unrectified"}


def _names_in(files: Files) -> frozenset[str]:
    """Returns the names at the top of the only `.pt` file; none where there are several."""
    found = files.weights(".pt")
    return read_names(files, found[0]) if len(found) == 1 else frozenset()


class OpenAI(Format):
    """Reads ReLU, TopK and Identity, tied or not, of December 2023 and later.

    TopK goes with a normalization of each token, of which the file says nothing else.
    """

    name = "openai"
    about = "OpenAI's sparse_autoencoder: <layer>.pt with pre_bias and latent_bias"
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
        tied = "decoder.linear.weight"
        decoder = tied if tied in tensors else "decoder.weight.T"  # a tied one is the encoder itself
        weights = Weights(
            **tensors.parts("encoder.weight", "latent_bias", decoder, "pre_bias"),
            **_openai_nonlinearity(activation, state, path),
        )
        tensors.finish()
        coder = weights.dictionary()
        dictionary = Normalized(coder, "layer_norm_eps_in") if activation == "TopK" else coder
        return Loaded(dictionary, self.known({"activation": activation, **state}))


class MatsSAE(Format):
    """Reads `{"cfg": ..., "state_dict": ...}`: autoencoders with ReLU that subtract b_dec.

    The settings are an object of mats_sae_training, from which SAELens grew. Its attributes are
    read, its class is not.
    """

    name = "mats_sae"
    about = "mats_sae_training and SAELens before 2.0: .pt with cfg and state_dict"
    needed = ("*.pt",)

    def recognizes(self, files: Files) -> bool:
        return _names_in(files) >= {"cfg", "state_dict"}

    def read(self, files: Files, facts: Facts) -> Loaded:
        path = files.only_weights(".pt")
        held = read_pt(path)
        cfg = held.get("cfg")
        values = cfg.state if isinstance(cfg, Inert) else cfg
        # settings that are no plain values, such as devices and dtypes, have no effect here
        given = {str(name): value for name, value in dict(values or {}).items() if _is_plain(value)}
        config = modernized(given, path)
        tensors = Tensors(held.get("state_dict"), path)
        if config["architecture"] != "standard":
            raise CheckpointError(
                f"'{path}' has architecture={config['architecture']!r}; files of that time have standard."
            )
        dictionary = read_coder(tensors, config, "standard", files)
        tensors.finish(config, dim="d_in", dict_size="d_sae")
        return Loaded(dictionary, self.known(given, config["metadata"], model="model_name", site="hook_name"))


class TwoMatrices(Format):
    """Reads files of two matrices and two biases; b_dec is not subtracted.

    Args:
        name: the name of the format.
        about: whose format it is.
        needed: patterns of its files.
        parts: the arguments of `Tensors.parts`.
        is_transcoder: whether it reconstructs other activations than it reads.
        needs_k: whether it keeps k latents, of which only the name of the repository knows the
            number (...-L0_50).
    """

    def __init__(
        self,
        name: str,
        about: str,
        needed: tuple[str, ...],
        parts: tuple[str, str, str, str],
        is_transcoder: bool = False,
        needs_k: bool = False,
    ):
        self.name, self.about, self.needed = name, about, needed  # pyright: ignore[reportAttributeAccessIssue]
        self.parts, self.is_transcoder, self.needs_k = parts, is_transcoder, needs_k
        self.facts = ("k",) if needs_k else ()  # pyright: ignore[reportAttributeAccessIssue]

    def recognizes(self, files: Files) -> bool:
        found = files.weights(*ENDINGS)
        fits = len(found) == 1 and found[0] not in WHOLE and any(fnmatchcase(found[0], name) for name in self.needed)
        return fits and read_names(files, found[0]) == {part.removesuffix(".T") for part in self.parts}

    def read(self, files: Files, facts: Facts) -> Loaded:
        tensors = read_tensors(files.only_weights(*ENDINGS))
        config = read_yaml(files.path(_YAML)) if _YAML in self.needed and files.has(_YAML) else {}
        parts = tensors.parts(*self.parts, wide="output_dim" if self.is_transcoder else "dim")
        tensors.finish()
        if self.needs_k:
            k = _k(files, facts)
            top_k = {"nonlinearity": "top_k", "options": {"k": k}, "state": without_threshold()}
            return Loaded(Weights(**parts, **top_k, centered=False).dictionary(), self.known({"k": k}))
        weights = Weights(**parts, centered=False, predicts=self.is_transcoder)
        return Loaded(weights.dictionary(AutoEncoderNew), self.known(config, model="model_name"))


_YAML = "config.yaml"
_GOODFIRE = ("encoder_linear.weight", "encoder_linear.bias", "decoder_linear.weight.T", "decoder_linear.bias")
_DEEPSEEK = ("encoder.weight", "encoder.bias", "decoder.weight.T", "decoder.bias")
for _format in (
    OpenAI(),
    MatsSAE(),
    TwoMatrices(
        "qwen_scope", "Qwen Scope: layer<N>.sae.pt", ("*.sae.pt",), ("W_enc", "b_enc", "W_dec.T", "b_dec"), needs_k=True
    ),
    TwoMatrices("goodfire", "Goodfire: .pth with encoder_linear and decoder_linear", ("*.pt", "*.pth"), _GOODFIRE),
    TwoMatrices("deepseek_r1", "DeepSeek R1: .pt with encoder and decoder", ("*.pt", "*.pth"), _DEEPSEEK),
    TwoMatrices(
        "mwhanna",
        "mwhanna's transcoders: layer_<N>.safetensors and config.yaml",
        ("layer_*.safetensors", _YAML),
        ("W_enc", "b_enc", "W_dec", "b_dec"),
        is_transcoder=True,
    ),
):
    FORMATS.register(_format.name)(_format)


def _k(files: Files, facts: Facts) -> int:
    matches = [_L0.search(part) for part in reversed(files.folder.absolute().parts)]
    k = facts.get("k", next((int(match[1]) for match in matches if match), None))
    if not isinstance(k, int) or isinstance(k, bool):
        raise CheckpointError(
            f"'{files}' does not say how many latents are kept; the name of its repository does (…-L0_50). Give k=."
        )
    return k


def _openai_nonlinearity(activation: str, state: Mapping[str, Any], where: object) -> dict[str, Any]:
    if activation != "TopK":
        return {"nonlinearity": _RECTIFIERS[activation]}
    k = setting(state, "k", int, None, where)
    if k is None:
        raise CheckpointError(f"'{where}' has activation TopK and no k in activation_state_dict. Get the whole file.")
    name = _SELECTORS[choice(state, "postact_fn", _SELECTORS, "ReLU", where)]
    return {"nonlinearity": name, "options": {"k": k}, "state": without_threshold() if name == "top_k" else {}}


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float))
