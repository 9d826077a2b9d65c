"""Every exception moola raises on purpose, and the exit code each one ends a process with.

MoolaError
  DataError           input breaks a stated rule                 3, never retried
  ArtifactError       missing, truncated or wrong sha256         4
    ConflictError     a write-once key already holds other bytes 4
  TrainingError       loss or gradient not finite                5
  LaunchError         the provider refused                       6
    NoCapacityError   try the next candidate                     6
    AuthError         stop                                       6
  TryAgainError       the store or the network did not answer    75

A message names the rule, the offending value and the place.
"""

EXIT_DONE = 0
EXIT_USAGE = 2
EXIT_TIME_LIMIT = 124
EXIT_CANCELLED = 130  # 128 + SIGINT
EXIT_TERMINATED = 143  # 128 + SIGTERM


class MoolaError(Exception):
    """Base of all errors below; `exit_code` is the process's."""

    exit_code = 1


class DataError(MoolaError):
    """Input breaks a stated rule. Running it again gives the same answer, so it is never retried."""

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


class TryAgainError(MoolaError):
    """The store or the network did not answer after all retries."""

    exit_code = 75
