"""What runs in a container: a job as a child process, its deadline, and a record of how it ended, whatever happened.

The job speaks the run protocol itself. The supervisor says what the job cannot say: that it was killed, that the time
is up, that the container was started a second time, or that this machine's launch is no longer the newest one.
"""

import collections
import contextlib
import logging
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import IO, Any

from moola import errors
from moola.errors import ConflictError, MoolaError
from moola.launches import newest_launch
from moola.machine import memory_limit_mb, out_of_memory_kills
from moola.protocol import FINAL_STATES, STATUS, attempt_key, canonical_json, now_text, read_json_or_none
from moola.runs import end_attempt
from moola.signals import STOP_SIGNALS
from moola.store import Store, open_store

log = logging.getLogger("moola.supervisor")

STOP_GRACE_S = 5.0  # from a stop signal to SIGKILL: what a provider gives, too
LAST_LINES = 20  # of what a job printed, kept for the record of one that died


def supervise(environment: Mapping[str, str], command: Sequence[str]) -> int:
    """Run the job that MOOLA_RUN and MOOLA_ATTEMPT name; -> its exit code, of which the store then has a record.

    With MOOLA_LAUNCH the machine is a rented one: nothing is run if this is a second boot, or not the newest launch.
    MOOLA_DEADLINE (Unix seconds) ends the job with SIGXCPU. Raises MoolaError where the store cannot be reached.
    """
    store = open_store(environment.get("MOOLA_STORE", "file://./moola-store"))
    run_id, attempt_id = environment.get("MOOLA_RUN", ""), environment.get("MOOLA_ATTEMPT", "")
    if run_id and attempt_id and "MOOLA_LAUNCH" in environment:
        refused = _may_not_run(store, run_id, attempt_id, int(environment["MOOLA_LAUNCH"]))
        if refused is not None:
            return refused
    deadline = float(environment.get("MOOLA_DEADLINE", "inf"))
    child = _Child(command, environment, deadline)
    exit_code = child.wait()
    if run_id and attempt_id:
        return _record_end(store, run_id, attempt_id, child, exit_code)
    if child.stopped_by is not None and exit_code < 0:
        return STOP_SIGNALS[child.stopped_by][1]
    return exit_code if exit_code >= 0 else 128 - exit_code


def _may_not_run(store: Store, run_id: str, attempt_id: str, n: int) -> int | None:
    """The exit code of a container that must not do the work; None if it may."""
    status = read_json_or_none(store, attempt_key(run_id, attempt_id, STATUS)) or {}
    if status.get("state") in FINAL_STATES:
        log.warning("attempt %s has ended as %s: nothing to do", attempt_id, status["state"])
        return int(status.get("exit_code") or 0)
    newest = newest_launch(store, run_id)
    if newest is None or newest.n != n:
        log.warning("launch %d of %s was given up for launch %s: nothing to do", n, run_id, newest and newest.n)
        return errors.EXIT_TERMINATED
    marker = canonical_json({"time": now_text(), "boot": secrets.token_hex(8)})
    try:
        store.put_once(attempt_key(run_id, attempt_id, "boots", "00000001.json"), marker)
    except ConflictError:
        reason = "the container was started a second time; the job is not run twice"
        log.error(reason)
        end_attempt(store, run_id, attempt_id, "crash_loop", reason, MoolaError.exit_code)
        return MoolaError.exit_code
    return None


class _Child:
    """The job's process: its output is passed on, stop signals are passed to it, the deadline holds."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], deadline: float) -> None:
        self.stopped_by: int | None = None  # the first stop signal that was passed on
        self.last_lines: collections.deque[str] = collections.deque(maxlen=LAST_LINES)
        self.oom_kills_before = out_of_memory_kills()
        self._deadline = deadline
        self._process: subprocess.Popen[bytes] | None = None
        for each in STOP_SIGNALS:
            signal.signal(each, self._pass_on)
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self._process = subprocess.Popen(command, env=dict(environment), **pipes)
        if self.stopped_by is not None:  # it came before there was a process to pass it on to
            self._process.send_signal(self.stopped_by)
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()

    def wait(self) -> int:
        """Until the job has ended; its exit code, -n if signal n killed it. An ignored stop signal becomes SIGKILL."""
        process, kill_at = self._process, float("inf")
        assert process is not None
        while process.poll() is None:
            if time.time() >= self._deadline and self.stopped_by is None:
                self._pass_on(signal.SIGXCPU)
            if self.stopped_by is not None and kill_at == float("inf"):
                kill_at = time.monotonic() + STOP_GRACE_S
            if time.monotonic() >= kill_at:
                process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.1)
        self._reader.join(timeout=5)
        return process.returncode

    def _pass_on(self, signum: int, _frame: FrameType | None = None) -> None:
        if self.stopped_by is None:
            self.stopped_by = signum
            if self._process is not None:
                self._process.send_signal(signum)

    def _read(self, stream: IO[bytes]) -> None:
        for line in stream:
            text = line.decode(errors="replace").rstrip("\n")
            self.last_lines.append(text)
            print(text, flush=True)


def _record_end(store: Store, run_id: str, attempt_id: str, child: _Child, exit_code: int) -> int:
    """Give the attempt a final status if the job left none; -> the exit code that stands."""
    code = exit_code if exit_code >= 0 else 128 - exit_code
    state, reason = "failed", _why(child, exit_code)
    if child.stopped_by is not None:
        state, code = STOP_SIGNALS[child.stopped_by]
    state = end_attempt(store, run_id, attempt_id, state, reason, code)
    if state == "committed":
        return errors.EXIT_DONE
    status = read_json_or_none(store, attempt_key(run_id, attempt_id, STATUS)) or {}
    return int(status.get("exit_code") or code)


def _why(child: _Child, exit_code: int) -> str:
    said = "\n".join(line for line in child.last_lines if not line.startswith("#"))
    said = f"; it said last:\n{said}" if said else ""
    if exit_code >= 0:
        return f"the job ended with exit code {exit_code} and left no status{said}"
    name = signal.Signals(-exit_code).name
    if exit_code == -signal.SIGKILL and out_of_memory_kills() > child.oom_kills_before:
        limit = memory_limit_mb()
        return f"out of memory: the container's limit is {limit:,.0f} MB" if limit else "out of memory"
    return f"the job was killed by {name}{said}"


def log_to_stdout() -> None:
    """The supervisor's own lines, among the job's."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("supervisor: %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
