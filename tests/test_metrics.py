"""Metrics: hand-worked answers, plain-Python oracles, and every gate seen to fail."""

import io
import json
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from rich.console import Console

from moola import WINDOW
from moola.errors import DataError
from moola.evaluation.baselines import baselines, strongest_run
from moola.evaluation.calibration import (
    ECE_BINS,
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    confidence_bins,
    fit_temperature,
    helpful_temperature,
    scale,
)
from moola.evaluation.formats import format_value
from moola.evaluation.gates import Gate, all_passed, check_gates
from moola.evaluation.metrics import CURVE_TOLERANCES, catalogue, evaluate, score
from moola.evaluation.predictions import Predictions, Targets
from moola.evaluation.tables import gates_table, metrics_table
from moola.features import FEATURE_NAMES, N_FEATURES
from moola.specs import GateConfig

NAMES = ("consolidation", "retracement")
SETTLED = {"sigma_ptr": [1.2] * 40, "sigma_type": [0.8] * 40}
FINITE = {"loss": [2.0, 1.5, 1.2], "loss_ptr": [1.44] * 40, "loss_type": [0.64] * 40}


def targets_of(label, start, end, names=NAMES) -> Targets:
    return Targets(np.array(label), np.array(start), np.array(end), names)


def predictions_of(label, start, end, confidence=1.0, n_classes=2) -> Predictions:
    label = np.asarray(label)
    p = np.full((len(label), n_classes), (1 - confidence) / (n_classes - 1))
    p[np.arange(len(label)), label] = confidence
    return Predictions(p, np.array(start), np.array(end))


def drawn(seed: int, n: int, n_classes: int = 2) -> tuple[Predictions, Targets]:
    rng = np.random.default_rng(seed)
    names = NAMES if n_classes == 2 else tuple(f"c{i}" for i in range(n_classes))
    true, predicted = np.sort(rng.integers(0, WINDOW, (2, n, 2)), axis=2)
    label = rng.integers(0, n_classes, n)
    near = rng.random(n) < 0.5
    predicted[near] = np.clip(true[near] + rng.integers(-4, 5, (near.sum(), 1)), 0, WINDOW - 1)
    p = rng.dirichlet(np.ones(n_classes), n)
    return Predictions(p, predicted[:, 0], predicted[:, 1]), targets_of(
        label, true[:, 0], true[:, 1], names
    )


def no_features(n: int) -> np.ndarray:
    return np.zeros((n, WINDOW, N_FEATURES), np.float32)


def evaluation_of(predictions: Predictions, targets: Targets, **options):
    options = {"resamples": 200} | options
    return evaluate(predictions, targets, targets, no_features(len(targets.label)), **options)


# --- answers worked out by hand -------------------------------------------------------------------


def test_a_perfect_predictor_scores_1_everywhere() -> None:
    targets = targets_of([0, 1, 1, 0, 1], [3, 40, 90, 0, 50], [9, 47, 104, 0, 60])
    result = evaluation_of(predictions_of(targets.label, targets.start, targets.end), targets)
    for name, metric in result["metrics"].items():
        if metric["better"] == 0:  # the predicted share of each of two classes
            assert metric["value"] == 0.5, name
        else:
            assert metric["value"] == (1.0 if metric["better"] > 0 else 0.0), name
    assert result["confusion"] == [[2, 0], [0, 3]]
    assert result["hit_curve"]["model"] == [1.0] * 21


def test_the_majority_class_scores_what_is_worked_out_by_hand() -> None:
    """6 of 10 test windows are class 1, and so are 9 of 12 training labels."""
    targets = targets_of([0] * 4 + [1] * 6, [10] * 10, [20] * 10)
    train = targets_of([0] * 3 + [1] * 9, [10] * 12, [20] * 12)
    perfect = predictions_of(targets.label, targets.start, targets.end)
    metrics = evaluate(perfect, targets, train, no_features(10), resamples=50)["metrics"]
    trivial = {
        name: m["baselines"]["majority_class"] for name, m in metrics.items() if m["kind"] == "type"
    }
    assert trivial["f1[consolidation]"] == 0
    assert trivial["f1[retracement]"] == pytest.approx(2 * 6 / (6 + 10))
    assert trivial["f1_macro"] == pytest.approx(0.375)
    assert trivial["precision[consolidation]"] is None  # never predicted: 0 / 0
    assert (trivial["precision[retracement]"], trivial["recall[retracement]"]) == (0.6, 1.0)
    assert (trivial["predicted_share[consolidation]"], trivial["predicted_share[retracement]"]) == (
        0.0,
        1.0,
    )
    assert trivial["accuracy"] == 0.6
    assert trivial["ece"] == pytest.approx(abs(0.6 - 0.75))  # confidence is the training share


