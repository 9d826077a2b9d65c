"""The size of the work folder: beyond its limit, what was not used for longest is removed.

What a running process may use stays. A process is known by a lock on a file in `.processes`, which
the system gives back however the process ends; what was used since the oldest running one began is
left alone. So a process marks what it uses, with `mark_used`, before it looks whether it is there.
"""

import contextlib
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from moola.runs.environment import read_number
from moola.runs.workdir import DEFAULT_WORK_LIMIT_GB

log = logging.getLogger("moola")

PROCESSES = ".processes"
CLEANING = ".cleaning"  # is locked while something is removed, or marked as used
REMOVED = ".removed-"
GROUPS = frozenset({"fetched", "inputs", "features", "models"})  # folders of independent entries
STORE_FOLDER = re.compile(r"[0-9a-f]{12}")  # of one store: its runs, and groups again
RUN_LOCK = "lock"
GB = 1e9
MOST_GB = 1e6

registered: set[Path] = set()  # work folders that this process has registered with


@dataclass(frozen=True)
class Entry:
    """A folder that is removed as a whole; `used` is when it was used last, in Unix seconds."""

    folder: Path
    size: int
    used: float


def limit_from(environment: Mapping[str, str]) -> float:
    """MOOLA_WORK_LIMIT_GB, for a job. Raises DataError."""
    return read_number(
        environment, "MOOLA_WORK_LIMIT_GB", DEFAULT_WORK_LIMIT_GB, least=1e-9, most=MOST_GB
    )


def keep_within_limit(work: Path, limit_gb: float) -> list[Path]:
    """Remove entries until the folder is within its limit, and register this process -> removed.

    To be called once, before the process uses anything in it.
    """
    with _locked(work) as is_locked:
        if not is_locked:  # Windows, or a folder that cannot be written to
            return []
        removed = [] if work in registered else _remove_oldest(work, limit_gb * GB)
        _register(work)

    if removed:
        log.info("the work folder was over %g GB: %d entries removed", limit_gb, len(removed))
    return removed


def mark_used(folder: Path) -> None:
    """Make an entry, or mark it as used now, so that it stays while this process runs."""
    work = next((parent for parent in folder.parents if parent in registered), None)
    with _locked(work) if work else contextlib.nullcontext():
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)


def mark_fetched(folder: Path) -> None:
    """As `mark_used` for an entry of `fetched`, also of a process that has not registered yet."""
    work = folder.parents[1]
    with _locked(work) as is_locked:
        if is_locked:
            _register(work)
    mark_used(folder)


def entries(work: Path) -> Iterator[Entry]:
    """What may be removed."""
    for folder in _folders(work):
        if folder.name in GROUPS:
            yield from map(_entry, _children(folder))
        elif STORE_FOLDER.fullmatch(folder.name):
            for inner in _folders(folder):
                yield from map(_entry, _children(inner) if inner.name in GROUPS else [inner])


def _remove_oldest(work: Path, limit_bytes: float) -> list[Path]:
    for leftover in work.glob(f"{REMOVED}*"):
        shutil.rmtree(leftover, ignore_errors=True)

    found = sorted(entries(work), key=lambda entry: entry.used)
    total = sum(entry.size for entry in found)
    in_use_since = _oldest_process(work)
    removed = []

    for entry in found:
        if total <= limit_bytes or entry.used >= in_use_since:
            break
        if _is_run_in_use(entry.folder) or not _remove(work, entry.folder):
            continue
        total -= entry.size
        removed.append(entry.folder)
    return removed


def _remove(work: Path, path: Path) -> bool:
    """Remove a file or folder: out of its place at once, then bit by bit."""
    doomed = work / f"{REMOVED}{secrets.token_hex(4)}"
    try:
        path.rename(doomed)
    except OSError:
        return False
    if doomed.is_dir():
        shutil.rmtree(doomed, ignore_errors=True)
    else:
        doomed.unlink(missing_ok=True)
    return True


def _children(folder: Path) -> list[Path]:
    return [path for path in _listed(folder) if not path.is_symlink()]


def _folders(folder: Path) -> list[Path]:
    return [path for path in _children(folder) if path.is_dir()]


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _entry(path: Path) -> Entry:
    size = 0
    used = 0.0
    for file in [path, *path.rglob("*")]:
        with contextlib.suppress(OSError):
            status = file.lstat()
            size += status.st_blocks * 512
            used = max(used, status.st_mtime)
    return Entry(path, size, used)


# --- processes ------------------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(work: Path) -> Iterator[bool]:
    """Wait for the lock of the work folder; False where there is none."""
    try:
        import fcntl

        work.mkdir(parents=True, exist_ok=True)
        handle = os.open(work / CLEANING, os.O_RDWR | os.O_CREAT, 0o666)
    except (ImportError, OSError):
        yield False
        return

    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield True
    finally:
        os.close(handle)


def _register(work: Path) -> None:
    """Lock a file of this process's own until it ends."""
    import fcntl

    if work in registered:
        return
    folder = work / PROCESSES
    folder.mkdir(exist_ok=True)
    path = folder / f"{os.getpid()}-{secrets.token_hex(4)}"
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # stays open
    fcntl.flock(handle, fcntl.LOCK_EX)
    registered.add(work)


def _oldest_process(work: Path) -> float:
    """When the oldest running process registered, in Unix seconds; now if there is none."""
    began = [time.time()]
    for path in _listed(work / PROCESSES):
        if _is_locked(path):
            began.append(path.stat().st_mtime)
        else:
            path.unlink(missing_ok=True)  # that process has ended
    return min(began)


def _is_run_in_use(folder: Path) -> bool:
    lock = folder / RUN_LOCK
    return lock.is_file() and _is_locked(lock)


def _is_locked(path: Path) -> bool:
    import fcntl

    try:
        handle = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False
