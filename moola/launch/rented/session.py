"""Sees a run on rented machines through to its end: rent, follow, end the machine, try again.

The bucket is the server: all that is needed is in the store and in the provider's list of pods, so
another process on another computer can take over at any moment. The order is one that leaves no
machine behind: the claim before the request, the record after it, the machine's end before the
next claim.
"""

from collections.abc import Callable, Sequence

from rich.console import Console

from moola import errors
from moola.errors import ArtifactError, LaunchError, MoolaError, TryAgainError
from moola.launch.console import clock_text, terminal
from moola.launch.rented.budget import settle
from moola.launch.rented.context import RunContext
from moola.launch.rented.ending import cancel_run, end_pods
from moola.launch.rented.following import follow, show_stored_log
from moola.launch.rented.plan import machine_json
from moola.launch.rented.renting import Renting
from moola.launch.rented.terms import Terms, accepted_terms
from moola.launch.settings import Settings
from moola.providers.base import PodApi
from moola.runs.groups import Budget
from moola.runs.launches import Launch, RentedMachine, read_rented
from moola.runs.protocol import CANCEL, FINAL_STATES
from moola.runs.reading import require_manifest
from moola.runs.records import FileEntry, State
from moola.specs import MachineConfig
from moola.store import Store

MOST_ORPHANS = 3  # launches without a machine that one launcher makes up for


