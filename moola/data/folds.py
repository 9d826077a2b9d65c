"""The folds of a forward-chaining cross-validation: where they lie in a series of bars."""

from collections.abc import Callable
from itertools import pairwise

from moola import WINDOW
from moola.data.splits import SPLITS, Ranges, Split, ranges_of
from moola.errors import DataError
from moola.specs import CrossValidation

VALIDATION_SHARE = 0.15  # of the time before a fold's test, its last part

FoldRanges = Callable[[CrossValidation], Ranges]  # where a fold's splits lie in the series


def fold_cuts(config: CrossValidation) -> list[float]:
    """Where train, val and test of a fold begin, and where test ends: shares of the whole time."""
    test_begins = (config.fold + 1) / (config.folds + 1)
    test_ends = (config.fold + 2) / (config.folds + 1)
    return [0.0, test_begins * (1 - VALIDATION_SHARE), test_begins, test_ends]


def fold_splits(config: CrossValidation, n_bars: int) -> dict[str, Split]:
    """Where a fold's train, val and test lie among the windows of a series; they share no bar."""
    cuts = [round(n_bars * share) for share in fold_cuts(config)]
    for name, (first, stop) in zip(SPLITS, pairwise(cuts), strict=True):
        if stop - first < WINDOW:
            raise DataError(
                f"cross_validate.folds: each split of a fold must have {WINDOW} bars, and {name} "
                f"of fold {config.fold} of 0..{config.folds - 1} has {stop - first} of the "
                f"{n_bars:,}: take fewer folds, or more bars"
            )
    return {
        name: Split(first, stop - WINDOW + 1)
        for name, (first, stop) in zip(SPLITS, pairwise(cuts), strict=True)
    }


def no_folds(_: CrossValidation) -> Ranges:
    """Of labels that carry their own bars: they lie in no series."""
    return {}


def folds_of_series(n_bars: int) -> FoldRanges:
    """The folds of one series."""
    return lambda config: ranges_of(fold_splits(config, n_bars))
