"""What a store's refusals mean, and what a person is told to do: error responses of many servers.

No server is behind these responses: a proxy gives all of them.
"""

import contextlib
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from moola.errors import ArtifactError, AuthError, DataError, MoolaError, TryAgainError
from moola.store import Store, open_store
from tests.s3_proxy import Call, Proxy, running_proxy

NOWHERE = "http://127.0.0.1:9"
URL = "s3://bucket/prefix"
PAGE = b"<!DOCTYPE html><html><body><br>Nothing here</body></html>"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA-example")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr("time.sleep", lambda _: None)
    with running_proxy(NOWHERE) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        proxy.on_request = give_profile
        yield proxy


def give(call: Call, status: int, body: bytes, **headers: str) -> None:
    call.status = status
    call.reply = bytearray(body)
    call.reply_headers = {name.replace("_", "-"): value for name, value in headers.items()}
    call.answered = True


def give_profile(call: Call) -> None:
    give(call, 200, b"{}", etag='"1"')


def refusal_of(server: Proxy, store: Store, status: int, code: str, message: str) -> MoolaError:
    """What a write is refused with."""
    server.on_request = lambda call: call.answer(status, code, message)
    with pytest.raises(MoolaError) as caught:
        store.create("key", b"x")
    return caught.value


# --- codes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code", "message", "kind", "words"),
    [
        (503, "SlowDown", "Please reduce your request rate.", TryAgainError, "the store failed"),
        (400, "SlowDown", "", TryAgainError, "the store failed"),
        (503, "RequestLimitExceeded", "", TryAgainError, "the store failed"),
        (429, "RateQuotaExceeded", "", TryAgainError, "the store failed"),
        (409, "OperationAborted", "", TryAgainError, "the store failed"),
        (409, "ConditionalRequestConflict", "", TryAgainError, "the store failed"),
        (403, "RequestExpired", "Request has expired", AuthError, "the clock of this machine"),
        (400, "InvalidTokenId", "", AuthError, "the store refused the credentials"),
        (400, "InvalidRegionName", "", DataError, "set AWS_DEFAULT_REGION to the bucket's"),
        (400, "InvalidBucketName", "", DataError, "the bucket's name must be one that S3 takes"),
        (404, "NoSuchBucket", "", DataError, "the bucket must exist"),
        (400, "EntityTooLarge", "", DataError, "set another part_mib in profile.json"),
        (413, "", "", DataError, "set another part_mib in profile.json"),
        (405, "MethodNotAllowed", "", DataError, "`moola store check --save`"),
        (400, "InvalidArgument", "x-amz-sdk-checksum-algorithm is invalid", DataError, "--save`"),
        (400, "InvalidRequest", "The algorithm type CRC64NVME is not valid", DataError, "--save`"),
        (411, "MissingContentLength", "", ArtifactError, "the store refused"),
    ],
)
def test_a_code_means_what_it_says(
    server: Proxy, status: int, code: str, message: str, kind: type[MoolaError], words: str
) -> None:
    refusal = refusal_of(server, open_store(URL), status, code, message)
    assert type(refusal) is kind
    assert words in str(refusal)
    assert f"({URL}/key)" in str(refusal)


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (403, "AccessDenied", "Cannot upload files, storage cap exceeded."),
        (403, "AccessDenied", "Transaction cap exceeded, see the Caps page"),
        (403, "transaction_cap_exceeded", ""),
        (403, "QuotaExceeded", ""),
        (403, "AccountProblem", "There is a problem with your account"),
        (402, "PaymentRequired", ""),
        (507, "XMinioStorageFull", "Storage backend has reached its minimum free disk threshold"),
    ],
)
def test_a_full_store_is_no_lack_of_rights_and_not_tried_again(
    server: Proxy, status: int, code: str, message: str
) -> None:
    store = open_store(URL)
    refusal = refusal_of(server, store, status, code, message)
    assert type(refusal) is DataError
    assert "see what the provider says of caps, quota and payment" in str(refusal)
    with pytest.raises(DataError, match="caps, quota and payment"):
        store.get_or_none("key")  # no proof that there is no such object


def test_rights_that_name_a_quota_are_rights(server: Proxy) -> None:
    message = "not authorized to perform: s3:PutObject on arn:aws:s3:::bucket/quota/exceeded"
    refusal = refusal_of(server, open_store(URL), 403, "AccessDenied", message)
    assert "they lack s3:PutObject" in str(refusal)


@pytest.mark.parametrize("code", ["PreconditionFailed", "412", ""])
def test_a_key_that_is_taken_is_known_by_the_status_too(server: Proxy, code: str) -> None:
    store = open_store(URL)
    server.on_request = lambda call: call.answer(412, code)
    assert not store.create("key", b"x")


