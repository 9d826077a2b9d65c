"""The run protocol: submit, attempt, commit, read. `moola.protocol` has the keys and the states.

A run's id comes from what decides its result: spec, input digests and code. So the same work has the same id, and
whether it was done is one look-up. Success is COMMIT with a manifest that verifies. Data first, marker last; readers
go COMMIT -> manifest -> keys and never list.
"""

import contextlib
import hashlib
import json
import logging
import os
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Self

import moola
from moola import errors
from moola.errors import ArtifactError, ConflictError, DataError, MoolaError, TryAgainError
from moola.launches import rental
from moola.machine import code_sha256, environment, require_writable, usage
from moola.protocol import (
    CANCEL,
    COMMIT,
    FINAL_STATES,
    HEARTBEAT,
    MANIFEST,
    STATUS,
    attempt_id_now,
    attempt_key,
    canonical_json,
    now_text,
    read_json,
    read_json_or_none,
    run_key,
)
from moola.signals import Stopped, stop_on_signals
from moola.store import BytesSource, FileSource, Source, Store, Stored, open_store

log = logging.getLogger("moola")
SILENT_S = 60.0  # a running attempt is heard of every 5 seconds at least


def sha256_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# --- submit: a run exists once its spec.json does ---------------------------------------------------------------


def describe_input(path: Path) -> dict[str, Any]:
    """{key, name, sha256, size} of a local file that a run reads."""
    sha256 = sha256_file(path)
    return {"key": f"inputs/{sha256}/{path.name}", "name": path.name, "sha256": sha256, "size": path.stat().st_size}


def put_input(store: Store, path: Path, item: dict[str, Any], on_progress: Callable[[int], None] | None = None) -> None:
    """Upload an input described by `describe_input`, unless it is there."""
    head = store.head(item["key"])
    if head is None or head.size != item["size"]:
        store.upload(item["key"], FileSource(path), on_progress=on_progress)


def pull_input(store: Store, item: dict[str, Any], work: Path) -> Path:
    """A local, verified copy of an input; one that is there, and is still what it was, is used again."""
    path = work / "inputs" / str(item["sha256"]) / str(item["name"])
    if not path.exists() or sha256_file(path) != item["sha256"]:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            store.pull(item["key"], path, size=item["size"], sha256=item["sha256"])
        except ArtifactError as error:
            raise ArtifactError(f"{error}; delete it from the store, and the same command stores it again") from error
    return path


def describe_run(
    job: str, spec: dict[str, Any], inputs: dict[str, dict[str, Any]], *, force: bool = False
) -> tuple[str, dict[str, Any]]:
    """(run id, spec.json) of a job. The same work has the same id; `force` gives a further one. Nothing is sent."""
    digests = {name: item["sha256"] for name, item in inputs.items()}
    decides = {"job": job, "spec": spec, "inputs": digests, "code_sha256": code_sha256()}
    fingerprint = hashlib.sha256(canonical_json(decides)).hexdigest()
    run_id = f"{job}-{fingerprint[:12]}" + (f"-{secrets.token_hex(2)}" if force else "")
    return run_id, {**decides, "inputs": inputs, "fingerprint": fingerprint, "moola": moola.__version__}


def submit(store: Store, run_id: str, document: dict[str, Any]) -> None:
    """Write spec.json: from now on the run exists."""
    with contextlib.suppress(ConflictError):  # the same input bytes under another file name: the first spec stands
        store.put_once(run_key(run_id, "spec.json"), canonical_json(document))


def read_spec_document(store: Store, run_id: str) -> dict[str, Any]:
    """spec.json of a run. Raises ArtifactError if there is none."""
    return read_json(store, run_key(run_id, "spec.json"))


# --- attempt: one try at a run ----------------------------------------------------------------------------------


@dataclass
class Progress:
    """What the heartbeat shows: the stage, and how far it is, in `unit`."""

    stage: str = "start"
    done: int = 0
    total: int = 0
    unit: str = ""
    note: str = ""


