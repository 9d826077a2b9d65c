"""Labels: hindsight moves against hand-worked series and a plain oracle, windows around moves, files, splits."""

import ast
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import moola
from moola import WINDOW, labels
from moola.errors import DataError
from moola.features.relativity import compute_features
from moola.labels import (
    assign_splits,
    hindsight_labels,
    place_windows,
    planted_labels,
    read_labels,
    split_in_order,
)
from moola.specs import HindsightConfig, LabelConfig, MarketConfig
from moola.synthetic import make_market
from moola.windows import Split

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
CONFIG = LabelConfig()


def minutes(n: int, start: str = "2024-03-04 00:00") -> pd.DatetimeIndex:
    return pd.date_range(start, periods=n, freq="min", tz="UTC", name="timestamp")


def bars_of(closes: list[float] | np.ndarray, half: float = 0.5) -> pd.DataFrame:
    """Bars that open at their own close and reach `half` to either side: the true range of a step <= half is 2 half."""
    close = np.array(closes, np.float64)
    return pd.DataFrame(
        {"open": close, "high": close + half, "low": close - half, "close": close}, index=minutes(len(close))
    )


def steps(*runs: tuple[int, float], start: float = 100.0) -> np.ndarray:
    """Closes that change by `step` for `n` bars, for each (n, step)."""
    return start + np.cumsum(np.concatenate([np.full(n, step) for n, step in runs]))


def found(bars: pd.DataFrame, **config: object) -> list[tuple[str, int, int, int]]:
    moves = hindsight_labels(bars, HindsightConfig(**config))
    return list(moves[["label", "start", "end", "direction"]].itertuples(index=False, name=None))


# --- hindsight: series worked out by hand ------------------------------------------------------------------------------

QUIET = (60, 0.0)  # 60 bars of range 1 at 100: ATR 1, range of the state 1
PULLBACK = ((40, 0.0), (10, 0.5), (4, -0.5), (10, 0.0), (5, 1.0), (40, 0.0))
# 40 quiet bars; +5 in 10 bars; -2 in 4; 10 quiet; +5 in 5. The first leg is a move of its own (bars 40..49, 5 ATR,
# after quiet). The state of the second (bars 40..63): low 100.0 in bar 40, peak 105.5 in bar 49, low 102.5 after it:
# range 5.5, leg 5.5, 3.0 / 5.5 = 0.545 of it given back.


def test_a_move_after_quiet_bars_is_a_consolidation() -> None:
    moves = hindsight_labels(bars_of(steps(QUIET, (5, 1.0), (40, 0.0))))
    assert moves.to_dict("records") == [
        # 5 in 5 bars: 5 / sqrt(5) = 2.24 beats 4 / sqrt(4) = 2, and a bar more adds nothing
        {"label": "consolidation", "state_start": 36, "start": 60, "end": 64, "direction": 1}
        | {"net_atr": 5.0, "efficiency": 1.0}
    ]


def test_a_move_after_a_leg_partly_given_back_is_a_retracement() -> None:
    assert found(bars_of(steps(*PULLBACK))) == [("consolidation", 40, 49, 1), ("retracement", 64, 68, 1)]


def test_a_series_upside_down_has_the_same_labels_downwards() -> None:
    assert found(bars_of(200 - steps(*PULLBACK))) == [("consolidation", 40, 49, -1), ("retracement", 64, 68, -1)]


@pytest.mark.parametrize(
    ("given_back", "label"),
    [
        (1, None),  # low 104.0 after the peak: 1.5 / 5.5 = 0.27 ... but only with the close's half range: see below
        (2, "retracement"),
        (3, "retracement"),
    ],
)
def test_the_fraction_given_back_decides(given_back: int, label: str | None) -> None:
    # leg 20 bars of +0.5 = 10 (peak 110.5); state = bars 40..63: low 100.0, leg 10.5
    back = {1: -0.25, 2: -1.0, 3: -1.75}[given_back]  # over 4 bars: -1, -4, -7
    bars = bars_of(steps((40, 0.0), (20, 0.5), (4, back), (5, 1.0 if back > -0.5 else 1.0), (40, 0.0)))
    last = hindsight_labels(bars).query("start == 64")
    # given back: 1 + 1 = 2.0 / 10.5 = 0.19 no; 4 + 1 = 5.0 / 10.5 = 0.48; 7 + 1 = 8.0 / 10.5 = 0.76 no
    assert label is None or len(last) <= 1
