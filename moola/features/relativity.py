"""The 11 features of a bar: price relative to its own range, to the recent range and to the last confirmed swings.

r = high - low, R = max(r, eps); every value is clipped to its range. Bar i uses bars 0..i only.

  0 open_norm           (open - low) / R
  1 close_norm          (close - low) / R
  2 body_pct            (close - open) / R
  3 upper_wick_pct      (high - max(open, close)) / R
  4 lower_wick_pct      (min(open, close) - low) / R
  5 range_z             r / max(ema of r, eps)
  6 dist_to_prev_SH     (last confirmed swing high - close) / ATR, 0 before there is one
  7 dist_to_prev_SL     (close - last confirmed swing low) / ATR, 0 before there is one
  8 bars_since_SH_norm  bars since that high's own bar / 105, 0 before there is one
  9 bars_since_SL_norm  the same for the low
 10 expansion_proxy     range_z x direction of the leg x body_pct

Arithmetic is float64, in the order of these formulas and without fused multiply-add. The average true range is summed
anew at each bar, from the oldest true range to the newest, and divided by their number: a running sum would drift, and
its value would depend on where the series began.
"""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import pandas as pd
from numba import njit, types
from pydantic import ConfigDict, ValidationError, model_validator

from moola import WINDOW
from moola.errors import DataError
from moola.features import zigzag
from moola.features.zigzag import (
    HIGH_PRICE,
    LEG,
    LOW_PRICE,
    N_TRACKS,
    SINCE_HIGH,
    SINCE_LOW,
    SWINGS_TYPE,
    Swings,
    follow,
)
from moola.specs import FeatureConfig, Spec

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
PRICES = ("open", "high", "low", "close")
SCHEMA = "moola.features.FeatureState/1"
ZERO_ATR = 1e-8  # divides a distance where the ATR is 0
BLOCK = 256  # bars at a time: what one step leaves for the next stays in the nearest cache


class Carry(NamedTuple):
    """What one bar hands to the next, besides the last true ranges."""

    n_bars: int = 0
    ema_range: float = 0.0
    previous_close: float = 0.0
    swings: Swings = Swings()


CARRY_TYPE = types.NamedTuple(  # type: ignore[no-untyped-call]
    [types.int64, types.float64, types.float64, SWINGS_TYPE], Carry
)


_PRICES = zigzag.PRICES_TYPE  # [n], read-only
_VALUES, _TABLE, _ROWS = types.float64[::1], types.float64[:, ::1], types.float32[:, ::1]


@njit(types.float64(types.float64, types.float64, types.float64), cache=True, nogil=True, error_model="numpy")
def _clip(value: float, least: float, most: float) -> float:
    return least if value < least else most if value > most else value


@njit(types.boolean(_PRICES), cache=True, nogil=True, error_model="numpy")
def _all_finite(values: Any) -> bool:
    n_bad = 0
    for j in range(len(values)):
        n_bad += not np.isfinite(values[j])
    return n_bad == 0


@njit(
    types.float64(*[_PRICES] * 3, types.int64, *[types.float64] * 3, _VALUES, _VALUES),
    cache=True,
    nogil=True,
    error_model="numpy",
)
def _fill_ranges(
    highs: Any, lows: Any, closes: Any, n_before: int, close: float, ema: float, alpha: float, emas: Any, ranges: Any
) -> float:
    """The ema of r and the true range of each bar; `close` and `ema` are the bar before's. Returns the last ema."""
    if n_before == 0:  # nothing is before bar 0: it starts the ema and has no true range
        emas[0], ranges[0], ema, close = highs[0] - lows[0], 0.0, highs[0] - lows[0], closes[0]
    for j in range(1 if n_before == 0 else 0, len(highs)):
        r = highs[j] - lows[j]
        emas[j] = ema = alpha * r + (1.0 - alpha) * ema
        ranges[j] = max(r, max(abs(highs[j] - close), abs(lows[j] - close)))
        close = closes[j]
    return ema


@njit(types.void(_VALUES, types.int64, types.int64, _VALUES), cache=True, nogil=True, error_model="numpy")
def _fill_atrs(true_ranges: Any, period: int, n_before: int, atrs: Any) -> None:
    """`true_ranges` are [period + n], with those of the bars before; zeros before bar 1, which change no sum."""
    n = len(atrs)
    atrs[:] = 0.0
    for lag in range(1, period + 1):  # all bars at once, each from its oldest true range to its newest
        for j in range(n):
            atrs[j] += true_ranges[lag + j]
    if n_before >= period:
        for j in range(n):
            atrs[j] /= period
    else:
        for j in range(n):
            atrs[j] /= max(min(n_before + j, period), 1)


