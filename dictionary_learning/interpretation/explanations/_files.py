"""Explanations on disk: `explanations.json`, with those of several explainers for each latent."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from dictionary_learning._border import checked, short
from dictionary_learning._disk import write_json
from dictionary_learning.errors import ConfigError, DataError
from dictionary_learning.interpretation._records import Explanation

EXPLANATIONS = "explanations.json"
_VERSION = 1


@checked(wraps=DataError)
def save_explanations(path: str | os.PathLike[str], explanations: Mapping[int, Explanation]) -> Path:
    """Adds explanations to those in a folder, in place of those by the same explainer.

    Returns:
        The path of the file.
    """
    for latent, made in explanations.items():
        if latent < 0 or not isinstance(made, Explanation):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"Got explanations={{{latent!r}: {short(made)}}}; give an Explanation by latent.")
    folder = Path(path)
    file = folder / EXPLANATIONS
    known = load_explanations(file) if file.is_file() else {}
    for latent, made in explanations.items():
        others = [one for one in known.get(latent, []) if one.explainer != made.explainer]
        known[latent] = [*others, made]
    folder.mkdir(parents=True, exist_ok=True)
    latents = {str(latent): [one._asdict() for one in known[latent]] for latent in sorted(known)}
    write_json(file, {"version": _VERSION, "latents": latents})
    return file


@checked()
def load_explanations(path: str | os.PathLike[str]) -> dict[int, list[Explanation]]:
    """Returns the explanations of each latent, from a folder or its `explanations.json`.

    Raises:
        DataError: There are none, or the file is damaged.
    """
    file = Path(path) / EXPLANATIONS if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise DataError(f"There are no explanations at '{file}'. Write them with `dictionary-learning explain`.")
    try:
        document: Any = json.loads(file.read_text(encoding="utf-8"))
        if document["version"] != _VERSION:
            raise ValueError(f"version {document['version']!r}")
        latents = cast("Mapping[str, list[Any]]", document["latents"])
        return {int(latent): [_explanation(one) for one in made] for latent, made in latents.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"'{file}' holds no explanations of this form ({type(error).__name__}: {error}). Remove it, and run "
            "`dictionary-learning explain` again: what was answered is kept beside it."
        ) from None


def _explanation(entry: Any) -> Explanation:
    text, explainer, scores = entry["text"], entry["explainer"], entry["scores"]
    if not isinstance(text, str) or not isinstance(explainer, str):
        raise TypeError("text and explainer must be strings")
    numbers = {str(name): float(score) for name, score in scores.items()}
    if not all(math.isfinite(score) for score in numbers.values()):
        raise ValueError("scores must be finite")
    return Explanation(text, explainer, numbers)
