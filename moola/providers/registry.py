"""Asks a registry for the manifest of an image, as anybody can (OCI distribution spec v1.1).

The token, where a registry wants one, is an anonymous one.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import NamedTuple

import httpx

INDEX_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MANIFEST_TYPES = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
ACCEPT = {"Accept": ", ".join((*INDEX_TYPES, *MANIFEST_TYPES))}
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
CHALLENGE = re.compile(r"\s*Bearer\s+(.*)", re.IGNORECASE)
CHALLENGE_FIELD = re.compile(r'(\w+)="([^"]*)"')
DOCKER_HUB = ("docker.io", "index.docker.io")
DOCKER_HUB_HOST = "registry-1.docker.io"
LOCAL_HOSTS = ("localhost", "127.0.0.1")  # are reached without TLS
NOT_PUBLIC = (401, 403)
TIMEOUT_S = 15.0
MAX_BYTES = 4 << 20  # of a manifest, as registries have it
UNKNOWN_PLATFORM = "unknown/unknown"  # of a build's attestations

Json = dict[str, object]


class ImageName(NamedTuple):
    """The parts of a name, with Docker's defaults. `reference` is a tag or a digest."""

    registry: str
    repository: str
    reference: str

    @property
    def url(self) -> str:
        """Of the repository in its registry's API."""
        host = self.registry.partition(":")[0]
        scheme = "http" if host in LOCAL_HOSTS else "https"
        return f"{scheme}://{self.registry}/v2/{self.repository}"


class Manifest(NamedTuple):
    """An image as its registry has it. `platforms` such as linux/amd64; empty: it does not say."""

    digest: str
    platforms: tuple[str, ...]


class RegistryError(Exception):
    """A registry did not give a manifest. `status` is its HTTP status, None without an answer."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


def parse_image_name(image: str) -> ImageName:
    """The parts of NAME, NAME:TAG or NAME@DIGEST. A first part with a dot or port is a registry."""
    name, at, digest = image.partition("@")
    registry, slash, path = name.partition("/")
    is_registry = "." in registry or ":" in registry or registry == "localhost"
    if not slash or not is_registry:
        registry = DOCKER_HUB_HOST
        path = name
    elif registry in DOCKER_HUB:
        registry = DOCKER_HUB_HOST

    repository, _, tag = path.partition(":")
    if registry == DOCKER_HUB_HOST and "/" not in repository:
        repository = f"library/{repository}"
    return ImageName(registry, repository, digest if at else tag or "latest")


def fetch_manifest(name: ImageName) -> Manifest:
    """The image's digest and platforms.

    Raises RegistryError where the registry does not give them to everybody, or does not answer.
    """
    try:
        with httpx.Client(timeout=TIMEOUT_S, follow_redirects=True) as client:
            client.headers.update(ACCEPT)
            return _read_manifest(client, name)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise RegistryError(f"{type(error).__name__}: {error}") from error


def _read_manifest(client: httpx.Client, name: ImageName) -> Manifest:
    response, body = _get(client, f"{name.url}/manifests/{name.reference}")
    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
    _check_digest(digest, name.reference, response.headers.get("Docker-Content-Digest"))

    manifest = _parse_object(body)
    if "manifests" in manifest:
        return Manifest(digest, _platforms_of_index(manifest))

    _, config = _get(client, f"{name.url}/blobs/{_config_digest(manifest)}")
    platform = _platform(_parse_object(config))
    return Manifest(digest, (platform,) if platform else ())


def _get(client: httpx.Client, url: str) -> tuple[httpx.Response, bytes]:
    """A successful response and its body. After a 401 it is asked again with a token."""
    response, body = _read(client, url)
    if response.status_code == 401:
        token = _fetch_token(client, response)
        client.headers["Authorization"] = f"Bearer {token}"
        response, body = _read(client, url)
    if not response.is_success:
        raise _refusal(response)
    return response, body


def _read(
    client: httpx.Client, url: str, params: Mapping[str, str] | None = None
) -> tuple[httpx.Response, bytes]:
    """A response and its body, MAX_BYTES at most. Raises RegistryError for a longer one."""
    body = b""
    with client.stream("GET", url, params=params) as response:
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > MAX_BYTES:
                raise RegistryError(f"more than {MAX_BYTES} B from {url}")
    return response, body


def _fetch_token(client: httpx.Client, refusal: httpx.Response) -> str:
    """An anonymous pull token, from where the registry's 401 says."""
    challenge = CHALLENGE.fullmatch(refusal.headers.get("WWW-Authenticate", ""))
    fields = dict(CHALLENGE_FIELD.findall(challenge[1])) if challenge else {}
    realm = fields.pop("realm", None)
    if realm is None:  # such as Basic: nothing for those without an account
        raise _refusal(refusal)

    response, body = _read(client, realm, fields)
    if not response.is_success:
        raise _refusal(response)
    answer = _parse_object(body)
    token = answer.get("token") or answer.get("access_token")
    if not isinstance(token, str):
        raise RegistryError(f"no token from {response.url.copy_with(query=None)}")
    return token


def _refusal(response: httpx.Response) -> RegistryError:
    place = response.url.copy_with(query=None)
    message = f"{response.status_code} {response.reason_phrase} from {place}"
    return RegistryError(message, response.status_code)


def _check_digest(digest: str, reference: str, header: str | None) -> None:
    """Raises RegistryError for a manifest that was not asked for, or is damaged."""
    expected = reference if DIGEST.fullmatch(reference) else header
    if expected is not None and expected != digest:
        raise RegistryError(f"the manifest's digest is {digest}, not {expected!r}")


def _parse_object(body: bytes) -> Json:
    answer = json.loads(body)
    if not isinstance(answer, dict):
        raise RegistryError("a JSON object is needed")
    return answer


def _platforms_of_index(index: Json) -> tuple[str, ...]:
    """Of the images that an index lists; a build's attestations are none."""
    entries = index["manifests"]
    if not isinstance(entries, list):
        raise RegistryError("an index must have a list of manifests")
    if all(_is_attestation(entry) for entry in entries):
        raise RegistryError("the index lists no image")

    platforms = []
    for entry in entries:
        platform = _platform(entry.get("platform")) if isinstance(entry, dict) else None
        if platform is not None:
            platforms.append(platform)
    return tuple(platforms)


def _is_attestation(entry: object) -> bool:
    """Is it what a build says of itself, and no image?"""
    platform = entry.get("platform") if isinstance(entry, dict) else None
    if not isinstance(platform, dict):
        return False
    return f"{platform.get('os')}/{platform.get('architecture')}" == UNKNOWN_PLATFORM


def _platform(described: object) -> str | None:
    """os/architecture of an image's config or of an index's entry; None where it has none."""
    if not isinstance(described, dict):
        return None
    platform = f"{described.get('os')}/{described.get('architecture')}"
    return None if platform == UNKNOWN_PLATFORM or "None" in platform else platform


def _config_digest(manifest: Json) -> str:
    config = manifest.get("config")
    digest = config.get("digest") if isinstance(config, dict) else None
    if manifest.get("schemaVersion") == 1:
        raise RegistryError("a manifest of schema 1, which hosts pull no longer: publish it again")
    if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
        raise RegistryError("neither an index nor a manifest with a config")
    return digest
