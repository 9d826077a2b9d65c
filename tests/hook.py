"""A webhook on loopback, for notices."""

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator

TOKEN = "tok3nSecretOfTheHook"


class Hook(http.server.ThreadingHTTPServer):
    """Notes what it is sent; answers with `status`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bodies: list[dict[str, str]] = []
        self.status = 200

    @property
    def address(self) -> str:
        return f"json://127.0.0.1:{self.server_port}/{TOKEN}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        self.server.bodies.append(json.loads(self.rfile.read(length)))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def running_hook() -> Iterator[Hook]:
    """The webhook, which answers until the block ends."""
    with Hook() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
