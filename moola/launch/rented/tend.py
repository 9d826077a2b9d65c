"""One pass over all open launches of a store: what their launchers would do, without waiting.

For cron, and in a loop. Machines that are to be ended are ended, as `reap` does. A run whose
machine has gone, or whose launcher has, gets its next launch where the spec allows one, and its
machine if there is one to be had now. Only what carries the holder's proof is rented for. Each
launch is claimed as ever: of any number of tenders one rents, and what a tender that is killed
leaves behind, the next pass finds in the store and in the provider's list.
"""

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from rich.table import Column, Table

from moola.errors import LaunchError, MoolaError, TryAgainError
from moola.launch.console import one_line, print_text
from moola.launch.endings import Endings
from moola.launch.rented.budget import held_for, hopeless_text, room_for, settle
from moola.launch.rented.context import RunContext
from moola.launch.rented.ending import end_pods, is_of_run
from moola.launch.rented.machines import record
from moola.launch.rented.observer import ENDED
from moola.launch.rented.reap import Reaped, reap
from moola.launch.rented.session import Session, describe_machine
from moola.launch.rented.terms import accepted_terms
from moola.launch.settings import Settings
from moola.providers.base import Pod, PodApi, PodStatus
from moola.runs.group_ledger import Room
from moola.runs.launches import RENTING, Launch, launch_key, newest_attempt, read_rented
from moola.runs.records import State
from moola.runs.survey import survey_runs
from moola.store import Store

NEWS_S = 24 * 3600  # word of a commit that nobody has sent word of is sent for so long
LONGEST_ID = 28  # characters of a run's id that are shown


@dataclass(frozen=True)
class Tended:
    """A run that a pass looked at. `failed`: a person should look at it."""

    run_id: str
    what: str
    failed: bool = False


@dataclass(frozen=True)
class Pass:
    """What one pass did: to machines, and to runs."""

    reaped: tuple[Reaped, ...]
    tended: tuple[Tended, ...]

    @property
    def has_failed(self) -> bool:
        """Could a machine not be ended, or is something damaged?"""
        failures = [one.failed for one in self.reaped] + [one.failed for one in self.tended]
        return any(failures)

    def lines(self) -> list[str]:
        """What a person wants to know of it, a line each: machines that were ended, open runs."""
        machines = [
            f"{one.pod.name}: {'ended' if one.ended else 'NOT ENDED'}, {one.why}"
            for one in self.reaped
            if one.ended or one.failed
        ]
        return [*machines, *(f"{one.run_id}: {one.what}" for one in self.tended)]


def tend(settings: Settings, store: Store, pods: PodApi) -> Pass:
    """One pass. Raises LaunchError or TryAgainError where the provider or the store is not there.

    What is wrong with one run is told of that run, and stops no other.
    """
    reaped = reap(settings, store, pods)
    listed = {pod.name: pod for pod in pods.list()}
    survey = survey_runs(store)
    held: dict[str, frozenset[str]] = {}
    tended: list[Tended] = []
    endings = Endings(settings)

    for run in survey.runs:
        unchanged_s = survey.now - run.changed
        if run.launches and run.committed is None:
            session = Session(settings, store, pods, run.run_id, may_ask=False)
            tended += _tend(Tender(session, endings, listed, unchanged_s))
        elif run.launches and unchanged_s < NEWS_S:
            session = Session(settings, store, pods, run.run_id, may_ask=False)
            with contextlib.suppress(MoolaError):
                _finish_committed(session.context, listed, held)
            endings.tell(store, run.run_id)
    endings.tell_groups(store)
    return Pass(tuple(reaped), tuple(tended))


def _finish_committed(
    context: RunContext,
    listed: Mapping[str, Pod],
    held: dict[str, frozenset[str]],
) -> None:
    """What is left to do for a run that was committed between two passes and has no machine now.

    Its attempt gets the final state for which the machine had no time, and what its group's budget
    still holds is given back. `held` is what each group's budget holds, by its pods' names, as far
    as it was read.
    """
    launch = context.require_launch()
    pod = listed.get(launch.pod_name)
    if pod is not None and pod.status is not PodStatus.GONE:
        return

    if context.final_state(launch) is None:
        context.end_attempt(launch, State.INFRA_LOST, "the machine is gone")
    if launch.budget is None:
        return

    group = launch.budget.group
    if group not in held:
        held[group] = held_for(context, launch.budget)
    if launch.pod_name in held[group]:
        settle(context, launch)


def tend_on(settings: Settings, store: Store, pods: PodApi) -> NoReturn:
    """Pass after pass; what changed since the last one is printed. Ends by a signal alone."""
    told: set[str] = set()
    while True:
        try:
            lines = tend(settings, store, pods).lines()
        except (LaunchError, TryAgainError) as error:
            lines = [f"no answer, trying again: {error}"]

        for line in lines:
            if line not in told:
                print_text(line)
        told = set(lines)
        time.sleep(settings.watch.capacity_poll_s)


def _tend(tender: "Tender") -> list[Tended]:
    """What was done about a run; [] for one that is over."""
    run_id = tender.context.run_id
    try:
        what = tender.look()
    except MoolaError as error:
        return [Tended(run_id, str(error), failed=not isinstance(error, TryAgainError))]
    return [] if what is None else [Tended(run_id, what)]