def test_the_whole_window_and_the_mean_pointer_score_what_is_worked_out_by_hand() -> None:
    """Whole window 0..104: centre 52.

    Training means: start (40 + 51) / 2 = 45.5 -> 46, end 57 -> centre 51.5.
    """
    targets = targets_of([0, 0, 1, 1], [50, 46, 0, 100], [54, 50, 104, 104])
    train = targets_of([0, 0], [40, 51], [50, 64])
    perfect = predictions_of(targets.label, targets.start, targets.end)
    result = evaluate(perfect, targets, train, no_features(4), resamples=50)
    metrics = result["metrics"]
    whole = {name: m["baselines"].get("whole_window") for name, m in metrics.items()}
    assert whole["hit_centre_1"] == 0.5  # centres 52, 48, 52, 102
    assert whole["hit_centre_3"] == 0.5
    assert whole["hit_centre_5"] == 0.75
    assert whole["hit_ends_5"] == 0.25
    assert whole["iou"] == pytest.approx((5 / 105 + 5 / 105 + 1 + 5 / 105) / 4)
    assert whole["mae_centre_bars"] == pytest.approx((0 + 4 + 0 + 50) / 4)
    assert whole["mae_start_bars"] == pytest.approx((50 + 46 + 0 + 100) / 4)
    assert whole["joint_success"] == 0.25  # with the majority class 0: only the first window
    assert result["hit_curve"]["whole_window"][3:5] == [0.5, 0.75]
    mean = {name: m["baselines"].get("mean_pointer") for name, m in metrics.items()}
    assert mean["mae_start_bars"] == pytest.approx((4 + 0 + 46 + 54) / 4)
    assert mean["mae_centre_bars"] == pytest.approx((0.5 + 3.5 + 0.5 + 50.5) / 4)


def test_the_strongest_run_is_the_8_bars_that_push_hardest_either_way() -> None:
    features = no_features(3)
    z, body = FEATURE_NAMES.index("range_z"), FEATURE_NAMES.index("body_pct")
    assert (z, body) == (5, 2)
    features[:, :, z] = 1
    features[0, 30:38, body] = -0.5  # 8 bars down: a sum of -4
    features[0, 60:68, body] = 0.4
    features[1, 97:, body] = 0.1  # the last place a run fits
    features[1, 10:18:2, body], features[1, 11:18:2, body] = 0.6, -0.6  # stronger bars that cancel
    first, last = strongest_run(features)
    assert first.tolist() == [30, 97, 0]
    assert last.tolist() == [37, 104, 7]
    run = baselines(targets_of([0] * 3, [0] * 3, [0] * 3), targets_of([0], [0], [0]), features)[
        "strongest_run"
    ]
    assert (run.start.tolist(), run.end.tolist()) == ([30, 97, 0], [37, 104, 7])


def test_shares_are_those_of_a_class_balanced_set() -> None:
    """8 of class 0, all predicted 0;
    2 of class 1, one predicted 1: 0.5 * 1 + 0.5 * 0.5 are class 0."""
    targets = targets_of([0] * 8 + [1] * 2, [5] * 10, [9] * 10)
    values = score(predictions_of([0] * 9 + [1], [5] * 10, [9] * 10), targets)
    assert values["predicted_share[consolidation]"] == 0.75
    assert values["predicted_share[retracement]"] == 0.25


def test_ece_is_the_gap_per_bin_weighted_by_its_windows() -> None:
    """Bins of 1/15: 0.95 x 4 with 3 right: gap 0.2; 0.62 x 6 with 3 right: gap 0.12."""
    p = np.array([0.95] * 4 + [0.62] * 6)
    label = np.array([0, 0, 0, 1, 0, 0, 0, 1, 1, 1])
    predictions = Predictions(np.stack([p, 1 - p], axis=1), np.zeros(10, int), np.zeros(10, int))
    targets = targets_of(label, [0] * 10, [0] * 10)
    assert score(predictions, targets)["ece"] == pytest.approx(0.4 * 0.2 + 0.6 * 0.12)
    reliability = evaluation_of(predictions, targets)["reliability"]["before"]
    assert (reliability["count"][9], reliability["count"][14]) == (6, 4)
    assert (reliability["accuracy"][14], reliability["confidence"][14]) == pytest.approx(
        (0.75, 0.95)
    )
    assert reliability["accuracy"][0] is None


