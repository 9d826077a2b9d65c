"""What runs in a container: a job as a child process, its deadline, and a record of how it ended.

The job follows the run protocol itself. The supervisor records what the job cannot: that it was
killed, that its time was up, that the container was started a second time, or that this machine's
launch is no longer the newest one.
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
from typing import IO

from moola import errors
from moola.errors import ConflictError, MoolaError
from moola.runs.attempt import end_attempt
from moola.runs.environment import deadline as read_deadline
from moola.runs.environment import read_count, require_ids
from moola.runs.launches import newest_launch
from moola.runs.protocol import attempt_key, canonical_json, now_text
from moola.runs.reading import read_status
from moola.runs.records import State
from moola.runs.redaction import RedactingFilter, safe_text
from moola.runs.signals import STOP_SIGNALS
from moola.runs.usage import memory_limit_mb, out_of_memory_kills
from moola.store import DEFAULT_STORE, Store, open_store

log = logging.getLogger("moola.jobs.supervisor")

STOP_GRACE_S = 5.0  # from a stop signal to SIGKILL, as providers do
OUTPUT_GRACE_S = 5.0  # for the last lines of a job that has ended
MOST_LAUNCHES = 1_000_000
LAST_LINES = 20  # of a job's output, kept for the record of one that was killed


def supervise(environment: Mapping[str, str], command: Sequence[str]) -> int:
    """Run the job that MOOLA_RUN and MOOLA_ATTEMPT name -> its exit code, which is then recorded.

    With MOOLA_LAUNCH the machine is a rented one: nothing is run if this is a second boot, or not
    the newest launch. MOOLA_DEADLINE (Unix seconds) ends the job with SIGXCPU. Raises MoolaError
    where the store cannot be reached.
    """
    store = open_store(environment.get("MOOLA_STORE") or DEFAULT_STORE)
    run_id = environment.get("MOOLA_RUN", "")
    attempt_id = environment.get("MOOLA_ATTEMPT", "")
    require_ids(environment)
    deadline = read_deadline(environment)
    is_recorded = bool(run_id and attempt_id)

    if is_recorded and environment.get("MOOLA_LAUNCH"):
        launch = read_count(environment, "MOOLA_LAUNCH", 0, most=MOST_LAUNCHES)
        refusal = _refuse_to_run(store, run_id, attempt_id, launch)
        if refusal is not None:
            return refusal

    job = JobProcess(command, environment, deadline)
    returncode = job.wait()
    if is_recorded:
        return _record_end(
            store,
            run_id,
            attempt_id,
            job,
            returncode,
        )
    return job.exit_code(returncode)


def _refuse_to_run(
    store: Store,
    run_id: str,
    attempt_id: str,
    launch: int,
) -> int | None:
    """The exit code of a container that must not do the work; None if it may."""
    status = read_status(store, run_id, attempt_id)
    if status is not None and status.state.is_final:
        log.warning("attempt %s has ended as %s: nothing to do", attempt_id, status.state)
        return status.exit_code or 0

    newest = newest_launch(store, run_id)
    newest_number = newest.n if newest else None
    if newest_number != launch:
        log.warning(
            "launch %d of %s was given up for launch %s: nothing to do",
            launch,
            run_id,
            newest_number,
        )
        return errors.EXIT_TERMINATED

    if not _is_first_boot(store, run_id, attempt_id):
        reason = "the container was started a second time; the job is not run twice"
        log.error(reason)
        end_attempt(
            store,
            run_id,
            attempt_id,
            State.CRASH_LOOP,
            reason,
            MoolaError.exit_code,
        )
        return MoolaError.exit_code
    return None


def _is_first_boot(store: Store, run_id: str, attempt_id: str) -> bool:
    marker = {
        "time": now_text(),
        "boot": secrets.token_hex(8),  # so that no two boots write the same bytes
    }
    key = attempt_key(run_id, attempt_id, "boots", "00000001.json")
    try:
        store.put_once(key, canonical_json(marker))
    except ConflictError:
        return False
    return True


class JobProcess:
    """A job's process: prints its output, passes stop signals to it and enforces the deadline."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        deadline: float,
    ) -> None:
        self.stopped_by: int | None = None  # the first stop signal that was passed on
        self.last_lines: collections.deque[str] = collections.deque(maxlen=LAST_LINES)
        self.oom_kills_before = out_of_memory_kills()

        self._deadline = deadline  # Unix seconds
        self._process: subprocess.Popen[bytes] | None = None
        for signum in STOP_SIGNALS:
            signal.signal(signum, self._pass_on)

        self._process = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        if self.stopped_by is not None:  # it came before there was a process to pass it on to
            self._process.send_signal(self.stopped_by)

        stream = self._process.stdout
        self._reader = threading.Thread(
            target=self._read,
            args=(stream,),
            daemon=True,
        )
        self._reader.start()

    def wait(self) -> int:
        """Wait until the job has ended -> its exit code, -n if signal n killed it.

        A job that ignores a stop signal is killed.
        """
        process = self._process
        assert process is not None
        kill_at = float("inf")

        while process.poll() is None:
            if time.time() >= self._deadline and self.stopped_by is None:
                self._pass_on(signal.SIGXCPU)
            if self.stopped_by is not None and kill_at == float("inf"):
                kill_at = time.monotonic() + STOP_GRACE_S
            if time.monotonic() >= kill_at:
                process.kill()

            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.1)

        self._reader.join(timeout=OUTPUT_GRACE_S)
        return process.returncode

    def exit_code(self, returncode: int) -> int:
        """The exit code, as a shell would show it, of a job that left no record of its own."""
        if returncode >= 0:
            return returncode
        if self.stopped_by is not None:
            return STOP_SIGNALS[self.stopped_by][1]
        return 128 - returncode

    def _pass_on(self, signum: int, _frame: FrameType | None = None) -> None:
        if self.stopped_by is not None:
            return
        self.stopped_by = signum
        if self._process is not None:
            self._process.send_signal(signum)

    def _read(self, stream: IO[bytes]) -> None:
        for line in stream:
            text = safe_text(line.decode(errors="replace").rstrip("\n"))
            self.last_lines.append(text)
            print(text, flush=True)


