"""A loopback proxy before an S3 server: damage on the way, and the dialects of other providers.

`on_request` and `on_reply` of a running proxy are called with each request, and may change it, its
reply, or answer in the server's place. The functions below are what providers are known to do.
"""

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

Headers = dict[str, str]  # names in lower case
HOP_HEADERS = ("content-length", "transfer-encoding", "connection")


@dataclass
class Call:
    """One request on its way, and later its reply; faults change them in place."""

    method: str
    path: str
    body: bytearray
    headers: Headers = field(default_factory=dict)  # of the request
    status: int = 0
    reply: bytearray = field(default_factory=bytearray)
    reply_headers: Headers = field(default_factory=dict)
    answered: bool = False  # set by `answer`: the server is not asked
    lost: bool = False  # set by a fault: the connection closes without a reply
    cut: bool = False  # set by a fault: it closes after half of the reply

    @property
    def is_part(self) -> bool:
        return self.method == "PUT" and "partNumber=" in self.path

    @property
    def begins_parts(self) -> bool:
        return self.method == "POST" and "uploads" in self.path and "uploadId=" not in self.path

    @property
    def is_complete(self) -> bool:
        return self.method == "POST" and "uploadId=" in self.path

    @property
    def lists_parts(self) -> bool:
        return self.method == "GET" and "uploadId=" in self.path

    @property
    def lists(self) -> bool:
        return self.method == "GET" and ("list-type=" in self.path or "uploads" in self.path)

    @property
    def key(self) -> str:
        """The object's key, of a request that names the bucket in its path."""
        return unquote(urlsplit(self.path).path).lstrip("/").partition("/")[2]

    def answer(self, status: int, code: str, message: str = "", **fields: str) -> None:
        """Reply with an error of S3, now or in place of the server's reply."""
        elements = {"Code": code, "Message": message, **fields}
        inner = "".join(f"<{name}>{text}</{name}>" for name, text in elements.items())
        self.status = status
        self.reply = bytearray(f"<?xml version='1.0'?><Error>{inner}</Error>".encode())
        self.reply_headers = {"content-type": "application/xml"}
        self.answered = True


Fault = Callable[[Call], None]


def no_fault(_: Call) -> None:
    pass


# --- dialects: for on_request -----------------------------------------------------------------


def refuses_checksum_headers(call: Call) -> None:
    """Backblaze B2."""
    for name in call.headers:
        if name.startswith(("x-amz-checksum-", "x-amz-sdk-checksum-")):
            message = f"Unsupported header '{name}' received for this API call."
            return call.answer(400, "InvalidArgument", message)
    return None


def refuses_conditions(call: Call) -> None:
    """Backblaze B2, and older servers of many kinds."""
    if "if-none-match" in call.headers:
        message = "A header you provided implies functionality that is not implemented."
        call.answer(501, "NotImplemented", message)


def refuses_parts(call: Call) -> None:
    """A server whose uploads in parts do not work."""
    if call.is_complete:
        call.answer(400, "InvalidRequest", "this cannot be completed")


def refuses_parts_with_crc64(call: Call) -> None:
    """A server that knows the checksum of whole objects and not that of parts."""
    if call.is_part and "x-amz-checksum-crc64nvme" in call.headers:
        call.answer(400, "InvalidRequest", "this part cannot be read")


def no_list_parts(call: Call) -> None:
    if call.lists_parts:
        call.answer(501, "NotImplemented", "ListParts")


def no_deletes(call: Call) -> None:
    """Keys without s3:DeleteObject."""
    if call.method == "DELETE" and "uploadId=" not in call.path:
        call.answer(403, "AccessDenied", "Access Denied")


def read_only(call: Call) -> None:
    if call.method in ("PUT", "POST", "DELETE"):
        call.answer(403, "AccessDenied", "Access Denied")


def no_listing(call: Call) -> None:
    """Keys without s3:ListBucket: what is not listed; see `denies_missing` for objects."""
    if call.lists:
        call.answer(403, "AccessDenied", "Access Denied")


def other_region(call: Call) -> None:
    """AWS, to a request that is signed for another region than the bucket's."""
    message = "The authorization header is malformed; the region 'us-east-1' is wrong"
    call.answer(400, "AuthorizationHeaderMalformed", message, Region="eu-central-1")


