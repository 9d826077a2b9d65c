"""The results of a run on several markets, of each market beside those of all."""

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np

from moola.data.labels import LabelSet
from moola.data.markets import MarketRows, market_of
from moola.evaluation import metrics
from moola.evaluation.detection import Detection
from moola.evaluation.metrics import Evaluation
from moola.evaluation.predictions import Predictions
from moola.evaluation.scoring import as_targets
from moola.features.arrays import Flags
from moola.training.data import TrainingData

MARKET_SPLITS = {"validation": "val", "test": "test"}  # as results and as the data name them


class MarketResults(TypedDict):
    """Of one market. A split in which it has no label, or no move is looked for, is None.

    labels: split -> class -> labels, and "n" of all.
    """

    run: str
    labels: dict[str, dict[str, int]]
    validation: Evaluation | None
    test: Evaluation | None
    detection: dict[str, Detection | None]


def evaluate_markets(
    data: TrainingData,
    predictions: Mapping[str, Predictions],
    detections: Mapping[str, Mapping[str, Detection]],
    *,
    temperature: float,
    seed: int,
) -> dict[str, MarketResults]:
    """Results by the market's name; empty where there is one feature set.

    predictions  by split, before they are scaled
    detections   by market and split
    """
    return {
        market.name: {
            "run": market.run,
            "labels": {name: _counts(part, number, data) for name, part in data.labels.items()},
            "validation": _evaluate(data, predictions, "val", number, temperature, seed),
            "test": _evaluate(data, predictions, "test", number, temperature, seed),
            "detection": {
                name: detections.get(market.name, {}).get(name) for name in MARKET_SPLITS
            },
        }
        for number, market in enumerate(data.markets)
    }


def _evaluate(
    data: TrainingData,
    predictions: Mapping[str, Predictions],
    split: str,
    number: int,
    temperature: float,
    seed: int,
) -> Evaluation | None:
    """On the market's own labels of a split. The baselines know its own training labels, or where
    it has none those of all."""
    inside = labels_inside(data.labels[split], number, data.markets)
    if not inside.any():
        return None

    train = data.labels["train"]
    own_train = labels_inside(train, number, data.markets)
    whole = predictions[split]
    return metrics.evaluate(
        Predictions(whole.probabilities[inside], whole.start[inside], whole.end[inside]),
        as_targets(data.labels[split].take(inside)),
        as_targets(train.take(own_train) if own_train.any() else train),
        data.window_features(split)[inside],
        temperature=temperature,
        seed=seed,
    )


def labels_inside(labels: LabelSet, number: int, markets: Sequence[MarketRows]) -> Flags:
    """[N] whether each label lies in the market of that number."""
    return np.asarray(market_of(labels.anchor, markets) == number)


def _counts(labels: LabelSet, number: int, data: TrainingData) -> dict[str, int]:
    own = labels.take(labels_inside(labels, number, data.markets))
    return {"n": len(own), **own.class_counts()}
