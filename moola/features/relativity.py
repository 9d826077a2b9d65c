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
from typing import Annotated, Any, Literal, Self

import numpy as np
import pandas as pd
from numba import from_dtype, njit, types
from pydantic import Field, ValidationError, model_validator

from moola import WINDOW
from moola.errors import DataError
from moola.features import zigzag
from moola.features.zigzag import SWINGS_TYPE, UNSET, no_swings, update_swings
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
Finite = Annotated[float, Field(allow_inf_nan=False)]
Bar = Annotated[int, Field(ge=UNSET)]
ZERO_ATR = 1e-8  # divides a distance where the ATR is 0

# What one bar hands to the next, besides the swings and the last true ranges.
CARRY = np.dtype([("n_bars", np.int64), ("ema_range", np.float64), ("previous_close", np.float64)], align=True)


@njit(types.float64(types.float64, types.float64, types.float64), cache=True, nogil=True)
def _clip(value: float, least: float, most: float) -> float:
    return least if value < least else most if value > most else value


@njit(
    types.float64(types.float64[::1], types.int64, types.int64, types.float64),
    cache=True,
    nogil=True,
)
def _average_true_range(true_ranges: Any, n_before: int, period: int, true_range: float) -> float:
    """Take in a true range, `n_before` having come before it; the mean of the last (up to) `period`, oldest first.

    `true_ranges` float64 [2 * period] holds each value twice, `period` apart, so that the last ones lie in a row.
    """
    slot = n_before % period
    true_ranges[slot] = true_ranges[slot + period] = true_range
    n = min(n_before + 1, period)
    total = 0.0
    for j in range(slot + period + 1 - n, slot + period + 1):
        total += true_ranges[j]
    return total / n


_ROWS = types.Array(types.float32, 2, "C")
_KERNEL = types.void(
    *[types.Array(types.float64, 1, "C", readonly=True)] * 4,
    *[types.Array(from_dtype(CARRY), 1, "C"), types.Array(SWINGS_TYPE, 1, "C"), types.float64[::1]],
    *[types.float64, types.int64, types.float64, types.int64, types.float64, types.float64],
    _ROWS,
)


