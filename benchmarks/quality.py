"""What the model is worth: Jade beside the pooled design it replaces, MiniRocket + ridge, and trivial baselines.

    python benchmarks/quality.py                                   # hindsight labels and planted truth, synthetic bars
    python benchmarks/quality.py --bars EURUSD_1m_2017.parquet     # hindsight labels of these bars too
    python benchmarks/quality.py --labels 2000 --models Jade       # some rows only
    python benchmarks/quality.py --market-seed 11                  # another synthetic market
    python benchmarks/quality.py --bars EURUSD_1m_2017.parquet --judge NQ_1m.parquet    # trained there, judged here

Time is cut 70 / 10 / 20; every number is of the last 20 %, of a model picked on validation, mean and standard deviation
over seeds. `any place` are windows placed anywhere around their move: most hold further moves, also stronger ones, so
which one is meant cannot be known. With `--judge` the models of `--bars` are put to all labels of other bars.
MiniRocket needs the extra `baselines`; without it the column is empty.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from moola import WINDOW, metrics
from moola.bars import read_bars
from moola.features import FeatureConfig, compute_features
from moola.labels import LabelSet, assign_splits, hindsight_labels, place_windows, planted_labels
from moola.metrics import Predictions
from moola.predict import as_predictions
from moola.specs import LabelConfig, MarketConfig, SplitConfig, TrainConfig, TrainSpec
from moola.synthetic import make_market
from moola.train import Data, QuietHooks, draw, fit_once, new_model, windows_of
from moola.training import loop
from moola.training.batches import setup_optimized_dataloader
from moola.windows import FeatureSet, split_windows, valid_rows

SPLITS = SplitConfig(fractions=(0.70, 0.10, 0.20))
MARKET = {"start": "2024-01-08", "end": "2024-12-31"}
POOLED_EPOCHS = 15
SHOWN = ("f1_macro", "hit_centre_3", "joint_success")
Model = Callable[[Data, int], Predictions]  # (data, seed) -> of the test windows


@dataclass(frozen=True)
class Setting:
    """One market with one kind of labels; `judge`, of another market, takes the place of the test split."""

    name: str
    features: FeatureSet
    labels: LabelSet
    judge: "Setting | None" = None


def feature_set(bars: pd.DataFrame) -> FeatureSet:
    config = FeatureConfig()
    rows = compute_features(bars, config)
    _, splits = split_windows(pd.DatetimeIndex(bars.index), SPLITS)
    return FeatureSet(rows, valid_rows(np.zeros(len(rows), bool)), splits, {"config": config.model_dump()}, bars)


def hindsight(features: FeatureSet, *, clear: bool = True) -> LabelSet:
    moves = hindsight_labels(features.bars)
    moves = moves if clear else moves.drop(columns=["clear_from", "clear_to"])
    return place_windows(moves, features.times, LabelConfig(), source="hindsight")


def synthetic_settings(seed: int) -> list[Setting]:
    market = make_market(MarketConfig.model_validate(MARKET | {"seed": seed}))
    features = feature_set(market.bars)
    name = f"synthetic market {seed}"
    return [
        Setting(f"{name}, hindsight", features, hindsight(features)),
        Setting(f"{name}, hindsight, any place", features, hindsight(features, clear=False)),
        Setting(f"{name}, planted", features, planted_labels(market.moves, features.times, LabelConfig())),
    ]


def real_settings(path: Path, judges: list[Path]) -> list[Setting]:
    bars = [(file.stem, feature_set(read_bars(file).frame)) for file in (path, *judges)]
    found = []
    for place, clear in (("", True), (", any place", False)):
        taught, *others = (
            Setting(f"{name}, hindsight{place}", features, hindsight(features, clear=clear)) for name, features in bars
        )
        judged = [replace(taught, name=f"{taught.name}, judged on {other.name}", judge=other) for other in others]
        found += judged or [taught]
    return found


def data_of(setting: Setting, n_labels: int | None, seed: int) -> Data:
    """Training labels drawn by the seed; never more validation labels than training labels."""
    spec = TrainSpec(max_train_labels=n_labels, training=TrainConfig(seed=seed))
    parts, left_out = assign_splits(setting.labels, setting.features.splits)
    parts = {name: part if name == "test" else draw(part, spec) for name, part in parts.items()}
    windows = {name: windows_of(part, setting.features) for name, part in parts.items()}
    if setting.judge is not None:
        parts["test"] = setting.judge.labels
        windows["test"] = windows_of(setting.judge.labels, setting.judge.features)
    return Data(setting.features, parts, windows, left_out)


# --- models -----------------------------------------------------------------------------------------------------


def jade(data: Data, seed: int) -> Predictions:
    spec = TrainSpec(training=TrainConfig(seed=seed))
    model = new_model(spec, data)
    fit_once(model, spec, data, QuietHooks(), "cpu")
    return as_predictions(loop.predict(model, data.windows["test"]))


class Pooled(nn.Module):
    """The published design: the mean of the BiLSTM's outputs, and from it type, centre and length. No place is left."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.LSTM(11, 96, batch_first=True, bidirectional=True)
        self.type_head, self.pointer_head = nn.Linear(192, 2), nn.Linear(192, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pooled = self.encoder(x)[0].mean(1)  # [B, 2H]
        return self.type_head(pooled), torch.sigmoid(self.pointer_head(pooled))


def pooled(data: Data, seed: int) -> Predictions:
    torch.manual_seed(seed)
    model = Pooled()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    n = max(len(data.windows["train"]), 512)
    loader = setup_optimized_dataloader(data.windows["train"], train=True, seed=seed, windows_per_epoch=n)
    for epoch in range(POOLED_EPOCHS):
        loader.set_epoch(epoch)
        for batch in loader:
            logits, pointer = model(batch["x"])
            centre, length = (
                0.5 * (batch["start"] + batch["end"]) / (WINDOW - 1),
                (batch["end"] - batch["start"] + 1) / WINDOW,
            )
            pointer_loss = nn.functional.huber_loss(pointer, torch.stack([centre, length], 1).float(), delta=0.1)
            loss = nn.functional.cross_entropy(logits, batch["label"]) + 10 * pointer_loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        logits, pointer = model.eval()(torch.from_numpy(data.x("test").copy()))
    centre, length = (pointer[:, 0] * (WINDOW - 1)).numpy(), (pointer[:, 1] * WINDOW).numpy()
    start = np.clip(np.round(centre - (length - 1) / 2), 0, WINDOW - 1).astype(int)
    end = np.clip(np.round(centre + (length - 1) / 2), start, WINDOW - 1).astype(int)
    return Predictions(torch.softmax(logits, 1).numpy(), start, end)


def minirocket(data: Data, seed: int) -> Predictions | None:
    """Type only (Dempster, Schmidt and Webb, KDD 2021); the pointer is the whole window. None without aeon."""
    try:
        from aeon.classification.convolution_based import MiniRocketClassifier
    except ImportError:
        return None
    model = MiniRocketClassifier(class_weight="balanced", random_state=seed)
    model.fit(data.x("train").swapaxes(1, 2).astype(np.float64), data.labels["train"].label_index)
    found = model.predict(data.x("test").swapaxes(1, 2).astype(np.float64)).astype(int)
    whole = np.full(len(found), WINDOW - 1)
    return Predictions(np.eye(2)[found], np.zeros_like(whole), whole)


MODELS = {"Jade": jade, "pooled BiLSTM": pooled, "MiniRocket + ridge": minirocket}


# --- the table --------------------------------------------------------------------------------------------------


def row(setting: Setting, name: str, n_labels: int | None, seeds: int) -> list[str] | None:
    scores, n_train = [], 0
    for seed in range(seeds):
        data = data_of(setting, n_labels, seed)
        found = MODELS[name](data, seed)
        if found is None:
            return None
        n_train = len(data.labels["train"])
        scores.append([metrics.score(found, data.targets("test"))[metric] for metric in SHOWN])
    mean, spread = np.mean(scores, 0), np.std(scores, 0)
    cells = [f"{m:.3f} ± {s:.3f}" for m, s in zip(mean, spread, strict=True)]
    return [setting.name, name, str(n_train), *(cells if name != "MiniRocket + ridge" else [cells[0], "", ""])]


def trivial_rows(setting: Setting) -> list[list[str]]:
    data = data_of(setting, None, 0)
    targets = data.targets("test")
    found = metrics.baselines(targets, data.targets("train"), data.x("test"))
    rows = []
    for name, predictions in found.items():
        score = metrics.score(predictions, targets)
        is_type = name.startswith("majority")
        cells = [f"{score['f1_macro']:.3f}" if is_type else "", "" if is_type else f"{score['hit_centre_3']:.3f}", ""]
        rows.append([setting.name, name.replace("_", " "), "", *cells])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bars", type=Path, help="bars for hindsight labels besides the synthetic ones")
    parser.add_argument("--judge", type=Path, nargs="+", default=[], help="bars to judge what --bars taught on")
    parser.add_argument("--market-seed", type=int, default=7, help="of the synthetic bars")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", help="settings whose name holds this text")
    parser.add_argument("--labels", type=int, nargs="+", default=[174, 0], help="training labels; 0: all there are")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(
        "bars, labels", "model", "training labels", "F1 macro", "Hit@±3", "joint", title="Test, last 20 % of the time"
    )
    found = synthetic_settings(options.market_seed)
    if options.bars is not None:
        found += real_settings(options.bars, options.judge)
    for setting in found:
        if options.only and options.only not in setting.name:
            continue
        for n_labels in options.labels:
            for name in options.models:
                cells = row(setting, name, n_labels or None, options.seeds)
                if cells:
                    print(*cells, sep=" | ", flush=True)
                    table.add_row(*cells)
        for cells in trivial_rows(setting):
            table.add_row(*cells)
        table.add_section()
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
