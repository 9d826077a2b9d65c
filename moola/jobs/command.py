"""The command of a job's process: which job, and how the process ends."""

import gc
import os
import sys
from functools import partial
from pathlib import Path
from typing import NoReturn

from moola.errors import EXIT_USAGE
from moola.jobs.distributed import is_one_of_several, run_distributed
from moola.jobs.process import limit_openmp_spinning, report_end, run_job
from moola.runs.attempt import Attempt
from moola.runs.records import SpecDocument
from moola.runs.redaction import safe_output
from moola.specs import JOBS
from moola.store import Store


def submit_default(job: str, store: Store, work: Path) -> str:
    """Submit the default spec of a job -> its run."""
    from moola.jobs.prepare import submit_shipped  # numba and pandas: seconds

    return submit_shipped(job, store, work)


def precompute_run(attempt: Attempt, document: SpecDocument) -> None:
    from moola.jobs.precompute import precompute  # numba and pandas: seconds

    gc.enable()
    precompute(attempt, document)


def train_run(attempt: Attempt, document: SpecDocument) -> None:
    from moola.jobs.train import run_train_job  # torch: seconds

    gc.enable()
    run_train_job(attempt, document)


def main(arguments: list[str]) -> int:
    """Run the job named by the one argument to its end; -> exit code."""
    with safe_output():
        try:
            return _run(arguments)
        except Exception as error:
            return report_end(" ".join(arguments), error)


def _run(arguments: list[str]) -> int:
    if len(arguments) != 1 or arguments[0] not in JOBS:
        print(f"usage: python -m moola.jobs {'|'.join(JOBS)}", file=sys.stderr)
        return EXIT_USAGE

    job = arguments[0]
    submit_run = partial(submit_default, job)
    if job == "precompute":
        return run_job(job, precompute_run, submit_run)

    limit_openmp_spinning()
    exit_code = run_distributed(train_run)
    if exit_code is not None:
        return exit_code
    return run_job(job, train_run, submit_run)


def leave(exit_code: int) -> NoReturn:
    """End the process. All it had to write is written."""
    # No last collection of memory that the system takes back anyway: it takes half a second.
    gc.freeze()

    if is_one_of_several():
        # Threads of torch's process group have been seen to abort an interpreter that is shutting
        # down, and a process that aborts ends the others.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
    sys.exit(exit_code)
