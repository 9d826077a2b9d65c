"""(predictions, targets) -> numbers, each beside its trivial baseline and a 95 % bootstrap interval; and the gates.

Every metric is a function of sums over windows, so one code path gives the value (all windows once) and its interval
(windows drawn with replacement). Where a metric is 0 / 0, such as the precision of a class that was never predicted,
it is undefined: NaN here, null in JSON. Pure numpy; arrays of N windows, C classes, T bars, F features.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rich import box
from rich.table import Table
from rich.text import Text

from moola import WINDOW
from moola.errors import DataError
from moola.features import FEATURE_NAMES, N_FEATURES
from moola.specs import GateConfig

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Kind = Literal["type", "pointer", "joint"]

HIT_TOLERANCES = (1, 3, 5)  # bars
CURVE_TOLERANCES = tuple(range(21))  # bars
SUCCESS_TOLERANCE = 3  # bars: the Hit@+-3 of joint success and of the gates
ECE_BINS = 15
RUN_BARS = 8  # length of the strongest-run baseline
INTERVAL = 0.95
MAX_WEIGHTS = 4_000_000  # resample weights held at a time: 32 MB
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0

TYPE_BASELINE = "majority_class"
POINTER_BASELINES = ("whole_window", "mean_pointer", "strongest_run")
BASELINE_TITLES = {name: name.replace("_", " ") for name in (TYPE_BASELINE, *POINTER_BASELINES)}


@dataclass(frozen=True)
class Predictions:
    """What a model says of N windows. Raises DataError where a rule below is broken.

    probabilities [N, C], rows summing to 1; start, end [N] bars, both inclusive, 0 <= start <= end <= 104.
    """

    probabilities: Floats
    start: Ints
    end: Ints
    window_id: Sequence[Any] | None = None

    def __post_init__(self) -> None:
        p = np.asarray(self.probabilities, np.float64)
        if p.ndim != 2 or len(p) == 0:
            raise DataError(f"probabilities must be [N, C] with N > 0, got {list(p.shape)}")
        bad = ~(np.isfinite(p).all(axis=1) & (p >= 0).all(axis=1) & (np.abs(p.sum(axis=1) - 1) < 1e-3))
        if bad.any():
            i = int(bad.argmax())
            raise DataError(f"probabilities must be in 0..1 and sum to 1, got {p[i].tolist()} (window {i})")
        object.__setattr__(self, "probabilities", p)
        _check_pointers(self, len(p))

    @property
    def label(self) -> Ints:
        """[N] the most probable class; the first of equals."""
        label: Ints = self.probabilities.argmax(axis=1)
        return label


@dataclass(frozen=True)
class Targets:
    """What is true of N windows: label [N] as an index into class_names; start, end [N] as in `Predictions`."""

    label: Ints
    start: Ints
    end: Ints
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        label = np.asarray(self.label, np.int64)
        object.__setattr__(self, "label", label)
        object.__setattr__(self, "class_names", tuple(self.class_names))
        bad = (label < 0) | (label >= len(self.class_names))
        if bad.any():
            i = int(bad.argmax())
            raise DataError(f"a label must be in 0..{len(self.class_names) - 1}, got {label[i]} (window {i})")
        _check_pointers(self, len(label))


def _check_pointers(of: Predictions | Targets, n: int) -> None:
    start, end = np.asarray(of.start, np.int64), np.asarray(of.end, np.int64)
    if start.shape != (n,) or end.shape != (n,):
        raise DataError(f"start and end must be [{n}], got {list(start.shape)} and {list(end.shape)}")
    bad = (start < 0) | (end >= WINDOW) | (start > end)
    if bad.any():
        i = int(bad.argmax())
        raise DataError(f"0 <= start <= end <= {WINDOW - 1}, got {start[i]}..{end[i]} (window {i})")
    object.__setattr__(of, "start", start)
    object.__setattr__(of, "end", end)


# --- the metrics ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metric:
    """How a metric is called, measured and compared. better: +1 more is better, -1 less, 0 neither."""

    title: str
    kind: Kind
    better: int = 1
    unit: str = "fraction"


def catalogue(class_names: Sequence[str]) -> dict[str, Metric]:
    """All metrics by name, in the order tables show them."""
    metrics = {"f1_macro": Metric("F1, macro", "type")}
    for field, title, better in (("f1", "F1", 1), ("precision", "Precision", 1), ("recall", "Recall", 1)):
        metrics |= {f"{field}[{name}]": Metric(f"{title}, {name}", "type", better) for name in class_names}
    for name in class_names:
        metrics[f"predicted_share[{name}]"] = Metric(f"Predicted share (balanced), {name}", "type", 0)
    metrics["accuracy"] = Metric("Accuracy", "type")
    metrics |= {f"hit_centre_{k}": Metric(f"Hit@±{k}, centre", "pointer") for k in HIT_TOLERANCES}
    metrics |= {f"hit_ends_{k}": Metric(f"Hit@±{k}, both ends", "pointer") for k in HIT_TOLERANCES}
    metrics["iou"] = Metric("Interval IoU", "pointer")
    for of in ("centre", "start", "end"):
        metrics[f"mae_{of}_bars"] = Metric(f"Mean absolute error, {of}", "pointer", -1, "bars")
    metrics["joint_success"] = Metric(f"Joint success (type, centre ±{SUCCESS_TOLERANCE})", "joint")
    metrics["ece"] = Metric("Calibration error (ECE)", "type", -1)
    metrics["ece_scaled"] = Metric("ECE after temperature scaling", "type", -1)
    return metrics


def score(predictions: Predictions, targets: Targets) -> dict[str, float]:
    """The value of every metric by name, without baselines and intervals; for each epoch's validation."""
    once = np.ones((1, len(targets.label)))
    return {name: float(value[0]) for name, value in _weighted(predictions, targets, 1.0)(once).items()}


