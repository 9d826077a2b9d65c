"""Where boto3 finds the store, and with which keys: the environment and ~/.aws, read with care.

An empty variable counts as unset. What is refused here is named; no value of a key is printed.
"""

import base64
import functools
import os
import re
import tempfile
from collections.abc import MutableMapping
from typing import Literal, NamedTuple

import boto3
import botocore.session

from moola.errors import AuthError, DataError
from moola.text import quoted

ADDRESSING = "MOOLA_S3_ADDRESSING"  # virtual or path
REQUEST_PAYER = "MOOLA_S3_REQUEST_PAYER"  # requester
CA = "MOOLA_S3_CA"  # the bundle of AWS_CA_BUNDLE itself, in base64: for machines that lack the file
KEY_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
MAX_ATTEMPTS = "AWS_MAX_ATTEMPTS"
PREFIXES = ("AWS_", "MOOLA_S3_")

Addressing = Literal["virtual", "path"]


class AwsSession(NamedTuple):
    """boto3's session, and botocore's below it, which tells what was configured."""

    boto: boto3.session.Session
    core: botocore.session.Session


def open_session() -> AwsSession:
    """A session by the environment and ~/.aws.

    Raises AuthError for keys with stray characters, DataError for other settings that cannot be.
    """
    unset_empty_variables(os.environ)
    # Without this, missing credentials cost a slow look-up.
    os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")
    for name in KEY_VARIABLES:
        require_clean(name, os.environ.get(name))
    for name in ENDPOINT_VARIABLES:
        require_address(name, os.environ.get(name))

    core = botocore.session.get_session()
    session = boto3.session.Session(
        botocore_session=core,
        region_name=core.get_config_variable("region") or os.environ.get("AWS_REGION"),
    )
    credentials = session.get_credentials()
    if credentials is not None:
        keys = credentials.get_frozen_credentials()
        place = f"from {credentials.method}"
        require_clean(f"the access key {place}", keys.access_key)
        require_clean(f"the secret key {place}", keys.secret_key)
        require_clean(f"the session token {place}", keys.token)
    return AwsSession(session, core)


def unset_empty_variables(environ: MutableMapping[str, str]) -> None:
    """Take out those of S3 that are empty, as GitHub's Actions sets those that nobody gave."""
    for name, value in list(environ.items()):
        if name.startswith(PREFIXES) and not value.strip():
            del environ[name]


def require_clean(name: str, value: str | None) -> None:
    """Raises AuthError if a key has a character that no key has; the value is not shown."""
    if value is None or re.fullmatch(r"[!-~]*", value):
        return

    if re.fullmatch(r"\s*[!-~]*\s*", value):
        fault = "a blank or a line end before or after it"
    elif re.search(r"\s", value):
        fault = "a blank or a line end in it"
    else:
        fault = "a control character, or one that is not ASCII"
    raise AuthError(f"{name} must be the key alone, got {fault}: set it again")


def require_address(name: str, endpoint: str | None) -> None:
    """Raises DataError if an endpoint is no web address, or if there is a password in it.

    The password is not shown.
    """
    if endpoint is None:
        return
    if "@" in endpoint:
        raise DataError(
            f"{name} must be http(s)://host[:port] without user and password: keys are given in "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if not re.match(r"https?://[^/]", endpoint, re.IGNORECASE):
        raise DataError(f"{name} must be http(s)://host[:port], got {quoted(endpoint)}")


def require_no_bucket(bucket: str, endpoint: str) -> None:
    """Raises DataError if an endpoint ends with the bucket, as some providers' pages show it."""
    start, _, last = endpoint.rstrip("/").rpartition("/")
    if last == bucket and "://" in start:
        raise DataError(
            f"AWS_ENDPOINT_URL_S3 must not have the bucket in it, got {quoted(endpoint)}: set it "
            f"to {quoted(start)}"
        )


def max_attempts(default: int) -> int:
    """AWS_MAX_ATTEMPTS, or the default. Raises DataError."""
    text = os.environ.get(MAX_ATTEMPTS, str(default))
    if not re.fullmatch(r"[1-9]\d{0,3}", text):
        raise DataError(f"{MAX_ATTEMPTS} must be a whole number from 1 on, got {quoted(text)}")
    return int(text)


def configured_addressing(session: AwsSession) -> Addressing | None:
    """How the bucket is named in a request, if somebody chose it. Raises DataError.

    It is MOOLA_S3_ADDRESSING, else `addressing_style` in ~/.aws/config.
    """
    from_environment = os.environ.get(ADDRESSING)
    section = session.core.get_config_variable("s3") or {}
    style = from_environment or section.get("addressing_style")

    if style in (None, "auto"):
        return None
    if style == "virtual":
        return "virtual"
    if style == "path":
        return "path"
    raise DataError(
        f"{ADDRESSING} (or addressing_style in ~/.aws/config) must be virtual or path, "
        f"got {quoted(style)}"
    )


def requester_pays() -> bool:
    """Whether requests say that this account pays for them. Raises DataError."""
    payer = os.environ.get(REQUEST_PAYER)
    if payer not in (None, "requester"):
        raise DataError(f"{REQUEST_PAYER} must be requester, or not be set, got {quoted(payer)}")
    return payer is not None


def configured_ca_bundle(session: AwsSession) -> str | None:
    """The path of the certificates to trust instead of the usual ones.

    They are those of AWS_CA_BUNDLE or ~/.aws/config, or those in MOOLA_S3_CA.
    """
    path: str | None = session.core.get_config_variable("ca_bundle")
    encoded = os.environ.get(CA)
    if path or not encoded:
        return path
    return _ca_file(encoded).name


@functools.lru_cache(maxsize=1)
def _ca_file(encoded: str) -> "tempfile._TemporaryFileWrapper[bytes]":
    """A file of this process alone, which goes when the process ends."""
    try:
        text = base64.b64decode(encoded, validate=True)
    except ValueError as error:
        raise DataError(f"{CA} must be a PEM file in base64: {error}") from error

    file = tempfile.NamedTemporaryFile(prefix="moola-ca-", suffix=".pem")  # noqa: SIM115
    file.write(text)
    file.flush()
    return file
