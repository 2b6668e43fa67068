"""Token ids of documents."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from dictionary_learning.data.document import Conversation, Document, TokenRow
from dictionary_learning.data.token_batch import Row, Run
from dictionary_learning.errors import DataError


def tokenize(documents: Sequence[Document], tokenizer: Any) -> list[list[int] | TokenRow]:
    """Returns the ids of texts and conversations, with nothing put in; rows of ids as they are.

    Raises:
        DataError: there is text, and no tokenizer.
    """
    found: list[list[int] | TokenRow] = []
    for are_rows, several in groupby(documents, key=lambda d: isinstance(d, TokenRow)):
        if are_rows:
            found += [row for row in several if isinstance(row, TokenRow)]
        else:
            texts = as_texts(list(several), tokenizer)
            # long documents are cut by us, so the tokenizer's warning that they are long says nothing
            found += tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return found


def tokenize_framed(texts: Sequence[str], tokenizer: Any, *, special: bool) -> list[tuple[list[int], list[int]]]:
    """Returns the ids of texts, with what the tokenizer puts around each if that is wanted, and 1 where it put one in."""
    if not special:
        made = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return [(ids, [0] * len(ids)) for ids in made]
    made = tokenizer(list(texts), add_special_tokens=True, verbose=False, return_special_tokens_mask=True)
    return list(zip(made["input_ids"], made["special_tokens_mask"], strict=True))


def as_texts(documents: Sequence[Document], tokenizer: Any) -> list[str]:
    """Returns texts as they are, and conversations as the tokenizer's template writes them."""
    if tokenizer is None:
        raise DataError("The model has no tokenizer. Pass tokenizer= to load_model, with the model.")
    return [d.render(tokenizer) if isinstance(d, Conversation) else d for d in documents]  # pyright: ignore[reportReturnType]


def framed_row(ids: list[int], put_in: list[int], document: int, place: int = 0) -> Row:
    """Returns a context of one document, whose places are counted over the tokens that were not put in, from `place` on."""
    runs: list[Run] = []
    for special, several in groupby(put_in):
        n = sum(1 for _ in several)
        runs.append(Run(n, document, -1 if special else place))
        place += 0 if special else n
    return Row(ids, runs)


def runs_of(row: TokenRow, document: int) -> list[Run]:
    """Returns which documents the tokens of a row are of.

    Raises:
        DataError: the row says so, but for another number of tokens.
    """
    if row.runs is None:
        return [Run(len(row.ids), document, row.start or 0)] if row.ids else []
    numbers = iter(row.runs)
    runs = [Run(*three) for three in zip(numbers, numbers, numbers, strict=False)]
    if sum(run.n for run in runs) != len(row.ids):
        raise DataError(
            f"Row {document} holds {len(row.ids)} token ids, and says of {sum(run.n for run in runs)} whose they are. Make the data again."
        )
    return runs