@njit(types.void(_VALUES, types.Array(types.float32, 1, "A")), cache=True, nogil=True, error_model="numpy")
def _blank_until_swing(since: Any, distances: Any) -> None:
    """A distance is 0 before there is a swing. Done afterwards: those are a few bars, and a condition costs at each."""
    for j in range(len(distances)):
        if since[j] >= 0.0:
            return
        distances[j] = 0.0


@njit(
    types.void(*[_PRICES] * 4, _VALUES, _VALUES, _TABLE, types.float64, _ROWS),
    cache=True,
    nogil=True,
    error_model="numpy",
)
def _fill_rows(
    opens: Any, highs: Any, lows: Any, closes: Any, emas: Any, atrs: Any, tracks: Any, eps: float, rows: Any
) -> None:
    """The formulas, column by column: so the compiler takes several bars in one instruction. Then the rows."""
    columns = np.empty((N_FEATURES, BLOCK), np.float32)  # of constant shape, or it does not
    for j in range(len(opens)):
        open_, high, low, close = opens[j], highs[j], lows[j], closes[j]
        r = high - low
        R = max(r, eps)
        divisor = atrs[j] if atrs[j] != 0.0 else ZERO_ATR
        body_pct = _clip((close - open_) / R, -1.0, 1.0)
        range_z = _clip(r / max(emas[j], eps), 0.0, 3.0)
        columns[0, j] = _clip((open_ - low) / R, 0.0, 1.0)
        columns[1, j] = _clip((close - low) / R, 0.0, 1.0)
        columns[2, j] = body_pct
        columns[3, j] = _clip((high - max(open_, close)) / R, 0.0, 1.0)
        columns[4, j] = _clip((min(open_, close) - low) / R, 0.0, 1.0)
        columns[5, j] = range_z
        columns[6, j] = _clip((tracks[HIGH_PRICE, j] - close) / divisor, -3.0, 3.0)
        columns[7, j] = _clip((close - tracks[LOW_PRICE, j]) / divisor, -3.0, 3.0)
        columns[8, j] = _clip(tracks[SINCE_HIGH, j] / WINDOW, 0.0, 3.0)
        columns[9, j] = _clip(tracks[SINCE_LOW, j] / WINDOW, 0.0, 3.0)
        columns[10, j] = _clip(range_z * tracks[LEG, j] * body_pct, -2.0, 2.0)
    for j in range(len(opens)):
        for column in range(N_FEATURES):
            rows[j, column] = columns[column, j]
    _blank_until_swing(tracks[SINCE_HIGH], rows[:, 6])
    _blank_until_swing(tracks[SINCE_LOW], rows[:, 7])


_FILL = CARRY_TYPE(
    *[_PRICES] * 4,
    *[CARRY_TYPE, _VALUES],
    *[types.float64, types.int64, types.float64, types.int64, types.float64, types.float64],
    _ROWS,
)


def _compile(zigzag_source: int) -> Callable[..., Carry]:
    """The compiled pass over bars. numba's cache looks at this file and at closures, not at what is called in other
    files: `zigzag_source`, a digest of zigzag.py, is in the closure so that a change there is compiled too."""

    @njit(_FILL, cache=True, nogil=True, error_model="numpy")
    def fill(
        opens: Any,
        highs: Any,
        lows: Any,
        closes: Any,
        carry: Carry,
        true_ranges: Any,
        alpha: float,
        period: int,
        k: float,
        lookback: int,
        retrace: float,
        eps: float,
        rows: Any,
    ) -> Carry:
        zigzag_source  # noqa: B018
        n_bars, ema, previous_close, swings = carry
        emas, atrs, tracks = np.empty(BLOCK), np.empty(BLOCK), np.empty((N_TRACKS, BLOCK))
        for start in range(0, len(opens), BLOCK):
            stop = min(start + BLOCK, len(opens))
            n, open_, high = stop - start, opens[start:stop], highs[start:stop]
            low, close = lows[start:stop], closes[start:stop]
            ema = _fill_ranges(high, low, close, n_bars, previous_close, ema, alpha, emas, true_ranges[period:])
            _fill_atrs(true_ranges, period, n_bars, atrs[:n])
            for j in range(period):
                true_ranges[j] = true_ranges[n + j]
            swings = follow(swings, n_bars, high, low, close, atrs, k, lookback, retrace, tracks)
            _fill_rows(open_, high, low, close, emas, atrs, tracks, eps, rows[start:stop])
            n_bars, previous_close = n_bars + n, close[n - 1]
        return Carry(n_bars, ema, previous_close, swings)

    return fill


_fill = _compile(zlib.crc32(Path(zigzag.__file__).read_bytes()))


