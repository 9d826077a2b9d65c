"""How finding moves is measured: perfect finders, worthless ones, and cases worked out by hand."""

import numpy as np
import pytest

from moola.data.move_truth import IS_MOVE, IS_NONE, IS_UNKNOWN, MoveTruth
from moola.evaluation.detection import (
    Judged,
    area_under_roc,
    average_precision,
    calibration_curve,
    choose_threshold,
    judge_moves,
    measure_detection,
)
from moola.evaluation.gates import detection_gates
from moola.specs import GateConfig

N_BARS = 600
FIRST = np.array([50, 150, 300, 420])
LAST = FIRST + 9
WINDOW_ROW = np.arange(0, N_BARS - 104, 15)


def truth(known: np.ndarray | None = None) -> MoveTruth:
    is_known = np.ones(N_BARS, np.bool_) if known is None else known
    return MoveTruth(FIRST, LAST, is_known, "unlabelled stretches")


def judged(probability: list[float], right: list[bool], n_moves: int) -> Judged:
    is_right = np.array(right, np.bool_)
    return Judged(np.array(probability), is_right, ~is_right, n_moves)


def test_a_perfect_finder_scores_one() -> None:
    found = judge_moves(FIRST, LAST, np.array([0.9, 0.8, 0.7, 0.6]), truth(), WINDOW_ROW)
    assert found.is_right.all()
    assert not found.is_wrong.any()
    assert average_precision(found) == 1
    holds = truth().holds_move(WINDOW_ROW)
    detection = measure_detection({"model": (holds.astype(float), found)}, holds)
    assert detection["finders"]["model"] == {"auc": 1.0, "average_precision": 1.0}
    assert all(gate.passed for gate in detection_gates(detection, GateConfig()))
    assert not detection_gates(detection, GateConfig(min_window_auc=1.0))[0].bound.startswith("<")


def test_a_known_move_counts_for_one_found_move_and_three_bars_off_is_right() -> None:
    first = np.array([53, 49, 304])
    found = judge_moves(first, first + 9, np.array([0.9, 0.8, 0.7]), truth(), WINDOW_ROW)
    assert found.is_right.tolist() == [True, False, False]
    assert found.is_wrong.tolist() == [False, True, True]


def test_what_lies_where_nothing_is_known_is_neither_right_nor_wrong() -> None:
    known = np.zeros(N_BARS, np.bool_)
    known[200:260] = True
    first = np.array([500, 210, 55])  # unknown, known to be none, beside a move
    found = judge_moves(first, first + 9, np.full(3, 0.5), truth(known), WINDOW_ROW)
    assert found.is_right.tolist() == [False, False, False]
    assert found.is_wrong.tolist() == [
        False,
        True,
        True,
    ]


def test_average_precision_by_hand() -> None:
    """Right at ranks 1 and 3 of three found, two of three known: (1/1 + 2/3) / 3."""
    found = judged([0.9, 0.8, 0.7], [True, False, True], 3)
    assert average_precision(found) == pytest.approx((1 + 2 / 3) / 3)
    tied = judged([0.5, 0.5], [True, False], 1)
    assert average_precision(tied) == 0.5
    assert average_precision(judged([], [], 0)) is None
    assert average_precision(judged([], [], 2)) == 0


def test_the_area_under_roc_by_hand() -> None:
    is_true = np.array([True, True, False, False])
    assert area_under_roc(np.array([4.0, 2, 3, 1]), is_true) == 0.75
    assert area_under_roc(np.ones(4), is_true) == 0.5
    assert area_under_roc(np.ones(4), np.ones(4, np.bool_)) is None


def test_the_threshold_is_the_one_with_the_best_f1() -> None:
    """Five known. At 0.80: 2 of 2 right, F1 = 4/7. At 0.60: 4 of 5, F1 = 8/10. At 0.40: 4 of 7,
    F1 = 8/12. So anything above 0.40 up to 0.60 is best, and the middle of 0.41..0.60 is 0.50."""
    probability = [0.8, 0.8, 0.6, 0.6, 0.6, 0.4, 0.4]
    found = judged(probability, [True, True, True, True, False, False, False], 5)
    chosen = choose_threshold(found)
    assert chosen == {"threshold": 0.5, "precision": 0.8, "recall": 0.8, "n_found": 5}


def test_calibration_counts_what_is_right_in_each_bin() -> None:
    found = judged([0.9, 0.92, 0.86, 0.88, 0.1, 1.0], [True, True, True, False, False, True], 5)
    curve = {row["low"]: row for row in calibration_curve(found)}
    assert (curve[0.85]["count"], curve[0.85]["right"]) == (4, 0.75)
    assert curve[0.85]["probability"] == pytest.approx(0.89)
    assert (curve[0.95]["count"], curve[0.0]["right"]) == (1, 0.0)
    assert curve[0.4]["right"] is None


def test_truth_of_windows_and_spans_against_loops() -> None:
    rng = np.random.default_rng(0)
    known = rng.random(N_BARS) < 0.998
    known[FIRST[0] : LAST[-1]] = True
    own = truth(known)
    for row, holds in zip(WINDOW_ROW, own.holds_move(WINDOW_ROW), strict=True):
        whole = any(a >= row and b <= row + 104 for a, b in zip(FIRST, LAST, strict=True))
        wanted = IS_MOVE if whole else IS_NONE if known[row : row + 105].all() else IS_UNKNOWN
        assert holds == wanted

    first = rng.integers(0, N_BARS - 20, 400)
    last = first + rng.integers(0, 20, 400)
    for start, end, verdict in zip(first, last, own.judge(first, last), strict=True):
        off = min(abs(start + end - a - b) / 2 for a, b in zip(FIRST, LAST, strict=True))
        shares = any(start <= b and end >= a for a, b in zip(FIRST, LAST, strict=True))
        wanted = IS_NONE if shares or known[start : end + 1].all() else IS_UNKNOWN
        assert verdict == (IS_MOVE if off <= 3 else wanted)
