"""The bars that labelled windows carry themselves."""

import json
from typing import Any

import numpy as np
import pandas as pd

from moola import PRICES, WINDOW
from moola.errors import DataError
from moola.features.arrays import Floats
from moola.text import quoted, shortened

_BARS = f"{WINDOW} x [{', '.join(PRICES)}]"


def own_bars(windows: "pd.Series[Any]", place: str) -> Floats:
    """[n, T, 4] open, high, low, close of a column of windows. Raises DataError with the row."""
    bars = np.empty((len(windows), WINDOW, len(PRICES)))

    for k, (row, value) in enumerate(windows.items()):
        where = f"row {row} of {place}"
        window = _read_window(value, where)
        _check_prices(window, where)
        bars[k] = window

    return bars


def _read_window(value: object, where: str) -> Floats:
    """[T, 4] from nested lists, a flat list, parquet's arrays of arrays, or their JSON text."""
    shape = (WINDOW, len(PRICES))

    try:
        lists = json.loads(value) if isinstance(value, str) else value
        if isinstance(lists, np.ndarray):
            lists = lists.tolist()
        window = np.array(lists, np.float64)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise DataError(
            f"features must be {_BARS}, got {quoted(str(value)[:80])}: "
            f"{shortened(str(error))} ({where})"
        ) from error

    if window.shape not in (shape, (WINDOW * len(PRICES),)):
        raise DataError(f"features must be {_BARS}, got shape {window.shape} ({where})")

    return window.reshape(shape)


def _check_prices(bars: Floats, where: str) -> None:
    """Raises DataError for the first bar of a window [T, 4] that is none; prices have any sign."""
    open_, high, low, close = bars.T
    is_above = np.maximum(open_, close) > high
    is_below = np.minimum(open_, close) < low

    rules = {
        "prices must be finite": np.isfinite(bars).all(axis=1),
        "open and close must lie in [low, high]": ~(is_above | is_below),
    }

    for rule, is_good in rules.items():
        if not is_good.all():
            bar = int(np.argmin(is_good))
            raise DataError(
                f"{rule}, got {bars[bar].tolist()} as {', '.join(PRICES)} (bar {bar}, {where})"
            )

    if bars.min() == bars.max():
        raise DataError(f"the prices of a window must move, got {bars[0, 0]} throughout ({where})")
