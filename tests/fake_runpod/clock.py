"""The clock of the fake's delays and of its meter.

Tests speed it up; timestamps in answers stay on the wall clock.
"""

import threading
import time


class Clock:
    """Seconds since it was made, `speed` times as fast as the wall clock.

    The speed may change at any time.
    """

    def __init__(self, speed: float = 1.0) -> None:
        self._speed, self._mark, self._base = speed, time.monotonic(), 0.0
        self._lock = threading.Lock()

    @property
    def speed(self) -> float:
        return self._speed

    @speed.setter
    def speed(self, speed: float) -> None:
        with self._lock:
            now = time.monotonic()
            self._base += (now - self._mark) * self._speed
            self._mark, self._speed = now, speed

    def now(self) -> float:
        with self._lock:
            return self._base + (time.monotonic() - self._mark) * self._speed

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait `seconds` of this clock or until the event is set; says whether it was set."""
        end = self.now() + seconds
        while (left := end - self.now()) > 0:
            if event.wait(min(left / self._speed, 0.05)):
                return True
        return event.is_set()
