"""Latents as Neuronpedia's bulk import reads them: rows of its tables, in compressed JSON lines."""

import datetime
import gzip
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dictionary_learning._border import checked, renamed
from dictionary_learning._disk import write_atomically
from dictionary_learning._http import as_url
from dictionary_learning.errors import ConfigError
from dictionary_learning.exports._facts import LatentFacts, page_of
from dictionary_learning.exports._neuronpedia_rows import Place, Rows

CREATOR = "DEFAULT_CREATOR_ID"
"""The variable of the environment that holds a creator's id, as in Neuronpedia's own scripts."""
PER_BATCH = 128
_MODEL = re.compile(r"[a-z]([a-z0-9.-]{0,30}[a-z0-9])?")
_SET = re.compile(r"[a-z0-9]|[a-z](?!.*--)[a-z0-9-]*[a-z0-9]")


@renamed(model="model_id")
@checked()
def write_neuronpedia(
    facts: LatentFacts,
    path: str | os.PathLike[str],
    *,
    model_id: str,
    layer: int,
    source_set: str,
    latents: Sequence[int] | None = None,
    creator_name: str = "",
    creator_id: str | None = None,
    release: str | None = None,
    description: str = "",
    url: str | None = None,
    created: datetime.datetime | None = None,
) -> Path:
    """Writes the folder `{model_id}/{layer}-{source_set}` of Neuronpedia's bulk import.

    Neuronpedia's importer reads its own storage, so such folders are sent to its maintainers;
    `upload_to_neuronpedia` needs nobody. Latents that were never active have no activations.

    Args:
        facts: What is known of the dictionary.
        path: The folder that gets the model's folder.
        model_id: The model's id there, such as gpt2-small; `model` is an older name.
        layer: The number of the layer.
        source_set: The name of the set of dictionaries, such as res-mine.
        latents: Which latents; all by default.
        creator_name: Who made the dictionary.
        creator_id: Its id there; by default that of $DEFAULT_CREATOR_ID, or none.
        release: The name of the release; by default the set's.
        description: Of the release.
        url: Of the release.
        created: The time in all rows; by default now.

    Returns:
        The folder of the source.

    Raises:
        ConfigError: An id has characters that Neuronpedia does not take.
    """
    place, urls = checked_place(model_id, layer, source_set), [] if url is None else [as_url(url)]
    wanted = facts.chosen(latents)
    rows = Rows(facts, place, creator_id or os.environ.get(CREATOR, ""), _time(created))
    folder = Path(path) / model_id / place.source
    for name in ("features", "activations", "explanations"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for old in (folder / name).glob("batch-*.jsonl.gz"):
            old.unlink()  # of an earlier call with more latents
    for number, start in enumerate(range(0, len(wanted), PER_BATCH)):
        pages = [page_of(facts, latent) for latent in wanted[start : start + PER_BATCH]]
        name = f"batch-{number}.jsonl.gz"
        _write_lines(folder / "features" / name, [rows.feature(page) for page in pages])
        _write_lines(folder / "activations" / name, [row for page in pages for row in rows.activations(page)])
        if explained := [row for page in pages for row in rows.explanations(page)]:
            _write_lines(folder / "explanations" / name, explained)
    release = release or source_set
    for name, row in _headers(rows, creator_name, release, description or release, urls).items():
        _write_lines(folder / f"{name}.jsonl", [row])
    return folder


def checked_place(model_id: str, layer: int, source_set: str) -> Place:
    """Returns where latents stand.

    Raises:
        ConfigError: An id has characters that Neuronpedia does not take.
    """
    if not _MODEL.fullmatch(model_id):
        raise ConfigError(
            f"Got model_id={model_id!r}; Neuronpedia has ids of 1 to 32 lower-case letters, digits, '-' and '.', such "
            "as gpt2-small. Give such an id."
        )
    check_set(source_set)
    most = 126
    if not 0 <= layer <= most:
        raise ConfigError(f"Got layer={layer}; Neuronpedia has layers 0 to {most}. Give one of these.")
    return Place(model_id, layer, source_set)


def check_set(source_set: str) -> None:
    """Checks the name of a set of dictionaries.

    Raises:
        ConfigError: It has characters that Neuronpedia does not take.
    """
    if not _SET.fullmatch(source_set) or source_set == "neurons":
        raise ConfigError(
            f"Got source_set={source_set!r}; Neuronpedia has names of lower-case letters, digits and single '-', such "
            "as res-mine. Give such a name."
        )


def _headers(
    rows: Rows, creator_name: str, release: str, description: str, urls: list[str]
) -> Mapping[str, Mapping[str, Any]]:
    """Returns the rows of the release, the model, the set and the source."""
    place, facts = rows.place, rows.facts
    made = {"creatorId": rows.creator, "createdAt": rows.time, "visibility": "PUBLIC"}
    shown = {"creatorName": creator_name, "description": description, "urls": urls}
    dim = None if facts.directions is None else facts.directions.shape[1]
    names = {"displayNameShort": place.model, "displayName": place.model}
    return {
        "release": {
            "name": release,
            **shown,
            "descriptionShort": description,
            "creatorNameShort": creator_name,
            **made,
        },
        "model": {"id": place.model, "instruct": False, **names, "dimension": dim, "updatedAt": rows.time, **made},
        "sourceset": {"modelId": place.model, "name": place.source_set, "releaseName": release, **shown, **made},
        "source": {
            "id": place.source,
            "modelId": place.model,
            "setName": place.source_set,
            "dataset": facts.data or None,
            "hasDashboards": True,
            "notes": f"{facts.statistics.n_tokens} tokens were read",
            **made,
        },
    }


def _time(given: datetime.datetime | None) -> str:
    given = given or datetime.datetime.now(datetime.timezone.utc)
    return given.replace(microsecond=0).isoformat()


def _write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    # halves of surrogate pairs, which no UTF-8 has, stay as escapes
    data = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode()
    if path.suffix == ".gz":
        data = gzip.compress(data, mtime=0)  # the same bytes at every call
    write_atomically(path, lambda temporary: temporary.write_bytes(data))
