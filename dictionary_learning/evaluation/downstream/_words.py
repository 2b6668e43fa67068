"""Words of one token, and their places in prompts that ask for the first letter."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from torch import Tensor

from dictionary_learning.errors import DataError, ModelError
from dictionary_learning.evaluation.downstream._rows import bos_ids
from dictionary_learning.interventions._inputs import as_tokens
from dictionary_learning.models import TracedModel

_SPACES = ("\u0120", "\u2581")
"""What tokens of byte-pair and sentence-piece vocabularies have for a space."""
_LEAST_LETTERS = 2


class Words(NamedTuple):
    """Words of one token."""

    words: tuple[str, ...]
    ids: Int[np.ndarray, "n"]

    @property
    def letters(self) -> np.ndarray:
        """The first letter of each, in lower case."""
        return np.array([word[0].lower() for word in self.words])


def words_of(model: TracedModel, wanted: Sequence[str] | None = None) -> Words:
    """Returns the words of a vocabulary: tokens of Latin letters alone, after a space.

    Where no token has a space in front, all tokens of letters are words.

    Args:
        model: the language model.
        wanted: only these words, in their order.

    Raises:
        ModelError: there is no tokenizer.
        DataError: a word is no single token.
    """
    if model.tokenizer is None:
        raise ModelError(f"{model.name} has no tokenizer, and words are needed. Set load_model(..., tokenizer=).")
    n_tokens = len(model.tokenizer)
    tokens = [str(token) for token in model.tokenizer.convert_ids_to_tokens(list(range(n_tokens)))]
    spaced = {token[1:]: n for n, token in enumerate(tokens) if token.startswith(_SPACES)}
    plain = {token: n for n, token in enumerate(tokens)}
    known = {word: n for word, n in (spaced or plain).items() if _is_word(word)}
    if wanted is None:
        return Words(tuple(known), np.fromiter(known.values(), dtype=int, count=len(known)))
    every = spaced or plain
    for word in wanted:
        if word not in every or not word[:1].isalpha():
            raise DataError(f"The word {word!r} is no single token of {model.name}. Leave it out.")
    return Words(tuple(wanted), np.array([every[word] for word in wanted], dtype=int))


def letter_prefix(model: TracedModel, examples: Sequence[str]) -> Int[Tensor, "ctx"]:
    """Returns the ids before the word: of lines such as " cat has the first letter: C"."""
    lines = [f" {word} has the first letter: {word[0].upper()}\n" for word in examples]
    if lines:
        return as_tokens(model, ["".join(lines)]).input_ids[0]
    return bos_ids(model)


def _is_word(text: str) -> bool:
    return len(text) >= _LEAST_LETTERS and text.isascii() and text.isalpha()
