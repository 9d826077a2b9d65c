"""The contract of a store, and all of it that does not depend on the backend: reading in chunks, pull, upload."""

import hashlib
import os
import secrets
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moola.errors import ArtifactError, ConflictError, DataError, MoolaError
from moola.store.upload import (
    BytesSource,
    Journal,
    OnProgress,
    Part,
    Source,
    Stored,
    Upload,
    crc64,
    start,
    upload_parts,
)

MIB = 1 << 20
PROFILE_KEY = "profile.json"
PULL_TRIES = 3
MAX_PARTS = 10_000  # S3's limit per object


class Profile(BaseModel):
    """What a provider can do; `profile.json` in the prefix. The defaults are those of a complete S3."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    integrity: Literal["crc64nvme", "md5"] = Field("crc64nvme", description="checksum that the server verifies")
    conditional: bool = Field(True, description="If-None-Match is honoured, so that one of several writers wins")
    part_mib: int = Field(32, ge=5, le=5120, description="size of a part, and of a ranged read")
    workers: int = Field(3, ge=1, le=64, description="parts under way at a time")
    read_timeout_s: int = Field(120, ge=1, le=7200, description="longest wait for a reply")


@dataclass(frozen=True)
class Head:
    """An object's size in bytes, its etag, and its whole-object CRC64NVME (base64) where the store keeps one."""

    size: int
    etag: str
    crc64nvme: str | None = None


@dataclass(frozen=True)
class Probe:
    """What one probe of `Store.check` found."""

    name: str
    ok: bool
    detail: str


