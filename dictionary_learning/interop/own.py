"""The format of this package: `dictionary.safetensors` and `config.json`, written by `save_dictionary`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dictionary_learning.dictionaries import DICTIONARIES, Dictionary, save_dictionary
from dictionary_learning.dictionaries.serialization import CONFIG, WEIGHTS, check_config
from dictionary_learning.errors import CheckpointError, DictionaryLearningError
from dictionary_learning.interop.base import FORMATS, Facts, Format, Loaded
from dictionary_learning.interop.building import built
from dictionary_learning.interop.files import Files
from dictionary_learning.interop.safe import check_header, read_json, read_safetensors

_SECTIONS = ("dictionary", "format_version", "versions", "format", "peer")
"""What is of the files that were read, and not of the dictionary."""


class Own(Format):
    """Reads and writes every class of this package."""

    name = "own"
    about = "this package: dictionary.safetensors and config.json"
    needed = (WEIGHTS, CONFIG)
    writes = True

    def recognizes(self, files: Files) -> bool:
        if files.has(WEIGHTS):
            return files.chosen in (None, WEIGHTS)
        return files.wants(CONFIG) and "dictionary" in read_json(files.path(CONFIG))

    def read(self, files: Files, facts: Facts) -> Loaded:
        config = check_config(read_json(files.path(CONFIG)), files.folder)
        section = dict(config["dictionary"])
        if not files.has(WEIGHTS):
            raise CheckpointError(
                f"'{files.folder}' has a {CONFIG} but no {WEIGHTS}. Save the dictionary again, or get the whole folder."
            )
        path = files.path(WEIGHTS)
        said = (check_header(path).get("__metadata__") or {}).get("dictionary", "null")
        tensors = read_safetensors(path)
        try:
            header = json.loads(said)
        except (ValueError, TypeError, RecursionError) as error:
            raise CheckpointError(
                f"The header of '{path}' is not JSON ({error}). Save the dictionary again."
            ) from error
        if header != section:
            raise CheckpointError(
                f"In '{files.folder}', {CONFIG} describes {section} and {WEIGHTS} holds {header}: the two files are of different saves."
            )
        try:
            make = DICTIONARIES[section.pop("class")]
            dictionary = built(make, tensors, **section)
        except (DictionaryLearningError, TypeError) as error:
            raise CheckpointError(f"In '{files.folder}': {error}") from error
        return Loaded(dictionary, config)

    def write(self, dictionary: Dictionary, folder: Path, config: Mapping[str, Any]) -> None:
        # what another package said of it stays, apart from what this one says
        own = {key: value for key, value in config.items() if key not in _SECTIONS}
        if "format" in config:
            own["converted_from"] = {"format": config["format"], "config": config.get("peer")}
        save_dictionary(dictionary, folder, own)


FORMATS.register("own")(Own())
