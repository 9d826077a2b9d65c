"""The precompute job: 1-minute bars in; 11 causal features, windows, mask and splits out, verified and committed.

In a container or as the launcher's child: MOOLA_STORE and MOOLA_RUN name the store and the run whose spec.json says
what to do. With no MOOLA_RUN the shipped spec is submitted and run. With --ahead it is started before its run is known
and is told on stdin.
"""

import gc
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the job heeds signals they end it, without a traceback
    gc.disable()  # while a thousand modules are imported there is no garbage to look for: a sixth of the time

from moola.bars import probe_bars
from moola.runs import Attempt, describe_input, describe_run, put_input, run_job, submit
from moola.specs import PrecomputeSpec, read_spec
from moola.store import Store, fetch_uri

SPEC = Path(os.environ.get("MOOLA_SPEC") or Path(__file__).with_suffix(".yaml"))


def prepare(spec: PrecomputeSpec, work: Path, *, force: bool = False) -> tuple[str, dict[str, Any], dict[str, Path]]:
    """(run id, spec.json, input files) of a precompute run. Bad bars are refused here; nothing is sent yet."""
    inputs = {}
    if spec.bars is not None:
        inputs["bars"] = fetch_uri(spec.bars, work / "fetched")
        probe_bars(inputs["bars"], spec.timezone)
    described = {name: describe_input(path) for name, path in inputs.items()}
    resolved = spec.model_dump(
        mode="json", exclude={"job", "machine", "bars", "synthetic"} if inputs else {"job", "machine"}
    )
    run_id, document = describe_run("precompute", resolved, described, force=force)
    return run_id, document, inputs


def submit_shipped(store: Store, work: Path) -> str:
    """Submit the spec beside this file, or the one that MOOLA_SPEC names."""
    spec = read_spec("precompute", SPEC)
    assert isinstance(spec, PrecomputeSpec)
    run_id, document, inputs = prepare(spec, work)
    for name, path in inputs.items():
        put_input(store, path, document["inputs"][name])
    submit(store, run_id, document)
    return run_id


def work_on(attempt: Attempt, document: dict[str, Any]) -> None:
    from moola.precompute import precompute  # numba and the rest: the launcher, which only prepares, need not pay

    gc.enable()
    precompute(attempt, document)


def wait_for_run() -> bool:
    """Import what the job needs, then take the environment that names the run, a line of JSON, from stdin. False if
    none comes: the launcher refused the run, or is gone."""
    import moola.precompute  # noqa: F401

    gc.enable()
    line = sys.stdin.readline()
    os.environ.update(json.loads(line or "{}"))
    return bool(line)


if __name__ == "__main__":
    if sys.argv[1:] == ["--ahead"] and not wait_for_run():
        sys.exit()
    exit_code = run_job("precompute", work_on, submit_shipped)
    gc.freeze()  # no last collection: half a second after numba and pandas, for memory that is given back anyway
    sys.exit(exit_code)
