"""Contexts that are made once: `pretokenize` writes them, `as_source` reads them.

The documents of the tokens (`TokenRow.runs`) are stored beside the ids, and the tokenizer, the
length and the rule for BOS and separators beside the data. A stream with the same settings serves
the rows as they are; one with another length packs the documents again.
"""

import itertools
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dictionary_learning._border import checked
from dictionary_learning._plain import counted
from dictionary_learning._progress import Progress
from dictionary_learning._types import TextLike
from dictionary_learning.data._document import RUNS_COLUMN
from dictionary_learning.data._hub import save_with_metadata, write_rows
from dictionary_learning.data._streams import as_token_stream
from dictionary_learning.data._tokenizing import fingerprint
from dictionary_learning.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

_ROWS_AT_ONCE = 256
_VERSION = 1


@checked(wraps=DataError)
def pretokenize(
    data: TextLike,
    tokenizer: Any,
    out: str | os.PathLike[str],
    *,
    ctx_len: int = 128,
    push: str | None = None,
    **options: Any,
) -> int:
    """Writes the contexts of some data to a folder, which appears when all of them are written.

    Args:
        data: Any data that `as_source` accepts; read from its first document.
        out: The folder; it must not exist.
        ctx_len: Tokens in a context.
        push: The name of a data set on the hub, "user/name", that is created as well.
        options: Options of `TokenStream` for BOS, separators and cuts.

    Returns:
        The number of contexts written.

    Raises:
        ConfigError: The folder exists.
        DataError: The data holds no text.
    """
    folder = Path(out).expanduser()
    if folder.exists():
        raise ConfigError(f"'{folder}' is there already; name a folder that is not, or remove it.")
    stream = as_token_stream(data, tokenizer, ctx_len=ctx_len, fresh=True, **options)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as place:
        written = Path(place)  # on the same disk, so that the folder can be moved in one step
        rows = itertools.chain.from_iterable(iter(lambda: stream.take_rows(_ROWS_AT_ONCE), []))
        rows = _counted(rows)
        records = ({"input_ids": row.ids, RUNS_COLUMN: list(itertools.chain(*row.runs))} for row in rows)
        dataset = write_rows(records, written / "rows.arrow", {"input_ids": "int32", RUNS_COLUMN: "int64"})
        n_rows = len(dataset)
        if not n_rows:
            raise DataError(f"{stream.source.name} holds no text. Provide at least one document that is not empty.")
        metadata = {
            "version": _VERSION,
            "source": stream.source.name,
            "tokenizer": tokenizer.name_or_path,
            "fingerprint": fingerprint(tokenizer),
            "ctx_len": stream.ctx_len,
            "packing": stream.packing,
        }
        save_with_metadata(dataset, written / "saved", metadata, push)
        del dataset  # holds the file open
        shutil.move(written / "saved", folder)
    logger.info("Wrote %s of %d tokens to %s.", counted(n_rows, "context"), ctx_len, folder)
    return n_rows


def _counted(rows: Iterable[Any]) -> Iterator[Any]:
    """Returns rows, and shows how many there were."""
    with Progress("tokenizing", None, "contexts") as progress:
        for row in rows:
            yield row
            progress.advance()