def evaluate(
    predictions: Predictions,
    targets: Targets,
    train_targets: Targets,
    features: NDArray[Any],
    *,
    temperature: float = 1.0,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Everything that is said of one split, ready for JSON.

    features [N, T, F] are the windows the predictions were made on; temperature was fitted on validation.
      metrics     name -> title, unit, kind, better, value, low, high, baselines {name: value}
      confusion   [true][predicted] counts
      hit_curve   tolerance_bars, model, low, high and each pointer baseline: fraction with the centre so near
      reliability before and after temperature scaling, per bin: count, confidence, accuracy
    The baseline of the type is the training labels' shares (so the majority class); joint success of a pointer
    baseline is its hits with the majority class. Intervals are percentile bootstrap over windows, taken as
    independent (Efron and Tibshirani 1993, ch. 13); ECE has none: a resample's ECE is biased upwards.
    Raises DataError if lengths or classes disagree.
    """
    _check_agreement(predictions, targets, train_targets)
    trivial = baselines(targets, train_targets, features)
    once = np.ones((1, len(targets.label)))
    of_weights = _weighted(predictions, targets, temperature, curve=True)
    value, low, high = _values(of_weights(once)), *_interval(of_weights, len(targets.label), resamples, seed)
    trivial_values = {k: _values(_weighted(p, targets, 1.0, curve=True)(once)) for k, p in trivial.items()}
    metrics = {
        name: {
            **asdict(metric),
            "value": value[name],
            "low": low[name],
            "high": high[name],
            "baselines": _baselines_of(name, metric, trivial_values),
        }
        for name, metric in catalogue(targets.class_names).items()
    }
    return {
        "n_windows": len(targets.label),
        "class_names": list(targets.class_names),
        "temperature": temperature,
        "interval": {"level": INTERVAL, "resamples": resamples, "seed": seed},
        "metrics": metrics,
        "confusion": _confusion(predictions, targets, once)[0].astype(int).tolist(),
        "hit_curve": {
            "tolerance_bars": list(CURVE_TOLERANCES),
            **{name: _curve(of) for name, of in {"model": value, "low": low, "high": high, **trivial_values}.items()},
        },
        "reliability": {
            "before": _reliability(predictions.probabilities, targets.label),
            "after": _reliability(scale(predictions.probabilities, temperature), targets.label),
        },
    }


def _check_agreement(predictions: Predictions, targets: Targets, train_targets: Targets) -> None:
    n, c = predictions.probabilities.shape
    if n != len(targets.label):
        raise DataError(f"predictions and targets must be of the same windows, got {n} and {len(targets.label)}")
    if c != len(targets.class_names):
        raise DataError(f"probabilities must have one column per class, got {c} for {list(targets.class_names)}")
    if targets.class_names != train_targets.class_names:
        raise DataError(f"class names differ from training's: {targets.class_names} and {train_targets.class_names}")


def _baselines_of(name: str, metric: Metric, trivial: Mapping[str, Mapping[str, float | None]]) -> dict[str, Any]:
    if metric.kind == "type":
        return {TYPE_BASELINE: trivial[POINTER_BASELINES[0]][name]}
    return {baseline: trivial[baseline][name] for baseline in POINTER_BASELINES}


def _curve(values: Mapping[str, float | None]) -> list[float | None]:
    return [values[f"curve_{k}"] for k in CURVE_TOLERANCES]


def _weighted(
    predictions: Predictions, targets: Targets, temperature: float, *, curve: bool = False
) -> Callable[[Floats], dict[str, Floats]]:
    """A function from weights [R, N] to every metric [R]; a weight is how often a window counts."""
    confidence_gaps = {
        "ece": _gaps(predictions.probabilities, targets.label),
        "ece_scaled": _gaps(scale(predictions.probabilities, temperature), targets.label),
    }
    per_window = _per_window(predictions, targets, CURVE_TOLERANCES if curve else ())
    matrix = np.stack(list(per_window.values()), axis=1)  # [N, number of metrics]

    def metrics(weights: Floats) -> dict[str, Floats]:
        total = weights.sum(axis=1)
        means = weights @ matrix / total[:, None]
        eces = {name: np.abs(weights @ gaps).sum(axis=1) / total for name, gaps in confidence_gaps.items()}
        of_type = _type_metrics(_confusion(predictions, targets, weights), targets.class_names)
        return of_type | dict(zip(per_window, means.T, strict=True)) | eces

    return metrics


def _confusion(predictions: Predictions, targets: Targets, weights: Floats) -> Floats:
    """[R, C, C]: weight of the windows of true class i and predicted class j."""
    c = len(targets.class_names)
    cell = np.eye(c * c)[targets.label * c + predictions.label]  # [N, C * C]
    confusion: Floats = (weights @ cell).reshape(-1, c, c)
    return confusion


def _type_metrics(confusion: Floats, class_names: Sequence[str]) -> dict[str, Floats]:
    """F1, precision, recall, balanced share per class from [R, C, C]; F1 macro is over the classes that occur."""
    right = np.diagonal(confusion, axis1=1, axis2=2)  # [R, C]
    true, predicted = confusion.sum(axis=2), confusion.sum(axis=1)
    f1 = _ratio(2 * right, true + predicted)
    of_each_class = _ratio(confusion, true[:, :, None])  # each true class weighs the same
    fields = {
        "f1": f1,
        "precision": _ratio(right, predicted),
        "recall": _ratio(right, true),
        "predicted_share": _mean_of_defined(of_each_class),
    }
    metrics = {f"{k}[{name}]": v[:, i] for k, v in fields.items() for i, name in enumerate(class_names)}
    return {"f1_macro": _mean_of_defined(f1), **metrics, "accuracy": right.sum(axis=1) / confusion.sum(axis=(1, 2))}


def _ratio(a: NDArray[Any], b: NDArray[Any]) -> Floats:
    """a / b, NaN where b is 0."""
    ratio: Floats = np.divide(a, b, out=np.full(np.broadcast_shapes(a.shape, b.shape), np.nan), where=b > 0)
    return ratio


def _mean_of_defined(values: Floats) -> Floats:
    """Mean along axis 1 over what is not NaN; there is always something."""
    defined = np.isfinite(values)
    mean: Floats = np.where(defined, values, 0).sum(axis=1) / defined.sum(axis=1)
    return mean


def _per_window(predictions: Predictions, targets: Targets, curve: Sequence[int]) -> dict[str, Floats]:
    """The metrics that are a mean over windows: what each window contributes, [N]."""
    start = np.abs(predictions.start - targets.start)
    end = np.abs(predictions.end - targets.end)
    centre = 0.5 * np.abs(predictions.start + predictions.end - targets.start - targets.end)
    overlap = np.minimum(predictions.end, targets.end) - np.maximum(predictions.start, targets.start) + 1
    overlap = np.maximum(overlap, 0)
    lengths = predictions.end - predictions.start + targets.end - targets.start + 2
    values = {f"hit_centre_{k}": centre <= k for k in HIT_TOLERANCES}
    values |= {f"hit_ends_{k}": (start <= k) & (end <= k) for k in HIT_TOLERANCES}
    values |= {"iou": overlap / (lengths - overlap)}
    values |= {"mae_centre_bars": centre, "mae_start_bars": start, "mae_end_bars": end}
    values |= {"joint_success": (predictions.label == targets.label) & (centre <= SUCCESS_TOLERANCE)}
    values |= {f"curve_{k}": centre <= k for k in curve}
    return {name: value.astype(np.float64) for name, value in values.items()}


# --- calibration ------------------------------------------------------------------------------------------------


def _bins(confidence: Floats) -> Ints:
    """[N] the bin of each confidence: ECE_BINS equal bins (a, b] of 0..1."""
    edges = np.linspace(0, 1, ECE_BINS + 1)
    bins: Ints = np.clip(np.searchsorted(edges, confidence) - 1, 0, ECE_BINS - 1)
    return bins


def _gaps(probabilities: Floats, label: Ints) -> Floats:
    """[N, bins]: right - confidence, in the window's bin. ECE = sum over bins |sum over windows| / N (Guo 2017)."""
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == label
    gaps: Floats = np.eye(ECE_BINS)[_bins(confidence)] * (right - confidence)[:, None]
    return gaps


def _reliability(probabilities: Floats, label: Ints) -> dict[str, list[Any]]:
    """Per bin: how many windows, their mean confidence, the fraction that is right (null where empty)."""
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == label
    in_bin = _bins(confidence)
    count = np.bincount(in_bin, minlength=ECE_BINS)
    sums = {"confidence": confidence, "accuracy": right}
    means = {k: _ratio(np.bincount(in_bin, v, minlength=ECE_BINS), count) for k, v in sums.items()}
    return {"count": count.tolist(), **{k: [_number(x) for x in v] for k, v in means.items()}}


def scale(probabilities: Floats, temperature: float) -> Floats:
    """softmax(log p / temperature) [N, C]: what dividing the logits by the temperature gives."""
    z = np.log(np.maximum(probabilities, np.finfo(np.float64).tiny)) / temperature
    z = np.exp(z - z.max(axis=1, keepdims=True))
    scaled: Floats = z / z.sum(axis=1, keepdims=True)
    return scaled


def fit_temperature(logits: NDArray[Any], labels: NDArray[Any]) -> float:
    """The temperature in 0.05..20 with the least log loss on logits [N, C] of labels [N] (Guo et al., ICML 2017).

    Golden-section search over log T; the loss is convex in 1 / T, so it has one minimum. 1.0 if nothing is better.
    """
    z = np.asarray(logits, np.float64)
    z = z - z.max(axis=1, keepdims=True)
    of_label = z[np.arange(len(z)), labels]

    def loss(log_temperature: float) -> float:
        t = math.exp(log_temperature)
        return float((np.log(np.exp(z / t).sum(axis=1)) - of_label / t).mean())

    low, high = math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE)
    ratio = (math.sqrt(5) - 1) / 2
    while high - low > 1e-6:
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, b) if loss(a) <= loss(b) else (a, high)
    best = 0.5 * (low + high)
    return math.exp(best) if loss(best) < loss(0.0) else 1.0


