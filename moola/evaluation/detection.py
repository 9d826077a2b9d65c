"""How well moves are found: which windows hold one, where moves are, how sure one may be.

A move that is found is right if its centre is within HIT_BARS of a known one's, each known move
counting for one found move; where nothing is known, what is found is neither right nor wrong.
"""

from collections.abc import Mapping
from typing import NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from moola import HIT_BARS, WINDOW
from moola.data.move_truth import IS_MOVE, IS_UNKNOWN, MoveTruth
from moola.evaluation.arrays import Floats, Ints, finite_or_none

Flags = NDArray[np.bool_]
CURVE_EDGES = (0.0, 0.2, 0.4, 0.6, 0.8, 0.85, 0.95, 1.0)  # of probabilities; one bin is around 0.9
THRESHOLDS = tuple(round(0.05 * k, 2) for k in range(1, 20))
LOWEST_THRESHOLD = 0.05
HIGHEST_THRESHOLD = 0.95


class Judged(NamedTuple):
    """What M found moves are worth.

    probability  [M]
    is_right     [M]
    is_wrong     [M]; neither where nothing is known
    n_moves      known moves that could have been found
    """

    probability: Floats
    is_right: Flags
    is_wrong: Flags
    n_moves: int


class Threshold(TypedDict):
    """What is found at a probability of at least `threshold`."""

    threshold: float
    precision: float | None
    recall: float | None
    n_found: int


class CalibrationBin(TypedDict):
    """Of the moves found with a probability from low up to high: how many are right."""

    low: float
    high: float
    count: int
    probability: float | None
    right: float | None


class Finder(TypedDict):
    """How well one way of finding moves does."""

    auc: float | None
    average_precision: float | None


class Detection(TypedDict):
    """Everything measured on one split, ready for JSON."""

    n_windows: int
    share_with_move: float | None
    n_moves: int
    n_found: int
    finders: dict[str, Finder]
    calibration: list[CalibrationBin]
    thresholds: list[Threshold]


def judge_moves(
    first: Ints,
    last: Ints,
    probability: Floats,
    truth: MoveTruth,
    window_row: Ints,
) -> Judged:
    """Found moves [M] of the windows at `window_row`, against the known moves in those windows.

    Those lie in stretches, one of each market, within which a window shares bars with the next.
    """
    is_next = np.diff(window_row) > WINDOW
    stretches = np.split(window_row, np.flatnonzero(is_next) + 1)
    inside = [truth.inside(int(rows[0]), int(rows[-1]) + WINDOW) for rows in stretches]
    known_first = np.concatenate([first for first, _ in inside])
    known_last = np.concatenate([last for _, last in inside])
    is_right = _pair_up(first + last, probability, known_first + known_last)
    is_unknown = truth.judge(first, last) == IS_UNKNOWN

    return Judged(
        probability,
        is_right,
        ~is_right & ~is_unknown,
        len(known_first),
    )


def _pair_up(found: Ints, probability: Floats, known: Ints) -> Flags:
    """[M] whether a found centre gets a known one, the surest first; all are doubled.

    Each takes the nearest that is left within HIT_BARS (the earlier of equals).
    """
    ordered = np.sort(known)
    is_taken = np.zeros(len(ordered), np.bool_)
    is_right = np.zeros(len(found), np.bool_)

    for k in np.argsort(-probability, kind="stable"):
        low = np.searchsorted(ordered, found[k] - 2 * HIT_BARS)
        high = np.searchsorted(ordered, found[k] + 2 * HIT_BARS, side="right")
        left = low + np.flatnonzero(~is_taken[low:high])
        if len(left):
            nearest = left[np.abs(ordered[left] - found[k]).argmin()]
            is_taken[nearest] = True
            is_right[k] = True

    return is_right