class Tender:
    """One look at a run on rented machines.

    listed       the pods of the account by their names, as they were at the start of the pass
    unchanged_s  since the last word of the run, by the store's clock
    """

    def __init__(
        self,
        session: Session,
        endings: Endings,
        listed: Mapping[str, Pod],
        unchanged_s: float,
    ) -> None:
        self.session = session
        self._endings = endings
        self.context = session.context
        self._listed = listed
        self._unchanged_s = unchanged_s

    def look(self) -> str | None:
        """Do what is to be done now; -> how the run stands, None where it is over.

        Raises what `Session.attach` raises.
        """
        launch = self.context.require_launch()
        state = self.context.final_state(launch)
        if state is None:
            outlook = self._look_at_open(launch)
            if outlook is not None:
                return outlook
        elif self._is_left_alone(launch):
            return None

        if self._has_pod() or self.session.may_follow(launch):
            end_pods(self.context)
        settle(self.context, launch)
        if self.context.is_committed():
            self._endings.tell(self.context.store, launch.run_id)
            return "committed"
        return self._go_on(launch, was_over=state is not None)

    def _is_left_alone(self, launch: Launch) -> bool:
        """Has the run been over for long, or did somebody run it elsewhere since?"""
        if self._unchanged_s > self.context.watch.longest_run_s:
            return True
        return newest_attempt(self.context.store, launch.run_id) != launch.attempt

    def _has_pod(self) -> bool:
        """Was there a pod of this run at the start of the pass?"""
        return any(
            is_of_run(self.context, pod) and pod.status is not PodStatus.GONE
            for pod in self._listed.values()
        )

    # -- an attempt without a final state --

    def _look_at_open(self, launch: Launch) -> str | None:
        """How the attempt stands; None once it has a final state."""
        if not launch.is_of(self.context.store):
            raise LaunchError(
                f"launch {launch.n} names a pod that does not tell that it belongs to "
                f"{self.context.store.url}: it is left alone; moola cancel {launch.run_id} gives "
                "it up"
            )

        pod = self._listed.get(launch.pod_name)
        machine = read_rented(self.context.store, launch)
        if pod is None and machine is None:
            return self._look_at_waiting(launch)

        if pod is None and machine is not None:  # it may have been made since the pass began
            pod = self.context.pods.get(machine.pod_id)
        is_own = pod is not None and pod.name == launch.pod_name
        if pod is not None and is_own and pod.status not in (*ENDED, PodStatus.GONE):
            if machine is None:
                record(self.context, launch, pod)
            return f"{self.context.state_text(launch)} on {pod.type_id or pod.id}"

        reason = "the machine is gone and the job left no final status"
        self.context.end_attempt(launch, State.INFRA_LOST, reason)
        return None

    def _look_at_waiting(self, launch: Launch) -> str | None:
        """A launch without a machine: left to a launcher that is at it, else given up.

        Raises LaunchError for one without a proof.
        """
        accepted_terms(self.context, launch, may_ask=False)
        if self._launcher_age_s(launch) <= self.context.watch.settle_s:
            return "waiting; its launcher looks for a machine"

        room = self._room(launch)
        if room is None or room.is_free:
            self.session.renting.give_up(launch)
            return None
        if room.may_come:
            return f"waiting for the budget: {room.why_not}"

        assert launch.budget is not None
        reason = hopeless_text(room, launch.budget)
        self.context.end_attempt(launch, State.LAUNCH_FAILED, reason, LaunchError.exit_code)
        return None

    def _launcher_age_s(self, launch: Launch) -> float:
        """Seconds since the last sign of the launch's launcher, by the store's clock."""
        store = self.context.store
        keys = (launch.key(RENTING), launch_key(launch.run_id, launch.n))
        for key in keys:
            dated = store.get_dated(key)
            if dated is not None:
                return dated.age_s or 0.0
        return 0.0

    # -- an attempt that is over --

    def _go_on(self, launch: Launch, *, was_over: bool) -> str | None:
        """Claim the next launch where the terms allow one, and ask for its machine once."""
        state = self.context.final_state(launch)
        room = self._room(launch)
        if room is not None and not room.is_free and self.session.may_follow(launch):
            return f"{state}; waiting for the budget: {room.why_not}"

        if not self.session.claim_next(launch, state or State.INFRA_LOST):
            self._endings.tell(self.context.store, launch.run_id)
            return None if was_over else f"ended as {state}"
        own = self.context.claimed.get(launch.n + 1)
        if own is None:
            return "another launcher goes on with it"

        machine = self.session.renting.rent_once(own)
        if machine is not None:
            return describe_machine(machine)
        return f"{self.context.state_text(own)}; the next pass goes on"

    def _room(self, launch: Launch) -> Room | None:
        """Whether the launch's budget has room for one more; None where it has no budget."""
        if launch.budget is None or not self.context.is_trusted(launch):
            return None
        return room_for(self.context, launch, launch.budget)


def tend_table(tended: Sequence[Tended]) -> Table:
    """For people and cron mails: the runs that are open."""
    table = Table(
        Column("run", no_wrap=True, max_width=LONGEST_ID),
        Column("", overflow="fold"),
    )
    for one in tended:
        table.add_row(one_line(one.run_id), one.what)
    return table
