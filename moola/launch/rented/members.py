"""Runs the members of a group on rented machines, several at once, each as a run of its own."""

import io
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from moola.errors import MoolaError
from moola.launch.console import SafeConsole, print_text, terminal
from moola.launch.member_progress import MemberProgress
from moola.launch.rented.session import Session
from moola.launch.rented.terms import Terms
from moola.launch.settings import Settings
from moola.providers.base import PodApi
from moola.store import Store
from moola.store.background import in_background


class _Nowhere(io.StringIO):
    """Where the logs of the members go: many at once could not be read, and the store has them."""

    def write(self, text: str) -> int:
        return len(text)


@dataclass
class _Rented:
    """A member at work, in a thread of its own."""

    session: Session
    ending: Future[int]

    @property
    def attempt_id(self) -> str:
        """The newest attempt that this launcher has claimed; "" while there is none."""
        claimed = self.session.context.claimed
        return claimed[max(claimed)].attempt if claimed else ""


@dataclass(frozen=True)
class RentedMembers:
    """How the members of a group are rented for: by the same terms, `at_once` at a time."""

    settings: Settings
    store: Store
    pods: PodApi
    terms: Terms
    at_once: int

    def run(self, run_ids: Sequence[str], progress: MemberProgress) -> dict[str, int]:
        """See members through to their end; -> run id -> exit code.

        KeyboardInterrupt leaves the runs alone.
        """
        waiting = deque(run_ids)
        at_work: dict[str, _Rented] = {}
        exit_codes: dict[str, int] = {}

        while waiting or at_work:
            while waiting and len(at_work) < self.at_once:
                run_id = waiting.popleft()
                at_work[run_id] = self._begin(run_id)
                progress.started(run_id)

            for run_id, member in list(at_work.items()):
                if member.ending.done():
                    exit_code, words = _ending(member.ending)
                    exit_codes[run_id] = exit_code
                    progress.ended(run_id, member.attempt_id, exit_code, words)
                    del at_work[run_id]

            progress.update({run_id: member.attempt_id for run_id, member in at_work.items()})
            time.sleep(min(self.settings.watch.poll_s, 1.0))
        return exit_codes

    def claim(self, run_ids: Sequence[str]) -> None:
        """Claim a launch for each member, and leave them to `moola tend`."""
        for run_id in run_ids:
            self._session(run_id).claim(self.terms)

    def _begin(self, run_id: str) -> _Rented:
        session = self._session(run_id)

        def see_through() -> int:
            session.claim(self.terms)
            return session.attach()

        return _Rented(session, in_background(see_through))

    def _session(self, run_id: str) -> Session:
        return Session(self.settings, self.store, self.pods, run_id, SafeConsole(_Nowhere()))


def _ending(ending: "Future[int]") -> tuple[int, str]:
    """(exit code, what was wrong) of a member. Raises a fault of ours as it is."""
    try:
        return ending.result(), ""
    except MoolaError as error:
        return error.exit_code, str(error)


def say_left_alone(group_id: str) -> None:
    """What a person is told who stops watching."""
    print_text(
        f"\nno longer watching; runs that have a machine go on, and end it by themselves.\n"
        f"  to go on:        the same command, or moola tend\n"
        f"  to look:         moola group {group_id}",
        terminal(),
    )
