"""An attempt: one try at a run, from its first status to its commit.

Success is COMMIT with a manifest that verifies. Data first, marker last. `moola.runs.protocol` has
the keys and the states.
"""

import contextlib
import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

from moola import errors
from moola.errors import ArtifactError, ConflictError, MoolaError, exit_code_of
from moola.runs.artifacts import Artifacts, write_checkpoint
from moola.runs.heartbeat import HeartbeatWriter, Progress
from moola.runs.launches import rental
from moola.runs.logs import LogChunks, stored_log_entries
from moola.runs.protocol import (
    COMMIT,
    MANIFEST,
    STATUS,
    attempt_id_now,
    attempt_key,
    canonical_json,
    run_key,
)
from moola.runs.provenance import process_provenance
from moola.runs.reading import read_attempt_manifest, read_commit, read_status
from moola.runs.records import (
    Commit,
    DerivedEntry,
    FileEntry,
    LogEntry,
    Manifest,
    NpyFormat,
    Provenance,
    State,
    Status,
    UsageHistory,
    cut,
)
from moola.runs.redaction import safe_text
from moola.runs.signals import Stopped
from moola.runs.work_limit import mark_used
from moola.runs.workdir import lock_run, run_folder
from moola.store import BytesSource, Source, Store

log = logging.getLogger("moola")

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Outcome:
    """A state of an attempt, and with a final one its exit code and reason."""

    state: State
    exit_code: int | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", safe_text(self.reason))  # it is stored for all to read


RUNNING = Outcome(State.RUNNING)
COMMITTED = Outcome(State.COMMITTED, errors.EXIT_DONE)
SUPERSEDED = Outcome(State.FAILED, errors.EXIT_DONE, "another attempt committed the run first")


