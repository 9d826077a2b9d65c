"""What a node of a Ray cluster does for a member: it runs the job as a process of its own.

A member that dies takes no process of Ray with it, and the job stops where Ray's process is gone.
"""

import contextlib
import os
import platform
import secrets
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypedDict

from moola.errors import EXIT_DONE, ArtifactError, DataError, MoolaError, TryAgainError
from moola.launch.local import Process, last_words, record_end, start_job
from moola.runs.attempt import end_attempt
from moola.runs.protocol import CANCEL, SPEC, attempt_id_now, attempt_key, run_key
from moola.runs.provenance import code_sha256
from moola.runs.reading import attempts_of, read_commit, read_status
from moola.runs.records import State
from moola.runs.workdir import is_at_work, require_writable, work_folder
from moola.store import Store, open_store

POLL_S = 0.1
LOST = "its node or Ray's process there was lost"


class Order(TypedDict):
    """What a task is told.

    `arguments` of the node's Python are the job; `mark` is in the ids of the task's attempts, and
    of nobody else's.
    """

    version: str
    code: str
    run_id: str
    arguments: list[str]
    mark: str
    environment: dict[str, str]


class Ending(TypedDict):
    """What a task tells: for a person, where the store has no record of the run's end."""

    exit_code: int
    words: str


def task_for_nodes() -> Callable[[Mapping[str, Any]], Any]:
    """What Ray is given. It travels as code: a node without moola, or with another, can say so."""

    def run(order: Mapping[str, Any]) -> Any:
        import platform

        node = platform.node()
        advice = "install the same moola and the same Python on all nodes"
        try:
            import moola
        except ImportError as error:
            return {"exit_code": 3, "words": f"node {node} has no moola ({error}): {advice}"}

        if moola.__version__ != order["version"]:
            versions = f"must be {order['version']} as here, got {moola.__version__}"
            return {"exit_code": 3, "words": f"moola on node {node} {versions}: {advice}"}

        from moola.launch.on_ray.task import run_member

        return run_member(order)  # type: ignore[arg-type]

    return run


def run_member(order: Order) -> Ending:
    """Run a member on this node to its end. Raises TryAgainError for what can pass."""
    with _variables(order["environment"]):
        try:
            return _run(order)
        except TryAgainError:
            raise
        except MoolaError as error:
            return Ending(exit_code=error.exit_code, words=str(error))


def _run(order: Order) -> Ending:
    if code_sha256() != order["code"]:
        raise DataError(
            f"moola {order['version']} on node {platform.node()} has other code than the one that "
            "made the sweep: install the same moola on all nodes"
        )
    store = open_store(os.environ["MOOLA_STORE"])
    work = work_folder(os.environ["MOOLA_WORK"])
    require_writable(work)
    _require_same_store(store, order["run_id"])

    while is_at_work(work, store, order["run_id"]):  # of a task that was lost, or another sweep's
        time.sleep(POLL_S)
    if read_commit(store, order["run_id"]) is not None:
        return Ending(exit_code=EXIT_DONE, words="")
    _end_lost_attempts(store, order)
    return _run_job(store, order)


def _require_same_store(store: Store, run_id: str) -> None:
    if not store.exists(run_key(run_id, SPEC)):
        raise ArtifactError(
            f"run {run_id} is not in {store.url} as node {platform.node()} sees it: a folder must "
            "be one that all nodes share, under the same path"
        )


def own_attempts(store: Store, run_id: str, mark: str) -> list[str]:
    """The attempts that a task with this mark has made, in their order."""
    return [name for name in attempts_of(store, run_id) if name.rpartition("-")[2][:4] == mark]


def _end_lost_attempts(store: Store, order: Order) -> None:
    """Of this task: it is run again because the process that made them is gone.

    Should it be alive elsewhere, cut off, it can no longer commit.
    """
    for attempt_id in own_attempts(store, order["run_id"], order["mark"]):
        end_attempt(store, order["run_id"], attempt_id, State.INFRA_LOST, LOST)


def new_attempt_id(store: Store, run_id: str, mark: str) -> str:
    """It sorts after all that the run has, whatever this node's clock says."""
    earlier = attempts_of(store, run_id)
    times = [attempt_id.partition("-")[0] for attempt_id in [*earlier, attempt_id_now()]]
    return f"{max(times)}-{mark}{len(earlier):04x}"


def new_mark() -> str:
    """What tells the attempts of a task from all others."""
    return secrets.token_hex(2)


def _run_job(store: Store, order: Order) -> Ending:
    run_id = order["run_id"]
    attempt_id = new_attempt_id(store, run_id, order["mark"])
    environment = {"MOOLA_ATTEMPT": attempt_id}
    with tempfile.TemporaryFile() as stderr:
        process = start_job(order["arguments"], environment, stderr, leashed=True)
        try:
            exit_code = _wait(process, store, run_id, attempt_id)
        finally:
            assert process.stdin is not None
            process.stdin.close()

        exit_code = record_end(store, run_id, attempt_id, exit_code)
        words = last_words(stderr)
    if exit_code == TryAgainError.exit_code:
        raise TryAgainError(words)
    return Ending(exit_code=exit_code, words=words)


def _wait(process: Process, store: Store, run_id: str, attempt_id: str) -> int:
    """Wait for a job; -> its exit code. Ray's cancel interrupts, and stops the job."""
    while True:
        try:
            exit_code = process.poll()
            if exit_code is not None:
                return exit_code
            time.sleep(POLL_S)
        except KeyboardInterrupt:
            process.send_signal(_stop_signal(store, run_id, attempt_id))


def _stop_signal(store: Store, run_id: str, attempt_id: str) -> int:
    """SIGINT where a person asked, or nothing has begun; SIGTERM where the launcher was ended."""
    with contextlib.suppress(MoolaError):
        has_begun = read_status(store, run_id, attempt_id) is not None
        is_asked = store.exists(attempt_key(run_id, attempt_id, CANCEL))
        return signal.SIGTERM if has_begun and not is_asked else signal.SIGINT
    return signal.SIGTERM


@contextlib.contextmanager
def _variables(environment: Mapping[str, str]) -> Iterator[None]:
    """Set in this process of Ray's while the block runs, and not for its next task."""
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
