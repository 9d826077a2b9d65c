"""What renting, following and ending of one run have in common: where it is, and how it stands."""

import os
from dataclasses import dataclass, field

from rich.console import Console

from moola.errors import ArtifactError
from moola.launch.console import print_text, terminal
from moola.launch.rented.ledger import Ledger
from moola.launch.settings import Settings, WatchConfig
from moola.providers.base import PodApi
from moola.runs.attempt import end_attempt
from moola.runs.authority import signing_key
from moola.runs.launches import Launch, all_launches, cost_of, newest_launch
from moola.runs.protocol import COMMIT, STATUS, run_key
from moola.runs.records import State, Status, read_record_or_none
from moola.store import Store


@dataclass(frozen=True)
class RunContext:
    """One run, its store, the provider of its machines, and the console of this launcher.

    claimed   launch number -> the launch as this launcher has claimed it
    ledger    what the machines that this launcher rented have cost
    """

    settings: Settings
    store: Store
    pods: PodApi
    run_id: str
    console: Console = field(default_factory=terminal)
    claimed: dict[int, Launch] = field(default_factory=dict)
    ledger: Ledger = field(default_factory=Ledger)

    @property
    def watch(self) -> WatchConfig:
        """How often to look, and for how long to wait."""
        return self.settings.watch

    def say(self, text: str) -> None:
        """Print a line for people."""
        print_text(text, self.console)

    def signing_key(self) -> bytes | None:
        """The key of this launcher's proofs. Raises DataError for one that could be guessed."""
        return signing_key(os.environ, self.pods.account_key)

    def newest_launch(self) -> Launch | None:
        """As this launcher has claimed it, if it has: the record in the store may be changed."""
        launch = newest_launch(self.store, self.run_id)
        return None if launch is None else self.claimed.get(launch.n, launch)

    def require_launch(self) -> Launch:
        """The newest launch. Raises ArtifactError if there was none."""
        launch = self.newest_launch()
        if launch is None:
            raise ArtifactError(
                f"run {self.run_id} was never launched on a rented machine ({self.store.url})"
            )
        return launch

    def is_trusted(self, launch: Launch) -> bool:
        """Was it claimed by this launcher, or by another holder of the account's key?"""
        return launch == self.claimed.get(launch.n) or launch.proven(self.store, self.signing_key())

    def is_committed(self) -> bool:
        return self.store.exists(run_key(self.run_id, COMMIT))

    def status(self, launch: Launch) -> Status | None:
        """The attempt's status.json; None while there is none. Raises ArtifactError."""
        return read_record_or_none(self.store, launch.key(STATUS), Status)

    def final_state(self, launch: Launch) -> str | None:
        """How the attempt ended; None while it has not. Raises ArtifactError."""
        status = self.status(launch)
        return str(status.state) if status is not None and status.state.is_final else None

    def state_text(self, launch: Launch) -> str:
        """The attempt's state, for people."""
        status = self.status(launch)
        return str(State.SUBMITTED if status is None else status.state)

    def end_attempt(
        self, launch: Launch, state: str, reason: str, exit_code: int | None = None
    ) -> str:
        """Give the attempt a final state unless it has one; -> the state that stands."""
        return end_attempt(self.store, self.run_id, launch.attempt, state, reason, exit_code)

    def spent(self) -> float:
        """USD that the run's launches have cost so far.

        By the records in the store, and never less than what this launcher has rented itself.
        """
        launches = all_launches(self.store, self.run_id)
        now = self.pods.now()
        recorded = sum(cost_of(self.store, launch, now)["cost"] for launch in launches)
        return max(recorded, self.ledger.spent())
