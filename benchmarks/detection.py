"""Finding moves: does a window hold one, where are they, and how often is what is sure right?

    python -m benchmarks.detection                                # planted moves, synthetic bars
    python -m benchmarks.detection --bars EURUSD_1m_2017.parquet  # hindsight labels of these bars
    python -m benchmarks.detection --bars EURUSD_1m_2017.parquet --judge NQ_1m.parquet
    python -m benchmarks.detection --labels 174                   # so many training labels only

Time is cut 70 / 10 / 20: trees are grown on train, scales and threshold fitted on validation, every
number is of the last 20 %, or of all bars of `--judge`; a window every 15 bars. A move is right if
its centre is within 3 bars of a known one's. One seed.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.settings import (
    STANDARD,
    Setting,
    data_of,
    feature_set,
    hindsight_setting,
    synthetic_settings,
)
from moola import WINDOW
from moola.data.bars import read_bars
from moola.data.move_truth import forget_moves, move_truth
from moola.evaluation.detection import Detection
from moola.evaluation.find_moves import measure_windows, run_presence
from moola.evaluation.formats import format_value
from moola.evaluation.scoring import score_on
from moola.specs import PresenceConfig, TrainConfig, TrainSpec
from moola.training.fit import QuietHooks, fit_model, new_model
from moola.training.presence import STEP_BARS

HEADINGS = ("judged on", "training labels", "finder", "AUC", "average precision", "0.85 to 0.95")
SURE = 0.85  # where the bin of calibration around 0.9 begins


def file_setting(path: Path) -> Setting:
    features = feature_set(read_bars(path).frame)
    return hindsight_setting(
        path.stem,
        features,
        STANDARD,
        clear=True,
    )


def planted_setting(seed: int) -> Setting:
    return synthetic_settings(seed, [])[-1]


def rows_of(
    setting: Setting,
    judges: list[Setting],
    n_labels: int | None,
    seed: int,
) -> list[list[str]]:
    """Of one model: on its own test, and on all bars of the judges."""
    spec = TrainSpec(max_train_labels=n_labels, training=TrainConfig(seed=seed))
    data = data_of(setting, n_labels, seed)
    truth = move_truth(setting.labels, len(setting.features.rows))
    assert truth is not None
    if n_labels:
        truth = forget_moves(
            truth,
            setting.features.splits["train"],
            data.labels["train"],
        )

    model = new_model(spec, data)
    fit_model(model, spec, data, score_on(data.labels["val"]), QuietHooks(), "cpu")
    began = time.process_time()
    found = run_presence(
        model,
        replace(data, truth=truth),
        PresenceConfig(),
        seed=seed,
        device="cpu",
    )
    print(f"presence model, judged: {time.process_time() - began:.0f} CPU s", flush=True)
    assert found.presence is not None
    assert found.test is not None

    n_train = len(data.labels["train"])
    rows = detection_rows(setting.name, n_train, found.test)
    for judge in judges:
        features = judge.features
        window_row = np.arange(0, len(features.rows) - WINDOW + 1, STEP_BARS)
        known = move_truth(judge.labels, len(features.rows))
        assert known is not None
        judged = measure_windows(
            found.presence, model, features, known, window_row, found.document.pause_minutes
        )
        rows += detection_rows(judge.name, n_train, judged)

    return rows


def detection_rows(name: str, n_train: int, detection: Detection) -> list[list[str]]:
    rows = []
    for finder, values in detection["finders"].items():
        cells = [format_value(values["auc"]), format_value(values["average_precision"])]
        rows.append([name, str(n_train), finder, *cells, ""])

    sure = next(each for each in detection["calibration"] if each["low"] == SURE)
    rows[0][-1] = f"{format_value(sure['right'])} of {sure['count']}"
    return rows


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bars", type=Path, help="bars for hindsight labels, instead of synthetic")
    parser.add_argument("--judge", type=Path, nargs="+", default=[], help="other bars to judge on")
    parser.add_argument("--market-seed", type=int, default=7, help="of the synthetic bars")
    parser.add_argument("--judge-seed", type=int, nargs="+", default=[], help="other such markets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--labels", type=int, nargs="+", default=[174, 0], help="training labels; 0: all there are"
    )

    return parser.parse_args()


def main() -> None:
    options = parse_options()
    torch.set_num_threads(1)
    if options.bars is not None:
        setting = file_setting(options.bars)
        judges = [file_setting(path) for path in options.judge]
    else:
        setting = planted_setting(options.market_seed)
        judges = [planted_setting(seed) for seed in options.judge_seed]

    table = Table(*HEADINGS, title="Moves found, a window every 15 bars")
    for n_labels in options.labels:
        for cells in rows_of(setting, judges, n_labels or None, options.seed):
            table.add_row(*cells)
            print(*cells, sep=" | ", flush=True)
        table.add_section()

    Console(width=160).print(table)


if __name__ == "__main__":
    main()
