"""Trivial predictors: what a model has to beat."""

import numpy as np
from numpy.typing import NDArray

from moola import WINDOW
from moola.errors import DataError
from moola.evaluation.arrays import Floats, Ints
from moola.evaluation.predictions import Predictions, Targets
from moola.features import FEATURE_NAMES, N_FEATURES

Features = NDArray[np.float32] | Floats  # [N, T, F]

TYPE_BASELINE = "majority_class"
POINTER_BASELINES = ("whole_window", "mean_pointer", "strongest_run")
BASELINE_TITLES = {name: name.replace("_", " ") for name in (TYPE_BASELINE, *POINTER_BASELINES)}
RUN_BARS = 8  # length of the strongest run


def baselines(
    targets: Targets,
    train_targets: Targets,
    features: Features,
) -> dict[str, Predictions]:
    """The trivial predictors by the name of their pointer.

    All have the training labels' shares as probabilities. whole_window: 0..104; mean_pointer:
    rounded mean start and end of training; strongest_run: the 8 bars with the largest |sum of
    range_z x body_pct|. features [N, T, F]. Raises DataError on any other shape.
    """
    n = len(targets.label)
    if features.shape != (n, WINDOW, N_FEATURES):
        raise DataError(
            f"features must be [{n}, {WINDOW}, {N_FEATURES}], got {list(features.shape)}"
        )

    counts = np.bincount(train_targets.label, minlength=len(targets.class_names))
    probabilities = np.tile(counts / len(train_targets.label), (n, 1))
    mean_start = int(np.rint(train_targets.start.mean()))
    mean_end = int(np.rint(train_targets.end.mean()))
    pointers = {
        "whole_window": (np.zeros(n, np.int64), np.full(n, WINDOW - 1)),
        "mean_pointer": (np.full(n, mean_start), np.full(n, mean_end)),
        "strongest_run": strongest_run(features),
    }

    return {name: Predictions(probabilities, *pointers[name]) for name in POINTER_BASELINES}


def strongest_run(features: Features) -> tuple[Ints, Ints]:
    """[N, T, F] -> first and last bar [N] of the 8 with the largest |sum of range_z x body_pct|.

    The earliest of equals.
    """
    range_z = features[:, :, FEATURE_NAMES.index("range_z")]
    body_pct = features[:, :, FEATURE_NAMES.index("body_pct")]
    push = range_z.astype(np.float64) * body_pct  # [N, T]

    runs = np.lib.stride_tricks.sliding_window_view(
        push,
        RUN_BARS,
        axis=1,
    )
    first: Ints = np.abs(runs.sum(axis=2)).argmax(axis=1)

    return first, first + RUN_BARS - 1
