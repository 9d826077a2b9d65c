"""How a process ends that nobody expected to end: one line, an exit code of the table, a report."""

import errno
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moola import errors
from moola.cli import app as command_line
from moola.errors import ArtifactError, DataError, MoolaError, TryAgainError, exit_code_of
from moola.jobs import command as job_command
from moola.jobs import entry
from moola.runs.attempt import outcome_of
from moola.runs.faults import DEBUG, KEPT_REPORTS, is_debugging, write_report

ROOT = Path(__file__).resolve().parents[1]
SECRET = "sEcret/Key+with=sign"
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/full-disk/x")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MOOLA_WORK", str(tmp_path / "work"))
    monkeypatch.setenv("RUNPOD_TERMINATE_API_KEY", SECRET)
    monkeypatch.delenv("MOOLA_DEBUG", raising=False)


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(command_line, "app", fail)


def reports(tmp_path: Path) -> list[str]:
    return [path.read_text() for path in (tmp_path / "work" / "faults").glob("*")]


# --- the launcher ---------------------------------------------------------------------------------


def test_an_error_that_nobody_expected_is_one_line_and_a_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fail_with(monkeypatch, KeyError(f"state\n{SECRET}\x1b[31m"))
    assert command_line.run(["list"]) == errors.EXIT_FAULT
    printed = capsys.readouterr().err
    assert printed.startswith("error: a fault of moola's: KeyError: ")
    assert printed.count("\n") == 1
    assert "--debug" in printed
    [report] = reports(tmp_path)
    assert "Traceback (most recent call last)" in report
    assert "KeyError" in report
    assert SECRET not in printed + report
    assert "\x1b" not in printed + report


def test_debug_shows_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MOOLA_DEBUG", "1")
    fail_with(monkeypatch, KeyError(SECRET))
    assert command_line.run(["list"]) == errors.EXIT_FAULT
    printed = capsys.readouterr().err
    assert "Traceback (most recent call last)" in printed
    assert SECRET not in printed


@pytest.mark.parametrize("arguments", [["--debug", "spec"], ["spec", "train", "--debug"]])
def test_the_option_debug_may_stand_anywhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    monkeypatch.setenv("MOOLA_DEBUG", "")  # is put back afterwards
    assert command_line.run([*arguments, "--set", "nothing=1"]) in (2, 3)
    assert is_debugging(os.environ)
    capsys.readouterr()


@pytest.mark.parametrize("value", ["", "0", "false", "No", "off"])
def test_debugging_can_be_switched_off(value: str) -> None:
    assert not is_debugging({"MOOLA_DEBUG": value})
    assert not is_debugging({})
    assert is_debugging({"MOOLA_DEBUG": "1"})


def test_only_the_newest_reports_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "faults"
    folder.mkdir()
    for number in range(2 * KEPT_REPORTS):
        folder.joinpath(f"20200101T0000{number:02}Z-1.txt").touch()
    newest = write_report(KeyError("x"), tmp_path)
    assert newest is not None
    assert newest.exists()
    assert len(list(folder.iterdir())) == KEPT_REPORTS


def test_a_report_that_the_work_folder_does_not_take_goes_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "tmp"))
    assert write_report(KeyError("x"), blocked) is not None
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(blocked))
    assert write_report(KeyError("x"), blocked) is None


# --- a full disk ----------------------------------------------------------------------------------


def wrapped(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        FULL,
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        sqlite3.OperationalError("database or disk is full"),
        RuntimeError("[enforce fail] . unexpected pos 64: No space left on device"),
        wrapped(RuntimeError("cannot cache function"), FULL),
        wrapped(DataError("MOOLA_WORK must be a directory"), FULL),
        wrapped(ArtifactError("x"), wrapped(KeyError("y"), FULL)),
    ],
    ids=repr,
)
def test_a_full_disk_is_try_again_however_it_is_wrapped(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    error: Exception,
) -> None:
    assert exit_code_of(error) == TryAgainError.exit_code
    assert outcome_of(error).exit_code == TryAgainError.exit_code
    fail_with(monkeypatch, error)
    assert command_line.run(["list"]) == TryAgainError.exit_code
    printed = capsys.readouterr().err
    assert "the disk is full" in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "work").exists()


def test_an_error_without_a_full_disk_keeps_its_code() -> None:
    assert exit_code_of(DataError("a label named `disk is full`")) == 3
    assert exit_code_of(wrapped(KeyError("x"), OSError(errno.EACCES, "x"))) == 70
    assert MoolaError.exit_code == errors.EXIT_FAULT == 70
    loop = KeyError("x")
    loop.__cause__ = loop
    assert exit_code_of(loop) == 70


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux only")
@pytest.mark.parametrize("arguments", [["spec", "train"], ["list"], ["--help"]])
def test_a_full_disk_behind_standard_output_is_no_traceback(
    arguments: list[str], tmp_path: Path
) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "moola", *arguments],
            env={**os.environ, "PYTHONUNBUFFERED": ""},
            stdout=full,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
            text=True,
        )
    assert done.returncode == 75
    assert done.stderr.startswith("error: the disk is full")
    assert done.stderr.count("\n") == 1