def test_a_confidence_at_an_edge_belongs_to_the_bin_below() -> None:
    edges = np.linspace(0, 1, ECE_BINS + 1)
    assert confidence_bins(edges[1:]).tolist() == list(range(ECE_BINS))
    assert confidence_bins(edges[1:-1] + 1e-9).tolist() == list(range(1, ECE_BINS))


def test_half_a_bar_counts_at_the_tolerance() -> None:
    targets = targets_of([0, 0], [10, 10], [20, 20])
    values = score(predictions_of([0, 0], [13, 13], [23, 24]), targets)  # centres off by 3 and 3.5
    assert values["hit_centre_3"] == 0.5
    assert values["hit_ends_3"] == 0.5
    assert values["hit_centre_5"] == values["hit_ends_5"] == 1


# --- slow oracles ---------------------------------------------------------------------------------


def slow_scores(predictions: Predictions, targets: Targets) -> dict[str, float]:
    """The metrics window by window, in plain Python."""
    n, names = len(targets.label), targets.class_names
    rows = [[float(x) for x in row] for row in predictions.probabilities]
    predicted = [row.index(max(row)) for row in rows]
    true = [int(x) for x in targets.label]
    out, f1s = {}, []
    for c, name in enumerate(names):
        tp = sum(t == c and f == c for t, f in zip(true, predicted, strict=True))
        out[f"precision[{name}]"] = tp / predicted.count(c) if c in predicted else math.nan
        out[f"recall[{name}]"] = tp / true.count(c) if c in true else math.nan
        out[f"f1[{name}]"] = (
            2 * tp / (true.count(c) + predicted.count(c))
            if c in true or c in predicted
            else math.nan
        )
        f1s += [out[f"f1[{name}]"]] if c in true else []
        shares = [
            sum(f == c for t, f in zip(true, predicted, strict=True) if t == k) / true.count(k)
            for k in set(true)
        ]
        out[f"predicted_share[{name}]"] = sum(shares) / len(shares)
    out["f1_macro"] = sum(f1s) / len(f1s)
    spans = [
        (set(range(a, b + 1)), set(range(s, e + 1)), (a + b) / 2 - (s + e) / 2, a - s, b - e)
        for a, b, s, e in zip(
            predictions.start, predictions.end, targets.start, targets.end, strict=True
        )
    ]
    out["accuracy"] = sum(t == f for t, f in zip(true, predicted, strict=True)) / n
    for k in (1, 3, 5):
        out[f"hit_centre_{k}"] = sum(abs(c) <= k for *_, c, _, _ in spans) / n
        out[f"hit_ends_{k}"] = sum(abs(a) <= k and abs(b) <= k for *_, a, b in spans) / n
    out["iou"] = sum(len(p & q) / len(p | q) for p, q, *_ in spans) / n
    for field, i in (("centre", 2), ("start", 3), ("end", 4)):
        out[f"mae_{field}_bars"] = sum(abs(float(s[i])) for s in spans) / n
    out["joint_success"] = (
        sum(t == f and abs(s[2]) <= 3 for t, f, s in zip(true, predicted, spans, strict=True)) / n
    )
    bins: dict[int, list[float]] = {}
    for t, f, row in zip(true, predicted, rows, strict=True):
        bins.setdefault(math.ceil(max(row) * 15), []).append((t == f) - max(row))
    out["ece"] = out["ece_scaled"] = sum(abs(sum(gaps)) for gaps in bins.values()) / n
    return out


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("n", [1, 2, 7, 200])
@pytest.mark.parametrize("seed", range(3))
def test_metrics_agree_with_plain_python(seed: int, n: int, n_classes: int) -> None:
    predictions, targets = drawn(seed, n, n_classes)
    expected = slow_scores(predictions, targets)
    values = score(predictions, targets)
    assert set(values) == set(expected) == set(catalogue(targets.class_names))
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, nan_ok=True), name


def test_an_interval_is_that_of_scoring_resampled_windows_one_by_one() -> None:
    predictions, targets = drawn(5, 60)
    result = evaluation_of(predictions, targets, resamples=400, seed=3)
    picks = np.random.default_rng(3).integers(0, 60, (400, 60))
    scores = [
        slow_scores(
            Predictions(predictions.probabilities[i], predictions.start[i], predictions.end[i]),
            targets_of(targets.label[i], targets.start[i], targets.end[i]),
        )
        for i in picks
    ]
    for name in ("f1_macro", "iou", "hit_centre_3", "joint_success"):
        low, high = np.percentile([s[name] for s in scores], [2.5, 97.5])
        metric = result["metrics"][name]
        assert (metric["low"], metric["high"]) == pytest.approx((low, high)), name


