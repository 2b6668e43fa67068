"""Releases with one file for each dictionary: OpenAI, Qwen Scope, Goodfire, DeepSeek R1, mwhanna, mats_sae_training."""

import re
from collections.abc import Mapping
from typing import Any

from dictionary_learning.dictionaries import AutoEncoderNew, Normalized
from dictionary_learning.errors import CheckpointError
from dictionary_learning.interop.archives import Inert, read_names, read_pt
from dictionary_learning.interop.base import FORMATS, Facts, Format, Loaded, choice, setting
from dictionary_learning.interop.building import Weights, without_threshold
from dictionary_learning.interop.files import Files
from dictionary_learning.interop.sae_lens import read_coder
from dictionary_learning.interop.sae_lens_legacy import modernized
from dictionary_learning.interop.safe import read_safetensors, read_yaml
from dictionary_learning.interop.tensors import Tensors

_ROWS = {"W_enc", "b_enc", "W_dec", "b_dec"}
_L0 = re.compile(r"L0_(\d+)")
_STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")
_OPENAI_SETTINGS = ("activation", "activation_state_dict", "activation.k", "activation.postact_fn")
"""Entries that are no tensors; the public code writes the last two, the released files do not have them."""
_RECTIFIERS = {"ReLU": "relu", "Identity": "identity"}
_SELECTORS = {"ReLU": "top_k", "Identity": "top_k_unrectified"}


def names_in(files: Files, *endings: str) -> frozenset[str]:
    """Returns the names at the top of the only file of weights; none where there are several files."""
    found = files.weights(*endings)
    return read_names(files, found[0]) if len(found) == 1 else frozenset()


class OpenAI(Format):
    """Reads ReLU, TopK and Identity, tied or not, of December 2023 and later.

    TopK goes with a normalization of each token, of which the file says nothing else.
    """

    name = "openai"
    about = "OpenAI's sparse_autoencoder: <layer>.pt with pre_bias and latent_bias"
    needed = ("*.pt",)

    def recognizes(self, files: Files) -> bool:
        return names_in(files, ".pt") >= {"pre_bias", "latent_bias"}

    def read(self, files: Files, facts: Facts) -> Loaded:
        path = files.only_weights(".pt")
        held = read_pt(path)
        said = {name: held.pop(name) for name in _OPENAI_SETTINGS if name in held}
        tensors = Tensors(held, path)
        tensors.drop(*_STATISTICS)
        activation = choice(said, "activation", ("ReLU", "TopK", "Identity"), "ReLU", path)
        state = setting(said, "activation_state_dict", dict, {}, path)
        tied = tensors.maybe("decoder.linear.weight", "dict_size dim")
        weights = Weights(
            W_enc=tensors.take("encoder.weight", "dict_size dim"),
            b_enc=tensors.take("latent_bias", "dict_size"),
            W_dec=tensors.take("decoder.weight", "dim dict_size").T if tied is None else tied,
            b_dec=tensors.take("pre_bias", "dim"),
            **_openai_nonlinearity(activation, state, path),
        )
        tensors.finish()
        coder = weights.dictionary()
        dictionary = Normalized(coder, "layer_norm_eps_in") if activation == "TopK" else coder
        return Loaded(dictionary, self.known({"activation": activation, **state}))


class MatsSAE(Format):
    """Reads `{"cfg": ..., "state_dict": ...}`: autoencoders with a rectifier, b_dec subtracted from the input.

    The settings are an object of mats_sae_training, from which SAELens grew. Its attributes are read, its class is not.
    """

    name = "mats_sae"
    about = "mats_sae_training and SAELens before 2.0: .pt with cfg and state_dict"
    needed = ("*.pt",)

    def recognizes(self, files: Files) -> bool:
        return names_in(files, ".pt") >= {"cfg", "state_dict"}

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


