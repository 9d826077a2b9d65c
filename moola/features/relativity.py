"""The 11 features of a bar: price relative to its own range, the recent range and the last swings.

r = high - low, R = r, or 1 where r is 0; every value is clipped to its range. Bar i uses bars 0..i
only.

  0 open_norm           (open - low) / R
  1 close_norm          (close - low) / R
  2 body_pct            (close - open) / R
  3 upper_wick_pct      (high - max(open, close)) / R
  4 lower_wick_pct      (min(open, close) - low) / R
  5 range_z             r / ema of r, 0 where that is 0
  6 dist_to_prev_SH     (last confirmed swing high - close) / ATR, 0 before there is one
  7 dist_to_prev_SL     (close - last confirmed swing low) / ATR, 0 before there is one
  8 bars_since_SH_norm  bars since that high's own bar / 105, 0 before there is one
  9 bars_since_SL_norm  the same for the low
 10 expansion_proxy     range_z x direction of the leg x body_pct

No constant here is a price: prices of any size and sign will do, multiplied by a power of two they
give the same bits. Where the ATR is 0 a distance is its range's end on the side of its sign, 0 if
it is 0.

Arithmetic is float64, in the order of these formulas and without fused multiply-add. The average
true range is summed anew at each bar, from the oldest true range to the newest, and divided by
their number: a running sum would drift, and its value would depend on where the series began.
"""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numba import types

from moola import PRICES, WINDOW
from moola.errors import DataError
from moola.features import zigzag
from moola.features.arrays import Float32s, Floats
from moola.features.zigzag import (
    HIGH_PRICE,
    LEG,
    LOW_PRICE,
    N_TRACKS,
    PRICES_TYPE,
    SINCE_HIGH,
    SINCE_LOW,
    SWINGS_TYPE,
    TRACKS_TYPE,
    VALUES_TYPE,
    Swings,
    advance_swings,
    compiled,
)
from moola.specs import FeatureConfig

FEATURE_RANGES = {
    "open_norm": (0.0, 1.0),
    "close_norm": (0.0, 1.0),
    "body_pct": (-1.0, 1.0),
    "upper_wick_pct": (0.0, 1.0),
    "lower_wick_pct": (0.0, 1.0),
    "range_z": (0.0, 3.0),
    "dist_to_prev_SH": (-3.0, 3.0),
    "dist_to_prev_SL": (-3.0, 3.0),
    "bars_since_SH_norm": (0.0, 3.0),
    "bars_since_SL_norm": (0.0, 3.0),
    "expansion_proxy": (-2.0, 2.0),
}
FEATURE_NAMES = tuple(FEATURE_RANGES)
N_FEATURES = len(FEATURE_NAMES)
# Divides a distance where the ATR is 0: the smallest number above 0, so that any other is clipped.
ZERO_ATR = float(np.finfo(np.float64).smallest_subnormal)
BLOCK_BARS = 256  # at a time: what one step leaves for the next stays in the nearest cache


class Carry(NamedTuple):
    """What one bar hands to the next, besides the last true ranges."""

    n_bars: int = 0
    ema_range: float = 0.0
    previous_close: float = 0.0
    swings: Swings = Swings()


class Constants(NamedTuple):
    """A FeatureConfig as the compiled code takes it; `retrace` is infinity where it is null."""

    alpha: float
    atr_period: int
    k: float
    lookback: int
    retrace: float

    @classmethod
    def of(cls, config: FeatureConfig) -> "Constants":
        retrace = config.hybrid_min_retrace_atr

        return cls(
            alpha=2.0 / (config.ema_range_period + 1),
            atr_period=config.atr_period,
            k=config.zigzag_k,
            lookback=config.hybrid_confirm_lookback,
            retrace=np.inf if retrace is None else retrace,
        )


def compute_features(
    bars: pd.DataFrame,
    config: FeatureConfig = FeatureConfig(),  # noqa: B008
) -> Float32s:
    """The 11 features of each bar: float32 [n_bars, 11], columns FEATURE_NAMES, in FEATURE_RANGES.

    `bars` has the numeric columns open, high, low, close, in time order. Raises DataError if one is
    missing, is there twice, is no number or is not finite. Prices that contradict each other are
    `moola.data.bars`'s to refuse.
    """
    rows, _ = continue_features(bars, config, Carry(), room_for_true_ranges(config))
    return rows


def room_for_true_ranges(config: FeatureConfig) -> Floats:
    """The last `atr_period` true ranges, oldest first, 0 before there are; then a block's own."""
    return np.zeros(config.atr_period + BLOCK_BARS)


