"""The digest of an image's tag, from a registry on loopback: open, with a token, and without the tag."""

import http.server
import json
import threading
from collections.abc import Iterator

import pytest

from deploy.registry import with_digest
from moola.errors import DataError

DIGEST = "sha256:" + "ab" * 32


class Registry(http.server.BaseHTTPRequestHandler):
    """someone/open needs no token, someone/token does, others are not there."""

    def do_HEAD(self) -> None:
        address = f"http://127.0.0.1:{self.server.server_address[1]}"
        known = self.path in ("/v2/someone/open/manifests/1.2", "/v2/someone/token/manifests/latest")
        if "token" in self.path and self.headers.get("Authorization") != "Bearer let-me-in":
            challenge = f'Bearer realm="{address}/token",service="registry",scope="repository:someone/token:pull"'
            self.answer(401, {"WWW-Authenticate": challenge})
        elif known and "oci.image.index" in self.headers["Accept"]:
            self.answer(200, {"Docker-Content-Digest": DIGEST})
        elif "odd" in self.path:
            self.answer(200, {"Docker-Content-Digest": "md5:1234"})
        else:
            self.answer(404, {})

    def do_GET(self) -> None:
        wanted = "/token?service=registry&scope=repository%3Asomeone%2Ftoken%3Apull"
        self.answer(200 if self.path == wanted else 400, {}, json.dumps({"token": "let-me-in"}).encode())

    def answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def host() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Registry)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_tag_becomes_the_registry_s_digest(host: str) -> None:
    assert with_digest(f"{host}/someone/open:1.2", "train") == f"{host}/someone/open@{DIGEST}"


def test_a_token_is_fetched_where_the_registry_wants_one_and_no_tag_is_latest(host: str) -> None:
    assert with_digest(f"{host}/someone/token", "train") == f"{host}/someone/token@{DIGEST}"


@pytest.mark.parametrize("name", ["someone/none:1.2", "someone/open:none", "someone/odd:1.2"])
def test_a_tag_that_is_not_there_is_refused_with_the_way_to_the_digest(host: str, name: str) -> None:
    with pytest.raises(DataError, match=rf"{name}.*docker buildx imagetools inspect {host}/{name}"):
        with_digest(f"{host}/{name}", "train")


def test_a_registry_that_does_not_answer_is_named() -> None:
    with pytest.raises(DataError, match=r"127.0.0.1:1/a/b:c.*ConnectError"):
        with_digest("127.0.0.1:1/a/b:c", "train")


def test_a_digest_is_taken_as_it_is_and_checked() -> None:
    assert with_digest(f"ghcr.io/a/b@{DIGEST}", "train") == f"ghcr.io/a/b@{DIGEST}"
    with pytest.raises(DataError, match="64 hex digits"):
        with_digest("ghcr.io/a/b@sha256:ab", "train")


@pytest.mark.parametrize(("job", "variable"), [("train", "MOOLA_IMAGE_GPU"), ("precompute", "MOOLA_IMAGE_CPU")])
def test_no_image_is_refused_with_where_to_name_it(job: str, variable: str) -> None:
    with pytest.raises(DataError, match=variable):
        with_digest(None, job)
