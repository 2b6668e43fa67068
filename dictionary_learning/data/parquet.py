"""Documents in a Parquet file."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dictionary_learning.data.columns import RUNS_COLUMN, ReadOptions, read_record, require_column
from dictionary_learning.data.reading import Mark, Reader
from dictionary_learning.errors import DataError

_ROWS_AT_ONCE = 256


@dataclasses.dataclass(frozen=True)
class Parquet(Reader):
    """The rows of a Parquet file. It resumes at a group of rows; only those of that group that were read are read again.

    Args:
        path: the file.
        column: the column that holds the documents.
        options: how they are read.
    """

    path: Path
    column: str
    options: ReadOptions

    def read(self, mark: Mark = None, epoch: int = 0) -> Iterator[tuple[Any, Mark]]:
        """Yields the documents, with the number of the next row."""
        import pyarrow.parquet

        start, n = mark or 0, 0
        with pyarrow.parquet.ParquetFile(self.path) as file:
            columns = [name for name in (self.column, RUNS_COLUMN) if name in file.schema_arrow.names]
            for group in range(file.num_row_groups):
                in_group = file.metadata.row_group(group).num_rows
                if n + in_group <= start:
                    n += in_group
                    continue
                for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=columns):
                    if n + len(batch) <= start:
                        n += len(batch)
                        continue
                    for record in batch.to_pylist():
                        n += 1
                        if n > start:
                            yield read_record(record, self.column, self.options.chat), n


def parquet_reader(path: Path, options: ReadOptions) -> Parquet:
    """Returns a reader of a Parquet file.

    Raises:
        DataError: it is no such file, or has no such column.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        names = pyarrow.parquet.read_schema(path).names
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"'{path}' is no Parquet file ({str(error).splitlines()[0]}). Give another file.") from error
    return Parquet(path, require_column(names, options.text_column, f"'{path.name}'"), options)
