"""The signals that end a job, and the state each one ends it in."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

from moola import errors
from moola.runs.records import State

# signal -> (state, exit code)
STOP_SIGNALS: dict[int, tuple[State, int]] = {
    signal.SIGINT: (State.CANCELLED, errors.EXIT_CANCELLED),
    signal.SIGTERM: (State.TERMINATED, errors.EXIT_TERMINATED),
}
if hasattr(signal, "SIGXCPU"):  # not on Windows, where only the launcher's remote commands run
    # "Time limit exceeded": our own supervisor sends it at the deadline.
    STOP_SIGNALS[signal.SIGXCPU] = (State.TIMED_OUT, errors.EXIT_TIME_LIMIT)

Handler = Callable[[int, FrameType | None], None]


class Stopped(BaseException):
    """A stop signal reached the job. Not an Exception: no `except Exception` may swallow it."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.state, self.exit_code = STOP_SIGNALS[signum]


@contextlib.contextmanager
def stop_on_signals() -> Iterator[None]:
    """Stop signals raise `Stopped` in the main thread while the block runs."""
    with _handled_by(_raise_stopped):
        yield


@contextlib.contextmanager
def held_signals() -> Iterator[Callable[[], int | None]]:
    """Stop signals are noted, not raised, while the block runs.

    For work that has to reach a safe point before it stops. Yields a function that returns the
    number of the first signal received, or None. The end of the block raises `Stopped` if there
    was one.
    """
    received: list[int] = []

    def note(signum: int, _frame: FrameType | None) -> None:
        received.append(signum)

    def first_received() -> int | None:
        return received[0] if received else None

    try:
        with _handled_by(note):
            yield first_received
    finally:
        if received:
            _raise_stopped(received[0], None)


@contextlib.contextmanager
def _handled_by(handler: Handler) -> Iterator[None]:
    before = {signum: signal.signal(signum, handler) for signum in STOP_SIGNALS}
    try:
        yield
    finally:
        for signum, previous in before.items():
            signal.signal(signum, previous)


def _raise_stopped(signum: int, _frame: FrameType | None) -> None:
    # The first signal is enough: another one must not cut the clean-up short.
    for each in STOP_SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise Stopped(signum)