def test_the_hit_curve_is_hit_at_each_tolerance() -> None:
    predictions, targets = drawn(2, 300)
    result = evaluation_of(predictions, targets)
    curve = dict(
        zip(result["hit_curve"]["tolerance_bars"], result["hit_curve"]["model"], strict=True)
    )
    assert list(curve) == list(CURVE_TOLERANCES) == list(range(21))
    for k in (1, 3, 5):
        assert curve[k] == result["metrics"][f"hit_centre_{k}"]["value"]
    assert list(curve.values()) == sorted(curve.values())


# --- intervals ------------------------------------------------------------------------------------


def test_an_interval_covers_its_value_and_shrinks_with_more_windows() -> None:
    few, many = (evaluation_of(*drawn(1, n), resamples=400)["metrics"] for n in (40, 4000))
    for name, metric in many.items():
        if name.startswith("ece"):
            assert metric["low"] is metric["high"] is None
            continue
        assert metric["low"] <= metric["value"] <= metric["high"], name
        width = metric["high"] - metric["low"]
        assert width < 0.3 * (few[name]["high"] - few[name]["low"]), (
            name
        )  # 1 / sqrt(100), with room


def test_about_95_percent_of_intervals_cover_the_truth() -> None:
    covered = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        offset = np.where(rng.random(150) < 0.7, 0, 40)  # Hit@3 is 0.7 in truth
        predictions = predictions_of([0] * 150, 10 + offset, 20 + offset)
        hit = evaluation_of(predictions, targets_of([0] * 150, [10] * 150, [20] * 150))["metrics"][
            "hit_centre_3"
        ]
        covered += hit["low"] <= 0.7 <= hit["high"]
    assert 0.90 <= covered / 200 <= 0.99


def test_one_seed_gives_one_interval_however_the_resamples_are_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    predictions, targets = drawn(1, 50)
    at_once = evaluation_of(predictions, targets, seed=7)
    assert evaluation_of(predictions, targets, seed=7) == at_once
    assert evaluation_of(predictions, targets, seed=8) != at_once
    monkeypatch.setattr("moola.evaluation.intervals.MAX_WEIGHTS", 50 * 7)
    in_parts = evaluation_of(predictions, targets, seed=7)
    for name, metric in in_parts["metrics"].items():
        assert metric["low"] == pytest.approx(at_once["metrics"][name]["low"]), name


# --- calibration ----------------------------------------------------------------------------------


@pytest.mark.parametrize("planted", [0.5, 1.0, 2.5])
def test_a_planted_temperature_is_recovered(planted: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (40_000, 3))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (p.cumsum(axis=1) > rng.random((40_000, 1))).argmax(
        axis=1
    )  # drawn from the calibrated probabilities
    assert fit_temperature(logits * planted, labels) == pytest.approx(planted, rel=0.03)


def test_temperature_scaling_lowers_the_ece_of_an_overconfident_model() -> None:
    rng = np.random.default_rng(1)
    n = 4000
    logit = rng.normal(0, 1.5, n)
    label = (rng.random(n) > 1 / (1 + np.exp(-logit))).astype(
        int
    )  # class 0 with probability sigmoid(logit)
    logits = 3 * np.stack([logit, np.zeros(n)], axis=1)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    predictions = Predictions(p, np.zeros(n, int), np.zeros(n, int))
    targets = targets_of(label, [0] * n, [0] * n)
    result = evaluation_of(predictions, targets, temperature=fit_temperature(logits, label))
    before, after = (result["metrics"][name]["value"] for name in ("ece", "ece_scaled"))
    assert before > 0.1
    assert after < 0.03
    assert result["reliability"]["before"] != result["reliability"]["after"]


