"""From a model's outputs and labels to the predictions and targets that metrics compare."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from moola.data.labels import LabelSet
from moola.evaluation import metrics
from moola.evaluation.predictions import Predictions, Targets
from moola.training.inference import ModelOutputs


def as_predictions(
    outputs: ModelOutputs, window_id: NDArray[np.object_] | None = None
) -> Predictions:
    """Log-probabilities [N, K] -> probabilities."""
    weights = np.exp(outputs.logits - outputs.logits.max(1, keepdims=True))
    probabilities = weights / weights.sum(1, keepdims=True)
    return Predictions(
        probabilities,
        outputs.start,
        outputs.end,
        window_id,
    )


def as_targets(labels: LabelSet) -> Targets:
    return Targets(
        labels.label_index,
        labels.start,
        labels.end,
        labels.classes,
    )


def score_on(labels: LabelSet) -> Callable[[ModelOutputs], dict[str, float]]:
    """A function from a model's outputs for the windows of `labels` to every metric by name."""
    targets = as_targets(labels)
    return lambda outputs: metrics.score(as_predictions(outputs), targets)
