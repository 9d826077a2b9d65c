"""Bars and labels where they are: a path, file:// or s3://, whoever's bucket that is."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from moola.errors import ArtifactError, DataError
from moola.store.base import check_key
from moola.text import quoted, shortened

DIGEST_CHARACTERS = 32  # of a sha256, enough to tell objects apart

Reserve = Callable[[Path], None]


def fetch_uri(uri: str, folder: Path, reserve: Reserve | None = None) -> Path:
    """A local file with the bytes of `uri`: a path, file:// or s3://bucket/key.

    A local file is itself. An object is fetched to a place in `folder` that is of its uri and its
    etag alone, so that no two objects of one name can meet. Its bucket is asked for nothing else.
    `reserve` is told that place before anything is fetched. Raises DataError if it is missing.
    """
    if not uri.startswith("s3://"):
        try:
            path = file_path(uri) if uri.startswith("file://") else Path(uri)
            is_file = path.is_file()
        except (ValueError, OSError):  # no URL, or a name that no file can have
            is_file = False
        if not is_file:
            raise DataError(f"there must be a file at {shortened(uri)}")
        return path

    bucket, _, key = uri.removeprefix("s3://").partition("/")
    name = key.rpartition("/")[2]
    if not bucket or not name:
        raise DataError(f"an object's uri must be s3://bucket/key, got {quoted(uri)}")
    return _fetch_object(uri, bucket, key, check_key(name), folder, reserve)


def _fetch_object(
    uri: str,
    bucket: str,
    key: str,
    name: str,
    folder: Path,
    reserve: Reserve | None,
) -> Path:
    from moola.store.s3 import S3Store  # boto3 takes half a second, which a path does not pay

    store = S3Store.open_to_read(bucket)
    head = store.head(key)
    if head is None:
        raise DataError(f"there must be an object at {uri}")

    version = f"{uri}\n{head.etag}\n{head.size}"
    digest = hashlib.sha256(version.encode()).hexdigest()[:DIGEST_CHARACTERS]
    dest = folder / digest / name
    if reserve is not None:
        reserve(dest.parent)
    try:
        store.copy_to(key, dest, head)
    except ArtifactError as error:
        raise DataError(f"{uri} could not be read: {error}") from error
    return dest


def object_names(uri: str) -> list[str]:
    """Sorted names of the objects one level below s3://bucket/prefix, folders among them."""
    from moola.store.s3 import S3Store

    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise DataError(f"a folder's uri must be s3://bucket/prefix/, got {quoted(uri)}")
    return S3Store.open_to_read(bucket).children(prefix.strip("/"))


def file_path(url: str) -> Path:
    """The path of a file:// url."""
    parts = urlsplit(url)
    return Path(parts.netloc.removeprefix("localhost") + unquote(parts.path))
