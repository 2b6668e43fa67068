"""Sources that fail now and then: each document is read once, or the error says why not."""

import errno
import itertools
import json
import random

import datasets
import httpx
import pyarrow.parquet
import pytest

from dictionary_learning.data import _retrying as retrying, as_source, mix
from dictionary_learning.errors import DataError
from tests import tiny

DOCUMENTS = tiny.documents(40)


def http(status):
    request = httpx.Request("GET", "https://example.org")
    return httpx.HTTPStatusError(f"{status}", request=request, response=httpx.Response(status, request=request))


PASSING = {
    "connection": lambda: ConnectionResetError("reset"),
    "timeout": lambda: TimeoutError("timed out"),
    "device": lambda: OSError(errno.EIO, "Input/output error"),
    "stale": lambda: OSError(errno.ESTALE, "Stale file handle"),
    "httpx": lambda: httpx.ReadTimeout("slow"),
    "429": lambda: http(429),
    "503": lambda: http(503),
}
LASTING = {
    "no file": lambda: FileNotFoundError("gone"),
    "not allowed": lambda: PermissionError("no"),
    "404": lambda: http(404),
    "401": lambda: http(401),
    "damage": lambda: OSError("Corrupt snappy compressed data"),
    "other": lambda: KeyError("text"),
}


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    found = []
    monkeypatch.setattr(retrying.time, "sleep", found.append)
    return found


class Failing:
    """A list that fails at some reads."""

    def __init__(self, documents, error, share=0.3, seed=0):
        self.documents, self.error, self.chances, self.share = documents, error, random.Random(seed), share

    def __deepcopy__(self, memo):
        return self  # the chances go on, as those of a network

    def __iter__(self):
        return (self._given(text) for text in self.documents)

    def _given(self, text):
        if self.chances.random() < self.share:
            raise self.error()
        return text


def rows(failing):
    for text in failing:
        yield {"text": text}


SOURCES = {
    "iterable": lambda failing: as_source(failing),
    "stream": lambda failing: as_source(datasets.IterableDataset.from_generator(rows, gen_kwargs={"failing": failing})),
    "shuffled": lambda failing: as_source(failing, shuffle_seed=3, shuffle_buffer=7),
    "mixture": lambda failing: mix([failing, DOCUMENTS[:9]], exhausted="continue"),
    "held out": lambda failing: as_source(failing).hold_out(4)[0],
}


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("error", PASSING)
def test_error_that_passes_loses_and_doubles_no_document(kind, error, waits, caplog):
    expected = list(SOURCES[kind](Failing(DOCUMENTS, PASSING[error], share=0)))
    assert list(SOURCES[kind](Failing(DOCUMENTS, PASSING[error], share=0.03))) == expected
    assert len(waits) == caplog.text.count("could not be read") > 0


@pytest.mark.parametrize("error", LASTING)
def test_error_that_lasts_is_raised_at_once(error, waits):
    with pytest.raises(DataError) as caught:
        list(as_source(Failing(DOCUMENTS, LASTING[error], share=1)))
    assert not waits and type(caught.value.__cause__) is type(LASTING[error]())


def test_tries_end_and_reading_goes_on_there_later(waits):
    failing = Failing(DOCUMENTS, PASSING["503"], share=0)
    source = as_source(failing)
    found = list(itertools.islice(source, 5))
    failing.share = 1
    with pytest.raises(DataError, match=f"Document 5 of .* in {retrying.TRIES} tries .HTTPStatusError: 503"):
        next(source)
    assert waits == [2.0**n for n in range(retrying.TRIES - 1)]
    failing.share = 0
    assert found + list(source) == DOCUMENTS


def test_iterator_that_fails_is_not_taken_to_have_ended(waits):
    source = as_source(iter(Failing(DOCUMENTS, PASSING["timeout"], share=1)))
    with pytest.raises(DataError, match="TimeoutError: timed out"):
        next(source)
    with pytest.raises(DataError, match="can be read only once"):
        next(source)
    assert not waits


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_file_on_a_remote_disk_is_opened_again(name, tmp_path, monkeypatch, waits):
    import gzip

    from dictionary_learning.data import _files as files

    path = tmp_path / name
    lines = "\n".join(DOCUMENTS if name == "a.txt" else [json.dumps({"text": text}) for text in DOCUMENTS]).encode()
    if name == "a.parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": DOCUMENTS}), path, row_group_size=5)
    else:
        path.write_bytes(gzip.compress(lines) if name.endswith("gz") else lines)
    source, calls, read_record, as_document = (
        as_source(str(path)),
        itertools.count(),
        files.read_record,
        files.as_document,
    )

    def fails(read):
        def given(*arguments):
            if next(calls) % 7 == 3:
                raise OSError(errno.EIO, "Input/output error")
            return read(*arguments)

        return given

    monkeypatch.setattr(files, "read_record", fails(read_record))
    monkeypatch.setattr(files, "as_document", fails(as_document))
    assert list(source) == DOCUMENTS
    assert waits
