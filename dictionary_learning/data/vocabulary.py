"""Whether token ids are of the tokenizer that they will be read with."""

import hashlib
import json
import logging
from typing import Any

from dictionary_learning.data.source import Source
from dictionary_learning.errors import DataError

logger = logging.getLogger(__name__)


def fingerprint(tokenizer: Any) -> str:
    """Returns a hash of a tokenizer's vocabulary and special ids: alike for tokenizers that give the same ids."""
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    entries = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps([entries, special]).encode()).hexdigest()[:32]


def size(tokenizer: Any) -> int:
    """Returns the smallest number that no id of the tokenizer reaches."""
    return max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=0))


def check_tokenizer(source: Source, tokenizer: Any) -> None:
    """Checks that a source's ids, if it has any, were made by this tokenizer, as far as the data says.

    Raises:
        DataError: they were made by another one.
    """
    known = source.tokenized
    if known is None or tokenizer is None:
        return
    mine = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
    if known.fingerprint is not None:
        if known.fingerprint != fingerprint(tokenizer):
            raise DataError(
                f"The token ids of {source.name} were made by the tokenizer '{known.tokenizer}', whose vocabulary is not that of '{mine}'. "
                "Give data that this model's tokenizer made, or the text itself."
            )
    elif known.tokenizer is not None and known.tokenizer != mine:
        logger.warning(
            "The token ids of %s were made by the tokenizer '%s', and the model's is called '%s'. If their vocabularies differ, every "
            "activation is of the wrong token: give the text itself then.",
            source.name,
            known.tokenizer,
            mine,
        )
    special = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    if (
        known.fingerprint is None
        and known.first_id is not None
        and known.first_id not in special
        and special[0] is not None
    ):
        logger.warning(
            "The rows of %s all begin with the token id %d, and the BOS token of '%s' is %d. If that is the BOS token of another tokenizer, "
            "every activation is of the wrong token: give the text itself then.",
            source.name,
            known.first_id,
            mine,
            special[0],
        )


def check_ids(ids: list[int], vocab_size: int, where: str) -> None:
    """Checks that all ids are in the vocabulary.

    Raises:
        DataError: one is not; the message names where it stands.
    """
    if ids and (max(ids) >= vocab_size or min(ids) < 0):
        place = next(n for n, i in enumerate(ids) if not 0 <= i < vocab_size)
        raise DataError(
            f"{where} has the token id {ids[place]} at place {place}, and the tokenizer knows ids from 0 to {vocab_size - 1}. "
            "The data were made by another tokenizer, or read as another dtype; give data of this model's, or the text itself."
        )
