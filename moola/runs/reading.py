"""Reading runs: their state, manifests, logs, checkpoints and files.

Readers go COMMIT -> manifest -> keys and never list. What they read is checked: see
`moola.runs.records` and `moola.runs.binding`.
"""

import hashlib
import logging
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from moola.errors import ArtifactError, DataError
from moola.runs.binding import (
    check_bytes,
    check_checkpoint,
    check_commit,
    check_manifest,
    is_attempt_id,
    is_run_id,
    job_of,
)
from moola.runs.launches import newest_attempt
from moola.runs.protocol import (
    COMMIT,
    HEARTBEAT,
    MANIFEST,
    SPEC,
    STATUS,
    attempt_key,
    checkpoint_key,
    log_key,
    run_key,
)
from moola.runs.records import (
    CheckpointManifest,
    Commit,
    FileEntry,
    Heartbeat,
    InputRun,
    LogLine,
    Manifest,
    RecordType,
    State,
    Status,
    parse_record,
    read_record_or_none,
)
from moola.runs.submit import is_pulled, read_spec_document, require_kept
from moola.store import Folder, Store
from moola.text import quoted

log = logging.getLogger("moola")

STEP_DIGITS = 9  # of the name of a checkpoint's folder
SILENT_S = 60.0  # without a sign of life; a running attempt gives one every 5 seconds


# --- documents --------------------------------------------------------------------------------


def read_commit(store: Store, run_id: str) -> Commit | None:
    """COMMIT.json; None if the run is not committed. Raises ArtifactError."""
    key = run_key(run_id, COMMIT)
    commit = read_record_or_none(store, key, Commit)
    if commit is not None:
        check_commit(commit, run_id, f"{key} in {store.url}")
    return commit


def read_status(store: Store, run_id: str, attempt_id: str) -> Status | None:
    """status.json of an attempt; None if there is none. Raises ArtifactError."""
    return read_record_or_none(store, attempt_key(run_id, attempt_id, STATUS), Status)


def read_heartbeat(store: Store, run_id: str, attempt_id: str) -> Heartbeat | None:
    """heartbeat.json of an attempt; None if there is none. Raises ArtifactError."""
    return read_record_or_none(store, attempt_key(run_id, attempt_id, HEARTBEAT), Heartbeat)


def read_attempt_manifest(store: Store, run_id: str, attempt_id: str) -> Manifest | None:
    """An attempt's manifest, whether it is committed or not; None if there is none.

    Raises ArtifactError.
    """
    data = store.get_or_none(attempt_key(run_id, attempt_id, MANIFEST))
    return None if data is None else _parse_manifest(store, run_id, attempt_id, data)


def read_manifest(store: Store, run_id: str) -> Manifest | None:
    """The committed manifest, its digest checked; None if the run is not committed.

    Raises ArtifactError.
    """
    commit = read_commit(store, run_id)
    return None if commit is None else _committed_manifest(store, run_id, commit)


def read_manifest_bytes(store: Store, run_id: str) -> bytes:
    """The committed manifest as it is stored, its digest checked. Raises ArtifactError."""
    return _manifest_bytes(store, _require_commit(store, run_id))


def _manifest_bytes(store: Store, commit: Commit) -> bytes:
    key = commit.manifest
    data = store.get(key)
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 != commit.manifest_sha256:
        raise ArtifactError(f"sha256 of {key} must be {commit.manifest_sha256}, got {sha256}")
    return data


def _committed_manifest(store: Store, run_id: str, commit: Commit) -> Manifest:
    key = commit.manifest
    data = _manifest_bytes(store, commit)
    manifest = _parse_manifest(store, run_id, commit.attempt, data)
    if manifest.state is not State.COMMITTED:
        raise ArtifactError(f"{key} is damaged: state must be committed, got {manifest.state}")
    return manifest


def _parse_manifest(store: Store, run_id: str, attempt_id: str, data: bytes) -> Manifest:
    place = f"{attempt_key(run_id, attempt_id, MANIFEST)} in {store.url}"
    manifest = parse_record(Manifest, data, place)
    check_manifest(manifest, run_id, attempt_id, place)
    return manifest


def require_manifest(store: Store, run_id: str) -> Manifest:
    """The committed manifest. Raises ArtifactError that names the run's state if there is none."""
    return _require_committed(store, run_id)[1]


