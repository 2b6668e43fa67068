"""Errors that pass, of a network, a hub or a remote file system: what failed is tried again.

`datasets` and the hub's client try a request again by themselves; this is for what they give up.
"""

import errno
import itertools
import logging
import time
from collections.abc import Callable
from typing import TypeVar

from dictionary_learning.errors import DataError

logger = logging.getLogger(__name__)

T = TypeVar("T")

TRIES = 8
FIRST_WAIT = 1.0  # seconds; each further wait is twice as long, so all are about two minutes
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
_LASTING_NUMBERS = (errno.EINVAL, errno.ENAMETOOLONG, errno.ENOSPC, errno.EROFS, errno.EMFILE, errno.ENFILE)
_OF_NETWORKS = {"TransportError", "ClientError", "IncompleteRead", "ProtocolError"}
"""Errors of httpx, aiohttp, http.client and urllib3 that are no `OSError`."""


def is_transient(error: BaseException) -> bool:
    """Returns whether an error may pass: of a connection or a device, HTTP 408, 429 and 5xx."""
    status = getattr(getattr(error, "response", None), "status_code", getattr(error, "status", None))
    if isinstance(status, int):
        return status in (408, 429) or status >= 500
    names = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, _LASTING) or "OfflineModeIsEnabled" in names:
        return False
    if type(error) is OSError:  # pyarrow raises one without a number for damaged files
        return error.errno is not None and error.errno not in _LASTING_NUMBERS
    return isinstance(error, OSError) or bool(names & _OF_NETWORKS)


def wait_or_raise(error: Exception, n_failed: int, what: str) -> None:
    """Waits before the next try, if an error may pass and there is one.

    Raises:
        DataError: it was the last try.
    """
    if not is_transient(error):
        raise error
    said = f"{type(error).__name__}: {error}".splitlines()[0]
    if n_failed >= TRIES:
        raise DataError(
            f"{what} could not be read in {TRIES} tries ({said}). Check the connection, and read on later."
        ) from error
    seconds = FIRST_WAIT * 2 ** (n_failed - 1)
    logger.warning("%s could not be read (%s). Try %d of %d is in %g s.", what, said, n_failed + 1, TRIES, seconds)
    time.sleep(seconds)


def retried(call: Callable[[], T], what: str) -> T:
    """Returns the result of a call, which is made again after errors that pass."""
    for n_failed in itertools.count(1):
        try:
            return call()
        except Exception as error:  # noqa: BLE001  (what lasts is raised again)
            wait_or_raise(error, n_failed, what)
    raise AssertionError
