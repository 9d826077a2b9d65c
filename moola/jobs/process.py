"""A job's process, from its environment to its exit code."""

import hashlib
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from moola import errors
from moola.errors import DataError, exit_code_of
from moola.runs.attempt import Attempt
from moola.runs.environment import beat_s, require_ids
from moola.runs.faults import describe_end, is_debugging, traceback_text
from moola.runs.heartbeat import BEAT_S
from moola.runs.logs import NumberedFormatter
from moola.runs.protocol import canonical_json
from moola.runs.reading import read_manifest
from moola.runs.records import Provenance, SpecDocument
from moola.runs.redaction import RedactingFilter, require_clean_keys
from moola.runs.signals import Stopped, stop_on_signals
from moola.runs.submit import read_spec_document
from moola.runs.work_limit import keep_within_limit, limit_from
from moola.runs.workdir import DEFAULT_WORK, require_writable, work_folder
from moola.store import DEFAULT_STORE, Store, open_store

log = logging.getLogger("moola")

JobWork = Callable[[Attempt, SpecDocument], None]  # (an open attempt, the run's spec.json)
SubmitDefault = Callable[[Store, Path], str]  # (store, work folder) -> run id


def run_job(job: str, work_on: JobWork, submit_default: SubmitDefault) -> int:
    """Do a run as the environment says -> exit code.

    MOOLA_STORE, MOOLA_WORK and MOOLA_RUN name the run, MOOLA_ATTEMPT (if set) the attempt; with no
    MOOLA_RUN, what `submit_default` submits is run. `work_on` is the job itself.
    """
    _log_to_stdout()

    with stop_on_signals():
        try:
            store, work = job_store()
            run_id = os.environ.get("MOOLA_RUN") or submit_default(store, work)
            document = read_spec_document(store, run_id)
            if read_manifest(store, run_id) is not None:
                log.info("%s is already committed: nothing to do", run_id)
                return errors.EXIT_DONE

            if document.job != job:
                raise DataError(f"this is the {job} job, but run {run_id} is a {document.job} run")

            attempt_id = os.environ.get("MOOLA_ATTEMPT")
            with Attempt(store, run_id, attempt_id=attempt_id, work=work) as attempt:
                attempt.provenance |= _provenance_of_spec(document)
                work_on(attempt, document)

        except Stopped as stop:
            print(f"{job}: {stop}", file=sys.stderr, flush=True)
            return stop.exit_code
        except Exception as error:
            return report_end(job, error)

    return errors.EXIT_DONE


def report_end(process: str, error: Exception) -> int:
    """Print what ended a process -> its exit code; a fault of moola's leaves a report.

    A rented machine takes its disk with it, so there the traceback is printed.
    """
    is_fault = exit_code_of(error) == errors.EXIT_FAULT
    if is_debugging(os.environ) or (is_fault and os.environ.get("MOOLA_LAUNCH")):
        print(traceback_text(error), file=sys.stderr, flush=True)

    message = describe_end(error, work=None)
    print(f"{process}: {message}", file=sys.stderr, flush=True)
    return exit_code_of(error)


def job_store() -> tuple[Store, Path]:
    """The store and the work folder that a job's environment names.

    Raises DataError if one of them cannot be written to, AuthError for a key that is no key.
    """
    require_clean_keys(os.environ)
    require_ids(os.environ)
    beat_s(os.environ, default_s=BEAT_S)
    work = work_folder(os.environ.get("MOOLA_WORK") or DEFAULT_WORK)
    require_writable(work)
    keep_within_limit(work, limit_from(os.environ))
    store = open_store(os.environ.get("MOOLA_STORE") or DEFAULT_STORE)
    return store, work


def limit_openmp_spinning() -> None:
    """Make GNU OpenMP's threads sleep where they would wait for each other by spinning.

    To be called before torch is imported, which reads this once. On a machine that is busy with
    something else, a training step took 1,369 ms with spinning threads instead of 74.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def _provenance_of_spec(document: SpecDocument) -> Provenance:
    spec = canonical_json(document.spec)
    return {
        "spec_sha256": hashlib.sha256(spec).hexdigest(),
        "inputs": document.fields()["inputs"],
    }


def _log_to_stdout() -> None:
    """For a person, or, on a rented machine, for the launcher that reads the machine's log."""
    is_rented = bool(os.environ.get("MOOLA_LAUNCH"))
    plain = logging.Formatter("%(asctime)s %(levelname)s %(message)s")

    handler = logging.StreamHandler(sys.stdout)
    handler.addFilter(RedactingFilter())
    handler.setFormatter(NumberedFormatter() if is_rented else plain)
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    log.setLevel(logging.INFO)