def test_what_a_server_leaves_out_is_not_shown(server: Proxy) -> None:
    store = open_store(URL)
    assert "ServiceUnavailable (503) to PutObject (s3" in str(
        refusal_of(server, store, 503, "ServiceUnavailable", "")
    )
    server.on_request = lambda call: give(call, 400, b"")
    with pytest.raises(ArtifactError, match=r"the store refused: 400 to PutObject: Bad Request"):
        store.create("key", b"x")


# --- addresses --------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_an_address_that_leads_elsewhere_is_named(server: Proxy, status: int) -> None:
    """Such as http for https: botocore asks on and on where the bucket may be."""
    server.on_request = lambda call: give(
        call, status, b"", location="https://s3.example.com/bucket"
    )
    advice = r"leads to https://s3\.example\.com: .*AWS_ENDPOINT_URL_S3"
    with pytest.raises(DataError, match=advice):
        open_store(URL)
    assert len(server.calls) <= 4


@pytest.mark.parametrize("code", ["PermanentRedirect", "TemporaryRedirect"])
def test_a_redirect_that_names_no_region_asks_for_it(server: Proxy, code: str) -> None:
    server.on_request = lambda call: call.answer(301, code, "Use the specified endpoint.")
    with pytest.raises(DataError, match="set AWS_DEFAULT_REGION to the bucket's region"):
        open_store(URL)
    assert len(server.calls) <= 4


def test_a_redirect_that_names_the_region_says_it(server: Proxy) -> None:
    region = {"x_amz_bucket_region": "eu-central-1"}
    server.on_request = lambda call: give(call, 301, b"", **region)
    with pytest.raises(DataError, match="set AWS_DEFAULT_REGION=eu-central-1"):
        open_store(URL)


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 405])
def test_a_web_page_is_no_store(server: Proxy, status: int) -> None:
    """A console's port, a proxy's login, a site for all addresses."""
    server.on_request = lambda call: give(call, status, PAGE, content_type="text/html")
    with pytest.raises(DataError, match="must be the address of an S3 API"):
        open_store(URL)


@pytest.mark.parametrize("body", [PAGE.replace(b"<br>", b""), b""], ids=["page", "empty"])
def test_a_response_without_what_each_of_s3_has_is_no_fault_of_ours(
    server: Proxy, body: bytes
) -> None:
    store = open_store(URL)
    server.on_request = lambda call: give(call, 200, body, content_type="text/html")
    for request in (store.head, store.get_or_none, lambda key: store.begin_parts(key, 1)):
        with pytest.raises(DataError, match=r"must be the address of an S3 API.* without"):
            request("key")


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The port of a TLS server of 127.0.0.1, and a folder with the certificate of its authority."""
    folder = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "own.pem")
    trustme.CA().cert_pem.write_to_path(folder / "other.pem")
    (folder / "empty.pem").touch()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)

    with socket.create_server(("127.0.0.1", 0)) as plain:
        server = context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=close_all, args=(server,), daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}", folder


def close_all(server: ssl.SSLSocket) -> None:
    """Shake hands with each client, and say nothing more."""
    while True:
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            connection, _ = server.accept()
            with connection:
                connection.do_handshake()


@pytest.mark.parametrize("bundle", [None, "other.pem", "missing.pem", "empty.pem"])
@pytest.mark.usefixtures("server")
def test_a_certificate_that_is_not_trusted_names_the_bundle(
    secured: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, bundle: str | None
) -> None:
    address, folder = secured
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"https://{address}")
    if bundle is not None:
        monkeypatch.setenv("AWS_CA_BUNDLE", str(folder / bundle))
    with pytest.raises(DataError, match=r"certificate must be .* set AWS_CA_BUNDLE to its PEM"):
        open_store(URL)


def test_https_to_a_server_without_it_is_not_tried_again(
    server: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.url.replace("http:", "https:"))
    with pytest.raises(DataError, match="https only where it speaks that"):
        open_store(URL)


def test_a_line_that_breaks_under_a_trusted_certificate_is_tried_again(
    server: Proxy, secured: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert server.calls == []
    address, folder = secured
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"https://{address}")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(folder / "own.pem"))
    with pytest.raises(TryAgainError, match="the store did not answer"):
        open_store(URL)


def test_a_page_in_passing_is_tried_again(server: Proxy) -> None:
    server.on_request = lambda call: give(call, 502, PAGE, content_type="text/html")
    with pytest.raises(TryAgainError, match=r"the store failed: 502"):
        open_store(URL)
