"""boto3's S3 client: timeouts, attempts and checksums, and the bodies of its responses."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from botocore import exceptions as boto
from botocore.config import Config
from urllib3.exceptions import HTTPError

from moola.store.http_date import http_date_s
from moola.store.profile import Profile
from moola.store.s3_settings import (
    AwsSession,
    configured_addressing,
    configured_ca_bundle,
    max_attempts,
    requester_pays,
    require_address,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CONNECT_TIMEOUT_S = 10
SPARE_CONNECTIONS = 16  # for small objects, beside the workers'
BOTO_ATTEMPTS = 10
OPENING_ATTEMPTS = 2

Connect = Callable[[Profile], "S3Client"]


class DamagedError(Exception):
    """A response's bytes do not have the checksum sent with them, or did not all arrive."""


class Body(Protocol):
    """The body of a response."""

    def read(self) -> bytes: ...


def connector(session: AwsSession) -> Connect:
    """What makes the clients of a session, as patient as boto3 can be."""
    return lambda profile: new_client(session, profile, BOTO_ATTEMPTS)


def new_client(session: AwsSession, profile: Profile, attempts: int) -> "S3Client":
    """A client that makes so many attempts, or AWS_MAX_ATTEMPTS."""
    server_sends_crc = profile.integrity == "crc64nvme"
    addressing = configured_addressing(session)

    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=profile.read_timeout_s,
        max_pool_connections=profile.workers + SPARE_CONNECTIONS,
        tcp_keepalive=True,
        retries={"mode": "standard", "total_max_attempts": max_attempts(attempts)},
        request_checksum_calculation="when_required",  # ours are explicit
        response_checksum_validation="when_supported" if server_sends_crc else "when_required",
        s3={"addressing_style": addressing} if addressing else None,
    )
    client = session.boto.client("s3", config=config, verify=configured_ca_bundle(session))
    require_address("the store's endpoint in ~/.aws/config", client.meta.endpoint_url)

    client.meta.events.register("before-call.s3.HeadBucket", _follow_no_redirect)
    if requester_pays():
        client.meta.events.register("before-call.s3", _say_requester_pays)
    return client


def _follow_no_redirect(context: dict[str, Any], **_: object) -> None:
    """botocore asks so for a bucket's region after a redirect, and on and on after a second one."""
    context["s3_redirect"] = {**context.get("s3_redirect", {}), "redirected": True}


def _say_requester_pays(params: dict[str, Any], **_: object) -> None:
    params["headers"]["x-amz-request-payer"] = "requester"


def read_body(body: Body) -> bytes:
    """All bytes of a response. Raises DamagedError."""
    try:
        return body.read()
    except (boto.BotoCoreError, HTTPError, OSError) as error:
        raise DamagedError(str(error)) from error


def times_of(response: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """(when the object was written, when the response was sent), by the server's own clock.

    In Unix seconds; None where the server does not tell.
    """
    modified = response.get("LastModified")
    written_s = None if modified is None else modified.timestamp()

    headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return written_s, http_date_s(headers.get("date"))