def _record_end(
    store: Store,
    run_id: str,
    attempt_id: str,
    job: JobProcess,
    returncode: int,
) -> int:
    """Give the attempt a final status if the job left none; -> the exit code that stands."""
    if job.stopped_by is not None:
        state, exit_code = STOP_SIGNALS[job.stopped_by]
    else:
        state = State.FAILED
        exit_code = job.exit_code(returncode)
    reason = _reason(job, returncode)

    state = end_attempt(
        store,
        run_id,
        attempt_id,
        state,
        reason,
        exit_code,
    )
    if state is State.COMMITTED:
        return errors.EXIT_DONE
    status = read_status(store, run_id, attempt_id)
    return status.exit_code or exit_code if status is not None else exit_code


def _reason(job: JobProcess, returncode: int) -> str:
    """Why a job that left no status has ended."""
    last_lines = [line for line in job.last_lines if not line.startswith("#")]  # not in the log
    output = "\n".join(["; its last lines:", *last_lines]) if last_lines else ""

    if returncode >= 0:
        return f"the job ended with exit code {returncode} and left no status{output}"
    if returncode == -signal.SIGKILL and out_of_memory_kills() > job.oom_kills_before:
        return _out_of_memory()
    return f"the job was killed by {signal.Signals(-returncode).name}{output}"


def _out_of_memory() -> str:
    limit_mb = memory_limit_mb()
    if limit_mb is None:
        return "out of memory"
    return f"out of memory: the container's limit is {limit_mb:,.0f} MB"


def log_to_stdout() -> None:
    """Print the supervisor's own lines among the job's."""
    handler = logging.StreamHandler(sys.stdout)
    handler.addFilter(RedactingFilter())
    handler.setFormatter(logging.Formatter("supervisor: %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
