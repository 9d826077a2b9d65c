"""The work folder has a limit: what was used longest ago goes, what a process may use stays."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from moola.errors import DataError
from moola.runs import work_limit
from moola.runs.work_limit import entries, keep_within_limit, limit_from, mark_used
from moola.runs.workdir import DEFAULT_WORK_LIMIT_GB, lock_run

STORE = "0123456789ab"
KB = 1000
GB_PER_BYTE = 1e-9


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    """An empty work folder that no process of ours has registered with yet."""
    yield tmp_path / "work"
    work_limit.registered.discard(tmp_path / "work")


def entry(folder: Path, age_s: float, size: int = 100 * KB) -> Path:
    """An entry with one file, used so long ago."""
    folder.mkdir(parents=True)
    file = folder / "file"
    file.write_bytes(os.urandom(size))
    moment = time.time() - age_s
    for path in (file, folder):
        os.utime(path, (moment, moment))
    return folder


def test_beyond_the_limit_what_was_used_longest_ago_is_removed(work: Path) -> None:
    old = entry(work / STORE / "inputs" / "aa", age_s=3000)
    middle = entry(work / "models" / "train-1", age_s=2000)
    new = entry(work / STORE / "train-0123456789ab", age_s=1000)
    assert keep_within_limit(work, 250 * KB * GB_PER_BYTE) == [old]
    assert not old.exists()
    assert middle.exists()
    assert new.exists()


def test_within_the_limit_nothing_is_removed(work: Path) -> None:
    kept = [entry(work / "fetched" / name, age_s=9999) for name in "ab"]
    assert keep_within_limit(work, 1) == []
    assert all(folder.exists() for folder in kept)


def test_every_kind_of_entry_counts_and_nothing_else_is_touched(work: Path, tmp_path: Path) -> None:
    outside = entry(tmp_path / "outside", age_s=9999)
    (work / "inputs").mkdir(parents=True)
    (work / "inputs" / "link").symlink_to(outside)
    (work / "fffffffffff0").symlink_to(outside)
    for name in ("faults", "numba", "docker/inputs/x", "mine"):
        entry(work / name, age_s=9999)
    kinds = [
        entry(work / place, age_s=9999)
        for place in (
            "fetched/a",
            "inputs/a",
            "features/a",
            "models/a",
            f"{STORE}/inputs/a",
            f"{STORE}/features/a",
            f"{STORE}/precompute-0123456789ab",
        )
    ]
    assert {one.folder for one in entries(work)} == set(kinds)
    assert set(keep_within_limit(work, 1e-9)) == set(kinds)
    assert outside.joinpath("file").exists()
    for name in ("faults", "numba", "docker/inputs/x", "mine"):
        assert work.joinpath(name, "file").exists()


def test_a_run_that_a_process_is_at_stays(work: Path) -> None:
    busy = entry(work / STORE / "train-0123456789ab", age_s=9999)
    idle = entry(work / STORE / "train-fffffffffff0", age_s=10)
    with lock_run(busy, "train-0123456789ab"):
        os.utime(busy / "lock", (0, 0))
        assert keep_within_limit(work, 1e-9) == [idle]


USER = """
import sys, time
from pathlib import Path
from moola.runs.work_limit import keep_within_limit, mark_fetched, mark_used
{use}
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(
    "use",
    [
        "keep_within_limit(Path(sys.argv[1]), 1e6); mark_used(Path(sys.argv[2]))",
        "mark_fetched(Path(sys.argv[2]))",  # as a command that has cleaned nothing
    ],
)
def test_what_a_running_process_uses_stays_until_it_has_ended(work: Path, use: str) -> None:
    """Also after kill -9."""
    used = entry(work / "fetched" / "used", age_s=9999)
    unused = entry(work / "fetched" / "unused", age_s=99)
    process = subprocess.Popen(
        [sys.executable, "-c", USER.format(use=use), str(work), str(used)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    with process, process.stdout as output:
        try:
            assert output.readline() == b"ready\n"
            assert keep_within_limit(work, 1e-9) == [unused]
        finally:
            process.kill()

    work_limit.registered.discard(work)
    for path in (work / work_limit.PROCESSES).iterdir():
        path.unlink()  # this process's own
    assert keep_within_limit(work, 1e-9) == [used]


def test_a_process_cleans_once_and_not_what_it_has_used_since(work: Path) -> None:
    keep_within_limit(work, 1)
    fresh = work / "inputs" / "fresh"
    mark_used(fresh)
    assert keep_within_limit(work, 1e-9) == []
    assert fresh.is_dir()


def test_a_removal_that_was_cut_off_is_finished_by_the_next(work: Path) -> None:
    leftover = entry(work / f"{work_limit.REMOVED}1234", age_s=1)
    keep_within_limit(work, 1)
    assert not leftover.exists()


def test_a_folder_that_cannot_be_written_to_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert keep_within_limit(tmp_path / "file" / "work", 1e-9) == []


def test_the_limit_of_a_job_is_read_within_bounds() -> None:
    assert limit_from({}) == DEFAULT_WORK_LIMIT_GB
    assert limit_from({"MOOLA_WORK_LIMIT_GB": "0.5"}) == 0.5
    for value in ("abc", "0", "-1", "nan", "inf"):
        with pytest.raises(DataError, match="MOOLA_WORK_LIMIT_GB"):
            limit_from({"MOOLA_WORK_LIMIT_GB": value})
