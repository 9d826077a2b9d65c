"""The work folder: scratch for inputs, upload journals and locks, kept from job to job."""

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from moola.errors import DataError, TryAgainError
from moola.store import Store
from moola.text import shortened

DEFAULT_WORK = "~/.cache/moola"
DEFAULT_WORK_LIMIT_GB = 100.0  # a decade of windows of one instrument is 16 GB
FETCHING = ".fetching"  # is locked while files are fetched into a folder


def work_folder(name: str) -> Path:
    """The folder of this name, with ~ for a home. Raises DataError where there is no such home."""
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise DataError(f"MOOLA_WORK must be a folder: {error} ({shortened(name)})") from error


def require_writable(folder: Path) -> None:
    """Raises DataError where the work folder cannot be made or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        place = shortened(str(folder))
        raise DataError(
            f"MOOLA_WORK must be a directory that can be written to: {error} ({place})"
        ) from error


def run_folder(work: Path, store: Store, run_id: str) -> Path:
    """The work folder's part for one run of one store."""
    store_id = hashlib.sha256(store.url.encode()).hexdigest()[:12]
    return work / store_id / run_id


def lock_run(folder: Path, run_id: str) -> TextIO:
    """Keep other processes of this machine from the run until what is returned is closed.

    Raises TryAgainError if one of them has the run.
    """
    import fcntl  # not on Windows, where only the launcher's remote commands run

    stream = (folder / "lock").open("a")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        stream.close()
        raise TryAgainError(
            f"another process on this machine is at run {run_id}; follow it with logs --follow"
        ) from error
    return stream


def is_at_work(work: Path, store: Store, run_id: str) -> bool:
    """Is a process of this machine at the run?"""
    folder = run_folder(work, store, run_id)
    if not (folder / "lock").exists():
        return False
    try:
        lock_run(folder, run_id).close()
    except TryAgainError:
        return True
    return False


@contextlib.contextmanager
def fetching_into(folder: Path) -> Iterator[None]:
    """While the block runs, no other process of this machine fetches into the folder.

    Runs that start together read the same feature set: the first fetches it, the others find it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return

    with (folder / FETCHING).open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