# --- jobs and the supervisor ----------------------------------------------------------------------


@pytest.mark.parametrize(("error", "code"), [(KeyError(SECRET), 70), (FULL, 75)])
def test_a_job_ends_as_the_launcher_does(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    error: Exception,
    code: int,
) -> None:
    def fail(*_: object) -> int:
        raise error

    monkeypatch.setattr(job_command, "run_job", fail)
    assert job_command.main(["precompute"]) == code
    printed = capsys.readouterr().err
    assert printed.startswith("precompute: ")
    assert printed.count("\n") == 1
    assert SECRET not in printed
    assert len(reports(tmp_path)) == (code == 70)


def test_on_a_rented_machine_the_traceback_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its disk, and the report on it, goes with it."""
    monkeypatch.setenv("MOOLA_LAUNCH", "1")

    def fail(*_: object) -> int:
        raise KeyError(SECRET)

    monkeypatch.setattr(job_command, "run_job", fail)
    assert job_command.main(["precompute"]) == 70
    printed = capsys.readouterr().err
    assert "Traceback (most recent call last)" in printed
    assert SECRET not in printed


@pytest.mark.parametrize(
    ("error", "code"), [(KeyError(SECRET), 70), (FULL, 75), (TryAgainError("no answer"), 75)]
)
def test_a_supervisor_that_fails_shows_no_secret_and_ends_as_the_table_says(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    code: int,
) -> None:
    def fail(*_: object) -> int:
        raise error

    monkeypatch.setattr("moola.jobs.supervisor.supervise", fail)
    assert entry.supervise_job(["true"]).exit_code == code
    assert SECRET not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MOOLA_BEAT_S", "abc"),
        ("MOOLA_BEAT_S", "0"),
        ("MOOLA_BEAT_S", "nan"),
        ("MOOLA_BEAT_S", "1e300"),
        ("MOOLA_BEAT_S", "9" * 5000),
        ("MOOLA_WORK", "~nobody-of-this-name/x"),
        ("MOOLA_STORE", "s3://[x"),
        ("MOOLA_RUN", "precompute-nothere"),
        ("MOOLA_RUN", "../../x"),
        ("MOOLA_ATTEMPT", "first\x1b[31m"),
    ],
)
def test_a_job_refuses_a_variable_of_the_wrong_type_in_one_line(
    name: str, value: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "moola.jobs", "precompute"],
        env={**os.environ, "MOOLA_STORE": f"file://{tmp_path}/store", name: value},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == DataError.exit_code, done
    assert done.stderr.startswith("precompute: ")
    assert done.stderr.count("\n") == 1
    assert len(done.stderr) < 400


@pytest.mark.parametrize("name", ["MOOLA_DEADLINE", "MOOLA_LAUNCH", "MOOLA_RUN", "MOOLA_ATTEMPT"])
def test_a_supervisor_refuses_a_variable_of_the_wrong_type(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("MOOLA_STORE", f"file://{tmp_path}/store")
    monkeypatch.setenv("MOOLA_RUN", "train-0123456789ab")
    monkeypatch.setenv("MOOLA_ATTEMPT", "20261122T231500Z-9f86d081")
    monkeypatch.setenv(name, "soon")
    assert entry.supervise_job(["true"]).exit_code == DataError.exit_code
    assert f"{name} must be a" in capsys.readouterr().out


# --- Ctrl-C ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["moola", "moola.jobs"])
def test_ctrl_c_in_the_first_moments_leaves_no_traceback(module: str, tmp_path: Path) -> None:
    """While Python itself starts nobody can handle it; from moola's first line on it is quiet."""
    for _ in range(3):
        slow = "import pathlib, time\npathlib.Path('importing').touch()\ntime.sleep(30)\n"
        for name in ("typer", "pydantic", "numpy"):
            tmp_path.joinpath(f"{name}.py").write_text(slow)  # -m looks here first
        started = tmp_path / "importing"
        started.unlink(missing_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-m", module, "precompute"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while not started.exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
        assert process.returncode in (errors.EXIT_CANCELLED, -signal.SIGINT)
        assert (out, err) == ("", "")


def test_the_command_and_a_job_are_debugged_by_the_same_variable() -> None:
    """`moola --help` does not import what tells of faults, so the name stands twice."""
    assert command_line.DEBUG == DEBUG
