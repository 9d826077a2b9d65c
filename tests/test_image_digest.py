"""The image before the money: found in its registry by everybody, for the hosts' platform."""

import json
from collections.abc import Iterator

import pytest

from moola.errors import DataError
from moola.launch.rented.image_digest import with_digest
from moola.providers.registry import ImageName, parse_image_name
from tests.registry import Registry, digest_of

DIGEST = "sha256:" + "ab" * 32


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as running:
        yield running


@pytest.mark.parametrize("is_index", [True, False])
@pytest.mark.parametrize("with_token", [True, False])
def test_a_tag_becomes_the_digest_of_its_manifest(
    registry: Registry, is_index: bool, with_token: bool
) -> None:
    if with_token:
        registry.with_token.add("someone/open")
    by_digest = registry.add("someone/open", tag="1.2", is_index=is_index)
    assert with_digest(f"{registry.host}/someone/open:1.2", "train") == by_digest


def test_no_tag_is_latest(registry: Registry) -> None:
    by_digest = registry.add("someone/open")
    assert with_digest(f"{registry.host}/someone/open", "train") == by_digest


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("python", ("registry-1.docker.io", "library/python", "latest")),
        ("me/moola:cpu", ("registry-1.docker.io", "me/moola", "cpu")),
        ("docker.io/me/moola:cpu", ("registry-1.docker.io", "me/moola", "cpu")),
        ("docker.io/python:3", ("registry-1.docker.io", "library/python", "3")),
        (f"ghcr.io/me/moola:cpu@{DIGEST}", ("ghcr.io", "me/moola", DIGEST)),
        ("localhost:5000/moola", ("localhost:5000", "moola", "latest")),
    ],
)
def test_a_name_has_docker_s_defaults(image: str, name: tuple[str, str, str]) -> None:
    assert parse_image_name(image) == ImageName(*name)


def test_a_digest_is_looked_up_as_well(registry: Registry) -> None:
    by_digest = registry.add("someone/open")
    assert with_digest(by_digest, "train") == by_digest
    digest = by_digest.partition("@")[2]
    assert registry.asked == [f"/v2/someone/open/manifests/{digest}"]

    tagged = by_digest.replace("@", ":1.2@")
    assert with_digest(tagged, "train") == tagged


def test_a_digest_that_is_none_is_refused_unasked() -> None:
    with pytest.raises(DataError, match="64 hex digits"):
        with_digest("ghcr.io/a/b@sha256:ab", "train")


@pytest.mark.parametrize("reference", [":1.2", f"@{DIGEST}"])
def test_an_image_that_is_not_there_is_refused_with_what_to_do(
    registry: Registry, reference: str
) -> None:
    image = f"{registry.host}/someone/none{reference}"
    with pytest.raises(
        DataError, match=rf"{image} is not there .*build.sh push gpu.* imagetools inspect {image}"
    ):
        with_digest(image, "train")


@pytest.mark.parametrize("by_digest", [True, False])
def test_a_private_image_is_refused_with_both_ways_out(registry: Registry, by_digest: bool) -> None:
    image = registry.add("someone/closed")
    registry.private.add("someone/closed")
    with pytest.raises(DataError, match=r"Make it public; or .*machine\.registry=ID"):
        with_digest(image if by_digest else image.partition("@")[0], "train")


@pytest.mark.parametrize("status", [401, 403])
def test_a_registry_with_accounts_alone_is_a_private_one(registry: Registry, status: int) -> None:
    registry.statuses["someone/closed"] = status
    with pytest.raises(DataError, match=rf"{status} .*machine\.registry=ID"):
        with_digest(f"{registry.host}/someone/closed:1", "train")


def test_with_the_provider_s_credentials_a_digest_is_not_asked_for(registry: Registry) -> None:
    image = registry.add("someone/closed")
    registry.private.add("someone/closed")
    assert with_digest(image, "train", registry_id="cred-1") == image
    assert registry.asked == []


@pytest.mark.parametrize("is_index", [True, False])
def test_an_image_for_another_platform_is_refused(registry: Registry, is_index: bool) -> None:
    image = registry.add("someone/arm", "linux/arm64", is_index=is_index)
    with pytest.raises(DataError, match=r"are linux/amd64, and .* linux/arm64 alone: build it"):
        with_digest(image, "train")


