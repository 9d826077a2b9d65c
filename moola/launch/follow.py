"""Follows a run: shows its log until it ends."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict

from rich.console import Console

from moola.errors import TryAgainError
from moola.launch.console import local_time, print_text
from moola.launch.run_log import LogRecord, RunLog
from moola.runs.launches import newest_launch
from moola.runs.reading import run_state
from moola.store import Store


def follow(
    log: RunLog,
    console: Console,
    *,
    has_ended: Callable[[], bool],
    poll_s: float,
    on_wait: Callable[[], None] | None = None,
    as_json: bool = False,
) -> None:
    """Show a log until `has_ended`, and then whatever was written before the end.

    `has_ended` is asked, and `on_wait` is called, every `poll_s` seconds.
    """
    while True:
        ended = has_ended()  # asked before reading, so that lines from before the end are shown
        show_records(log, console, as_json=as_json)
        if ended:
            return

        if on_wait is not None:
            on_wait()
        time.sleep(poll_s)


def show_records(log: RunLog, console: Console, *, as_json: bool = False) -> None:
    """Show what has come to a log since the last call."""
    for record in log.lines():
        if as_json:
            print_text(json.dumps(asdict(record)), console)
        else:
            show_record(record, console)


def show_record(record: LogRecord, console: Console) -> None:
    """One log line: local time, the level unless it is INFO, the message."""
    level = "" if record.level == "INFO" else f"{record.level} "
    print_text(f"{local_time(record.time):%H:%M:%S} {level}{record.message}", console)


def has_ended(store: Store, run_id: str) -> bool:
    """Whether the newest attempt has a final state.

    Raises TryAgainError where the attempt is silent and was not on a rented machine: it was killed
    together with the launcher, which alone could have recorded its end.
    """
    state = run_state(store, run_id)
    if state.is_silent and newest_launch(store, run_id) is None:
        raise silent_error(run_id, state.silent_s)
    return state.state.is_final


def silent_error(run_id: str, silent_s: float | None) -> TryAgainError:
    """Of a run that was killed together with its launcher, or whose machine sleeps."""
    return TryAgainError(
        f"{run_id} has not been heard of for {silent_s or 0.0:.0f} s: it was killed, or its "
        "machine sleeps; the command that started it resumes it"
    )
