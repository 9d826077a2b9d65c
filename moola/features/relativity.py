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
from moola.features.zigzag import SWINGS_TYPE, UNSET, Swings, next_swings
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


class Carry(NamedTuple):
    """What one bar hands to the next, besides the last true ranges."""

    n_bars: int = 0
    ema_range: float = 0.0
    previous_close: float = 0.0
    swings: Swings = Swings()


CARRY_TYPE = types.NamedTuple(  # type: ignore[no-untyped-call]
    [types.int64, types.float64, types.float64, SWINGS_TYPE], Carry
)


@njit(types.float64(types.float64, types.float64, types.float64), cache=True, nogil=True, error_model="numpy")
def _clip(value: float, least: float, most: float) -> float:
    return least if value < least else most if value > most else value


@njit(types.float64(types.float64[::1], types.int64, types.int64), cache=True, nogil=True, error_model="numpy")
def _mean(values: Any, start: int, stop: int) -> float:
    """Of values[start:stop], added one after the other."""
    total = 0.0
    for j in range(start, stop):
        total += values[j]
    return total / (stop - start)


_FILL = CARRY_TYPE(
    *[types.Array(types.float64, 1, "C", readonly=True)] * 4,
    *[CARRY_TYPE, types.float64[::1]],
    *[types.float64, types.int64, types.float64, types.int64, types.float64, types.float64],
    types.float32[:, ::1],
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
        n_before, ema_range, previous_close, swings = carry
        slot = max(n_before - 1, 0) % period  # of the next true range
        for j in range(len(opens)):
            i, open_, high, low, close = n_before + j, opens[j], highs[j], lows[j], closes[j]
            r = high - low
            R = max(r, eps)
            atr = 0.0
            if i == 0:
                ema_range = r
            else:
                ema_range = alpha * r + (1.0 - alpha) * ema_range
                true_range = max(r, max(abs(high - previous_close), abs(low - previous_close)))
                true_ranges[slot] = true_ranges[slot + period] = true_range
                slot = slot + 1 if slot + 1 < period else 0
                atr = _mean(true_ranges, slot + period - min(i, period), slot + period)
            previous_close = close
            swings = next_swings(swings, i, high, low, close, atr, k, lookback, retrace)
            body_pct = _clip((close - open_) / R, -1.0, 1.0)
            range_z = _clip(r / max(ema_range, eps), 0.0, 3.0)
            rows[j, 0] = _clip((open_ - low) / R, 0.0, 1.0)
            rows[j, 1] = _clip((close - low) / R, 0.0, 1.0)
            rows[j, 2] = body_pct
            rows[j, 3] = _clip((high - max(open_, close)) / R, 0.0, 1.0)
            rows[j, 4] = _clip((min(open_, close) - low) / R, 0.0, 1.0)
            rows[j, 5] = range_z
            divisor = atr if atr != 0.0 else ZERO_ATR
            rows[j, 6] = rows[j, 7] = rows[j, 8] = rows[j, 9] = 0.0
            if swings.high_bar != UNSET:
                rows[j, 6] = _clip((swings.high_price - close) / divisor, -3.0, 3.0)
                rows[j, 8] = _clip((i - swings.high_bar) / WINDOW, 0.0, 3.0)
            if swings.low_bar != UNSET:
                rows[j, 7] = _clip((close - swings.low_price) / divisor, -3.0, 3.0)
                rows[j, 9] = _clip((i - swings.low_bar) / WINDOW, 0.0, 3.0)
            rows[j, 10] = _clip(range_z * swings.trend * body_pct, -2.0, 2.0)

        return Carry(n_before + len(opens), ema_range, previous_close, swings)

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
        self._true_ranges = np.zeros(2 * config.atr_period)

    @property
    def n_bars(self) -> int:
        """Bars taken in so far."""
        return self._carry.n_bars

    def extend(self, bars: pd.DataFrame) -> np.ndarray:
        """Take in the next bars: their features, float32 [n_chunk, 11]. A DataError leaves the state as it was."""
        prices = [_column(bars, name, self.n_bars) for name in PRICES]
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
        n_true_ranges, period = max(self.n_bars - 1, 0), self.config.atr_period
        stop = n_true_ranges % period + period
        true_ranges = self._true_ranges[stop - min(n_true_ranges, period) : stop].tolist()
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
        state, n = cls(saved.config), len(saved.true_ranges)
        state._carry = saved.carry
        slots = (saved.carry.n_bars - 1 - n + np.arange(n)) % saved.config.atr_period
        state._true_ranges[slots] = state._true_ranges[slots + saved.config.atr_period] = saved.true_ranges
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
