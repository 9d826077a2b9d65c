"""What a run trains on: a feature set, and labels in the run's splits."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moola import PRICES, WINDOW
from moola.data.feature_records import FeatureMetadata
from moola.data.feature_set import FEATURE_SET_FILES, MOVES, FeatureSet, read_feature_set
from moola.data.folds import FoldRanges, fold_splits, folds_of_series, no_folds
from moola.data.label_files import open_label_file, with_own_features
from moola.data.label_sources import feature_folder, labels_by_split, load_labels, series_of
from moola.data.labels import LabelSet
from moola.data.market_labels import (
    files_by_set,
    load_market_labels,
    no_move_warnings,
    require_labels_of_each,
)
from moola.data.markets import (
    MarketRows,
    folds_of_markets,
    join_features,
    lay_out,
    market_ranges,
)
from moola.data.move_truth import MoveTruth, forget_moves, forget_outside, move_truth
from moola.data.splits import SPLITS, Ranges, Split, ranges_of
from moola.data.windows import window_view
from moola.errors import DataError
from moola.features import N_FEATURES, FeatureConfig
from moola.features.arrays import Ints
from moola.runs.reading import pull_files, require_input_run
from moola.runs.records import InputFile, InputRun, SpecDocument
from moola.runs.submit import input_file, input_name, input_run, pull_input, several_inputs
from moola.runs.work_limit import mark_used
from moola.runs.workdir import fetching_into
from moola.specs import CrossValidation, LabelConfig, TrainSpec
from moola.store import Store
from moola.training.batches import NOT_MIRRORED, WindowDataset

log = logging.getLogger("moola")


@dataclass(frozen=True)
class TrainingData:
    """A feature set, and the labels and their windows by split ("train", "val", "test").

    left_out: reason -> labels that are in no split. truth: what is known of the series' bars; None
    where labels carry their own bars. markets: what the rows are made of, where there are several
    feature sets.
    """

    features: FeatureSet
    labels: dict[str, LabelSet]
    windows: dict[str, WindowDataset]
    left_out: dict[str, int]
    truth: MoveTruth | None = None
    markets: tuple[MarketRows, ...] = ()

    def ranges(self, split: str) -> tuple[Split, ...]:
        """The windows of a split: of the series, or of each market that has some."""
        if self.markets:
            return tuple(market_ranges(self.markets)[split])
        return (self.features.splits[split],)

    def window_features(self, split: str) -> NDArray[np.float32]:
        """[N, T, F] the windows of a split, as labelled."""
        dataset = self.windows[split]
        return np.asarray(window_view(dataset.rows)[dataset.window_row])


def fetch_features(
    store: Store,
    item: InputRun,
    work: Path,
) -> FeatureSet:
    """The feature set of a committed precompute run, pulled once into `work`.

    Raises ArtifactError if that run is not what it was when this one was submitted.
    """
    folder = feature_folder(work, item.run)
    mark_used(folder)
    names = (*FEATURE_SET_FILES, MOVES)
    with fetching_into(folder):
        pull_files(
            store,
            require_input_run(store, item),
            folder,
            only=names,
        )

    return read_feature_set(folder, N_FEATURES)


def rows_of_ranges(ranges: Sequence[Split], step: int) -> Ints:
    """Rows of the first bars of windows, one every `step` bars of each range."""
    return np.concatenate([np.arange(split.start, split.stop, step) for split in ranges])


def fetch_markets(
    store: Store,
    work: Path,
    spec: TrainSpec,
    document: SpecDocument,
) -> TrainingData:
    """What a run trains on that reads several feature sets. Raises DataError or ArtifactError."""
    runs = several_inputs(document, "features")
    items = {name: input_run(document, input_name("features", name)) for name in runs}
    sets = {name: fetch_features(store, item, work) for name, item in items.items()}
    series = {
        name: series_of(one, feature_folder(work, items[name].run)) for name, one in sets.items()
    }
    markets = lay_out(series, spec.splits, spec.cross_validate)

    item = input_file(document, "labels")
    if item is not None:
        file = open_label_file(pull_input(store, item, work))
        files = files_by_set(file, {name: each.run for name, each in items.items()})
    else:
        files = {
            name: open_label_file(pull_input(store, each, work))
            for name, each in several_inputs(document, "labels").items()
            if isinstance(each, InputFile)
        }

    labels = load_market_labels(spec.labels, files, series, markets)
    folds = folds_of_markets(series)
    data = split_labels(labels, join_features(sets), spec, markets, folds)
    warnings = require_labels_of_each(data.labels, markets, are_drawn=spec.draws_labels)
    for warning in (*warnings, *no_move_warnings(labels, markets)):
        log.warning("%s", warning)
    return data


def fetch_labels(
    store: Store,
    work: Path,
    config: LabelConfig,
    document: SpecDocument,
    features: FeatureSet | None,
) -> LabelSet:
    """All labels of the source that the spec names; those with own bars have features.

    The run has no feature set where labels carry their own bars. Raises DataError or ArtifactError.
    """
    item = input_file(document, "labels")
    file = None if item is None else open_label_file(pull_input(store, item, work))

    if features is None:
        return with_own_features(load_labels(config, file, None), FeatureConfig())

    series = series_of(features, feature_folder(work, input_run(document, "features").run))
    labels = load_labels(config, file, series)
    return with_own_features(labels, features.metadata.feature_config())


def own_feature_set(labels: LabelSet) -> FeatureSet:
    """What stands for a feature set where the training labels carry their own bars: their windows.

    They lie end to end, and there is no series and no window of another split among them.
    """
    if labels.features is None or labels.valid is None:
        raise DataError(f"labels without bars of their own need a feature set ({labels.source})")

    rows = labels.features.reshape(-1, N_FEATURES)
    no_bars = pd.DataFrame(columns=list(PRICES), index=pd.DatetimeIndex([], tz="UTC"))
    return FeatureSet(
        rows=rows,
        valid=labels.valid.reshape(-1),
        splits={"train": Split(0, len(rows))},
        metadata=FeatureMetadata(config=FeatureConfig().model_dump(mode="json")),
        bars=no_bars,
    )


def split_labels(
    labels: LabelSet,
    features: FeatureSet | None,
    spec: TrainSpec,
    markets: tuple[MarketRows, ...] = (),
    folds: FoldRanges = no_folds,
) -> TrainingData:
    """The labels in their splits with their windows, as `labels_by_split` cuts them.

    Several `markets` come with their `folds`. Without a feature set the windows of the training
    labels stand for one. Raises DataError where a class has too few labels.
    """
    ranges: Ranges = {}
    if markets:
        ranges = market_ranges(markets)
    elif features is not None:
        features = with_splits_of_fold(features, spec.cross_validate)
        ranges = ranges_of(features.splits)
        folds = folds_of_series(len(features.rows))

    parts, left_out = labels_by_split(labels, ranges, spec, folds)
    data = replace(training_data(features, parts, left_out), markets=markets)
    return replace(data, truth=_known_truth(labels, data, spec))


def with_splits_of_fold(
    features: FeatureSet,
    fold: CrossValidation | None,
) -> FeatureSet:
    """The feature set, cut as the fold is: everything that asks for its splits gets these."""
    if fold is None:
        return features
    return replace(features, splits=fold_splits(fold, len(features.rows)))


def _known_truth(
    labels: LabelSet,
    data: TrainingData,
    spec: TrainSpec,
) -> MoveTruth | None:
    """Without the training labels that were not drawn, and what no split shows whole."""
    truth = move_truth(labels, len(data.features.rows))
    if truth is None:
        return None

    truth = forget_outside(truth, [split for name in SPLITS for split in data.ranges(name)])
    if spec.fraction == 1 and spec.max_train_labels is None:
        return truth

    for split in data.ranges("train"):
        truth = forget_moves(truth, split, data.labels["train"])
    return truth


def training_data(
    features: FeatureSet | None,
    parts: Mapping[str, LabelSet],
    left_out: dict[str, int],
) -> TrainingData:
    """Labels that are split, with their windows."""
    if features is None:
        features = own_feature_set(parts["train"])

    windows = {name: windows_of(part, features) for name, part in parts.items()}
    return TrainingData(features, dict(parts), windows, left_out)


def windows_of(labels: LabelSet, features: FeatureSet) -> WindowDataset:
    """The windows of labels: cut from the series, or from the labels' own bars laid end to end."""
    mirrored_class = tuple(_mirrored_class(labels, name) for name in labels.classes)

    if labels.features is None or labels.valid is None:
        return WindowDataset(
            rows=features.rows,
            valid=features.valid,
            window_row=labels.anchor,
            start_row=labels.start_bar,
            end_row=labels.end_bar,
            label=labels.label_index,
            min_row=labels.first_anchor,
            stop_row=labels.last_anchor + WINDOW,
            window_id=labels.window_id,
            state_bars=labels.state_bars,
            mirrored_class=mirrored_class,
        )

    window_row = np.arange(len(labels)) * WINDOW
    return WindowDataset(
        rows=labels.features.reshape(-1, N_FEATURES),
        valid=labels.valid.reshape(-1),
        window_row=window_row,
        start_row=window_row + labels.start,
        end_row=window_row + labels.end,
        label=labels.label_index,
        min_row=window_row,
        stop_row=window_row + WINDOW,
        window_id=labels.window_id,
        mirrored_class=mirrored_class,
    )


def _mirrored_class(labels: LabelSet, name: str) -> int:
    """The class that one is upside down."""
    image = labels.mirror.get(name)
    return labels.classes.index(image) if image in labels.classes else NOT_MIRRORED