def continue_features(
    bars: pd.DataFrame, config: FeatureConfig, carry: Carry, true_ranges: Floats
) -> tuple[Float32s, Carry]:
    """The features of further bars, and what these hand on; `true_ranges` is brought up to date.

    Raises DataError as `compute_features` does; `true_ranges` is then as it was.
    """
    opens, highs, lows, closes = (_price_column(bars, name, carry.n_bars) for name in PRICES)
    rows = np.empty((len(bars), N_FEATURES), np.float32)
    constants = Constants.of(config)
    carry = fill(opens, highs, lows, closes, carry, true_ranges, constants, rows)

    return rows, carry


def _price_column(bars: pd.DataFrame, name: str, n_before: int) -> Floats:
    """One price column as contiguous float64 [n_bars]; bar 0 of `bars` is number `n_before`."""
    names = list(bars.columns)
    n_columns = names.count(name)
    if n_columns != 1:
        raise DataError(
            f"bars must have one column {name}, found {n_columns} "
            f"(columns: {', '.join(map(str, names))})"
        )

    column = bars[name]
    if column.dtype.kind not in "iuf":
        raise DataError(f"prices must be float or int, {name} is {column.dtype}")

    values = np.ascontiguousarray(column.to_numpy(np.float64))
    if not all_finite(values):
        row = int(np.isfinite(values).argmin())
        raise DataError(f"prices must be finite: {name} is {values[row]} (bar {n_before + row})")

    return values


# --- compiled -------------------------------------------------------------------------------------

CARRY_TYPE = types.NamedTuple(  # type: ignore[no-untyped-call]
    [types.int64, types.float64, types.float64, SWINGS_TYPE], Carry
)
CONSTANTS_TYPE = types.NamedTuple(  # type: ignore[no-untyped-call]
    [
        types.float64,
        types.int64,
        types.float64,
        types.int64,
        types.float64,
    ],
    Constants,
)
ROWS_TYPE = types.float32[:, ::1]
COLUMN_TYPE = types.Array(types.float32, 1, "A")


@compiled(types.float64(types.float64, types.float64, types.float64))
def clip(value: float, least: float, most: float) -> float:
    return least if value < least else most if value > most else value


@compiled(types.boolean(PRICES_TYPE))
def all_finite(values: Floats) -> bool:
    n_bad = 0
    for j in range(len(values)):
        n_bad += not np.isfinite(values[j])

    return n_bad == 0


@compiled(
    types.float64(
        PRICES_TYPE,
        PRICES_TYPE,
        PRICES_TYPE,
        CARRY_TYPE,
        types.float64,
        VALUES_TYPE,
        VALUES_TYPE,
    )
)
def fill_ranges(
    highs: Floats,
    lows: Floats,
    closes: Floats,
    carry: Carry,
    alpha: float,
    emas: Floats,
    true_ranges: Floats,
) -> float:
    """Fills the ema of r and the true range of each bar. Returns the last ema."""
    ema = carry.ema_range
    close = carry.previous_close
    first = 0

    if carry.n_bars == 0:  # nothing is before bar 0: it starts the ema and has no true range
        ema = highs[0] - lows[0]
        close = closes[0]
        emas[0] = ema
        true_ranges[0] = 0.0
        first = 1

    for j in range(first, len(highs)):
        r = highs[j] - lows[j]
        emas[j] = ema = alpha * r + (1.0 - alpha) * ema
        from_high = abs(highs[j] - close)
        from_low = abs(lows[j] - close)
        true_ranges[j] = max(r, max(from_high, from_low))
        close = closes[j]

    return ema


@compiled(types.void(VALUES_TYPE, types.int64, types.int64, VALUES_TYPE))
def fill_atrs(true_ranges: Floats, period: int, n_before: int, atrs: Floats) -> None:
    """Fills `atrs` [n] from `true_ranges` [period + n], the first of which are the bars' before.

    Those before bar 1 are zeros, which change no sum.
    """
    n = len(atrs)
    atrs[:] = 0.0

    # All bars at once, each from its oldest true range to its newest.
    for lag in range(1, period + 1):
        for j in range(n):
            atrs[j] += true_ranges[lag + j]

    if n_before >= period:
        for j in range(n):
            atrs[j] /= period
    else:
        for j in range(n):
            atrs[j] /= max(min(n_before + j, period), 1)


@compiled(types.void(VALUES_TYPE, COLUMN_TYPE))
def blank_until_swing(since: Floats, distances: Float32s) -> None:
    """Sets the distances before the first swing to 0.

    Done afterwards: those are a few bars, and a condition would cost at each.
    """
    for j in range(len(distances)):
        if since[j] >= 0.0:
            return
        distances[j] = 0.0


