"""Temporal autoencoders as their authors release them: `conf.yaml` and `latest_ckpt.safetensors`."""

from dictionary_learning.interop.base import FORMATS, Facts, Format, Loaded, positive, setting
from dictionary_learning.interop.files import Files
from dictionary_learning.interop.sae_lens import temporal
from dictionary_learning.interop.safe import read_safetensors, read_yaml
from dictionary_learning.interop.tensors import Tensors

_WEIGHTS = "latest_ckpt.safetensors"
_SETTINGS = "conf.yaml"


class Temporal(Format):
    """Reads tied and untied temporal autoencoders, with TopK or a rectifier."""

    name = "temporal"
    about = "temporal autoencoders: conf.yaml and latest_ckpt.safetensors"
    needed = (_WEIGHTS, _SETTINGS)

    def recognizes(self, files: Files) -> bool:
        return files.wants(_WEIGHTS)

    def read(self, files: Files, facts: Facts) -> Loaded:
        config = read_yaml(files.path(_SETTINGS))
        settings = setting(config, "sae", dict, {}, files)
        path = files.path(_WEIGHTS)
        tensors = Tensors(read_safetensors(path), path)
        scale = positive(settings.get("scaling_factor", 1.0), "scaling_factor", files)
        names = {"W_dec": "D", "b_dec": "b", "W_enc": "E"}
        dictionary = temporal(tensors, settings, files, names, scale=1 / scale)
        tensors.finish(setting(config, "llm", dict, {}, files), dim="dimin")
        return Loaded(dictionary, self.known(config))


FORMATS.register("temporal")(Temporal())
