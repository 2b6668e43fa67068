"""The names of the tensors in a file, without reading them."""

from dictionary_learning.interop.archives import read_keys
from dictionary_learning.interop.files import Files
from dictionary_learning.interop.safe import check_header


def keys_in(files: Files, name: str) -> frozenset[str]:
    """Returns the names at the top of a file of weights.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = files.path(name)
    if name.endswith(".safetensors"):
        return frozenset(check_header(path)) - {"__metadata__"}
    return read_keys(path)