def token_expired(call: Call) -> None:
    call.answer(400, "ExpiredToken", "The provided token has expired.")


def wrong_clock(call: Call) -> None:
    call.answer(403, "RequestTimeTooSkewed", "The difference between the times is too large.")


def kms_denied(call: Call) -> None:
    message = "User: arn:aws:iam::1:user/x is not authorized to perform: kms:GenerateDataKey"
    if call.method in ("PUT", "POST"):
        call.answer(403, "AccessDenied", message)


def overwrites(admin: Any) -> Fault:
    """rclone serve s3, s3rver: the condition is not looked at. `admin` is the server's client."""

    def apply(call: Call) -> None:
        if "if-none-match" in call.headers:
            admin.delete_object(Bucket=call.path.split("/")[1], Key=call.key)

    return apply


def overwrites_in_parts(admin: Any) -> Fault:
    """The condition is looked at in a put, and not when an upload in parts is completed."""

    def apply(call: Call) -> None:
        if call.is_complete:
            admin.delete_object(Bucket=call.path.split("/")[1], Key=call.key)

    return apply


def virtual_hosts_only(bucket: str) -> Fault:
    """Alibaba OSS and others; before a server that checks no signature, as the host is changed."""

    def apply(call: Call) -> None:
        host = call.headers["host"]
        if not host.startswith(f"{bucket}."):
            return call.answer(403, "SecondLevelDomainForbidden", "Please use virtual hosted style")
        call.headers["host"] = host.removeprefix(f"{bucket}.")
        call.path = f"/{bucket}{call.path}"
        return None

    return apply


def requester_pays_only(call: Call) -> None:
    if call.headers.get("x-amz-request-payer") != "requester":
        call.answer(403, "AccessDenied", "Access Denied")


# --- dialects: for on_reply -------------------------------------------------------------------


def denies_missing(call: Call) -> None:
    """AWS and others, to keys that may not list: there is no telling what exists."""
    if call.status == 404 and b"NoSuchUpload" not in call.reply and call.method in ("GET", "HEAD"):
        call.answer(403, "AccessDenied", "Access Denied")


def several(*faults: Fault) -> Fault:
    """All of them, the first that answers ends it."""

    def apply(call: Call) -> None:
        for fault in faults:
            if not call.answered:
                fault(call)

    return apply


# --- the proxy --------------------------------------------------------------------------------


@dataclass
class Proxy:
    url: str = ""
    on_request: Fault = no_fault
    on_reply: Fault = no_fault
    calls: list[Call] = field(default_factory=list)


@contextmanager
def running_proxy(endpoint: str) -> Iterator[Proxy]:
    """A proxy to `endpoint` on a free port of 127.0.0.1."""
    proxy = Proxy()
    target = urlsplit(endpoint).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            size = int(self.headers["Content-Length"] or 0)
            call = Call(
                self.command,
                self.path,
                body=bytearray(self.rfile.read(size)),
                headers={name.lower(): value for name, value in self.headers.items()},
            )
            proxy.calls.append(call)
            proxy.on_request(call)
            if not call.answered:
                self.ask(call)
                proxy.on_reply(call)
            self.close_connection = True
            if not call.lost:
                self.reply_to(call)

        def ask(self, call: Call) -> None:
            connection = http.client.HTTPConnection(target, timeout=60)
            try:
                headers = {k: v for k, v in call.headers.items() if k != "expect"}
                connection.request(call.method, call.path, bytes(call.body), headers)
                reply = connection.getresponse()
                call.reply = bytearray(reply.read())
            finally:
                connection.close()
            call.status = reply.status
            call.reply_headers = {name.lower(): value for name, value in reply.getheaders()}

        def reply_to(self, call: Call) -> None:
            self.send_response(call.status)
            for name, value in call.reply_headers.items():
                if name not in HOP_HEADERS:
                    self.send_header(name, value)
            is_head = call.method == "HEAD"
            size = call.reply_headers.get("content-length") if is_head else len(call.reply)
            self.send_header("Content-Length", str(size or 0))
            self.send_header("Connection", "close")
            self.end_headers()
            if not is_head:
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
    threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
    ).start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
