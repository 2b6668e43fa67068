"""Temporal autoencoders as their authors release them: `conf.yaml` and `latest_ckpt.safetensors`."""

from typing import Any

from dictionary_learning.interop.base import FORMATS, Facts, Format, Loaded, choice, positive, setting
from dictionary_learning.interop.files import Files
from dictionary_learning.interop.sae_lens import temporal
from dictionary_learning.interop.safe import read_safetensors, read_yaml
from dictionary_learning.interop.tensors import Tensors

_WEIGHTS = "latest_ckpt.safetensors"
_SETTINGS = "conf.yaml"


class Temporal(Format):
    """Reads tied and untied ones, with TopK or a rectifier."""

    name = "temporal"
    about = "temporal autoencoders: conf.yaml and latest_ckpt.safetensors"
    needed = (_WEIGHTS, _SETTINGS)

    def recognizes(self, files: Files) -> bool:
        return files.wants(_WEIGHTS)

    def read(self, files: Files, facts: Facts) -> Loaded:
        config = read_yaml(files.path(_SETTINGS))
        settings = setting(config, "sae", dict, {}, files)
        path = files.path(_WEIGHTS)
        tensors = Tensors(read_safetensors(path), str(path))
        tied = setting(settings, "tied_weights", bool, True, files)
        state = {"W_dec": tensors.take("D", "dict_size dim"), "b_dec": tensors.take("b", "dim")}
        if not tied:
            state["W_enc"] = tensors.take("E", "dim dict_size").T
        selects = choice(settings, "sae_diff_type", ("topk", "relu"), "topk", files) == "topk"
        dictionary = temporal(
            tensors,
            state,
            k=setting(settings, "kval_topk", int, None, files) if selects else None,
            n_heads=setting(settings, "n_heads", int, 8, files),
            n_layers=setting(settings, "n_attn_layers", int, 1, files),
            bottleneck_factor=setting(settings, "bottleneck_factor", int, 64, files),
            tied=tied,
            scale=1 / positive(settings.get("scaling_factor", 1.0), "scaling_factor", files),
        )
        tensors.finish()
        tensors.check(setting(config, "llm", dict, {}, files).get("dimin"), "dim", "dimin")
        known: dict[str, Any] = {"format": self.name, "peer": config}
        return Loaded(dictionary, known)


FORMATS.register("temporal")(Temporal())