class _Chunks(logging.Handler):
    """Collects log records until they are written as one numbered, write-once chunk."""

    def __init__(self) -> None:
        super().__init__()
        self.sequence = 0
        self._lines: list[bytes] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.sequence += 1  # logging holds this handler's lock here
        message = record.getMessage()
        record.sequence = self.sequence  # for the handler that prints it: see `_PodFormatter`
        line = {"seq": self.sequence, "time": record.created, "level": record.levelname, "message": message}
        self._lines.append(json.dumps(line).encode() + b"\n")

    def take(self) -> bytes:
        self.acquire()
        try:
            lines, self._lines = self._lines, []
        finally:
            self.release()
        return b"".join(lines)


class Attempt:
    """One try at a run, as a context: status, heartbeat and logs flow while it is open; it ends in a manifest.

    Leaving the block without an error commits the run. An error or a signal leaves status `failed`, `cancelled` or
    `terminated` and a manifest that says so, and no COMMIT. Raises TryAgainError if this machine is already at the
    run.
    """

    def __init__(self, store: Store, run_id: str, *, attempt_id: str | None = None, work: Path) -> None:
        self.store, self.run_id = store, run_id
        beat_s = 0.5 if store.url.startswith("file:") else 5.0  # a request costs money elsewhere
        self._beat_s = float(os.environ.get("MOOLA_BEAT_S", beat_s))
        self.attempt_id = attempt_id or attempt_id_now()
        self.work = work / hashlib.sha256(store.url.encode()).hexdigest()[:12] / run_id
        self.progress = Progress()
        self.provenance: dict[str, Any] = {}
        self._files: list[dict[str, Any]] = []
        self._derived: list[dict[str, Any]] = []
        self._logs: list[dict[str, Any]] = []
        self._chunks = _Chunks()
        self._done = threading.Event()
        self._beat = threading.Thread(target=self._keep_beating, name="heartbeat", daemon=True)

    def key(self, *parts: str) -> str:
        return attempt_key(self.run_id, self.attempt_id, *parts)

    def __enter__(self) -> Self:
        self.work.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self.work / "lock", self.run_id)
        self._status("running")
        log.addHandler(self._chunks)
        self._beat.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._end(error)
        finally:
            log.removeHandler(self._chunks)
            self._lock.close()

    def stage(self, name: str, total: int = 0, unit: str = "") -> None:
        """Say what happens now; `total` in `unit` where it is known."""
        self.progress = Progress(name, 0, total, unit)
        log.info("%s%s", name, f" ({total:,} {unit})" if total else "")

    def show(self, stage: str, done: int, total: int, unit: str, note: str = "") -> None:
        """Set all that the next heartbeat says of the progress, without a log line."""
        self.progress = Progress(stage, done, total, unit, note)

    def advance(self, amount: int) -> None:
        self.progress.done += amount

    def write(self, path: str, data: bytes, media_type: str) -> None:
        """Store a small artifact."""
        self.upload(path, BytesSource(data), media_type)

    def upload(
        self,
        path: str,
        source: Source,
        media_type: str,
        npy: dict[str, Any] | None = None,
        *,
        on_progress: Callable[[int], None] | None = None,
    ) -> str:
        """Store an artifact part by part; parts an earlier, killed attempt sent are not sent again. -> sha256."""
        journal = self.work / "journal" / f"{path.replace('/', '~')}.jsonl"
        journal.parent.mkdir(exist_ok=True)
        if journal.exists():
            log.info("resuming the upload of %s", path)
        stored = self.store.upload(self.key("files", path), source, journal=journal, on_progress=on_progress)
        self._files.append(_entry(path, stored, media_type, npy))
        return stored.sha256

    def derive(self, path: str, size: int, sha256: str, npy: dict[str, Any], rule: str) -> None:
        """Record a file that is not stored: `rule` rebuilds it on pull, to exactly this sha256."""
        self._derived.append({"path": path, "size": size, "sha256": sha256, "npy": npy, "rule": rule})

    def checkpoint(self, step: int, files: Mapping[str, bytes]) -> None:
        """Store a checkpoint; it counts from when its manifest, written last, is there."""
        entries = []
        for name, data in files.items():
            key = self.key("checkpoints", f"{step:09d}", name)
            self.store.upload(key, BytesSource(data))
            entries.append({"path": name, "key": key, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()})
        document = {"schema": 1, "step": step, "files": entries}
        self.store.put_once(self.key("checkpoints", f"{step:09d}", MANIFEST), canonical_json(document))
        log.info("checkpoint after step %d", step)

    # -- the end --

    def _end(self, error: BaseException | None) -> None:
        state, exit_code, reason = _outcome(error)
        if error is not None:
            log.error("%s: %s", state, reason)
        self._done.set()
        self._beat.join()
        self._flush_logs()
        manifest = canonical_json(self._manifest(state, exit_code, reason))
        self._put_manifest(manifest)
        if error is None:
            state, exit_code, reason = self._commit(manifest)
            self._flush_logs()
        self._status(state, exit_code, reason)
        if error is None:
            _forget(self.work / "journal")

    def _commit(self, manifest: bytes) -> tuple[str, int, str]:
        """-> state, exit code and reason. What another attempt has committed meanwhile stands, and is as good."""
        try:
            commit_run(self.store, self.run_id, self.attempt_id, manifest)
        except ConflictError:
            log.warning("another attempt has committed %s meanwhile; that one stands", self.run_id)
            return "failed", errors.EXIT_DONE, "another attempt committed the run first"
        except MoolaError as error:
            with contextlib.suppress(MoolaError):
                self._status(*_outcome(error))
            raise
        log.info("committed %s", self.run_id)
        return "committed", errors.EXIT_DONE, ""

    def _put_manifest(self, manifest: bytes) -> None:
        try:
            self.store.put_once(self.key(MANIFEST), manifest)
        except ConflictError as error:
            status = read_json(self.store, self.key(STATUS))
            raise ConflictError(
                f"attempt {self.attempt_id} was given up as {status['state']} ({status['reason']}): it cannot commit"
            ) from error

    def _manifest(self, state: str, exit_code: int, reason: str) -> dict[str, Any]:
        return {
            "schema": 1,
            "run_id": self.run_id,
            "attempt_id": self.attempt_id,
            "created": now_text(),
            "state": state,
            "exit_code": exit_code,
            "reason": reason,
            "provenance": {**environment(), **self.provenance, **rental(self.store, self.run_id, self.attempt_id)},
            "files": self._files,
            "derived": self._derived,
            "logs": self._logs,
        }

    def _status(self, state: str, exit_code: int | None = None, reason: str = "") -> None:
        document = {"state": state, "exit_code": exit_code, "reason": reason, "time": now_text(), "pid": os.getpid()}
        self.store.put(self.key(STATUS), canonical_json({**document, "last_log_sequence": self._chunks.sequence}))

    # -- heartbeat and logs --

    def _keep_beating(self) -> None:
        while not self._done.wait(self._beat_s):
            try:
                self._flush_logs()
                beat = {"time": now_text(), "last_log_sequence": self._chunks.sequence, **vars(self.progress)}
                self.store.put(self.key(HEARTBEAT), canonical_json({**beat, "usage": usage()}))
                if self.store.get_or_none(self.key(CANCEL)) is not None:
                    os.kill(os.getpid(), signal.SIGINT)
                    return
            except MoolaError as error:  # a missed beat is not worth a run; the next one follows
                print(f"heartbeat not written: {error}", file=sys.stderr, flush=True)

    def _flush_logs(self) -> None:
        data = self._chunks.take()
        if data:
            key = _log_key(self.run_id, self.attempt_id, len(self._logs) + 1)
            self._logs.append({"key": key, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()})
            self.store.put_once(key, data)


