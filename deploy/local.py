"""Runs a job on this machine: a process of its own that speaks the run protocol, as it would in a pod."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from deploy import tail
from deploy.follow import RunLog
from deploy.settings import Settings
from moola.protocol import CANCEL, FINAL_STATES, attempt_id_now, attempt_key, canonical_json, now_text
from moola.runs import end_attempt, run_state
from moola.store import Store

ROOT = Path(__file__).resolve().parents[1]


def job_environment(settings: Settings, run_id: str, attempt_id: str) -> dict[str, str]:
    """What a job is told through its environment, over what this process has."""
    names = {"MOOLA_STORE": settings.store, "MOOLA_WORK": str(settings.work), "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **names, "MOOLA_RUN": run_id, "MOOLA_ATTEMPT": attempt_id}


def start(settings: Settings, job: str, run_id: str, attempt_id: str) -> subprocess.Popen[bytes]:
    """Start jobs/<job>.py in a session of its own, so that Ctrl-C reaches it once, through the launcher.

    What it prints is in the log chunks already; only a traceback before the protocol starts would be lost, so
    stderr stays connected.
    """
    command = [sys.executable, str(ROOT / "jobs" / f"{job}.py")]
    environment = job_environment(settings, run_id, attempt_id)
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
    )


def cancel(store: Store, run_id: str) -> str:
    """Ask the newest attempt, wherever it runs, to stop at its next heartbeat; -> its state now."""
    found = run_state(store, run_id)
    if found["attempt"] is None or found["state"] in FINAL_STATES:
        return str(found["state"])
    store.put(attempt_key(run_id, found["attempt"], CANCEL), canonical_json({"time": now_text()}))
    return "asked to stop"


def run_to_end(settings: Settings, store: Store, job: str, run_id: str) -> int:
    """Run the job and show its log as it is written. Ctrl-C and SIGTERM are passed on. -> the job's exit code."""
    attempt_id, console = attempt_id_now(), tail.terminal()
    child = start(settings, job, run_id, attempt_id)

    def pass_on(signum: int, _frame: FrameType | None) -> None:
        child.send_signal(signum)

    before = {s: signal.signal(s, pass_on) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        with tail.Bar(console, store, run_id, attempt_id) as bar:
            log = RunLog(store, run_id, attempt_id)
            for record in tail.records(log, ended=lambda: child.poll() is not None, every_s=0.1, on_wait=bar.update):
                tail.show(console, record)
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    exit_code = child.wait()
    if exit_code < 0:  # killed: it could not say so itself
        end_attempt(store, run_id, attempt_id, "infra_lost", f"killed by {signal.Signals(-exit_code).name}")
        console.print(f"the job was killed by {signal.Signals(-exit_code).name}; the same command resumes it")
        return 128 - exit_code
    return exit_code
