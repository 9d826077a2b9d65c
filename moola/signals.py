"""The signals that end a job, and the state each one ends it in."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

from moola import errors

# signal -> (state, exit code). SIGXCPU, "time limit exceeded", comes from our own supervisor at the deadline.
STOP_SIGNALS: dict[int, tuple[str, int]] = {
    signal.SIGINT: ("cancelled", errors.EXIT_CANCELLED),
    signal.SIGTERM: ("terminated", errors.EXIT_TERMINATED),
}
if hasattr(signal, "SIGXCPU"):  # not on Windows, where only the launcher's remote commands run
    STOP_SIGNALS[signal.SIGXCPU] = ("timed_out", errors.EXIT_TIME_LIMIT)


class Stopped(BaseException):
    """A stop signal reached the job. Not an Exception: no `except Exception` on the way may swallow it."""

    def __init__(self, signum: int, _frame: FrameType | None = None) -> None:
        super().__init__(signal.Signals(signum).name)
        self.state, self.exit_code = STOP_SIGNALS[signum]


def _raise_stopped(signum: int, frame: FrameType | None) -> None:
    for each in STOP_SIGNALS:
        signal.signal(each, signal.SIG_IGN)  # the first one is enough; the clean-up must not be cut short
    raise Stopped(signum, frame)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[None]:
    """Stop signals raise `Stopped` in the main thread while the block runs."""
    before = {each: signal.signal(each, _raise_stopped) for each in STOP_SIGNALS}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@contextlib.contextmanager
def held_signals() -> Iterator[Callable[[], int | None]]:
    """Stop signals are noted, not raised, while the block runs; yields what tells the first one's number.

    For work that must reach a good place before it stops. The block's end raises `Stopped` if one has come.
    """
    came: list[int] = []
    before = {each: signal.signal(each, lambda signum, _: came.append(signum)) for each in STOP_SIGNALS}
    try:
        yield lambda: came[0] if came else None
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        if came:
            _raise_stopped(came[0], None)
