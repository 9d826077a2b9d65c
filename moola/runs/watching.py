"""Looking at runs again and again: what has ended, and what never changes, is read once.

A look begins with a survey, which is a listing. Of each run that has not ended it then reads the
status and the heartbeat, and of a rented one also the launch that the survey found to be newest.
"""

import contextlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from moola.errors import ArtifactError
from moola.runs.launches import (
    Launch,
    LaunchCost,
    RentedMachine,
    launch_cost,
    read_rented,
)
from moola.runs.reading import read_heartbeat, read_status
from moola.runs.records import Heartbeat, State, Status
from moola.runs.survey import (
    EVERY_RUN,
    READERS,
    RunKeys,
    RunQuery,
    RunSummary,
    Survey,
    summarize_run,
)
from moola.store import Store
from moola.store.background import map_in_background

OPEN = frozenset({State.SUBMITTED, State.WAITING, State.RUNNING})


@dataclass(frozen=True)
class WatchedRun:
    """A run as one look found it. `launches` are those on rented machines, oldest first."""

    summary: RunSummary
    heartbeat: Heartbeat | None = None
    launches: tuple[LaunchCost, ...] = ()

    @property
    def run_id(self) -> str:
        return self.summary.run_id

    @property
    def is_open(self) -> bool:
        """May its state still change by itself?"""
        return self.summary.state in OPEN and not self.summary.is_half_removed

    @property
    def is_abandoned(self) -> bool:
        """Silent on a computer where nobody takes it up again but by hand."""
        return self.summary.is_silent and not self.launches

    @property
    def is_running(self) -> bool:
        return self.summary.state is State.RUNNING and self.is_open

    @property
    def cost(self) -> float | None:
        """USD so far; None where nothing was rented."""
        costs = [launch["cost"] for launch in self.launches]
        return sum(costs) if costs else None


class RunWatcher:
    """Looks at runs of a store; remembers what does not change from one look to the next."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._ended: dict[str, tuple[RunKeys, WatchedRun]] = {}
        self._launches: dict[tuple[str, int], Launch] = {}
        self._machines: dict[tuple[str, int], RentedMachine] = {}
        self._final: dict[tuple[str, str], Status] = {}  # of attempts that have ended

    def newest(self, survey: Survey, last: int, query: RunQuery = EVERY_RUN) -> list[WatchedRun]:
        """The newest runs that a query asks for, as `summarize_runs` finds them."""
        runs = self._look_at(query.candidates(survey, last), survey.now)
        asked_for = (run for run in runs if query.matches(run.summary))
        return list(itertools.islice(asked_for, last))

    def all(self, survey: Survey, run_ids: Sequence[str]) -> list[WatchedRun]:
        """These runs, in this order; one that the survey has not found is damaged."""
        found = {run.run_id: run for run in survey.runs}
        keys = [found.get(run_id, RunKeys(run_id)) for run_id in run_ids]
        return self._look_at(keys, survey.now)

    def _look_at(self, runs: Sequence[RunKeys], now: float) -> list[WatchedRun]:
        return list(map_in_background(lambda run: self._look(run, now), runs, READERS))

    def _look(self, run: RunKeys, now: float) -> WatchedRun:
        keys, known = self._ended.get(run.run_id, (None, None))
        if known is not None and keys == run:
            return known

        summary = summarize_run(self.store, run, now)
        heartbeat = None
        launches: tuple[LaunchCost, ...] = ()
        with contextlib.suppress(ArtifactError):  # what is shown beside the state
            if summary.attempt and summary.state is not None:
                heartbeat = read_heartbeat(self.store, run.run_id, summary.attempt)
        with contextlib.suppress(ArtifactError):
            launches = self._costs(run, summary)

        watched = WatchedRun(summary, heartbeat, launches)
        if not watched.is_open:
            self._ended[run.run_id] = (run, watched)
        return watched

    def _costs(self, run: RunKeys, summary: RunSummary) -> tuple[LaunchCost, ...]:
        """What each launch has cost up to now. Raises ArtifactError."""
        costs = []
        for n in itertools.takewhile(run.launches.__contains__, itertools.count(1)):
            launch = self._launch(run.run_id, n)
            if launch is None:
                break
            status = self._status(launch, summary)
            costs.append(launch_cost(launch, self._machine(launch), status))
        return tuple(costs)

    def _launch(self, run_id: str, n: int) -> Launch | None:
        launch = self._launches.get((run_id, n)) or Launch.read(self.store, run_id, n)
        if launch is not None:
            self._launches[run_id, n] = launch
        return launch

    def _machine(self, launch: Launch) -> RentedMachine | None:
        key = (launch.run_id, launch.n)
        machine = self._machines.get(key) or read_rented(self.store, launch)
        if machine is not None:
            self._machines[key] = machine
        return machine

    def _status(self, launch: Launch, summary: RunSummary) -> Status | None:
        """The status of a launch's attempt: the one that was just read, if it is the newest."""
        if launch.attempt == summary.attempt:
            return summary.status

        key = (launch.run_id, launch.attempt)
        status = self._final.get(key) or read_status(self.store, *key)
        if status is not None and status.state.is_final:
            self._final[key] = status
        return status
