"""Several markets against one: is a market predicted better where others were trained on too?

    python -m benchmarks.markets --judge NQ_1m.parquet --others EURUSD_1m_2017.parquet \\
      --train-end 2023-11-29 --val-end 2023-11-30

Hindsight labels, strongest in their window. All markets are cut at the same days, and validation
and test labels are those of --judge alone. Trained on: its own labels; as many drawn from all
markets together; all labels of all markets. Mean over the seeds, and the 95 % interval of that mean
over days of the test.
"""

import argparse
from datetime import date
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.day_blocks import day_of_window, day_weights, headline
from benchmarks.quality import BOOSTED, JADE, MODELS, Floats, interval_texts, trivial_texts
from benchmarks.settings import feature_set
from moola.data.bars import read_bars
from moola.data.feature_set import FeatureSet
from moola.data.label_sources import series_of
from moola.data.market_labels import load_market_labels
from moola.data.markets import join_features, lay_out, market_of
from moola.evaluation.predictions import Predictions
from moola.evaluation.scoring import as_targets
from moola.specs import SplitDates, TrainConfig, TrainSpec
from moola.training.data import TrainingData, split_labels

HEADINGS = ("trained on", "model", "training labels", "F1 macro", "Hit@±3", "joint")

Sets = dict[str, FeatureSet]


def read_sets(paths: list[Path]) -> Sets:
    return {path.stem: feature_set(read_bars(path).frame) for path in paths}


def data_of(
    sets: Sets,
    judge: str,
    dates: SplitDates,
    n_labels: int | None,
    seed: int,
) -> TrainingData:
    """The markets' labels, at most `n_labels` of them in train; validation and test of `judge`."""
    spec = TrainSpec(
        splits=dates, max_train_labels=n_labels, training=TrainConfig(seed=seed), device="cpu"
    )
    series = {name: series_of(one, Path(name)) for name, one in sets.items()}
    markets = lay_out(series, dates)
    labels = load_market_labels(spec.labels, {}, series, markets)
    number = list(sets).index(judge)
    is_judge = market_of(labels.anchor, markets) == number
    in_train = np.zeros(len(labels), bool)
    for market in markets:
        split = market.splits.get("train")
        if split is not None:
            in_train |= (labels.anchor >= split.start) & (labels.anchor < split.stop)

    return split_labels(labels.take(is_judge | in_train), join_features(sets), spec, markets)


def row_of(
    title: str,
    name: str,
    sets: Sets,
    options: argparse.Namespace,
    n_labels: int | None,
) -> list[str]:
    """The row of a model, trained once with each seed."""
    judge = options.judge.stem
    dates = SplitDates(train_end=options.train_end, val_end=options.val_end)
    own = []
    over_days = []
    counts = ""
    for seed in range(options.seeds):
        data = data_of(sets, judge, dates, n_labels, seed)
        counts = _counts(data)
        predictions = MODELS[name](data, seed)
        assert predictions is not None
        values, resampled = judged(data, predictions)
        own.append(values)
        over_days.append(resampled)

    means = np.mean(own, axis=0)
    spreads = np.std(own, axis=0)
    ranges = interval_texts(np.mean(over_days, axis=0), "{:.2f}")
    cells = [
        f"{mean:.3f} ± {spread:.3f} ({ends})"
        for mean, spread, ends in zip(means, spreads, ranges, strict=True)
    ]
    return [title, name, counts, *cells]


def _counts(data: TrainingData) -> str:
    """Training labels of each market."""
    number = market_of(data.labels["train"].anchor, data.markets)
    counts = np.bincount(number, minlength=len(data.markets)).tolist()
    return " + ".join(map(str, counts))


def judged(data: TrainingData, predictions: Predictions) -> tuple[Floats, Floats]:
    """The headline metrics [3] on the test windows, and [R, 3] of its days drawn again."""
    labels = data.labels["test"]
    targets = as_targets(labels)
    weights = day_weights(day_of_window(labels, data.features.times))
    once = headline(predictions, targets, np.ones((1, len(labels))))[0]
    return once, headline(predictions, targets, weights)


def rows_of(options: argparse.Namespace) -> list[list[str]]:
    judge = read_sets([options.judge])
    every = {**judge, **read_sets(options.others)}
    alone = options.judge.stem
    dates = SplitDates(train_end=options.train_end, val_end=options.val_end)
    data = data_of(judge, alone, dates, None, 0)
    n_own = len(data.labels["train"])
    together = " + ".join(every)

    settings: list[tuple[str, Sets, int | None]] = [
        (alone, judge, None),
        (together, every, n_own),
        (together, every, None),
    ]
    rows = []
    for title, sets, n_labels in settings[: options.rows]:
        for name in options.models:
            rows.append(row_of(title, name, sets, options, n_labels))
            print(*rows[-1], sep=" | ", flush=True)

    n_test = len(data.labels["test"])
    print(f"test: {n_test} windows of {alone}", flush=True)
    return rows + [[alone, *cells] for cells in trivial_texts(data)]


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--judge", type=Path, required=True, help="bars of the market to judge on")
    parser.add_argument("--others", type=Path, nargs="+", required=True, help="bars of the others")
    parser.add_argument("--train-end", type=date.fromisoformat, required=True)
    parser.add_argument("--val-end", type=date.fromisoformat, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--rows", type=int, default=3, help="of the three sets of labels, the first"
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=[JADE, BOOSTED])

    return parser.parse_args()


def main() -> None:
    torch.set_num_threads(1)
    table = Table(*HEADINGS, title="Test windows of the market that is judged")
    for cells in rows_of(parse_options()):
        table.add_row(*cells)
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
