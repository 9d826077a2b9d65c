"""Runs the members of a group as tasks of a Ray cluster, so many in flight at a time.

How a member ended is what the store says of the attempts that its task has made.
"""

import contextlib
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import moola
from moola.errors import EXIT_DONE, ArtifactError, MoolaError, TryAgainError
from moola.launch.local import ask_to_stop
from moola.launch.member_progress import MemberProgress
from moola.launch.members import Member, run_members
from moola.launch.on_ray.task import LOST, Ending, Order, new_mark, own_attempts, task_for_nodes
from moola.providers.ray_cluster import Cluster, Share, Task
from moola.runs.attempt import end_attempt
from moola.runs.provenance import code_sha256
from moola.runs.reading import read_commit, read_status
from moola.runs.records import State
from moola.runs.signals import STOP_SIGNALS
from moola.store import Store

LOOK_S = 5.0  # between looks for a newer attempt of a member: a request to the store


@dataclass(frozen=True)
class MemberOrder:
    """What is asked of the cluster for a run: its share of a node, and its job's variables."""

    share: Share
    further_tries: int
    environment: Mapping[str, str]


@dataclass(frozen=True)
class RayMembers:
    """How the members of a group run on a cluster, so many in flight.

    `arguments` of Python are the job; `orders` is run id -> what is asked for it.
    """

    cluster: Cluster
    store: Store
    arguments: Sequence[str]
    orders: Mapping[str, MemberOrder]
    parallel: int

    def run(self, run_ids: Sequence[str], progress: MemberProgress) -> dict[str, int]:
        """Run members to their end, as `run_members` does; -> run id -> exit code."""
        work = task_for_nodes()
        code = code_sha256()

        def begin(run_id: str, place: int) -> Member:
            mark = new_mark()
            order = Order(
                version=moola.__version__,
                code=code,
                run_id=run_id,
                arguments=list(self.arguments),
                mark=mark,
                environment=dict(self.orders[run_id].environment),
            )
            task = self.cluster.start(
                work,
                order,
                self.orders[run_id].share,
                name=f"moola {run_id}",
                further_tries=self.orders[run_id].further_tries,
            )
            return _Member(self.store, run_id, place, mark, task)

        return run_members(run_ids, self.parallel, begin, progress)


@dataclass
class _Member:
    """A member in flight: waiting for room, or at work on some node."""

    store: Store
    run_id: str
    place: int
    mark: str
    task: Task
    attempt_id: str = ""
    _words: str = ""
    _is_stopped: bool = False
    _looked: float = field(default_factory=time.monotonic)

    def poll(self, stopped_by: int | None) -> int | None:
        """-> its exit code once its task has ended."""
        if self.task.has_ended():
            return self._end(stopped_by)
        if time.monotonic() - self._looked >= LOOK_S:
            with contextlib.suppress(ArtifactError, TryAgainError):
                self._look()
        return None

    def send_signal(self, signum: int) -> None:
        """Stop it: Ctrl-C by a request in its attempt, too. The second time, without waiting."""
        if signum == signal.SIGINT:
            with contextlib.suppress(MoolaError):
                self._look()
                if self.attempt_id:
                    ask_to_stop(self.store, self.run_id, self.attempt_id)
        self.task.cancel(force=self._is_stopped)
        self._is_stopped = True

    def last_words(self) -> str:
        """What the task said, or Ray in its place."""
        return self._words

    def _look(self) -> None:
        self._looked = time.monotonic()
        attempts = own_attempts(self.store, self.run_id, self.mark)
        self.attempt_id = attempts[-1] if attempts else ""

    def _end(self, stopped_by: int | None) -> int:
        end = self.task.end()
        ending: Ending | None = end.result
        self._words = end.words if ending is None else ending["words"]
        try:
            return self._recorded(ending, stopped_by)
        except (ArtifactError, TryAgainError) as error:
            self._words = str(error)
            return error.exit_code

    def _give_an_end(self, stopped_by: int | None) -> None:
        """Of an attempt that has recorded none: its node is lost, or it was not waited for."""
        if stopped_by is None:
            end_attempt(self.store, self.run_id, self.attempt_id, State.INFRA_LOST, LOST)
            return

        state, exit_code = STOP_SIGNALS[stopped_by]
        end_attempt(
            self.store,
            self.run_id,
            self.attempt_id,
            state,
            signal.Signals(stopped_by).name,
            exit_code,
        )

    def _recorded(self, ending: Ending | None, stopped_by: int | None) -> int:
        """The exit code by the store; without an attempt there, that of the task."""
        self._look()
        if read_commit(self.store, self.run_id) is not None:
            return EXIT_DONE
        if self.attempt_id:
            self._give_an_end(stopped_by)
            status = read_status(self.store, self.run_id, self.attempt_id)
            exit_code = None if status is None else status.exit_code
            return exit_code or (TryAgainError.exit_code if ending is None else ending["exit_code"])

        if ending is not None:
            return ending["exit_code"]
        return TryAgainError.exit_code if stopped_by is None else STOP_SIGNALS[stopped_by][1]
