"""(predictions, targets) -> numbers, each beside its trivial baseline and a 95 % interval.

Every metric is a function of sums over windows, so one code path gives the value (all windows once)
and its interval (windows drawn with replacement). Where a metric is 0 / 0, such as the precision of
a class that was never predicted, it is undefined: NaN here, null in JSON. Pure numpy; arrays of N
windows, C classes, T bars, F features; R weightings of the windows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from moola import HIT_BARS
from moola.errors import DataError
from moola.evaluation.arrays import Floats, finite_or_none, mean_of_defined, ratio
from moola.evaluation.baselines import POINTER_BASELINES, TYPE_BASELINE, Features, baselines
from moola.evaluation.calibration import Reliability, confidence_gaps, reliability, scale
from moola.evaluation.intervals import LEVEL, MetricsOfWeights, Values, bootstrap_interval
from moola.evaluation.predictions import Predictions, Targets, centre_distance, joint_success

Kind = Literal["type", "pointer", "joint"]

HIT_TOLERANCES = (1, 3, 5)  # bars
CURVE_TOLERANCES = tuple(range(21))  # bars
F1_MACRO = "f1_macro"
HIT_CENTRE = f"hit_centre_{HIT_BARS}"
JOINT_SUCCESS = "joint_success"
HEADLINE = (F1_MACRO, HIT_CENTRE, JOINT_SUCCESS)  # what a model is summed up by


@dataclass(frozen=True)
class Metric:
    """What a metric is called and measured in. better: +1 more is, -1 less is, 0 neither."""

    title: str
    kind: Kind
    better: int = 1
    unit: str = "fraction"


class MeasuredMetric(TypedDict):
    """A metric with its value, the ends of its interval, and the baselines' values by name."""

    title: str
    kind: Kind
    better: int
    unit: str
    value: float | None
    low: float | None
    high: float | None
    baselines: dict[str, float | None]


class Interval(TypedDict):
    level: float
    resamples: int
    seed: int


class Reliabilities(TypedDict):
    """Before and after temperature scaling."""

    before: Reliability
    after: Reliability


class Evaluation(TypedDict):
    """Everything measured on one split, ready for JSON.

    metrics     by name, in the order tables show them
    confusion   [true][predicted] counts
    hit_curve   tolerance_bars, model, low, high and each pointer baseline: the fraction of windows
                whose centre is within the tolerance
    """

    n_windows: int
    class_names: list[str]
    temperature: float
    interval: Interval
    metrics: dict[str, MeasuredMetric]
    confusion: list[list[int]]
    hit_curve: dict[str, list[float | None]]
    reliability: Reliabilities


def catalogue(class_names: Sequence[str]) -> dict[str, Metric]:
    """All metrics by name, in the order tables show them."""
    metrics = {F1_MACRO: Metric("F1, macro", "type")}
    for field, title in (("f1", "F1"), ("precision", "Precision"), ("recall", "Recall")):
        for name in class_names:
            metrics[f"{field}[{name}]"] = Metric(f"{title}, {name}", "type")
    for name in class_names:
        title = f"Predicted share (balanced), {name}"
        metrics[f"predicted_share[{name}]"] = Metric(title, "type", better=0)
    metrics["accuracy"] = Metric("Accuracy", "type")

    for k in HIT_TOLERANCES:
        metrics[f"hit_centre_{k}"] = Metric(f"Hit@±{k}, centre", "pointer")
    for k in HIT_TOLERANCES:
        metrics[f"hit_ends_{k}"] = Metric(f"Hit@±{k}, both ends", "pointer")
    metrics["iou"] = Metric("Interval IoU", "pointer")
    for place in ("centre", "start", "end"):
        title = f"Mean absolute error, {place}"
        metrics[f"mae_{place}_bars"] = Metric(title, "pointer", better=-1, unit="bars")

    metrics[JOINT_SUCCESS] = Metric(f"Joint success (type, centre ±{HIT_BARS})", "joint")
    metrics["ece"] = Metric("Calibration error (ECE)", "type", better=-1)
    metrics["ece_scaled"] = Metric("ECE after temperature scaling", "type", better=-1)

    return metrics