def _entry(path: str, stored: Stored, media_type: str, npy: dict[str, Any] | None) -> dict[str, Any]:
    entry = {"path": path, "key": stored.key, "size": stored.size, "sha256": stored.sha256, "media_type": media_type}
    return {**entry, **({"npy": npy} if npy else {})}


def _outcome(error: BaseException | None) -> tuple[str, int, str]:
    """(state, exit code, reason) of an attempt that ended with `error`."""
    if error is None:
        return "committed", errors.EXIT_DONE, ""
    if isinstance(error, Stopped):
        return error.state, error.exit_code, str(error)
    if isinstance(error, MoolaError):
        return "failed", error.exit_code, str(error)
    return "failed", MoolaError.exit_code, f"{type(error).__name__}: {error}"


def _lock(path: Path, run_id: str) -> Any:
    import fcntl  # not on Windows, where only the launcher's remote commands run

    stream = path.open("a")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        stream.close()
        raise TryAgainError(
            f"another process on this machine is at run {run_id}; follow it with logs --follow"
        ) from error
    return stream


def _forget(folder: Path) -> None:
    for path in folder.glob("*.jsonl"):
        path.unlink()


def commit_run(store: Store, run_id: str, attempt_id: str, manifest: bytes) -> None:
    """Write COMMIT.json. Raises ConflictError if another attempt committed first: that one stands."""
    commit = {
        "attempt": attempt_id,
        "manifest": attempt_key(run_id, attempt_id, MANIFEST),
        "manifest_sha256": hashlib.sha256(manifest).hexdigest(),
    }
    store.put_once(run_key(run_id, COMMIT), canonical_json(commit))


