"""A job that is over in a second: it logs, leaves checkpoints and files, and can be resumed.

What it does is in its spec: `steps`, each with a checkpoint; `exit_code` ends it with that error
instead of a result; `hang` keeps it at its last step, and `is_deaf` so that no signal stops it; the
first `broken_hosts` launches get a GPU that fails.
"""

import contextlib
import json
import logging
import os
import sys
import time
from typing import Any

from moola.errors import DataError, MoolaError, TrainingError, TryAgainError
from moola.jobs.entry import run
from moola.jobs.leash import hold_leash
from moola.jobs.process import run_job
from moola.runs.attempt import Attempt
from moola.runs.reading import newest_checkpoint
from moola.runs.records import SpecDocument
from moola.runs.signals import held_signals

log = logging.getLogger("moola")

ERRORS: dict[int, type[MoolaError]] = {3: DataError, 5: TrainingError, 75: TryAgainError}
FILES = {f"part-{n}.bin": bytes([n]) * 1000 for n in range(3)}
PACE_S = 0.05  # of a step, and between files


def work_on(attempt: Attempt, document: SpecDocument) -> None:
    spec: dict[str, Any] = document.spec
    checkpoint = newest_checkpoint(attempt.store, attempt.run_id)
    first = checkpoint[0] if checkpoint else 0

    log.info("running from step %d", first)
    with held_signals() if spec.get("is_deaf") else contextlib.nullcontext():
        for step in range(first + 1, spec["steps"] + 1):
            time.sleep(PACE_S)
            attempt.checkpoint(step, {"state.bin": step.to_bytes(8, "big")})
        while spec.get("hang"):
            time.sleep(PACE_S)

    if int(os.environ.get("MOOLA_LAUNCH", "0")) <= spec.get("broken_hosts", -1):
        raise TryAgainError("the GPU of this host failed: CUDA error: uncorrectable ECC error")
    if "exit_code" in spec:
        raise ERRORS[spec["exit_code"]]("as the spec says")

    log.info("uploading")
    for name, data in FILES.items():
        time.sleep(PACE_S)
        attempt.write(name, data, "application/octet-stream")
    attempt.write("resumed.json", json.dumps({"from": first}).encode(), "application/json")


def submit_shipped(*_: object) -> str:
    raise DataError("this job has no spec of its own")


if __name__ == "__main__":
    if sys.argv[1:] == ["--on-a-machine"]:  # the first process of a pod, as the images start it
        run([sys.executable, __file__])
    hold_leash(os.environ)
    sys.exit(run_job("small", work_on, submit_shipped))