@compiled(
    types.void(
        PRICES_TYPE,
        PRICES_TYPE,
        PRICES_TYPE,
        PRICES_TYPE,
        VALUES_TYPE,
        VALUES_TYPE,
        TRACKS_TYPE,
        ROWS_TYPE,
    )
)
def fill_rows(
    opens: Floats,
    highs: Floats,
    lows: Floats,
    closes: Floats,
    emas: Floats,
    atrs: Floats,
    tracks: Floats,
    rows: Float32s,
) -> None:
    """The formulas, column by column: so the compiler takes several bars in one instruction."""
    columns = np.empty((N_FEATURES, BLOCK_BARS), np.float32)  # of constant shape, or it does not

    for j in range(len(opens)):
        open_ = opens[j]
        high = highs[j]
        low = lows[j]
        close = closes[j]

        r = high - low
        R = r if r != 0.0 else 1.0
        ema = emas[j] if emas[j] != 0.0 else 1.0
        divisor = atrs[j] if atrs[j] != 0.0 else ZERO_ATR
        body_pct = clip((close - open_) / R, -1.0, 1.0)
        range_z = clip(r / ema, 0.0, 3.0)

        columns[0, j] = clip((open_ - low) / R, 0.0, 1.0)
        columns[1, j] = clip((close - low) / R, 0.0, 1.0)
        columns[2, j] = body_pct
        columns[3, j] = clip((high - max(open_, close)) / R, 0.0, 1.0)
        columns[4, j] = clip((min(open_, close) - low) / R, 0.0, 1.0)
        columns[5, j] = range_z
        columns[6, j] = clip((tracks[HIGH_PRICE, j] - close) / divisor, -3.0, 3.0)
        columns[7, j] = clip((close - tracks[LOW_PRICE, j]) / divisor, -3.0, 3.0)
        columns[8, j] = clip(tracks[SINCE_HIGH, j] / WINDOW, 0.0, 3.0)
        columns[9, j] = clip(tracks[SINCE_LOW, j] / WINDOW, 0.0, 3.0)
        columns[10, j] = clip(range_z * tracks[LEG, j] * body_pct, -2.0, 2.0)

    for j in range(len(opens)):
        for column in range(N_FEATURES):
            rows[j, column] = columns[column, j]

    blank_until_swing(tracks[SINCE_HIGH], rows[:, 6])
    blank_until_swing(tracks[SINCE_LOW], rows[:, 7])


_FILL_TYPE = CARRY_TYPE(
    PRICES_TYPE,
    PRICES_TYPE,
    PRICES_TYPE,
    PRICES_TYPE,
    CARRY_TYPE,
    VALUES_TYPE,
    CONSTANTS_TYPE,
    ROWS_TYPE,
)


def _compile(zigzag_source: int) -> Callable[..., Carry]:
    """The compiled pass over bars.

    numba's cache looks at this file and at closures, not at what is called in other files:
    `zigzag_source`, a digest of zigzag.py, is in the closure so that a change there is compiled
    too.
    """

    @compiled(_FILL_TYPE)
    def fill(
        opens: Floats,
        highs: Floats,
        lows: Floats,
        closes: Floats,
        carry: Carry,
        true_ranges: Floats,
        constants: Constants,
        rows: Float32s,
    ) -> Carry:
        zigzag_source  # noqa: B018
        alpha, period, k, lookback, retrace = constants
        emas = np.empty(BLOCK_BARS)
        atrs = np.empty(BLOCK_BARS)
        tracks = np.empty((N_TRACKS, BLOCK_BARS))

        for start in range(0, len(opens), BLOCK_BARS):
            stop = min(start + BLOCK_BARS, len(opens))
            n = stop - start
            open_ = opens[start:stop]
            high = highs[start:stop]
            low = lows[start:stop]
            close = closes[start:stop]

            ema = fill_ranges(high, low, close, carry, alpha, emas, true_ranges[period:])
            fill_atrs(true_ranges, period, carry.n_bars, atrs[:n])
            for j in range(period):
                true_ranges[j] = true_ranges[n + j]

            swings = advance_swings(
                carry.swings, carry.n_bars, high, low, close, atrs, k, lookback, retrace, tracks
            )
            fill_rows(open_, high, low, close, emas, atrs, tracks, rows[start:stop])
            carry = Carry(carry.n_bars + n, ema, close[n - 1], swings)

        return carry

    return fill


fill = _compile(zlib.crc32(Path(zigzag.__file__).read_bytes()))
