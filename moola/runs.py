"""The run protocol: ids, status, heartbeat, log chunks, manifest, and the one commit point.

    inputs/<sha256>/<name>                          content-addressed, uploaded once
    runs/<run_id>/spec.json                         the resolved spec, write-once
    runs/<run_id>/attempts/<attempt_id>/status.json, heartbeat.json, logs/<n>.jsonl, files/<path>, manifest.json
    runs/<run_id>/COMMIT.json                       {attempt, manifest, manifest_sha256}, written last

A run's id comes from what decides its result: spec, input digests and code. So the same work has the same id, and
whether it was done is one look-up. Success is COMMIT with a manifest that verifies. Data first, marker last; readers
go COMMIT -> manifest -> keys and never list.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from types import FrameType, TracebackType
from typing import Any, Self

import moola
from moola import errors
from moola.errors import ArtifactError, ConflictError, DataError, MoolaError, TryAgainError
from moola.store import BytesSource, FileSource, Source, Store, Stored, open_store

log = logging.getLogger("moola")

COMMIT, MANIFEST = "COMMIT.json", "manifest.json"
FINAL_STATES = ("committed", "failed", "cancelled", "terminated", "lost")


class Stopped(BaseException):
    """SIGINT or SIGTERM reached the job. Not an Exception: no `except Exception` on the way may swallow it."""

    def __init__(self, signum: int, _frame: FrameType | None = None) -> None:
        super().__init__(signal.Signals(signum).name)
        self.state = "cancelled" if signum == signal.SIGINT else "terminated"
        self.exit_code = errors.EXIT_CANCELLED if signum == signal.SIGINT else errors.EXIT_TERMINATED


def _raise_stopped(signum: int, frame: FrameType | None) -> None:
    for signal_ in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_, signal.SIG_IGN)  # the first one is enough; the clean-up must not be cut short
    raise Stopped(signum, frame)


def run_key(run_id: str, *parts: str) -> str:
    return "/".join(("runs", run_id, *parts))


def attempt_key(run_id: str, attempt_id: str, *parts: str) -> str:
    return run_key(run_id, "attempts", attempt_id, *parts)


def attempt_id_now() -> str:
    """Unique, and sorts by time: 20261122T231500Z-9f86d081."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"