def end_attempt(
    store: Store, run_id: str, attempt_id: str, state: str, reason: str, exit_code: int | None = None
) -> str:
    """Give an attempt that cannot speak for itself its final status, and a manifest; -> its state.

    One that has a final status keeps it; one that committed is `committed`, whatever became of it afterwards.
    """
    key = attempt_key(run_id, attempt_id, STATUS)
    status = read_json_or_none(store, key) or {}
    if status.get("state") in FINAL_STATES:
        return str(status["state"])
    commit = read_json_or_none(store, run_key(run_id, COMMIT))
    if commit is not None and commit["attempt"] == attempt_id:
        state, reason, exit_code = "committed", "", errors.EXIT_DONE
    record = {"schema": 1, "run_id": run_id, "attempt_id": attempt_id, "created": now_text()}
    record |= {"state": state, "exit_code": exit_code, "reason": reason, "files": [], "derived": []}
    record |= {"logs": _chunks_in_store(store, run_id, attempt_id), "provenance": rental(store, run_id, attempt_id)}
    manifest = attempt_key(run_id, attempt_id, MANIFEST)
    try:
        store.put_once(manifest, canonical_json(record))
    except ConflictError:  # it did leave one: what it says of its end stands, unless it was to commit and did not
        said = read_json(store, manifest)
        if state != "committed" and said["state"] != "committed":
            state, reason, exit_code = said["state"], said["reason"], said["exit_code"]
    ending = {"state": state, "exit_code": exit_code, "reason": reason, "time": now_text()}
    store.put(key, canonical_json({**status, **ending}))
    return state


def _chunks_in_store(store: Store, run_id: str, attempt_id: str) -> list[dict[str, Any]]:
    """The manifest's `logs` of an attempt that wrote no manifest."""
    found: list[dict[str, Any]] = []
    while (data := store.get_or_none(key := _log_key(run_id, attempt_id, len(found) + 1))) is not None:
        found.append({"key": key, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()})
    return found


def _log_key(run_id: str, attempt_id: str, chunk: int) -> str:
    return attempt_key(run_id, attempt_id, "logs", f"{chunk:08d}.jsonl")


class _PodFormatter(logging.Formatter):
    """`#12 INFO message`, one line each: a reader of the live log knows which line of the chunks it is."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage().replace("\\", "\\\\").replace("\n", "\\n")
        return f"#{getattr(record, 'sequence', 0)} {record.levelname} {message}"


def _log_to_stdout() -> None:
    handler = logging.StreamHandler(sys.stdout)
    plain = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(_PodFormatter() if "MOOLA_LAUNCH" in os.environ else plain)
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    log.setLevel(logging.INFO)


def job_store() -> tuple[Store, Path]:
    """The store and the work folder that a job's environment names. Raises DataError if one cannot be written to."""
    work = Path(os.environ.get("MOOLA_WORK", "~/.cache/moola")).expanduser()
    require_writable(work)
    return open_store(os.environ.get("MOOLA_STORE", "file://./moola-store")), work


