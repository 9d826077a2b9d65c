"""Percentile bootstrap intervals over windows (Efron and Tibshirani 1993, ch. 13)."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from moola.evaluation.arrays import Floats

LEVEL = 0.95
MAX_WEIGHTS = 4_000_000  # resample weights held at a time: 32 MB

MetricsOfWeights = Callable[[Floats], dict[str, Floats]]  # weights [R, N] -> every metric [R]
Values = Mapping[str, float | None]


def bootstrap_interval(
    metrics_of: MetricsOfWeights,
    n: int,
    resamples: int,
    seed: int,
) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """Lower and upper ends of the intervals by metric; None where no resample defines the metric.

    Windows are taken as independent. ECE has no interval: a resample's ECE is biased upwards.
    """
    parts = [metrics_of(weights) for weights in resample_weights(n, resamples, seed)]
    low: dict[str, float | None] = {}
    high: dict[str, float | None] = {}
    for name in parts[0]:
        values = np.concatenate([part[name] for part in parts])
        defined = values[np.isfinite(values)]
        if name.startswith("ece") or not len(defined):
            low[name] = None
            high[name] = None
        else:
            low[name] = float(np.quantile(defined, (1 - LEVEL) / 2))
            high[name] = float(np.quantile(defined, (1 + LEVEL) / 2))

    return low, high


def resample_weights(
    n: int,
    resamples: int,
    seed: int,
) -> Iterator[Floats]:
    """[r, N] at a time: how often each of N windows is drawn, N draws with replacement."""
    rng = np.random.default_rng(seed)
    step = max(1, MAX_WEIGHTS // n)
    for done in range(0, resamples, step):
        r = min(step, resamples - done)
        drawn = rng.integers(0, n, (r, n))
        cell = drawn + n * np.arange(r)[:, None]
        counts = np.bincount(cell.ravel(), minlength=r * n)
        yield counts.reshape(r, n).astype(np.float64)
