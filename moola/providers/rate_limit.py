"""A rate limiter that keeps the calls made with one key below the provider's quota.

The quota comes with each answer, in the headers of the IETF draft `RateLimit header fields for
HTTP`: RateLimit-Policy tells the quota of each window, RateLimit what is left of it.
"""

import re
import threading
import time
from collections.abc import Mapping

BURST_CALLS = 10  # calls that need not wait after a pause
SHARE_OF_QUOTA = 0.5  # used at most, so that other processes with the same key have room
LITTLE_LEFT_FRACTION = 0.25  # of a window's quota: below it the rest is spread over the window
DEFAULT_CALLS_PER_MINUTE = 60  # the vendor's example, until an answer has told the quota
LONGEST_PAUSE_S = 60.0
WINDOW = re.compile(r'"(\w+)"((?:\s*;\s*\w+=\d+)+)')
PARAMETER = re.compile(r"(\w+)=(\d+)")

Windows = dict[str, dict[str, int]]


class RateLimiter:
    """Spaces calls: BURST_CALLS go at once, then half of the quota, less when little of it is left.

    Thread-safe.
    """

    def __init__(self) -> None:
        self._calls_per_s = DEFAULT_CALLS_PER_MINUTE / 60 * SHARE_OF_QUOTA
        self._free_calls = float(BURST_CALLS)
        self._updated = time.monotonic()
        self._lock = threading.Lock()

    @property
    def calls_per_s(self) -> float:
        """The rate once the burst is spent."""
        return self._calls_per_s

    def wait(self) -> None:
        """Sleep until the next call is due."""
        with self._lock:
            now = time.monotonic()
            earned = (now - self._updated) * self._calls_per_s
            self._free_calls = min(BURST_CALLS, self._free_calls + earned) - 1
            self._updated = now

            missing_calls = max(0.0, -self._free_calls)
            pause_s = min(missing_calls / self._calls_per_s, LONGEST_PAUSE_S)

        if pause_s:
            time.sleep(pause_s)

    def learn(self, headers: Mapping[str, str]) -> None:
        """Take over the quota from an answer's headers.

        RateLimit-Policy: "minute";q=60;w=60 is a quota of 60 calls in windows of 60 s; RateLimit:
        "minute";r=9;t=5 says that 9 of them are left for the next 5 s.
        """
        quotas = parse_windows(headers.get("RateLimit-Policy", ""))
        remaining = parse_windows(headers.get("RateLimit", ""))

        rates = [
            quota["q"] / quota["w"] * SHARE_OF_QUOTA
            for quota in quotas.values()
            if quota.get("q") and quota.get("w")
        ]
        for name, window in remaining.items():
            quota_calls = quotas.get(name, {}).get("q", DEFAULT_CALLS_PER_MINUTE)
            left_calls = window.get("r", 0)
            left_s = window.get("t", 0)
            if left_s and left_calls < quota_calls * LITTLE_LEFT_FRACTION:
                rates.append(max(left_calls, 1) / left_s)

        if rates:
            with self._lock:
                self._calls_per_s = min(rates)


def parse_windows(header: str) -> Windows:
    """The parameters of each window: '"minute";r=9;t=5' -> {"minute": {"r": 9, "t": 5}}."""
    windows: Windows = {}
    for name, parameters in WINDOW.findall(header):
        windows[name] = {key: int(value) for key, value in PARAMETER.findall(parameters)}
    return windows
