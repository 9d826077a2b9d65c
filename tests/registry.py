"""A registry of images on loopback, as far as a launcher asks it: manifests, configs, tokens."""

import hashlib
import http.server
import json
import threading
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

OCI = "application/vnd.oci.image"
INDEX = f"{OCI}.index.v1+json"
MANIFEST = f"{OCI}.manifest.v1+json"
TOKEN = "let-me-in"


def digest_of(body: bytes) -> str:
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


class Registry:
    """A context manager.

    manifests     (repository, tag or digest) -> (media type, body)
    blobs         (repository, digest) -> body
    with_token    repositories that want an anonymous token, as most registries do
    private       repositories that give nobody a token
    statuses      repository -> an HTTP status with which all of it is answered
    realm         where the challenge sends for a token; None: to this server
    asked         paths of all requests, without those for tokens
    """

    def __init__(self) -> None:
        self.manifests: dict[tuple[str, str], tuple[str, bytes]] = {}
        self.blobs: dict[tuple[str, str], bytes] = {}
        self.with_token: set[str] = set()
        self.private: set[str] = set()
        self.statuses: dict[str, int] = {}
        self.realm: str | None = None
        self.asked: list[str] = []

    def __enter__(self) -> Self:
        registry = self

        class Handler(_Handler):
            pass

        Handler.registry = registry
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(
        self,
        repository: str,
        *platforms: str,
        tag: str = "latest",
        is_index: bool = True,
        text: str = "",
    ) -> str:
        """Publish an image for the platforms, linux/amd64 by default; -> NAME@DIGEST.

        An index has a build's attestations beside its images, as buildx makes it. `text` makes
        another digest.
        """
        entries = []
        for platform in platforms or ("linux/amd64",):
            body = self._manifest(repository, platform, text)
            entries.append(_entry(body, platform))

        media_type = MANIFEST
        if is_index:
            entries.append(_entry(b"{}", "unknown/unknown"))
            media_type = INDEX
            document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}
            body = json.dumps(document).encode()

        digest = digest_of(body)
        self.manifests[repository, tag] = (media_type, body)
        self.manifests[repository, digest] = (media_type, body)
        return f"{self.host}/{repository}@{digest}"

    def _manifest(self, repository: str, platform: str, text: str) -> bytes:
        system, architecture = platform.split("/")
        config = json.dumps({"os": system, "architecture": architecture, "text": text}).encode()
        self.blobs[repository, digest_of(config)] = config

        described = {"mediaType": f"{OCI}.config.v1+json", "digest": digest_of(config)}
        document = {"schemaVersion": 2, "mediaType": MANIFEST, "config": described, "layers": []}
        return json.dumps(document).encode()


def _entry(body: bytes, platform: str) -> dict[str, Any]:
    system, architecture = platform.split("/")
    return {
        "mediaType": MANIFEST,
        "digest": digest_of(body),
        "size": len(body),
        "platform": {"os": system, "architecture": architecture},
    }


class _Handler(http.server.BaseHTTPRequestHandler):
    registry: Registry

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/token":
            self.answer_token(parse_qs(url.query)["scope"][0].split(":")[1])
            return

        registry = self.registry
        registry.asked.append(url.path)
        repository, kind, reference = url.path.removeprefix("/v2/").rsplit("/", 2)
        needs_token = repository in registry.with_token | registry.private
        if repository in registry.statuses:
            self.answer(registry.statuses[repository])
        elif needs_token and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.challenge(repository)
        elif kind == "manifests" and (repository, reference) in registry.manifests:
            media_type, body = registry.manifests[repository, reference]
            assert media_type in self.headers["Accept"]
            headers = {"Content-Type": media_type, "Docker-Content-Digest": digest_of(body)}
            self.answer(200, body, headers)
        elif kind == "blobs" and (repository, reference) in registry.blobs:
            self.answer(200, registry.blobs[repository, reference])
        else:
            self.answer(404)

    def challenge(self, repository: str) -> None:
        place = self.registry.realm or f"http://{self.registry.host}/token"
        realm = f'realm="{place}",service="registry"'
        scope = f'scope="repository:{repository}:pull"'
        self.answer(401, headers={"WWW-Authenticate": f"Bearer {realm},{scope}"})

    def answer_token(self, repository: str) -> None:
        if repository in self.registry.private:
            self.answer(403, b'{"errors": [{"code": "DENIED"}]}')
        else:
            self.answer(200, json.dumps({"token": TOKEN}).encode())

    def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass
