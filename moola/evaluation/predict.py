"""A trained model put to use: its files read back, and its predictions for other bars."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor

from moola import PRICES, WINDOW
from moola.data.pauses import stretches
from moola.data.windows import WARM_UP, features_of_windows, valid_rows
from moola.errors import ArtifactError, DataError
from moola.evaluation.calibration import scale
from moola.evaluation.find_moves import find_moves
from moola.evaluation.model_document import ModelDocument
from moola.evaluation.run_tables import PROBABILITY
from moola.evaluation.scoring import as_predictions
from moola.features import FEATURE_NAMES, N_FEATURES, FeatureConfig, compute_features
from moola.models import build_model
from moola.models.jade_core import JadeCompact
from moola.models.presence import Presence
from moola.runs.records import parse_record
from moola.specs import ModelConfig
from moola.store import MAX_DOCUMENT_BYTES
from moola.text import quoted
from moola.training.batches import WindowDataset
from moola.training.checkpoint import WEIGHTS, load_weights, read_weights
from moola.training.inference import ModelOutputs, infer, no_progress
from moola.training.presence import joined_views, unlabelled_windows, view_windows

MODEL = "model.json"
PRESENCE = "presence."  # what the names of the presence model's weights begin with
MODEL_FILES = (WEIGHTS, MODEL)  # all that `load_model` reads
WINDOWS_AT_ONCE = 4096  # of which the features are in memory, where each window has its own


class LoadedModel(NamedTuple):
    """A run's model, ready to predict; presence is None where it cannot tell whether."""

    model: JadeCompact
    info: ModelDocument
    presence: Presence | None


def load_model(folder: Path) -> LoadedModel:
    """A pulled run's model and its model.json. Raises ArtifactError or DataError."""
    for name in MODEL_FILES:
        if not (folder / name).exists():
            raise ArtifactError(f"{name} is missing: it must be a train run ({folder})")
    with (folder / MODEL).open("rb") as stream:
        data = stream.read(MAX_DOCUMENT_BYTES + 1)
    info = parse_record(ModelDocument, data, str(folder / MODEL))
    if info.feature_names != tuple(FEATURE_NAMES):
        raise DataError(
            f"the model reads features {quoted(list(info.feature_names))}, "
            f"this version makes {list(FEATURE_NAMES)}"
        )

    weights = read_weights((folder / WEIGHTS).read_bytes())
    _require_size(weights, info.model, folder / WEIGHTS)
    model = build_model(
        info.model.name,
        hidden_size=info.model.hidden_size,
        num_layers=info.model.num_layers,
        dropout=info.model.dropout,
        num_classes=len(info.classes),
        range_period=info.feature_config.ema_range_period,
        atr_period=info.feature_config.atr_period,
        longest_move=info.longest_move,
    )
    own_weights, presence_weights = _parted(weights)
    load_weights(model, own_weights)
    presence = None
    if info.presence is not None and info.presence.threshold is not None:
        presence = Presence()
        load_weights(presence, presence_weights)

    return LoadedModel(model, info, presence)


def all_weights(model: JadeCompact, presence: Presence | None) -> dict[str, Tensor]:
    """Name -> tensor of what a run leaves."""
    weights = dict(model.state_dict())
    if presence is not None:
        for name, tensor in presence.state_dict().items():
            weights[PRESENCE + name] = tensor

    return weights


