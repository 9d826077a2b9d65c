"""How runs are written to an MLflow server. Imports MLflow's client, which takes seconds.

A run of moola's is one run of MLflow's, found by its tags: told again, it is no second one. A group
is a tag, by which MLflow's list and charts group; below a parent run they would not show members
until a person unfolds it. Everything here raises what MLflow's client raises.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TypeVar

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from moola.errors import DataError
from moola.launch.tracked_run import NOTE, RUN, STORE, TrackedRun
from moola.runs.binding import job_of
from moola.runs.records import State

T = TypeVar("T")

# Limits of MLflow's, of one request.
MOST_POINTS_AT_ONCE = 1000
MOST_PARAMS_AT_ONCE = 100

STATUS = {  # any other state is FAILED
    State.COMMITTED: "FINISHED",
    State.CANCELLED: "KILLED",
    State.TERMINATED: "KILLED",
}


def experiment_of(client: MlflowClient, name: str, run_id: str) -> str:
    """The id of the experiment NAME/JOB, which is made if there is none. Raises DataError."""
    name = f"{name}/{job_of(run_id)}"
    found = client.get_experiment_by_name(name)
    if found is None:
        with contextlib.suppress(MlflowException):  # somebody may make it in this moment
            return str(client.create_experiment(name))
        found = client.get_experiment_by_name(name)
    if found is None:
        raise DataError(f"MLflow has no experiment {name}, and makes none")
    return str(found.experiment_id)


def send(client: MlflowClient, experiment: str, run: TrackedRun) -> None:
    """Write a run, or what is new of it: a run of moola's is one run of MLflow's."""
    found = _find(client, experiment, run)
    if found is None:
        found = client.create_run(experiment, run.started_ms, dict(run.tags), run.name)
    else:
        _change(client, found, run)
    known = found.data.params
    params = [Param(name, text) for name, text in run.params.items() if name not in known]
    metrics = [Metric(each.name, each.value, run.ended_ms, each.step) for each in run.points]

    sent_to = found.info.run_id
    for some_params in _batches(params, MOST_PARAMS_AT_ONCE):
        client.log_batch(sent_to, params=some_params)
    for some_metrics in _batches(metrics, MOST_POINTS_AT_ONCE):
        client.log_batch(sent_to, metrics=some_metrics)
    client.set_terminated(sent_to, STATUS.get(run.state, "FAILED"), run.ended_ms)


def _change(client: MlflowClient, found: Run, run: TrackedRun) -> None:
    """Tags and name as they are now; the description may be a person's, and its id is no name."""
    tags = [RunTag(name, text) for name, text in run.tags.items() if name != NOTE]
    client.log_batch(found.info.run_id, tags=tags)
    if run.name not in (found.info.run_name, run.run_id):
        client.update_run(found.info.run_id, name=run.name)


def _find(client: MlflowClient, experiment: str, run: TrackedRun) -> Run | None:
    """The run of MLflow's that stands for this run of this store; None if there is none."""
    wanted = f"tags.`{RUN}` = '{run.run_id}'"
    candidates = client.search_runs([experiment], wanted, max_results=100)
    of_store = [each for each in candidates if each.data.tags.get(STORE) == run.tags[STORE]]
    return of_store[0] if of_store else None


def _batches(items: Sequence[T], most: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), most):
        yield items[start : start + most]
