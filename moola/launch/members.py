"""Runs the members of a group, several at once: on this computer each in a process of its own.

What another process of this computer is at is waited for, not done twice: the members of a sweep
whose launcher was killed go on, and the same sweep again meets them.
"""

import contextlib
import os
import signal
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Protocol

from moola.errors import EXIT_DONE, TryAgainError
from moola.launch.capacity import thread_environment
from moola.launch.local import (
    Process,
    job_arguments,
    job_environment,
    last_words,
    record_end,
    start_job,
)
from moola.launch.member_progress import MemberProgress
from moola.launch.settings import Settings
from moola.runs.protocol import attempt_id_now
from moola.runs.reading import read_commit
from moola.runs.signals import STOP_SIGNALS
from moola.runs.workdir import is_at_work
from moola.store import Store

POLL_S = 0.1
MOST_TRIES = 3  # of a member that ends with 75: the store or the network did not answer

STOP_BY_PERSON = (signal.SIGINT, signal.SIGTERM)


class Member(Protocol):
    """A member of a group that has its turn."""

    run_id: str
    attempt_id: str  # the newest one that is known; "" before there is one
    place: int

    def poll(self, stopped_by: int | None) -> int | None:
        """Begin it, or look at it; -> its exit code once it has ended."""

    def send_signal(self, signum: int) -> None:
        """Tell it to stop."""

    def last_words(self) -> str:
        """What is known of its end beside its records. Called once, after the end."""


def run_members(
    run_ids: Sequence[str],
    parallel: int,
    begin: Callable[[str, int], Member],
    progress: MemberProgress,
) -> dict[str, int]:
    """Run members to their end; -> run id -> exit code, also of those that were not begun.

    `begin` makes a member of a run id and one of so many places. Ctrl-C and SIGTERM are passed on
    to all that run, and no further one is begun.
    """
    waiting = deque(run_ids)
    places = deque(range(parallel))
    at_work: list[Member] = []
    exit_codes: dict[str, int] = {}

    with _stop_signals() as stops:
        while waiting or at_work:
            stops.pass_on(at_work)
            if stops.first is not None:
                progress.is_stopped = True
                _, exit_code = STOP_SIGNALS[stops.first]
                exit_codes |= dict.fromkeys(waiting, exit_code)
                waiting.clear()

            while waiting and places:
                member = begin(waiting.popleft(), places.popleft())
                at_work.append(member)
                progress.started(member.run_id)

            for member in list(at_work):
                ended = member.poll(stops.first)
                if ended is not None:
                    exit_codes[member.run_id] = ended
                    at_work.remove(member)
                    places.append(member.place)
                    words = member.last_words()
                    progress.ended(member.run_id, member.attempt_id, ended, words)

            progress.update({member.run_id: member.attempt_id for member in at_work})
            time.sleep(POLL_S)
    return exit_codes


@dataclass(frozen=True)
class LocalMembers:
    """How the members of a group run here.

    parallel  how many at once
    threads   of each
    gpus      one of them for each member, in turn, by its number; () leaves the choice to the job
    """

    settings: Settings
    store: Store
    job: str
    parallel: int
    threads: int
    gpus: tuple[str, ...] = ()

    def run(self, run_ids: Sequence[str], progress: MemberProgress) -> dict[str, int]:
        """Run members to their end, as `run_members` does; -> run id -> exit code."""

        def begin(run_id: str, place: int) -> Member:
            return _Member(self, run_id, place)

        return run_members(run_ids, self.parallel, begin, progress)

    def environment(self, run_id: str, attempt_id: str, place: int) -> dict[str, str]:
        """The variables of a member's process."""
        environment = job_environment(self.settings, run_id, attempt_id)
        environment |= thread_environment(self.threads, os.environ)
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[place % len(self.gpus)]
        return environment


@dataclass
class _Member:
    """A member at work: in a process of this launcher, or in another one that is waited for."""

    members: LocalMembers
    run_id: str
    place: int
    attempt_id: str = ""
    _tries: int = 0
    _process: Process | None = None
    _stderr: IO[bytes] = field(default_factory=tempfile.TemporaryFile)

    def poll(self, stopped_by: int | None) -> int | None:
        """Begin it if nobody is at it; -> its exit code once it has ended."""
        if self._process is None:
            return self._begin(stopped_by)

        exit_code = self._process.poll()
        if exit_code is None:
            return None
        is_to_repeat = exit_code == TryAgainError.exit_code and stopped_by is None
        if is_to_repeat and (self._is_elsewhere() or self._tries < MOST_TRIES):
            self._process = None
            return None
        return self._recorded(exit_code)

    def _begin(self, stopped_by: int | None) -> int | None:
        if stopped_by is not None:
            return STOP_SIGNALS[stopped_by][1]
        if self._is_elsewhere():
            return None
        if self._is_committed():
            return EXIT_DONE

        self._tries += 1
        self.attempt_id = attempt_id_now()
        environment = self.members.environment(self.run_id, self.attempt_id, self.place)
        arguments = job_arguments(self.members.job)
        self._process = start_job(arguments, environment, self._stderr)
        return None

    def _is_elsewhere(self) -> bool:
        """Is another process of this computer at the run?"""
        work: Path = self.members.settings.work
        return is_at_work(work, self.members.store, self.run_id)

    def _is_committed(self) -> bool:
        with contextlib.suppress(TryAgainError):
            return read_commit(self.members.store, self.run_id) is not None
        return False

    def _recorded(self, exit_code: int) -> int:
        try:
            return record_end(self.members.store, self.run_id, self.attempt_id, exit_code)
        except TryAgainError:
            return TryAgainError.exit_code

    def send_signal(self, signum: int) -> None:
        """Pass a signal on to its process."""
        if self._process is not None:
            self._process.send_signal(signum)

    def last_words(self) -> str:
        """The end of what it wrote to standard error."""
        with self._stderr:
            return last_words(self._stderr)


class _Stops:
    """The signals by which a person stops the sweep: the first one, and those to be passed on."""

    def __init__(self) -> None:
        self.first: int | None = None
        self._waiting: deque[int] = deque()

    def note(self, signum: int, _frame: FrameType | None) -> None:
        if self.first is None:
            self.first = signum
        self._waiting.append(signum)

    def pass_on(self, members: Sequence[Member]) -> None:
        while self._waiting:
            signum = self._waiting.popleft()
            for member in members:
                member.send_signal(signum)


@contextlib.contextmanager
def _stop_signals() -> Iterator[_Stops]:
    """While the block runs, Ctrl-C and SIGTERM are noted: no process begins unseen by them."""
    stops = _Stops()
    before = {signum: signal.signal(signum, stops.note) for signum in STOP_BY_PERSON}
    try:
        yield stops
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def first_failure(exit_codes: Mapping[str, int]) -> int:
    """The exit code of a group: that of its first member that failed, else 0."""
    return next((code for code in exit_codes.values() if code), EXIT_DONE)