def require_input_run(store: Store, item: InputRun) -> Manifest:
    """The manifest of a run that another one reads.

    Raises ArtifactError if it is not committed, or not as it was when that run was submitted.
    """
    commit, manifest = _require_committed(store, item.run)
    if commit.manifest_sha256 != item.sha256:
        raise ArtifactError(
            f"run {item.run} was changed: the sha256 of its manifest must be {item.sha256}, "
            f"got {commit.manifest_sha256} ({store.url})"
        )
    return manifest


def describe_input_run(store: Store, run_id: str) -> InputRun:
    """A committed run as another run's input; its manifest's digest stands for all it made.

    Raises ArtifactError where its spec, commit or manifest is not that of the run, or where it is
    being removed.
    """
    require_kept(store, run_id)
    read_spec_document(store, run_id)
    commit, _ = _require_committed(store, run_id)
    return InputRun(run=run_id, sha256=commit.manifest_sha256)


def _require_committed(store: Store, run_id: str) -> tuple[Commit, Manifest]:
    commit = _require_commit(store, run_id)
    return commit, _committed_manifest(store, run_id, commit)


def _require_commit(store: Store, run_id: str) -> Commit:
    commit = read_commit(store, run_id)
    if commit is None:
        state = run_state(store, run_id).state
        raise ArtifactError(
            f"run {run_id} is not committed: its state is {state}, and it has no {COMMIT}"
        )
    return commit


def read_file(store: Store, manifest: Manifest, path: str) -> bytes:
    """The bytes of a small file of a manifest, its digest checked. Raises ArtifactError."""
    entry = next((entry for entry in manifest.files if entry.path == path), None)
    if entry is None:
        raise ArtifactError(f"run {manifest.run_id} has no {path} ({store.url})")
    return check_bytes(entry, store.get(entry.key, entry.size))


def read_file_record(
    store: Store,
    manifest: Manifest,
    path: str,
    kind: type[RecordType],
) -> RecordType:
    """A small JSON file of a manifest. Raises ArtifactError."""
    place = f"{path} of {manifest.run_id} in {store.url}"
    return parse_record(kind, read_file(store, manifest, path), place)


# --- runs -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunState:
    """Where a run is: the state of its newest attempt, or of the one that committed.

    silent_s  seconds since a running attempt's last sign of life; None if it is not running
    """

    state: State
    attempt: str | None
    status: Status | None = None
    heartbeat: Heartbeat | None = None
    silent_s: float | None = None

    @property
    def is_silent(self) -> bool:
        """Whether there is no sign of life any more: its process may be gone."""
        return self.silent_s is not None and self.silent_s > SILENT_S

    @property
    def reason(self) -> str:
        """Why it ended so; "" where there is nothing to say."""
        return self.status.reason if self.status is not None else ""

    def fields(self) -> dict[str, object]:
        """Ready for JSON: what `moola status` prints."""
        fields: dict[str, object] = {
            "state": self.state,
            "attempt": self.attempt,
            "status": {} if self.status is None else self.status.fields(),
            "heartbeat": {} if self.heartbeat is None else heartbeat_fields(self.heartbeat),
        }
        return fields if self.silent_s is None else {**fields, "silent_s": self.silent_s}


def heartbeat_fields(heartbeat: Heartbeat) -> dict[str, object]:
    """Ready for JSON, without the history of use."""
    fields = heartbeat.fields()
    fields.pop("history", None)
    return fields


def find_run(
    store: Store,
    name: str,
    job: str | None = None,
) -> str:
    """A run's whole id from its start.

    Raises DataError if no run, or more than one, starts so, or if it is not a run of `job`.
    """
    matches = _matching_runs(store, name)
    if len(matches) != 1:
        listed = ", ".join(matches) or "none"
        raise DataError(
            f"RUN must be a run's id or the start of exactly one, got {quoted(name)}: "
            f"{listed} ({store.url})"
        )

    run_id = matches[0]
    if job is not None and job_of(run_id) != job:
        raise DataError(f"RUN must be a {job} run, got {run_id} ({store.url})")
    return run_id


def _matching_runs(store: Store, name: str) -> list[str]:
    if is_run_id(name) and store.exists(run_key(name, SPEC)):
        return [name]
    if not name:
        return []
    run_ids = [run_id for run_id in store.children("runs") if is_run_id(run_id)]
    return [name] if name in run_ids else [each for each in run_ids if each.startswith(name)]


