"""Where the files of a feature set are: a folder, given paths, or a committed run in a store."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from moola.errors import ArtifactError
from moola.runs.records import Manifest
from moola.store import Store

CHUNK_BYTES = 16 << 20


class Files(Protocol):
    """The files of a feature set, by their names; a missing one raises ArtifactError."""

    def chunks(self, path: str) -> Iterator[bytes | memoryview]: ...

    def has(self, path: str) -> bool: ...


class FolderFiles:
    """Files of a folder, or of given paths."""

    def __init__(self, folder: Path, paths: Mapping[str, Path] | None = None) -> None:
        self._folder = folder
        self._paths = paths

    def has(self, path: str) -> bool:
        file = self._locate(path)
        return file is not None and file.exists()

    def chunks(self, path: str) -> Iterator[bytes | memoryview]:
        file = self._locate(path)
        if file is None or not file.exists():
            raise ArtifactError(f"{path} is missing ({file or self._folder})")

        with file.open("rb") as stream:
            while data := stream.read(CHUNK_BYTES):
                yield data

    def _locate(self, path: str) -> Path | None:
        if self._paths is None:
            return self._folder / path
        return self._paths.get(path)


class RunFiles:
    """Files of a committed run, straight from the store."""

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self._store = store
        self._items = {entry.path: entry for entry in manifest.files}

    def has(self, path: str) -> bool:
        return path in self._items

    def chunks(self, path: str) -> Iterator[bytes | memoryview]:
        if path not in self._items:
            raise ArtifactError(f"{path} is missing (not in the manifest)")

        item = self._items[path]
        yield from self._store.read_chunks(item.key, item.size)