def drawn_labels(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits [n, 2] that are calibrated, and labels drawn from them."""
    rng = np.random.default_rng(seed)
    logit = rng.normal(0, 1.5, n)
    label = (rng.random(n) > 1 / (1 + np.exp(-logit))).astype(np.int64)
    return np.stack([logit, np.zeros(n)], axis=1), label


def test_a_temperature_that_cross_fitting_confirms_is_the_fitted_one() -> None:
    logits, label = drawn_labels(4000, 1)
    assert helpful_temperature(3 * logits, label) == fit_temperature(3 * logits, label)
    assert fit_temperature(3 * logits, label) == pytest.approx(3, rel=0.1)


def test_a_few_windows_of_a_calibrated_model_seldom_get_a_temperature() -> None:
    """Fitted on 46 windows, a temperature is noise: mostly it makes what is new worse."""
    n_fitted = n_helpful = 0
    for seed in range(40):
        logits, label = drawn_labels(46, seed)
        n_fitted += fit_temperature(logits, label) != 1.0
        n_helpful += helpful_temperature(logits, label) != 1.0
    assert n_fitted == 40
    assert n_helpful <= 10


def test_a_temperature_of_one_stretch_alone_is_not_applied() -> None:
    """Always right in four stretches, always wrong in the last: what is fitted helps nobody new."""
    label = np.zeros(50, np.int64)
    logits = np.tile([2.0, 0.0], (50, 1))
    logits[40:] = [0.0, 2.0]
    assert fit_temperature(logits, label) != 1.0
    assert helpful_temperature(logits, label) == 1.0


@pytest.mark.parametrize("n", [1, 2, 3])
def test_hardly_any_window_still_gives_a_temperature(n: int) -> None:
    logits, label = drawn_labels(n, 0)
    assert 0 < helpful_temperature(logits, label) <= MAX_TEMPERATURE


def test_scaling_probabilities_is_scaling_logits() -> None:
    logits = np.random.default_rng(0).normal(0, 3, (50, 4))
    p, q = (np.exp(z) / np.exp(z).sum(axis=1, keepdims=True) for z in (logits, logits / 1.7))
    np.testing.assert_allclose(scale(p, 1.7), q, rtol=1e-10)
    sure = np.array([[1.0, 0.0], [0.0, 1.0]])
    for temperature in (MIN_TEMPERATURE, 1.0, MAX_TEMPERATURE):  # no overflow, whatever is sure
        scaled = scale(sure, temperature)
        np.testing.assert_allclose(scaled.sum(axis=1), 1)
        assert (scaled.argmax(axis=1) == [0, 1]).all()
    np.testing.assert_allclose(scale(sure, MIN_TEMPERATURE), sure, atol=1e-12)


def test_a_temperature_stays_within_its_bounds_where_the_loss_has_no_minimum() -> None:
    assert fit_temperature(np.array([[1.0, -1.0]]), np.array([0])) == pytest.approx(
        0.05, rel=1e-3
    )  # always right
    assert fit_temperature(np.array([[1.0, -1.0]]), np.array([1])) == pytest.approx(
        20, rel=1e-3
    )  # always wrong
    assert fit_temperature(np.zeros((4, 2)), np.array([0, 1, 1, 0])) == 1.0  # nothing to choose


# --- properties -----------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 60), n_classes=st.integers(2, 4))
def test_metrics_do_not_depend_on_the_order_of_windows(seed: int, n: int, n_classes: int) -> None:
    predictions, targets = drawn(seed, n, n_classes)
    order = np.random.default_rng(seed).permutation(n)
    again = score(
        Predictions(
            predictions.probabilities[order], predictions.start[order], predictions.end[order]
        ),
        targets_of(
            targets.label[order], targets.start[order], targets.end[order], targets.class_names
        ),
    )
    for name, value in score(predictions, targets).items():
        assert again[name] == pytest.approx(value, nan_ok=True), name


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 60), n_classes=st.integers(2, 4))
def test_metrics_stay_in_their_bounds(seed: int, n: int, n_classes: int) -> None:
    predictions, targets = drawn(seed, n, n_classes)
    values = score(predictions, targets)
    for name, metric in catalogue(targets.class_names).items():
        top = WINDOW - 1 if metric.unit == "bars" else 1
        assert math.isnan(values[name]) or 0 <= values[name] <= top + 1e-12, name
    assert values["hit_centre_1"] <= values["hit_centre_3"] <= values["hit_centre_5"]
    assert values["joint_success"] <= min(values["hit_centre_3"], values["accuracy"])
    shares = [values[f"predicted_share[{name}]"] for name in targets.class_names]
    assert sum(shares) == pytest.approx(1)


def test_an_evaluation_is_json_with_a_baseline_beside_every_metric() -> None:
    predictions, targets = drawn(4, 30)
    result = evaluation_of(predictions, targets)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert Counter(m["kind"] for m in result["metrics"].values()) == {
        "type": 12,
        "pointer": 10,
        "joint": 1,
    }
    for name, metric in result["metrics"].items():
        expected = (
            {"majority_class"}
            if metric["kind"] == "type"
            else {"whole_window", "mean_pointer", "strongest_run"}
        )
        assert set(metric["baselines"]) == expected, name


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("probabilities", "start", "end", "message"),
    [
        ([[0.5, 0.502]], [0], [1], r"sum to 1, got"),
        ([[0.5, 0.6]], [0], [1], r"sum to 1, got \[0.5, 0.6\] \(window 0\)"),
        ([[0.5, 0.5], [np.nan, 1.0]], [0, 0], [1, 1], r"sum to 1, got \[nan, 1.0\] \(window 1\)"),
        ([[1.5, -0.5]], [0], [1], r"in 0\.\.1"),
        ([[0.5, 0.5]], [0], [105], r"end <= 104, got 0\.\.105 \(window 0\)"),
        ([[0.5, 0.5]], [-1], [5], r"0 <= start"),
        ([[0.5, 0.5]], [6], [5], r"start <= end <= 104, got 6\.\.5"),
        ([[0.5, 0.5]], [6, 7], [8, 9], r"start and end must be \[1\], got \[2\]"),
        (np.zeros((0, 2)), [], [], r"N > 0, got \[0, 2\]"),
    ],
)
def test_predictions_that_break_a_rule_are_refused(probabilities, start, end, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Predictions(np.array(probabilities), np.array(start), np.array(end))


def test_targets_and_shapes_that_disagree_are_refused() -> None:
    with pytest.raises(DataError, match=r"0\.\.1, got 2 \(window 1\)"):
        targets_of([0, 2], [0, 0], [1, 1])
    predictions, targets = drawn(0, 5)
    with pytest.raises(DataError, match=r"features must be \[5, 105, 11\], got \[5, 105, 10\]"):
        evaluate(predictions, targets, targets, np.zeros((5, WINDOW, 10)))
    with pytest.raises(DataError, match="same windows, got 5 and 4"):
        evaluate(predictions, drawn(0, 4)[1], targets, no_features(5))
    with pytest.raises(DataError, match="one column per class, got 3"):
        evaluate(drawn(0, 5, 3)[0], targets, targets, no_features(5))
    with pytest.raises(DataError, match="differ from training's"):
        evaluate(predictions, targets, targets_of([0], [0], [1], ("a", "b")), no_features(5))


# --- gates ----------------------------------------------------------------------------------------


def good_evaluation():
    """80 % of types right, all pointers off by 2."""
    label = np.array([0, 1] * 50)
    predicted = np.where(np.arange(100) % 10 < 2, 1 - label, label)
    return evaluation_of(
        predictions_of(predicted, [12] * 100, [22] * 100), targets_of(label, [10] * 100, [20] * 100)
    )


def failed(**changed) -> list[str]:
    given = {
        "validation": good_evaluation(),
        "sigma_history": SETTLED,
        "loss_history": FINITE,
        "config": GateConfig(),
    }
    gates = check_gates(**(given | changed))
    return [gate.name for gate in gates if gate.judged and not gate.passed]


def test_a_good_run_passes_every_gate() -> None:
    gates = check_gates(good_evaluation(), SETTLED, FINITE, GateConfig(), good_evaluation())
    assert all(gate.passed for gate in gates)
    sigmas = [1.0, 1.2, 1.2, 1.0, 0.8, 0.8]
    assert [gate.value for gate in gates] == pytest.approx([0.5, 0.8, 1.0, *sigmas, 0])
    assert [gate.test for gate in gates[:3]] == pytest.approx([0.5, 0.8, 1.0])
    assert [gate.bound for gate in gates] == [
        "> 0.30",
        ">= 0.60",
        ">= 0.60",
        *["0.75 to 1.25", "< 2", "0.5 to 2"] * 2,
        "0",
    ]


def test_the_share_gate_fails_where_a_class_is_hardly_predicted() -> None:
    """All of class 0 right and 60 % of class 1:
    30 % of a balanced set is predicted 1, and 30 % is not enough."""
    label = np.array([0] * 50 + [1] * 50)
    predicted = np.array([0] * 70 + [1] * 30)
    metrics = evaluation_of(
        predictions_of(predicted, [12] * 100, [22] * 100), targets_of(label, [10] * 100, [20] * 100)
    )
    assert failed(validation=metrics) == ["predicted share of the rarer class (balanced)"]
    predicted[69] = 1
    metrics = evaluation_of(
        predictions_of(predicted, [12] * 100, [22] * 100), targets_of(label, [10] * 100, [20] * 100)
    )
    assert failed(validation=metrics) == []


@pytest.mark.parametrize("n_classes", [2, 3, 5])
def test_a_perfect_model_passes_the_share_gate_with_any_number_of_classes(n_classes: int) -> None:
    names = tuple(f"c{k}" for k in range(n_classes))
    label = np.arange(20 * n_classes) % n_classes
    ends = [10] * len(label), [20] * len(label)
    metrics = evaluation_of(
        predictions_of(label, *ends, n_classes=n_classes), targets_of(label, *ends, names)
    )
    gates = check_gates(metrics, SETTLED, FINITE, GateConfig())
    assert gates[0].bound == f"> {0.6 / n_classes:.2f}"
    assert all(gate.passed for gate in gates)


def test_a_class_without_labels_is_not_judged() -> None:
    """Learned in training alone: it need not be predicted, and costs little where it is."""
    label = np.array([0, 1] * 20)
    ends = [10] * 40, [20] * 40
    names = ("consolidation", "retracement", "rare")
    targets = targets_of(label, *ends, names)
    metrics = evaluation_of(predictions_of(label, *ends, n_classes=3), targets)
    assert failed(validation=metrics) == []
    assert metrics["metrics"]["f1_macro"]["value"] == 1

    label[0] = 2
    values = score(predictions_of(label, *ends, n_classes=3), targets)
    assert values["f1_macro"] == pytest.approx((2 * 19 / 39 + 1) / 2)


def test_the_f1_gate_fails_below_its_bound() -> None:
    label = np.array([0, 1] * 50)
    predicted = np.where(np.arange(100) % 100 < 42, 1 - label, label)
    metrics = evaluation_of(
        predictions_of(predicted, [12] * 100, [22] * 100), targets_of(label, [10] * 100, [20] * 100)
    )
    assert failed(validation=metrics) == ["F1, macro"]
    assert failed(validation=metrics, config=GateConfig(min_f1_macro=0.58)) == []


def test_the_hit_gate_fails_where_pointers_are_off() -> None:
    label = np.array([0, 1] * 50)
    start = np.where(np.arange(100) < 41, 30, 12)
    metrics = evaluation_of(
        predictions_of(label, start, start + 10), targets_of(label, [10] * 100, [20] * 100)
    )
    assert failed(validation=metrics) == ["Hit@±3, centre"]


def sigma_gates(sigmas: list[float], losses: list[float], **config: float) -> list[Gate]:
    """The gates of sigma_type: settled, below its bound, in the band."""
    gates = check_gates(
        good_evaluation(),
        SETTLED | {"sigma_type": sigmas},
        FINITE | {"loss_type": losses},
        GateConfig(**config),
    )
    return [gate for gate in gates if gate.name.startswith("sigma_type")]


def test_a_better_model_whose_sigma_follows_its_loss_below_the_band_passes() -> None:
    """The band fails the better model: it is shown, and decides nothing."""
    settled, largest, band = sigma_gates([0.2] * 40, [0.04] * 40)
    assert (settled.passed, settled.value) == (True, pytest.approx(1.0))
    assert largest.passed
    assert (band.passed, band.judged, band.value) == (False, False, 0.2)
    assert all_passed([settled, largest, band])
    assert not all_passed([settled, replace(largest, passed=False), band])


@pytest.mark.parametrize(
    ("square_over_loss", "passes"),
    [(0.74, False), (0.76, True), (1.24, True), (1.26, False)],
)
def test_a_sigma_is_settled_where_its_square_is_near_its_loss(
    square_over_loss: float, passes: bool
) -> None:
    sigmas = [9.0] * 30 + [math.sqrt(square_over_loss)] * 10
    settled = sigma_gates(sigmas, [5.0] * 30 + [1.0] * 10)[0]
    assert (settled.passed, settled.value) == (passes, pytest.approx(square_over_loss))


def test_what_a_single_epoch_does_to_the_loss_does_not_unsettle_a_sigma() -> None:
    """By hand: the loss's mean over the last four epochs is 1.0, though one is 1.6."""
    assert sigma_gates([1.0] * 4, [0.8, 1.6, 0.8, 0.8], settled_fraction=1)[0].passed


@pytest.mark.parametrize("bad", [2.0, 2.01, math.nan, math.inf, 0.0, -1.0])
@pytest.mark.parametrize("at", [30, 39])
def test_a_sigma_gate_fails_on_one_bad_value_in_the_last_quarter(bad: float, at: int) -> None:
    sigmas = [1.0] * 40
    sigmas[at] = bad
    assert not sigma_gates(sigmas, [1.0] * 40)[1].passed


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0])
def test_a_sigma_of_which_no_loss_is_known_is_not_settled(bad: float) -> None:
    assert not sigma_gates([1.0] * 40, [1.0] * 39 + [bad])[0].passed
    assert not sigma_gates([1.0] * 40, [])[0].passed


