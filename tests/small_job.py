"""A job that is over in a second: it says where it is, leaves checkpoints and files, and resumes like a large one.

What it does is in its spec: `steps`, each with a checkpoint; `exit_code` ends it with that error instead of a result;
`hang` keeps it at its first step.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from moola.errors import DataError, MoolaError, TrainingError, TryAgainError
from moola.runs import Attempt, log, newest_checkpoint, run_job

ERRORS: dict[int, type[MoolaError]] = {3: DataError, 5: TrainingError, 75: TryAgainError}
FILES = {f"part-{n}.bin": bytes([n]) * 1000 for n in range(3)}
PACE_S = 0.05  # of a step, and between files


def work_on(attempt: Attempt, document: dict[str, Any]) -> None:
    spec = document["spec"]
    found = newest_checkpoint(attempt.store, attempt.run_id)
    first = found[0] if found else 0
    log.info("running from step %d", first)
    for step in range(first + 1, spec["steps"] + 1):
        time.sleep(PACE_S)
        attempt.checkpoint(step, {"state.bin": step.to_bytes(8, "big")})
    while spec.get("hang"):
        time.sleep(PACE_S)
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
    sys.exit(run_job("small", work_on, submit_shipped))
