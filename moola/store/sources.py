"""What is uploaded: the bytes of one object, readable at any offset."""

from pathlib import Path
from typing import Protocol

from moola.errors import DataError


class Source(Protocol):
    """The bytes of one object, readable at any offset; the same bytes every time."""

    size: int

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill all of `buffer` with the bytes from `offset` on."""


class BytesSource:
    """Bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self._data[offset : offset + len(buffer)]


class FileSource:
    """A file that does not change while it is read.

    Raises DataError if it is missing or shrinks.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise DataError(f"an upload needs a file, got {path}")

        self._path = path
        self.size = path.stat().st_size

    def read_into(self, offset: int, buffer: memoryview) -> None:
        with self._path.open("rb", buffering=0) as stream:
            stream.seek(offset)

            while buffer:
                count = stream.readinto(buffer)
                if not count:
                    raise DataError(
                        "a file must not shrink while it is read: "
                        f"{len(buffer)} B missing ({self._path})"
                    )
                buffer = buffer[count:]
