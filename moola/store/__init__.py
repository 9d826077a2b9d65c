"""One store behind `s3://bucket/prefix` and `file:///dir`: write-once, verified on the way up and on the way down.

The only module of moola that uses the network.
"""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from moola.errors import ArtifactError, DataError
from moola.store.base import Head, Probe, Profile, Store, implied_profile
from moola.store.local import FileStore
from moola.store.upload import BytesSource, FileSource, Source, Stored

__all__ = [
    "BytesSource",
    "FileSource",
    "FileStore",
    "Head",
    "Probe",
    "Profile",
    "Source",
    "Store",
    "Stored",
    "fetch_uri",
    "implied_profile",
    "open_store",
]


def open_store(url: str) -> Store:
    """The store at `s3://bucket/prefix` or `file:///dir` (`file://./dir` is relative). Asks it for its profile.

    S3 settings come from boto3's environment (AWS_ENDPOINT_URL_S3, AWS_ACCESS_KEY_ID, ...). Raises DataError for a bad
    URL or a missing bucket, AuthError for refused credentials, TryAgainError for a store that does not answer.
    """
    parts = urlsplit(url)
    if parts.query or parts.fragment:
        raise DataError(f"a store URL has no ? and no #, got {url!r}")
    if parts.scheme == "file" and (parts.netloc in ("", "localhost", ".") and parts.path not in ("", "/")):
        return FileStore(_file_path(url))
    if parts.scheme == "s3" and parts.netloc:
        from moola.store.s3 import S3Store  # boto3 takes half a second: file:// need not pay for it

        return S3Store.open(parts.netloc, parts.path.strip("/"))
    raise DataError(f"a store URL must be s3://bucket/prefix or file:///dir, got {url!r}")


def fetch_uri(uri: str, folder: Path) -> Path:
    """A local file with the bytes of `uri`: a path or file:// is itself, s3://bucket/key is fetched into `folder`.

    Raises DataError if it is missing.
    """
    if not uri.startswith("s3://"):
        path = _file_path(uri) if uri.startswith("file://") else Path(uri)
        if not path.is_file():
            raise DataError(f"there must be a file at {uri}")
        return path
    parent, _, name = uri.rpartition("/")
    store = open_store(parent)
    head = store.head(name) if name else None
    if head is None:
        raise DataError(f"there must be an object at {uri}")
    dest = folder / name
    try:
        store.copy_to(name, dest, head.size)
    except ArtifactError as error:
        raise DataError(f"{uri} could not be read: {error}") from error
    return dest


def _file_path(url: str) -> Path:
    parts = urlsplit(url)
    return Path(parts.netloc.removeprefix("localhost") + unquote(parts.path))
