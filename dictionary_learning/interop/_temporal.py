"""Temporal autoencoders: as their authors release them, and their tensors in a file of SAELens."""

from collections.abc import Mapping
from typing import Any

from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.errors import CheckpointError
from dictionary_learning.experimental.temporal import TemporalAutoencoder
from dictionary_learning.interop._base import Facts, Format, Loaded, choice, positive, setting
from dictionary_learning.interop._files import Files
from dictionary_learning.interop._safe import read_yaml
from dictionary_learning.interop._tensors import Tensors, built, read_tensors

_NEEDED = ("scaling_factor", "n_heads", "n_attn_layers", "bottleneck_factor", "tied_weights", "sae_diff_type")
"""Settings that a release of temporal dictionaries has."""


class Temporal(Format):
    """Reads temporal autoencoders as their authors release them, tied or not, with TopK or ReLU."""

    name = "temporal"
    needed = ("latest_ckpt.safetensors", "conf.yaml")

    def read(self, files: Files, facts: Facts) -> Loaded:
        weights, conf = map(files.path, self.needed)
        config, tensors = read_yaml(conf), read_tensors(weights)
        settings = setting(config, "sae", dict, {}, files)
        selects = settings.get("sae_diff_type") != "relu"
        needed = (*_NEEDED, "kval_topk") if selects else _NEEDED
        if missing := [name for name in needed if settings.get(name) is None]:
            raise CheckpointError(f"The conf.yaml of '{files}' does not say {', '.join(missing)}. Get the whole file.")
        scale = positive(settings["scaling_factor"], "scaling_factor", files)
        names = {"W_dec": "D", "b_dec": "b", "W_enc": "E.T"}
        dictionary = read_temporal(tensors, settings, files, names, scale=1 / scale)
        tensors.finish(setting(config, "llm", dict, {}, files), dim="dimin")
        tensors.check_expansion(settings, "exp_factor")
        return Loaded(dictionary, self.known(files, config))


def read_temporal(
    tensors: Tensors, config: Mapping[str, Any], files: Files, names: Mapping[str, str], **options: Any
) -> Dictionary:
    """Returns a temporal autoencoder from its matrices and the attention layers in a file."""
    tied = setting(config, "tied_weights", bool, True, files)
    n_layers = setting(config, "n_attn_layers", int, 1, files)
    selects = choice(config, "sae_diff_type", ("topk", "relu"), "topk", files) == "topk"
    parts = ("W_dec", "b_dec") if tied else ("W_dec", "b_dec", "W_enc")
    state = tensors.parts({part: names[part] for part in parts})
    shapes = {"k_ctx": "narrow", "q_target": "narrow", "v_ctx": "dict_size", "c_proj": "dict_size"}
    for layer in range(n_layers):  # a config may claim any number, but the first that is missing ends it
        for part, out in shapes.items():
            name = f"attn_layers.{layer}.{part}"
            state[f"{name}.weight"] = tensors.take(f"{name}.weight", f"{out} dict_size")
            state[f"{name}.bias"] = tensors.take(f"{name}.bias", out)
    return built(
        TemporalAutoencoder,
        state,
        tensors["dim"],
        tensors["dict_size"],
        n_layers=n_layers,
        k=setting(config, "kval_topk", int, None, files) if selects else None,
        n_heads=setting(config, "n_heads", int, 8, files),
        bottleneck_factor=setting(config, "bottleneck_factor", int, 64, files),
        tied=tied,
        **options,
    )
