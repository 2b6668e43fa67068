"""JSON sent to a server by POST: repeated where that can help, with a secret that is shown nowhere.

The secret is read from the environment for each request. No object holds it, and it is removed from
what servers say. Redirections are refused: they would carry it to another place.
"""

import contextlib
import datetime
import email.utils
import http.client
import ipaddress
import json
import logging
import os
import random
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, NamedTuple

from dictionary_learning.errors import ConfigError, DictionaryLearningError, ModelError

logger = logging.getLogger(__name__)

_REPEATED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""Statuses that may be others a moment later."""
_REFUSED = frozenset({400, 413, 422})
"""Statuses of one request, which say nothing about the next."""
_LONGEST_ANSWER = 32 << 20
"""Bytes."""
_LONGEST_WAIT = 120.0
"""Seconds that a server may ask to wait."""
_SHOWN = 200
"""Characters of a server's words in an error."""


class Refused(DictionaryLearningError):
    """A server refuses one request; others may be accepted."""


class Secret(NamedTuple):
    """Where a key stands, and how it is sent."""

    variable: str
    """The variable of the environment that holds it; a server may need none."""
    header: str = "Authorization"
    prefix: str = "Bearer "

    def value(self) -> str | None:
        """Returns the key.

        Raises:
            ConfigError: It holds characters that no header can hold.
        """
        value = os.environ.get(self.variable, "").strip()
        if not value.isascii() or not value.isprintable():
            raise ConfigError(f"${self.variable} holds characters that no key has. Set it to the key alone.")
        return value or None


class Server(NamedTuple):
    """A place that takes JSON."""

    url: str
    secret: Secret | None = None
    timeout: float = 120.0
    """Seconds for one attempt."""
    n_attempts: int = 6

    def post(self, path: str, body: Any) -> Any:
        """Returns the JSON that a server answers.

        Raises:
            Refused: The server refuses this request.
            ModelError: It cannot be reached, wants another key, or answers no JSON.
        """
        said = ""
        for attempt in range(self.n_attempts):
            try:
                return self._attempt(path, body)
            except _Again as error:
                said = str(error)
                if attempt + 1 < self.n_attempts:
                    # half of it random: requests that failed together do not come back together
                    wait = 2.0**attempt * (0.5 + random.random() / 2)
                    _sleep(min(max(wait, error.wait), _LONGEST_WAIT))
        raise ModelError(
            f"{self.url}{path} failed {self.n_attempts} times: {said} Check the server and its limits. What was "
            "answered is kept, and the same call asks for the rest."
        )

    def _attempt(self, path: str, body: Any) -> Any:
        key = self.secret.value() if self.secret is not None else None
        data = json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key is not None and self.secret is not None and _is_private(self.url):
            headers[self.secret.header] = self.secret.prefix + key
        request = urllib.request.Request(self.url.rstrip("/") + path, data, headers, method="POST")
        try:
            with _OPENER.open(request, timeout=self.timeout) as response:
                raw = response.read(_LONGEST_ANSWER + 1)
        except urllib.error.HTTPError as error:
            with error:
                text = _without(_words(error), key)
                raise _failure(error, text, f"{self.url}{path}", self.secret) from None
        except (OSError, http.client.HTTPException) as error:  # URLError and time-outs are OSErrors
            text = " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__
            raise _Again(f"{_without(text, key)}.") from None
        if len(raw) > _LONGEST_ANSWER:
            raise ModelError(f"{self.url}{path} answers more than {_LONGEST_ANSWER >> 20} MiB. Check the address.")
        try:
            return json.loads(raw)
        except (ValueError, RecursionError):
            raise _Again("the answer is no JSON.") from None


def as_url(text: str) -> str:
    """Returns an address that can be asked.

    Raises:
        ConfigError: It is none, or it holds a password.
    """
    parts = urllib.parse.urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"Got the address {text!r}; it must begin with http:// or https:// and name a host.")
    if parts.username or parts.password:
        raise ConfigError("The address holds a name or a password. Leave them out: keys come from the environment.")
    return text.rstrip("/")


class _Again(Exception):
    """What may go well at the next attempt."""

    def __init__(self, said: str, wait: float = 0.0):
        super().__init__(said)
        self.wait = wait


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *request: Any, **options: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirection)
_sleep = time.sleep  # replaced by tests


def _failure(error: urllib.error.HTTPError, text: str, where: str, secret: Secret | None) -> Exception:
    if error.code in _REPEATED:
        return _Again(f"status {error.code}: {text}", _asked_wait(error.headers.get("Retry-After")))
    if error.code in _REFUSED:
        return Refused(f"{where} refuses a request (status {error.code}): {text} Check the model's limits and options.")
    advice = "Check the address and the model's name."
    if error.code in (401, 403):
        advice = "Check the key" + (f" in ${secret.variable}." if secret is not None else ".")
    return ModelError(f"{where} answers with status {error.code}: {text} {advice}")


def _words(error: urllib.error.HTTPError) -> str:
    """Returns what a server says, in one line."""
    raw = b""
    with contextlib.suppress(OSError, http.client.HTTPException):
        raw = error.read(1 << 16)
    text = raw.decode("utf-8", "replace")
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        said = json.loads(text)["error"]
        text = said if isinstance(said, str) else str(said["message"])
    text = " ".join(text.split())[:_SHOWN] or str(error.reason)
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _without(text: str, key: str | None) -> str:
    return text if key is None else text.replace(key, "(key)")


def _asked_wait(given: str | None) -> float:
    """Returns the seconds of a header Retry-After: a number, or a date."""
    if given is None:
        return 0.0
    if given.strip()[:1].isdigit():
        with contextlib.suppress(ValueError):
            return float(given)
    with contextlib.suppress(ValueError, TypeError):
        then = email.utils.parsedate_to_datetime(given)
        return max((then - datetime.datetime.now(datetime.timezone.utc)).total_seconds(), 0.0)
    return 0.0


def _is_private(url: str) -> bool:
    """Returns whether what is sent is read on the way by nobody: encrypted, or on this machine."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "https" or parts.hostname == "localhost":
        return True
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(parts.hostname or "").is_loopback:
            return True
    logger.warning("%s is not encrypted and not on this machine, so no key is sent.", url)
    return False