class Attempt:
    """One try at a run, as a context: status, heartbeat and log are written while it is open.

    Leaving the block without an error commits the run. An error or a signal leaves status `failed`,
    `cancelled` or `terminated` and a manifest that says so, and no COMMIT. Raises TryAgainError if
    another process of this machine is at the run, ExpiredError where the store's token has expired
    meanwhile.
    """

    def __init__(
        self,
        store: Store,
        run_id: str,
        *,
        attempt_id: str | None = None,
        work: Path,
    ) -> None:
        self.store = store
        self.run_id = run_id
        self.attempt_id = attempt_id or attempt_id_now()
        self.work = run_folder(work, store, run_id)
        self.provenance: Provenance = {}  # what the job adds to the manifest's
        self.log_chunks = LogChunks(store, run_id, self.attempt_id)

        self._heartbeat = HeartbeatWriter(store, run_id, self.attempt_id, self.log_chunks)
        self._artifacts = Artifacts(store, run_id, self.attempt_id, self.work / "journal")

    def key(self, *parts: str) -> str:
        """A key below this attempt."""
        return attempt_key(self.run_id, self.attempt_id, *parts)

    def __enter__(self) -> Self:
        mark_used(self.work)
        self._lock = lock_run(self.work, self.run_id)
        try:
            self._write_status(RUNNING)
            log.addHandler(self.log_chunks)
            self._heartbeat.start()
        except Stopped as stop:  # others can see the attempt already
            self.__exit__(Stopped, stop, stop.__traceback__)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        expired = self._heartbeat.expired
        try:
            self._end(expired or error)
        finally:
            log.removeHandler(self.log_chunks)
            self._lock.close()
        if expired is not None:
            raise expired

    # -- progress --

    def stage(
        self,
        name: str,
        total: int = 0,
        unit: str = "",
    ) -> None:
        """Log what happens now; `total` in `unit` where it is known."""
        self._heartbeat.progress = Progress(name, 0, total, unit)
        amount = f" ({total:,} {unit})" if total else ""
        log.info("%s%s", name, amount)

    def show(
        self,
        stage: str,
        done: int,
        total: int,
        unit: str,
        note: str = "",
    ) -> None:
        """Set all that the next heartbeat shows of the progress, without a log line."""
        self._heartbeat.progress = Progress(
            stage,
            done,
            total,
            unit,
            note,
        )

    def advance(self, amount: int) -> None:
        """Add to what is done of the stage."""
        self._heartbeat.progress.done += amount

    def usage_history(self) -> UsageHistory | None:
        """What was used up to now, over all attempts; None before the first heartbeat."""
        return self._heartbeat.history()

    # -- artifacts --

    def write(self, path: str, data: bytes, media_type: str) -> None:
        """Store a small artifact."""
        self.upload(path, BytesSource(data), media_type)

    def upload(
        self,
        path: str,
        source: Source,
        media_type: str,
        npy: NpyFormat | None = None,
        *,
        on_progress: Callable[[int], None] | None = None,
    ) -> str:
        """Store an artifact part by part -> its sha256. `npy` is the format of an array."""
        return self._artifacts.upload(
            path,
            source,
            media_type,
            npy,
            on_progress=on_progress,
        )

    def derive(
        self,
        path: str,
        size: int,
        sha256: str,
        npy: NpyFormat,
        rule: str,
    ) -> None:
        """Record a file that is not stored: `rule` rebuilds it on pull, to exactly this sha256."""
        self._artifacts.derive(
            path,
            size,
            sha256,
            npy,
            rule,
        )

    def checkpoint(self, step: int, files: Mapping[str, bytes]) -> None:
        """Store a checkpoint, from which a later attempt can go on."""
        write_checkpoint(
            self.store,
            self.run_id,
            self.attempt_id,
            step,
            files,
        )
        log.info("checkpoint after step %d", step)

    # -- the end --

    def _end(self, error: BaseException | None) -> None:
        outcome = outcome_of(error)
        if error is not None:
            log.error("%s: %s", outcome.state, outcome.reason)

        self._heartbeat.stop()
        self.log_chunks.write()
        manifest = self._write_manifest(outcome)

        if error is None:
            outcome = self._commit(manifest)
            self.log_chunks.write()

        self._write_status(outcome)
        if error is None:
            self._artifacts.forget_journals()

    def _write_manifest(self, outcome: Outcome) -> bytes:
        usage = self.usage_history()
        provenance = {
            **process_provenance(),
            **({} if usage is None else {"usage": usage.fields()}),
            **self.provenance,
            **rental(self.store, self.run_id, self.attempt_id),
        }
        manifest = manifest_json(
            self.run_id,
            self.attempt_id,
            outcome,
            provenance=provenance,
            files=self._artifacts.stored,
            derived=self._artifacts.derived,
            logs=self.log_chunks.entries,
        )

        try:
            self.store.put_once(self.key(MANIFEST), manifest)
        except ConflictError as error:
            status = read_status(self.store, self.run_id, self.attempt_id)
            ending = f"{status.state} ({status.reason})" if status else "it has no status"
            raise ConflictError(
                f"attempt {self.attempt_id} was given up as {ending}: it cannot commit"
            ) from error
        return manifest

    def _commit(self, manifest: bytes) -> Outcome:
        """What another attempt has committed meanwhile stands, and is as good."""
        try:
            commit_run(self.store, self.run_id, self.attempt_id, manifest)
        except ConflictError:
            log.warning("another attempt has committed %s meanwhile; that one stands", self.run_id)
            return SUPERSEDED
        except MoolaError as error:
            with contextlib.suppress(MoolaError):
                self._write_status(outcome_of(error))
            raise

        log.info("committed %s", self.run_id)
        return COMMITTED

    def _write_status(self, outcome: Outcome) -> None:
        write_status(
            self.store,
            self.run_id,
            self.attempt_id,
            outcome,
            {"pid": os.getpid(), "last_log_sequence": self.log_chunks.sequence},
        )


def outcome_of(error: BaseException | None) -> Outcome:
    """How an attempt ends whose work ended with `error`."""
    if error is None:
        return COMMITTED
    if isinstance(error, Stopped):
        return Outcome(error.state, error.exit_code, str(error))
    if isinstance(error, MoolaError):
        return Outcome(State.FAILED, exit_code_of(error), str(error))
    return Outcome(State.FAILED, exit_code_of(error), f"{type(error).__name__}: {error}")


