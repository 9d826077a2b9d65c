"""The artifacts of an attempt: files uploaded with a journal, and entries for the manifest."""

import hashlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from moola.runs.protocol import MANIFEST, attempt_key, canonical_json, checkpoint_key
from moola.runs.records import CheckpointManifest, DerivedEntry, FileEntry, NpyFormat
from moola.store import BytesSource, Source, Store

log = logging.getLogger("moola")


class Artifacts:
    """What an attempt has made: `stored` and `derived` are the manifest's `files` and `derived`.

    Safe to use from several threads.
    """

    def __init__(
        self,
        store: Store,
        run_id: str,
        attempt_id: str,
        journals: Path,
    ) -> None:
        self.stored: list[FileEntry] = []
        self.derived: list[DerivedEntry] = []

        self._store = store
        self._run_id = run_id
        self._attempt_id = attempt_id
        self._journals = journals

    def upload(
        self,
        path: str,
        source: Source,
        media_type: str,
        npy: NpyFormat | None = None,
        *,
        on_progress: Callable[[int], None] | None = None,
    ) -> str:
        """Store a file part by part -> its sha256.

        Parts that an earlier, killed attempt has sent are not sent again.
        """
        key = attempt_key(self._run_id, self._attempt_id, "files", path)
        journal = self._journals / f"{path.replace('/', '~')}.jsonl"
        self._journals.mkdir(exist_ok=True)
        if journal.exists():
            log.info("resuming the upload of %s", path)

        stored = self._store.upload(key, source, journal=journal, on_progress=on_progress)

        entry = FileEntry(
            path=path,
            key=stored.key,
            size=stored.size,
            sha256=stored.sha256,
            media_type=media_type,
        )
        self.stored.append(entry if npy is None else entry.model_copy(update={"npy": npy}))
        return stored.sha256

    def derive(
        self,
        path: str,
        size: int,
        sha256: str,
        npy: NpyFormat,
        rule: str,
    ) -> None:
        """Record a file that is not stored: `rule` rebuilds it on pull, to exactly this sha256."""
        entry = DerivedEntry(path=path, size=size, sha256=sha256, npy=npy, rule=rule)
        self.derived.append(entry)

    def forget_journals(self) -> None:
        """Remove the journals: the run is committed, and no later attempt goes on from here."""
        for journal in self._journals.glob("*.jsonl"):
            journal.unlink()


def write_checkpoint(
    store: Store,
    run_id: str,
    attempt_id: str,
    step: int,
    files: Mapping[str, bytes],
) -> None:
    """Store a checkpoint; it counts from when its manifest, written last, is there."""
    entries = []
    for name, data in files.items():
        key = checkpoint_key(run_id, attempt_id, step, name)
        store.upload(key, BytesSource(data))
        entry = FileEntry(
            path=name,
            key=key,
            size=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
        )
        entries.append(entry)

    manifest = CheckpointManifest(step=step, files=tuple(entries))
    key = checkpoint_key(run_id, attempt_id, step, MANIFEST)
    store.put_once(key, canonical_json({"schema": 1, **manifest.fields()}))
