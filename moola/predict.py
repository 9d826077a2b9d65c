"""A trained model put to use: its files read back, and what it says of other bars."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import sliding_window_view

from moola import WINDOW, metrics
from moola.bars import PRICES
from moola.errors import DataError
from moola.features import FEATURE_NAMES, N_FEATURES, FeatureConfig, compute_features
from moola.labels import features_of_windows
from moola.metrics import Predictions
from moola.models import build_model
from moola.models.jade_core import JadeCompact
from moola.training import loop
from moola.training.batches import WindowDataset
from moola.training.checkpoint import read_weights
from moola.windows import valid_rows

WEIGHTS, MODEL = "model.safetensors", "model.json"
AT_ONCE = 4096  # windows of which the features are in memory, where each window has its own


def as_predictions(predicted: loop.Predicted, ids: Any = None) -> Predictions:
    """Log-probabilities [N, K] -> probabilities."""
    logits = predicted.logits - predicted.logits.max(1, keepdims=True)
    probabilities = np.exp(logits)
    return Predictions(probabilities / probabilities.sum(1, keepdims=True), predicted.start, predicted.end, ids)


def load_model(folder: Path) -> tuple[JadeCompact, dict[str, Any]]:
    """A pulled run's model, ready to predict, and its model.json. Raises ArtifactError or DataError."""
    info = json.loads((folder / MODEL).read_text())
    if info["feature_names"] != list(FEATURE_NAMES):
        raise DataError(f"the model reads features {info['feature_names']}, this version makes {list(FEATURE_NAMES)}")
    settings, config = dict(info["model"]), info["feature_config"]
    model = build_model(
        settings.pop("name"),
        **settings,
        num_classes=len(info["classes"]),
        range_period=config["ema_range_period"],
        atr_period=config["atr_period"],
        longest_move=info["longest_move"],
    )
    model.load_state_dict(read_weights((folder / WEIGHTS).read_bytes()))
    return model, info


def predict_bars(
    model: JadeCompact,
    info: dict[str, Any],
    bars: pd.DataFrame,
    every: int,
    on_windows: Callable[[int], None] = lambda _: None,
) -> pd.DataFrame:
    """Predictions for a window every `every` of `bars` (as `read_bars` gives them): window_start, type, probabilities
    (scaled by the temperature), start, end.

    Features are made as they were for the model: of the whole series, or of each window alone where its labels carried
    their own bars. `on_windows` is told how many windows are done since it was last told.
    """
    first = np.arange(0, len(bars) - WINDOW + 1, every)
    config = FeatureConfig.model_validate(info["feature_config"])
    cut = _windows_alone if info["own_bars"] else _windows_of_series
    predicted = [loop.predict(model, windows, on_windows=on_windows) for windows in cut(bars, first, config)]
    logits, start, end = (np.concatenate([getattr(p, name) for p in predicted]) for name in ("logits", "start", "end"))
    scaled = metrics.scale(as_predictions(loop.Predicted(logits, start, end)).probabilities, info["temperature"])
    classes = info["classes"]
    return pd.DataFrame(
        {
            "window_start": bars.index[first],
            "type": np.array(classes)[scaled.argmax(1)],
            **{f"probability_{name}": scaled[:, k] for k, name in enumerate(classes)},
            "expansion_start": start,
            "expansion_end": end,
        }
    )


def _windows_of_series(bars: pd.DataFrame, first: Any, config: FeatureConfig) -> Iterator[WindowDataset]:
    rows = compute_features(bars, config)
    yield _dataset(rows, valid_rows(np.zeros(len(rows), np.bool_)), first)


def _windows_alone(bars: pd.DataFrame, first: Any, config: FeatureConfig) -> Iterator[WindowDataset]:
    windows = sliding_window_view(bars[list(PRICES)].to_numpy(), WINDOW, axis=0).swapaxes(1, 2)  # [n_windows, T, 4]
    for k in range(0, len(first), AT_ONCE):
        rows, valid = features_of_windows(windows[first[k : k + AT_ONCE]], config)
        yield _dataset(rows.reshape(-1, N_FEATURES), valid.reshape(-1), np.arange(len(rows)) * WINDOW)


def _dataset(rows: Any, valid: Any, first: Any) -> WindowDataset:
    """Windows without a label."""
    none = np.zeros(len(first), np.int64)
    return WindowDataset(rows, valid, first, first, first, none, first, first + WINDOW, first)
