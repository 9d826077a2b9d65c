"""The labels of a train run, in its splits: from a file, found in bars, or planted.

No part of it needs torch: a launcher runs all rules before anything is sent.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from moola.data.feature_records import FeatureMetadata
from moola.data.feature_set import (
    CLEAN_BARS,
    METADATA,
    MOVES,
    SPLITS_FILE,
    FeatureSet,
    Series,
    read_clean_bars,
    read_documents,
)
from moola.data.folds import FoldRanges, folds_of_series, no_folds
from moola.data.hindsight import hindsight_labels
from moola.data.label_files import SET_COLUMN, LabelFile, labels_of_file
from moola.data.label_folds import fold_labels
from moola.data.labels import LabelSet, assign_ranges, require_examples, split_in_order
from moola.data.placement import MOVE_TIMES, place_windows, planted_labels
from moola.data.splits import SPLITS, Ranges, Split, ranges_of
from moola.errors import ArtifactError, DataError
from moola.runs.reading import pull_files, require_input_run
from moola.runs.records import InputRun
from moola.runs.workdir import fetching_into
from moola.specs import LabelConfig, TrainSpec
from moola.store import Store
from moola.text import quoted

SERIES_FILES = (CLEAN_BARS, METADATA, SPLITS_FILE, MOVES)


def feature_folder(work: Path, run_id: str) -> Path:
    """Where the feature set of a precompute run is pulled to."""
    return work / "features" / run_id


def fetch_series(store: Store, item: InputRun, work: Path) -> Series:
    """The series of a committed precompute run, pulled once into `work`: no features, no mask.

    Raises ArtifactError if that run is not as `item` says, or its files are none of a feature set.
    """
    folder = feature_folder(work, item.run)
    manifest = require_input_run(store, item)
    with fetching_into(folder):
        pull_files(store, manifest, folder, only=SERIES_FILES)

    metadata, splits = read_documents(folder)
    bars = read_clean_bars(folder, metadata.n_bars)
    return _series(folder, bars, metadata, splits)


def series_of(features: FeatureSet, folder: Path) -> Series:
    """The series of a feature set that is read; `folder` holds its files."""
    return _series(
        folder,
        features.bars,
        features.metadata,
        features.splits,
    )


def _series(
    folder: Path,
    bars: pd.DataFrame,
    metadata: FeatureMetadata,
    splits: Mapping[str, Split],
) -> Series:
    return Series(
        run=folder.name,
        bars=bars,
        dropped=tuple(pd.Timestamp(minute) for minute in metadata.dropped_minutes),
        rolls=tuple(pd.Timestamp(minute) for minute in metadata.rolls),
        splits=splits,
        moves=folder / MOVES,
        metadata=metadata,
    )


def read_moves(path: Path, n_bars: int) -> pd.DataFrame:
    """The planted moves of a series. Raises ArtifactError for a file that cannot be theirs."""
    try:
        file = pa.parquet.ParquetFile(path)
        if file.metadata.num_rows > n_bars:
            raise ValueError(f"{file.metadata.num_rows} moves in {n_bars} bars")
        kind = file.schema_arrow.field("label").type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise ValueError(f"labels must be text, got {kind}")
        moves: pd.DataFrame = file.read().to_pandas()
        for name in MOVE_TIMES:
            moves[name] = pd.to_datetime(moves[name], utc=True)
        return moves
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        raise ArtifactError(f"{path} is damaged: {error}") from error


# --- labels ---------------------------------------------------------------------------------------


def load_labels(
    config: LabelConfig,
    file: LabelFile | None,
    series: Series | None,
) -> LabelSet:
    """All labels of the source: of `file`, where there is one, else of `config.source`.

    Without a `series` only labels that carry their own bars can be loaded. Raises DataError.
    """
    if file is not None:
        return labels_of_file(
            file,
            config,
            times=None if series is None else series.times,
            dropped=() if series is None else series.dropped,
        )

    if config.timezone is not None or config.time_format is not None:
        raise DataError(
            f"labels.timezone and labels.time_format are for a file of labels, and labels.source "
            f"is {config.source}"
        )
    if series is None:
        raise DataError(f"labels.source: {config.source} needs a feature set, got none")
    if config.source == "planted":
        if not series.moves.exists():
            raise DataError(
                f"labels.source: planted needs synthetic bars; run {series.run} has none"
            )
        moves = read_moves(series.moves, len(series.bars))
        return planted_labels(moves, series.times, config)

    return place_windows(
        hindsight_labels(series.bars, config.hindsight, series.rolls),
        series.times,
        config,
        source="hindsight",
    )


def labels_by_split(
    labels: LabelSet,
    ranges: Ranges,
    spec: TrainSpec,
    folds: FoldRanges = no_folds,
) -> tuple[dict[str, LabelSet], dict[str, int]]:
    """The labels of each split, and how many are in none, by reason.

    Anchored labels lie in the `ranges` of the feature set or sets; those that carry their own bars
    are cut in their order by `labels.fractions`. A run that is a fold has the fold's splits
    instead, by the `folds` of the feature set or sets. The training labels are drawn as the spec
    says. Raises DataError where a class has too few labels.
    """
    rare_classes = spec.labels.rare_classes
    if spec.cross_validate is not None:
        parts, left_out = fold_labels(labels, spec.cross_validate, folds, rare_classes)
    elif labels.anchored:
        parts, left_out = assign_ranges(labels, ranges, rare_classes)
    else:
        fractions = dict(zip(SPLITS, spec.labels.fractions, strict=True))
        parts, left_out = split_in_order(labels, fractions, rare_classes)

    parts["train"] = draw_labels(parts["train"], spec)
    return parts, left_out


def draw_labels(labels: LabelSet, spec: TrainSpec) -> LabelSet:
    """`fraction` of the labels, at most `max_train_labels`, drawn by the seed, in time order.

    Raises DataError where a class has too few among them.
    """
    n = min(round(len(labels) * spec.fraction), spec.max_train_labels or len(labels))
    if n == len(labels):
        return labels

    rng = np.random.default_rng(spec.training.seed)
    chosen = np.sort(rng.permutation(len(labels))[:n])
    drawn = labels.take(chosen)
    setting = f"fraction {spec.fraction}, max_train_labels {spec.max_train_labels}"
    place = f"of the {n} drawn from {len(labels)} ({setting})"
    require_examples(drawn, "training labels", place)

    return drawn


def check_labels(
    spec: TrainSpec,
    file: LabelFile | None,
    series: Series | None,
) -> None:
    """Everything that can be wrong with the labels of a run. Raises DataError."""
    if file is not None and series is not None:
        _require_one_set(file, series.run)
    labels = load_labels(spec.labels, file, series)
    if series is None:
        labels_by_split(labels, {}, spec)
    else:
        folds = folds_of_series(len(series.bars))
        labels_by_split(labels, ranges_of(series.splits), spec, folds)


def _require_one_set(file: LabelFile, run: str) -> None:
    """Raises DataError where rows name several feature sets, or another one: they would lie on
    bars of another market."""
    if SET_COLUMN not in file.table or file.has_own_bars:
        return

    values = file.table[SET_COLUMN]
    texts = [value.strip() for value in values if isinstance(value, str)]
    names = dict.fromkeys(text for text in texts if not text.startswith("["))
    is_other = any(name.startswith("precompute-") and not run.startswith(name) for name in names)
    if len(names) > 1 or is_other:
        listed = ", ".join(quoted(name) for name in list(names)[:5])
        raise DataError(
            f"labels that point into other feature sets must not be laid on {run}: the column "
            f"{SET_COLUMN} names {listed}; give each of them as --features NAME=RUN, or leave the "
            f"column out ({file.name})"
        )
