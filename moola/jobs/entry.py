"""The entry point of both images: runs the job that MOOLA_JOB names, then ends its machine.

On a rented machine nothing ends the bill but ending the machine: a process that exits is started
again. So this one never exits there. It ends its own machine, and while it cannot, it sleeps and
tries again; the launcher and `reap` do the same from outside. Elsewhere it exits with the job's
exit code.
"""

import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import NamedTuple, NoReturn

DEADLINE_GRACE_S = 120.0  # then the machine is ended even if the store does not answer
RETRY_S = 30.0  # between tries to end the machine
ENDING_S = 60.0  # that the provider may take to end it
EXIT_FAULT = 70  # as in moola.errors, which may be what cannot be imported
LAST_WORDS_S = 30.0  # for the launcher to read the log, where the store has no word of the end
PREFIXES = ("MOOLA_", "RUNPOD_")
END_LINE = re.compile(r"supervisor: the job ended with exit code (\d{1,3}); ending this machine")


class JobEnd(NamedTuple):
    """How a job ended, and whether the store could be told so."""

    exit_code: int
    is_recorded: bool


def exit_code_of_line(text: str) -> int | None:
    """The job's exit code, if this is the line with which the entry point tells it."""
    line = END_LINE.fullmatch(text.strip())
    return int(line[1]) if line else None


def supervise_job(command: Sequence[str] | None) -> JobEnd:
    """Run the job's command, by default that of MOOLA_JOB; exit code 70 if this fails."""
    try:
        from moola.errors import MoolaError, exit_code_of
        from moola.jobs.supervisor import log_to_stdout, supervise
        from moola.runs.faults import describe_end, traceback_text
        from moola.runs.redaction import require_clean_keys

        log_to_stdout()
        if command is None:
            job = os.environ.get("MOOLA_JOB") or "precompute"
            command = [sys.executable, "-m", "moola.jobs", job]

        try:
            require_clean_keys(os.environ)
            require_secrets(os.environ)
            return JobEnd(supervise(os.environ, command), is_recorded=True)
        except Exception as error:
            if not isinstance(error, MoolaError):
                print(traceback_text(error), flush=True)  # a rented machine's disk goes with it
            print(f"supervisor: {describe_end(error, work=None)}", flush=True)
            return JobEnd(exit_code_of(error), is_recorded=False)
    except BaseException:
        print_traceback()
        return JobEnd(EXIT_FAULT, is_recorded=False)


def print_traceback() -> None:
    """The traceback of the error that is being handled, without secrets if that is possible."""
    text = traceback.format_exc()
    try:
        from moola.runs.redaction import safe_text

        text = safe_text(text)
    except BaseException:
        text = text.strip().splitlines()[-1].partition(":")[0]  # its type tells no secret
    print(text, flush=True)


def require_secrets(environment: Mapping[str, str]) -> None:
    """Raises DataError for variables that hold a reference in place of the provider's secret.

    The provider leaves one as it is where the account has no secret of that name.
    """
    from moola.errors import DataError
    from moola.providers.runpod.account import secret_names

    unknown = []
    for name, value in environment.items():
        unknown += [f"{secret} (for {name})" for secret in secret_names(value)]
    if unknown:
        raise DataError(
            "machine.secrets must name secrets that the provider's account has, and it does not "
            f"know {', '.join(sorted(unknown))}: make them there (RunPod: Settings, Secrets; their "
            "names are case-sensitive), or set the variables where you launch and leave "
            "machine.secrets out"
        )


def unset_empty_variables() -> None:
    """An empty variable counts as unset, also for the job."""
    for name, value in list(os.environ.items()):
        if name.startswith(PREFIXES) and not value.strip():
            del os.environ[name]


def leave_when_stopped() -> None:
    """Leave at once when the provider stops the container: nothing is left to save."""
    if threading.current_thread() is threading.main_thread():
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, lambda *_: os._exit(0))


def end_machine() -> None:
    """End the machine this runs on, and so its bill. Returns only when it is being ended."""
    leave_when_stopped()
    while True:
        try:
            from moola.providers.runpod.terminate_self import terminate_self

            if terminate_self(os.environ):
                return
            print("supervisor: this machine could not end itself; `moola reap` can", flush=True)
        except BaseException:
            print_traceback()
        time.sleep(RETRY_S)


def end_machine_when_late() -> None:
    """End the machine some time after the deadline, whatever the job and the store are doing."""
    left_s = float(os.environ["MOOLA_DEADLINE"]) - time.time()
    time.sleep(max(left_s, 0.0) + DEADLINE_GRACE_S)
    end_machine()


def run(command: Sequence[str] | None = None) -> NoReturn:
    """Run the job, then end the machine; where nothing is rented, exit with the job's exit code."""
    unset_empty_variables()
    is_rented = "RUNPOD_POD_ID" in os.environ
    if is_rented and "MOOLA_DEADLINE" in os.environ:  # armed before anything that can fail
        threading.Thread(target=end_machine_when_late, daemon=True).start()

    end = supervise_job(command)
    if not is_rented:
        sys.exit(end.exit_code)

    # The launcher reads this line: see exit_code_of_line.
    print(
        f"supervisor: the job ended with exit code {end.exit_code}; ending this machine", flush=True
    )
    if not end.is_recorded:  # the log is all there is, and it goes with the machine
        leave_when_stopped()
        time.sleep(LAST_WORDS_S)
    while True:  # to exit would start the container again
        end_machine()
        time.sleep(ENDING_S)


if __name__ == "__main__":
    run()