# --- intervals --------------------------------------------------------------------------------------------------


def _interval(
    of_weights: Callable[[Floats], dict[str, Floats]], n: int, resamples: int, seed: int
) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """Lower and upper end of each metric's interval; null where no resample defines it."""
    parts = [of_weights(weights) for weights in _resample_weights(n, resamples, seed)]
    ends: tuple[dict[str, float | None], dict[str, float | None]] = {}, {}
    for name in parts[0]:
        values = np.concatenate([part[name] for part in parts])
        values = values[np.isfinite(values)]
        for end, q in zip(ends, ((1 - INTERVAL) / 2, (1 + INTERVAL) / 2), strict=True):
            end[name] = None if name.startswith("ece") or not len(values) else float(np.quantile(values, q))
    return ends


def _resample_weights(n: int, resamples: int, seed: int) -> Iterator[Floats]:
    """[r, N] at a time: how often each of N windows is drawn, N draws with replacement."""
    rng = np.random.default_rng(seed)
    step = max(1, MAX_WEIGHTS // n)
    for done in range(0, resamples, step):
        r = min(step, resamples - done)
        drawn = rng.integers(0, n, (r, n)) + n * np.arange(r)[:, None]
        yield np.bincount(drawn.ravel(), minlength=r * n).reshape(r, n).astype(np.float64)


def _values(metrics: Mapping[str, Floats]) -> dict[str, float | None]:
    return {name: _number(value[0]) for name, value in metrics.items()}


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


# --- trivial baselines ------------------------------------------------------------------------------------------


def baselines(targets: Targets, train_targets: Targets, features: NDArray[Any]) -> dict[str, Predictions]:
    """The trivial predictors by the name of their pointer, all with the training labels' shares as probabilities.

    whole_window 0..104; mean_pointer: rounded mean start and end of training; strongest_run: the 8 bars with the
    largest |sum of range_z x body_pct|. features [N, T, F]. Raises DataError on any other shape.
    """
    n, c = len(targets.label), len(targets.class_names)
    if features.shape != (n, WINDOW, N_FEATURES):
        raise DataError(f"features must be [{n}, {WINDOW}, {N_FEATURES}], got {list(features.shape)}")
    shares = np.bincount(train_targets.label, minlength=c) / len(train_targets.label)
    probabilities = np.tile(shares, (n, 1))
    mean_start, mean_end = np.rint([train_targets.start.mean(), train_targets.end.mean()]).astype(np.int64)
    strongest = strongest_run(features)
    return {
        "whole_window": Predictions(probabilities, np.zeros(n, np.int64), np.full(n, WINDOW - 1)),
        "mean_pointer": Predictions(probabilities, np.full(n, mean_start), np.full(n, mean_end)),
        "strongest_run": Predictions(probabilities, strongest, strongest + RUN_BARS - 1),
    }


def strongest_run(features: NDArray[Any]) -> Ints:
    """[N, T, F] -> [N] first bar of the 8 with the largest |sum of range_z x body_pct|; the earliest of equals."""
    range_z, body_pct = (features[:, :, FEATURE_NAMES.index(name)] for name in ("range_z", "body_pct"))
    push = range_z.astype(np.float64) * body_pct
    runs = np.lib.stride_tricks.sliding_window_view(push, RUN_BARS, axis=1).sum(axis=2)
    first: Ints = np.abs(runs).argmax(axis=1)
    return first


# --- gates ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gate:
    """One success criterion: what was found (null: nothing), what it must be, whether it holds; `test` for the eye."""

    name: str
    value: float | None
    bound: str
    passed: bool
    test: float | None = None


def check_gates(
    metrics: Mapping[str, Any],
    sigma_history: Mapping[str, ArrayLike],
    loss_history: Mapping[str, ArrayLike],
    config: GateConfig,
    test_metrics: Mapping[str, Any] | None = None,
) -> list[Gate]:
    """The plan's success criteria on the validation split; test_metrics are shown beside and decide nothing.

    metrics, test_metrics: `evaluate`'s result. Histories: name -> values in the order of training, only from steps
    where the quantity exists. A sigma's value is the one furthest out, in ratio, over the last `settled_fraction`.
    A history that is missing or empty does not pass: nothing was seen to hold.
    """
    share, test_share = (_least_share(m) if m else None for m in (metrics, test_metrics))
    gates = [
        Gate(
            "predicted share of the rarer class (balanced)",
            share,
            f"> {config.min_predicted_share:.2f}",
            share is not None and share > config.min_predicted_share,
            test_share,
        ),
        _at_least("f1_macro", config.min_f1_macro, metrics, test_metrics),
        _at_least(f"hit_centre_{SUCCESS_TOLERANCE}", config.min_hit_centre_3, metrics, test_metrics),
    ]
    gates += [_settled(name, sigma_history.get(name, ()), config) for name in ("sigma_ptr", "sigma_type")]
    losses = [np.asarray(values, np.float64).ravel() for values in loss_history.values()]
    n_bad = float(sum((~np.isfinite(x)).sum() for x in losses)) if any(len(x) for x in losses) else None
    return [*gates, Gate("losses that are NaN or Inf", n_bad, "0", n_bad == 0)]


def _least_share(metrics: Mapping[str, Any]) -> float | None:
    shares = [metrics["metrics"][f"predicted_share[{name}]"]["value"] for name in metrics["class_names"]]
    return None if None in shares else min(shares)


def _at_least(name: str, least: float, metrics: Mapping[str, Any], test: Mapping[str, Any] | None) -> Gate:
    entry = metrics["metrics"][name]
    value = entry["value"]
    passed = value is not None and value >= least
    return Gate(entry["title"], value, f">= {least:.2f}", passed, test["metrics"][name]["value"] if test else None)


def _settled(name: str, history: ArrayLike, config: GateConfig) -> Gate:
    """Within the bounds all through the last part of training."""
    bound = f"{config.min_sigma:g} to {config.max_sigma:g}"
    title = f"{name}, last {config.settled_fraction:.0%} of training"
    values = np.asarray(history, np.float64).ravel()
    values = values[len(values) - math.ceil(len(values) * config.settled_fraction) :]
    if not len(values) or not np.isfinite(values).all() or (values <= 0).any():
        return Gate(title, None, bound, passed=False)
    middle = 0.5 * math.log(config.min_sigma * config.max_sigma)
    furthest = values[np.abs(np.log(values) - middle).argmax()]
    passed = bool((values >= config.min_sigma).all() and (values <= config.max_sigma).all())
    return Gate(title, float(furthest), bound, passed)


# --- tables -----------------------------------------------------------------------------------------------------


def show(value: float | None, unit: str = "fraction") -> str:
    """A value as tables print it: fractions to 3 digits, bars to 2, a dash for what is undefined."""
    return "–" if value is None else f"{value:.2f}" if unit == "bars" else f"{value:.3f}"


def metrics_table(evaluation: Mapping[str, Any], title: str) -> Table:
    """Every metric of `evaluate` with its unit, interval and trivial baselines; it fits into 80 columns."""
    title = f"{title} ({evaluation['n_windows']} windows); fractions, unless bars are named"
    table = Table("metric", title=title, box=box.SIMPLE_HEAD, title_justify="left", padding=0, collapse_padding=True)
    for heading in ("value", f"{evaluation['interval']['level']:.0%} interval", *BASELINE_TITLES.values()):
        table.add_column(heading.replace(" ", "\n"), justify="right", no_wrap=True)
    for m in evaluation["metrics"].values():
        name = m["title"] + (", bars" if m["unit"] == "bars" else "")
        interval = "" if m["low"] is None else f"{show(m['low'], m['unit'])}–{show(m['high'], m['unit'])}"
        trivial = [show(m["baselines"][b], m["unit"]) if b in m["baselines"] else "" for b in BASELINE_TITLES]
        table.add_row(Text(name), show(m["value"], m["unit"]), interval, *trivial)
    return table


def gates_table(gates: Sequence[Gate]) -> Table:
    """Every gate: the validation value it is judged by, its bound, pass or FAIL, and the test value for the eye."""
    table = Table("gate", title="Gates (judged on validation)")
    for heading in ("validation", "must be", "", "test"):
        table.add_column(heading, justify="right")
    for gate in gates:
        mark = "[green]pass[/]" if gate.passed else "[bold red]FAIL[/]"
        table.add_row(Text(gate.name), show(gate.value), gate.bound, mark, "" if gate.test is None else show(gate.test))
    return table
