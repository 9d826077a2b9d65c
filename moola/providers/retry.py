"""Retries with exponential backoff, for calls to a service that may be slow, busy or down."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

from moola.errors import TryAgainError

T = TypeVar("T")
LONGEST_WAIT_S = 60.0  # a longer Retry-After is not waited for
JITTER = 0.5  # a pause is drawn out by up to this fraction


class TransientError(TryAgainError):
    """A call that failed, and may succeed when it is made again.

    had_no_effect    it was certainly not carried out, so that even a create may be sent again
    retry_after_s    the pause the server asks for, None where it names none
    """

    def __init__(
        self,
        message: str,
        *,
        had_no_effect: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.had_no_effect = had_no_effect
        self.retry_after_s = retry_after_s


def with_retries(
    call: Callable[[], T],
    *,
    idempotent: bool = True,
    tries: int = 5,
    first_wait_s: float = 0.5,
) -> T:
    """The call's value; after a TransientError it is made again, up to `tries` times in all.

    A call that is not idempotent is repeated only after failures that had no effect. Pauses double
    from `first_wait_s`, or are what the server's Retry-After says, and are drawn out by up to a
    half, so that clients that failed together do not come back together. Raises the last
    TransientError; a Retry-After above LONGEST_WAIT_S ends the tries at once.
    """
    for failures in range(tries):
        try:
            return call()
        except TransientError as error:
            wait_s = error.retry_after_s
            if wait_s is None:
                wait_s = first_wait_s * 2**failures

            is_last_try = failures + 1 == tries
            may_repeat = idempotent or error.had_no_effect
            if is_last_try or not may_repeat or wait_s > LONGEST_WAIT_S:
                raise

            time.sleep(wait_s * random.uniform(1.0, 1.0 + JITTER))

    raise AssertionError("tries must be at least 1")
