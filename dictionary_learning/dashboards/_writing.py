"""A dashboard: a folder of pages that a browser opens from the disk, without a server or a network.

`index.html` and its scripts are the same for every dashboard. What they show is in `data/`: numbers
of all latents in one file (`columns.js`), the words by which they are found in another
(`words.js`), and their pages in files of a few latents (`panels-N.js`). Each is loaded when it is
needed, as a script, since a browser reads no other file for a page from a disk.
"""

import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import dictionary_learning
from dictionary_learning._border import checked
from dictionary_learning._disk import UNFINISHED
from dictionary_learning._plain import counted
from dictionary_learning._progress import Progress
from dictionary_learning.dashboards._pages import DictionaryPage, check_pages
from dictionary_learning.dashboards._panels import PER_FILE, Words, score_of, write_panels
from dictionary_learning.dashboards._scripts import packed, write_script
from dictionary_learning.errors import ConfigError

logger = logging.getLogger(__name__)

STATIC = Path(__file__).parent / "static"
CONTEXTS = "contexts"
"""The folder of the store that the pages were made of, if it was made for them."""
_DATA = "data"
_UNFINISHED = f".{_DATA}{UNFINISHED}"
_MANIFEST = "manifest.js"


@checked(wraps=ConfigError)
def write_dashboard(
    pages: Sequence[DictionaryPage], folder: str | os.PathLike, *, title: str = "Latents", about: str = ""
) -> Path:
    """Writes a folder of pages about latents; returns the path of its first page.

    Args:
        pages: What is known of each dictionary.
        folder: The folder, which must not exist, be empty, or hold a dashboard, which is replaced.
        title: What stands at the top.
        about: A sentence about the model and the text.

    Raises:
        ConfigError: Pages do not fit each other, or the folder holds other files.
    """
    check_pages(pages)
    target = Path(folder)
    check_folder(target)
    target.mkdir(parents=True, exist_ok=True)
    unfinished = target / _UNFINISHED
    shutil.rmtree(unfinished, ignore_errors=True)
    names = [page.name for page in pages]
    logger.info("Writing pages of %s into '%s'.", counted(sum(page.dict_size for page in pages), "latent"), target)
    with Progress("writing pages", sum(page.dict_size for page in pages), "latents") as progress:
        for place, page in enumerate(pages):
            _write_page(page, place, unfinished / str(place), names, progress)
    version = dictionary_learning.__version__
    manifest = {"title": title, "about": about, "version": version, "dictionaries": [_facts(page) for page in pages]}
    write_script(unfinished / _MANIFEST, "manifest", manifest)
    # the old data go after the new ones are complete
    shutil.rmtree(target / _DATA, ignore_errors=True)
    shutil.copytree(STATIC, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("live*"))
    os.replace(unfinished, target / _DATA)
    return target / "index.html"


def check_folder(folder: Path) -> None:
    """Checks that pages may be written into a folder.

    Raises:
        ConfigError: It is a file, or holds other files than those of a dashboard, and the contexts
            beside it.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"'{folder}' is a file. Give a new folder.")
    ours = (CONTEXTS, _UNFINISHED)  # what a writer that was killed leaves
    others = [path.name for path in folder.iterdir() if path.name not in ours] if folder.is_dir() else []
    if others and not any((folder / data / _MANIFEST).is_file() for data in (_DATA, _UNFINISHED)):
        raise ConfigError(f"'{folder}' holds other files ({others[0]}), and no dashboard. Give a new folder.")


def _write_page(page: DictionaryPage, place: int, folder: Path, names: Sequence[str], progress: Progress) -> None:
    folder.mkdir(parents=True)
    words = write_panels(page, place, folder, names, progress)
    columns = {name: packed(column) for name, column in _columns(page).items()}
    write_script(folder / "columns.js", f"{place}/columns", columns)
    write_script(folder / "words.js", f"{place}/words", _lines(words))


def _columns(page: DictionaryPage) -> dict[str, Tensor]:
    """Returns the numbers of all latents by which the list is sorted and the map is drawn."""
    statistics = page.statistics
    found = {"density": statistics.density, "maximum": statistics.maximum, "mean": statistics.mean}
    if page.explanations:
        found["score"] = torch.tensor([score_of(page.explanations.get(i, ())) for i in range(page.dict_size)])
    if page.map is not None:
        found |= {"x": page.map[:, 0], "y": page.map[:, 1]}
    return found


def _lines(words: Words) -> dict[str, str]:
    explained = words.explanations if any(words.explanations) else []
    return {"tokens": "\n".join(words.tokens), "explanations": "\n".join(explained)}


def _facts(page: DictionaryPage) -> dict[str, Any]:
    return {
        "name": page.name,
        "site": page.site,
        "kind": page.kind,
        "size": page.dict_size,
        "n_tokens": page.statistics.n_tokens,
        "per_file": PER_FILE,
    }
