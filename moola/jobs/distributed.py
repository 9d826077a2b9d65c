"""Training by several processes on one machine: all ranks train; rank 0 evaluates and writes."""

import os
import sys

from moola.errors import EXIT_DONE, EXIT_TERMINATED, MoolaError
from moola.jobs.process import JobWork, job_store, report_end
from moola.runs.attempt import Attempt
from moola.runs.reading import read_manifest
from moola.runs.signals import Stopped
from moola.runs.submit import read_spec_document
from moola.specs import TrainSpec, parse_spec


def run_distributed(work_on: JobWork) -> int | None:
    """The exit code of a process that starts the others, or is one of them but not rank 0.

    None where this process is to do the run: it is rank 0, or the only one.
    """
    if not is_one_of_several():
        return _start_processes()
    if os.environ["RANK"] == "0":
        return None
    return _work_along(work_on)


def is_one_of_several() -> bool:
    """True in a process that torch's elastic agent has started."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def _start_processes() -> int | None:
    """Start the processes that are to train the run, and wait for them; None where it is one."""
    try:
        store, work = job_store()  # before what is imported here, which writes into the work folder
        from moola.jobs.prepare import submit_shipped
        from moola.jobs.train import how_many_processes
        from moola.training.processes import start_processes

        run_id = os.environ.get("MOOLA_RUN") or submit_shipped("train", store, work)
        os.environ["MOOLA_RUN"] = run_id
        document = read_spec_document(store, run_id)
        if document.job != "train" or read_manifest(store, run_id) is not None:
            return None

        spec = parse_spec(TrainSpec, document.spec, place=f"spec.json of {run_id}")
        count = how_many_processes(spec)
    except MoolaError:
        return None  # the one process meets the error again, and reports it as a job does

    if count == 1:
        return None
    return start_processes(count, ["-m", "moola.jobs", "train"])


def _work_along(work_on: JobWork) -> int:
    """Train as one of the other ranks -> exit code."""
    from moola.training.loop import Interrupted

    process = f"train, process {os.environ['RANK']}"
    try:
        store, work = job_store()
        run_id = os.environ["MOOLA_RUN"]
        attempt = Attempt(store, run_id, work=work)  # never entered: it writes nothing
        work_on(attempt, read_spec_document(store, run_id))
    except Stopped as stop:
        print(f"{process}: {stop}", file=sys.stderr, flush=True)
        return stop.exit_code
    except Interrupted:  # the signal reached rank 0 alone
        return EXIT_TERMINATED
    except Exception as error:
        return report_end(process, error)
    return EXIT_DONE