def _parted(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of the model, and those of its presence model."""
    own = {name: tensor for name, tensor in weights.items() if not name.startswith(PRESENCE)}
    presence = {
        name.removeprefix(PRESENCE): tensor
        for name, tensor in weights.items()
        if name.startswith(PRESENCE)
    }
    return own, presence


def _require_size(weights: Mapping[str, Tensor], config: ModelConfig, path: Path) -> None:
    """Raises ArtifactError unless the weights fill the encoder that the config asks for.

    Before it is made: a model is no larger than the file that its weights came in.
    """
    size = config.hidden_size
    expected = (4 * size, size)  # of the four gates
    for layer in range(config.num_layers):
        name = f"encoder.weight_hh_l{layer}"
        shape = tuple(weights[name].shape) if name in weights else None
        if shape != expected:
            raise ArtifactError(
                f"{path} does not fit {MODEL}: {name} must be {list(expected)}, got {shape}"
            )


def predict_bars(
    model: JadeCompact,
    info: ModelDocument,
    bars: pd.DataFrame,
    every: int,
    on_windows: Callable[[int], None] = no_progress,
) -> pd.DataFrame:
    """Predictions for a window every `every` of `bars` (as `read_bars` gives them), and the newest.

    Columns: window_start, type, a probability per class (scaled by the temperature),
    expansion_start, expansion_end. Features are made as they were for the model: of the whole
    series, or of each window alone where its labels carried their own bars. `on_windows` is called
    with how many more windows are done.
    """
    window_row = window_rows(len(bars), every)
    datasets = _datasets(info, bars, window_row)
    parts = [infer(model, dataset, on_windows=on_windows) for dataset in datasets]
    outputs = ModelOutputs(
        logits=np.concatenate([part.logits for part in parts]),
        start=np.concatenate([part.start for part in parts]),
        end=np.concatenate([part.end for part in parts]),
    )
    probabilities = scale(as_predictions(outputs).probabilities, info.temperature)

    classes = info.classes
    columns = {
        "window_start": bars.index[window_row],
        "type": np.array(classes)[probabilities.argmax(1)],
    }
    for k, name in enumerate(classes):
        columns[f"{PROBABILITY}{name}"] = probabilities[:, k]
    columns["expansion_start"] = outputs.start
    columns["expansion_end"] = outputs.end

    return pd.DataFrame(columns)


def predict_moves(
    loaded: LoadedModel,
    bars: pd.DataFrame,
    every: int,
    threshold: float | None = None,
    on_windows: Callable[[int], None] = no_progress,
) -> pd.DataFrame:
    """The moves in `bars` that a window every `every` bars and the newest show, in time order.

    Columns: start and end (UTC minutes of the first and the last bar), type, probability (that it
    is a move; at least `threshold`, or what validation chose), probability_of_type, windows_agree,
    windows (that hold it), best_window (UTC minute of its first bar). Raises DataError for a model
    without a presence model, and for windows so far apart that a move could lie in none.
    """
    chosen = require_presence(loaded)
    info = loaded.info
    assert loaded.presence is not None
    assert info.presence is not None
    require_dense(every, info)
    window_row = window_rows(len(bars), every, settled_row(info, len(bars)))
    datasets = _datasets(info, bars, window_row)
    parts = [
        view_windows(
            loaded.model,
            loaded.presence,
            dataset,
            on_windows=on_windows,
        )
        for dataset in datasets
    ]

    stretch = stretches(pd.DatetimeIndex(bars.index), info.presence.pause_minutes)
    found = find_moves(loaded.presence, joined_views(parts), window_row, stretch)
    found = found.take(found.probability >= (chosen if threshold is None else threshold))
    types = scale(found.types, info.temperature) if len(found) else found.types
    best_type = types.argmax(axis=1)

    return pd.DataFrame(
        {
            "start": bars.index[found.first],
            "end": bars.index[found.last],
            "type": np.array(info.classes)[best_type],
            "probability": found.probability,
            "probability_of_type": types.max(axis=1, initial=0.0),
            "windows_agree": found.n_agree,
            "windows": found.n_windows,
            "best_window": bars.index[found.best_window],
        }
    )


def window_rows(n_bars: int, every: int, first_row: int = 0) -> NDArray[np.int64]:
    """Of windows from `first_row` on, one every `every` bars, and of the one that ends last."""
    newest = n_bars - WINDOW
    return np.unique(np.append(np.arange(first_row, newest + 1, every), newest))


def settled_row(info: ModelDocument, n_bars: int) -> int:
    """Where windows begin for the moves: before, averages that have not settled show some that are
    none. A series that has no window behind that row is looked at as it is.
    """
    return 0 if info.own_bars else min(WARM_UP, n_bars - WINDOW)


def most_apart(info: ModelDocument) -> int:
    """Bars from one window to the next, so that every move lies whole in one."""
    return WINDOW - info.longest_move + 1


def require_dense(every: int, info: ModelDocument) -> None:
    """Raises DataError for windows so far apart that a move could lie whole in none of them."""
    if every > most_apart(info):
        raise DataError(
            f"every must be at most {most_apart(info)}, got {every}: moves have up to "
            f"{info.longest_move} bars and must lie whole in a window of {WINDOW}"
        )


def require_presence(loaded: LoadedModel) -> float:
    """The threshold that validation chose. Raises DataError for a model without one."""
    document = loaded.info.presence
    if document is not None and document.threshold is not None:
        return document.threshold

    reason = "its version of moola fitted none" if document is None else document.reason
    raise DataError(
        "this run's model says where a move would be and of which type, but has nothing that says "
        f"whether there is one ({reason}); train again on labels that point into bars, or ask for "
        "--windows FILE, a table that takes every window to hold a move"
    )


def _datasets(
    info: ModelDocument,
    bars: pd.DataFrame,
    window_row: NDArray[np.int64],
) -> Iterator[WindowDataset]:
    """Windows of the series, or each alone where the labels carried their own bars."""
    if info.own_bars:
        return _windows_alone(bars, window_row, info.feature_config)

    return _windows_of_series(bars, window_row, info.feature_config)


def _windows_of_series(
    bars: pd.DataFrame,
    window_row: NDArray[np.int64],
    config: FeatureConfig,
) -> Iterator[WindowDataset]:
    rows = compute_features(bars, config)
    valid = valid_rows(np.zeros(len(rows), np.bool_))
    yield unlabelled_windows(rows, valid, window_row)


def _windows_alone(
    bars: pd.DataFrame,
    window_row: NDArray[np.int64],
    config: FeatureConfig,
) -> Iterator[WindowDataset]:
    prices = bars[list(PRICES)].to_numpy()
    windows = sliding_window_view(prices, WINDOW, axis=0).swapaxes(1, 2)  # [n_windows, T, 4]
    for k in range(0, len(window_row), WINDOWS_AT_ONCE):
        part = windows[window_row[k : k + WINDOWS_AT_ONCE]]
        rows, valid = features_of_windows(part, config)
        own_row = np.arange(len(rows)) * WINDOW
        yield unlabelled_windows(
            rows.reshape(-1, N_FEATURES),
            valid.reshape(-1),
            own_row,
        )
