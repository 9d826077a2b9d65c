"""Causal swings: a zigzag that turns when price has come back far enough, and knows only bars up to now.

A leg is up (+1) or down (-1), 0 before the first bar with a true range. While it runs, its extreme and its candidate
follow the highs (the lows of a down leg). It turns when the close has come back from the extreme by k x ATR, or when a
young candidate and the bar's far end lie far enough apart; its extreme is then the last confirmed swing.
"""

from typing import Any

import numpy as np
from numba import from_dtype, njit, types

UNSET = -1  # in place of a bar number
SWINGS = np.dtype(
    [
        ("trend", np.int64),  # of the leg: +1, -1 or 0
        ("extreme_bar", np.int64),
        ("extreme_price", np.float64),
        ("candidate_bar", np.int64),
        ("candidate_price", np.float64),
        ("high_bar", np.int64),  # the last confirmed swing high
        ("high_price", np.float64),
        ("low_bar", np.int64),  # the last confirmed swing low
        ("low_price", np.float64),
    ],
    align=True,
)
SWINGS_TYPE = from_dtype(SWINGS)


def no_swings() -> np.ndarray:
    """The swings before the first bar: SWINGS [1]."""
    swings = np.zeros(1, SWINGS)
    for name in ("extreme_bar", "candidate_bar", "high_bar", "low_bar"):
        swings[name] = UNSET
    return swings


@njit(
    types.void(SWINGS_TYPE, *[types.int64] + [types.float64] * 4, types.float64, types.int64, types.float64),
    cache=True,
    nogil=True,
)
def update_swings(
    swings: Any, bar: int, high: float, low: float, close: float, atr: float, k: float, lookback: int, retrace: float
) -> None:
    """Take in one closed bar. `retrace` is the hybrid rule's, in ATR; infinity switches that rule off.

    A down leg is the up leg of the negated prices. Negation is exact, so one code serves both and rounds like two.
    """
    if swings.trend == 0:
        if bar >= 1 and atr > 0.0:
            swings.trend, swings.extreme_bar, swings.extreme_price = 1, bar, close
        return
    sign = float(swings.trend)
    top = high if swings.trend > 0 else -low  # where the leg is heading
    bottom = low if swings.trend > 0 else -high  # the bar's far end
    extreme, candidate = sign * swings.extreme_price, sign * swings.candidate_price
    extreme_bar, candidate_bar = swings.extreme_bar, swings.candidate_bar
    if top > extreme:
        extreme_bar, extreme = bar, top
    if candidate_bar == UNSET or top > candidate:
        candidate_bar, candidate = bar, top
    by_close = extreme - sign * close >= k * atr
    by_candidate = bar - candidate_bar <= lookback and candidate - bottom >= retrace * atr
    if atr > 0.0 and (by_close or by_candidate):
        if swings.trend > 0:
            swings.high_bar, swings.high_price = extreme_bar, extreme
        else:
            swings.low_bar, swings.low_price = extreme_bar, -extreme
        swings.trend = -swings.trend
        extreme_bar = candidate_bar = bar
        extreme = candidate = bottom
    swings.extreme_bar, swings.extreme_price = extreme_bar, sign * extreme
    swings.candidate_bar, swings.candidate_price = candidate_bar, sign * candidate
