"""Runs a job on this machine, in a process of its own that speaks the run protocol as in a pod."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import IO

from rich.console import Console

from moola.jobs.leash import LEASH
from moola.launch.console import print_text, terminal
from moola.launch.follow import follow
from moola.launch.progress import HeartbeatBar
from moola.launch.run_log import RunLog
from moola.launch.settings import Settings
from moola.runs.attempt import end_attempt
from moola.runs.protocol import (
    CANCEL,
    attempt_id_now,
    attempt_key,
    canonical_json,
    now_text,
)
from moola.runs.reading import run_state
from moola.runs.records import State
from moola.runs.signals import STOP_SIGNALS
from moola.store import Store

LOG_POLL_S = 0.1
LAST_WORDS_BYTES = 4000  # of standard error, shown of a job that failed
SIGNAL_EXIT_CODE = 128  # added to the number of the signal that killed a process

Process = subprocess.Popen[bytes]


def run_to_end(settings: Settings, store: Store, job: str, run_id: str) -> int:
    """Run a job and show its log; -> its exit code. Ctrl-C and SIGTERM are passed on to it."""
    attempt_id = attempt_id_now()
    console = terminal()

    process = start_job(job_arguments(job), job_environment(settings, run_id, attempt_id))
    exit_code = follow_process(process, console, store, run_id, attempt_id)
    if is_killed(exit_code):
        signal_name = signal.Signals(-exit_code).name
        print_text(f"the job was killed by {signal_name}; the same command resumes it", console)
    return record_end(store, run_id, attempt_id, exit_code)


def is_killed(exit_code: int) -> bool:
    """Did a signal end the process that is none of those that stop a job?"""
    return exit_code < 0 and -exit_code not in STOP_SIGNALS


def record_end(store: Store, run_id: str, attempt_id: str, exit_code: int) -> int:
    """Give an attempt its final state if a signal ended its process; -> the job's exit code."""
    if exit_code >= 0:
        return exit_code

    signum = -exit_code
    signal_name = signal.Signals(signum).name
    if signum in STOP_SIGNALS:  # it came before the job could handle it
        state, exit_code = STOP_SIGNALS[signum]
        end_attempt(store, run_id, attempt_id, state, signal_name, exit_code)
        return exit_code

    end_attempt(store, run_id, attempt_id, State.INFRA_LOST, f"killed by {signal_name}")
    return SIGNAL_EXIT_CODE + signum


def job_environment(settings: Settings, run_id: str, attempt_id: str) -> dict[str, str]:
    """The variables that tell a job what to do."""
    return {
        "MOOLA_STORE": settings.store,
        "MOOLA_WORK": str(settings.work),
        "MOOLA_WORK_LIMIT_GB": str(settings.work_limit_gb),
        "MOOLA_RUN": run_id,
        "MOOLA_ATTEMPT": attempt_id,
        "PYTHONUNBUFFERED": "1",
    }


def job_arguments(job: str) -> list[str]:
    """Of Python, for a job's process."""
    return ["-m", "moola.jobs", job]


def start_job(
    arguments: Sequence[str],
    environment: dict[str, str],
    stderr: IO[bytes] | None = None,
    *,
    leashed: bool = False,
) -> Process:
    """Start a job's process, in a session of its own: Ctrl-C reaches it once, by its launcher.

    `arguments` are those of Python. What the job prints to standard output is in the log chunks
    already. Standard error stays connected, or goes to a file: a traceback from before the run
    protocol starts would be lost otherwise. A `leashed` one stops once its standard input is
    closed: when this process ends, at the latest.
    """
    if leashed:
        environment = {**environment, LEASH: "1"}
    return subprocess.Popen(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        stdin=subprocess.PIPE if leashed else subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        start_new_session=True,
    )


def last_words(stderr: IO[bytes]) -> str:
    """The end of what a job wrote to standard error, which went to this file."""
    size = stderr.seek(0, os.SEEK_END)
    stderr.seek(max(size - LAST_WORDS_BYTES, 0))
    return stderr.read().decode(errors="replace").strip()


def follow_process(
    process: Process, console: Console, store: Store, run_id: str, attempt_id: str
) -> int:
    """Show an attempt's log until its process ends; -> the process's exit code.

    Ctrl-C and SIGTERM are passed on to the process.
    """
    log = RunLog(store, run_id, attempt_id)
    with (
        _stop_signals_passed_to(process),
        HeartbeatBar(console, store, run_id, attempt_id) as bar,
    ):
        follow(
            log,
            console,
            has_ended=lambda: process.poll() is not None,
            poll_s=LOG_POLL_S,
            on_wait=bar.update,
        )
    return process.wait()


@contextlib.contextmanager
def _stop_signals_passed_to(process: Process) -> Iterator[None]:
    def pass_on(signum: int, _frame: FrameType | None) -> None:
        process.send_signal(signum)

    signals = (signal.SIGINT, signal.SIGTERM)
    handlers_before = {signum: signal.signal(signum, pass_on) for signum in signals}
    try:
        yield
    finally:
        for signum, handler in handlers_before.items():
            signal.signal(signum, handler)


def cancel(store: Store, run_id: str) -> str:
    """Ask the newest attempt, wherever it runs, to stop at its next heartbeat; -> its state now."""
    run = run_state(store, run_id)
    if run.attempt is None or run.state.is_final:
        return run.state

    ask_to_stop(store, run_id, run.attempt)
    return "asked to stop"


def ask_to_stop(store: Store, run_id: str, attempt_id: str) -> None:
    """Ask one attempt to stop at its next heartbeat."""
    request = canonical_json({"time": now_text()})
    store.put(attempt_key(run_id, attempt_id, CANCEL), request)
