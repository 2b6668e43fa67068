"""Where dictionaries are in a folder: by the names of files, without reading weights."""

import re

from dictionary_learning.errors import CheckpointError
from dictionary_learning.interop.files import Files
from dictionary_learning.interop.safe import check_header
from dictionary_learning.sites import natural_key

WHOLE = (
    "dictionary.safetensors",
    "ae.pt",
    "sae.safetensors",
    "sae_weights.safetensors",
    "params.npz",
    "params.safetensors",
    "hyperparams.json",
    "latest_ckpt.safetensors",
)
"""Files that make a folder one dictionary."""
ENDINGS = (".pt", ".pth", ".safetensors")
"""Endings of files that are a dictionary each, where their format has no folder for each."""
TRAINING = re.compile(
    r"((trainer_|rank_\d+_)?state|optimizer.*|lr_scheduler.*|sparsity|activation_whitening|activations_store_state)\.(pt|safetensors)"
)
"""Files of a run that hold no dictionary."""
_DECODERS = ("W_dec", "w_dec", "decoder", "D")
_COPIES = ("checkpoints", "best")
_DEEPEST = 6
_MOST = 5_000
"""Folders that are looked into."""


def sites_in(files: Files) -> dict[str, str]:
    """Returns where each dictionary is, by the name of its site: a path below, "" for the folder itself; in natural order.

    A folder within one of the same name, as `best/layers.3/layers.3`, has one name.

    Raises:
        CheckpointError: a folder leads out of the checkpoint, or there are too many.
    """
    if files.chosen is not None:
        return {"": ""}
    found: dict[str, str] = {}
    waiting, n = [(files, "")], 0
    while waiting:
        place, path = waiting.pop()
        n += 1
        if n > _MOST:
            raise CheckpointError(f"'{files}' has more than {_MOST} folders. Give the folder of one run.")
        below = _dictionaries(place)
        for name in below:
            found[_site(path, name)] = f"{path}/{name}".strip("/")
        if "" in below or path.count("/") >= _DEEPEST:
            continue
        waiting += [(place.at(name), f"{path}/{name}".strip("/")) for name in place.folders if name not in _COPIES]
    return dict(sorted(found.items(), key=lambda item: natural_key(item[0])))


def single_files(files: Files, *endings: str) -> list[str]:
    """Returns the files in a folder that may each be a dictionary."""
    found = [name for name in files.weights(*(endings or ENDINGS)) if not TRAINING.fullmatch(name)]
    return found if files.chosen is not None else [name for name in found if _has_decoder(files, name)]


def _dictionaries(files: Files) -> list[str]:
    if any(files.has(name) for name in WHOLE):
        return [""]
    found = single_files(files)
    return [""] if len(found) == 1 else found


def _has_decoder(files: Files, name: str) -> bool:
    if not name.endswith(".safetensors"):
        return True
    try:
        header = check_header(files.path(name))
    except CheckpointError:
        return True  # the reader says what is wrong with it
    return any(key.split(".")[0] in _DECODERS for key in header)


def _site(path: str, name: str) -> str:
    stem = re.sub(r"(\.sae)?\.(pt|pth|safetensors)$", "", name)
    parts = [part for part in f"{path}/{stem}".split("/") if part]
    return "/".join(part for n, part in enumerate(parts) if n == 0 or part != parts[n - 1])
