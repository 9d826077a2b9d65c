"""Upload in parts: a pipeline that keeps two cores busy and goes on where a killed process stopped.

The calling thread fills a buffer, one thread hashes the buffers in order, others send them. Memory
is part size x (workers + 1). A source gives the same bytes every time, so an interrupted upload
reads it again for the digest of the whole, and sends only the parts that are not there yet.
"""

import hashlib
import mmap
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from moola.errors import ConflictError
from moola.store.background import in_background
from moola.store.checksums import combine_crc64, crc64
from moola.store.journal import Journal, Part, Upload
from moola.store.sources import Source

OnProgress = Callable[[int], None]  # called in the calling thread with a number of further bytes
SendPart = Callable[[int, memoryview], Part]  # (number, bytes) -> the confirmed part


@dataclass(frozen=True)
class Stored:
    """An object as it is in the store.

    `key` is that of an earlier attempt where its upload was continued.
    """

    key: str
    size: int
    sha256: str  # hex; the identity
    crc64nvme: str  # base64, as S3 shows it; what a server can check
    etag: str  # only for conditional reads


class PartStore(Protocol):
    """What a backend does for an upload in parts."""

    @property
    def url(self) -> str: ...

    def begin_parts(self, key: str, size: int) -> str:
        """Open an upload of an object of `size` bytes; its id."""

    def kept_parts(self, upload: Upload) -> dict[int, Part] | None:
        """Those of `upload.parts` that the store still has; None if it does not know the upload."""

    def send_part(
        self,
        upload: Upload,
        number: int,
        data: memoryview,
        crc64nvme: str,
    ) -> str:
        """Send one part; its etag."""

    def finish_parts(
        self,
        upload: Upload,
        parts: list[Part],
        crc64nvme: str,
    ) -> str | None:
        """Make the object visible unless the key exists; its etag.

        None where only `holds` can tell whether the object is this one.
        """

    def exists(self, key: str) -> bool: ...

    def holds(
        self,
        key: str,
        size: int,
        sha256: str,
        crc64nvme: str,
    ) -> str | None:
        """The etag of the object if it has exactly these bytes, else None."""


@dataclass(frozen=True)
class PartInFlight:
    """A buffer that is being hashed and sent; free again when both are done."""

    buffer: mmap.mmap
    hashed: Future[None]
    sent: Future[Part]


class PartPipeline:
    """Hashes a source and hands its parts to `send`, which is called from several threads.

    `send` may use a part's bytes until it returns. An exception in the calling thread, such as a
    signal's, leaves at once; parts in flight end by themselves.
    """

    def __init__(
        self,
        source: Source,
        part_size: int,
        workers: int,
        send: SendPart,
        on_progress: OnProgress | None = None,
    ) -> None:
        self._source = source
        self._part_size = part_size
        self._send = send
        self._on_progress = on_progress

        self._digest = hashlib.sha256()
        self._hashed = in_background(self._digest.update, b"")
        self._parts: list[Part] = []
        self._in_flight: deque[PartInFlight] = deque()

        # Anonymous maps, not bytearrays: they start at a page, as a write past the page cache must.
        buffer_size = min(part_size, source.size)
        self._free = [mmap.mmap(-1, buffer_size) for _ in range(workers + 1)]

    def run(self) -> tuple[str, list[Part]]:
        """(sha256 of the whole, the parts in order)."""
        offsets = range(0, self._source.size, self._part_size)

        for number, offset in enumerate(offsets, 1):
            if not self._free:
                self._finish_oldest()
            self._start_part(number, offset)

        while self._in_flight:
            self._finish_oldest()
        return self._digest.hexdigest(), self._parts

    def _start_part(self, number: int, offset: int) -> None:
        buffer = self._free.pop()
        data = memoryview(buffer)[: self._source.size - offset]
        self._source.read_into(offset, data)

        self._hashed = in_background(_hash_after, self._hashed, self._digest.update, data)
        sent = in_background(self._send, number, data)
        self._in_flight.append(PartInFlight(buffer, self._hashed, sent))

    def _finish_oldest(self) -> None:
        oldest = self._in_flight.popleft()
        part = oldest.sent.result()
        oldest.hashed.result()

        self._parts.append(part)
        self._free.append(oldest.buffer)
        if self._on_progress:
            self._on_progress(part.size)


def _hash_after(
    previous: Future[None], update: Callable[[memoryview], None], data: memoryview
) -> None:
    previous.result()
    update(data)


class PartUpload:
    """The write-once upload of one source that is not empty; see `Store.upload`."""

    def __init__(
        self,
        store: PartStore,
        source: Source,
        *,
        part_size: int,
        workers: int,
        journal: Journal,
        on_progress: OnProgress | None,
    ) -> None:
        self._store = store
        self._source = source
        self._part_size = part_size
        self._workers = workers
        self._journal = journal
        self._on_progress = on_progress

    def run(self, key: str) -> Stored:
        """Go on with the upload in the journal, or begin one under `key`. Raises ConflictError."""
        upload = self._journal.read()
        kept = None
        if upload is not None and not upload.done:
            kept = self._store.kept_parts(upload)

        if upload is None or kept is None:  # not begun, or finished, or forgotten by the store
            earlier_key = upload.key if upload else key
            for candidate in dict.fromkeys([earlier_key, key]):
                stored = self._find_stored(candidate)
                if stored is not None:
                    return stored
            upload = self._begin(key)
            kept = {}

        return self._send_missing(upload, kept)

    def _begin(self, key: str) -> Upload:
        upload_id = self._store.begin_parts(key, self._source.size)
        upload = Upload(key, upload_id, self._part_size)
        self._journal.begin(upload)
        return upload

    def _send_missing(self, upload: Upload, kept: dict[int, Part]) -> Stored:
        def send(number: int, data: memoryview) -> Part:
            crc = crc64(data)
            kept_part = kept.get(number)
            if kept_part and kept_part.size == len(data) and kept_part.crc64nvme == crc:
                return kept_part

            etag = self._store.send_part(upload, number, data, crc)
            part = Part(number, len(data), crc, etag)
            self._journal.part(upload, part)
            return part

        pipeline = PartPipeline(
            self._source, upload.part_size, self._workers, send, self._on_progress
        )
        sha256, parts = pipeline.run()
        return self._finish(upload, sha256, parts)

    def _finish(
        self,
        upload: Upload,
        sha256: str,
        parts: list[Part],
    ) -> Stored:
        crc = combine_crc64(parts)
        etag = self._store.finish_parts(upload, parts, crc)
        if etag is None:
            etag = self._store.holds(
                upload.key,
                self._source.size,
                sha256,
                crc,
            )
        if etag is None:
            raise ConflictError(
                f"{upload.key} is written once and holds other bytes already ({self._store.url})"
            )

        self._journal.done(upload)
        return Stored(
            upload.key,
            self._source.size,
            sha256,
            crc,
            etag,
        )

    def _find_stored(self, key: str) -> Stored | None:
        """The object under `key` if it has the source's bytes already."""
        if not self._store.exists(key):
            return None

        def checksum(number: int, data: memoryview) -> Part:
            return Part(number, len(data), crc64(data), etag="")

        pipeline = PartPipeline(self._source, self._part_size, self._workers, checksum)
        sha256, parts = pipeline.run()

        crc = combine_crc64(parts)
        etag = self._store.holds(key, self._source.size, sha256, crc)
        if etag is None:
            return None
        if self._on_progress:
            self._on_progress(self._source.size)
        return Stored(
            key,
            self._source.size,
            sha256,
            crc,
            etag,
        )
