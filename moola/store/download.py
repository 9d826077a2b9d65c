"""Downloads: an object's bytes in order, read ahead, into a file that appears when it is right."""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING

from moola.errors import ArtifactError
from moola.store.background import in_background
from moola.store.folder import Folder, part_name, write_all

if TYPE_CHECKING:
    from moola.store.base import Head, Store

MIB = 1 << 20  # bytes
PULL_TRIES = 3

OnProgress = Callable[[int], None]


def read_chunks(
    store: "Store",
    key: str,
    size: int,
    offset: int = 0,
    head: "Head | None" = None,
) -> Iterator[bytes]:
    """See `Store.read_chunks`. The bytes are those of the version `head`, or of what is there."""
    head = head or store.head(key)
    if head is None:
        raise ArtifactError(f"{key} is not in the store ({store.url})")
    if head.size != size:
        raise ArtifactError(f"{key} must have {size} B, got {head.size} B ({store.url})")

    chunk_size = store.profile.part_mib * MIB
    pending: deque[Future[bytes]] = deque()

    for start in range(offset, size, chunk_size):
        if len(pending) == store.profile.workers:
            yield pending.popleft().result()
        length = min(chunk_size, size - start)
        pending.append(in_background(store.read_range, key, start, length, head.etag))

    while pending:
        yield pending.popleft().result()


def pull(
    store: "Store",
    key: str,
    folder: Folder,
    path: str,
    *,
    size: int,
    sha256: str,
    on_progress: OnProgress | None = None,
) -> None:
    """See `Store.pull_into`."""
    part = part_name(path)
    actual = ""

    for _ in range(PULL_TRIES):
        actual = fetch(store, key, folder, part, size, on_progress)
        if actual == sha256:
            folder.rename(part, path)
            return
        folder.remove(part)

    raise ArtifactError(
        f"sha256 of {key} must be {sha256}, got {actual} in {PULL_TRIES} tries ({store.url})"
    )


def fetch(
    store: "Store",
    key: str,
    folder: Folder,
    part: str,
    size: int,
    on_progress: OnProgress | None,
    head: "Head | None" = None,
) -> str:
    """Complete the file `part`; the sha256 of all of it, of the version `head` if one is named."""
    digest = hashlib.sha256()

    with folder.open_to_append(part) as stream:
        if stream.seek(0, os.SEEK_END) > size:
            stream.truncate(0)
        stream.seek(0)
        while chunk := stream.read(MIB):
            digest.update(chunk)

        offset = stream.tell()
        if on_progress and offset:
            on_progress(offset)

        for data in read_chunks(store, key, size, offset, head):
            hashed = in_background(digest.update, data)
            write_all(stream, data)
            hashed.result()
            if on_progress:
                on_progress(len(data))
        os.fsync(stream.fileno())

    return digest.hexdigest()
