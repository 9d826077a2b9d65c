"""Bootstrap intervals over days: test windows of one day share bars, so they are not independent.

Whole days are drawn with replacement (the block bootstrap of Künsch, 1989, with blocks that do not
overlap); a day brings all its windows.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moola.data.labels import LabelSet
from moola.evaluation.intervals import LEVEL
from moola.evaluation.metrics import HEADLINE, metrics_of_weights
from moola.evaluation.predictions import Predictions, Targets

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

RESAMPLES = 1000
SEED = 0  # the same days are drawn for every model, so that differences are paired


def day_of_window(labels: LabelSet, times: pd.DatetimeIndex) -> Ints:
    """[N] the UTC day, counted from 1970, in which each window's first bar opened."""
    opened = times[labels.anchor].as_unit("s").asi8
    return np.asarray(opened // 86_400)


def day_weights(
    day: Ints,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Floats:
    """[R, N] how often each window counts when as many days as there are have been drawn."""
    days, block = np.unique(day, return_inverse=True)
    n_days = len(days)

    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, n_days, (resamples, n_days))
    cell = drawn + n_days * np.arange(resamples)[:, None]
    counts = np.bincount(cell.ravel(), minlength=resamples * n_days)

    return counts.reshape(resamples, n_days)[:, block].astype(np.float64)


def headline(
    predictions: Predictions,
    targets: Targets,
    weights: Floats,
) -> Floats:
    """[R, 3] the headline metrics under weights [R, N]."""
    values = metrics_of_weights(predictions, targets)(weights)
    return np.stack([values[name] for name in HEADLINE], axis=1)


def interval(resampled: Floats) -> tuple[Floats, Floats]:
    """[R, 3] -> both ends [3] of the 95 % interval; a resample without a value does not count."""
    tails = (1 - LEVEL) / 2
    low, high = np.nanquantile(resampled, (tails, 1 - tails), axis=0)
    return low, high