def write_status(
    store: Store,
    run_id: str,
    attempt_id: str,
    outcome: Outcome,
    process: Mapping[str, int],
) -> None:
    """Replace status.json; `process` are its fields besides the outcome and the time."""
    fields = {
        **process,
        "state": outcome.state,
        "exit_code": outcome.exit_code,
        "reason": cut(outcome.reason),
        "time": datetime.now(UTC),
    }
    status = Status.model_validate(fields)
    store.put(attempt_key(run_id, attempt_id, STATUS), status.to_json())


def manifest_json(
    run_id: str,
    attempt_id: str,
    outcome: Outcome,
    *,
    provenance: Provenance,
    files: Sequence[FileEntry] = (),
    derived: Sequence[DerivedEntry] = (),
    logs: Sequence[LogEntry],
) -> bytes:
    """manifest.json of an attempt that ends now."""
    manifest = Manifest(
        run_id=run_id,
        attempt_id=attempt_id,
        created=datetime.now(UTC),
        state=outcome.state,
        exit_code=outcome.exit_code,
        reason=cut(outcome.reason),
        provenance=provenance,
        files=tuple(files),
        derived=tuple(derived),
        logs=tuple(logs),
    )
    return canonical_json({"schema": 1, **manifest.fields()})


def commit_run(
    store: Store,
    run_id: str,
    attempt_id: str,
    manifest: bytes,
) -> None:
    """Write COMMIT.json.

    Raises ConflictError if another attempt committed first: that one stands.
    """
    commit = Commit(
        attempt=attempt_id,
        manifest=attempt_key(run_id, attempt_id, MANIFEST),
        manifest_sha256=hashlib.sha256(manifest).hexdigest(),
    )
    store.put_once(run_key(run_id, COMMIT), commit.to_json())


def end_attempt(
    store: Store,
    run_id: str,
    attempt_id: str,
    state: State | str,
    reason: str,
    exit_code: int | None = None,
) -> State:
    """Give an attempt whose process is gone its final status and a manifest; -> its state.

    One that has a final status keeps it. One that committed is `committed`, however its process
    ended afterwards. A status or manifest that is damaged is as good as none.
    """
    status = _read_or_none(read_status, store, run_id, attempt_id)
    if status is not None and status.state.is_final:
        return status.state

    outcome = Outcome(State(state), exit_code, reason)
    commit = _read_or_none(read_commit, store, run_id)
    if commit is not None and commit.attempt == attempt_id:
        outcome = COMMITTED

    manifest = manifest_json(
        run_id,
        attempt_id,
        outcome,
        provenance=rental(store, run_id, attempt_id),
        logs=stored_log_entries(store, run_id, attempt_id),
    )
    try:
        store.put_once(attempt_key(run_id, attempt_id, MANIFEST), manifest)
    except ConflictError:
        earlier = _read_or_none(read_attempt_manifest, store, run_id, attempt_id)
        if earlier is not None:
            outcome = _outcome_by_manifest(earlier, outcome)

    kept: dict[str, int] = {}
    if status is not None:
        kept = status.model_dump(include={"pid", "last_log_sequence"}, exclude_unset=True)
    write_status(store, run_id, attempt_id, outcome, kept)
    return outcome.state


def _read_or_none(read: Callable[P, T | None], *args: P.args, **kwargs: P.kwargs) -> T | None:
    """What `read` gives; None too where it is damaged."""
    try:
        return read(*args, **kwargs)
    except ArtifactError as error:
        log.warning("passed over: %s", error)
        return None


def _outcome_by_manifest(manifest: Manifest, outcome: Outcome) -> Outcome:
    """What an attempt's own manifest says of its end, unless it was to commit and did not."""
    if outcome == COMMITTED or manifest.state == State.COMMITTED:
        return outcome
    return Outcome(manifest.state, manifest.exit_code, manifest.reason)