def test_an_image_for_several_platforms_is_taken(registry: Registry) -> None:
    image = registry.add("someone/both", "linux/arm64", "linux/amd64")
    assert with_digest(image, "train") == image


def test_a_manifest_that_is_not_what_was_asked_for_is_refused(registry: Registry) -> None:
    registry.add("someone/odd")
    registry.manifests["someone/odd", DIGEST] = registry.manifests["someone/odd", "latest"]
    with pytest.raises(DataError, match=f"digest is sha256:.*, not '{DIGEST}'"):
        with_digest(f"{registry.host}/someone/odd@{DIGEST}", "train")


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"manifests": 3}', b'{"config": {}}'])
def test_an_answer_that_is_no_manifest_is_refused(registry: Registry, body: bytes) -> None:
    registry.manifests["someone/odd", "1"] = ("application/vnd.oci.image.index.v1+json", body)
    with pytest.raises(DataError, match="did not give the manifest"):
        with_digest(f"{registry.host}/someone/odd:1", "train")


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({"schemaVersion": 1, "architecture": "amd64", "fsLayers": []}, "of schema 1, .*publish"),
        ({"schemaVersion": 2, "manifests": []}, "lists no image"),
        (
            {"manifests": [{"platform": {"os": "unknown", "architecture": "unknown"}}]},
            "lists no image",
        ),
    ],
)
def test_a_manifest_of_nothing_that_hosts_run_is_refused(
    registry: Registry, document: object, reason: str
) -> None:
    body = json.dumps(document).encode()
    registry.manifests["someone/old", "1"] = ("application/vnd.oci.image.index.v1+json", body)
    with pytest.raises(DataError, match=reason):
        with_digest(f"{registry.host}/someone/old:1", "train")


def test_an_index_that_names_no_platforms_is_taken(registry: Registry) -> None:
    """It is allowed to: hosts look into the images."""
    body = json.dumps({"schemaVersion": 2, "manifests": [{"digest": DIGEST}]}).encode()
    registry.manifests["someone/bare", "1"] = ("application/vnd.oci.image.index.v1+json", body)
    assert with_digest(f"{registry.host}/someone/bare:1", "train").endswith(digest_of(body))


@pytest.mark.parametrize(
    ("realm", "fault"),
    [
        ("http://127.0.0.1:1/token", "ConnectError"),
        ("{host}/v2/someone/busy/manifests/1", "503"),
        ("{host}/v2/someone/page/manifests/1", "JSONDecodeError|no token"),
        ("nowhere", "UnsupportedProtocol"),
    ],
)
def test_a_token_that_cannot_be_had_is_no_private_image(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, realm: str, fault: str
) -> None:
    registry.with_token.add("someone/open")
    registry.statuses["someone/busy"] = 503
    registry.statuses["someone/page"] = 200
    monkeypatch.setattr(registry, "realm", realm.format(host=f"http://{registry.host}"))
    with pytest.raises(DataError, match=rf"did not give the manifest .*({fault}).*Try again"):
        with_digest(f"{registry.host}/someone/open:1", "train")


@pytest.mark.parametrize("status", [429, 500])
def test_a_registry_that_is_busy_is_no_missing_image(registry: Registry, status: int) -> None:
    registry.statuses["someone/open"] = status
    with pytest.raises(DataError, match=rf"did not give the manifest .*{status}.*Try again"):
        with_digest(f"{registry.host}/someone/open:1", "train")


def test_a_registry_that_does_not_answer_is_named() -> None:
    with pytest.raises(DataError, match=r"127.0.0.1:1/a/b:c.*ConnectError"):
        with_digest("127.0.0.1:1/a/b:c", "train")


@pytest.mark.parametrize(
    ("job", "variable"), [("train", "MOOLA_IMAGE_GPU"), ("precompute", "MOOLA_IMAGE_CPU")]
)
def test_no_image_is_refused_with_where_to_name_it(job: str, variable: str) -> None:
    with pytest.raises(DataError, match=variable):
        with_digest(None, job)
