"""A store in a folder: `file:///dir`.

Unfinished objects lie in `.parts`, on the same file system.
"""

import contextlib
import errno
import os
import secrets
import stat
import threading
import time
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from moola.errors import ArtifactError, AuthError, DataError, TryAgainError
from moola.store.base import (
    MAX_DOCUMENT_BYTES,
    Dated,
    Entry,
    Head,
    Listing,
    Store,
    TooLargeError,
    check_key,
)
from moola.store.checksums import crc64
from moola.store.folder import write_all
from moola.store.journal import Part, Upload
from moola.store.profile import PROFILE_KEY, parse_profile

PARTS = ".parts"
O_DIRECT = getattr(os, "O_DIRECT", 0)  # Linux only
BLOCK = 4096  # bytes; a write past the page cache starts at, and is, a multiple of it


class FileStore(Store):
    """Objects are files under `root`.

    Each gets its name by an atomic link or rename, after fsync.
    """

    def __init__(self, root: Path) -> None:
        if root.exists() and not root.is_dir():
            raise DataError(f"a file:// store must be a folder, got {root}")

        self.root = root.resolve()
        self.url = self.root.as_uri()
        self.profile = parse_profile(self.get_or_none(PROFILE_KEY), self.url)
        # Several writers of one file only wait for each other, and slowly: one at a time.
        self._write_lock = threading.Lock()

    def get_or_none(self, key: str, max_bytes: int = MAX_DOCUMENT_BYTES) -> bytes | None:
        with _os_errors(self.url):
            try:
                path = self._path(key)
                status = path.stat()
                if not stat.S_ISREG(status.st_mode):
                    raise ArtifactError(f"{key} must be a file ({self.url})")
                if status.st_size > max_bytes:
                    raise TooLargeError(f"{key} in {self.url}", status.st_size, max_bytes)
                return path.read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None

    def get_dated(self, key: str, max_bytes: int = MAX_DOCUMENT_BYTES) -> Dated | None:
        data = self.get_or_none(key, max_bytes)
        with _os_errors(self.url):
            try:
                status = self._path(key).stat()
            except (FileNotFoundError, NotADirectoryError):
                return None
        return None if data is None else Dated(data, _etag(status), status.st_mtime, self._now())

    def _now(self) -> float:
        """Unix seconds by the clock of the file system, which may be that of a server."""
        probe = self._part_path(secrets.token_hex(8))
        try:
            probe.parent.mkdir(parents=True, exist_ok=True)
            probe.touch()
            now = probe.stat().st_mtime
            probe.unlink()
        except OSError:  # a folder that may only be read
            return time.time()
        return now

    def head(self, key: str) -> Head | None:
        with _os_errors(self.url):
            try:
                status = self._path(key).stat()
            except (FileNotFoundError, NotADirectoryError):
                return None

        return Head(status.st_size, _etag(status))

    def put(self, key: str, data: bytes) -> None:
        with _os_errors(self.url):
            part = self._write_part(data)
            part.replace(self._new_path(key))

    def create(self, key: str, data: bytes) -> bool:
        with _os_errors(self.url):
            part = self._write_part(data)
            return _link(part, self._new_path(key))

    def children(self, prefix: str) -> list[str]:
        folder = self._path(prefix) if prefix else self.root

        with _os_errors(self.url):
            try:
                entries = [entry for entry in folder.iterdir() if entry.name != PARTS]
                return sorted(entry.name for entry in entries if _holds_a_file(entry))
            except (FileNotFoundError, NotADirectoryError):
                return []

    def list_page(self, prefix: str, more: str | None = None, after: str = "") -> Listing:
        """All in one page: to read a folder costs nothing."""
        now = self._now()
        first = more or after
        entries = []

        with _os_errors(self.url):
            for key, path in self._walk(prefix):
                if key > first:
                    entries.append(Entry(key, path.lstat().st_mtime))
        entries.sort(key=lambda entry: entry.key)
        return Listing(tuple(entries), None, now)

    def _walk(self, prefix: str) -> Iterator[tuple[str, Path]]:
        """(key, file) of the objects whose keys start with `prefix`."""
        parent = prefix.rpartition("/")[0]
        for folder, names, files in os.walk(self._path(parent) if parent else self.root):
            if PARTS in names:
                names.remove(PARTS)
            for name in files:
                path = Path(folder, name)
                key = path.relative_to(self.root).as_posix()
                if key.startswith(prefix):
                    yield key, path

    def delete(self, key: str) -> None:
        with _os_errors(self.url):
            self._path(key).unlink(missing_ok=True)

    def sweep(self, older_than_s: float, *, dry_run: bool = False) -> list[str]:
        newest = time.time() - older_than_s
        swept = []

        with _os_errors(self.url):
            for part in self.root.joinpath(PARTS).glob("*"):
                if part.stat().st_mtime <= newest:
                    if not dry_run:
                        part.unlink(missing_ok=True)
                    swept.append(f"{PARTS}/{part.name}")
        return sorted(swept)

    def read_range(
        self,
        key: str,
        offset: int,
        length: int,
        etag: str,
    ) -> bytes:
        head = self.head(key)
        if head is None:
            raise ArtifactError(f"{key} was removed while it was read ({self.url})")
        if head.etag != etag:
            raise ArtifactError(f"{key} was changed while it was read ({self.url})")

        with _os_errors(self.url), self._path(key).open("rb") as stream:
            stream.seek(offset)
            data = stream.read(length)

        if len(data) != length:
            raise ArtifactError(
                f"{key} must have {offset + length} B, got {offset + len(data)} B ({self.url})"
            )
        return data

    # -- uploads in parts: one file in .parts, written at offsets --

    def begin_parts(self, key: str, size: int) -> str:  # noqa: ARG002
        with _os_errors(self.url):
            part = self._write_part(b"")
            if O_DIRECT and size:
                # Writes past the page cache run side by side only where the file need not grow.
                with part.open("r+b") as stream:
                    os.posix_fallocate(stream.fileno(), 0, size)
            return part.name

    def kept_parts(self, upload: Upload) -> dict[int, Part] | None:
        """The parts in the journal whose bytes, read again, still have their CRC."""
        path = self._part_path(upload.upload_id)
        if not path.exists():
            return None

        kept = {}
        with _os_errors(self.url), path.open("rb") as stream:
            for number, part in upload.parts.items():
                stream.seek(_part_offset(upload, number))
                if crc64(stream.read(part.size)) == part.crc64nvme:
                    kept[number] = part
        return kept

    def send_part(
        self,
        upload: Upload,
        number: int,
        data: memoryview,
        crc64nvme: str,  # noqa: ARG002
    ) -> str:
        path = self._part_path(upload.upload_id)
        offset = _part_offset(upload, number)

        with _os_errors(self.url):
            if not _write_past_cache(path, offset, data):
                with self._write_lock, FileIO(path, "r+") as stream:
                    stream.seek(offset)
                    write_all(stream, data)
        return ""

    def finish_parts(
        self,
        upload: Upload,
        parts: list[Part],  # noqa: ARG002
        crc64nvme: str,  # noqa: ARG002
    ) -> str | None:
        path = self._part_path(upload.upload_id)

        with _os_errors(self.url):
            with path.open("r+b") as stream:
                os.fsync(stream.fileno())
            if not _link(path, self._new_path(upload.key)):
                return None

        head = self.head(upload.key)
        return head.etag if head else None

    def drop_parts(self, upload: Upload) -> None:
        with _os_errors(self.url):
            self._part_path(upload.upload_id).unlink(missing_ok=True)

    # -- paths --

    def _path(self, key: str) -> Path:
        return self.root / check_key(key)

    def _new_path(self, key: str) -> Path:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _part_path(self, upload_id: str) -> Path:
        return self.root / PARTS / upload_id

    def _write_part(self, data: bytes) -> Path:
        """A new file in .parts with these bytes, on the disk."""
        part = self._part_path(secrets.token_hex(8))
        part.parent.mkdir(parents=True, exist_ok=True)

        with FileIO(part, "x") as stream:
            write_all(stream, data)
            os.fsync(stream.fileno())
        return part


