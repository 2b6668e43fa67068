"""A local server of the live page: what latents do, tried out in a browser.

Only this machine may ask, unless another host is given. Each request must come with the token that
is in the page's address, so that no other page in the browser can ask; and it must be sent to this
machine by its name, so that a page whose name was bound anew to this machine cannot either.
"""

import hmac
import json
import logging
import secrets
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

from dictionary_learning._border import checked, said
from dictionary_learning._types import ModelLike, SubmodulesLike
from dictionary_learning.dashboards._fields import Fields
from dictionary_learning.dashboards._live import LiveModel
from dictionary_learning.dashboards._writing import STATIC
from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.errors import ConfigError, DictionaryLearningError

logger = logging.getLogger(__name__)

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_LONGEST_BODY = 1 << 20
_TIMEOUT_S = 60
_FILES = {
    "/": ("live.html", "text/html; charset=utf-8"),
    "/live.js": ("live.js", "text/javascript; charset=utf-8"),
    "/tokens.js": ("tokens.js", "text/javascript; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/live.css": ("live.css", "text/css; charset=utf-8"),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class LiveServer:
    """A server that is bound to a port; `run` answers until `close`."""

    @checked()
    def __init__(
        self,
        model: ModelLike,
        dictionaries: Mapping[str, Dictionary],
        *,
        sites: Mapping[str, SubmodulesLike] | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
    ):
        """Binds the port.

        Args:
            model: The language model, or its name.
            dictionaries: Dictionaries that know their sites, by name.
            sites: The sites of dictionaries that know none, by name.
            host: The address to listen on; another than this machine's own lets others in, who need
                the token too.
            port: The port; 0 for any that is free.

        Raises:
            ConfigError: The port cannot be used, or a dictionary knows no site.
        """
        if not 0 <= port <= 2**16 - 1:
            raise ConfigError(f"Got port={port}; give one from 0, for any, to 65535.")
        live = LiveModel(model, dictionaries, sites or {})
        self.token = secrets.token_urlsafe(24)
        routes = {"/api/about": live.about, "/api/read": live.read, "/api/generate": live.generate}
        try:
            self._server = _Server((host, port), _handler(routes, self.token, host))
        except (OSError, OverflowError) as error:
            raise ConfigError(f"Cannot listen on {host}:{port} ({error}). Give another port, or 0 for any.") from None
        self.port: int = self._server.server_port
        name = "localhost" if host in _LOOPBACK else host
        self.url = f"http://{'127.0.0.1' if name == 'localhost' and host != '::1' else name}:{self.port}/#{self.token}"

    def run(self) -> None:
        """Answers requests until `close` is called, or Ctrl-C."""
        try:
            self._server.serve_forever(poll_interval=0.1)
        finally:
            self._server.server_close()

    def discard(self) -> None:
        """Frees the port of a server that does not run."""
        self._server.server_close()

    def close(self) -> None:
        """Ends `run`, from another thread."""
        self._server.shutdown()


class _Server(ThreadingHTTPServer):
    daemon_threads = True


def _handler(
    routes: Mapping[str, Callable[[Fields], dict[str, Any]]], token: str, host: str
) -> type[BaseHTTPRequestHandler]:
    """Returns the class that answers the requests of a server."""

    class Handler(BaseHTTPRequestHandler):
        timeout = _TIMEOUT_S
        server_version, sys_version = "dictionary-learning", ""

        def do_GET(self) -> None:
            if not self._is_allowed():
                return
            path = self.path.split("?")[0]
            if path not in _FILES:
                self._refuse(HTTPStatus.METHOD_NOT_ALLOWED if path in routes else HTTPStatus.NOT_FOUND, "No such page.")
                return
            name, kind = _FILES[path]
            self._send(HTTPStatus.OK, (STATIC / name).read_bytes(), kind)

        def do_POST(self) -> None:
            if not self._is_allowed():
                return None
            if self.path not in routes:
                return self._refuse(HTTPStatus.NOT_FOUND, f"There is no {self.path}. Known: {', '.join(routes)}.")
            if not hmac.compare_digest(self.headers.get("X-Token", "").encode(), token.encode()):
                return self._refuse(HTTPStatus.UNAUTHORIZED, "The token is missing or wrong. Open the address again.")
            length = self.headers.get("Content-Length", "")
            if not length.isdecimal():
                return self._refuse(HTTPStatus.LENGTH_REQUIRED, "The request has no Content-Length.")
            if int(length) > _LONGEST_BODY:
                return self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"Got over {_LONGEST_BODY:,} bytes.")
            try:
                answer = routes[self.path](Fields.parse(self.rfile.read(int(length))))
            except DictionaryLearningError as error:
                return self._refuse(HTTPStatus.BAD_REQUEST, str(error), type(error).__name__)
            except Exception as error:
                logger.exception("%s failed.", self.path)
                return self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, said(error), type(error).__name__)
            return self._send_json(HTTPStatus.OK, answer)

        def _is_allowed(self) -> bool:
            """Returns whether a request was sent to this machine by its name; answers it if not."""
            port = cast(ThreadingHTTPServer, self.server).server_port
            names = {f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]", host)}
            asked, origin = self.headers.get("Host", ""), self.headers.get("Origin")
            is_known = asked in names or host not in _LOOPBACK  # of another host, the names are not known
            if is_known and (origin is None or origin == f"http://{asked}"):
                return True
            self._refuse(HTTPStatus.FORBIDDEN, f"Got Host {asked!r}, Origin {origin!r}. Open the address as printed.")
            return False

        def _refuse(self, status: HTTPStatus, message: str, kind: str = "RequestError") -> None:
            self.close_connection = True
            self._send_json(status, {"error": {"status": int(status), "type": kind, "message": message}})

        def _send_json(self, status: HTTPStatus, document: Mapping[str, Any]) -> None:
            self._send(status, json.dumps(document, allow_nan=False).encode(), "application/json")

        def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **_HEADERS}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            logger.debug(format, *args)

    return Handler
