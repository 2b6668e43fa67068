"""The format of this package: `dictionary.safetensors` and `config.json`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dictionary_learning.dictionaries import DICTIONARIES, Dictionary, save_dictionary
from dictionary_learning.dictionaries._serialization import CONFIG, WEIGHTS, check_config
from dictionary_learning.errors import CheckpointError, DictionaryLearningError
from dictionary_learning.interop._base import Facts, Format, Loaded
from dictionary_learning.interop._files import Files
from dictionary_learning.interop._safe import open_safetensors, read_json, read_safetensors
from dictionary_learning.interop._tensors import built


class Own(Format):
    """Reads and writes every class of this package."""

    name = "own"
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
        check_weights(path, section)
        try:
            return Loaded(built(DICTIONARIES[section.pop("class")], read_safetensors(path), **section), config)
        except (DictionaryLearningError, TypeError) as error:
            raise CheckpointError(f"In '{files.folder}': {error}") from error

    def write(self, dictionary: Dictionary, folder: Path, config: Mapping[str, Any]) -> None:
        save_dictionary(dictionary, folder, config)


def check_weights(path: Path, section: Mapping[str, Any]) -> None:
    """Checks that a file of weights is whole, and is of a config's section; reads no weights.

    Raises:
        CheckpointError: it is damaged, or of another save.
    """
    with open_safetensors(path) as file:
        header = json.loads((file.metadata() or {}).get("dictionary", "null"))
    if header != section:
        raise CheckpointError(
            f"In '{path.parent}', {CONFIG} describes {section} and {WEIGHTS} holds {header}: the two files are of "
            "different saves."
        )
