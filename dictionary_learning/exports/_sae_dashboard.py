"""Latents in the files of SAEDashboard, with exact figures.

Its groups are intervals of equal width; ours are quantiles, with a true share each. Its densities
are rounded, and its related latents are searched for in one file; ours are of all latents, and
stand in `nearest_features_*`, since they are cosines and no correlations of activations.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dictionary_learning._border import checked, renamed
from dictionary_learning._disk import write_atomically
from dictionary_learning.errors import ConfigError
from dictionary_learning.exports._facts import Group, LatentFacts, LatentPage, page_of
from dictionary_learning.exports._neuronpedia import PER_BATCH
from dictionary_learning.exports._neuronpedia_rows import feature_fields

SKIPPED = "skipped_indexes.json"


@renamed(model="model_id")
@checked()
def write_sae_dashboard(
    facts: LatentFacts,
    path: str | os.PathLike[str],
    *,
    model_id: str | None = None,
    layer: int = 0,
    source_set: str | None = None,
    latents: Sequence[int] | None = None,
) -> Path:
    """Writes `batch-N.json` of 128 latents each, and `skipped_indexes.json`.

    Latents that were never active are skipped.

    Args:
        facts: What is known of the dictionary.
        path: The folder; it is returned.
        model_id: The model's id; by default its name, if it has one. `model` is an older name.
        layer: The number of the layer.
        source_set: The name of the set; by default the dictionary's.
        latents: Which latents; all by default.

    Raises:
        ConfigError: There is no model_id, and the name of the model is not known.
    """
    if not model_id and not facts.model:
        raise ConfigError(f"The contexts of '{facts.name}' name no model. Give model_id='...' (--model-id).")
    folder, wanted = Path(path), facts.chosen(latents)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("batch-*.json"):
        old.unlink()  # of an earlier call with more latents
    head = {"model_id": model_id or facts.model, "layer": layer, "sae_set": source_set or facts.name}
    alive = [one for one in wanted if float(facts.statistics.density[one]) > 0]
    for number, start in enumerate(range(0, len(alive), PER_BATCH)):
        pages = [page_of(facts, latent) for latent in alive[start : start + PER_BATCH]]
        features = [_feature(facts, page) for page in pages]
        _write(folder / f"batch-{number}.json", {**head, "sae_id_suffix": None, "features": features})
    skipped = sorted(set(wanted) - set(alive))
    _write(folder / SKIPPED, {**head, "skipped_indexes": skipped})
    return folder


def _feature(facts: LatentFacts, page: LatentPage) -> dict[str, Any]:
    return {
        "feature_index": page.latent,
        **feature_fields(page),
        "nearest_features_indices": [other for other, _ in page.neighbors],
        "nearest_features_cosines": [similarity for _, similarity in page.neighbors],
        "n_tokens_total": facts.statistics.n_tokens,
        "dataset": facts.data,
        "vector": page.direction,
        "explanations": [one._asdict() for one in page.explanations],
        "activations": [row for group in page.groups for row in _activations(group)],
    }


def _activations(group: Group) -> list[dict[str, Any]]:
    is_top = group.share is None
    edges = {
        "bin_min": -1 if is_top else group.low,
        "bin_max": group.high,
        "bin_contains": -1 if is_top else group.share,
    }
    return [
        {**edges, "tokens": one.tokens, "values": one.values, "qualifying_token_index": one.peak}
        for one in group.examples
    ]


def _write(path: Path, document: dict[str, Any]) -> None:
    text = json.dumps(document, allow_nan=False)
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
