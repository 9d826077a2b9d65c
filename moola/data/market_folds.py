"""The folds of several feature sets: cut at the same moments in all of them.

The cuts are quantiles of the times of all bars, those of every set counted. So each part holds as
many bars as any other, also where one set is short or begins late; parts of equal length in time
could be almost empty. Of one set alone they are the folds of `moola.data.folds`.
"""

from collections.abc import Mapping

import pandas as pd

from moola.data.folds import fold_cuts
from moola.data.splits import Split, cut_at_bars
from moola.specs import CrossValidation


def pooled_times(times: Mapping[str, pd.DatetimeIndex]) -> pd.DatetimeIndex:
    """When the bars of all sets opened, in order; a minute once for each set that has it."""
    first, *others = times.values()
    return pd.DatetimeIndex(first.append(others).sort_values())


def market_fold_splits(
    times: Mapping[str, pd.DatetimeIndex],
    pooled: pd.DatetimeIndex,
    config: CrossValidation,
) -> dict[str, dict[str, Split]]:
    """A fold's splits of each set, without those in which no window fits.

    `pooled` are the times of all sets together. A bar that opened at the moment of a cut lies after
    it, in every set.
    """
    _, *cuts = fold_cuts(config)
    first_bars = [round(len(pooled) * cut) for cut in cuts]
    return {
        name: cut_at_bars([_bar_of(own, pooled, n) for n in first_bars])
        for name, own in times.items()
    }


def _bar_of(times: pd.DatetimeIndex, pooled: pd.DatetimeIndex, n: int) -> int:
    """The first bar of a set that lies after the cut before bar `n` of all; its length for none."""
    return len(times) if n == len(pooled) else int(times.searchsorted(pooled[n]))
