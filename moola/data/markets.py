"""Several feature sets as one: their rows laid end to end, their splits at the same time.

A window is in one market, and no window of training ends after validation has begun anywhere.
Between two markets there are GAP_BARS rows that belong to none.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

import numpy as np
import pandas as pd

from moola import PRICES, WINDOW
from moola.data.feature_records import FeatureMetadata
from moola.data.feature_set import FeatureSet, Series
from moola.data.folds import FoldRanges
from moola.data.market_folds import market_fold_splits, pooled_times
from moola.data.splits import SPLITS, Ranges, Split, cut_at_dates
from moola.errors import ArtifactError, DataError
from moola.features.arrays import Ints
from moola.specs import CrossValidation, SplitDates

GAP_BARS = WINDOW
ORDERED = (("train", "val"), ("val", "test"), ("train", "test"))  # splits that follow each other


@dataclass(frozen=True)
class MarketRows:
    """One of several feature sets.

    run        the precompute run that made it
    first_row  of its first bar, among the rows of all
    splits     in the rows of all; without those in which it has no window
    """

    name: str
    run: str
    first_row: int
    n_bars: int
    splits: Mapping[str, Split]


def lay_out(
    series: Mapping[str, Series],
    dates: SplitDates,
    fold: CrossValidation | None = None,
) -> tuple[MarketRows, ...]:
    """The markets of feature sets, by name, with their splits.

    These are the fold's, where there is one; else they are cut at the `dates`, where they are
    given, and else they are the sets' own. Raises DataError for sets that do not go together, and
    for splits of one that reach into a later one of another.
    """
    _require_alike({name: one.metadata for name, one in series.items()})
    _require_distinct(series)
    if fold is not None:
        markets = _fold_markets(series)(fold)
        _require_each_split(markets, _fold_text(fold))
        return markets

    splits = {
        name: cut_at_dates(one.times, dates) if dates.given else _own_splits(one)
        for name, one in series.items()
    }
    _require_in_time_order({name: (series[name].times, splits[name]) for name in series})
    markets = _end_to_end(series, splits)
    _require_each_split(markets, _dates_text(dates))
    return markets


def folds_of_markets(series: Mapping[str, Series]) -> FoldRanges:
    """The folds of several feature sets, in the rows of all: cut at the same moments."""
    markets = _fold_markets(series)
    return lambda fold: market_ranges(markets(fold))


def _fold_markets(
    series: Mapping[str, Series],
) -> Callable[[CrossValidation], tuple[MarketRows, ...]]:
    """The markets, cut as a fold is."""
    times = {name: one.times for name, one in series.items()}

    @cache
    def pooled() -> pd.DatetimeIndex:
        return pooled_times(times)

    return lambda fold: _end_to_end(series, market_fold_splits(times, pooled(), fold))


def _end_to_end(
    series: Mapping[str, Series],
    splits: Mapping[str, Mapping[str, Split]],
) -> tuple[MarketRows, ...]:
    """The markets with their splits, which are given in the rows of each, in the rows of all."""
    markets = []
    first_row = 0
    for name, one in series.items():
        moved = {split: windows.moved(first_row) for split, windows in splits[name].items()}
        markets.append(MarketRows(name, one.run, first_row, len(one.bars), moved))
        first_row += len(one.bars) + GAP_BARS
    return tuple(markets)


def market_ranges(markets: Sequence[MarketRows]) -> Ranges:
    """Split name -> the windows of each market that has some, in the order of the markets."""
    return {
        name: tuple(market.splits[name] for market in markets if name in market.splits)
        for name in SPLITS
    }


def market_of(row: Ints, markets: Sequence[MarketRows]) -> Ints:
    """[N] the number of the market that each row lies in."""
    first_rows = [market.first_row for market in markets]
    return np.asarray(np.searchsorted(first_rows, row, side="right") - 1)


def join_features(sets: Mapping[str, FeatureSet]) -> FeatureSet:
    """The feature sets laid end to end, in the order of the markets; it has no splits of its own.

    The rows between two are zero and not valid; their bars have no time and no prices.
    """
    ordered = list(sets.values())
    first = ordered[0]
    no_rows = np.zeros((GAP_BARS, first.rows.shape[1]), np.float32)
    no_bars = pd.DataFrame(
        np.nan,
        index=pd.DatetimeIndex([pd.NaT] * GAP_BARS, tz="UTC"),
        columns=list(PRICES),
    )
    rows = []
    valid = []
    bars = []
    for one in ordered:
        rows += [one.rows, no_rows]
        valid += [one.valid, np.zeros(GAP_BARS, np.bool_)]
        bars += [one.bars[list(PRICES)], no_bars]

    return FeatureSet(
        rows=np.concatenate(rows[:-1]),
        valid=np.concatenate(valid[:-1]),
        splits={},
        metadata=FeatureMetadata(
            feature_names=first.metadata.feature_names,
            config=first.metadata.config,
        ),
        bars=pd.concat(bars[:-1]),
    )


# --- sets that go together ------------------------------------------------------------------------


def _require_alike(sets: Mapping[str, FeatureMetadata]) -> None:
    """Raises DataError, naming both values, for features that were not made alike."""
    first_name, *others = sets
    for name in others:
        own = _how_made(sets[name])
        for field, value in _how_made(sets[first_name]).items():
            if own[field] != value:
                raise DataError(
                    f"feature sets that are trained on together must be made alike: {field} is "
                    f"{value} in {first_name} and {own[field]} in {name}; precompute one of them "
                    f"again with the other's"
                )


def _how_made(metadata: FeatureMetadata) -> dict[str, object]:
    names = ", ".join(metadata.feature_names)
    window_bars = None
    if metadata.n_bars is not None and metadata.n_windows is not None:
        window_bars = metadata.n_bars - metadata.n_windows + 1

    config = metadata.feature_config().model_dump()
    constants = {f"features.{field}": value for field, value in config.items()}
    return {"feature names": names, "bars in a window": window_bars, **constants}


def _require_distinct(series: Mapping[str, Series]) -> None:
    """Raises DataError for two sets of the same bars."""
    for one, other in combinations(series, 2):
        same_run = series[one].run == series[other].run
        if same_run or series[one].bars.equals(series[other].bars):
            raise DataError(
                f"each feature set must be another one: {one} ({series[one].run}) and {other} "
                f"({series[other].run}) hold the same bars (features)"
            )


# --- the time of splits ---------------------------------------------------------------------------


def _own_splits(series: Series) -> Mapping[str, Split]:
    """Raises ArtifactError for one that is not in the series."""
    n_windows = len(series.bars) - WINDOW + 1
    for name, split in series.splits.items():
        if not split.start < split.stop <= n_windows:
            raise ArtifactError(
                f"splits of run {series.run} are damaged: {name} must lie in 0..{n_windows}, got "
                f"{split.start}..{split.stop}"
            )
    return series.splits


def _require_in_time_order(
    sets: Mapping[str, tuple[pd.DatetimeIndex, Mapping[str, Split]]],
) -> None:
    """Raises DataError where a split of one set ends after a later split of any has begun."""
    for before, after in ORDERED:
        last_bars = {
            name: times[splits[before].stop + WINDOW - 2]
            for name, (times, splits) in sets.items()
            if before in splits
        }
        first_bars = {
            name: times[splits[after].start]
            for name, (times, splits) in sets.items()
            if after in splits
        }
        if not last_bars or not first_bars:
            continue

        last = max(last_bars, key=lambda name: last_bars[name])
        first = min(first_bars, key=lambda name: first_bars[name])
        if last_bars[last] >= first_bars[first]:
            raise DataError(
                f"splits of several feature sets must be cut at the same time: {before} of {last} "
                f"ends {last_bars[last]:%Y-%m-%d %H:%M} UTC, and {after} of {first} begins "
                f"{first_bars[first]:%Y-%m-%d %H:%M} UTC; give the same days to all of them, as "
                f"--set splits.train_end=YYYY-MM-DD --set splits.val_end=YYYY-MM-DD"
            )


def _require_each_split(markets: Sequence[MarketRows], cut_at: str) -> None:
    """Raises DataError, saying where the splits are cut, for one without a window anywhere."""
    for name, splits in market_ranges(markets).items():
        if not splits:
            raise DataError(
                f"each split needs a window of {WINDOW} bars in one of the feature sets: {name} "
                f"has none ({cut_at})"
            )


def _dates_text(dates: SplitDates) -> str:
    ends = [f"{name} {getattr(dates, name)}" for name in ("train_end", "val_end", "test_end")]
    return f"splits: {', '.join(ends)}"


def _fold_text(fold: CrossValidation) -> str:
    return (
        f"cross_validate.folds: fold {fold.fold} of 0..{fold.folds - 1}: take fewer folds, or more "
        f"bars"
    )
