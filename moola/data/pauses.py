"""Pauses in a series, over which no move reaches: the daily halt, a night, a weekend."""

import numpy as np
import pandas as pd

from moola.data.series import MINUTE_NS
from moola.features.arrays import Ints
from moola.specs import SESSION_BREAK_MINUTES


def pause_over(times: pd.DatetimeIndex, first: Ints, last: Ints) -> int:
    """Minutes from one bar to the next over which no move reaches.

    That is a session break; or more, where a labelled move, from row `first` [M] to `last` [M],
    reaches over one.
    """
    steps = np.diff(times.as_unit("ns").asi8) // MINUTE_NS
    inside = [steps[a:b].max(initial=0) for a, b in zip(first, last, strict=True)]
    return int(max([SESSION_BREAK_MINUTES, *(step + 1 for step in inside)]))


def stretches(times: pd.DatetimeIndex, pause: int) -> Ints:
    """[n] the number of each bar's stretch: between two there are `pause` minutes or more, or the
    end of one market.
    """
    opened = times.as_unit("ns").asi8
    steps = np.diff(opened, prepend=opened[:1] - MINUTE_NS)
    is_first = (steps >= pause * MINUTE_NS) | (steps <= 0)
    return np.cumsum(is_first)
