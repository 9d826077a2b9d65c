"""What a machine elsewhere needs to reach the store as this computer does.

What our boto3 client resolved, from the environment or ~/.aws/config, is what is sent; keys are no
part of it.
"""

import base64
import ipaddress
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

from moola.errors import DataError
from moola.store.profile import Profile
from moola.store.s3_client import OPENING_ATTEMPTS, new_client
from moola.store.s3_errors import boto_errors
from moola.store.s3_settings import (
    ADDRESSING,
    CA,
    KEY_VARIABLES,
    REQUEST_PAYER,
    Addressing,
    configured_addressing,
    configured_ca_bundle,
    open_session,
    requester_pays,
)

EXPIRATION = "AWS_CREDENTIAL_EXPIRATION"
AWS_ENDPOINT = re.compile(r"https://s3([.-][a-z0-9-]+)?\.amazonaws\.com(\.cn)?/?")
LOCAL_SUFFIXES = (".local", ".localhost", ".internal", ".lan", ".home.arpa")
SYSTEM_BUNDLES = (  # of Debian, Fedora, Alpine and macOS, SUSE
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
)
MAX_CA_BYTES = 16_384  # of the PEM file: it travels in an environment variable


@dataclass(frozen=True)
class S3Access:
    """Where a store is and how it is spoken to.

    `endpoint` is None for AWS itself. `expires` is the end of the session token, None where there
    is no token or where its end is not known.
    """

    endpoint: str | None
    region: str
    addressing: Addressing | None
    ca_bundle: Path | None
    requester_pays: bool
    has_token: bool
    expires: datetime | None

    def environment(self) -> dict[str, str]:
        """The variables by which moola finds the same store on another machine; no keys.

        Raises DataError for a private CA whose file is missing or too large to be sent.
        """
        variables = {"AWS_DEFAULT_REGION": self.region}
        if self.endpoint:
            variables["AWS_ENDPOINT_URL_S3"] = self.endpoint
        if self.addressing:
            variables[ADDRESSING] = self.addressing
        if self.requester_pays:
            variables[REQUEST_PAYER] = "requester"
        if self.ca_bundle and not is_system_bundle(self.ca_bundle):
            variables[CA] = _encoded_ca(self.ca_bundle)
        return variables

    def require_reachable(self) -> None:
        """Raises DataError if a machine elsewhere cannot reach the endpoint."""
        reason = unreachable_reason(self.endpoint or "")
        if reason:
            raise DataError(
                f"a machine elsewhere cannot reach the store's endpoint {self.endpoint}, {reason}: "
                "set AWS_ENDPOINT_URL_S3 to a public one, or use --on local or --on docker"
            )

    def token_warning(self, max_runtime: timedelta, now: datetime) -> str | None:
        """What to say of a session token that travels with a job; None if there is none.

        Raises DataError for a token that is known to end before the job may.
        """
        if not self.has_token:
            return None
        if self.expires is None:
            return (
                "AWS_SESSION_TOKEN ends at a time that is not known: where that is before the "
                "machine is done, its work since the last checkpoint is lost (set "
                f"{EXPIRATION}, or use keys that do not end)"
            )

        left = self.expires - now
        if left < max_runtime:
            raise DataError(
                f"the session token must outlast max_runtime {_text(max_runtime)}, it ends in "
                f"{_text(max(left, timedelta()))}, at {self.expires:%Y-%m-%d %H:%M} UTC: get one "
                "that lasts longer, use keys that do not end, or --set machine.max_runtime=..."
            )
        return None


def resolve_access() -> S3Access:
    """What our boto3 client resolves here and now; no request is sent.

    Raises AuthError and DataError as opening a store does.
    """
    with boto_errors("the settings of S3"):
        session = open_session()
        client = new_client(session, Profile(), OPENING_ATTEMPTS)
        endpoint = client.meta.endpoint_url
        ca_bundle = configured_ca_bundle(session)
        credentials = session.boto.get_credentials()
        has_token = credentials is not None and credentials.get_frozen_credentials().token
        # botocore keeps it to itself, and has it from whatever gave the token.
        expires = getattr(credentials, "_expiry_time", None)

    return S3Access(
        endpoint=None if AWS_ENDPOINT.fullmatch(endpoint) else endpoint,
        region=client.meta.region_name,
        addressing=configured_addressing(session),
        ca_bundle=Path(ca_bundle) if ca_bundle else None,
        requester_pays=requester_pays(),
        has_token=bool(has_token),
        expires=expires.astimezone(UTC) if has_token and expires else None,
    )


def resolve_keys() -> dict[str, str]:
    """The variables of the keys that our boto3 client uses here and now; {} where there are none.

    Keys that it would get anew in time are given as they are now. Raises AuthError as opening a
    store does.
    """
    with boto_errors("the settings of S3"):
        credentials = open_session().boto.get_credentials()
        if credentials is None:
            return {}
        keys = credentials.get_frozen_credentials()

    values = zip(KEY_VARIABLES, (keys.access_key, keys.secret_key, keys.token), strict=True)
    return {name: value for name, value in values if value}


def unreachable_reason(endpoint: str) -> str | None:
    """Why only this computer or its network can reach a web address; None if others can."""
    host = urlsplit(endpoint).hostname
    if host is None:
        return None

    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        is_local_name = host == "localhost" or host.endswith(LOCAL_SUFFIXES) or "." not in host
        return "a name of this computer or its network" if is_local_name else None
    if address.is_loopback or address.is_unspecified:
        return "this computer's own address"
    return None if address.is_global else "an address of a private network"


def is_system_bundle(path: Path) -> bool:
    """Is it what programs of this computer trust anyway? Another machine has a bundle like it."""
    return path.resolve() in {Path(bundle).resolve() for bundle in SYSTEM_BUNDLES}


def _encoded_ca(path: Path) -> str:
    if os.environ.get(CA):
        return os.environ[CA]
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"AWS_CA_BUNDLE must be a readable PEM file: {error}") from error
    if len(data) > MAX_CA_BYTES:
        raise DataError(
            f"AWS_CA_BUNDLE must have at most {MAX_CA_BYTES} B to be sent to a machine, got "
            f"{len(data)} B ({path}): keep only the certificate of the store's own authority in it"
        )
    return base64.b64encode(data).decode()


def _text(duration: timedelta) -> str:
    minutes = int(duration.total_seconds() // 60)
    return f"{minutes // 60}h{minutes % 60:02d}m"
