"""Causal swings: a zigzag that turns when price has come back far enough, and never looks ahead.

A leg is up (+1) or down (-1), 0 before the first bar with a true range. While it runs, its extreme
and its candidate follow the highs (the lows of a down leg). It turns when the close has come back
from the extreme by k x ATR, or when a young candidate and the bar's far end lie far enough apart;
its extreme is then the last confirmed swing.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numba import njit, types

from moola.features.arrays import Floats

Function = TypeVar("Function", bound=Callable[..., object])

UNSET = -1  # in place of a bar number


def compiled(signature: Any) -> Callable[[Function], Function]:
    """Decorator: compiled for that signature of numba's when imported, or loaded from its cache."""
    decorate: Callable[[Function], Function]
    decorate = njit(signature, cache=True, nogil=True, error_model="numpy")
    return decorate


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


class _Course(NamedTuple):
    """The same while bars are taken in, all float64, which the tracks need.

    A bar's number is exact as float64. `extreme` and `candidate` are prices times `leg`: a down leg
    is the up leg of the negated prices. Negation is exact, so one code serves both and rounds like
    two. `high` and `low` are the prices of the last confirmed swings. While unset, `candidate` is
    -infinity, `high_bar` and `low_bar` are infinity.
    """

    leg: float
    extreme_bar: float
    extreme: float
    candidate_bar: float
    candidate: float
    high_bar: float
    high: float
    low_bar: float
    low: float


_NUMBER = {int: types.int64, float: types.float64}
_SWINGS_FIELDS = [_NUMBER[kind] for kind in Swings.__annotations__.values()]

SWINGS_TYPE = types.NamedTuple(_SWINGS_FIELDS, Swings)  # type: ignore[no-untyped-call]
_COURSE_TYPE = types.NamedUniTuple(  # type: ignore[no-untyped-call]
    types.float64, len(_Course._fields), _Course
)
_STARTED_TYPE = types.Tuple([_COURSE_TYPE, types.int64])  # type: ignore[no-untyped-call]
PRICES_TYPE = types.Array(types.float64, 1, "C", readonly=True)
VALUES_TYPE = types.float64[::1]
TRACKS_TYPE = types.float64[:, ::1]

LEG, HIGH_PRICE, SINCE_HIGH, LOW_PRICE, SINCE_LOW = range(5)  # rows of the tracks
N_TRACKS = 5


@compiled(_COURSE_TYPE(SWINGS_TYPE))
def _to_course(swings: Swings) -> _Course:
    leg = float(swings.trend)
    has_candidate = swings.candidate_bar != UNSET

    return _Course(
        leg,
        float(swings.extreme_bar),
        leg * swings.extreme_price,
        float(swings.candidate_bar),
        leg * swings.candidate_price if has_candidate else -np.inf,
        float(swings.high_bar) if swings.high_bar != UNSET else np.inf,
        swings.high_price,
        float(swings.low_bar) if swings.low_bar != UNSET else np.inf,
        swings.low_price,
    )


@compiled(SWINGS_TYPE(_COURSE_TYPE))
def _to_swings(course: _Course) -> Swings:
    leg = course.leg
    has_candidate = course.candidate_bar != UNSET

    return Swings(
        int(leg),
        int(course.extreme_bar),
        leg * course.extreme,
        int(course.candidate_bar),
        leg * course.candidate if has_candidate else 0.0,
        int(course.high_bar) if course.high_bar != np.inf else UNSET,
        course.high,
        int(course.low_bar) if course.low_bar != np.inf else UNSET,
        course.low,
    )


@compiled(
    _STARTED_TYPE(
        _COURSE_TYPE,
        types.int64,
        PRICES_TYPE,
        VALUES_TYPE,
        TRACKS_TYPE,
    )
)
def _start(
    course: _Course,
    first_bar: int,
    closes: Floats,
    atrs: Floats,
    tracks: Floats,
) -> tuple[_Course, int]:
    """The zigzag once a bar has a true range, and how many bars are done by then.

    That bar sets the leg up and the extreme at its close, and is done; so are those before it.
    """
    leg, extreme_bar, extreme, candidate_bar, candidate, high_bar, high, low_bar, low = course
    n_done = 0

    while leg == 0.0 and n_done < len(closes):
        if atrs[n_done] > 0.0:
            leg = 1.0
            extreme_bar = float(first_bar + n_done)
            extreme = closes[n_done]

        tracks[LEG, n_done] = leg
        tracks[HIGH_PRICE, n_done] = 0.0
        tracks[LOW_PRICE, n_done] = 0.0
        tracks[SINCE_HIGH, n_done] = -np.inf
        tracks[SINCE_LOW, n_done] = -np.inf
        n_done += 1

    started = _Course(
        leg, extreme_bar, extreme, candidate_bar, candidate, high_bar, high, low_bar, low
    )
    return started, n_done


@compiled(
    SWINGS_TYPE(
        SWINGS_TYPE,
        types.int64,
        PRICES_TYPE,
        PRICES_TYPE,
        PRICES_TYPE,
        VALUES_TYPE,
        types.float64,
        types.int64,
        types.float64,
        TRACKS_TYPE,
    )
)
def advance_swings(
    swings: Swings,
    first_bar: int,
    highs: Floats,
    lows: Floats,
    closes: Floats,
    atrs: Floats,
    k: float,
    lookback: int,
    retrace: float,
    tracks: Floats,
) -> Swings:
    """The zigzag after further closed bars [n], number `first_bar` on.

    `retrace` is the hybrid rule's, in ATR; infinity switches that rule off. `tracks` [N_TRACKS, >=
    n] is filled with what holds after each bar: the leg, and of the last confirmed swings the price
    and the bars since their own, which is -infinity before there is one.
    """
    course, n_done = _start(_to_course(swings), first_bar, closes, atrs, tracks)
    leg, extreme_bar, extreme, candidate_bar, candidate, high_bar, high, low_bar, low = course

    for j in range(n_done, len(closes)):
        bar = float(first_bar + j)
        atr = atrs[j]
        up = leg > 0.0
        top = highs[j] if up else -lows[j]
        bottom = lows[j] if up else -highs[j]  # the bar's far end

        if top > extreme:
            extreme_bar = bar
            extreme = top
        if top > candidate:
            candidate_bar = bar
            candidate = top

        by_close = extreme - leg * closes[j] >= k * atr
        by_candidate = (bar - candidate_bar <= lookback) & (candidate - bottom >= retrace * atr)

        if (atr > 0.0) & (by_close | by_candidate):
            if up:
                high_bar = extreme_bar
                high = extreme
            else:
                low_bar = extreme_bar
                low = -extreme

            leg = -leg
            extreme_bar = candidate_bar = bar
            extreme = candidate = -bottom

        tracks[LEG, j] = leg
        tracks[HIGH_PRICE, j] = high
        tracks[SINCE_HIGH, j] = bar - high_bar
        tracks[LOW_PRICE, j] = low
        tracks[SINCE_LOW, j] = bar - low_bar

    course = _Course(
        leg, extreme_bar, extreme, candidate_bar, candidate, high_bar, high, low_bar, low
    )
    return _to_swings(course)