def _holds_a_file(path: Path) -> bool:
    """Is it a file, or a folder with one? An empty folder is no part of any key."""
    return not path.is_dir() or any(files for _, _, files in os.walk(path))


def _etag(status: os.stat_result) -> str:
    return f"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"


def _part_offset(upload: Upload, number: int) -> int:
    return (number - 1) * upload.part_size


def _write_past_cache(path: Path, offset: int, data: memoryview) -> bool:
    """Write straight from memory to the disk; False where the part has to be written the usual way.

    As fast as through the page cache, for a tenth of the CPU time, which the hash of the next part
    needs.
    """
    if not O_DIRECT or offset % BLOCK or len(data) % BLOCK:
        return False

    try:
        handle = os.open(path, os.O_WRONLY | O_DIRECT)
    except OSError:  # some file systems, such as tmpfs, refuse the flag
        return False

    try:
        return os.pwrite(handle, data, offset) == len(data)
    except OSError as error:
        if error.errno == errno.EINVAL:  # memory or file system not aligned as it has to be
            return False
        raise
    finally:
        os.close(handle)


def _link(part: Path, path: Path) -> bool:
    """Give `part` the name `path` unless a file has it; whether it did.

    A rename would replace that file.
    """
    try:
        os.link(part, path)
    except FileExistsError:
        return False
    finally:
        part.unlink()

    _sync_folder(path.parent)
    return True


def _sync_folder(folder: Path) -> None:
    """Make names in `folder` survive a power cut."""
    if os.name != "posix":
        return

    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _os_errors(url: str) -> Iterator[None]:
    """OSErrors as ours."""
    try:
        yield
    except OSError as error:
        if isinstance(error, PermissionError) or error.errno == errno.EROFS:
            raise AuthError(
                f"the store's folder must be readable and writable: {error} ({url})"
            ) from error
        raise TryAgainError(f"the store's folder failed: {error} ({url})") from error