class QwenScope(Format):
    """Reads `layer<N>.sae.pt`: TopK, SAELens's names, both matrices transposed; k is in the repository's name."""

    name = "qwen_scope"
    about = "Qwen Scope: layer<N>.sae.pt"
    facts = ("k",)
    needed = ("*.sae.pt",)

    def recognizes(self, files: Files) -> bool:
        return names_in(files, ".sae.pt") == _ROWS

    def read(self, files: Files, facts: Facts) -> Loaded:
        path = files.only_weights(".pt")
        tensors = Tensors(read_pt(path), path)
        matches = [_L0.search(part) for part in reversed(files.folder.absolute().parts)]
        k = facts.get("k", next((int(match[1]) for match in matches if match), None))
        if not isinstance(k, int) or isinstance(k, bool):
            raise CheckpointError(
                f"'{path}' does not say how many latents are kept; the name of its repository does (…-L0_50). Give k=."
            )
        weights = Weights(
            W_enc=tensors.take("W_enc", "dict_size dim"),
            b_enc=tensors.take("b_enc", "dict_size"),
            W_dec=tensors.take("W_dec", "dim dict_size").T,
            b_dec=tensors.take("b_dec", "dim"),
            nonlinearity="top_k",
            options={"k": k},
            state=without_threshold(),
            centered=False,
        )
        tensors.finish()
        return Loaded(weights.dictionary(), self.known({"k": k}))


class Linear(Format):
    """Reads `.pt` or `.pth` files of two linear layers with a rectifier between them; b_dec is not subtracted.

    Args:
        name: the name of the format.
        about: whose format it is.
        encoder: the name of the encoder.
        decoder: the name of the decoder.
    """

    needed = ("*.pt", "*.pth")

    def __init__(self, name: str, about: str, encoder: str, decoder: str):
        self.name, self.about, self.encoder, self.decoder = name, about, encoder, decoder  # pyright: ignore[reportAttributeAccessIssue]

    def recognizes(self, files: Files) -> bool:
        keys = {f"{layer}.{part}" for layer in (self.encoder, self.decoder) for part in ("weight", "bias")}
        return not files.wants("ae.pt") and names_in(files, ".pt", ".pth") == keys

    def read(self, files: Files, facts: Facts) -> Loaded:
        path = files.only_weights(".pt", ".pth")
        tensors = Tensors(read_pt(path), path)
        weights = Weights(
            W_enc=tensors.take(f"{self.encoder}.weight", "dict_size dim"),
            b_enc=tensors.take(f"{self.encoder}.bias", "dict_size"),
            W_dec=tensors.take(f"{self.decoder}.weight", "dim dict_size").T,
            b_dec=tensors.take(f"{self.decoder}.bias", "dim"),
            centered=False,
        )
        tensors.finish()
        return Loaded(weights.dictionary(AutoEncoderNew), self.known({}))


class Mwhanna(Format):
    """Reads `layer_<N>.safetensors`: transcoders with a rectifier, both matrices by rows of latents."""

    name = "mwhanna"
    about = "mwhanna's transcoders: layer_<N>.safetensors and config.yaml"
    needed = ("layer_*.safetensors", "config.yaml")

    def recognizes(self, files: Files) -> bool:
        found = files.weights(".safetensors")
        return (
            len(found) == 1
            and bool(re.fullmatch(r"layer_\d+\.safetensors", found[0]))
            and read_names(files, found[0]) == _ROWS
        )

    def read(self, files: Files, facts: Facts) -> Loaded:
        path = files.only_weights(".safetensors")
        tensors = Tensors(read_safetensors(path), path)
        config = read_yaml(files.path("config.yaml")) if files.has("config.yaml") else {}
        weights = Weights(
            W_enc=tensors.take("W_enc", "dict_size dim"),
            b_enc=tensors.take("b_enc", "dict_size"),
            W_dec=tensors.take("W_dec", "dict_size output_dim"),
            b_dec=tensors.take("b_dec", "output_dim"),
            centered=False,
            predicts=True,
        )
        tensors.finish()
        return Loaded(weights.dictionary(), self.known(config, model="model_name"))


FORMATS.register("openai")(OpenAI())
FORMATS.register("mats_sae")(MatsSAE())
FORMATS.register("qwen_scope")(QwenScope())
FORMATS.register("goodfire")(
    Linear("goodfire", "Goodfire: .pth with encoder_linear and decoder_linear", "encoder_linear", "decoder_linear")
)
FORMATS.register("deepseek_r1")(
    Linear("deepseek_r1", "DeepSeek R1: .pt with encoder and decoder", "encoder", "decoder")
)
FORMATS.register("mwhanna")(Mwhanna())


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
