"""One store behind `s3://bucket/prefix` and `file:///dir`: write-once, verified both ways."""

from urllib.parse import SplitResult, urlsplit

from moola.errors import DataError
from moola.store.base import (
    MAX_DOCUMENT_BYTES,
    Dated,
    Entry,
    Head,
    Listing,
    Store,
    TooLargeError,
)
from moola.store.fetch import fetch_uri, file_path
from moola.store.folder import Folder
from moola.store.local import FileStore
from moola.store.profile import PROFILE_KEY, Check, Probe, Profile
from moola.store.sources import BytesSource, FileSource, Source
from moola.store.upload import Stored
from moola.text import quoted

__all__ = [
    "DEFAULT_STORE",
    "MAX_DOCUMENT_BYTES",
    "PROFILE_KEY",
    "BytesSource",
    "Check",
    "Dated",
    "Entry",
    "FileSource",
    "FileStore",
    "Folder",
    "Head",
    "Listing",
    "Probe",
    "Profile",
    "Source",
    "Store",
    "Stored",
    "TooLargeError",
    "fetch_uri",
    "open_store",
]

DEFAULT_STORE = "file://./moola-store"


def open_store(url: str) -> Store:
    """The store at `s3://bucket/prefix` or `file:///dir` (`file://./dir` is relative), opened.

    S3 settings come from boto3's environment (AWS_ENDPOINT_URL_S3, AWS_ACCESS_KEY_ID, ...), what
    the provider can do from the store's own profile; one without is probed before the first write.
    Raises DataError for a bad URL or a missing bucket, AuthError for refused credentials,
    TryAgainError for a store that does not answer.
    """
    parts = _split(url)
    is_local = parts.netloc in ("", "localhost", ".")
    if parts.scheme == "file" and is_local and parts.path not in ("", "/"):
        return FileStore(file_path(url))

    if parts.scheme == "s3" and parts.netloc:
        from moola.store.s3 import S3Store  # boto3 takes half a second, which file:// does not pay

        return S3Store.open(parts.netloc, parts.path.strip("/"))

    raise DataError(f"a store URL must be s3://bucket/prefix or file:///dir, got {quoted(url)}")


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
    except ValueError as error:  # s3://[x
        raise DataError(
            f"a store URL must be s3://bucket/prefix or file:///dir, got {quoted(url)}: {error}"
        ) from error

    if "@" in parts.netloc:
        raise DataError("a store URL has no user and password: keys are AWS_* in the environment")
    if "\0" in url:
        raise DataError(f"a store URL has no NUL, got {quoted(url)}")
    if parts.query or parts.fragment:
        raise DataError(f"a store URL has no ? and no #, got {quoted(url)}")
    return parts