def _compile(zigzag_source: int) -> Callable[..., None]:
    """The compiled pass over bars. numba's cache looks at this file and at closures, not at what is called in other
    files: `zigzag_source`, a digest of zigzag.py, is in the closure so that a change there is compiled too."""

    @njit(_KERNEL, cache=True, nogil=True)
    def fill(
        opens, highs, lows, closes, carries, all_swings, true_ranges, alpha, period, k, lookback, retrace, eps, rows
    ):  # type: ignore[no-untyped-def]
        zigzag_source  # noqa: B018
        carry, swings = carries[0], all_swings[0]
        for j in range(len(opens)):
            i, open_, high, low, close = carry.n_bars, opens[j], highs[j], lows[j], closes[j]
            r = high - low
            R = max(r, eps)
            atr = 0.0
            if i == 0:
                carry.ema_range = r
            else:
                carry.ema_range = alpha * r + (1.0 - alpha) * carry.ema_range
                true_range = max(r, max(abs(high - carry.previous_close), abs(low - carry.previous_close)))
                atr = _average_true_range(true_ranges, i - 1, period, true_range)
            carry.previous_close, carry.n_bars = close, i + 1
            update_swings(swings, i, high, low, close, atr, k, lookback, retrace)
            body_pct = _clip((close - open_) / R, -1.0, 1.0)
            range_z = _clip(r / max(carry.ema_range, eps), 0.0, 3.0)
            row = rows[j]
            row[0] = _clip((open_ - low) / R, 0.0, 1.0)
            row[1] = _clip((close - low) / R, 0.0, 1.0)
            row[2] = body_pct
            row[3] = _clip((high - max(open_, close)) / R, 0.0, 1.0)
            row[4] = _clip((min(open_, close) - low) / R, 0.0, 1.0)
            row[5] = range_z
            divisor = atr if atr != 0.0 else ZERO_ATR
            row[6] = row[7] = row[8] = row[9] = 0.0
            if swings.high_bar != UNSET:
                row[6] = _clip((swings.high_price - close) / divisor, -3.0, 3.0)
                row[8] = _clip((i - swings.high_bar) / WINDOW, 0.0, 3.0)
            if swings.low_bar != UNSET:
                row[7] = _clip((close - swings.low_price) / divisor, -3.0, 3.0)
                row[9] = _clip((i - swings.low_bar) / WINDOW, 0.0, 3.0)
            row[10] = _clip(range_z * swings.trend * body_pct, -2.0, 2.0)

    return fill  # type: ignore[no-any-return]


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
        self._carry = np.zeros(1, CARRY)
        self._swings = no_swings()
        self._true_ranges = np.zeros(2 * config.atr_period)

    @property
    def n_bars(self) -> int:
        """Bars taken in so far."""
        return int(self._carry["n_bars"][0])

    def extend(self, bars: pd.DataFrame) -> np.ndarray:
        """Take in the bars that follow: their features, float32 [n_chunk, 11]. Raises DataError, the state unchanged."""
        prices = [_column(bars, name, self.n_bars) for name in PRICES]
        rows = np.empty((len(bars), N_FEATURES), np.float32)
        c = self.config
        _fill(
            *prices,
            *(self._carry, self._swings, self._true_ranges),
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
        n, period = min(max(self.n_bars - 1, 0), self.config.atr_period), self.config.atr_period
        stop = (self.n_bars - 2) % period + period + 1
        carry, swings = (dict(zip(a.dtype.names, a[0].item(), strict=True)) for a in (self._carry, self._swings))
        true_ranges = self._true_ranges[stop - n : stop].tolist()
        saved = _Saved(schema_id=SCHEMA, config=self.config, **carry, swings=swings, true_ranges=true_ranges)
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
            differ = ", ".join(f"{name} {theirs[name]} is not {ours[name]}" for name in ours if theirs[name] != ours[name])
            raise DataError(f"a feature state must be continued with the configuration it was made with: {differ}")
        state, first = cls(saved.config), saved.n_bars - 1 - len(saved.true_ranges)
        state._carry[0] = saved.n_bars, saved.ema_range, saved.previous_close
        state._swings[0] = tuple(saved.swings.model_dump().values())
        for n_before, true_range in enumerate(saved.true_ranges, first):
            _average_true_range(state._true_ranges, n_before, saved.config.atr_period, true_range)
        return state


class _Swings(Spec):
    """`zigzag.SWINGS`, field by field and in its order."""

    trend: Literal[-1, 0, 1]
    extreme_bar: Bar
    extreme_price: Finite
    candidate_bar: Bar
    candidate_price: Finite
    high_bar: Bar
    high_price: Finite
    low_bar: Bar
    low_price: Finite


class _Saved(Spec):
    """What `to_json` writes; no field has a default, so that a missing one is refused."""

    schema_id: Literal["moola.features.FeatureState/1"]
    config: FeatureConfig
    n_bars: Annotated[int, Field(ge=0)]
    ema_range: Finite
    previous_close: Finite
    swings: _Swings
    true_ranges: list[Finite]  # the last (up to) atr_period, oldest first

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.true_ranges) != (n := min(max(self.n_bars - 1, 0), self.config.atr_period)):
            raise ValueError(f"{self.n_bars} bars leave {n} true ranges, got {len(self.true_ranges)}")
        for name, bar in self.swings:
            if name.endswith("_bar") and bar >= self.n_bars:
                raise ValueError(f"{name} must be one of the {self.n_bars} bars, got {bar}")
        return self


def _column(bars: pd.DataFrame, name: str, n_before: int) -> np.ndarray:
    """One price column as contiguous float64 [n_bars]."""
    if (n := list(bars.columns).count(name)) != 1:
        raise DataError(f"bars must have one column {name}, found {n} (columns: {', '.join(map(str, bars.columns))})")
    column = bars[name]
    if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column) or column.dtype.kind == "c":
        raise DataError(f"prices must be float or int, {name} is {column.dtype}")
    values = np.ascontiguousarray(column.to_numpy(np.float64, na_value=np.nan))
    finite = np.isfinite(values)
    if not finite.all():
        row = int(finite.argmin())
        raise DataError(f"prices must be finite: {name} is {values[row]} (bar {n_before + row})")
    return values
