"""The rules that every row of a series must keep, and the message about one that breaks them.

Rows are counted from 0, a header not included. Times here are UTC in ns, and a missing one is
NO_TIME.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from moola import PRICES
from moola.data.series import MINUTE_NS, NO_TIME
from moola.errors import DataError
from moola.features.arrays import Codes, Flags, Floats, Ints

# A price of 0 so many usual ranges away from the close before stands for a missing one. Crude oil
# went through 0 in steps.
ZERO_RANGES = 100
LARGEST_PRICE = 1e300  # of either sign: differences and sums of such are finite

# What each broken rule is called in counts -> the rule in words. The order is that of checking: a
# row counts once, under the first rule it breaks, and the two rules of order look only at rows that
# are good by themselves.
RULES = {
    "time_missing": "every bar must have a time",
    "time_not_whole_minute": "a bar must open on a whole minute",
    "price_not_finite": "prices must be finite",
    "price_zero": "a price of 0 must not stand for a missing one",
    "high_below_low": "high must be >= low",
    "open_outside_range": "open must lie in [low, high]",
    "close_outside_range": "close must lie in [low, high]",
    "time_not_increasing": "bars must be in time order",
    "duplicate_minute": "a minute must have one bar",
}
_CODES = {name: np.uint8(code) for code, name in enumerate(RULES, start=1)}  # 0 is a good row

OnBadBars = Literal["fail", "drop"]


@dataclass(frozen=True)
class BarRows:
    """The rows of a series as they are, good and bad.

    times   [n_rows] UTC in ns; NO_TIME where missing
    values  [4 or 5, n_rows] open, high, low, close, and volume where there is one; NaN where
            missing
    locate  a row -> its number in its file, and the file's name, for messages
    """

    times: Ints
    values: Floats
    locate: Callable[[int], tuple[int, str]]

    def minute(self, row: int) -> str:
        """The row's time as it stands in messages."""
        time = self.times[row]

        if time == NO_TIME:
            return "no time"

        return f"{pd.Timestamp(time):%Y-%m-%d %H:%M} UTC"


def broken_rules(rows: BarRows) -> Codes:
    """[n_rows] number of the first rule that each row breaks, from 1 on; 0 where it is good."""
    broken = np.zeros(len(rows.times), dtype=np.uint8)
    prices = rows.values[: len(PRICES)]
    open_, high, low, close = prices

    def mark(name: str, is_broken: Flags) -> None:
        if is_broken.any():
            broken[is_broken & (broken == 0)] = _CODES[name]

    mark("time_missing", rows.times == NO_TIME)
    mark("time_not_whole_minute", rows.times % MINUTE_NS != 0)

    for price in prices:
        if not (
            price.min(initial=0.0) >= -LARGEST_PRICE and price.max(initial=0.0) <= LARGEST_PRICE
        ):
            mark("price_not_finite", ~_is_finite(price))

    mark("price_zero", _is_fill(prices))
    mark("high_below_low", high < low)
    mark("open_outside_range", (open_ < low) | (open_ > high))
    mark("close_outside_range", (close < low) | (close > high))

    _mark_order(rows.times, broken)
    return broken


def _is_finite(price: Floats) -> Flags:
    return (price >= -LARGEST_PRICE) & (price <= LARGEST_PRICE)


def _is_fill(prices: Floats) -> Flags:
    """[n_rows] whether a price is 0 and the one before is nowhere near."""
    is_zero: Flags = np.zeros(prices.shape[1], dtype=np.bool_)
    for price in prices:
        is_zero |= price == 0
    if not is_zero.any():
        return is_zero

    _, high, low, close = prices
    ranges = (high - low)[~is_zero]
    ranges = ranges[ranges > 0]
    known = np.flatnonzero(~is_zero & np.isfinite(close))
    if not len(ranges) or not len(known):
        return np.zeros_like(is_zero)

    zeros = np.flatnonzero(is_zero)
    before = known[np.maximum(np.searchsorted(known, zeros) - 1, 0)]
    is_far = np.abs(close[before]) > ZERO_RANGES * np.median(ranges)
    is_zero[zeros] = is_far
    return is_zero


def _mark_order(times: Ints, broken: Codes) -> None:
    """Marks, among the rows that are good so far, those that are not later than all before them."""
    if not broken.any() and (times[1:] > times[:-1]).all():
        return

    good = np.flatnonzero(broken == 0)
    later = good[1:]
    latest_before = np.maximum.accumulate(times[good])[:-1]

    steps_back = times[later] < latest_before
    repeats = times[later] == latest_before

    broken[later[steps_back]] = _CODES["time_not_increasing"]
    broken[later[repeats]] = _CODES["duplicate_minute"]


def count_by_rule(broken: Codes) -> dict[str, int]:
    """Rule (a key of RULES) -> rows, for the rules that any row breaks."""
    counts = {}

    for name, code in _CODES.items():
        n_rows = np.count_nonzero(broken == code)
        if n_rows:
            counts[name] = int(n_rows)

    return counts


def refuse_bad_rows(
    rows: BarRows,
    broken: Codes,
    on_bad_bars: OnBadBars,
    max_dropped_fraction: float,
    dropping: str,
) -> None:
    """Raises DataError unless the bad rows may be dropped: the first in full, the rest counted.

    `dropping` is the command that leaves them out, for where they are few enough.
    """
    n_bad = np.count_nonzero(broken)

    if n_bad == 0:
        return

    first = int(np.flatnonzero(broken)[0])
    message = _describe(rows, broken, first)
    fraction = n_bad / len(broken)

    if on_bad_bars == "fail":
        if n_bad > 1:
            message += f"; {n_bad - 1} more bad rows: {_counts_text(broken[first + 1 :])}"
        if fraction <= max_dropped_fraction:
            message += f"; without {'it' if n_bad == 1 else 'them'}: {dropping}"
        raise DataError(message)

    if fraction > max_dropped_fraction:
        raise DataError(
            f"at most {100 * max_dropped_fraction:g}% of the rows may be dropped "
            f"(max_dropped_fraction): "
            f"{n_bad} of {len(broken)} ({fraction:.2%}) are bad: {_counts_text(broken)}; "
            f"the first: {message}"
        )


def _counts_text(broken: Codes) -> str:
    return ", ".join(f"{name} {count}" for name, count in count_by_rule(broken).items())


def _describe(rows: BarRows, broken: Codes, row: int) -> str:
    """The rule that the first bad row breaks, its value and its place."""
    name = list(RULES)[broken[row] - 1]
    number, file = rows.locate(row)
    bar = dict(
        zip(
            (*PRICES, "volume"),
            rows.values[:, row].tolist(),
            strict=False,
        )
    )

    match name:
        case "time_missing":
            value = "the time is null"
        case "time_not_whole_minute":
            value = str(pd.Timestamp(rows.times[row], tz="UTC"))
        case "price_not_finite":
            bad = next(price for price in PRICES if not abs(bar[price]) <= LARGEST_PRICE)
            value = f"{bad} {bar[bad]}"
        case "price_zero":
            value = next(f"{price} {bar[price]}" for price in PRICES if bar[price] == 0)
        case "high_below_low":
            value = f"high {bar['high']} < low {bar['low']}"
        case "open_outside_range" | "close_outside_range":
            price = name.partition("_")[0]
            value = f"{price} {bar[price]} not in [{bar['low']}, {bar['high']}]"
        case _:  # the two rules of order; rows before the first bad one are in order
            value = f"{rows.minute(row)} follows {rows.minute(row - 1)}"

    return f"{RULES[name]}: {value} (row {number}, {rows.minute(row)}, {file})"
