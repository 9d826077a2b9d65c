"""The journal of an upload in parts: a local file by which an upload survives kill -9."""

import json
import os
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Part:
    """A part that the store has confirmed; numbers start at 1."""

    number: int
    size: int
    crc64nvme: str
    etag: str


@dataclass
class Upload:
    """One upload in parts, as the journal knows it."""

    key: str
    upload_id: str
    part_size: int
    parts: dict[int, Part] = field(default_factory=dict)
    done: bool = False


class Journal:
    """JSON lines {begin, ...}, {part, ...}, {done}, each written before the next step is taken.

    Begin and done also survive a power cut; a part whose line is lost in one is sent again. With no
    path, nothing is written and nothing is read.
    """

    def __init__(
        self,
        path: Path | None,
        url: str,
        size: int,
    ) -> None:
        self._path = path
        self._object = {"url": url, "size": size}
        self._lock = threading.Lock()

    def read(self) -> Upload | None:
        """The upload begun last, if it was of an object of this size to this store."""
        upload: Upload | None = None

        for line in self._lines():
            if "begin" in line:
                upload = self._begun(line)
            elif upload is None or line["upload_id"] != upload.upload_id:
                continue  # a part that an abandoned thread of an earlier upload still sent
            elif "part" in line:
                part = Part(**line["part"])
                upload.parts[part.number] = part
            else:
                upload.done = True
        return upload

    def begin(self, upload: Upload) -> None:
        line = {"begin": upload.key, "part_size": upload.part_size, **self._object}
        self._write(line, upload, sync=True)

    def part(self, upload: Upload, part: Part) -> None:
        self._write({"part": asdict(part)}, upload, sync=False)

    def done(self, upload: Upload) -> None:
        self._write({"done": True}, upload, sync=True)

    def _begun(self, line: dict[str, Any]) -> Upload | None:
        if any(line[name] != value for name, value in self._object.items()):
            return None
        return Upload(line["begin"], line["upload_id"], line["part_size"])

    def _lines(self) -> Iterator[dict[str, Any]]:
        if self._path is None or not self._path.exists():
            return

        for text in self._path.read_bytes().split(b"\n"):
            try:
                yield json.loads(text)
            except ValueError:  # an empty line, or one that a killed process left torn
                continue

    def _write(
        self,
        line: dict[str, Any],
        upload: Upload,
        *,
        sync: bool,
    ) -> None:
        if self._path is None:
            return

        text = json.dumps({**line, "upload_id": upload.upload_id})
        data = f"\n{text}\n".encode()  # the first \n ends a line that a killed process left torn

        with self._lock, self._path.open("ab", buffering=0) as stream:
            stream.write(data)
            if sync:
                os.fsync(stream.fileno())
