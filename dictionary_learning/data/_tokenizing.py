"""Token ids of documents, the special tokens around them, and checks of the vocabulary."""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

from dictionary_learning.data._document import Conversation, Document, TokenRow
from dictionary_learning.data._source import Source, check_choice
from dictionary_learning.data._token_batch import Run
from dictionary_learning.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

BosPolicy = Literal["document", "context", "both", "none"]
NO_TOKENIZER = "The model has no tokenizer. Pass tokenizer= to load_model, with the model."


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """The token ids that are inserted, and whether BOS begins each document and each context."""

    bos: int | None  # None if it is not inserted
    at_document: bool
    at_context: bool
    separator: int | None  # ends each document


def special_tokens(
    tokenizer: Any, *, bos: BosPolicy | None, separator: int | str | None, add_special_tokens: bool
) -> SpecialTokens:
    """Resolves the settings of a `TokenStream`, which describes them, for a tokenizer."""
    check_choice("bos", bos, (None, *get_args(BosPolicy)))
    if not add_special_tokens and (bos not in (None, "none") or separator not in ("auto", None)):
        raise ConfigError(
            f"Got add_special_tokens=False with bos={bos!r} and separator={separator!r}; leave one of them out."
        )
    known = None if tokenizer is None else tokenizer.bos_token_id
    if known is None and bos in ("document", "context", "both"):
        raise ConfigError(f"Got bos={bos!r}, and the tokenizer has no BOS token. Set bos='none', or a separator.")
    if not add_special_tokens or known is None:
        bos = "none"
    at_document, at_context = bos in (None, "both", "document"), bos in (None, "both", "context")
    if separator == "auto":
        ends = add_special_tokens and not at_document
        separator = tokenizer.eos_token_id if ends and tokenizer is not None else None
    inserted = known if at_document or at_context else None
    return SpecialTokens(inserted, at_document, at_context, _token_id(tokenizer, separator))


def _token_id(tokenizer: Any, token: int | str | None, name: str = "separator") -> int | None:
    if token is None or isinstance(token, int):
        return token
    if tokenizer is None:
        raise ConfigError(f"Got {name}={token!r} without a tokenizer. Pass the token's id.")
    named = {"eos": tokenizer.eos_token_id, "bos": tokenizer.bos_token_id}
    found = named[token] if token in named else tokenizer.get_vocab().get(token)
    if found is None:
        raise ConfigError(
            f"Got {name}={token!r}, which the tokenizer does not have. Set another token as its vocabulary writes it, "
            "or its id."
        )
    return found


def excluded_ids(tokenizer: Any, tokens: Sequence[int | str], n_known: int | None) -> tuple[int, ...]:
    """Returns the ids of tokens to leave out, given as ids or as the vocabulary writes them.

    Args:
        n_known: The number of known token ids; None where it is not known.

    Raises:
        ConfigError: There is no such token.
    """
    found: list[int] = []
    for token in tokens:
        known = _token_id(tokenizer, token, "exclude_tokens")
        assert known is not None
        if known < 0 or (n_known is not None and known >= n_known):
            last = "" if n_known is None else f" to {n_known - 1}"
            raise ConfigError(f"Got exclude_tokens={token}; the vocabulary has the ids from 0{last}.")
        found.append(known)
    return tuple(dict.fromkeys(found))


def tokenize(documents: Sequence[Document], tokenizer: Any, *, special: bool) -> list[tuple[list[int], list[int]]]:
    """Returns the ids of each document, and a mask that is 1 on tokens that the tokenizer inserted.

    Rows of ids stay as they are; all texts between them are tokenized in one call, with the
    tokenizer's special tokens if `special`.
    """
    others = [document for document in documents if not isinstance(document, TokenRow)]
    made: Iterator[tuple[list[int], list[int]]] = iter(())
    if others:
        if tokenizer is None:
            raise DataError(NO_TOKENIZER)
        texts = [d.render(tokenizer) if isinstance(d, Conversation) else d for d in others]
        # we cut long documents, so the tokenizer's warning about their length (verbose) is wrong
        found = tokenizer(texts, add_special_tokens=special, verbose=False, return_special_tokens_mask=special)
        masks = found["special_tokens_mask"] if special else [[0] * len(ids) for ids in found["input_ids"]]
        made = zip(found["input_ids"], masks, strict=True)
    return [(d.ids, [0] * len(d.ids)) if isinstance(d, TokenRow) else next(made) for d in documents]


def runs_of(row: TokenRow, document: int) -> list[Run]:
    """Returns the documents of the tokens of a row, which is one document if it stores none."""
    if row.runs is None:
        return [Run(len(row.ids), document, row.start or 0)] if row.ids else []
    numbers = iter(row.runs)  # a flat list: (n, document, start) for each run
    runs = [Run(*three) for three in zip(numbers, numbers, numbers, strict=False)]
    n_described = sum(run.n for run in runs)
    if n_described != len(row.ids):
        raise DataError(
            f"Row {document} holds {len(row.ids)} token ids, and stores the documents of {n_described}. Write the "
            "data again."
        )
    return runs


def fingerprint(tokenizer: Any) -> str:
    """Returns a hash of the vocabulary and the special ids: equal for tokenizers with equal ids."""
    # special ids too: the same vocabulary with another BOS makes other contexts
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    entries = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps([entries, special]).encode()).hexdigest()[:32]


def vocabulary_size(tokenizer: Any) -> int:
    """Returns the smallest number that is larger than every id of the tokenizer."""
    # `len` counts tokens; ids may have gaps
    return max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=0))


def check_tokenizer(source: Source, tokenizer: Any) -> None:
    """Raises a `DataError`, or warns, if the data tells of another tokenizer."""
    known = source.tokenized
    if known is None or tokenizer is None:
        return
    name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
    if known.fingerprint is not None:
        if known.fingerprint != fingerprint(tokenizer):
            raise DataError(
                f"The token ids of {source.name} were made by the tokenizer '{known.tokenizer}', whose vocabulary is "
                f"not that of '{name}'. Use data that this model's tokenizer made, or the text itself."
            )
        return
    if known.tokenizer is not None and known.tokenizer != name:
        logger.warning(
            "The token ids of %s were made by the tokenizer '%s', and the model's is called '%s'. If their "
            "vocabularies differ, every activation belongs to the wrong token: use the text itself then.",
            source.name, known.tokenizer, name,
        )  # fmt: skip
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if known.first_id is not None and bos is not None and known.first_id not in (bos, eos):
        logger.warning(
            "The rows of %s all begin with the token id %d, and the BOS token of '%s' is %d. If that is the BOS "
            "token of another tokenizer, every activation belongs to the wrong token: use the text itself then.",
            source.name, known.first_id, name, bos,
        )  # fmt: skip
