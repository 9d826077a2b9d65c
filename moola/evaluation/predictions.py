"""Predictions and targets of N windows, checked: C classes; start and end are offsets, 0..104."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moola import HIT_BARS, WINDOW
from moola.errors import DataError
from moola.evaluation.arrays import Floats, Ints


@dataclass(frozen=True)
class Predictions:
    """What a model predicts for N windows. Raises DataError where a rule below is broken.

    probabilities [N, C], rows summing to 1; start, end [N] bars, both inclusive,
    0 <= start <= end <= 104.
    """

    probabilities: Floats
    start: Ints
    end: Ints
    window_id: NDArray[np.object_] | None = None

    def __post_init__(self) -> None:
        p = np.asarray(self.probabilities, np.float64)
        if p.ndim != 2 or len(p) == 0:
            raise DataError(f"probabilities must be [N, C] with N > 0, got {list(p.shape)}")

        in_range = np.isfinite(p).all(axis=1) & (p >= 0).all(axis=1)
        sums_to_1 = np.abs(p.sum(axis=1) - 1) < 1e-3
        bad = ~(in_range & sums_to_1)
        if bad.any():
            i = int(bad.argmax())
            raise DataError(
                f"probabilities must be in 0..1 and sum to 1, got {p[i].tolist()} (window {i})"
            )

        object.__setattr__(self, "probabilities", p)
        _check_pointers(self, len(p))

    @property
    def label(self) -> Ints:
        """[N] the most probable class; the first of equals."""
        label: Ints = self.probabilities.argmax(axis=1)
        return label


@dataclass(frozen=True)
class Targets:
    """What is true of N windows: label [N] as an index into class_names; start, end [N] as in
    `Predictions`. Raises DataError where a rule is broken."""

    label: Ints
    start: Ints
    end: Ints
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        label = np.asarray(self.label, np.int64)
        object.__setattr__(self, "label", label)
        object.__setattr__(
            self,
            "class_names",
            tuple(self.class_names),
        )

        n_classes = len(self.class_names)
        bad = (label < 0) | (label >= n_classes)
        if bad.any():
            i = int(bad.argmax())
            raise DataError(f"a label must be in 0..{n_classes - 1}, got {label[i]} (window {i})")

        _check_pointers(self, len(label))


def _check_pointers(windows: Predictions | Targets, n: int) -> None:
    start = np.asarray(windows.start, np.int64)
    end = np.asarray(windows.end, np.int64)
    if start.shape != (n,) or end.shape != (n,):
        raise DataError(
            f"start and end must be [{n}], got {list(start.shape)} and {list(end.shape)}"
        )

    bad = (start < 0) | (end >= WINDOW) | (start > end)
    if bad.any():
        i = int(bad.argmax())
        raise DataError(f"0 <= start <= end <= {WINDOW - 1}, got {start[i]}..{end[i]} (window {i})")

    object.__setattr__(windows, "start", start)
    object.__setattr__(windows, "end", end)


def centre_distance(predictions: Predictions, targets: Targets) -> Floats:
    """[N] bars between the centres; a multiple of half a bar."""
    twice = predictions.start + predictions.end - targets.start - targets.end
    distance: Floats = 0.5 * np.abs(twice)
    return distance


def joint_success(predictions: Predictions, targets: Targets) -> NDArray[np.bool_]:
    """[N] True where the type is right and the centre within HIT_BARS."""
    right = predictions.label == targets.label
    return np.asarray(right & (centre_distance(predictions, targets) <= HIT_BARS))
