"""A store in a folder: `file:///dir`. What is not finished lies in `.parts`, on the same file system."""

import contextlib
import errno
import os
import secrets
import threading
import time
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from moola.errors import ArtifactError, AuthError, DataError, TryAgainError
from moola.store.base import PROFILE_KEY, Head, Store, check_key, parse_profile, write_all
from moola.store.upload import Part, Upload, crc64

PARTS = ".parts"
DIRECT = getattr(os, "O_DIRECT", 0)  # Linux
BLOCK = 4096  # bytes; what a write past the page cache starts at and is a multiple of


class FileStore(Store):
    """Objects are files under `root`; each gets its name by an atomic link or rename after fsync."""

    def __init__(self, root: Path) -> None:
        if root.exists() and not root.is_dir():
            raise DataError(f"a file:// store must be a folder, got {root}")
        self.root = root.resolve()
        self.url = self.root.as_uri()
        self.profile = parse_profile(self.get_or_none(PROFILE_KEY), self.url)
        self._writing = threading.Lock()  # several writers of one file only wait for each other, and slowly

    def get_or_none(self, key: str) -> bytes | None:
        with _os_errors(self.url):
            try:
                return self._path(key).read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None

    def head(self, key: str) -> Head | None:
        with _os_errors(self.url):
            try:
                stat = self._path(key).stat()
            except (FileNotFoundError, NotADirectoryError):
                return None
        return Head(stat.st_size, f"{stat.st_ino:x}-{stat.st_mtime_ns:x}-{stat.st_size:x}")

    def put(self, key: str, data: bytes) -> None:
        with _os_errors(self.url):
            self._write_part(data).replace(self._new_path(key))

    def create(self, key: str, data: bytes) -> bool:
        with _os_errors(self.url):
            return _link(self._write_part(data), self._new_path(key))

    def children(self, prefix: str) -> list[str]:
        folder = self._path(prefix) if prefix else self.root
        with _os_errors(self.url):
            try:
                return sorted(entry.name for entry in folder.iterdir() if entry.name != PARTS)
            except (FileNotFoundError, NotADirectoryError):
                return []

    def delete(self, key: str) -> None:
        with _os_errors(self.url):
            self._path(key).unlink(missing_ok=True)

    def sweep(self, older_than_s: float) -> list[str]:
        swept = []
        with _os_errors(self.url):
            for part in self.root.joinpath(PARTS).glob("*"):
                if part.stat().st_mtime <= time.time() - older_than_s:
                    part.unlink(missing_ok=True)
                    swept.append(f"{PARTS}/{part.name}")
        return sorted(swept)

    def read_range(self, key: str, offset: int, length: int, etag: str) -> bytes:
        head = self.head(key)
        if head is None or head.etag != etag:
            raise ArtifactError(f"{key} was {'removed' if head is None else 'changed'} while it was read ({self.url})")
        with _os_errors(self.url), self._path(key).open("rb") as stream:
            stream.seek(offset)
            data = stream.read(length)
        if len(data) != length:
            raise ArtifactError(f"{key} must have {offset + length} B, got {offset + len(data)} B ({self.url})")
        return data

    # -- uploads in parts: one file in .parts, written at offsets --

    def begin_parts(self, key: str, size: int) -> str:  # noqa: ARG002
        with _os_errors(self.url):
            part = self._write_part(b"")
            if DIRECT and size:  # writes past the cache run side by side only where the file need not grow
                with part.open("r+b") as stream:
                    os.posix_fallocate(stream.fileno(), 0, size)
            return part.name

    def kept_parts(self, upload: Upload) -> dict[int, Part] | None:
        """The journalled parts whose bytes, read again, still have their CRC."""
        path = self._part_path(upload.upload_id)
        if not path.exists():
            return None
        with _os_errors(self.url), path.open("rb") as stream:
            kept = {}
            for number, part in upload.parts.items():
                stream.seek((number - 1) * upload.part_size)
                if crc64(stream.read(part.size)) == part.crc64nvme:
                    kept[number] = part
        return kept

    def send_part(self, upload: Upload, number: int, data: memoryview, crc64nvme: str) -> str:  # noqa: ARG002
        path, offset = self._part_path(upload.upload_id), (number - 1) * upload.part_size
        with _os_errors(self.url):
            if _write_past_cache(path, offset, data):
                return ""
            with self._writing, FileIO(path, "r+") as stream:
                stream.seek(offset)
                write_all(stream, data)
        return ""

    def finish_parts(self, upload: Upload, parts: list[Part], crc64nvme: str) -> str | None:  # noqa: ARG002
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


def _write_past_cache(path: Path, offset: int, data: memoryview) -> bool:
    """Write straight from memory to the disk: as fast as through the page cache, for a tenth of the CPU time, which the
    hash of the next part needs. False where it cannot be done, and the part has to be written the usual way."""
    if not DIRECT or offset % BLOCK or len(data) % BLOCK:
        return False
    try:
        handle = os.open(path, os.O_WRONLY | DIRECT)
    except OSError:  # tmpfs, for one, knows no such thing
        return False
    try:
        return os.pwrite(handle, data, offset) == len(data)
    except OSError as error:
        if error.errno != errno.EINVAL:  # memory or file system not aligned as it would have to be
            raise
        return False
    finally:
        os.close(handle)


def _link(part: Path, path: Path) -> bool:
    """Give `part` the name `path` unless something has it (rename would replace that); whether it did."""
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
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def _os_errors(url: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, PermissionError) or error.errno == errno.EROFS:
            raise AuthError(f"the store's folder must be readable and writable: {error} ({url})") from error
        raise TryAgainError(f"the store's folder did not work: {error} ({url})") from error
