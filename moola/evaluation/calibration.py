"""Is a model right as often as it is sure? Calibration error and temperature scaling."""

import math
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from moola.evaluation.arrays import Floats, Ints, finite_or_none, ratio

ECE_BINS = 15
CROSS_FITTING_FOLDS = 5
MIN_TEMPERATURE = 0.05
MAX_TEMPERATURE = 20.0
GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


class Reliability(TypedDict):
    """Per bin of confidence: windows, their mean confidence, the fraction right (null if empty)."""

    count: list[int]
    confidence: list[float | None]
    accuracy: list[float | None]


def confidence_bins(confidence: Floats) -> Ints:
    """[N] the bin of each confidence: ECE_BINS equal bins (a, b] of 0..1."""
    edges = np.linspace(0, 1, ECE_BINS + 1)
    bins: Ints = np.clip(
        np.searchsorted(edges, confidence) - 1,
        0,
        ECE_BINS - 1,
    )
    return bins


def confidence_gaps(probabilities: Floats, label: Ints) -> Floats:
    """[N, bins]: right - confidence, in the window's bin, else 0.

    ECE = sum over bins |sum over windows| / N (Guo et al., ICML 2017).
    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == label
    in_bin = np.eye(ECE_BINS)[confidence_bins(confidence)]
    gaps: Floats = in_bin * (right - confidence)[:, None]
    return gaps


def reliability(probabilities: Floats, label: Ints) -> Reliability:
    """How often the model is right at each confidence."""
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == label
    bins = confidence_bins(confidence)

    count = np.bincount(bins, minlength=ECE_BINS)
    mean_confidence = ratio(np.bincount(bins, confidence, minlength=ECE_BINS), count)
    accuracy = ratio(np.bincount(bins, right, minlength=ECE_BINS), count)

    return {
        "count": count.tolist(),
        "confidence": [finite_or_none(value) for value in mean_confidence],
        "accuracy": [finite_or_none(value) for value in accuracy],
    }


def scale(probabilities: Floats, temperature: float) -> Floats:
    """softmax(log p / temperature) [N, C]: what dividing the logits by the temperature gives."""
    tiny = np.finfo(np.float64).tiny
    z = np.log(np.maximum(probabilities, tiny)) / temperature
    weights = np.exp(z - z.max(axis=1, keepdims=True))  # the largest is 1: no overflow
    scaled: Floats = weights / weights.sum(axis=1, keepdims=True)
    return scaled


def helpful_temperature(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """fit_temperature where cross-fitting says that it helps, else 1.0.

    Each of 5 stretches of the examples (in order of time, as windows overlap) is scaled by the
    temperature that was fitted on the others. It helps if the log loss of all is then smaller and
    the calibration error no larger.
    """
    examples = np.arange(len(labels))
    n_folds = min(CROSS_FITTING_FOLDS, len(examples))
    if n_folds < 2:
        return 1.0

    z = np.asarray(logits, np.float64)
    scaled_z = np.empty_like(z)
    for fold in np.array_split(examples, n_folds):
        others = np.setdiff1d(examples, fold)
        scaled_z[fold] = z[fold] / fit_temperature(z[others], labels[others])

    helps = _log_loss(scaled_z, labels) < _log_loss(z, labels)
    harms = _calibration_error(scaled_z, labels) > _calibration_error(z, labels)
    return fit_temperature(z, labels) if helps and not harms else 1.0


def _log_loss(logits: Floats, labels: Ints) -> float:
    largest = logits.max(axis=1)
    log_sum = np.log(np.exp(logits - largest[:, None]).sum(axis=1)) + largest
    return float((log_sum - logits[np.arange(len(labels)), labels]).mean())


def _calibration_error(logits: Floats, labels: Ints) -> float:
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = weights / weights.sum(axis=1, keepdims=True)
    gaps = confidence_gaps(probabilities, labels)
    return float(np.abs(gaps.sum(axis=0)).sum() / len(labels))


def fit_temperature(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """The temperature in 0.05..20 with the least log loss on logits [N, C] of labels [N].

    Guo et al., ICML 2017. Golden-section search over log T; the loss is convex in 1 / T, so it has
    one minimum. 1.0 if nothing is better.
    """
    z = np.asarray(logits, np.float64)

    def loss(log_temperature: float) -> float:
        return _log_loss(z / math.exp(log_temperature), labels)

    low = math.log(MIN_TEMPERATURE)
    high = math.log(MAX_TEMPERATURE)
    while high - low > 1e-6:
        step = GOLDEN_RATIO * (high - low)
        lower = high - step
        upper = low + step
        if loss(lower) <= loss(upper):
            high = upper
        else:
            low = lower

    best = 0.5 * (low + high)
    return math.exp(best) if loss(best) < loss(0.0) else 1.0
