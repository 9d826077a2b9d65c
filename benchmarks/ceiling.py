"""What the label rule itself finds where it sees only a window's own bars.

A label is made from the whole series, and at any place in a window from more than the window shows.
Whoever knew the rule to the last constant, and nothing of the bars outside, would score this.
"""

import numpy as np
import pandas as pd

from benchmarks.settings import Setting
from moola import WINDOW
from moola.data.hindsight import hindsight_labels
from moola.data.labels import LabelSet
from moola.evaluation.predictions import Predictions


def rule_on_windows(setting: Setting, labels: LabelSet) -> Predictions | None:
    """The strongest labelled move that the rule finds in each window of `labels`.

    None for a setting without a rule. A window in which it finds none gets equal probabilities and
    the whole window.
    """
    if setting.rule is None:
        return None

    n_classes = len(labels.classes)
    probabilities = np.full((len(labels), n_classes), 1 / n_classes)
    start = np.zeros(len(labels), np.int64)
    end = np.full(len(labels), WINDOW - 1)

    bars = setting.tested.features.bars
    for row, anchor in enumerate(labels.anchor):
        moves = hindsight_labels(bars.iloc[anchor : anchor + WINDOW], setting.rule)
        if moves.empty:
            continue

        move = moves.loc[_strength(moves).idxmax()]
        start[row] = move["start_bar"]
        end[row] = move["end_bar"]
        probabilities[row] = np.eye(n_classes)[labels.classes.index(move["label"])]

    return Predictions(probabilities, start, end)


def _strength(moves: pd.DataFrame) -> "pd.Series[float]":
    n_bars = moves["end_bar"] - moves["start_bar"] + 1
    strength: pd.Series[float] = moves["net_atr"] / np.sqrt(n_bars)
    return strength
