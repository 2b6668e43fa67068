"""Latents as Neuronpedia's bulk import reads them: rows of its tables, in compressed JSON lines."""

import datetime
import gzip
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dictionary_learning._border import checked
from dictionary_learning._disk import write_atomically
from dictionary_learning._http import as_url
from dictionary_learning.errors import ConfigError
from dictionary_learning.exports._facts import Group, LatentFacts, LatentPage, page_of
from dictionary_learning.interop._hook_names import hook_name

CREATOR = "DEFAULT_CREATOR_ID"
"""The variable of the environment that holds a creator's id, as in Neuronpedia's own scripts."""
PER_BATCH = 128
_MODEL = re.compile(r"[a-z]([a-z0-9.-]{0,30}[a-z0-9])?")
_SET = re.compile(r"[a-z0-9]|[a-z](?!.*--)[a-z0-9-]*[a-z0-9]")
_ID = 24
"""Letters and digits of an id, behind its first "c"."""


class Place(NamedTuple):
    """Where latents stand at Neuronpedia."""

    model: str
    layer: int
    source_set: str

    @property
    def source(self) -> str:
        """The layer and the set."""
        return f"{self.layer}-{self.source_set}"


@checked()
def write_neuronpedia(
    facts: LatentFacts,
    path: str | os.PathLike[str],
    *,
    model: str,
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
    """Writes the folder `{model}/{layer}-{source_set}` of Neuronpedia's bulk import.

    Neuronpedia's importer reads its own storage, so such folders are sent to its maintainers;
    `upload_to_neuronpedia` needs nobody. Latents that were never active have no activations.

    Args:
        facts: What is known of the dictionary.
        path: The folder that gets the model's folder.
        model: The model's id there, such as gpt2-small.
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
    place, urls = checked_place(model, layer, source_set), [] if url is None else [as_url(url)]
    wanted = facts.chosen(latents)
    rows = _Rows(facts, place, creator_id or os.environ.get(CREATOR, ""), _time(created))
    folder = Path(path) / model / place.source
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


def checked_place(model: str, layer: int, source_set: str) -> Place:
    """Returns where latents stand.

    Raises:
        ConfigError: An id has characters that Neuronpedia does not take.
    """
    if not _MODEL.fullmatch(model):
        raise ConfigError(
            f"Got model={model!r}; Neuronpedia has ids of 1 to 32 lower-case letters, digits, '-' and '.', such as "
            "gpt2-small. Give such an id."
        )
    if not _SET.fullmatch(source_set) or source_set == "neurons":
        raise ConfigError(
            f"Got source_set={source_set!r}; Neuronpedia has names of lower-case letters, digits and single '-', such "
            "as res-mine. Give such a name."
        )
    most = 126
    if not 0 <= layer <= most:
        raise ConfigError(f"Got layer={layer}; Neuronpedia has layers 0 to {most}. Give one of these.")
    return Place(model, layer, source_set)


class _Rows(NamedTuple):
    """Makes the rows of one source."""

    facts: LatentFacts
    place: Place
    creator: str
    time: str

    def feature(self, page: LatentPage) -> dict[str, Any]:
        """Returns the row of a latent; correlations of activations are left empty."""
        has_vector = bool(page.direction)
        return {
            **self._of(page),
            "creatorId": self.creator,
            "createdAt": self.time,
            "maxActApprox": page.maximum,
            "hasVector": has_vector,
            "vector": page.direction,
            "vectorLabel": None,
            "vectorDefaultSteerStrength": page.maximum if has_vector else None,
            "hookName": hook_name(self.facts.site, self.facts.model) if has_vector and self.facts.site else None,
            "topkCosSimIndices": [other for other, _ in page.neighbors],
            "topkCosSimValues": [similarity for _, similarity in page.neighbors],
            **feature_fields(page),
            "sourceSetName": self.place.source_set,
        }

    def activations(self, page: LatentPage) -> list[dict[str, Any]]:
        """Returns a row for each example of a latent."""
        rows: list[dict[str, Any]] = []
        for group in page.groups:
            for example in group.examples:
                most = max(example.values)
                rows.append(
                    {
                        "id": self._id("activation", page.latent, len(rows)),
                        "tokens": [filled(token) for token in example.tokens],
                        "values": example.values,
                        **self._of(page),
                        "maxValue": most,
                        "maxValueTokenIndex": example.values.index(most),
                        "minValue": min(example.values),
                        "creatorId": self.creator,
                        "createdAt": self.time,
                        "dataSource": self.facts.data or None,
                        "dataIndex": None,
                        "dfaValues": [],
                        "dfaTargetIndex": None,
                        "dfaMaxValue": None,
                        "lossValues": [],
                        "logitContributions": None,
                        **_bin(group),
                        "qualifyingTokenIndex": example.peak,
                    }
                )
        return rows

    def explanations(self, page: LatentPage) -> list[dict[str, Any]]:
        """Returns a row for each explanation of a latent; embeddings are the importer's own."""
        return [
            {
                "id": self._id("explanation", page.latent, n),
                **self._of(page),
                "description": one.text,
                "authorId": self.creator,
                "embedding": None,
                "triggeredById": None,
                "typeName": None,
                "explanationModelName": one.explainer,
                "notes": json.dumps({"scores": one.scores}) if one.scores else None,
                "createdAt": self.time,
            }
            for n, one in enumerate(page.explanations)
        ]

    def _of(self, page: LatentPage) -> dict[str, Any]:
        return {"modelId": self.place.model, "layer": self.place.source, "index": str(page.latent)}

    def _id(self, *about: Any) -> str:
        """Returns an id of Neuronpedia's form, the same at every call."""
        digest = hashlib.sha256(json.dumps([*self.place, *about]).encode()).hexdigest()
        return f"c{digest[:_ID]}"


def feature_fields(page: LatentPage) -> dict[str, Any]:
    """Returns the fields of a latent that Neuronpedia and SAEDashboard have in common."""
    correlated = [f"correlated_{what}" for what in ("neurons", "features")]
    empty = {f"{start}_{end}": [] for start in correlated for end in ("indices", "pearson", "l1")}
    return {
        "neuron_alignment_indices": [place for place, _, _ in page.aligned],
        "neuron_alignment_values": [value for _, value, _ in page.aligned],
        "neuron_alignment_l1": [share for _, _, share in page.aligned],
        **empty,
        "neg_str": [token for token, _ in page.suppressed],
        "neg_values": [value for _, value in page.suppressed],
        "pos_str": [token for token, _ in page.promoted],
        "pos_values": [value for _, value in page.promoted],
        "frac_nonzero": page.density,
        "freq_hist_data_bar_heights": page.histogram.heights,
        "freq_hist_data_bar_values": page.histogram.values,
        "logits_hist_data_bar_heights": page.logits.heights,
        "logits_hist_data_bar_values": page.logits.values,
        "decoder_weights_dist": [],
    }


def filled(token: str) -> str:
    """Returns a token's text, which must not be empty there."""
    return token or "\ufffd"


def _bin(group: Group) -> dict[str, float]:
    # the top examples are marked by -1, as SAEDashboard does
    if group.share is None:
        return {"binMin": -1.0, "binMax": group.high, "binContains": -1.0}
    return {"binMin": group.low, "binMax": group.high, "binContains": group.share}


def _headers(
    rows: _Rows, creator_name: str, release: str, description: str, urls: list[str]
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
