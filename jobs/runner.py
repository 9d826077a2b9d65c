"""The entry point of both images: runs the job that MOOLA_JOB names and then ends the machine it is on.

On a rented machine nothing ends the bill but ending the machine: a process that exits is started again. So this one
never exits there. It ends its own machine, and while it cannot, it sleeps and tries again; the launcher and `reap` do
the same from outside. Elsewhere it exits with the job's exit code.
"""

import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

LATE_S = 120.0  # after the deadline, the machine is ended even if the store does not answer
AGAIN_S = 30.0  # between tries to end the machine


def main() -> int:
    """The job's exit code; 1 if the supervisor itself failed."""
    try:
        from moola.errors import MoolaError
        from moola.supervisor import log_to_stdout, supervise

        log_to_stdout()
        job = os.environ.get("MOOLA_JOB", "precompute")
        try:
            return supervise(os.environ, [sys.executable, str(ROOT / "jobs" / f"{job}.py")])
        except MoolaError as error:
            print(f"supervisor: {error}", flush=True)
            return error.exit_code
    except BaseException:
        traceback.print_exc(file=sys.stdout)
        return 1


def end_machine() -> None:
    """End the machine this runs on, its bill with it. Returns only when the machine is being ended."""
    for each in (signal.SIGTERM, signal.SIGINT):
        if threading.current_thread() is threading.main_thread():
            signal.signal(each, lambda *_: os._exit(0))  # it is being ended: nothing is left to save
    while True:
        try:
            from deploy.runpod import terminate_self

            if terminate_self(os.environ):
                return
            print("supervisor: this machine could not end itself; `launch.py reap` can", flush=True)
        except BaseException:
            traceback.print_exc(file=sys.stdout)
        time.sleep(AGAIN_S)


def end_machine_when_late() -> None:
    """At the deadline and a little more, whatever the job and the store are doing."""
    time.sleep(max(float(os.environ["MOOLA_DEADLINE"]) - time.time(), 0.0) + LATE_S)
    end_machine()


if __name__ == "__main__":
    rented = "RUNPOD_POD_ID" in os.environ
    if rented and "MOOLA_DEADLINE" in os.environ:  # armed before anything that can fail
        threading.Thread(target=end_machine_when_late, daemon=True).start()
    exit_code = main()
    if rented:
        print(f"supervisor: the job ended with exit code {exit_code}; ending this machine", flush=True)
        while True:  # to exit would start the container again; it is asked for again should it not have been true
            end_machine()
            time.sleep(60)
    sys.exit(exit_code)
