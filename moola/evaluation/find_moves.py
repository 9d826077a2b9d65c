"""A run's presence model: what windows show, merged to moves, calibrated and judged."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from moola import WINDOW
from moola.data.feature_set import FeatureSet
from moola.data.markets import MarketRows
from moola.data.move_truth import NO_MOVE_TEXTS, MoveTruth
from moola.data.pauses import pause_over, stretches
from moola.evaluation.arrays import Floats, Ints
from moola.evaluation.baselines import RUN_BARS
from moola.evaluation.detection import (
    Detection,
    Judged,
    Threshold,
    choose_threshold,
    judge_moves,
    measure_detection,
)
from moola.evaluation.gates import Gate, detection_gates
from moola.evaluation.model_document import PresenceDocument
from moola.evaluation.moves import Moves, Sightings, merge
from moola.features import FEATURE_NAMES
from moola.models.jade_core import JadeCompact
from moola.models.presence import Presence, logit_of
from moola.specs import SESSION_BREAK_MINUTES, GateConfig, PresenceConfig
from moola.training.data import TrainingData, rows_of_ranges
from moola.training.presence import (
    LEAST_EXAMPLES,
    STEP_BARS,
    WindowViews,
    fit_logistic,
    fit_presence,
    unlabelled_windows,
    view_windows,
)

log = logging.getLogger("moola")
MODEL_FINDER = "model, all windows that overlap"
ALONE_FINDER = "model, each window alone"
SPAN_FINDER = "the model's span probability"
RUN_FINDER = "strongest run"
OWN_BARS = "the labels carry their own bars, between which there is no stretch without a move"
NOTHING_FOUND = "what it finds on validation is no move at any threshold"
TOO_FEW = "train or validation has too few moves, or too few places without one"


class PresenceResults(NamedTuple):
    """presence: None where it could not be fitted, for the `reason`.

    markets: by market and split, where there are several feature sets.
    """

    presence: Presence | None
    document: PresenceDocument
    validation: Detection | None = None
    test: Detection | None = None
    markets: Mapping[str, Mapping[str, Detection]] = {}

    @property
    def detections(self) -> dict[str, Detection]:
        """By split; empty where there is no presence model."""
        by_split = {"validation": self.validation, "test": self.test}
        return {split: detection for split, detection in by_split.items() if detection}

    def gates(self, config: GateConfig) -> list[Gate]:
        """None where there is no presence model, and where bars without a label may hold moves."""
        if self.validation is None or self.document.no_moves == "background":
            return []

        return detection_gates(self.validation, config, self.test)


def find_moves(
    presence: Presence,
    views: WindowViews,
    window_row: Ints,
    stretch: Ints,
) -> Moves:
    """The moves that the windows at `window_row` [W] show, with calibrated probabilities.

    stretch [n] is that of each bar (`moola.data.pauses`): a move reaches over no pause.
    """
    span_probs = _span_probabilities(presence, views, window_row, stretch).numpy()
    merged = merge(_sightings(views, span_probs, window_row), window_row)
    probability = presence.of_moves(torch.from_numpy(merged.probability)).numpy()
    return replace(merged, probability=probability)


def window_probabilities(
    presence: Presence,
    views: WindowViews,
    window_row: Ints,
    stretch: Ints,
) -> Floats:
    """[W] that each window holds a move."""
    span_probs = _span_probabilities(presence, views, window_row, stretch)
    return presence.of_windows(span_probs).numpy()


def _span_probabilities(
    presence: Presence,
    views: WindowViews,
    window_row: Ints,
    stretch: Ints,
) -> Tensor:
    """[W, K] 0 for a span with a pause in it."""
    first = window_row[:, None] + views.start
    last = window_row[:, None] + views.end
    is_whole = torch.from_numpy(stretch[first] == stretch[last])
    span_probs = presence.of_spans(views.descriptors, views.told)
    return torch.where(is_whole, span_probs, torch.zeros_like(span_probs))


def any_move_inside(moves: Moves, window_row: Ints) -> Floats:
    """[W] the probability that at least one of the moves that lie whole in each window is one."""
    log_none = np.log1p(-np.clip(moves.probability, 0, 1 - 1e-9))
    up_to = np.concatenate([np.zeros(1), np.cumsum(log_none)])
    low = np.searchsorted(moves.first, window_row)
    high = np.searchsorted(moves.last, window_row + WINDOW - 1, side="right")

    return np.asarray(1 - np.exp(up_to[np.maximum(high, low)] - up_to[low]))


def _sightings(
    views: WindowViews,
    span_probs: Floats,
    window_row: Ints,
) -> Sightings:
    n_windows, n_spans = span_probs.shape
    return Sightings(
        window_row=np.repeat(window_row, n_spans),
        first=(window_row[:, None] + views.start).ravel(),
        last=(window_row[:, None] + views.end).ravel(),
        probability=span_probs.ravel(),
        types=views.types.reshape(n_windows * n_spans, -1),
    )


# --- a run ----------------------------------------------------------------------------------------


def run_presence(
    model: JadeCompact,
    data: TrainingData,
    config: PresenceConfig,
    *,
    seed: int,
    device: str,
) -> PresenceResults:
    """The presence model of a trained run, and how well it does on validation and test."""
    truth = data.truth
    if truth is None:
        log.info("no presence model: %s", OWN_BARS)
        return PresenceResults(None, PresenceDocument(reason=OWN_BARS))

    fit = fit_presence(
        model,
        data,
        truth,
        config,
        seed=seed,
        device=device,
    )
    log.info(
        "presence: fitted on %d windows with a move and %d without (%s)",
        len(fit.windows.with_move),
        len(fit.windows.without_move),
        NO_MOVE_TEXTS[truth.kind],
    )
    train = data.labels["train"]
    counts = PresenceDocument(
        no_moves=truth.kind,
        pause_minutes=pause_over(
            data.features.times, train.anchor + train.start, train.anchor + train.end
        ),
        windows_with_move=len(fit.windows.with_move),
        windows_without_move=len(fit.windows.without_move),
    )
    if fit.presence is None or fit.val_views is None:
        log.info("no presence model: %s", TOO_FEW)
        return PresenceResults(None, counts.model_copy(update={"reason": TOO_FEW}))

    return _judge_presence(
        fit.presence,
        fit.val_views,
        fit.val_row,
        model,
        data,
        truth,
        counts,
        device,
    )


def _judge_presence(
    presence: Presence,
    val_views: WindowViews,
    val_row: Ints,
    model: JadeCompact,
    data: TrainingData,
    truth: MoveTruth,
    counts: PresenceDocument,
    device: str,
) -> PresenceResults:
    """A fitted presence model, its merged moves calibrated, with what it finds in both splits."""
    features = data.features
    stretch = stretches(features.times, counts.pause_minutes)
    found = _calibrate(presence, val_views, val_row, stretch, truth)
    chosen = choose_threshold(found)
    if not chosen["precision"]:
        log.info("no presence model: %s", NOTHING_FOUND)
        return PresenceResults(None, counts.model_copy(update={"reason": NOTHING_FOUND}))

    log_threshold(chosen)
    test_row = rows_of_ranges(data.ranges("test"), STEP_BARS)
    test_views = _views(presence, model, features, test_row, device)

    return PresenceResults(
        presence,
        counts.model_copy(
            update={
                "threshold": chosen["threshold"],
                "precision": chosen["precision"],
                "recall": chosen["recall"],
            }
        ),
        _measure(presence, features, val_views, val_row, stretch, truth),
        _measure(presence, features, test_views, test_row, stretch, truth),
        {
            market.name: {
                **_measure_market(
                    presence, data, market, "validation", val_views, val_row, stretch
                ),
                **_measure_market(presence, data, market, "test", test_views, test_row, stretch),
            }
            for market in data.markets
        },
    )


def _measure_market(
    presence: Presence,
    data: TrainingData,
    market: MarketRows,
    split: str,
    views: WindowViews,
    window_row: Ints,
    stretch: Ints,
) -> dict[str, Detection]:
    """The split -> what is found in the market; empty where it has no window there."""
    stop_row = market.first_row + market.n_bars
    inside = (window_row >= market.first_row) & (window_row < stop_row)
    if not inside.any() or data.truth is None:
        return {}

    own = views.take(inside)
    found = _measure(presence, data.features, own, window_row[inside], stretch, data.truth)
    return {split: found}


def log_threshold(chosen: Threshold) -> None:
    log.info(
        "moves: threshold %.2f, chosen on validation: precision %.3f, recall %.3f",
        chosen["threshold"],
        chosen["precision"],
        chosen["recall"],
    )


def _calibrate(
    presence: Presence,
    views: WindowViews,
    window_row: Ints,
    stretch: Ints,
    truth: MoveTruth,
) -> Judged:
    """Fit the scale of merged moves; -> what is found, judged."""
    moves = find_moves(presence, views, window_row, stretch)
    judged = _judged(moves, truth, window_row)
    counted = judged.is_right | judged.is_wrong
    if min(judged.is_right.sum(), judged.is_wrong.sum()) < LEAST_EXAMPLES:
        return judged

    told = logit_of(torch.from_numpy(judged.probability[counted])).numpy()
    presence.move_scale.copy_(fit_logistic(told[:, None], judged.is_right[counted]))
    return _judged(find_moves(presence, views, window_row, stretch), truth, window_row)


def _judged(moves: Moves, truth: MoveTruth, window_row: Ints) -> Judged:
    return judge_moves(
        moves.first,
        moves.last,
        moves.probability,
        truth,
        window_row,
    )


def measure_windows(
    presence: Presence,
    model: JadeCompact,
    features: FeatureSet,
    truth: MoveTruth,
    window_row: Ints,
    pause_minutes: int = SESSION_BREAK_MINUTES,
    device: str = "cpu",
) -> Detection:
    """What the model and the baselines find in the windows at `window_row` [W]."""
    views = _views(presence, model, features, window_row, device)
    stretch = stretches(features.times, pause_minutes)
    return _measure(presence, features, views, window_row, stretch, truth)


def _measure(
    presence: Presence,
    features: FeatureSet,
    views: WindowViews,
    window_row: Ints,
    stretch: Ints,
    truth: MoveTruth,
) -> Detection:
    own = find_moves(presence, views, window_row, stretch)
    alone = window_probabilities(presence, views, window_row, stretch)
    finders: dict[str, tuple[Floats, Judged | None]] = {
        MODEL_FINDER: (any_move_inside(own, window_row), _judged(own, truth, window_row)),
        ALONE_FINDER: (alone, None),
    }

    likelihood = np.exp(views.told[..., -1].numpy())
    by_span = merge(_sightings(views, likelihood, window_row), window_row)
    finders[SPAN_FINDER] = (likelihood[:, 0], _judged(by_span, truth, window_row))
    finders[RUN_FINDER] = _strongest_runs(features, window_row, truth)

    return measure_detection(finders, truth.holds_move(window_row))


def _strongest_runs(
    features: FeatureSet,
    window_row: Ints,
    truth: MoveTruth,
) -> tuple[Floats, Judged]:
    """A window's strongest run of RUN_BARS bars is its move, by |sum of range_z x body_pct|."""
    range_z = features.rows[:, FEATURE_NAMES.index("range_z")].astype(np.float64)
    push = range_z * features.rows[:, FEATURE_NAMES.index("body_pct")]
    runs = np.abs(sliding_window_view(push, RUN_BARS).sum(axis=1))
    in_window = sliding_window_view(runs, WINDOW - RUN_BARS + 1)[window_row]
    start = in_window.argmax(axis=1)
    strength = in_window.max(axis=1)

    first = window_row + start
    spans, place = np.unique(first, return_index=True)
    found = judge_moves(
        spans,
        spans + RUN_BARS - 1,
        strength[place],
        truth,
        window_row,
    )
    return strength, found


def _views(
    presence: Presence,
    model: JadeCompact,
    features: FeatureSet,
    window_row: Ints,
    device: str,
) -> WindowViews:
    dataset = unlabelled_windows(features.rows, features.valid, window_row)
    return view_windows(model, presence, dataset, device=device)


def detection_document(found: PresenceResults) -> dict[str, object]:
    """What metrics.json says of finding moves."""
    return {
        "presence": found.document.model_dump(mode="json"),
        "validation": found.validation,
        "test": found.test,
    }
