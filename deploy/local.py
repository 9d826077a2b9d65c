"""Runs a job on this machine: a process of its own that speaks the run protocol, as it would in a pod."""

import signal
from types import FrameType

from rich.console import Console

from deploy import tail
from deploy.ahead import Process, start, tell
from deploy.follow import RunLog
from deploy.settings import Settings
from moola.protocol import CANCEL, FINAL_STATES, attempt_id_now, attempt_key, canonical_json, now_text
from moola.runs import end_attempt, run_state
from moola.signals import STOP_SIGNALS
from moola.store import Store


def job_environment(settings: Settings, run_id: str, attempt_id: str) -> dict[str, str]:
    """What a job is told through its environment."""
    names = {"MOOLA_STORE": settings.store, "MOOLA_WORK": str(settings.work), "PYTHONUNBUFFERED": "1"}
    return {**names, "MOOLA_RUN": run_id, "MOOLA_ATTEMPT": attempt_id}


def cancel(store: Store, run_id: str) -> str:
    """Ask the newest attempt, wherever it runs, to stop at its next heartbeat; -> its state now."""
    found = run_state(store, run_id)
    if found["attempt"] is None or found["state"] in FINAL_STATES:
        return str(found["state"])
    store.put(attempt_key(run_id, found["attempt"], CANCEL), canonical_json({"time": now_text()}))
    return "asked to stop"


def run_to_end(settings: Settings, store: Store, job: str, run_id: str, ahead: Process | None = None) -> int:
    """Run the job, in the process `ahead` if there is one, and show its log as it is written. Ctrl-C and SIGTERM are
    passed on. -> the job's exit code."""
    attempt_id, console = attempt_id_now(), tail.terminal()
    environment = job_environment(settings, run_id, attempt_id)
    child = tell(ahead, environment) if ahead else start(job, environment)
    exit_code = watch(child, console, store, run_id, attempt_id)
    if -exit_code in STOP_SIGNALS:  # it came before the job could heed it
        state, code = STOP_SIGNALS[-exit_code]
        end_attempt(store, run_id, attempt_id, state, signal.Signals(-exit_code).name, code)
        return code
    if exit_code < 0:  # killed: it could not say so itself
        end_attempt(store, run_id, attempt_id, "infra_lost", f"killed by {signal.Signals(-exit_code).name}")
        console.print(f"the job was killed by {signal.Signals(-exit_code).name}; the same command resumes it")
        return 128 - exit_code
    return exit_code


def watch(child: Process, console: Console, store: Store, run_id: str, attempt_id: str) -> int:
    """Show the log of an attempt until its process ends; Ctrl-C and SIGTERM are passed on to it. -> its exit code."""

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
    return child.wait()
