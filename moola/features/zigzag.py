"""Causal swings: a zigzag that turns when price has come back far enough, and knows only bars up to now.

A leg is up (+1) or down (-1), 0 before the first bar with a true range. While it runs, its extreme and its candidate
follow the highs (the lows of a down leg). It turns when the close has come back from the extreme by k x ATR, or when a
young candidate and the bar's far end lie far enough apart; its extreme is then the last confirmed swing.
"""

from typing import NamedTuple

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


@njit(
    SWINGS_TYPE(SWINGS_TYPE, types.int64, *[types.float64] * 5, types.int64, types.float64),
    cache=True,
    nogil=True,
    error_model="numpy",
)
def next_swings(
    swings: Swings, bar: int, high: float, low: float, close: float, atr: float, k: float, lookback: int, retrace: float
) -> Swings:
    """The zigzag after one more closed bar. `retrace` is the hybrid rule's, in ATR; infinity switches that rule off.

    A down leg is the up leg of the negated prices. Negation is exact, so one code serves both and rounds like two.
    """
    trend, extreme_bar, extreme, candidate_bar, candidate, high_bar, high_price, low_bar, low_price = swings
    if trend == 0:
        if bar >= 1 and atr > 0.0:
            trend, extreme_bar, extreme = 1, bar, close
        return Swings(trend, extreme_bar, extreme, candidate_bar, candidate, high_bar, high_price, low_bar, low_price)
    up, sign = trend > 0, float(trend)
    top = high if up else -low  # where the leg is heading
    bottom = low if up else -high  # the bar's far end
    extreme, candidate = sign * extreme, sign * candidate
    if top > extreme:
        extreme_bar, extreme = bar, top
    if (candidate_bar == UNSET) | (top > candidate):
        candidate_bar, candidate = bar, top
    by_close = extreme - sign * close >= k * atr
    by_candidate = (bar - candidate_bar <= lookback) & (candidate - bottom >= retrace * atr)
    if (atr > 0.0) & (by_close | by_candidate):
        if up:
            high_bar, high_price = extreme_bar, extreme
        else:
            low_bar, low_price = extreme_bar, -extreme
        trend = -trend
        extreme_bar = candidate_bar = bar
        extreme = candidate = bottom
    return Swings(
        trend, extreme_bar, sign * extreme, candidate_bar, sign * candidate, high_bar, high_price, low_bar, low_price
    )
