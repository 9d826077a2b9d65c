"""An exception that nobody expected: one line for the person, a report on disk for the mender."""

import os
import platform
import sys
import tempfile
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from moola import __version__
from moola.errors import MoolaError, exit_code_of, is_disk_full
from moola.runs.redaction import safe_text
from moola.runs.workdir import DEFAULT_WORK, work_folder
from moola.text import shortened

DEBUG = "MOOLA_DEBUG"
OFF = ("", "0", "false", "no", "off")
FAULTS = "faults"  # folder of the reports, in the work folder
KEPT_REPORTS = 20
FULL_DISK = "the disk is full: free some space, and the same command goes on"


def is_debugging(environment: Mapping[str, str]) -> bool:
    """Are tracebacks to be shown?"""
    return environment.get(DEBUG, "").strip().lower() not in OFF


def describe_end(error: BaseException, work: Path | None) -> str:
    """What a person is told of the error that ends a process.

    One that is a fault of moola's leaves a report in the work folder.
    """
    text = safe_text(str(error))
    if isinstance(error, MoolaError):
        return f"{text} ({FULL_DISK})" if exit_code_of(error) != error.exit_code else text
    if is_disk_full(error):
        return f"{FULL_DISK} ({shortened(text)})"

    report = write_report(error, work)
    place = f"the report is {report}" if report else "no report could be written"
    return (
        f"a fault of moola's: {type(error).__name__}: {shortened(text)} "
        f"({place}; --debug or {DEBUG}=1 shows the traceback)"
    )


def traceback_text(error: BaseException) -> str:
    """The traceback of an error and of those behind it."""
    return safe_text("".join(traceback.format_exception(error)))


def write_report(error: BaseException, work: Path | None) -> Path | None:
    """Write what is known of an error: versions, command and traceback, no values of variables.

    None where neither the work folder nor that for temporary files takes it.
    """
    now = datetime.now(UTC)
    name = f"{now:%Y%m%dT%H%M%SZ}-{os.getpid()}.txt"
    text = "\n".join(
        [
            f"moola {__version__}, Python {platform.python_version()}, {platform.platform()}",
            f"time: {now.isoformat(timespec='seconds')}",
            f"command: {safe_text(shortened(' '.join(sys.argv), 2000))}",
            "",
            traceback_text(error),
        ]
    )

    for folder in _report_folders(work):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / name
            path.write_text(text, encoding="utf-8", errors="replace")
            _forget_oldest(folder)
        except OSError:
            continue
        return path
    return None


def _report_folders(work: Path | None) -> list[Path]:
    """The places for a report, the best first."""
    if work is None:
        work = work_folder(os.environ.get("MOOLA_WORK") or DEFAULT_WORK)
    return [work / FAULTS, Path(tempfile.gettempdir()) / f"moola-{FAULTS}"]


def _forget_oldest(folder: Path) -> None:
    reports = sorted(folder.glob("*.txt"))
    for report in reports[:-KEPT_REPORTS]:
        report.unlink(missing_ok=True)
