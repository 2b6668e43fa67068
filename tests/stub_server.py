"""A server on this machine that answers as it is told, and keeps what it was sent."""

import contextlib
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple


class Request(NamedTuple):
    """What a server was sent."""

    path: str
    headers: dict[str, str]
    body: Any


class Reply(NamedTuple):
    """What a server answers; bytes are sent as they are."""

    body: Any
    status: int = 200
    headers: dict[str, str] = {}  # noqa: RUF012  (is not changed)


class Stub(NamedTuple):
    """A running server."""

    url: str
    requests: list[Request]


@contextlib.contextmanager
def serving(answer: Callable[[Request, int], Reply]) -> Iterator[Stub]:
    """Runs a server that answers each request by a function of it and of its number."""
    requests: list[Request] = []
    lock = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["Content-Length"]))
            request = Request(self.path, dict(self.headers), json.loads(raw))
            with lock:
                requests.append(request)
                n = len(requests) - 1
            reply = answer(request, n)
            data = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            with contextlib.suppress(OSError):  # a client that did not wait
                self.send_response(reply.status)
                for name, value in {"Content-Length": str(len(data)), **reply.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

        def do_GET(self) -> None:
            requests.append(Request(self.path, dict(self.headers), None))
            self.send_error(500)

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield Stub(f"http://127.0.0.1:{server.server_address[1]}/v1", requests)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
