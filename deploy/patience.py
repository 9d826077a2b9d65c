"""How to call a service that may be slow, busy or down: a pace under its quota, and retries with growing pauses."""

import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from moola.errors import TryAgainError

T = TypeVar("T")
LONGEST_WAIT_S = 60.0
BURST = 10  # calls that are free after a pause
WINDOW = re.compile(r'"(\w+)"((?:\s*;\s*\w+=\d+)+)')


class NotAnsweredError(TryAgainError):
    """A call that failed in passing. `harmless`: it certainly had no effect, so even a create may be sent again."""

    def __init__(self, message: str, *, harmless: bool = False, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.harmless, self.retry_after_s = harmless, retry_after_s


def patiently(call: Callable[[], T], *, safe: bool = True, tries: int = 5, first_wait_s: float = 0.5) -> T:
    """The call's value, trying again after NotAnsweredError; its last one is raised.

    `safe`: the call may be carried out twice; otherwise only harmless failures are tried again. Pauses double from
    `first_wait_s`, never end before the server's Retry-After, and are drawn out by up to a half, so that clients
    which failed together do not come back together. A Retry-After above LONGEST_WAIT_S is not waited for.
    """
    for done in range(tries):
        try:
            return call()
        except NotAnsweredError as error:
            wait = first_wait_s * 2**done if error.retry_after_s is None else error.retry_after_s
            if done + 1 == tries or not (safe or error.harmless) or wait > LONGEST_WAIT_S:
                raise
            time.sleep(wait * random.uniform(1.0, 1.5))
    raise AssertionError("tries must be at least 1")


class Pace:
    """Spaces the calls made with one key: BURST are free, then half of the quota, and less when little of it is left.

    Until an answer has told the quota it is taken for 60 calls a minute, the vendor's example.
    """

    def __init__(self) -> None:
        self._per_s, self._free, self._at = 0.5, float(BURST), time.monotonic()
        self._lock = threading.Lock()

    @property
    def per_s(self) -> float:
        """Calls per second once the burst is spent."""
        return self._per_s

    def wait(self) -> None:
        """Sleep until the next call is due."""
        with self._lock:
            now = time.monotonic()
            self._free = min(BURST, self._free + (now - self._at) * self._per_s) - 1
            self._at = now
            pause = min(max(0.0, -self._free / self._per_s), LONGEST_WAIT_S)
        if pause:
            time.sleep(pause)

    def learn(self, headers: Mapping[str, str]) -> None:
        """Take the quota (RateLimit-Policy: "minute";q=60;w=60) and what is left (RateLimit: "minute";r=9;t=5)."""
        policy, left = windows(headers.get("RateLimit-Policy", "")), windows(headers.get("RateLimit", ""))
        rates = [p["q"] / p["w"] / 2 for p in policy.values() if p.get("q") and p.get("w")]
        for name, now in left.items():
            if now.get("t") and now.get("r", 0) < policy.get(name, {}).get("q", 60) / 4:
                rates.append(max(now.get("r", 0), 1) / now["t"])
        if rates:
            with self._lock:
                self._per_s = min(rates)


def windows(header: str) -> dict[str, dict[str, int]]:
    """The parameters by window: '"minute";r=9;t=5, "hour";r=0;t=60' -> {"minute": {"r": 9, "t": 5}, "hour": ...}."""
    return {name: {k: int(v) for k, v in re.findall(r"(\w+)=(\d+)", rest)} for name, rest in WINDOW.findall(header)}