class Session:
    """One run on rented machines, as one launcher sees it."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        pods: PodApi,
        run_id: str,
        console: Console | None = None,
        *,
        may_ask: bool = True,
    ) -> None:
        self.context = RunContext(settings, store, pods, run_id, console or terminal())
        self.renting = Renting(self.context)
        self._may_ask = may_ask  # a person, about a launch without a proof
        self._terms: Terms | None = None  # what this launcher has shown, and may rent

    # -- what the commands do --

    def run(
        self,
        job: str,
        image: str,
        machine: MachineConfig,
        budget: Budget | None = None,
    ) -> int:
        """Rent a machine and see the run through; one under way is followed. -> exit code.

        Nothing else is rented than this image and machine, whatever the store may hold, and nothing
        beyond the budget of the group.
        """
        self.claim(Terms(job, image, machine_json(machine), budget))
        return self.attach()

    def detach(self, terms: Terms) -> int:
        """Claim a launch and leave it to `moola tend`; -> exit code."""
        self.claim(terms)
        run_id = self.context.run_id
        self.context.say(
            f"{run_id} can be left: moola tend sees it through, on any computer with this key\n"
            f"  to watch it:  moola attach {run_id}\n"
            f"  to stop it:   moola cancel {run_id}"
        )
        return errors.EXIT_DONE

    def claim(self, terms: Terms) -> None:
        """Claim a launch by these terms, unless one is under way."""
        self._terms = terms
        newest = self.context.newest_launch()
        if newest is not None and self.context.final_state(newest) is None:
            run_id = self.context.run_id
            self.context.say(f"{run_id} is under way already, as attempt {newest.attempt}")
            return

        end_pods(self.context)  # what an earlier launcher left behind
        n = 1 if newest is None else newest.n + 1
        self.renting.claim(n, terms)

    def attach(self) -> int:
        """Follow the newest launch to its end, and those that replace it; -> the run's exit code.

        Raises LaunchError or AuthError where the provider refuses, or a launch may not be used
        again; TryAgainError where a machine cannot be ended; ArtifactError where there was no
        launch, or a record of it is damaged.
        """
        while True:
            launch = self.context.require_launch()
            state = self.context.final_state(launch)
            if state is None:
                state = self._see_launch_through(launch)
            else:  # it was over before this launcher came
                show_stored_log(self.context, launch)

            end_pods(self.context)
            self.context.ledger.ended()
            settle(self.context, launch)
            if self.context.is_committed():
                return self._report_committed()
            if not self.claim_next(launch, state):
                return self._report_failed(launch, state)

    def attended(self, work: Callable[[], int]) -> int:
        """Do `work` with a person watching: Ctrl-C leaves the run alone; -> exit code."""
        try:
            return work()
        except KeyboardInterrupt:
            run_id = self.context.run_id
            launch = self.context.newest_launch()
            if launch is not None and read_rented(self.context.store, launch) is not None:
                outlook = "goes on, and ends its machine by itself"
            else:
                outlook = "has no machine yet, and nobody looks for one"
            self.context.say(
                f"\nno longer watching; {run_id} {outlook}.\n"
                f"  to watch again:  moola attach {run_id}\n"
                f"  to stop it:      moola cancel {run_id}"
            )
            return errors.EXIT_CANCELLED

    def cancel(self) -> str:
        """Ask the newest attempt to stop, and end its machine if it does not; -> its state."""
        return cancel_run(self.context)

    # -- one launch --

    def _see_launch_through(self, launch: Launch) -> str:
        """From a claim to the attempt's final state."""
        if not launch.is_of(self.context.store):
            raise LaunchError(
                f"launch {launch.n} of {launch.run_id} names the pod {launch.pod_name}, which does "
                f"not tell that it belongs to {self.context.store.url}: an earlier version of "
                "moola made it, or it was copied from another store. It is left alone; "
                f"`moola cancel {launch.run_id}` gives the launch up, and then it can be launched "
                "again"
            )

        machine = self.renting.machine_of(launch)
        if machine is not None:
            self.context.say(describe_machine(machine))
            follow(self.context, launch, machine)
        state = self.context.final_state(launch)
        return state or State.INFRA_LOST  # without one it was given up for a newer launch

    def claim_next(self, launch: Launch, state: str) -> bool:
        """Claim the next launch if the terms allow it after this one; -> is there one to follow?

        Raises LaunchError where nobody here may say yes to a launch without a proof.
        """
        newest = self.context.newest_launch()
        if newest is not None and newest.n > launch.n:  # another launcher was quicker
            return True
        if not self.may_follow(launch):
            return False

        if self._had_no_machine(launch):  # this is no further attempt but the same one
            return self._claim_after(launch, launch.retries)

        machine = self._machine_of(launch)
        spent = self.context.spent()
        if spent >= machine.max_spend:
            self.context.say(
                f"{state}; no further attempt: {spent:.2f} USD of max_spend "
                f"{machine.max_spend:g} are spent"
            )
            return False

        status = self.context.status(launch)
        why = "" if status is None else status.reason
        self.context.say(f"{state}: {why}; attempt {launch.n + 1} follows")
        return self._claim_after(launch, launch.retries + 1)

    def may_follow(self, launch: Launch) -> bool:
        """Do the terms allow another launch after this one, as it ended?"""
        if self.context.store.exists(launch.key(CANCEL)):  # also while the attempt was ending
            return False
        if self._had_no_machine(launch):
            return True

        status = self.context.status(launch)
        state = self.context.final_state(launch) or State.INFRA_LOST
        reason = retry_reason(state, None if status is None else status.exit_code)
        retry = self._machine_of(launch).retry
        return reason in retry.on and launch.retries < retry.times

    def _had_no_machine(self, launch: Launch) -> bool:
        status = self.context.status(launch)
        has_requested = self.context.ledger.has_requested(launch.n)
        return status is not None and status.orphan and not has_requested

    def _machine_of(self, launch: Launch) -> MachineConfig:
        return self._terms.machine_config() if self._terms else launch.machine_config()

    def _claim_after(self, launch: Launch, retries: int) -> bool:
        """Claim the launch after this one, by what may be rented; -> is there one to follow?

        However often records in the store say that an attempt does not count, one launcher claims
        no more than the attempts of its terms and a few besides.
        """
        if self._terms is None:
            self._terms = accepted_terms(self.context, launch, may_ask=self._may_ask)
        terms = self._terms

        most_claims = 1 + terms.machine_config().retry.times + MOST_ORPHANS
        if len(self.context.claimed) >= most_claims:
            self.context.say(f"no further attempt: this launcher has claimed {most_claims} already")
            return False
        self.renting.claim(launch.n + 1, terms, retries)
        return True

    # -- what a person is told at the end --

    def _report_committed(self) -> int:
        run_id = self.context.run_id
        files = require_manifest(self.context.store, run_id).files
        check_sizes(self.context.store, files)
        self.context.say(f"committed {run_id}: {len(files)} files, {self.context.spent():.4f} USD")
        return errors.EXIT_DONE

    def _report_failed(self, launch: Launch, state: str) -> int:
        status = self.context.status(launch)
        reason = "no reason given"
        exit_code = None
        if status is not None:
            reason = status.reason or reason
            exit_code = status.exit_code

        self.context.say(f"{self.context.run_id} ended as {state}: {reason}")
        self.context.say(f"what happens next: {FINAL_STATES[state]}")
        return exit_code or exit_code_of_state(state)


def exit_code_of_state(state: str) -> int:
    """The exit code for an attempt that could not leave one itself: its machine was lost."""
    return MoolaError.exit_code if state == "crash_loop" else TryAgainError.exit_code


def retry_reason(state: str, exit_code: object) -> str:
    """The word for an ending in the spec's `machine.retry.on`."""
    if state == "terminated":
        return "preempted"
    if state == "failed" and exit_code == TryAgainError.exit_code:
        return "try_again"
    return state


def describe_machine(machine: RentedMachine) -> str:
    """What was rented, where, for how much and until when."""
    return (
        f"{machine.type_id} in {machine.data_center or 'some data center'}, "
        f"{machine.price_per_hour:.3f} USD/h, "
        f"until {clock_text(machine.deadline)} at the latest (pod {machine.pod_id})"
    )


def check_sizes(store: Store, files: Sequence[FileEntry]) -> None:
    """Every file of a manifest is there in full length; `pull` and `verify` check the digests.

    Raises ArtifactError.
    """
    for file in files:
        head = store.head(file.key)
        if head is not None and head.size == file.size:
            continue
        size_text = "missing" if head is None else f"{head.size} B"
        raise ArtifactError(
            f"{file.path} must have {file.size} B in the store, it is {size_text} ({file.key})"
        )
