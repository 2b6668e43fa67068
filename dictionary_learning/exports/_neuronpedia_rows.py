"""Rows of Neuronpedia's tables: latents, their examples and their explanations."""

import hashlib
import json
from typing import Any, NamedTuple

from dictionary_learning.capture._hook_names import hook_name
from dictionary_learning.exports._facts import Group, LatentFacts, LatentPage

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


class Rows(NamedTuple):
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
