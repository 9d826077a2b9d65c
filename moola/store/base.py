"""The contract of a store, and all of it that does not depend on the backend: upload and pull."""

import hashlib
import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from moola.errors import ArtifactError, ConflictError, DataError
from moola.store import download
from moola.store.check import check_contract
from moola.store.checksums import crc64
from moola.store.folder import Folder, part_name
from moola.store.journal import Journal, Part, Upload
from moola.store.profile import PROFILE_KEY, Check, Profile, profile_json
from moola.store.sources import Source
from moola.store.upload import OnProgress, PartUpload, Stored
from moola.text import quoted

MIB = 1 << 20  # bytes
MAX_DOCUMENT_BYTES = 16 * MIB  # of an object that is read whole, unless the reader knows its size
MAX_PARTS = 10_000  # S3's limit per object


@dataclass(frozen=True)
class Head:
    """An object's size in bytes, its etag, and its CRC64NVME (base64) where the store keeps one."""

    size: int
    etag: str
    crc64nvme: str | None = None


class TooLargeError(ArtifactError):
    """An object has more bytes than its reader takes; they were not fetched."""

    def __init__(self, place: str, size: int, max_bytes: int) -> None:
        super().__init__(f"{place} must have at most {max_bytes:,} bytes, it has {size:,}")


@dataclass(frozen=True)
class Entry:
    """An object in a listing, and when it was written: Unix seconds by the store's clock."""

    key: str
    modified: float


@dataclass(frozen=True)
class Listing:
    """A page of a listing. `more` is what `list_page` goes on from; None at the end.

    now  the time of the response by the store's clock, Unix seconds
    """

    entries: tuple[Entry, ...]
    more: str | None
    now: float


@dataclass(frozen=True)
class Dated:
    """A small object and its etag, with the store's own times, in Unix seconds.

    written_s   when it was written
    now_s       when this answer was given

    Each is None where the store does not tell. No other computer's clock is in them.
    """

    data: bytes
    etag: str
    written_s: float | None
    now_s: float | None

    @property
    def age_s(self) -> float | None:
        """Seconds since it was written; negative for an object from the store's future."""
        if self.written_s is None or self.now_s is None:
            return None
        return self.now_s - self.written_s


