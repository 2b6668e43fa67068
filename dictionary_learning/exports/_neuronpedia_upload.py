"""Latents sent to Neuronpedia, or to an installation of one's own, in batches of at most 128."""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dictionary_learning._border import checked, renamed
from dictionary_learning._http import Secret, Server, as_url
from dictionary_learning.errors import ConfigError
from dictionary_learning.exports._facts import Group, LatentFacts, LatentPage, Shown, page_of
from dictionary_learning.exports._neuronpedia import PER_BATCH, checked_place
from dictionary_learning.exports._neuronpedia_rows import Place, filled
from dictionary_learning.interpretation.explanations._answers import Answers

logger = logging.getLogger(__name__)

KEY = "NEURONPEDIA_API_KEY"
"""The variable of the environment that holds the key."""
NEURONPEDIA = "https://www.neuronpedia.org"
_MOST_LOGITS, _LONGEST_TEXT, _MOST_TOKENS = 20, 512, 1024
_MOST_BYTES = 3 << 20
"""Of a request: hosts of web applications refuse larger ones, some from 4.5 MB on."""
_TIMEOUT = 600.0
"""Seconds. A batch that is sent again while it is still written would be there twice."""


def upload_batches(
    facts: LatentFacts, *, model_id: str, layer: int, source_set: str, latents: Sequence[int] | None = None
) -> Iterator[dict[str, Any]]:
    """Yields the bodies of requests to `/api/feature/upload-batch`: at most 128 latents and 3 MB.

    Latents that were never active are left out: the site takes none without activations.
    """
    place = checked_place(model_id, layer, source_set)
    batch: list[dict[str, Any]] = []
    n_bytes = 0
    for latent in facts.chosen(latents):
        page = page_of(facts, latent)
        if not page.density or not any(group.examples for group in page.groups):
            continue
        feature = _feature(page)
        size = len(json.dumps(feature))
        if batch and (len(batch) == PER_BATCH or n_bytes + size > _MOST_BYTES):
            yield _body(place, batch)
            batch, n_bytes = [], 0
        batch.append(feature)
        n_bytes += size
    if batch:
        yield _body(place, batch)


@renamed(model="model_id")
@checked()
def upload_to_neuronpedia(
    facts: LatentFacts,
    *,
    model_id: str,
    layer: int,
    source_set: str,
    latents: Sequence[int] | None = None,
    url: str = NEURONPEDIA,
    key_variable: str = KEY,
    folder: str | os.PathLike[str] | None = None,
) -> int:
    """Sends latents to a set that exists there already; returns how many were sent.

    The key is read from the environment, and sent over HTTPS or to this machine only. Statuses 429
    and 5xx are tried again.

    Args:
        facts: What is known of the dictionary.
        model_id: The model's id there; `model` is an older name.
        layer: The number of the layer.
        source_set: The name of the set, which the owner of the key has made.
        latents: Which latents; all by default.
        url: The address of the site.
        key_variable: The variable of the environment that holds the key.
        folder: Keeps which batches were taken, so that a second call sends only the rest. Sent
            twice, examples would be there twice.

    Raises:
        Refused: The site refuses a batch, and says why.
        ModelError: It cannot be reached, or wants another key.
    """
    if not key_variable.isidentifier():
        # a key given here by mistake must not be shown
        raise ConfigError("key_variable is no name of a variable. Put the key into the environment, and name it here.")
    secret = Secret(key_variable, header="x-api-key", prefix="")
    if secret.value() is None:
        raise ConfigError(f"${key_variable} is not set. Put the key of your account there.")
    server = Server(as_url(url), secret, _TIMEOUT)
    sent = Answers(None if folder is None else Path(folder), "uploaded.jsonl")
    n = 0
    try:
        for body in upload_batches(facts, model_id=model_id, layer=layer, source_set=source_set, latents=latents):
            key = hashlib.sha256(json.dumps([url, body]).encode()).hexdigest()
            if key in sent:
                continue
            answer = server.post("/api/feature/upload-batch", body)
            count = len(body["features"])
            sent.add(key, json.dumps(answer), {"source": body["source"], "n_latents": count})
            n += count
            logger.info("Sent %d latents.", n)
    finally:
        sent.close()
    return n


def _body(place: Place, batch: list[dict[str, Any]]) -> dict[str, Any]:
    return {"modelId": place.model, "source": place.source, "features": batch}


def _feature(page: LatentPage) -> dict[str, Any]:
    pairs = {"topLogits": page.promoted, "bottomLogits": page.suppressed}
    logits = {
        name: [{"token": filled(token), "value": value} for token, value in found[:_MOST_LOGITS]]
        for name, found in pairs.items()
    }
    texts = [one.text[:_LONGEST_TEXT] for one in page.explanations if one.text]
    activations = [_activation(group, example) for group in page.groups for example in group.examples]
    # methods and models of explanations must be registered there, so only texts are sent
    explanations = [{"text": text} for text in dict.fromkeys(texts)]
    return {
        "index": page.latent,
        "density": page.density,
        **logits,
        "explanations": explanations,
        "activations": activations,
    }


def _activation(group: Group, example: Shown) -> dict[str, Any]:
    found: dict[str, Any] = {
        "tokens": [filled(token) for token in example.tokens[:_MOST_TOKENS]],
        "values": example.values[:_MOST_TOKENS],
    }
    if group.share is not None:
        found |= {"quantileMin": group.low, "quantileMax": group.high, "quantileFraction": group.share}
    return found
