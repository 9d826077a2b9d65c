"""Quality: Jade beside a boosted span model, the pooled design it replaces, MiniRocket and others.

    python -m benchmarks.quality                                # synthetic bars only
    python -m benchmarks.quality --bars EURUSD_1m_2017.parquet  # hindsight labels of these bars too
    python -m benchmarks.quality --labels 2000 --models Jade    # some rows only
    python -m benchmarks.quality --rules standard               # hindsight labels of one rule only
    python -m benchmarks.quality --market-seed 11               # another synthetic market
    python -m benchmarks.quality --bars EURUSD_1m_2017.parquet --judge NQ_1m.parquet
                                                                # trained there, judged here

Time is cut 70 / 10 / 20; every number is of the last 20 %, of a model picked on validation (the
boosted spans need none): mean and standard deviation over seeds, and the 95 % interval of that mean
over days of the test. `any place` are windows placed anywhere around their move: most hold further
moves, also stronger ones, so which one is meant cannot be known. The ceiling is the label rule
itself, applied to the window's own bars. With `--judge` the models of `--bars` predict all labels
of other bars. MiniRocket needs the extra `baselines`; without it its row is left out. CPU seconds
are those of fitting and predicting, of one seed.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.boosted_spans import boosted_spans
from benchmarks.ceiling import rule_on_windows
from benchmarks.day_blocks import day_of_window, day_weights, headline, interval
from benchmarks.pooled import pooled
from benchmarks.settings import MARKET, RULES, Setting, data_of, real_settings, synthetic_settings
from moola import WINDOW
from moola.evaluation.baselines import BASELINE_TITLES, baselines
from moola.evaluation.metrics import F1_MACRO, HIT_CENTRE, score
from moola.evaluation.predictions import Predictions
from moola.evaluation.scoring import as_predictions, as_targets, score_on
from moola.specs import TrainConfig, TrainSpec, TreesConfig
from moola.training.data import TrainingData
from moola.training.fit import QuietHooks, fit_model, new_model
from moola.training.inference import infer

JADE = "Jade"
NETWORK = "Jade without trees"
PRETRAINED = "Jade, pretrained"
BOOSTED = "boosted spans"
MINIROCKET = "MiniRocket + ridge"
PRETRAIN_EPOCHS = 8
CEILING = "ceiling: the label rule on the window"
HEADINGS = ("bars, labels", "model", "training labels", "F1 macro", "Hit@±3", "joint", "CPU s")

Floats = NDArray[np.float64]
Model = Callable[[TrainingData, int], Predictions | None]  # (data, seed) -> of the test windows


# --- models ---------------------------------------------------------------------------------------


def jade(data: TrainingData, seed: int) -> Predictions:
    return fitted(TrainSpec(training=TrainConfig(seed=seed)), data)


def network(data: TrainingData, seed: int) -> Predictions:
    """The row that tells what the trees are worth."""
    no_trees = TreesConfig(members=0)
    return fitted(TrainSpec(training=TrainConfig(seed=seed), trees=no_trees), data)


def pretrained(data: TrainingData, seed: int) -> Predictions:
    """The row that tells what it is worth to fill in masked spans of unlabelled bars first."""
    training = TrainConfig(seed=seed, pretrain_epochs=PRETRAIN_EPOCHS)
    return fitted(TrainSpec(training=training), data)


def fitted(spec: TrainSpec, data: TrainingData) -> Predictions:
    model = new_model(spec, data)
    fit_model(
        model,
        spec,
        data,
        score_on(data.labels["val"]),
        QuietHooks(),
        "cpu",
    )

    return as_predictions(infer(model, data.windows["test"]))


def minirocket(data: TrainingData, seed: int) -> Predictions | None:
    """Type only (Dempster, Schmidt and Webb, KDD 2021); the pointer is the whole window.

    None without aeon.
    """
    try:
        from aeon.classification.convolution_based import MiniRocketClassifier
    except ImportError:
        return None

    model = MiniRocketClassifier(class_weight="balanced", random_state=seed)
    labels = data.labels["train"]
    model.fit(channels_first(data, "train"), labels.label_index)
    predicted = model.predict(channels_first(data, "test")).astype(int)

    probabilities = np.eye(len(labels.classes))[predicted]
    end = np.full(len(predicted), WINDOW - 1)

    return Predictions(probabilities, np.zeros_like(end), end)


def channels_first(data: TrainingData, split: str) -> np.ndarray:
    """[N, F, T] the windows of a split, as aeon takes them."""
    return data.window_features(split).swapaxes(1, 2).astype(np.float64)


MODELS: dict[str, Model] = {
    JADE: jade,
    NETWORK: network,
    PRETRAINED: pretrained,
    BOOSTED: boosted_spans,
    "pooled BiLSTM": pooled,
    MINIROCKET: minirocket,
}


# --- the table ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scores:
    """The headline metrics of one model.

    per_seed     [seeds, 3]
    over_days    [R, 3] the mean over the seeds, of test days drawn with replacement
    cpu_seconds  of fitting and predicting, mean over the seeds
    """

    n_train: int
    per_seed: Floats
    over_days: Floats
    cpu_seconds: float


def scores_of(
    setting: Setting,
    name: str,
    n_labels: int | None,
    seeds: int,
) -> Scores | None:
    """None for a model that is not installed."""
    per_seed = []
    over_days = []
    cpu_seconds = []
    n_train = 0
    for seed in range(seeds):
        data = data_of(setting, n_labels, seed)
        n_train = len(data.labels["train"])
        began = time.process_time()
        predictions = MODELS[name](data, seed)
        cpu_seconds.append(time.process_time() - began)
        if predictions is None:
            return None

        own, resampled = judged(setting, data, predictions)
        per_seed.append(own)
        over_days.append(resampled)

    return Scores(
        n_train,
        np.stack(per_seed),
        np.mean(over_days, axis=0),
        float(np.mean(cpu_seconds)),
    )


def judged(
    setting: Setting,
    data: TrainingData,
    predictions: Predictions,
) -> tuple[Floats, Floats]:
    """The headline metrics [3] on the test windows, and [R, 3] of its days drawn again."""
    labels = data.labels["test"]
    targets = as_targets(labels)
    times = setting.tested.features.times
    weights = day_weights(day_of_window(labels, times))

    every_window_once = np.ones((1, len(labels)))
    own = headline(predictions, targets, every_window_once)[0]
    return own, headline(predictions, targets, weights)


def model_row(setting: Setting, name: str, scores: Scores) -> list[str]:
    means = scores.per_seed.mean(axis=0)
    spreads = scores.per_seed.std(axis=0)
    ranges = interval_texts(scores.over_days, "{:.2f}")
    cells = [
        f"{mean:.3f} ± {spread:.3f} ({ends})"
        for mean, spread, ends in zip(means, spreads, ranges, strict=True)
    ]
    if name == MINIROCKET:
        cells[1:] = ["", ""]

    return [setting.name, name, str(scores.n_train), *cells, f"{scores.cpu_seconds:.0f}"]


def difference_row(
    setting: Setting,
    first: Scores,
    second: Scores,
) -> list[str]:
    """How much better Jade (first) is than the boosted spans; of the same days for both."""
    means = first.per_seed.mean(axis=0) - second.per_seed.mean(axis=0)
    ranges = interval_texts(first.over_days - second.over_days, "{:+.2f}")
    cells = [f"{mean:+.3f} ({ends})" for mean, ends in zip(means, ranges, strict=True)]
    ratio = first.cpu_seconds / second.cpu_seconds

    name = f"{JADE} less {BOOSTED}"
    return [setting.name, name, str(first.n_train), *cells, f"x {ratio:.1f}"]


def ceiling_row(setting: Setting) -> list[str] | None:
    """None for labels that no rule made."""
    data = data_of(setting, None, 0)
    predictions = rule_on_windows(setting, data.labels["test"])
    if predictions is None:
        return None

    own, resampled = judged(setting, data, predictions)
    ranges = interval_texts(resampled, "{:.2f}")
    cells = [f"{value:.3f} ({ends})" for value, ends in zip(own, ranges, strict=True)]

    return [setting.name, CEILING, "", *cells, ""]


def interval_texts(resampled: Floats, number: str) -> list[str]:
    """Of each column of [R, 3]."""
    low, high = interval(resampled)
    return [
        f"{number.format(least)} to {number.format(most)}"
        for least, most in zip(low, high, strict=True)
    ]


def trivial_rows(setting: Setting) -> list[list[str]]:
    data = data_of(setting, None, 0)
    return [[setting.name, *cells, ""] for cells in trivial_texts(data)]


def trivial_texts(data: TrainingData) -> list[list[str]]:
    """The baselines; those of the pointer share one type, the majority class."""
    targets = as_targets(data.labels["test"])
    train_targets = as_targets(data.labels["train"])
    trivial = baselines(targets, train_targets, data.window_features("test"))

    scores = {name: score(predictions, targets) for name, predictions in trivial.items()}
    f1_macro = next(iter(scores.values()))[F1_MACRO]
    majority = BASELINE_TITLES["majority_class"]
    rows = [[majority, "", f"{f1_macro:.3f}", "", ""]]
    for name, values in scores.items():
        hit = f"{values[HIT_CENTRE]:.3f}"
        rows.append([BASELINE_TITLES[name], "", "", hit, ""])

    return rows


def model_rows(
    setting: Setting,
    n_labels: int | None,
    options: argparse.Namespace,
) -> list[list[str]]:
    """Of the models that were asked for, and the difference of the first two."""
    rows = []
    known: dict[str, Scores] = {}
    for name in options.models:
        scores = scores_of(
            setting,
            name,
            n_labels,
            options.seeds,
        )
        if scores is not None:
            known[name] = scores
            rows.append(model_row(setting, name, scores))
            print(*rows[-1], sep=" | ", flush=True)

    if JADE in known and BOOSTED in known:
        rows.append(difference_row(setting, known[JADE], known[BOOSTED]))
        print(*rows[-1], sep=" | ", flush=True)

    return rows


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--bars", type=Path, help="bars for hindsight labels besides the synthetic ones"
    )
    parser.add_argument(
        "--judge",
        type=Path,
        nargs="+",
        default=[],
        help="bars on which to judge the models trained on --bars",
    )
    parser.add_argument(
        "--market-seed",
        type=int,
        default=7,
        help="of the synthetic bars",
    )
    parser.add_argument(
        "--market-end",
        default=MARKET["end"],
        help="last day of the synthetic bars: the later, the more labels",
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--rules",
        nargs="+",
        choices=RULES,
        default=list(RULES),
        help="sets of constants of the hindsight labels",
    )
    parser.add_argument("--only", help="settings whose name holds this text")
    parser.add_argument(
        "--labels", type=int, nargs="+", default=[174, 0], help="training labels; 0: all there are"
    )
    parser.add_argument(
        "--models",
        nargs="+",
        choices=MODELS,
        default=list(MODELS),
    )

    return parser.parse_args()


def main() -> None:
    options = parse_options()
    torch.set_num_threads(1)
    settings = synthetic_settings(options.market_seed, options.rules, options.market_end)
    if options.bars is not None:
        settings += real_settings(
            options.bars,
            options.judge,
            options.rules,
        )
    if options.only:
        settings = [setting for setting in settings if options.only in setting.name]

    table = Table(*HEADINGS, title="Test, last 20 % of the time")
    for setting in settings:
        rows = []
        for n_labels in options.labels:
            rows += model_rows(setting, n_labels or None, options)

        ceiling = ceiling_row(setting)
        if ceiling:
            print(*ceiling, sep=" | ", flush=True)
            rows.append(ceiling)

        for cells in rows + trivial_rows(setting):
            table.add_row(*cells)
        table.add_section()

    Console(width=200).print(table)


if __name__ == "__main__":
    main()
