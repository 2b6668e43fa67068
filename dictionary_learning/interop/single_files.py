"""Releases of one file for each dictionary: Qwen Scope, Goodfire, DeepSeek R1, and mwhanna's transcoders."""

import re
from pathlib import Path
from typing import Any

import torch

from dictionary_learning.dictionaries import AutoEncoderNew
from dictionary_learning.errors import CheckpointError
from dictionary_learning.interop.archives import read_pt
from dictionary_learning.interop.base import FORMATS, Facts, Format, Loaded
from dictionary_learning.interop.building import Weights
from dictionary_learning.interop.files import Files
from dictionary_learning.interop.keys import keys_in
from dictionary_learning.interop.openai import named_tensors, one_of
from dictionary_learning.interop.places import single_files
from dictionary_learning.interop.safe import read_safetensors, read_yaml
from dictionary_learning.interop.tensors import Tensors

_ROWS = {"W_enc", "b_enc", "W_dec", "b_dec"}
_L0 = re.compile(r"L0_(\d+)")


class QwenScope(Format):
    """Reads `layer<N>.sae.pt`: TopK, with the names of SAELens and matrices the other way round; k is in the repository's name."""

    name = "qwen_scope"
    about = "Qwen Scope: layer<N>.sae.pt"
    facts = ("k",)
    needed = ("*.sae.pt",)

    def recognizes(self, files: Files) -> bool:
        found = single_files(files, ".pt")
        return len(found) == 1 and found[0].endswith(".sae.pt") and keys_in(files, found[0]) == _ROWS

    def read(self, files: Files, facts: Facts) -> Loaded:
        path, tensors = _opened(files, ".pt")
        k = facts.get("k", _k_in(files))
        if not isinstance(k, int) or isinstance(k, bool):
            raise CheckpointError(
                f"'{path}' does not say how many latents are kept; the name of its repository does (…-L0_50). Give k=."
            )
        b_enc, b_dec = tensors.take("b_enc", "dict_size"), tensors.take("b_dec", "dim")
        weights = Weights(
            W_enc=tensors.take("W_enc", "dict_size dim"),
            b_enc=b_enc,
            W_dec=tensors.take("W_dec", "dim dict_size").T,
            b_dec=b_dec,
            nonlinearity="top_k",
            options={"k": k},
            state={"threshold": torch.tensor(-1.0)},
            centered=False,
        )
        tensors.finish()
        return Loaded(weights.dictionary(), {"format": self.name, "peer": {"k": k}})


class Linear(Format):
    """Reads `.pt` or `.pth` files of two linear layers with a rectifier between them; b_dec is not subtracted.

    Args:
        name: the format's name.
        about: whose it is.
        encoder: what the encoder is called.
        decoder: what the decoder is called.
    """

    needed = ("*.pt", "*.pth")

    def __init__(self, name: str, about: str, encoder: str, decoder: str):
        self.name, self.about, self.encoder, self.decoder = name, about, encoder, decoder  # pyright: ignore[reportAttributeAccessIssue]

    def recognizes(self, files: Files) -> bool:
        found = [name for name in single_files(files, ".pt", ".pth") if name != "ae.pt"]
        keys = {f"{layer}.{part}" for layer in (self.encoder, self.decoder) for part in ("weight", "bias")}
        return len(found) == 1 and keys_in(files, found[0]) == keys

    def read(self, files: Files, facts: Facts) -> Loaded:
        _, tensors = _opened(files, ".pt", ".pth")
        weights = Weights(
            W_enc=tensors.take(f"{self.encoder}.weight", "dict_size dim"),
            b_enc=tensors.take(f"{self.encoder}.bias", "dict_size"),
            W_dec=tensors.take(f"{self.decoder}.weight", "dim dict_size").T,
            b_dec=tensors.take(f"{self.decoder}.bias", "dim"),
            centered=False,
        )
        tensors.finish()
        return Loaded(weights.dictionary(AutoEncoderNew), {"format": self.name, "peer": {}})


class Mwhanna(Format):
    """Reads `layer_<N>.safetensors`: transcoders with a rectifier, both matrices by rows of latents."""

    name = "mwhanna"
    about = "mwhanna's transcoders: layer_<N>.safetensors and config.yaml"
    needed = ("layer_*.safetensors", "config.yaml")

    def recognizes(self, files: Files) -> bool:
        found = single_files(files, ".safetensors")
        if len(found) != 1 or not re.fullmatch(r"layer_\d+\.safetensors", found[0]):
            return False
        return keys_in(files, found[0]) == _ROWS

    def read(self, files: Files, facts: Facts) -> Loaded:
        path = files.path(one_of(single_files(files, ".safetensors"), files))
        tensors = Tensors(read_safetensors(path), str(path))
        config = read_yaml(files.path("config.yaml")) if files.has("config.yaml") else {}
        weights = Weights(
            b_enc=tensors.take("b_enc", "dict_size"),
            b_dec=tensors.take("b_dec", "output_dim"),
            W_enc=tensors.take("W_enc", "dict_size dim"),
            W_dec=tensors.take("W_dec", "dict_size output_dim"),
            centered=False,
            predicts=True,
        )
        tensors.finish()
        known: dict[str, Any] = {"format": self.name, "peer": config}
        if isinstance(config.get("model_name"), str):
            known["model"] = config["model_name"]
        return Loaded(weights.dictionary(), known)


FORMATS.register("qwen_scope")(QwenScope())
FORMATS.register("goodfire")(
    Linear("goodfire", "Goodfire: .pth with encoder_linear and decoder_linear", "encoder_linear", "decoder_linear")
)
FORMATS.register("deepseek_r1")(
    Linear("deepseek_r1", "DeepSeek R1: .pt with encoder and decoder", "encoder", "decoder")
)
FORMATS.register("mwhanna")(Mwhanna())


def _opened(files: Files, *endings: str) -> tuple[Path, Tensors]:
    path = files.path(one_of(single_files(files, *endings), files))
    return path, Tensors(named_tensors(read_pt(path), path), str(path))


def _k_in(files: Files) -> int | None:
    """Returns k, as the name of the folder or repository has it."""
    found = [_L0.search(part) for part in reversed(files.folder.absolute().parts)]
    return next((int(match[1]) for match in found if match), None)
