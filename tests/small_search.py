"""A search whose trials are over at once: what a run is worth follows from its spec.

    python small_search.py STORE WORK [n_trials [storage_url]]    the launcher
    python small_search.py                                         the job of a trial

MOOLA_TEST_HANG names a file: while it is there, all trials wait but for the first.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import typer

from moola.errors import DataError, MoolaError
from moola.jobs.leash import hold_leash
from moola.jobs.prepare import PreparedRun
from moola.jobs.process import run_job
from moola.launch.search.searching import Search, plan_search, run_search
from moola.launch.search.space import read_space
from moola.launch.settings import Settings
from moola.runs.attempt import Attempt
from moola.runs.records import SpecDocument
from moola.runs.submit import describe_run
from moola.specs import TrainSpec

SPACE = ("size=1..64", "rate=1e-4..1e-2 log", "way=up,down")
REFUSED_SIZE = 13  # a point that can be no run
FIXED: dict[str, Any] = {"epochs": 3, "labels": {"classes": ["up", "down"]}}
OBJECTIVE = "joint_success"


def value_of(spec: dict[str, Any]) -> float:
    """What a trial comes to: best at size 40, with way=up."""
    return 1 - abs(spec["size"] - 40) / 64 - (0.1 if spec["way"] == "down" else 0.0)


def prepare(point: dict[str, object]) -> PreparedRun:
    """A run of a point."""
    if point["size"] == REFUSED_SIZE:
        raise DataError(f"size must not be {REFUSED_SIZE}")
    spec: dict[str, Any] = {**FIXED, **point}
    run_id, document = describe_run("train", spec, {})
    return PreparedRun("train", run_id, document, {}, TrainSpec().machine)


def search_of(n_trials: int, *, space: tuple[str, ...] = SPACE, study: str = "") -> Search:
    """The search of this file."""
    return plan_search(
        read_space(space), {}, prepare, objective=OBJECTIVE, n_trials=n_trials, seed=0, study=study
    )


def metrics_of(spec: dict[str, Any]) -> dict[str, Any]:
    """metrics.json: the test split says something else, which no search may see."""
    measured = {"title": OBJECTIVE, "unit": "fraction", "low": None, "high": None, "baselines": {}}
    split = {"n_windows": 10, "interval": {"level": 0.95}}
    return {
        "validation": {**split, "metrics": {OBJECTIVE: {**measured, "value": value_of(spec)}}},
        "test": {**split, "metrics": {OBJECTIVE: {**measured, "value": 0.5}}},
    }


def work_on(attempt: Attempt, document: SpecDocument) -> None:
    """The job of a trial."""
    spec: dict[str, Any] = document.spec
    hang = os.environ.get("MOOLA_TEST_HANG")
    n_runs = len(attempt.store.children("runs"))
    while hang and Path(hang).exists() and n_runs > 1:
        time.sleep(0.02)
    attempt.write("metrics.json", json.dumps(metrics_of(spec)).encode(), "application/json")


def submit_shipped(*_: object) -> str:
    raise DataError("this job has no spec of its own")


def launch(store: str, work: str, n_trials: str = "3", storage_url: str | None = None) -> None:
    """The launcher, one trial at a time."""
    from moola.launch import members

    members.job_arguments = lambda _: [__file__]  # type: ignore[attr-defined]
    settings = Settings(store=store, work=Path(work))
    run_search(settings, search_of(int(n_trials)), parallel=1, storage_url=storage_url)


if __name__ == "__main__":
    if sys.argv[1:]:
        try:
            launch(*sys.argv[1:])
        except typer.Exit as ending:
            sys.exit(ending.exit_code)
        except MoolaError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(error.exit_code)
        sys.exit(0)
    hold_leash(os.environ)
    sys.exit(run_job("train", work_on, submit_shipped))
