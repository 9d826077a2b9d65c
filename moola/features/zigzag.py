"""Causal swings: a zigzag that turns when price has come back far enough, and knows only bars up to now.

A leg is up (+1) or down (-1), 0 before the first bar with a true range. While it runs, its extreme and its candidate
follow the highs (the lows of a down leg). It turns when the close has come back from the extreme by k x ATR, or when a
young candidate and the bar's far end lie far enough apart; its extreme is then the last confirmed swing.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import njit, types

UNSET = -1  # in place of a bar number


class Swings(NamedTuple):
    """The zigzag after a bar. Prices of bars that are UNSET mean nothing."""

    trend: int = 0
    extreme_bar: int = UNSET
    extreme_price: float = 0.0
    candidate_bar: int = UNSET
    candidate_price: float = 0.0
    high_bar: int = UNSET  # the last confirmed swing high
    high_price: float = 0.0
    low_bar: int = UNSET  # the last confirmed swing low
    low_price: float = 0.0


_NUMBER = {int: types.int64, float: types.float64}
SWINGS_TYPE = types.NamedTuple([_NUMBER[t] for t in Swings.__annotations__.values()], Swings)  # type: ignore[no-untyped-call]
PRICES_TYPE = types.Array(types.float64, 1, "C", readonly=True)

LEG, HIGH_PRICE, SINCE_HIGH, LOW_PRICE, SINCE_LOW = range(N_TRACKS := 5)  # rows of what `follow` fills


@njit(
    SWINGS_TYPE(
        *[SWINGS_TYPE, types.int64, PRICES_TYPE, PRICES_TYPE, PRICES_TYPE, types.float64[::1]],
        *[types.float64, types.int64, types.float64, types.float64[:, ::1]],
    ),
    cache=True,
    nogil=True,
    error_model="numpy",
)
def follow(
    swings: Swings,
    first_bar: int,
    highs: Any,
    lows: Any,
    closes: Any,
    atrs: Any,
    k: float,
    lookback: int,
    retrace: float,
    tracks: Any,
) -> Swings:
    """The zigzag after further closed bars [n], number `first_bar` on. `retrace` is the hybrid rule's, in ATR; infinity
    switches that rule off. `tracks` [N_TRACKS, >= n] is filled with what holds after each bar: the leg, and of the last
    confirmed swings the price and the bars since their own, which is -infinity before there is one.

    A down leg is the up leg of the negated prices. Negation is exact, so one code serves both and rounds like two; so
    is a bar's number as float64, which the tracks need.
    """
    leg, extreme_bar, extreme = float(swings.trend), float(swings.extreme_bar), swings.extreme_price
    candidate_bar, candidate = float(swings.candidate_bar), swings.candidate_price
    high_bar = float(swings.high_bar) if swings.high_bar != UNSET else np.inf
    low_bar = float(swings.low_bar) if swings.low_bar != UNSET else np.inf
    high_price, low_price = swings.high_price, swings.low_price
    start = 0
    while leg == 0.0 and start < len(closes):
        if atrs[start] > 0.0:
            leg, extreme_bar, extreme = 1.0, float(first_bar + start), closes[start]
        tracks[LEG, start], tracks[HIGH_PRICE, start], tracks[LOW_PRICE, start] = leg, 0.0, 0.0
        tracks[SINCE_HIGH, start] = tracks[SINCE_LOW, start] = -np.inf
        start += 1
    extreme = leg * extreme  # from here to the return these two point where the leg is heading
    candidate = leg * candidate if candidate_bar != UNSET else -np.inf
    for j in range(start, len(closes)):
        bar, high, low, close, atr = float(first_bar + j), highs[j], lows[j], closes[j], atrs[j]
        up = leg > 0.0
        top = high if up else -low
        bottom = low if up else -high  # the bar's far end
        if top > extreme:
            extreme_bar, extreme = bar, top
        if top > candidate:
            candidate_bar, candidate = bar, top
        by_close = extreme - leg * close >= k * atr
        by_candidate = (bar - candidate_bar <= lookback) & (candidate - bottom >= retrace * atr)
        if (atr > 0.0) & (by_close | by_candidate):
            if up:
                high_bar, high_price = extreme_bar, extreme
            else:
                low_bar, low_price = extreme_bar, -extreme
            leg = -leg
            extreme_bar = candidate_bar = bar
            extreme = candidate = -bottom
        tracks[LEG, j] = leg
        tracks[HIGH_PRICE, j], tracks[SINCE_HIGH, j] = high_price, bar - high_bar
        tracks[LOW_PRICE, j], tracks[SINCE_LOW, j] = low_price, bar - low_bar
    extreme, candidate = leg * extreme, leg * candidate if candidate_bar != UNSET else 0.0
    high_number = int(high_bar) if high_bar != np.inf else UNSET
    low_number = int(low_bar) if low_bar != np.inf else UNSET
    return Swings(
        *(int(leg), int(extreme_bar), extreme, int(candidate_bar), candidate),
        *(high_number, high_price, low_number, low_price),
    )
