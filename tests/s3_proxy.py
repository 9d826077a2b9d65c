"""A loopback proxy before an S3 server that damages bodies and loses replies: what networks do, on the real wire."""

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@dataclass
class Call:
    """One request on its way, and later its reply; faults change the bodies in place."""

    method: str
    path: str
    body: bytearray
    reply: bytearray = field(default_factory=bytearray)
    lost: bool = False  # set by a fault: the connection closes without a reply
    cut: bool = False  # set by a fault: it closes after half of the reply

    @property
    def is_part(self) -> bool:
        return self.method == "PUT" and "partNumber=" in self.path

    @property
    def is_complete(self) -> bool:
        return self.method == "POST" and "uploadId=" in self.path


Fault = Callable[[Call], None]


def no_fault(_: Call) -> None:
    pass


@dataclass
class Proxy:
    url: str = ""
    on_request: Fault = no_fault
    on_reply: Fault = no_fault
    calls: list[Call] = field(default_factory=list)


@contextmanager
def running_proxy(endpoint: str) -> Iterator[Proxy]:
    """A proxy to `endpoint` on a free port of 127.0.0.1."""
    proxy, target = Proxy(), urlsplit(endpoint).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            call = Call(self.command, self.path, bytearray(self.rfile.read(int(self.headers["Content-Length"] or 0))))
            proxy.calls.append(call)
            proxy.on_request(call)
            connection = http.client.HTTPConnection(target, timeout=60)
            try:
                headers = {k: v for k, v in self.headers.items() if k.lower() != "expect"}
                connection.request(call.method, call.path, bytes(call.body), headers)
                reply = connection.getresponse()
                call.reply = bytearray(reply.read())
            finally:
                connection.close()
            proxy.on_reply(call)
            self.close_connection = True
            if not call.lost:
                self.answer(call, reply)

        def answer(self, call: Call, reply: http.client.HTTPResponse) -> None:
            self.send_response(reply.status)
            for name, value in reply.getheaders():
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            size = reply.headers["Content-Length"] if call.method == "HEAD" else len(call.reply)
            self.send_header("Content-Length", str(size or 0))
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(call.reply[: len(call.reply) // 2] if call.cut else call.reply)

        def log_message(self, *_: object) -> None:
            pass

    for method in ("GET", "PUT", "POST", "HEAD", "DELETE"):
        setattr(Handler, f"do_{method}", Handler.forward)

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass  # a client that was killed

    server = Server(("127.0.0.1", 0), Handler)
    proxy.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
