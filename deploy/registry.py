"""The digest of an image's tag, asked of its registry (OCI distribution specification v1.1, public images)."""

import re

import httpx

from moola.errors import DataError

ACCEPT = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
TIMEOUT_S = 15.0


def with_digest(image: str | None, job: str) -> str:
    """NAME@sha256:...; a tag is looked up. Raises DataError that says how to get the digest if it cannot be."""
    if image is None:
        variable = "MOOLA_IMAGE_GPU" if job == "train" else "MOOLA_IMAGE_CPU"
        raise DataError(f"image: a rented machine needs the image of {job}: --image NAME@sha256:..., or {variable}")
    name, at, digest = image.partition("@")
    if at:
        if not DIGEST.fullmatch(digest):
            raise DataError(f"image: a digest is sha256: and 64 hex digits, got {image!r}")
        return image
    try:
        return f"{_without_tag(name)}@{_look_up(name)}"
    except (httpx.HTTPError, KeyError, ValueError) as error:
        raise DataError(
            f"image: a rented machine takes an image by digest, and the registry did not give that of {image!r} "
            f"({type(error).__name__}: {error}). Give --image NAME@sha256:...; the digest is shown by: "
            f"docker buildx imagetools inspect {image}"
        ) from error


def _without_tag(name: str) -> str:
    head, slash, last = name.rpartition("/")
    return f"{head}{slash}{last.partition(':')[0]}"


def _look_up(name: str) -> str:
    host, repository, tag = _parse(name)
    scheme = "http" if host.partition(":")[0] in ("localhost", "127.0.0.1") else "https"
    url = f"{scheme}://{host}/v2/{repository}/manifests/{tag}"
    headers = {"Accept": ACCEPT}
    with httpx.Client(timeout=TIMEOUT_S, follow_redirects=True) as client:
        reply = client.head(url, headers=headers)
        if reply.status_code == 401:
            token = _token(client, reply.headers["WWW-Authenticate"])
            reply = client.head(url, headers={**headers, "Authorization": f"Bearer {token}"})
    if not reply.is_success:
        raise ValueError(f"{reply.status_code} {reply.reason_phrase} from {url}")
    digest = reply.headers["Docker-Content-Digest"]
    if not DIGEST.fullmatch(digest):
        raise ValueError(f"not a sha256 digest: {digest!r}")
    return str(digest)


def _parse(name: str) -> tuple[str, str, str]:
    """(registry, repository, tag), with Docker's defaults for what is left out."""
    first, slash, rest = name.partition("/")
    if not slash or not (set(first) & {".", ":"} or first == "localhost"):
        first, rest = "registry-1.docker.io", name if slash else f"library/{name}"
    repository, _, tag = rest.partition(":")
    return first, repository, tag or "latest"


def _token(client: httpx.Client, challenge: str) -> str:
    """An anonymous pull token from where the registry's 401 says."""
    fields = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    reply = client.get(fields["realm"], params={k: v for k, v in fields.items() if k != "realm"})
    reply.raise_for_status()
    body = reply.json()
    return str(body.get("token") or body["access_token"])
