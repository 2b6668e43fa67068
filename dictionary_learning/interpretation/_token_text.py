"""The text of single tokens, and the tokens of a text."""

import re
from collections.abc import Sequence
from typing import Any

from dictionary_learning.errors import DataError

HALF = re.compile("[\ud800-\udfff]")
"""Half of a UTF-16 surrogate pair, which is in no text."""


def texts_of(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Returns the text of each token, with the space before it; its number without a tokenizer.

    A part of a character is shown by the token's name.
    """
    if tokenizer is None:
        return [str(i) for i in ids]
    names = tokenizer.convert_ids_to_tokens(list(ids))
    texts = tokenizer.batch_decode([[i] for i in ids], clean_up_tokenization_spaces=False)
    return [_text_of(name, text, i) for name, text, i in zip(names, texts, ids, strict=True)]


def ids_of(tokenizer: Any, text: str, *, add_special_tokens: bool) -> list[int]:
    """Returns the ids of a text's tokens.

    Raises:
        DataError: It has half of a surrogate pair, of which tokenizers make no sense.
    """
    if HALF.search(text):
        raise DataError(f"The text {text[:40]!r} has half of a UTF-16 surrogate pair. Remove or replace it.")
    return tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]


def _text_of(name: str | None, text: str, token: int) -> str:
    if name is None or not text or "\ufffd" in text:
        return name or text or str(token)
    # one alone loses the space before it in some tokenizers
    return f" {text}" if name.startswith("\u2581") and not text.startswith(" ") else text
