"""The train job: a committed feature set and labels in; Jade, its metrics beside their baselines, gates, report out.

In a container or as the launcher's child: MOOLA_STORE and MOOLA_RUN name the store and the run whose spec.json says
what to do. With no MOOLA_RUN the shipped spec is submitted and run, on the newest feature set in the store. On a
machine with several GPUs the job starts one process for each and waits for them; process 0 is then the job.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the job heeds signals they end it, without a traceback

from moola.errors import EXIT_DONE, EXIT_TERMINATED, DataError, MoolaError
from moola.machine import spin_less
from moola.runs import (
    Attempt,
    describe_input,
    describe_run,
    find_run,
    job_store,
    manifest_sha256,
    newest_run,
    read_manifest,
    read_spec_document,
    run_job,
    submit,
)
from moola.signals import Stopped
from moola.specs import TrainSpec, read_spec
from moola.store import Store, fetch_uri

spin_less()
SPEC = Path(os.environ.get("MOOLA_SPEC") or Path(__file__).with_suffix(".yaml"))
NO_FILE = ("hindsight", "planted")  # label sources that are no file
FILE = "file"  # what the resolved spec says where the labels are an input


def prepare(
    spec: TrainSpec, store: Store, work: Path, *, force: bool = False
) -> tuple[str, dict[str, Any], dict[str, Path]]:
    """(run id, spec.json, input files) of a train run; nothing is sent yet. Raises DataError for what is not there."""
    features = find_run(store, spec.features, "precompute") if spec.features else newest_run(store, "precompute")
    if features is None:
        raise DataError(f"features: no precompute run is committed in {store.url}; run precompute first")
    encoder = find_run(store, spec.encoder, "train") if spec.encoder else None
    inputs: dict[str, Path] = {}
    labels = spec.labels
    if labels.source not in NO_FILE:
        inputs["labels"] = fetch_uri(labels.source, work / "fetched")
        labels = labels.model_copy(update={"source": FILE})
    described: dict[str, dict[str, Any]] = {name: describe_input(path) for name, path in inputs.items()}
    described["features"] = {"run": features, "sha256": manifest_sha256(store, features)}
    resolved = spec.model_copy(update={"labels": labels, "encoder": encoder})
    run_id, document = describe_run(
        "train", resolved.model_dump(mode="json", exclude={"job", "machine", "features"}), described, force=force
    )
    return run_id, document, inputs


def submit_shipped(store: Store, work: Path) -> str:
    """Submit the spec beside this file, or the one that MOOLA_SPEC names."""
    spec = read_spec("train", SPEC)
    assert isinstance(spec, TrainSpec)
    run_id, document, _ = prepare(spec, store, work)
    submit(store, run_id, document)
    return run_id


def work_on(attempt: Attempt, document: dict[str, Any]) -> None:
    from moola.train import train  # torch: the launcher, which only prepares, need not have it

    train(attempt, document)


def start_several() -> int | None:
    """Where the run is to be trained by several processes: start them -> their exit code; None where by one."""
    try:
        store, work = job_store()  # before torch and numba are imported: they write where a job may write
        from moola.train import how_many_processes
        from moola.training.processes import start_processes

        run_id = os.environ["MOOLA_RUN"] = os.environ.get("MOOLA_RUN") or submit_shipped(store, work)
        document = read_spec_document(store, run_id)
        if document["job"] != "train" or read_manifest(store, run_id) is not None:
            return None
        count = how_many_processes(TrainSpec.model_validate(document["spec"]))
    except MoolaError:
        return None  # the one process meets it again, and says so in the way a job does
    return start_processes(count, [str(Path(__file__).resolve())]) if count > 1 else None


def follow() -> int:
    """A process that is not the first: it trains with the others, and only the first speaks for the run."""
    from moola.training.loop import Interrupted

    try:
        store, work = job_store()
        run_id = os.environ["MOOLA_RUN"]
        work_on(Attempt(store, run_id, work=work), read_spec_document(store, run_id))
    except (MoolaError, Stopped) as error:
        print(f"train, process {os.environ['RANK']}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except Interrupted:  # only the first process got the signal
        return EXIT_TERMINATED
    return EXIT_DONE


def main() -> int:
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # not yet one of several
        exit_code = start_several()
        if exit_code is not None:
            return exit_code
    elif os.environ["RANK"] != "0":
        return follow()
    return run_job("train", work_on, submit_shipped)


if __name__ == "__main__":
    exit_code = main()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        # All is written. Threads of torch's process group have been seen to abort an interpreter that takes itself
        # apart, and one that aborts ends the others.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
    sys.exit(exit_code)
