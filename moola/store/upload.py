"""Upload in parts: what is uploaded, the journal that survives kill -9, and the pipeline that keeps two cores busy.

The calling thread fills a buffer, one thread hashes the buffers in order, others send them. Memory is part size x
(workers + 1). The producer is deterministic, so an interrupted upload runs it again for the digest of the whole and
sends only the parts that are not there yet.
"""

import base64
import hashlib
import json
import mmap
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar

from moola.errors import ConflictError, DataError

P = ParamSpec("P")
T = TypeVar("T")

OnProgress = Callable[[int], None]  # called in the calling thread with a number of further bytes


class Source(Protocol):
    """The bytes of one object, readable at any offset; the same bytes every time."""

    size: int

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill all of `buffer` with the bytes from `offset` on."""


class BytesSource:
    """Bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self._data, self.size = data, len(data)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self._data[offset : offset + len(buffer)]


class FileSource:
    """A file that does not change while it is read. Raises DataError if it is missing or gets shorter."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise DataError(f"an upload needs a file, got {path}")
        self._path, self.size = path, path.stat().st_size

    def read_into(self, offset: int, buffer: memoryview) -> None:
        with self._path.open("rb", buffering=0) as stream:
            stream.seek(offset)
            while buffer:
                count = stream.readinto(buffer)
                if not count:
                    raise DataError(f"a file must not shrink while it is read: {len(buffer)} B missing ({self._path})")
                buffer = buffer[count:]


@dataclass(frozen=True)
class Stored:
    """An object as it is in the store. `key` is an earlier attempt's where its upload was continued."""

    key: str
    size: int
    sha256: str  # hex; the identity
    crc64nvme: str  # base64, as S3 shows it; what a server can check
    etag: str  # only for conditional reads


@dataclass(frozen=True)
class Part:
    """A part that the store has confirmed; numbers start at 1."""

    number: int
    size: int
    crc64nvme: str
    etag: str


class PartStore(Protocol):
    """What a backend does for `upload_parts`."""

    @property
    def url(self) -> str: ...

    def begin_parts(self, key: str, size: int) -> str:
        """Open an upload of an object of `size` bytes; its id."""

    def kept_parts(self, upload: "Upload") -> dict[int, Part] | None:
        """Those of `upload.parts` that the store still has; None if it does not know the upload."""

    def send_part(self, upload: "Upload", number: int, data: memoryview, crc64nvme: str) -> str:
        """Send one part; its etag."""

    def finish_parts(self, upload: "Upload", parts: list[Part], crc64nvme: str) -> str | None:
        """Make the object visible; its etag, or None where only a look at the object can tell whether it is ours."""

    def exists(self, key: str) -> bool: ...

    def holds(self, key: str, size: int, sha256: str, crc64nvme: str) -> str | None:
        """The etag of the object if it has exactly these bytes, else None."""


# --- checksums and threads --------------------------------------------------------------------------------------


def crc64(data: bytes | memoryview) -> str:
    """CRC64NVME, base64 of 8 bytes as S3 shows it."""
    from awscrt import checksums  # not at the top: a tenth of a second that --help need not pay

    return _crc_text(checksums.crc64nvme(data))


def _crc_text(crc: int) -> str:
    return base64.b64encode(crc.to_bytes(8, "big")).decode()


def combine_crc64(parts: list[Part]) -> str:
    """CRC64NVME of the whole from those of its parts."""
    from awscrt import checksums

    pairs = [(int.from_bytes(base64.b64decode(part.crc64nvme), "big"), part.size) for part in parts]
    whole, _ = reduce(lambda a, b: (checksums.combine_crc64nvme(a[0], b[0], b[1]), 0), pairs)
    return _crc_text(whole)


