"""Train, validation and test: ranges of windows, in time order, that share no bar."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import pandas as pd

from moola import WINDOW
from moola.errors import DataError
from moola.specs import SplitConfig, SplitDates

SPLITS = ("train", "val", "test")
DEFAULT_TRAIN_END = date(2024, 12, 31)
DEFAULT_VAL_END = date(2025, 3, 31)
REACHED = date(2025, 6, 30)  # the bars must reach past it for the default dates to hold


@dataclass(frozen=True)
class Split:
    """Windows [start, stop); they cover the bars [start, stop + T - 1) and no other split's."""

    start: int
    stop: int

    def moved(self, rows: int) -> "Split":
        """The same windows where the series begins so many rows later."""
        return Split(self.start + rows, self.stop + rows)


Ranges = Mapping[str, Sequence[Split]]  # split name -> its ranges: one of each series


def ranges_of(splits: Mapping[str, Split]) -> Ranges:
    """Those of one series."""
    return {name: (split,) for name, split in splits.items()}


def cut_at_dates(times: pd.DatetimeIndex, dates: SplitDates) -> dict[str, Split]:
    """The splits of bars that opened at `times` (UTC), without those in which no window fits.

    With no date for its end, the test split runs to the last bar.
    """
    assert dates.train_end is not None
    assert dates.val_end is not None
    stops = [int(times.searchsorted(_day_after(day))) for day in (dates.train_end, dates.val_end)]
    stops.append(
        len(times)
        if dates.test_end is None
        else int(times.searchsorted(_day_after(dates.test_end)))
    )

    return cut_at_bars(stops)


def cut_at_bars(stops: Sequence[int]) -> dict[str, Split]:
    """The splits that end before these bars, train first, without those in which no window fits."""
    splits = {}
    for name, first_bar, stop_bar in zip(SPLITS, [0, *stops[:-1]], stops, strict=True):
        if stop_bar - first_bar >= WINDOW:
            splits[name] = Split(first_bar, stop_bar - WINDOW + 1)

    return splits


def split_windows(times: pd.DatetimeIndex, config: SplitConfig) -> tuple[str, dict[str, Split]]:
    """("dates" | "fractions", split name -> Split) for bars that opened at `times` (UTC).

    Cuts fall between bars; a window belongs to a split only if all its bars do, so T - 1 windows
    are purged at each cut. With no date for its end, the test split runs to the last bar. Raises
    DataError if a split would be without a window.
    """
    given_ends = [config.train_end, config.val_end, config.test_end]
    ends = {
        "train": config.train_end or DEFAULT_TRAIN_END,
        "val": config.val_end or DEFAULT_VAL_END,
        "test": config.test_end or times[-1].date(),
    }

    if any(given_ends) or _default_dates_hold(times, ends, config):
        if not ends["train"] < ends["val"] < ends["test"]:
            raise DataError(
                f"splits must be in order: train_end < val_end < test_end, got {_ends_text(ends)}"
            )
        rule = "dates"
        cut_bars = _bars_after(times, ends)
        places = {name: f"splits.{name}_end, {_ends_text(ends)}" for name in SPLITS}
    else:
        rule = "fractions"
        shares = np.cumsum(config.fractions).tolist()
        cut_bars = [round(len(times) * share) for share in shares]
        places = dict.fromkeys(SPLITS, f"splits, fractions {config.fractions}")

    splits = {}
    first_bars = [0, *cut_bars[:-1]]

    for name, first_bar, stop_bar in zip(SPLITS, first_bars, cut_bars, strict=True):
        if stop_bar - first_bar < WINDOW:
            n_bars = max(stop_bar - first_bar, 0)
            raise DataError(
                f"each split needs a window of {WINDOW} bars: {name} has {n_bars} of the "
                f"{len(times)} bars from {times[0]:%Y-%m-%d} to {times[-1]:%Y-%m-%d} "
                f"({places[name]})"
            )
        splits[name] = Split(first_bar, stop_bar - WINDOW + 1)

    return rule, splits


def _default_dates_hold(
    times: pd.DatetimeIndex,
    ends: Mapping[str, date],
    config: SplitConfig,
) -> bool:
    """Whether no fractions were given, and the bars reach far enough for no split to be empty."""
    fractions_given = config.fractions != SplitConfig().fractions

    if fractions_given or times[-1] < _day_after(REACHED):
        return False

    n_bars = np.diff([0, *_bars_after(times, ends)])
    return bool((n_bars >= WINDOW).all())


def _bars_after(times: pd.DatetimeIndex, ends: Mapping[str, date]) -> list[int]:
    """The first bar after each end."""
    bars = []

    for name in SPLITS:
        stop = _day_after(ends[name])
        bars.append(int(times.searchsorted(stop)))

    return bars


def _day_after(day: date) -> pd.Timestamp:
    return pd.Timestamp(day, tz="UTC") + pd.Timedelta(days=1)


def _ends_text(ends: Mapping[str, date]) -> str:
    return " / ".join(str(ends[name]) for name in SPLITS)


def splits_document(
    rule: str,
    splits: Mapping[str, Split],
    times: pd.DatetimeIndex,
) -> dict[str, Any]:
    """splits.json: window ranges with the time of their first and last bar."""
    ranges = {
        name: {
            "start": split.start,
            "stop": split.stop,
            "first_bar": times[split.start].isoformat(),
            "last_bar": times[split.stop + WINDOW - 2].isoformat(),
        }
        for name, split in splits.items()
    }
    return {"rule": rule, "purged_windows_per_cut": WINDOW - 1, **ranges}