def test_a_sigma_may_wander_before_the_last_quarter() -> None:
    sigmas = [1.0] * 40
    sigmas[29] = 9.0
    assert all_passed(sigma_gates(sigmas, [1.0] * 40))


def test_the_sigma_shown_in_the_band_is_the_one_furthest_out() -> None:
    band = sigma_gates([0.6, 1.5], [1.0, 1.0], settled_fraction=1)[2]
    assert band.value == 0.6  # a ratio of 1.67 from 1, more than 1.5


def test_a_value_at_its_bound_passes() -> None:
    """But for the share, which must be above its bound."""
    f1 = good_evaluation()["metrics"]["f1_macro"]["value"]
    assert failed(config=GateConfig(min_f1_macro=f1)) == []
    assert failed(config=GateConfig(min_hit_centre_3=1.0)) == []
    assert sigma_gates([0.5] * 4, [0.25] * 4)[2].passed
    assert sigma_gates([2.0] * 4, [4.0] * 4)[2].passed


def test_the_last_quarter_of_training_is_rounded_up() -> None:
    """Of 5 epochs the last 2."""
    losses = [1.0] * 5
    assert all_passed(sigma_gates([9.0, 9.0, 9.0, 1.0, 1.0], losses))
    assert not sigma_gates([9.0, 9.0, 9.0, 9.0, 1.0], losses)[1].passed


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_loss_gate_fails_on_any_value_that_is_not_finite(bad: float) -> None:
    losses = FINITE | {"loss_type": [0.64] * 39 + [bad]}
    assert failed(loss_history=losses) == [
        "sigma_type^2 / its loss, last 25%",
        "losses that are NaN or Inf",
    ]


