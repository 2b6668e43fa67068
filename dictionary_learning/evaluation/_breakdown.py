"""Which tokens carry the error: by position in the context, and by kind of token."""

import unicodedata
from collections.abc import Collection
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from dictionary_learning._hardware import float64
from dictionary_learning.data import TokenBatch
from dictionary_learning.evaluation._metrics import EvaluationBatch, ratios
from dictionary_learning.evaluation._sums import DocumentSums
from dictionary_learning.latents import Latents

CLASSES = ("special", "word start", "word part", "number", "punctuation", "space", "other")
"""Kinds of tokens: BOS and its like; letters after a space; letters that go on; digits; punctuation
and symbols; white space; bytes and mixtures."""
_SPACES = str.maketrans({"\u0120": " ", "\u2581": " ", "\u010a": "\n", "\u0109": "\t", "\u010d": "\r"})
"""What tokenizers write for a space, a line feed, a tab and a carriage return."""
_PART_MARK = "##"
"""What WordPiece writes before a token that goes on with a word."""


class TokenKinds:
    """The kind and the position of each token, as columns of 1 and 0.

    Args:
        tokenizer: a Hugging Face tokenizer; None where only special tokens are known.
        special_ids: ids of BOS, separators and padding.
        ctx_len: tokens in a context.
    """

    def __init__(self, tokenizer: Any, special_ids: Collection[int], ctx_len: int):
        self.tokenizer, self.special_ids = tokenizer, set(special_ids)
        self.special_ids |= set(getattr(tokenizer, "all_special_ids", ()))
        self.positions = ["0"]
        """Ranges of positions, each twice as wide as the one before it."""
        while (start := 2 ** (len(self.positions) - 1)) < ctx_len:
            end = min(2 * start, ctx_len) - 1
            self.positions.append(str(start) if start == end else f"{start}-{end}")
        self._known: dict[int, int] = {}

    @property
    def names(self) -> list[tuple[str, str]]:
        """For each column whether it is of a "position" or a "class", and its name."""
        return [("position", name) for name in self.positions] + [("class", name) for name in CLASSES]

    def columns(self, tokens: TokenBatch) -> Bool[Tensor, "batch ctx columns"]:
        """Returns which columns each token is in: that of its position and that of its kind."""
        ids, inverse = tokens.input_ids.cpu().unique(return_inverse=True)
        for one in ids.tolist():
            if one not in self._known:
                self._known[one] = CLASSES.index(self._class_of(one))
        kind = torch.tensor([self._known[one] for one in ids.tolist()])[inverse]  # (batch, ctx)
        position = tokens.position_ids.cpu()
        # 0, 1, 2-3, 4-7: the exact logarithm of whole numbers
        place = torch.frexp(position.double()).exponent.long().clamp(0, len(self.positions) - 1)
        both = [
            one_hot(place, len(self.positions)),
            one_hot(kind, len(CLASSES)),
        ]
        return torch.cat(both, dim=-1).bool()

    def _class_of(self, token: int) -> str:
        if token in self.special_ids:
            return "special"
        written = None if self.tokenizer is None else self.tokenizer.convert_ids_to_tokens(token)
        return "other" if not isinstance(written, str) else class_of_token(written)


def class_of_token(written: str) -> str:
    """Returns the kind of a token, as its tokenizer writes it."""
    text = written.translate(_SPACES)
    inside = text.strip().removeprefix(_PART_MARK)
    if not inside:
        return "space" if text else "other"
    categories = {unicodedata.category(letter)[0] for letter in inside}  # L, M, N, P, S and others
    if categories <= {"N"}:
        return "number"
    if categories <= {"P", "S"}:
        return "punctuation"
    if categories <= {"L", "M", "P"} and "L" in categories:
        return "word start" if text[0].isspace() else "word part"
    return "other"


class Breakdown:
    """Sums over the tokens of each column of `TokenKinds`."""

    def __init__(self) -> None:
        self.by_document = DocumentSums()
        self.sums: dict[str, Tensor] = {}

    def update(self, batch: EvaluationBatch, columns: Bool[Tensor, "batch columns"]) -> None:
        """Adds a batch."""
        x, x_hat = float64(batch.x), float64(batch.x_hat)  # (batch, dim)
        member = columns.to(x.device, torch.float64)
        error = (x - x_hat).pow(2).sum(-1, keepdim=True)  # (batch, 1)
        active = float64(_active(batch.latents)).to(x.device).unsqueeze(1)
        values = {"n": member, "error_squared": member * error, "active": member * active}
        self.by_document.add(batch.groups, values)
        for name, value in (("x", member.T @ x), ("x_squared", (member.T @ x.pow(2).sum(-1)))):
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def merge(self, other: "Breakdown", index: Int[Tensor, "groups"] | None = None) -> "Breakdown":
        """Adds the sums of another; returns self."""
        self.by_document.merge(other.by_document, index)
        for name, value in other.sums.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        return self

    def figures(self, weights: Float[Tensor, "resamples groups"] | None = None) -> dict[str, Tensor]:
        """Returns figures of each column that have an error bar, each (resamples, columns)."""
        totals = self.by_document.totals(weights)
        n, error = totals["n"], totals["error_squared"]
        # each token is in two columns
        return {
            "share_of_tokens": n / (n.sum(-1, keepdim=True) / 2),
            "share_of_error": ratios(error, error.sum(-1, keepdim=True).expand_as(error) / 2),
            "mse": ratios(error, n),
            "l0": ratios(totals["active"], n),
        }

    def fvu(self) -> Float[Tensor, "columns"]:
        """Returns sum |e|^2 / sum |x - mean x|^2 of each column; the mean is that of all tokens."""
        totals = self.by_document.totals()
        n = totals["n"][0]  # (columns,)
        x, squared = self.sums["x"].cpu(), self.sums["x_squared"].cpu()
        mean = x.sum(0) / n.sum()  # both count each token twice
        variance = squared - 2 * x @ mean + n * mean.square().sum()
        return ratios(totals["error_squared"][0], variance)


def _active(latents: Latents) -> Int[Tensor, "batch"]:
    """Returns the number of non-zero latents of each token."""
    if isinstance(latents, Tensor):
        return (latents != 0).sum(-1)
    counts = torch.zeros(latents.support.n_tokens, dtype=torch.long, device=latents.values.device)
    return counts.index_add(0, latents.support.tokens, (latents.values != 0).flatten().long())
