"""What a series of bars is besides its prices: the step from one bar to the next, and its gaps."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from moola.specs import SESSION_BREAK_MINUTES

MINUTE_NS = 60_000_000_000
NO_TIME = np.iinfo(np.int64).min  # how numpy stores NaT


@dataclass(frozen=True)
class Gaps:
    """Places where the next bar is more than a minute later."""

    count: int
    longest_minutes: int  # from one bar to the next; 0 where there is no gap
    longest_after: pd.Timestamp | None  # the bar before the longest gap, the first of equals
    session_breaks: int  # gaps of at least SESSION_BREAK_MINUTES

    def as_dict(self) -> dict[str, object]:
        """The same, ready for JSON: times as ISO text in UTC."""
        after = self.longest_after

        return {
            "count": self.count,
            "longest_minutes": self.longest_minutes,
            "longest_after": None if after is None else after.isoformat(),
            "session_breaks": self.session_breaks,
        }


def find_gaps(times: pd.DatetimeIndex) -> Gaps:
    """The gaps between bars that opened at `times` (ns, increasing)."""
    steps = np.diff(times.asi8)
    before_gap = np.flatnonzero(steps >= 2 * MINUTE_NS)
    gap_minutes = steps[before_gap] // MINUTE_NS

    if not len(gap_minutes):
        return Gaps(0, 0, None, 0)

    longest = int(gap_minutes.argmax())
    is_session_break = gap_minutes >= SESSION_BREAK_MINUTES

    return Gaps(
        count=len(gap_minutes),
        longest_minutes=int(gap_minutes[longest]),
        longest_after=times[before_gap[longest]],
        session_breaks=int(is_session_break.sum()),
    )