def test_a_gate_without_a_history_does_not_pass() -> None:
    assert len(failed(sigma_history={}, loss_history={})) == 5
    assert len(failed(sigma_history={"sigma_ptr": []}, loss_history={"loss": []})) == 5


def test_gate_thresholds_out_of_bounds_are_refused() -> None:
    with pytest.raises(ValidationError, match="min_sigma < max_sigma"):
        GateConfig(min_sigma=2, max_sigma=1)
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        GateConfig(min_f1_macro=60)


# --- tables ---------------------------------------------------------------------------------------


def test_values_are_printed_with_the_digits_of_their_unit() -> None:
    assert format_value(0.12345) == "0.123"
    assert format_value(12.3456, "bars") == "12.35"
    assert format_value(None) == format_value(None, "bars") == "–"


def test_tables_show_values_units_baselines_and_verdicts() -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    names = ("[red]consolidation", "b")
    predictions, targets = drawn(3, 50)
    targets = targets_of(targets.label, targets.start, targets.end, names)
    result = evaluation_of(predictions, targets)
    console.print(metrics_table(result, "Test"))
    gates = check_gates(result, {"sigma_ptr": [3.0]}, FINITE, GateConfig(), result)
    console.print(gates_table(gates))
    text = console.export_text()
    above, headings = text.splitlines()[2:4]  # a heading's words stand one below the other
    text += "\n".join(
        f"{first} {second}"
        for first, second in zip(above.split(), headings.split()[2:], strict=True)
    )
    for expected in (
        "F1, [red]consolidation",
        "Test (50 windows)",
        "95% interval",
        "strongest run",
        "bars",
        "FAIL",
    ):
        assert expected in text
    assert f"{result['metrics']['iou']['value']:.3f}" in text


def test_the_table_of_metrics_fits_into_80_columns() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    predictions, targets = drawn(3, 50)
    targets = targets_of(
        targets.label, targets.start, targets.end, ("consolidation", "retracement")
    )
    console.print(metrics_table(evaluation_of(predictions, targets), "Test"))
    text = console.export_text()
    assert "…" not in text
    assert "Hit@±3, both ends" in text