def score(predictions: Predictions, targets: Targets) -> dict[str, float]:
    """The value of every metric by name, without baselines and intervals."""
    values = metrics_of_weights(predictions, targets)(_each_window_once(targets))
    return {name: float(value[0]) for name, value in values.items()}


def evaluate(
    predictions: Predictions,
    targets: Targets,
    train_targets: Targets,
    features: Features,
    *,
    temperature: float = 1.0,
    resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Every metric of one split, beside the baselines' and within its interval.

    features [N, T, F] are the windows the predictions were made on; temperature was fitted on
    validation. The baseline of the type is the training labels' shares (so the majority class);
    joint success of a pointer baseline is its hits with the majority class. Raises DataError if
    lengths or classes disagree.
    """
    _check_agreement(predictions, targets, train_targets)
    once = _each_window_once(targets)
    metrics_of = metrics_of_weights(
        predictions,
        targets,
        temperature,
        curve=True,
    )
    value = _values(metrics_of(once))
    low, high = bootstrap_interval(
        metrics_of,
        len(targets.label),
        resamples,
        seed,
    )
    trivial = {
        name: _values(metrics_of_weights(baseline, targets, curve=True)(once))
        for name, baseline in baselines(targets, train_targets, features).items()
    }

    curves = {"model": value, "low": low, "high": high} | trivial
    hit_curve: dict[str, list[float | None]] = {"tolerance_bars": list(CURVE_TOLERANCES)}
    for name, values in curves.items():
        hit_curve[name] = [values[f"curve_{k}"] for k in CURVE_TOLERANCES]

    scaled = scale(predictions.probabilities, temperature)
    return {
        "n_windows": len(targets.label),
        "class_names": list(targets.class_names),
        "temperature": temperature,
        "interval": {"level": LEVEL, "resamples": resamples, "seed": seed},
        "metrics": _measured(targets.class_names, value, low, high, trivial),
        "confusion": _confusion(predictions, targets, once)[0].astype(int).tolist(),
        "hit_curve": hit_curve,
        "reliability": {
            "before": reliability(predictions.probabilities, targets.label),
            "after": reliability(scaled, targets.label),
        },
    }


def _each_window_once(targets: Targets) -> Floats:
    """[1, N] weights."""
    return np.ones((1, len(targets.label)))


def _check_agreement(
    predictions: Predictions,
    targets: Targets,
    train_targets: Targets,
) -> None:
    n_windows, n_classes = predictions.probabilities.shape
    if n_windows != len(targets.label):
        raise DataError(
            "predictions and targets must be of the same windows, "
            f"got {n_windows} and {len(targets.label)}"
        )
    if n_classes != len(targets.class_names):
        raise DataError(
            "probabilities must have one column per class, "
            f"got {n_classes} for {list(targets.class_names)}"
        )
    if targets.class_names != train_targets.class_names:
        raise DataError(
            "class names differ from training's: "
            f"{targets.class_names} and {train_targets.class_names}"
        )


def _measured(
    class_names: Sequence[str],
    value: Values,
    low: Values,
    high: Values,
    trivial: Mapping[str, Values],
) -> dict[str, MeasuredMetric]:
    return {
        name: {
            "title": metric.title,
            "kind": metric.kind,
            "better": metric.better,
            "unit": metric.unit,
            "value": value[name],
            "low": low[name],
            "high": high[name],
            "baselines": _baselines_of(name, metric, trivial),
        }
        for name, metric in catalogue(class_names).items()
    }


def _baselines_of(
    name: str,
    metric: Metric,
    trivial: Mapping[str, Values],
) -> dict[str, float | None]:
    if metric.kind == "type":  # all of them predict the same type
        return {TYPE_BASELINE: trivial[POINTER_BASELINES[0]][name]}

    return {baseline: trivial[baseline][name] for baseline in POINTER_BASELINES}


def _values(metrics: Mapping[str, Floats]) -> dict[str, float | None]:
    return {name: finite_or_none(value[0]) for name, value in metrics.items()}


def metrics_of_weights(
    predictions: Predictions,
    targets: Targets,
    temperature: float = 1.0,
    *,
    curve: bool = False,
) -> MetricsOfWeights:
    """A function from weights [R, N] to every metric [R]; a weight is how often a window counts."""
    probabilities = predictions.probabilities
    gaps = {
        "ece": confidence_gaps(probabilities, targets.label),
        "ece_scaled": confidence_gaps(scale(probabilities, temperature), targets.label),
    }
    per_window = _per_window(
        predictions,
        targets,
        CURVE_TOLERANCES if curve else (),
    )
    columns = np.stack(list(per_window.values()), axis=1)  # [N, number of metrics]

    def metrics_of(weights: Floats) -> dict[str, Floats]:
        total = weights.sum(axis=1)
        means = weights @ columns / total[:, None]
        confusion = _confusion(predictions, targets, weights)

        metrics = _type_metrics(confusion, targets.class_names)
        metrics |= dict(zip(per_window, means.T, strict=True))
        for name, gap in gaps.items():
            metrics[name] = np.abs(weights @ gap).sum(axis=1) / total

        return metrics

    return metrics_of


def _confusion(
    predictions: Predictions,
    targets: Targets,
    weights: Floats,
) -> Floats:
    """[R, C, C]: weight of the windows of true class i and predicted class j."""
    c = len(targets.class_names)
    cell = np.eye(c * c)[targets.label * c + predictions.label]  # [N, C * C]
    confusion: Floats = (weights @ cell).reshape(-1, c, c)
    return confusion


def _type_metrics(confusion: Floats, class_names: Sequence[str]) -> dict[str, Floats]:
    """F1, precision, recall and balanced share per class from [R, C, C].

    F1 macro is over the classes that occur: one that is only predicted costs the others.
    """
    right = np.diagonal(confusion, axis1=1, axis2=2)  # [R, C]
    true = confusion.sum(axis=2)
    predicted = confusion.sum(axis=1)
    f1 = ratio(2 * right, true + predicted)
    shares = ratio(confusion, true[:, :, None])  # each true class weighs the same
    fields = {
        "f1": f1,
        "precision": ratio(right, predicted),
        "recall": ratio(right, true),
        "predicted_share": mean_of_defined(shares),
    }

    metrics = {F1_MACRO: mean_of_defined(np.where(true > 0, f1, np.nan))}
    for field, values in fields.items():
        for k, name in enumerate(class_names):
            metrics[f"{field}[{name}]"] = values[:, k]
    metrics["accuracy"] = right.sum(axis=1) / confusion.sum(axis=(1, 2))

    return metrics


def _per_window(
    predictions: Predictions,
    targets: Targets,
    curve_tolerances: Sequence[int],
) -> dict[str, Floats]:
    """The metrics that are a mean over windows: what each window contributes, [N]."""
    start_off = np.abs(predictions.start - targets.start)
    end_off = np.abs(predictions.end - targets.end)
    centre_off = centre_distance(predictions, targets)

    values: dict[str, NDArray[Any]] = {}
    for k in HIT_TOLERANCES:
        values[f"hit_centre_{k}"] = centre_off <= k
    for k in HIT_TOLERANCES:
        values[f"hit_ends_{k}"] = (start_off <= k) & (end_off <= k)
    values["iou"] = _intersection_over_union(predictions, targets)
    values["mae_centre_bars"] = centre_off
    values["mae_start_bars"] = start_off
    values["mae_end_bars"] = end_off
    values[JOINT_SUCCESS] = joint_success(predictions, targets)
    for k in curve_tolerances:
        values[f"curve_{k}"] = centre_off <= k

    return {name: value.astype(np.float64) for name, value in values.items()}


def _intersection_over_union(predictions: Predictions, targets: Targets) -> Floats:
    """[N] of the predicted and the true span, in bars."""
    last_common = np.minimum(predictions.end, targets.end)
    first_common = np.maximum(predictions.start, targets.start)
    common = np.maximum(last_common - first_common + 1, 0)

    predicted_bars = predictions.end - predictions.start + 1
    true_bars = targets.end - targets.start + 1
    iou: Floats = common / (predicted_bars + true_bars - common)

    return iou
