"""The provider's clock, as the Date headers of its answers show it."""

import time
from collections.abc import Mapping

from moola.store.http_date import http_date_s

DATE_TOLERANCE_S = 2.0  # a Date header has whole seconds, and the answer was on its way


class ProviderClock:
    """What time it is at the provider: that of its newest answer, plus what has passed since.

    The times in its answers, such as a pod's creation, are compared with this clock. This
    computer's own has finer units, and is used where it agrees with the header; it may be minutes
    or days off.
    """

    def __init__(self) -> None:
        self._offset_s: float | None = None  # from this computer's monotonic clock

    def learn(self, headers: Mapping[str, str]) -> None:
        """Take over the time of an answer's Date header, if it has a readable one."""
        date_s = http_date_s(headers.get("Date"))
        if date_s is None:
            return
        now = min(max(time.time(), date_s), date_s + DATE_TOLERANCE_S)
        self._offset_s = now - time.monotonic()

    def now(self) -> float:
        """Unix seconds; by this computer's clock while no answer has had a date."""
        if self._offset_s is None:
            return time.time()
        return time.monotonic() + self._offset_s
