"""The text of tokens, some of which are only a part of a character.

A byte-level vocabulary cuts a character such as 你 into several tokens, and none of them is text. A
*piece* is the text of a token in which such bytes are kept as Python keeps them in file names
("surrogateescape"). So pieces can be stored by id, as JSON, and are decoded together later: a
character that is split over neighbors is shown at its last token.
"""

import codecs
import functools
import re
from collections.abc import Iterable, Sequence
from typing import Any

from dictionary_learning.errors import DataError

HALF = re.compile("[\ud800-\udfff]")
"""Half of a UTF-16 surrogate pair, which is in no text."""

_UNKNOWN = "\ufffd"
_ESCAPE = "surrogateescape"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_SHOWN = {0xDC00 + byte: f"<0x{byte:02X}>" for byte in range(0x80, 0x100)}
"""Bytes that are no character, as vocabularies of SentencePiece name them."""


def pieces_of(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Returns the piece of each token, with the space before it; its number without a tokenizer."""
    if tokenizer is None:
        return [str(i) for i in ids]
    names = tokenizer.convert_ids_to_tokens(list(ids))
    texts = tokenizer.batch_decode([[i] for i in ids], clean_up_tokenization_spaces=False)
    return [_piece(name, text) or str(i) for name, text, i in zip(names, texts, ids, strict=True)]


def texts_alone(pieces: Iterable[str]) -> list[str]:
    """Returns the text of each token by itself; a byte that is no character is shown as <0xE4>."""
    return [piece.translate(_SHOWN) for piece in pieces]


def texts_together(pieces: Iterable[str]) -> list[str]:
    """Returns the text of each token of a window: "" for one whose character a later one ends."""
    decoder = codecs.getincrementaldecoder("utf-8")(_ESCAPE)
    found: list[str] = []
    for piece in pieces:
        data = piece.encode("utf-8", _ESCAPE)
        if found and not _continues(data):
            found[-1] += decoder.decode(b"", True)  # what is cut off there
        found.append(decoder.decode(data))
    if found:
        found[-1] += decoder.decode(b"", True)
    return texts_alone(found)


def texts_of(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Returns the text of each token of a window, as `texts_together`."""
    return texts_together(pieces_of(tokenizer, ids))


def ids_of(tokenizer: Any, text: str, *, add_special_tokens: bool) -> list[int]:
    """Returns the ids of a text's tokens.

    Raises:
        DataError: It has half of a surrogate pair, of which tokenizers make no sense.
    """
    if HALF.search(text):
        raise DataError(f"The text {text[:40]!r} has half of a UTF-16 surrogate pair. Remove or replace it.")
    return tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]


def _piece(name: Any, text: str) -> str:
    if _UNKNOWN in text and (data := _bytes_of(name)) is not None:
        return data.decode("utf-8", _ESCAPE)
    if name is None or not text or _UNKNOWN in text:
        return str(name or text)
    # one alone loses the space before it in some tokenizers
    is_cut = isinstance(name, str) and name.startswith("\u2581") and not text.startswith(" ")
    return f" {text}" if is_cut else text


def _continues(data: bytes) -> bool:
    """Returns whether bytes go on with a character that began before."""
    return data[:1] != b"" and data[0] & 0xC0 == 0x80


def _bytes_of(name: Any) -> bytes | None:
    """Returns the bytes that a token's name stands for, if it does."""
    if not isinstance(name, str):
        return name if isinstance(name, bytes) else None
    if byte := _BYTE.fullmatch(name):
        return bytes.fromhex(byte[1])
    alphabet = _alphabet()
    return bytes(alphabet[c] for c in name) if all(c in alphabet for c in name) else None


@functools.cache
def _alphabet() -> dict[str, int]:
    """Returns the byte of each letter of byte-level vocabularies: visible bytes are themselves, and
    the others, in order, the letters from 256 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(0x100) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(0x100 + n): byte for n, byte in enumerate(hidden)}
