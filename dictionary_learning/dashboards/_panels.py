"""What the page of each latent shows, in files of a few latents, loaded when one is opened."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from dictionary_learning._progress import Progress
from dictionary_learning.dashboards._pages import DictionaryPage
from dictionary_learning.dashboards._scripts import number, rounded, write_script
from dictionary_learning.interpretation import Example, Explanation, LatentContexts, Neighbors

PER_FILE = 32
"""Latents in a file."""
_TOP_WORDS = 6
_PROMOTED_WORDS = 4


class Words:
    """The texts by which latents are found in the list, one line for each latent."""

    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.explanations: list[str] = []

    def add(self, contexts: LatentContexts, promoted: Sequence[str], table: "Tokens", said: Iterable[str]) -> None:
        """Adds a latent: tokens where it is most active, tokens that it promotes, explanations."""
        peaks = [table.text(int(example.token_ids[example.peak])) for example in contexts.top]
        known = list(dict.fromkeys(filter(None, peaks)))[:_TOP_WORDS]  # an empty word divides the two
        more = [word for word in dict.fromkeys(promoted) if word and word not in known]
        self.tokens.append("\t".join(_line(word) for word in [*known, "", *more[:_PROMOTED_WORDS]]))
        self.explanations.append("\t".join(_line(text) for text in said))


class Tokens:
    """Token ids of one file, which holds the text of each once."""

    def __init__(self, page: DictionaryPage, ids: Iterable[int]):
        found = sorted(set(ids))
        self.texts = [str(text) for text in page.token_text(found)] if found else []
        self._place = {token: place for place, token in enumerate(found)}

    def text(self, token: int) -> str:
        """Returns the text of a token."""
        return self.texts[self._place[token]]

    def places(self, ids: Iterable[int]) -> list[int]:
        """Returns the places of tokens in the file's table."""
        return [self._place[token] for token in ids]


def write_panels(
    page: DictionaryPage, number_of_page: int, folder: Path, names: Sequence[str], progress: Progress
) -> Words:
    """Writes the files of a dictionary's latents; returns the texts by which they are found."""
    words = Words()
    for start in range(0, page.dict_size, PER_FILE):
        latents = range(start, min(start + PER_FILE, page.dict_size))
        contexts = [page.contexts(latent) for latent in latents]
        table = Tokens(page, _token_ids(page, latents, contexts))
        panels = [_panel(page, i, of, table, names) for i, of in zip(latents, contexts, strict=True)]
        for latent, of in zip(latents, contexts, strict=True):
            promoted = [] if page.effects is None else page.effects.promoted[latent].tolist()
            said = [explanation.text for explanation in page.explanations.get(latent, ())]
            words.add(of, [table.text(token) for token in promoted], table, said)
        part = start // PER_FILE
        key = f"{number_of_page}/panels-{part}"
        write_script(folder / f"panels-{part}.js", key, {"tokens": table.texts, "latents": panels})
        progress.advance(len(latents))
    return words


def score_of(explanations: Sequence[Explanation]) -> float:
    """Returns the best mean score of explanations, or NaN if none has any."""
    means = [sum(one.scores.values()) / len(one.scores) for one in explanations if one.scores]
    return max(means, default=float("nan"))


def _panel(
    page: DictionaryPage, latent: int, contexts: LatentContexts, table: Tokens, names: Sequence[str]
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "histogram": [number(_upper(page, latent)), page.statistics.histogram[latent].tolist()],
        "top": [_example(one, table) for one in contexts.top],
        "quantiles": [[_example(one, table) for one in part] for part in contexts.quantiles],
        "quiet": [_example(one, table) for one in contexts.quiet],
    }
    if page.effects is not None:
        effects = page.effects
        for name in ("promoted", "suppressed"):
            logits = rounded(getattr(effects, f"{name}_logits")[latent].tolist())
            found[name] = [table.places(getattr(effects, name)[latent].tolist()), logits]
        ends = rounded([effects.low[latent].item(), effects.high[latent].item()])
        found["logits"] = [*ends, effects.histogram[latent].tolist()]
    if page.neighbors is not None:
        found["neighbors"] = _neighbors(page.neighbors, latent)
    if page.matches:
        found["matches"] = [[names.index(name), _neighbors(m, latent)] for name, m in page.matches.items()]
    if page.explanations.get(latent):
        found["explanations"] = [
            [one.text, one.explainer, {name: number(score) for name, score in one.scores.items()}]
            for one in page.explanations[latent]
        ]
    return found


def _upper(page: DictionaryPage, latent: int) -> float:
    """Returns the end of the last bin of a latent's histogram."""
    ends = page.statistics.maximum if page.statistics.upper is None else page.statistics.upper
    return float(ends[latent])


def _example(example: Example, table: Tokens) -> list[Any]:
    """Returns [tokens, places that are active, their activations, peak, document, position]."""
    activations: list[float] = example.activations.tolist()
    active = [place for place, value in enumerate(activations) if value]
    values = rounded(activations[place] for place in active)
    ids = table.places(example.token_ids.tolist())
    return [ids, active, values, int(example.peak), int(example.document), int(example.position)]


def _neighbors(neighbors: Neighbors, latent: int) -> list[Any]:
    return [neighbors.latents[latent].tolist(), rounded(neighbors.similarities[latent].tolist())]


def _token_ids(page: DictionaryPage, latents: range, contexts: Iterable[LatentContexts]) -> Iterable[int]:
    for of in contexts:
        for part in (of.top, *of.quantiles, of.quiet):
            for example in part:
                yield from example.token_ids.tolist()
    if page.effects is not None:
        rows = slice(latents.start, latents.stop)
        yield from torch.cat([page.effects.promoted[rows], page.effects.suppressed[rows]]).flatten().tolist()


def _line(text: str) -> str:
    """Returns a text without the characters that divide the lines and the words."""
    return text.replace("\n", "↵").replace("\t", "→").replace("\r", "␍")