def run_job(
    job: str, work_on: Callable[[Attempt, dict[str, Any]], None], submit_default: Callable[[Store, Path], str]
) -> int:
    """A job's process, from its environment to its exit code.

    MOOLA_STORE, MOOLA_WORK and MOOLA_RUN say what to do (MOOLA_ATTEMPT, if set, under which id); with no MOOLA_RUN the
    run that `submit_default` submits is done. `work_on(attempt, spec document)` is the job itself.
    """
    _log_to_stdout()
    with stop_on_signals():
        try:
            store, work = job_store()
            run_id = os.environ.get("MOOLA_RUN") or submit_default(store, work)
            if read_manifest(store, run_id) is not None:
                log.info("%s is already committed: nothing to do", run_id)
                return errors.EXIT_DONE
            document = read_spec_document(store, run_id)
            if document["job"] != job:
                raise DataError(f"this is the {job} job, but run {run_id} is a {document['job']} run")
            with Attempt(store, run_id, attempt_id=os.environ.get("MOOLA_ATTEMPT"), work=work) as attempt:
                digests = {"spec_sha256": hashlib.sha256(canonical_json(document["spec"])).hexdigest()}
                attempt.provenance |= {**digests, "inputs": document["inputs"]}
                work_on(attempt, document)
        except (MoolaError, Stopped) as error:
            print(f"{job}: {error}", file=sys.stderr, flush=True)
            return error.exit_code
    return errors.EXIT_DONE


# --- reading ----------------------------------------------------------------------------------------------------


def read_manifest(store: Store, run_id: str) -> dict[str, Any] | None:
    """The committed manifest, its own digest checked; None if the run is not committed. Raises ArtifactError."""
    if store.get_or_none(run_key(run_id, COMMIT)) is None:
        return None
    commit = read_json(store, run_key(run_id, COMMIT))
    data = store.get(commit["manifest"])
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 != commit["manifest_sha256"]:
        raise ArtifactError(f"sha256 of {commit['manifest']} must be {commit['manifest_sha256']}, got {sha256}")
    manifest: dict[str, Any] = json.loads(data)
    for item in manifest["files"] + manifest["derived"]:
        path = PurePosixPath(item["path"])
        if path.is_absolute() or ".." in path.parts:
            raise ArtifactError(f"a manifest's paths stay inside the run, got {item['path']} ({run_id})")
    return manifest


def require_manifest(store: Store, run_id: str) -> dict[str, Any]:
    """The committed manifest. Raises ArtifactError that says what the run's state is instead."""
    manifest = read_manifest(store, run_id)
    if manifest is None:
        state = run_state(store, run_id)["state"]
        raise ArtifactError(f"run {run_id} is not committed: its state is {state}, and it has no {COMMIT}")
    return manifest


def find_run(store: Store, name: str, job: str | None = None) -> str:
    """A run's whole id from its start. Raises DataError if none, or more than one, starts so, or if it is not one of
    `job`."""
    matches = [name]
    if not name or "/" in name or not store.head(run_key(name, "spec.json")):
        matches = [run_id for run_id in store.children("runs") if name and run_id.startswith(name)]
    if len(matches) != 1:
        found = ", ".join(matches) or "none"
        raise DataError(f"RUN must be a run's id or the start of exactly one, got {name!r}: {found} ({store.url})")
    if job is not None and read_spec_document(store, matches[0])["job"] != job:
        raise DataError(f"RUN must be a {job} run, got {matches[0]} ({store.url})")
    return matches[0]


def manifest_sha256(store: Store, run_id: str) -> str:
    """The digest of a committed run's manifest, which stands for all it made. Raises ArtifactError."""
    require_manifest(store, run_id)
    return str(read_json(store, run_key(run_id, COMMIT))["manifest_sha256"])