class Store(ABC):
    """Objects under keys such as `runs/<run_id>/spec.json`. Safe to use from several threads.

    Every method raises AuthError where the store refuses the credentials and TryAgainError where it does not answer.
    """

    url: str
    profile: Profile

    # -- what a backend does --

    @abstractmethod
    def get_or_none(self, key: str) -> bytes | None:
        """The object's bytes, None if it is missing. For small objects: all of it is held in memory."""

    @abstractmethod
    def head(self, key: str) -> Head | None:
        """The object's size and etag, None if it is missing."""

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Write a small object, replacing what is there; a reader sees the old bytes or the new ones."""

    @abstractmethod
    def create(self, key: str, data: bytes) -> bool:
        """Write a small object unless the key exists; whether it did. One of several racing writers wins."""

    @abstractmethod
    def children(self, prefix: str) -> list[str]:
        """Sorted names one level below `prefix` ("" is the top). For people and sweeps: readers go by manifests."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove the object if it is there."""

    @abstractmethod
    def sweep(self, older_than_s: float) -> list[str]:
        """Remove what uploads begun longer ago than this left unfinished; their names."""

    @abstractmethod
    def read_range(self, key: str, offset: int, length: int, etag: str) -> bytes:
        """Bytes of an object whose etag is still `etag`. Raises ArtifactError if it changed, is gone or too short."""

    @abstractmethod
    def begin_parts(self, key: str, size: int) -> str:
        """Open an upload of an object of `size` bytes; its id."""

    @abstractmethod
    def kept_parts(self, upload: Upload) -> dict[int, Part] | None:
        """Those of `upload.parts` that the store still has; None if it does not know the upload."""

    @abstractmethod
    def send_part(self, upload: Upload, number: int, data: memoryview, crc64nvme: str) -> str:
        """Send one part; its etag."""

    @abstractmethod
    def finish_parts(self, upload: Upload, parts: list[Part], crc64nvme: str) -> str | None:
        """Make the object visible unless the key exists; its etag, or None where only `holds` can tell."""

    @abstractmethod
    def drop_parts(self, upload: Upload) -> None:
        """Give up an upload."""

    # -- small objects --

    def exists(self, key: str) -> bool:
        return self.head(key) is not None

    def get(self, key: str) -> bytes:
        """The object's bytes. Raises ArtifactError if it is missing."""
        data = self.get_or_none(key)
        if data is None:
            raise ArtifactError(f"{key} is not in the store ({self.url})")
        return data

    def put_once(self, key: str, data: bytes) -> None:
        """Write a small object that never changes. Raises ConflictError if the key holds other bytes.

        The same bytes are fine: this may be the second try of a write whose reply was lost.
        """
        if not self.create(key, data) and self.get_or_none(key) != data:
            raise ConflictError(f"{key} is written once and holds other bytes already ({self.url})")

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
        """Write an object once, part by part where it is larger than one. Raises ConflictError on other bytes there.

        `journal` is a local file that lets a later call go on where a killed process stopped. It names the key: an
        upload begun under another key (an earlier attempt's) is continued under that one, and `Stored.key` says so.
        """
        check_key(key)
        part_size = part_size or max(self.profile.part_mib * MIB, -(-source.size // MAX_PARTS))
        record = Journal(journal, self.url, source.size)
        if source.size <= part_size and record.read() is None:
            return self._upload_whole(key, source, on_progress)
        workers = self.profile.workers
        return upload_parts(
            self, key, source, part_size=part_size, workers=workers, journal=record, on_progress=on_progress
        )

    def _upload_whole(self, key: str, source: Source, on_progress: OnProgress | None) -> Stored:
        buffer = bytearray(source.size)
        source.read_into(0, memoryview(buffer))
        data = bytes(buffer)
        self.put_once(key, data)
        head = self.head(key)
        if head is None or head.size != source.size:
            raise ArtifactError(f"{key} was stored, but the store shows {head} instead of {source.size} B ({self.url})")
        if on_progress:
            on_progress(source.size)
        return Stored(key, source.size, hashlib.sha256(data).hexdigest(), crc64(data), head.etag)

    def holds(self, key: str, size: int, sha256: str, crc64nvme: str) -> str | None:
        """The etag of the object if it has exactly these bytes, else None. Reads it all if it keeps no CRC."""
        head = self.head(key)
        if head is None or head.size != size:
            return None
        if head.crc64nvme is not None:
            return head.etag if head.crc64nvme == crc64nvme else None
        digest = hashlib.sha256()
        for chunk in self.read_chunks(key, size):
            digest.update(chunk)
        return head.etag if digest.hexdigest() == sha256 else None

    # -- check --

    def check(self) -> list[Probe]:
        """Try what the store can do, on objects of its own that it removes again; never raises for a failed probe."""
        prefix = f"check-{secrets.token_hex(8)}"
        tries = {
            "put and get": self._probe_put,
            "conditional put": self._probe_create,
            "multipart": self._probe_parts,
            "abort": self._probe_abort,
            "delete": self._probe_delete,
        }
        return [probe(name, partial(work, f"{prefix}-{name.replace(' ', '-')}")) for name, work in tries.items()]

    def _probe_put(self, key: str) -> str:
        self.put(key, b"first")
        self.put(key, b"second")
        require(self.get(key) == b"second", "the bytes read are those written last")
        self.delete(key)
        return "an object is replaced as a whole"

    def _probe_create(self, key: str) -> str:
        require(self.create(key, b"first"), "a new key can be created")
        require(not self.create(key, b"second"), "a second write to the same key is refused")
        require(self.get(key) == b"first", "the first write stands")
        self.delete(key)
        return "the second of two writers is refused"

    def _probe_parts(self, key: str) -> str:
        size, data = 5 * MIB, bytes(range(256)) * (5 * MIB // 256) + b"the last part may be shorter"
        stored = self.upload(key, BytesSource(data), part_size=size)
        require(self.holds(key, stored.size, stored.sha256, stored.crc64nvme), "the object is there as a whole")
        require(self.read_range(key, size, 8, stored.etag) == data[size : size + 8], "a range can be read")
        self.delete(key)
        return "two parts, one object; a range reads back"

    def _probe_abort(self, key: str) -> str:
        upload = Upload(key, self.begin_parts(key, 5 * MIB), 5 * MIB)
        require(self.kept_parts(upload) == {}, "an upload in parts can be looked up")
        self.drop_parts(upload)
        require(self.kept_parts(upload) is None, "an upload in parts can be given up")
        return "an unfinished upload leaves nothing"

    def _probe_delete(self, key: str) -> str:
        self.put(key, b"")
        self.delete(key)
        require(not self.exists(key), "a deleted object is gone")
        return "an object is gone after it"

    # -- large objects: down --

    def read_chunks(self, key: str, size: int) -> Iterator[bytes]:
        """The object's bytes in order, fetched ahead by several workers. Raises ArtifactError if it is not `size` B."""
        return self._chunks(key, 0, size)

    def _chunks(self, key: str, offset: int, size: int) -> Iterator[bytes]:
        head = self.head(key)
        if head is None:
            raise ArtifactError(f"{key} is not in the store ({self.url})")
        if head.size != size:
            raise ArtifactError(f"{key} must have {size} B, got {head.size} B ({self.url})")
        step = self.profile.part_mib * MIB
        ahead: deque[Future[bytes]] = deque()
        for at in range(offset, size, step):
            if len(ahead) == self.profile.workers:
                yield ahead.popleft().result()
            ahead.append(start(self.read_range, key, at, min(step, size - at), head.etag))
        while ahead:
            yield ahead.popleft().result()

    def pull(self, key: str, dest: Path, *, size: int, sha256: str, on_progress: OnProgress | None = None) -> None:
        """Fetch an object into `dest`, which appears only when its sha256 is right.

        Goes on from `dest.part` if an earlier pull left one. Wrong bytes are fetched anew, three times in all; then
        ArtifactError.
        """
        part = dest.with_name(dest.name + ".part")
        got = ""
        for _ in range(PULL_TRIES):
            got = self._fetch(key, part, size, on_progress)
            if got == sha256:
                part.replace(dest)
                return
            part.unlink()
        raise ArtifactError(f"sha256 of {key} must be {sha256}, got {got} in {PULL_TRIES} tries ({self.url})")

    def copy_to(self, key: str, dest: Path, size: int) -> None:
        """Fetch an object whose sha256 is not known; for inputs, of which the first digest is taken here."""
        part = dest.with_name(dest.name + ".part")
        part.unlink(missing_ok=True)
        self._fetch(key, part, size, None)
        part.replace(dest)

    def _fetch(self, key: str, part: Path, size: int, on_progress: OnProgress | None) -> str:
        """Complete the file `part`; the sha256 of all of it."""
        part.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with part.open("a+b", buffering=0) as stream:
            if stream.tell() > size:
                stream.truncate(0)
            stream.seek(0)
            while chunk := stream.read(MIB):
                digest.update(chunk)
            offset = stream.tell()
            if on_progress and offset:
                on_progress(offset)
            for data in self._chunks(key, offset, size):
                hashed = start(digest.update, data)
                write_all(stream, data)
                hashed.result()
                if on_progress:
                    on_progress(len(data))
            os.fsync(stream.fileno())
        return digest.hexdigest()


def probe(name: str, work: Callable[[], str]) -> Probe:
    """Run one probe: it says what it found, or raises."""
    try:
        return Probe(name, True, work())
    except MoolaError as error:
        return Probe(name, False, str(error))


def require(found: object, rule: str) -> None:
    """Raises ArtifactError naming the rule unless `found`."""
    if not found:
        raise ArtifactError(f"it does not hold that {rule}")


def write_all(stream: FileIO, data: bytes | memoryview) -> None:
    """Write all of `data`; an unbuffered file may take less at a time."""
    rest = memoryview(data)
    while rest:
        rest = rest[stream.write(rest) :]


def check_key(key: str) -> str:
    """`key` itself. Raises DataError unless it is a plain relative path: no empty, `.` or `..` part."""
    if not key or any(part in ("", ".", "..") for part in key.split("/")) or "\\" in key or "\0" in key:
        raise DataError(f"a key must be a relative path without empty, . or .. parts, got {key!r}")
    return key


def parse_profile(data: bytes | None, url: str) -> Profile:
    """The profile in `profile.json`, the defaults if there is none. Raises DataError."""
    try:
        return Profile.model_validate_json(data or b"{}")
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise DataError(f"the store's profile is not valid: {faults} ({url}/{PROFILE_KEY})") from error


def implied_profile(probes: list[Probe]) -> Profile:
    """The profile that fits what `Store.check` found."""
    passed = {probe.name for probe in probes if probe.ok}
    return Profile(integrity="crc64nvme" if "crc64nvme" in passed else "md5", conditional="conditional put" in passed)