def canonical_json(document: Any) -> bytes:
    """Sorted keys, no spaces: the same document has the same bytes and the same digest."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def sha256_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def code_sha256() -> str:
    """Digest of the library's own source: names and bytes of every .py file of the package."""
    root = Path(moola.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


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
    """A local, verified copy of an input; one that is there is used again."""
    path = work / "inputs" / str(item["sha256"]) / str(item["name"])
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        store.pull(item["key"], path, size=item["size"], sha256=item["sha256"])
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
    return _read_json(store, run_key(run_id, "spec.json"))


def _read_json(store: Store, key: str) -> dict[str, Any]:
    try:
        document = json.loads(store.get(key))
    except ValueError as error:
        raise ArtifactError(f"{key} must be JSON: {error} ({store.url})") from error
    if not isinstance(document, dict):
        raise ArtifactError(f"{key} must be a JSON object, got {type(document).__name__} ({store.url})")
    return document


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
        self._beat_s = 0.5 if store.url.startswith("file:") else 5.0  # a request costs money elsewhere
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
        self.store.put_once(self.key(MANIFEST), manifest)
        if error is None:
            commit_run(self.store, self.run_id, self.attempt_id, manifest)
            log.info("committed %s", self.run_id)
            self._flush_logs()
        self._status(state, exit_code, reason)
        if error is None:
            _forget(self.work / "journal")

    def _manifest(self, state: str, exit_code: int, reason: str) -> dict[str, Any]:
        return {
            "schema": 1,
            "run_id": self.run_id,
            "attempt_id": self.attempt_id,
            "created": _now(),
            "state": state,
            "exit_code": exit_code,
            "reason": reason,
            "provenance": {**environment(), **self.provenance},
            "files": self._files,
            "derived": self._derived,
            "logs": self._logs,
        }

    def _status(self, state: str, exit_code: int | None = None, reason: str = "") -> None:
        document = {"state": state, "exit_code": exit_code, "reason": reason, "time": _now(), "pid": os.getpid()}
        self.store.put(
            self.key("status.json"), canonical_json({**document, "last_log_sequence": self._chunks.sequence})
        )

    # -- heartbeat and logs --

    def _keep_beating(self) -> None:
        while not self._done.wait(self._beat_s):
            try:
                self._flush_logs()
                beat = {"time": _now(), "last_log_sequence": self._chunks.sequence, **vars(self.progress)}
                self.store.put(self.key("heartbeat.json"), canonical_json(beat))
            except MoolaError as error:  # a missed beat is not worth a run; the next one follows
                print(f"heartbeat not written: {error}", file=sys.stderr, flush=True)

    def _flush_logs(self) -> None:
        data = self._chunks.take()
        if data:
            key = self.key("logs", f"{len(self._logs) + 1:08d}.jsonl")
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


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def commit_run(store: Store, run_id: str, attempt_id: str, manifest: bytes) -> None:
    """Write COMMIT.json. Raises ConflictError if another attempt committed first: that one stands."""
    commit = {
        "attempt": attempt_id,
        "manifest": attempt_key(run_id, attempt_id, MANIFEST),
        "manifest_sha256": hashlib.sha256(manifest).hexdigest(),
    }
    store.put_once(run_key(run_id, COMMIT), canonical_json(commit))


def mark_lost(store: Store, run_id: str, attempt_id: str, reason: str) -> None:
    """Give an attempt that died without a word its final status; one that has a final status keeps it."""
    key = attempt_key(run_id, attempt_id, "status.json")
    status = json.loads(store.get_or_none(key) or b"{}")
    if status.get("state") not in FINAL_STATES:
        store.put(key, canonical_json({**status, "state": "lost", "reason": reason, "time": _now()}))


def environment() -> dict[str, Any]:
    """Provenance of this process: code, versions, machine. No names of hosts or users, no environment values."""
    packages = ("numpy", "pandas", "pyarrow", "numba", "pydantic", "boto3", "torch")
    versions = {name: version for name in packages if (version := _version(name))}
    return {
        "moola": moola.__version__,
        "code_sha256": code_sha256(),
        **_git(),
        "image_digest": os.environ.get("MOOLA_IMAGE_DIGEST"),
        "versions": {"python": platform.python_version(), **versions},
        "machine": {"system": platform.system(), "machine": platform.machine(), "cpus": os.cpu_count()},
        "peak_memory_mb": _peak_memory_mb(),
    }


def _peak_memory_mb() -> float | None:
    """The most memory this process has held, in MB; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    per_mb = 1e3 if platform.system() == "Linux" else 1e6  # kB there, bytes on macOS
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / per_mb, 1)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git() -> dict[str, Any]:
    """{"git_sha", "git_dirty"}: from the image's environment, else from the checkout, else None."""
    if "MOOLA_GIT_SHA" in os.environ:
        return {"git_sha": os.environ["MOOLA_GIT_SHA"], "git_dirty": False}
    git = ["git", "-C", str(Path(moola.__file__).parent)]
    try:
        sha = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        dirty = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return {"git_sha": None, "git_dirty": None}
    return {"git_sha": sha, "git_dirty": bool(dirty.strip())}


@contextlib.contextmanager
def held_signals() -> Iterator[Callable[[], int | None]]:
    """SIGINT and SIGTERM are noted, not raised, while the block runs; yields what tells the first one's number.

    For work that must reach a good place before it stops. The block's end raises `Stopped` if one has come.
    """
    came: list[int] = []
    before = {s: signal.signal(s, lambda signum, _: came.append(signum)) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: came[0] if came else None
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        if came:
            _raise_stopped(came[0], None)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[None]:
    """SIGINT and SIGTERM raise `Stopped` in the main thread while the block runs."""
    before = {s: signal.signal(s, _raise_stopped) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def job_store() -> tuple[Store, Path]:
    """The store and the work folder that a job's environment names."""
    work = Path(os.environ.get("MOOLA_WORK", "~/.cache/moola")).expanduser()
    return open_store(os.environ.get("MOOLA_STORE", "file://./moola-store")), work


def run_job(
    job: str, work_on: Callable[[Attempt, dict[str, Any]], None], submit_default: Callable[[Store, Path], str]
) -> int:
    """A job's process, from its environment to its exit code.

    MOOLA_STORE, MOOLA_WORK and MOOLA_RUN say what to do (MOOLA_ATTEMPT, if set, under which id); with no MOOLA_RUN the
    run that `submit_default` submits is done. `work_on(attempt, spec document)` is the job itself.
    """
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(asctime)s %(levelname)s %(message)s")
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
    commit = _read_json(store, run_key(run_id, COMMIT))
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
        raise ArtifactError(f"run {run_id} is not committed: its state is {run_state(store, run_id)['state']}")
    return manifest


def find_run(store: Store, name: str) -> str:
    """A run's whole id from its start. Raises DataError if none, or more than one, starts so."""
    if store.head(run_key(name, "spec.json")):
        return name
    matches = [run_id for run_id in store.children("runs") if run_id.startswith(name)]
    if len(matches) != 1:
        found = ", ".join(matches) or "none"
        raise DataError(f"RUN must be a run's id or the start of exactly one, got {name!r}: {found} ({store.url})")
    return matches[0]


def manifest_sha256(store: Store, run_id: str) -> str:
    """The digest of a committed run's manifest, which stands for all it made. Raises ArtifactError."""
    require_manifest(store, run_id)
    return str(_read_json(store, run_key(run_id, COMMIT))["manifest_sha256"])


def newest_run(store: Store, job: str) -> str | None:
    """The run of a job that was committed last; None if there is none."""
    committed = [
        (state["attempt"], run_id)
        for run_id in store.children("runs")
        if run_id.startswith(f"{job}-") and (state := run_state(store, run_id))["state"] == "committed"
    ]
    return max(committed)[1] if committed else None


def run_state(store: Store, run_id: str) -> dict[str, Any]:
    """{"state", "attempt", "status", "heartbeat"} of the newest attempt; `committed` once COMMIT is there."""
    attempts = sorted(store.children(run_key(run_id, "attempts")))
    commit = store.get_or_none(run_key(run_id, COMMIT))
    if commit is not None:
        attempts = [json.loads(commit)["attempt"]]
    if not attempts:
        return {"state": "submitted", "attempt": None, "status": {}, "heartbeat": {}}
    status, heartbeat = (
        json.loads(store.get_or_none(attempt_key(run_id, attempts[-1], name)) or b"{}")
        for name in ("status.json", "heartbeat.json")
    )
    state = "committed" if commit is not None else status.get("state", "submitted")
    return {"state": state, "attempt": attempts[-1], "status": status, "heartbeat": heartbeat}


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
    while (data := store.get_or_none(attempt_key(run_id, attempt_id, "logs", f"{first_chunk:08d}.jsonl"))) is not None:
        yield first_chunk, [json.loads(line) for line in data.splitlines()]
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