def average_precision(judged: Judged) -> float | None:
    """The mean over the known moves of the precision at which each is found, 0 if it is not.

    Found moves of one probability count as one step. None where no move is known.
    """
    if not judged.n_moves:
        return None

    counted = judged.is_right | judged.is_wrong
    right = judged.is_right[counted]
    probability = judged.probability[counted]
    order = np.argsort(-probability, kind="stable")
    n_right = np.cumsum(right[order])
    n_found = np.arange(1, len(order) + 1)
    is_step = np.diff(probability[order], append=-np.inf) != 0

    steps = n_right[is_step]
    precision = steps / n_found[is_step]
    return float((np.diff(steps, prepend=0) * precision).sum() / judged.n_moves)


def area_under_roc(score: Floats, is_true: Flags) -> float | None:
    """The probability that a true one has the higher score, equals counting half.

    None where there is only one kind.
    """
    n_true = int(is_true.sum())
    n_false = len(is_true) - n_true
    if not n_true or not n_false:
        return None

    _, place, count = np.unique(score, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(count) - (count - 1) / 2
    rank_sum = mean_rank[place][is_true].sum()
    return float((rank_sum - n_true * (n_true + 1) / 2) / (n_true * n_false))


def at_threshold(judged: Judged, threshold: float) -> Threshold:
    is_found = judged.probability >= threshold
    n_right = int((judged.is_right & is_found).sum())
    n_judged = n_right + int((judged.is_wrong & is_found).sum())

    return {
        "threshold": threshold,
        "precision": n_right / n_judged if n_judged else None,
        "recall": n_right / judged.n_moves if judged.n_moves else None,
        "n_found": int(is_found.sum()),
    }


def choose_threshold(judged: Judged) -> Threshold:
    """The probability, in hundredths of LOWEST_THRESHOLD..HIGHEST_THRESHOLD, with the best F1.

    The middle of those that are equally good; a threshold without a right find is as good as none.
    """
    percents = range(round(100 * LOWEST_THRESHOLD), round(100 * HIGHEST_THRESHOLD) + 1)
    options = [at_threshold(judged, percent / 100) for percent in percents]
    scores = np.array([_f1(option) for option in options])
    best = np.flatnonzero(scores == scores.max()).tolist()
    middle: int = best[(len(best) - 1) // 2]

    return options[middle]


def _f1(option: Threshold) -> float:
    precision = option["precision"] or 0.0
    recall = option["recall"] or 0.0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def calibration_curve(judged: Judged) -> list[CalibrationBin]:
    """How many of what is found at each probability are right; the last bin includes its end."""
    counted = judged.is_right | judged.is_wrong
    probability = judged.probability[counted]
    right = judged.is_right[counted]
    place = np.digitize(probability, CURVE_EDGES[1:-1])

    curve: list[CalibrationBin] = []
    for k in range(len(CURVE_EDGES) - 1):
        in_bin = place == k
        n = int(in_bin.sum())
        curve.append(
            {
                "low": CURVE_EDGES[k],
                "high": CURVE_EDGES[k + 1],
                "count": n,
                "probability": float(probability[in_bin].mean()) if n else None,
                "right": float(right[in_bin].mean()) if n else None,
            }
        )

    return curve


def measure_detection(
    finders: Mapping[str, tuple[Floats, Judged | None]],
    holds: Ints,
) -> Detection:
    """Of finders, the model first: name -> (a score of each window [W], what it found).

    What a finder finds is None where it says of windows alone whether they hold a move. holds [W]
    is what is known of each window.
    """
    is_judged = holds != IS_UNKNOWN
    is_true = holds[is_judged] == IS_MOVE
    judged = next(iter(finders.values()))[1]
    assert judged is not None

    return {
        "n_windows": int(is_judged.sum()),
        "share_with_move": finite_or_none(is_true.mean()) if is_judged.any() else None,
        "n_moves": judged.n_moves,
        "n_found": len(judged.probability),
        "finders": {
            name: {
                "auc": area_under_roc(score[is_judged], is_true),
                "average_precision": average_precision(found) if found else None,
            }
            for name, (score, found) in finders.items()
        },
        "calibration": calibration_curve(judged),
        "thresholds": [at_threshold(judged, threshold) for threshold in THRESHOLDS],
    }
