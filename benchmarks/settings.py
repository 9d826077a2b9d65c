"""Markets with labels on which models are compared.

Time is cut 70 / 10 / 20. Hindsight labels come from several sets of constants, so that a model
which knows only one rule's numbers shows it; planted labels come from no such rule.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from moola.data.bars import read_bars
from moola.data.feature_records import FeatureMetadata
from moola.data.feature_set import FeatureSet
from moola.data.hindsight import hindsight_labels
from moola.data.label_sources import draw_labels
from moola.data.labels import LabelSet, assign_splits
from moola.data.placement import place_windows, planted_labels
from moola.data.splits import split_windows
from moola.data.synthetic import Market, make_market
from moola.data.windows import valid_rows
from moola.features import FeatureConfig, compute_features
from moola.specs import (
    HindsightConfig,
    LabelConfig,
    MarketConfig,
    SplitConfig,
    TrainConfig,
    TrainSpec,
)
from moola.training.data import TrainingData, windows_of

SPLITS = SplitConfig(fractions=(0.70, 0.10, 0.20))
MARKET = {"start": "2024-01-08", "end": "2024-12-31"}

STANDARD = "standard"
RULES = {
    STANDARD: HindsightConfig(),
    "short": HindsightConfig(
        atr_period=10,
        min_bars=3,
        max_bars=9,
        min_net_atr=3.0,
        min_efficiency=0.85,
        state_bars=16,
        max_range_atr=3.4,
        min_leg_atr=3.0,
        give_back=(0.3, 0.7),
    ),
    "long": HindsightConfig(
        atr_period=40,
        min_bars=10,
        max_bars=32,
        min_net_atr=6.0,
        min_efficiency=0.55,
        state_bars=36,
        max_range_atr=5.4,
        min_leg_atr=5.0,
        give_back=(0.2, 0.8),
    ),
    "loose": HindsightConfig(
        atr_period=14,
        min_bars=5,
        max_bars=24,
        min_net_atr=3.5,
        min_efficiency=0.60,
        state_bars=12,
        max_range_atr=2.8,
        min_leg_atr=2.5,
        give_back=(0.15, 0.65),
    ),
}


@dataclass(frozen=True)
class Setting:
    """One market with one kind of labels.

    rule   the constants of its hindsight labels; None for labels of another origin
    judge  a setting of another market, all of whose labels stand in for the test split
    """

    name: str
    features: FeatureSet
    labels: LabelSet
    rule: HindsightConfig | None = None
    judge: "Setting | None" = None

    @property
    def tested(self) -> "Setting":
        """The setting whose bars the test windows lie in."""
        return self if self.judge is None else self.judge


def feature_set(bars: pd.DataFrame) -> FeatureSet:
    config = FeatureConfig()
    rows = compute_features(bars, config)
    _, splits = split_windows(pd.DatetimeIndex(bars.index), SPLITS)
    valid = valid_rows(np.zeros(len(rows), bool))

    return FeatureSet(
        rows,
        valid,
        splits,
        FeatureMetadata(config=config.model_dump()),
        bars,
    )


def hindsight_setting(
    market: str,
    features: FeatureSet,
    rule_name: str,
    *,
    clear: bool,
) -> Setting:
    """Hindsight labels; unless `clear`, in windows that may hold stronger moves too."""
    rule = RULES[rule_name]
    moves = hindsight_labels(features.bars, rule)
    if not clear:
        moves = moves.drop(columns=["clear_from", "clear_to"])

    config = LabelConfig(hindsight=rule, state_bars=rule.state_bars)
    labels = place_windows(
        moves,
        features.times,
        config,
        source="hindsight",
    )

    kind = "hindsight" if rule_name == STANDARD else f"hindsight {rule_name}"
    place = "" if clear else ", any place"
    return Setting(
        f"{market}, {kind}{place}",
        features,
        labels,
        rule,
    )


def hindsight_settings(
    market: str,
    features: FeatureSet,
    rule_names: list[str],
) -> list[Setting]:
    return [
        hindsight_setting(market, features, rule_name, clear=clear)
        for rule_name in rule_names
        for clear in (True, False)
    ]


def synthetic_market(seed: int, end: str = MARKET["end"]) -> Market:
    return make_market(MarketConfig.model_validate(MARKET | {"seed": seed, "end": end}))


def synthetic_settings(
    seed: int,
    rule_names: list[str],
    end: str = MARKET["end"],
) -> list[Setting]:
    market = synthetic_market(seed, end)
    features = feature_set(market.bars)
    name = f"synthetic market {seed}"
    planted = planted_labels(market.moves, features.times, LabelConfig())

    return [
        *hindsight_settings(name, features, rule_names),
        Setting(f"{name}, planted", features, planted),
    ]


def real_settings(
    path: Path,
    judges: list[Path],
    rule_names: list[str],
) -> list[Setting]:
    """Of the bars in a file; with `judges`, each trained there and judged on those."""
    trained = _settings_of_file(path, rule_names)
    if not judges:
        return trained

    settings = []
    for judge_path in judges:
        others = _settings_of_file(judge_path, rule_names)
        for own, other in zip(trained, others, strict=True):
            name = f"{own.name}, judged on {judge_path.stem}"
            settings.append(replace(own, name=name, judge=other))

    return settings


def _settings_of_file(path: Path, rule_names: list[str]) -> list[Setting]:
    features = feature_set(read_bars(path).frame)
    return hindsight_settings(path.stem, features, rule_names)


def data_of(
    setting: Setting,
    n_labels: int | None,
    seed: int,
) -> TrainingData:
    """Training labels drawn by the seed; never more validation labels than training labels."""
    spec = TrainSpec(max_train_labels=n_labels, training=TrainConfig(seed=seed))
    features = setting.features
    parts, left_out = assign_splits(setting.labels, features.splits)
    for name in ("train", "val"):
        parts[name] = draw_labels(parts[name], spec)

    windows = {name: windows_of(part, features) for name, part in parts.items()}
    judge = setting.judge
    if judge is not None:
        parts["test"] = judge.labels
        windows["test"] = windows_of(judge.labels, judge.features)

    return TrainingData(features, parts, windows, left_out)