def start(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
    """Run `work` in a daemon thread: unlike an executor's, it cannot hold up a process that was told to stop."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


# --- journal ----------------------------------------------------------------------------------------------------


@dataclass
class Upload:
    """One upload in parts, as the journal knows it."""

    key: str
    upload_id: str
    part_size: int
    parts: dict[int, Part] = field(default_factory=dict)
    done: bool = False


class Journal:
    """JSON lines {begin, ...}, {part, ...}, {done}: written before the next step, so they survive kill -9.

    Begin and done also survive a power cut; a part's line lost in one costs that part again. With no path, nothing.
    """

    def __init__(self, path: Path | None, url: str, size: int) -> None:
        self._path, self._about = path, {"url": url, "size": size}
        self._lock = threading.Lock()

    def read(self) -> Upload | None:
        """The upload that was begun last, if it was of an object of this size to this store."""
        upload = None
        for line in self._lines():
            if "begin" in line:
                known = {name: line[name] for name in self._about} == self._about
                upload = Upload(line["begin"], line["upload_id"], line["part_size"]) if known else None
            elif upload is None or line["upload_id"] != upload.upload_id:
                continue  # a part that an abandoned thread of an earlier upload still sent
            elif "part" in line:
                upload.parts[line["part"]["number"]] = Part(**line["part"])
            else:
                upload.done = True
        return upload

    def begin(self, upload: Upload) -> None:
        self._write({"begin": upload.key, "part_size": upload.part_size, **self._about}, upload)

    def part(self, upload: Upload, part: Part) -> None:
        self._write({"part": asdict(part)}, upload)

    def done(self, upload: Upload) -> None:
        self._write({"done": True}, upload)

    def _lines(self) -> list[dict[str, Any]]:
        lines = []
        for text in self._path.read_bytes().split(b"\n") if self._path and self._path.exists() else []:
            try:
                lines.append(json.loads(text))
            except ValueError:  # the last line of a process that was killed in the middle of it, or the empty end
                continue
        return lines

    def _write(self, line: dict[str, Any], upload: Upload) -> None:
        if self._path is None:
            return
        text = json.dumps({**line, "upload_id": upload.upload_id})
        data = f"\n{text}\n".encode()  # the first ends a line that a killed process left torn
        with self._lock, self._path.open("ab", buffering=0) as stream:
            stream.write(data)
            if "part" not in line:
                os.fsync(stream.fileno())


# --- pipeline ---------------------------------------------------------------------------------------------------

Send = Callable[[int, memoryview], Part]  # (number, bytes) -> the confirmed part


def run_parts(
    source: Source, part_size: int, workers: int, send: Send, on_progress: OnProgress | None = None
) -> tuple[str, list[Part]]:
    """(sha256 of the whole, parts in order): `send` is called from several threads, a part's bytes only until then.

    An exception in the calling thread, such as a signal's, leaves at once; parts in flight end by themselves.
    """
    digest = hashlib.sha256()
    hashed = start(digest.update, b"")
    parts: list[Part] = []
    # Anonymous maps, not bytearrays: they start at a page, as a write past the page cache has to.
    free = [mmap.mmap(-1, min(part_size, source.size)) for _ in range(workers + 1)]
    flying: deque[tuple[mmap.mmap, Future[None], Future[Part]]] = deque()

    def land() -> None:
        buffer, hashed, sent = flying.popleft()
        parts.append(sent.result())
        hashed.result()
        free.append(buffer)
        if on_progress:
            on_progress(parts[-1].size)

    for number, offset in enumerate(range(0, source.size, part_size), 1):
        if not free:
            land()
        buffer = free.pop()
        data = memoryview(buffer)[: source.size - offset]
        source.read_into(offset, data)
        hashed = start(_hash_after, hashed, digest.update, data)
        flying.append((buffer, hashed, start(send, number, data)))
    while flying:
        land()
    return digest.hexdigest(), parts


def _hash_after(previous: Future[None], update: Callable[[memoryview], None], data: memoryview) -> None:
    previous.result()
    update(data)


def upload_parts(
    store: PartStore,
    key: str,
    source: Source,
    *,
    part_size: int,
    workers: int,
    journal: Journal,
    on_progress: OnProgress | None,
) -> Stored:
    """Write-once upload of an object that is not empty; see `Store.upload`."""
    upload = journal.read()
    kept = store.kept_parts(upload) if upload and not upload.done else None
    if upload is None or kept is None:  # nothing begun, or it was finished, or the store has forgotten it
        for place in dict.fromkeys([upload.key if upload else key, key]):
            found = _find(store, place, source, part_size, workers, on_progress)
            if found:
                return found
        upload, kept = Upload(key, store.begin_parts(key, source.size), part_size), {}
        journal.begin(upload)
    sha256, parts = _send_parts(store, upload, kept, source, workers, journal, on_progress)
    crc = combine_crc64(parts)
    etag = store.finish_parts(upload, parts, crc) or store.holds(upload.key, source.size, sha256, crc)
    if etag is None:
        raise ConflictError(f"{upload.key} is written once and holds other bytes already ({store.url})")
    journal.done(upload)
    return Stored(upload.key, source.size, sha256, crc, etag)


def _send_parts(
    store: PartStore,
    upload: Upload,
    kept: dict[int, Part],
    source: Source,
    workers: int,
    journal: Journal,
    on_progress: OnProgress | None,
) -> tuple[str, list[Part]]:
    def send(number: int, data: memoryview) -> Part:
        crc, there = crc64(data), kept.get(number)
        if there and (there.size, there.crc64nvme) == (len(data), crc):
            return there
        part = Part(number, len(data), crc, store.send_part(upload, number, data, crc))
        journal.part(upload, part)
        return part

    return run_parts(source, upload.part_size, workers, send, on_progress)


def _find(
    store: PartStore, key: str, source: Source, part_size: int, workers: int, on_progress: OnProgress | None
) -> Stored | None:
    """The object under `key` if it has the source's bytes already."""
    if not store.exists(key):
        return None
    sha256, parts = run_parts(source, part_size, workers, lambda n, data: Part(n, len(data), crc64(data), ""))
    crc = combine_crc64(parts)
    etag = store.holds(key, source.size, sha256, crc)
    if etag is None:
        return None
    if on_progress:
        on_progress(source.size)
    return Stored(key, source.size, sha256, crc, etag)