class Store(ABC):
    """Objects under keys such as `runs/<run_id>/spec.json`. Safe to use from several threads.

    Every method raises AuthError where the store refuses the credentials, and TryAgainError where
    it does not answer.
    """

    url: str
    profile: Profile

    # -- what a backend does --

    @abstractmethod
    def get_or_none(self, key: str, max_bytes: int = MAX_DOCUMENT_BYTES) -> bytes | None:
        """The object's bytes, all in memory; None if it is missing.

        Raises TooLargeError, and fetches nothing, if it has more than `max_bytes`.
        """

    @abstractmethod
    def get_dated(self, key: str, max_bytes: int = MAX_DOCUMENT_BYTES) -> Dated | None:
        """As `get_or_none`, with the object's etag and times."""

    @abstractmethod
    def head(self, key: str) -> Head | None:
        """The object's size and etag; None if it is missing."""

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Write a small object, replacing what is there; a reader sees the old bytes or the new."""

    @abstractmethod
    def create(self, key: str, data: bytes) -> bool:
        """Write a small object unless the key exists; whether it did.

        One of several racing writers wins.
        """

    @abstractmethod
    def children(self, prefix: str) -> list[str]:
        """Sorted names one level below `prefix`; "" is the top.

        For people and sweeps: readers of a run go by its manifest.
        """

    @abstractmethod
    def list_page(self, prefix: str, more: str | None = None, after: str = "") -> Listing:
        """A page of the objects whose keys start with `prefix`, on every level below.

        `more` goes on where an earlier page of the same prefix ended, `after` begins behind a key.
        """

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove the object if it is there."""

    @abstractmethod
    def sweep(self, older_than_s: float, *, dry_run: bool = False) -> list[str]:
        """Remove unfinished uploads begun longer ago than this; their names.

        With `dry_run` nothing is removed.
        """

    @abstractmethod
    def read_range(
        self,
        key: str,
        offset: int,
        length: int,
        etag: str,
    ) -> bytes:
        """Bytes of an object whose etag is still `etag`.

        Raises ArtifactError if it changed, is gone or is too short.
        """

    @abstractmethod
    def begin_parts(self, key: str, size: int) -> str:
        """Open an upload of an object of `size` bytes; its id."""

    @abstractmethod
    def kept_parts(self, upload: Upload) -> dict[int, Part] | None:
        """Those of `upload.parts` that the store still has; None if it does not know the upload."""

    @abstractmethod
    def send_part(
        self,
        upload: Upload,
        number: int,
        data: memoryview,
        crc64nvme: str,
    ) -> str:
        """Send one part; its etag."""

    @abstractmethod
    def finish_parts(
        self,
        upload: Upload,
        parts: list[Part],
        crc64nvme: str,
    ) -> str | None:
        """Make the object visible unless the key exists; its etag.

        None where only `holds` can tell whether the object is this one.
        """

    @abstractmethod
    def drop_parts(self, upload: Upload) -> None:
        """Give up an upload."""

    # -- small objects --

    def exists(self, key: str) -> bool:
        return self.head(key) is not None

    def get(self, key: str, max_bytes: int = MAX_DOCUMENT_BYTES) -> bytes:
        """The object's bytes. Raises ArtifactError if it is missing or larger than `max_bytes`."""
        data = self.get_or_none(key, max_bytes)
        if data is None:
            raise ArtifactError(f"{key} is not in the store ({self.url})")
        return data

    def put_once(self, key: str, data: bytes) -> None:
        """Write a small object that never changes. Raises ConflictError if the key has other bytes.

        The same bytes are fine: this may be the second try of a write whose response was lost.
        """
        if not self.create(key, data) and not self._has_bytes(key, data):
            raise ConflictError(f"{key} is written once and holds other bytes already ({self.url})")

    def _has_bytes(self, key: str, data: bytes) -> bool:
        try:
            return self.get_or_none(key, len(data)) == data
        except TooLargeError:
            return False

    # -- large objects: up --

    def upload(
        self,
        key: str,
        source: Source,
        *,
        journal: Path | None = None,
        on_progress: OnProgress | None = None,
        part_size: int | None = None,
    ) -> Stored:
        """Write an object once, in parts if it is larger than one part.

        Raises ConflictError if the key holds other bytes already.

        `journal` is a local file by which a later call goes on where a killed process stopped. It
        names the key: an upload begun under another key (an earlier attempt's) is continued under
        that one, and `Stored.key` says so.
        """
        check_key(key)
        if part_size is None:
            smallest = -(-source.size // MAX_PARTS)
            part_size = max(self.profile.part_mib * MIB, smallest)

        record = Journal(journal, self.url, source.size)
        if source.size <= part_size and record.read() is None:
            return self._upload_whole(key, source, on_progress)

        upload = PartUpload(
            self,
            source,
            part_size=part_size,
            workers=self.profile.workers,
            journal=record,
            on_progress=on_progress,
        )
        return upload.run(key)

    def _upload_whole(
        self,
        key: str,
        source: Source,
        on_progress: OnProgress | None,
    ) -> Stored:
        buffer = bytearray(source.size)
        source.read_into(0, memoryview(buffer))
        data = bytes(buffer)
        self.put_once(key, data)

        head = self.head(key)
        if head is None or head.size != source.size:
            raise ArtifactError(
                f"{key} was stored with {source.size} B, but the store shows {head} ({self.url})"
            )

        if on_progress:
            on_progress(source.size)
        sha256 = hashlib.sha256(data).hexdigest()
        return Stored(
            key,
            source.size,
            sha256,
            crc64(data),
            head.etag,
        )

    def holds(
        self,
        key: str,
        size: int,
        sha256: str,
        crc64nvme: str,
    ) -> str | None:
        """The etag of the object if it has exactly these bytes, else None.

        Reads all of the object where the store keeps no CRC.
        """
        head = self.head(key)
        if head is None or head.size != size:
            return None
        if head.crc64nvme is not None:
            return head.etag if head.crc64nvme == crc64nvme else None

        digest = hashlib.sha256()
        for chunk in self.read_chunks(key, size):
            digest.update(chunk)
        return head.etag if digest.hexdigest() == sha256 else None

    # -- large objects: down --

    def read_chunks(
        self,
        key: str,
        size: int,
        *,
        offset: int = 0,
    ) -> Iterator[bytes]:
        """The object's bytes from `offset` on, in order, read ahead by several workers.

        Raises ArtifactError if the object does not have `size` bytes.
        """
        return download.read_chunks(self, key, size, offset)

    def pull(
        self,
        key: str,
        dest: Path,
        *,
        size: int,
        sha256: str,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Fetch an object into `dest`, which appears only when its sha256 is right.

        Goes on from `dest.part` if an earlier pull left one. Wrong bytes are fetched again, three
        times in all; then ArtifactError is raised.
        """
        self.pull_into(
            Folder(dest.parent),
            dest.name,
            key,
            size=size,
            sha256=sha256,
            on_progress=on_progress,
        )

    def pull_into(
        self,
        folder: Folder,
        path: str,
        key: str,
        *,
        size: int,
        sha256: str,
        on_progress: OnProgress | None = None,
    ) -> None:
        """As `pull`, into a file below a folder, in which no link is followed."""
        download.pull(
            self,
            key,
            folder,
            path,
            size=size,
            sha256=sha256,
            on_progress=on_progress,
        )

    def copy_to(self, key: str, dest: Path, head: Head) -> None:
        """Fetch the version `head` of an object whose sha256 is not known; others may do so too."""
        folder = Folder(dest.parent)
        part = part_name(f"{dest.name}.{secrets.token_hex(4)}")
        try:
            download.fetch(self, key, folder, part, head.size, None, head)
            folder.rename(part, dest.name)
        finally:
            dest.with_name(part).unlink(missing_ok=True)

    # -- check --

    def check(self) -> Check:
        """Try what the store can do, on objects of its own. A probe that fails does not raise."""
        return check_contract(self)

    def save_profile(self, profile: Profile) -> None:
        """Keep what a check found as the store's profile, and use it from now on."""
        self.profile = profile
        self.put(PROFILE_KEY, profile_json(profile))


def check_key(key: str) -> str:
    """`key` itself.

    Raises DataError unless it is a relative path without empty, `.` or `..` parts.
    """
    parts = key.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in key or "\0" in key:
        raise DataError(
            f"a key must be a relative path without empty, . or .. parts, got {quoted(key)}"
        )
    return key
