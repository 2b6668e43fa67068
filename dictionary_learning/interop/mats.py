"""mats_sae_training, from which SAELens grew: a `.pt` with settings, an object of its package, and tensors.

The settings are read as data: of the object, the class is a name here, and its attributes are values.
"""

from collections.abc import Mapping
from typing import Any

from dictionary_learning.errors import CheckpointError
from dictionary_learning.interop.archives import read_pt
from dictionary_learning.interop.base import FORMATS, Facts, Format, Loaded
from dictionary_learning.interop.files import Files
from dictionary_learning.interop.keys import keys_in
from dictionary_learning.interop.openai import named_tensors, one_of
from dictionary_learning.interop.pickles import Inert
from dictionary_learning.interop.places import single_files
from dictionary_learning.interop.sae_lens import read_coder
from dictionary_learning.interop.sae_lens_legacy import modernized
from dictionary_learning.interop.tensors import Tensors

_PLAIN = (str, int, float, bool, type(None))


class MatsSAE(Format):
    """Reads `{"cfg": …, "state_dict": …}`: autoencoders with a rectifier, b_dec subtracted from the input."""

    name = "mats_sae"
    about = "mats_sae_training and SAELens before 2.0: .pt with cfg and state_dict"
    needed = ("*.pt",)

    def recognizes(self, files: Files) -> bool:
        found = single_files(files, ".pt")
        return len(found) == 1 and keys_in(files, found[0]) >= {"cfg", "state_dict"}

    def read(self, files: Files, facts: Facts) -> Loaded:
        path = files.path(one_of(single_files(files, ".pt"), files))
        held = named_tensors(read_pt(path), path)
        given = _plain(held.get("cfg"))
        config = modernized(given, path)
        tensors = Tensors(named_tensors(held.get("state_dict"), path), str(path))
        if config["architecture"] != "standard":
            raise CheckpointError(
                f"'{path}' has architecture={config['architecture']!r}; files of that time have standard."
            )
        dictionary = read_coder(tensors, config, "standard", files)
        tensors.finish()
        tensors.check(config.get("d_in"), "dim", "d_in")
        tensors.check(config.get("d_sae"), "dict_size", "d_sae")
        known: dict[str, Any] = {"format": self.name, "peer": given}
        for ours, theirs in (("model", "model_name"), ("site", "hook_name")):
            if isinstance(config["metadata"].get(theirs), str):
                known[ours] = config["metadata"][theirs]
        return Loaded(dictionary, known)


FORMATS.register("mats_sae")(MatsSAE())


def _plain(cfg: Any) -> dict[str, Any]:
    """Returns the settings that are plain values; others, as devices and types, mean nothing here."""
    values = cfg.state if isinstance(cfg, Inert) else cfg
    if not isinstance(values, Mapping):
        return {}
    return {str(name): value for name, value in values.items() if isinstance(value, _PLAIN)}