def run_state(store: Store, run_id: str) -> RunState:
    """The state of the newest attempt, or of the committed one. Raises ArtifactError."""
    commit = read_commit(store, run_id)
    attempt_id = commit.attempt if commit is not None else newest_attempt(store, run_id)
    if attempt_id is None:
        return RunState(State.SUBMITTED, None)

    status, status_age_s = _read_aged(store, attempt_key(run_id, attempt_id, STATUS), Status)
    heartbeat, heartbeat_age_s = _read_aged(
        store, attempt_key(run_id, attempt_id, HEARTBEAT), Heartbeat
    )
    if commit is not None:
        return RunState(State.COMMITTED, attempt_id, status, heartbeat)

    state = status.state if status is not None else State.SUBMITTED
    ages_s = [age_s for age_s in (status_age_s, heartbeat_age_s) if age_s is not None]
    silent_s = round(max(min(ages_s), 0.0), 1) if state is State.RUNNING and ages_s else None
    return RunState(state, attempt_id, status, heartbeat, silent_s)


def _read_aged(
    store: Store, key: str, kind: type[RecordType]
) -> tuple[RecordType | None, float | None]:
    """(a document, seconds since it was written by the store's clock); None for what is not known.

    Raises ArtifactError.
    """
    dated = store.get_dated(key)
    if dated is None:
        return None, None
    return parse_record(kind, dated.data, f"{key} in {store.url}"), dated.age_s


def attempts_of(store: Store, run_id: str) -> list[str]:
    """The ids of a run's attempts, sorted."""
    names = store.children(run_key(run_id, "attempts"))
    return [name for name in names if is_attempt_id(name)]


# --- what a run left --------------------------------------------------------------------------


def newest_checkpoint(store: Store, run_id: str) -> tuple[int, dict[str, bytes]] | None:
    """(step, name -> bytes) of the run's furthest checkpoint that is whole; None if there is none.

    One without a manifest, or with a file that is gone or has other bytes, is passed over for the
    one before.
    """
    checkpoints: list[tuple[int, str]] = []
    for attempt_id in attempts_of(store, run_id):
        names = store.children(attempt_key(run_id, attempt_id, "checkpoints"))
        checkpoints += [(int(name), attempt_id) for name in names if is_step(name)]

    for step, attempt_id in sorted(checkpoints, reverse=True):
        try:
            return step, _read_checkpoint(store, run_id, attempt_id, step)
        except ArtifactError as error:
            log.warning(
                "the checkpoint after step %d is not whole and is passed over (%s)", step, error
            )
    return None


def is_step(name: str) -> bool:
    """Whether a name is that of a checkpoint's folder."""
    return len(name) == STEP_DIGITS and name.isascii() and name.isdigit()


def _read_checkpoint(
    store: Store,
    run_id: str,
    attempt_id: str,
    step: int,
) -> dict[str, bytes]:
    """name -> bytes of a checkpoint. Raises ArtifactError if it is not whole."""
    key = checkpoint_key(run_id, attempt_id, step, MANIFEST)
    place = f"{key} in {store.url}"
    manifest = parse_record(CheckpointManifest, store.get(key), place)
    check_checkpoint(manifest, run_id, attempt_id, step, place)
    return {
        entry.path: check_bytes(entry, store.get(entry.key, entry.size)) for entry in manifest.files
    }


def log_records(
    store: Store,
    run_id: str,
    attempt_id: str,
    *,
    first_chunk: int = 1,
) -> Iterator[tuple[int, list[LogLine]]]:
    """(chunk number, lines) from `first_chunk` on, up to the newest chunk there is now.

    Raises ArtifactError where one is damaged.
    """
    chunk = first_chunk
    while True:
        key = log_key(run_id, attempt_id, chunk)
        data = store.get_or_none(key)
        if data is None:
            return

        lines = data.splitlines()
        places = [f"line {number} of {key} in {store.url}" for number in range(1, len(lines) + 1)]
        yield chunk, [parse_record(LogLine, *each) for each in zip(lines, places, strict=True)]
        chunk += 1


def pull_files(
    store: Store,
    manifest: Manifest,
    dest: Path,
    on_progress: Callable[[int], None] | None = None,
    *,
    only: Collection[str] | None = None,
) -> None:
    """The stored files of a manifest, or `only` some, into `dest`.

    Each is verified before it takes its name; one that is there already stays. No link that lies
    in `dest` is followed: DataError.
    """
    folder = Folder(dest)
    for entry in manifest.files:
        if only is None or entry.path in only:
            _pull_file(store, entry, folder, on_progress)


def _pull_file(
    store: Store,
    entry: FileEntry,
    folder: Folder,
    on_progress: Callable[[int], None] | None,
) -> None:
    if is_pulled(folder, entry.path, entry.size, entry.sha256):
        return
    store.pull_into(
        folder,
        entry.path,
        entry.key,
        size=entry.size,
        sha256=entry.sha256,
        on_progress=on_progress,
    )