def newest_run(store: Store, job: str) -> str | None:
    """The run of a job that was committed last; None if there is none."""
    committed = [
        (state["attempt"], run_id)
        for run_id in store.children("runs")
        if run_id.startswith(f"{job}-") and (state := run_state(store, run_id))["state"] == "committed"
    ]
    return max(committed)[1] if committed else None


def run_state(store: Store, run_id: str) -> dict[str, Any]:
    """{"state", "attempt", "status", "heartbeat"} of the newest attempt; `committed` once COMMIT is there.

    Of one that is running also "silent_s": the seconds since it was last heard of. Raises ArtifactError.
    """
    attempts = sorted(store.children(run_key(run_id, "attempts")))
    commit = read_json_or_none(store, run_key(run_id, COMMIT))
    if commit is not None:
        attempts = [commit["attempt"]]
    if not attempts:
        return {"state": "submitted", "attempt": None, "status": {}, "heartbeat": {}}
    status, heartbeat = (
        read_json_or_none(store, attempt_key(run_id, attempts[-1], name)) or {} for name in (STATUS, HEARTBEAT)
    )
    state = "committed" if commit is not None else status.get("state", "submitted")
    found = {"state": state, "attempt": attempts[-1], "status": status, "heartbeat": heartbeat}
    if state == "running":
        heard = max(said.get("time", "") for said in (status, heartbeat))
        if heard:
            found["silent_s"] = round((datetime.now(UTC) - datetime.fromisoformat(heard)).total_seconds(), 1)
    return found


def is_silent(found: Mapping[str, Any]) -> bool:
    """Is a `run_state` that of a run that should be heard of, and is not? It may have been killed with its launcher."""
    return bool(found.get("silent_s", 0) > SILENT_S)


def newest_checkpoint(store: Store, run_id: str) -> tuple[int, dict[str, bytes]] | None:
    """(step, name -> bytes) of the run's furthest checkpoint that is whole; None if there is none.

    One without a manifest, or with a file that is gone or has other bytes, is passed over for the one before.
    """
    found = [
        (int(step), attempt_id)
        for attempt_id in store.children(run_key(run_id, "attempts"))
        for step in store.children(attempt_key(run_id, attempt_id, "checkpoints"))
    ]
    for step, attempt_id in sorted(found, reverse=True):
        data = store.get_or_none(attempt_key(run_id, attempt_id, "checkpoints", f"{step:09d}", MANIFEST))
        items = json.loads(data)["files"] if data else []
        files = {item["path"]: store.get_or_none(item["key"]) or b"" for item in items}
        if files and all(hashlib.sha256(files[item["path"]]).hexdigest() == item["sha256"] for item in items):
            return step, files
        log.warning("the checkpoint after step %d is not whole and is passed over (%s)", step, attempt_id)
    return None


def log_records(
    store: Store, run_id: str, attempt_id: str, *, first_chunk: int = 1
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """(chunk number, records) from `first_chunk` on, up to the newest chunk there is now."""
    while (data := store.get_or_none(key := _log_key(run_id, attempt_id, first_chunk))) is not None:
        try:
            records = [json.loads(line) for line in data.splitlines()]
        except ValueError as error:
            raise ArtifactError(f"{key} must hold lines of JSON: {error} ({store.url})") from error
        yield first_chunk, records
        first_chunk += 1


def pull_files(
    store: Store,
    manifest: dict[str, Any],
    dest: Path,
    on_progress: Callable[[int], None] | None = None,
    *,
    only: Collection[str] | None = None,
) -> None:
    """The stored files of a manifest (or `only` some) into `dest`, each verified before it takes its name.

    What is there already stays.
    """
    for item in manifest["files"]:
        if only is not None and item["path"] not in only:
            continue
        path = dest / item["path"]
        if path.exists() and path.stat().st_size == item["size"] and sha256_file(path) == item["sha256"]:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        store.pull(item["key"], path, size=item["size"], sha256=item["sha256"], on_progress=on_progress)
