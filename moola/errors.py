"""Every exception moola raises on purpose, and the exit code each one ends a process with.

MoolaError
  DataError           input breaks a stated rule                 3, never retried
  ArtifactError       missing, truncated or wrong sha256         4
    ConflictError     a write-once key already holds other bytes 4
  TrainingError       loss or gradient not finite                5
  LaunchError         the provider refused                       6
    NoCapacityError   try the next candidate                     6
    AuthError         stop                                       6
      ExpiredError    the store's session token has ended        6
  TryAgainError       the store or the network did not answer    75

A message names the rule, the offending value and the place. Any other exception is a fault of
moola's, and ends a process with 70; where a full disk is behind it, with 75.
"""

import errno
from collections.abc import Iterator

EXIT_DONE = 0
EXIT_GATES = 1  # a gate failed under --require-gates
EXIT_USAGE = 2
EXIT_FAULT = 70  # of moola's own
EXIT_TIME_LIMIT = 124
EXIT_CANCELLED = 130  # 128 + SIGINT
EXIT_TERMINATED = 143  # 128 + SIGTERM


class MoolaError(Exception):
    """Base of all errors below; `exit_code` is the process's."""

    exit_code = EXIT_FAULT


class DataError(MoolaError):
    """Input breaks a stated rule.

    Running it again gives the same answer, so it is never retried.
    """

    exit_code = 3


class ArtifactError(MoolaError):
    """An artifact is missing, truncated, or its sha256 is not the recorded one."""

    exit_code = 4


class ConflictError(ArtifactError):
    """A write-once key already exists and holds other bytes."""


class TrainingError(MoolaError):
    """Loss or gradient is not finite."""

    exit_code = 5


class LaunchError(MoolaError):
    """The provider refused the launch."""

    exit_code = 6


class NoCapacityError(LaunchError):
    """Nothing free of this kind: the next candidate may have it."""


class AuthError(LaunchError):
    """The key is missing, wrong, or lacks the scope."""


class ExpiredError(AuthError):
    """The session token of the store's keys has ended: nothing can be stored with it any more."""


class TryAgainError(MoolaError):
    """The store or the network did not answer after all retries."""

    exit_code = 75


def exit_code_of(error: BaseException) -> int:
    """The exit code of a process that this error ends."""
    if is_disk_full(error):
        return TryAgainError.exit_code
    if isinstance(error, MoolaError):
        return error.exit_code
    return EXIT_FAULT


DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
DISK_FULL_TEXTS = (  # of libraries that raise errors of their own: torch, sqlite, pyarrow
    "no space left on device",
    "disk is full",
    "disk quota exceeded",
)


def is_disk_full(error: BaseException) -> bool:
    """Whether a full disk is behind an error, also one that a library has wrapped."""
    return any(_says_disk_full(cause) for cause in causes(error))


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and those that it was raised from or during."""
    known: set[int] = set()
    cause: BaseException | None = error

    while cause is not None and id(cause) not in known:
        yield cause
        known.add(id(cause))
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


def _says_disk_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return True
    if isinstance(error, MoolaError):
        return False  # its own words may quote a stored text; its cause counts
    text = str(error).lower()
    return any(words in text for words in DISK_FULL_TEXTS)