def compute_features(bars: pd.DataFrame, config: FeatureConfig = FeatureConfig()) -> np.ndarray:  # noqa: B008
    """The 11 features of each bar: float32 [n_bars, 11], columns FEATURE_NAMES, inside FEATURE_RANGES.

    `bars` has the numeric columns open, high, low, close, in time order. Raises DataError if one is missing, is there
    twice, is no number or is not finite. Prices that contradict each other are `moola.bars`'s to refuse.
    """
    return FeatureState(config).extend(bars)


class FeatureState:
    """A series of features that can be taken up again: in chunks, or tomorrow.

    Rows do not depend on where the chunks are cut: the bits are those of one `compute_features` over all bars.
    """

    def __init__(self, config: FeatureConfig = FeatureConfig()) -> None:  # noqa: B008
        self.config = config
        self._carry = Carry()
        self._true_ranges = np.zeros(config.atr_period + BLOCK)  # the last ones, oldest first; then room for a block's

    @property
    def n_bars(self) -> int:
        """Bars taken in so far."""
        return self._carry.n_bars

    def extend(self, bars: pd.DataFrame) -> np.ndarray:
        """Take in the next bars: their features, float32 [n_chunk, 11]. A DataError leaves the state as it was."""
        names = list(bars.columns)
        prices = [_column(bars, names, name, self.n_bars) for name in PRICES]
        rows = np.empty((len(bars), N_FEATURES), np.float32)
        c = self.config
        self._carry = _fill(
            *prices,
            *(self._carry, self._true_ranges),
            2.0 / (c.ema_range_period + 1),
            c.atr_period,
            c.zigzag_k,
            c.hybrid_confirm_lookback,
            np.inf if c.hybrid_min_retrace_atr is None else c.hybrid_min_retrace_atr,
            c.eps,
            rows,
        )
        return rows

    def to_json(self) -> str:
        """The state as JSON; `from_json` restores it to the last bit."""
        period = self.config.atr_period
        true_ranges = self._true_ranges[period - min(max(self.n_bars - 1, 0), period) : period].tolist()
        saved = _Saved(schema_id=SCHEMA, config=self.config, carry=self._carry, true_ranges=true_ranges)
        return saved.model_dump_json()

    @classmethod
    def from_json(cls, text: str, config: FeatureConfig | None = None) -> Self:
        """The state that `to_json` wrote. Raises DataError if it is damaged, of another schema, or, where `config` is
        given, made with another configuration."""
        try:
            saved = _Saved.model_validate_json(text)
        except ValidationError as error:
            raise DataError(f"a feature state must be one that to_json wrote: {error}") from error
        if config is not None and config != saved.config:
            theirs, ours = saved.config.model_dump(), config.model_dump()
            differ = ", ".join(f"{name} {theirs[name]} is not {v}" for name, v in ours.items() if theirs[name] != v)
            raise DataError(f"a feature state must be continued with the configuration it was made with: {differ}")
        state, period = cls(saved.config), saved.config.atr_period
        state._carry = saved.carry
        state._true_ranges[period - len(saved.true_ranges) : period] = saved.true_ranges
        return state


class _Saved(Spec):
    """What `to_json` writes; no field has a default, so that a missing one is refused."""

    model_config = ConfigDict(allow_inf_nan=False)

    schema_id: Literal["moola.features.FeatureState/1"]
    config: FeatureConfig
    carry: Carry
    true_ranges: list[float]  # the last (up to) atr_period, oldest first

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.carry.n_bars < 0 or abs(self.carry.swings.trend) > 1:
            raise ValueError(f"n_bars must be >= 0 and trend one of -1, 0, 1, got {self.carry}")
        if len(self.true_ranges) != (n := min(max(self.carry.n_bars - 1, 0), self.config.atr_period)):
            raise ValueError(f"{self.carry.n_bars} bars leave {n} true ranges, got {len(self.true_ranges)}")
        return self


def _column(bars: pd.DataFrame, names: list[Any], name: str, n_before: int) -> np.ndarray:
    """One price column as contiguous float64 [n_bars]; `names` are those of all columns."""
    if (n := names.count(name)) != 1:
        raise DataError(f"bars must have one column {name}, found {n} (columns: {', '.join(map(str, names))})")
    column = bars[name]
    if column.dtype.kind not in "iuf":
        raise DataError(f"prices must be float or int, {name} is {column.dtype}")
    values = np.ascontiguousarray(column.to_numpy(np.float64))
    if not _all_finite(values):
        row = int(np.isfinite(values).argmin())
        raise DataError(f"prices must be finite: {name} is {values[row]} (bar {n_before + row})")
    return values
