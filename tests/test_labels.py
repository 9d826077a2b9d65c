"""Labels: hindsight moves against hand-worked series and a plain oracle.

Windows around moves, label files, and splits.
"""

import ast
import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import moola
from moola import WINDOW
from moola.data import placement
from moola.data.hindsight import hindsight_labels
from moola.data.label_files import read_labels
from moola.data.labels import LabelSet, assign_splits, split_in_order
from moola.data.placement import place_windows, planted_labels
from moola.data.splits import Split
from moola.data.synthetic import make_market
from moola.errors import DataError
from moola.features.relativity import compute_features
from moola.specs import HindsightConfig, LabelConfig, MarketConfig
from tests.shared import shared

CONFIG = LabelConfig()


def minutes(n: int, start: str = "2024-03-04 00:00") -> pd.DatetimeIndex:
    return pd.date_range(start, periods=n, freq="min", tz="UTC", name="timestamp")


def bars_of(closes: list[float] | np.ndarray, half: float = 0.5) -> pd.DataFrame:
    """Bars that open at their own close and reach `half` to either side.

    The true range of a step <= half is 2 half.
    """
    close = np.array(closes, np.float64)
    return pd.DataFrame(
        {"open": close, "high": close + half, "low": close - half, "close": close},
        index=minutes(len(close)),
    )


def steps(*runs: tuple[int, float], start: float = 100.0) -> np.ndarray:
    """Closes that change by `step` for `n` bars, for each (n, step)."""
    return start + np.cumsum(np.concatenate([np.full(n, step) for n, step in runs]))


def found(bars: pd.DataFrame, **config: object) -> list[tuple[str, int, int, int]]:
    moves = hindsight_labels(bars, HindsightConfig(**config))
    return list(
        moves[["label", "start_bar", "end_bar", "direction"]].itertuples(index=False, name=None)
    )


# --- hindsight: series worked out by hand ---------------------------------------------------------

QUIET = (60, 0.0)  # 60 bars of range 1 at 100: ATR 1, range of the state 1
PULLBACK = ((40, 0.0), (10, 0.5), (4, -0.5), (10, 0.0), (5, 1.0), (40, 0.0))
# 40 quiet bars; +5 in 10 bars; -2 in 4; 10 quiet; +5 in 5. The first leg is a move of its own (bars
# 40..49, 5 ATR, after quiet). The state of the second (bars 40..63): low 100.0 in bar 40, peak
# 105.5 in bar 49, low 102.5 after it: range 5.5, leg 5.5, 3.0 / 5.5 = 0.545 of it given back.


def test_a_move_after_quiet_bars_is_a_consolidation() -> None:
    moves = hindsight_labels(bars_of(steps(QUIET, (5, 1.0), (40, 0.0))))
    assert moves.to_dict("records") == [
        # 5 in 5 bars: 5 / sqrt(5) = 2.24 beats 4 / sqrt(4) = 2, and a bar more adds nothing
        {
            "label": "consolidation",
            "state_start_bar": 36,
            "start_bar": 60,
            "end_bar": 64,
            "direction": 1,
        }
        | {
            "net_atr": 5.0,
            "efficiency": 1.0,
            "clear_from": 0,
            "clear_to": 0,
        }  # 105 bars: the only window
    ]


def test_a_move_after_a_leg_partly_given_back_is_a_retracement() -> None:
    assert found(bars_of(steps(*PULLBACK))) == [
        ("consolidation", 40, 49, 1),
        ("retracement", 64, 68, 1),
    ]


def test_a_series_upside_down_has_the_same_labels_downwards() -> None:
    assert found(bars_of(200 - steps(*PULLBACK))) == [
        ("consolidation", 40, 49, -1),
        ("retracement", 64, 68, -1),
    ]


@pytest.mark.parametrize(
    ("step", "labelled"), [(0.0625, False), (0.125, True), (0.75, True), (0.875, False)]
)
def test_a_quarter_to_three_quarters_of_the_leg_must_be_given_back(
    step: float, labelled: bool
) -> None:
    # (4 step + 1) / 5.5 given back: 0.23, 0.27, 0.73, 0.82
    bars = bars_of(steps((40, 0.0), (10, 0.5), (4, -step), (10, 0.0), (5, 1.0), (40, 0.0)))
    assert (("retracement", 64, 68, 1) in found(bars)) is labelled
    assert ("retracement", 64, 68, 1) in found(
        bars, give_back=(0.0, 1.0)
    )  # the move is there, only unlabelled


def test_a_state_one_step_wider_than_a_consolidation_is_unlabelled() -> None:
    # 7 steps: range 3.5 + 1 = 4.5 ATR. 8 steps: 5 ATR, of which 1 / 5 is given back (and the leg is
    # a move itself)
    assert found(bars_of(steps((60, 0.0), (7, 0.5), (13, 0.0), (5, 1.0), (40, 0.0)))) == [
        ("consolidation", 80, 84, 1)
    ]
    assert found(bars_of(steps((60, 0.0), (8, 0.5), (12, 0.0), (5, 1.0), (40, 0.0)))) == [
        ("consolidation", 60, 67, 1)
    ]


@pytest.mark.parametrize(
    ("run", "moves"),
    [
        (
            ((4, 1.0),),
            [("consolidation", 60, 63, 1)],
        ),  # 4 ATR in 4 bars: both bounds are met exactly
        (((4, 0.96875),), []),  # 3.875 ATR
        (
            ((3, 1.5),),
            [("consolidation", 59, 62, 1)],
        ),  # a fourth bar has to be flat: of two as good, the earlier
        (((16, 0.25),), [("consolidation", 60, 75, 1)]),
        (((17, 0.234375),), []),  # 4 ATR in 17 bars: over 16 it is 3.75
        (((1, 1.5), (1, -0.5)) * 4 + ((1, 1.5),), []),  # 5.5 net over a path of 9.5: 0.58
    ],
)
def test_an_expansion_is_long_and_straight_enough(
    run: tuple[tuple[int, float], ...], moves: list[object]
) -> None:
    bars = bars_of(steps(QUIET, *run, (40, 0.0)))
    assert found(bars) == moves
    assert found(bars, min_net_atr=3.0, min_efficiency=0.5)[
        :1
    ]  # every one of them is a move by looser rules


@pytest.mark.parametrize(
    ("at", "minutes_closed", "labelled"),
    [
        (62, 30, False),
        (62, 29, True),
        (36, 30, True),
        (37, 30, False),
        (60, 30, False),
        (65, 30, True),
    ],
)
def test_no_move_and_no_state_spans_a_session_break(
    at: int, minutes_closed: int, labelled: bool
) -> None:
    bars = bars_of(steps(QUIET, (5, 1.0), (40, 0.0)))  # the state is 36..59, the expansion 60..64
    late = pd.Timedelta(minutes=minutes_closed - 1)  # from one bar to the next: minutes_closed
    bars.index = bars.index[:at].append(bars.index[at:] + late)
    assert found(bars) == ([("consolidation", 60, 64, 1)] if labelled else [])


def test_flat_and_short_series_have_no_labels() -> None:
    assert found(bars_of(np.full(200, 100.0), half=0.0)) == []
    assert found(bars_of([100.0])) == []
    assert found(bars_of(steps(QUIET, (5, 1.0))[:20])) == []
    assert list(hindsight_labels(bars_of([100.0]))) == list(
        hindsight_labels(bars_of(steps(QUIET, (5, 1.0))))
    )


def test_a_hindsight_config_that_cannot_be_met_is_refused() -> None:
    for wrong in (
        {"min_bars": 17},
        {"state_bars": 80, "max_bars": 26},
        {"give_back": (0.8, 0.2)},
        {"min_bar": 3},
    ):
        with pytest.raises(ValidationError):
            HindsightConfig(**wrong)
    assert HindsightConfig(state_bars=80, max_bars=25).max_bars == 25


# --- hindsight: the rule once more, slowly --------------------------------------------------------


class PlainRule:
    """The rule of `hindsight_labels` written as it is said, one move after the other."""

    def __init__(self, bars: pd.DataFrame, config: HindsightConfig) -> None:
        self.config = config
        self.minute = (bars.index.as_unit("s").asi8 // 60).tolist()
        self.high = bars["high"].tolist()
        self.low = bars["low"].tolist()
        self.close = bars["close"].tolist()

    def one_session(self, first: int, last: int) -> bool:
        minutes = self.minute[first : last + 1]
        return all(b - a < self.config.gap_minutes for a, b in pairwise(minutes))

    def atr(self, last: int) -> float:
        ranges = []
        for i in range(last - self.config.atr_period + 1, last + 1):
            before = self.close[i - 1]
            ranges.append(max(self.high[i], before) - min(self.low[i], before))
        return sum(ranges) / self.config.atr_period

    def state_of(self, start: int, up: bool, unit: float) -> str | None:
        c = self.config
        sign = 1 if up else -1
        lows, highs = [], []
        for i in range(start - c.state_bars, start):
            ends = sign * self.high[i], sign * self.low[i]
            lows.append(min(ends))
            highs.append(max(ends))

        if max(highs) - min(lows) <= c.max_range_atr * unit:
            return "consolidation"
        peak = highs.index(max(highs))
        if peak in (0, len(highs) - 1):
            return None

        leg = max(highs) - min(lows[:peak])
        back = max(highs) - min(lows[peak + 1 :])
        met = leg >= c.min_leg_atr * unit and c.give_back[0] * leg <= back <= c.give_back[1] * leg
        return "retracement" if met else None

    def candidates(self) -> list[tuple[float, int, int, bool, float]]:
        """(minus its score, start, end, up, unit) of all expansions."""
        c = self.config
        rows = []
        history = max(c.state_bars, c.atr_period + 1)
        for start in range(history, len(self.close)):
            unit = self.atr(start - 1)
            for end in range(start + c.min_bars - 1, min(start + c.max_bars, len(self.close))):
                if not self.one_session(start - history, end):
                    break
                closes = self.close[start - 1 : end + 1]
                net = closes[-1] - closes[0]
                path = sum(abs(b - a) for a, b in pairwise(closes))
                if unit > 0 and abs(net) >= max(c.min_net_atr * unit, c.min_efficiency * path):
                    score = abs(net / unit) / math.sqrt(end - start + 1)
                    rows.append((-score, start, end, net > 0, unit))
        return rows


def oracle(bars: pd.DataFrame, config: HindsightConfig) -> list[tuple[str, int, int, int]]:
    rule = PlainRule(bars, config)
    taken: set[int] = set()
    moves = []
    for _, start, end, up, unit in sorted(rule.candidates()):
        if taken.isdisjoint(range(start, end + 1)):
            taken.update(range(start, end + 1))
            state = rule.state_of(start, up, unit)
            if state:
                moves.append((state, start, end, 1 if up else -1))
    return sorted(moves, key=lambda move: move[1])


def ragged_market(seed: int, n: int = 260) -> pd.DataFrame:
    """Bars on a grid of 1/4 (so that sums are exact and ties common).

    Quiet and fast stretches, pauses, flat bars.
    """
    rng = np.random.default_rng(seed)
    trend = np.repeat(rng.choice([-2, 0, 0, 0, 2], n // 8 + 1), 8)[:n]
    close = 400 + np.cumsum(np.round(rng.normal(trend, rng.choice([0.5, 1.0, 2.0]))))
    opened = np.r_[close[0], close[:-1]]
    high = np.maximum(opened, close) + rng.integers(0, 3, n)
    low = np.minimum(opened, close) - rng.integers(0, 3, n)
    frame = pd.DataFrame({"open": opened, "high": high, "low": low, "close": close}) / 4
    pauses = np.where(rng.random(n) < 0.01, rng.choice([29, 30, 60], n), 1)
    frame.index = minutes(1)[0] + pd.to_timedelta(np.cumsum(pauses), unit="min")
    return frame


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    state_bars=st.integers(2, 40),
    atr_period=st.integers(1, 40),
    lengths=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    min_net_atr=st.sampled_from([1.0, 2.0, 4.0]),
)
def test_hindsight_labels_are_those_of_the_plain_rule(
    seed: int, state_bars: int, atr_period: int, lengths: tuple[int, int], min_net_atr: float
) -> None:
    config = HindsightConfig(
        state_bars=state_bars,
        atr_period=atr_period,
        min_bars=min(lengths),
        max_bars=max(lengths),
        min_net_atr=min_net_atr,
        min_leg_atr=2.0,
    )
    bars = ragged_market(seed)
    assert found(bars, **config.model_dump()) == oracle(bars, config)


def test_the_default_rule_agrees_with_the_plain_one_and_finds_both_classes() -> None:
    moves = [move for seed in range(12) for move in oracle(ragged_market(seed), HindsightConfig())]
    assert moves == [move for seed in range(12) for move in found(ragged_market(seed))]
    assert {label for label, *_ in moves} == {"consolidation", "retracement"}
    assert {direction for *_, direction in moves} == {-1, 1}


@pytest.mark.parametrize(
    "change",
    [
        {"atr_period": 19},
        {"min_bars": 5},
        {"max_bars": 12},
        {"min_net_atr": 4.5},
        {"min_efficiency": 0.9},
        {"state_bars": 20},
        {"max_range_atr": 4.0},
        {"min_leg_atr": 6.0},
        {"give_back": (0.4, 0.75)},
        {"give_back": (0.25, 0.6)},
        {"gap_minutes": 29},
    ],
    ids=str,
)
def test_every_constant_of_the_rule_matters(change: dict[str, object]) -> None:
    # the twin of the agreement above: a rule off by one constant gives other labels
    series = [ragged_market(seed, 400) for seed in range(60)]
    assert any(found(bars) != found(bars, **change) for bars in series)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_hindsight_labels_ignore_the_unit_of_price_and_mirror(seed: int) -> None:
    bars = ragged_market(seed)
    moves = found(bars)
    assert found(bars * 8) == moves
    upside_down = (1000 - bars).rename(columns={"high": "low", "low": "high"})
    assert found(upside_down) == [
        (label, start, end, -direction) for label, start, end, direction in moves
    ]


def test_planted_moves_are_found_in_hindsight() -> None:
    market = make_market(MarketConfig(seed=3))
    moves = hindsight_labels(market.bars)
    planted = market.moves
    spans = pd.IntervalIndex.from_arrays(moves["start_bar"], moves["end_bar"], closed="both")
    centre = (planted["expansion_start_bar"] + planted["expansion_end_bar"]) // 2
    hit = spans.get_indexer(centre)
    same = moves["label"].to_numpy()[hit] == planted["label"].to_numpy()
    assert len(planted) > 50
    assert ((hit >= 0) & same).mean() > 0.6
    far = spans.get_indexer((centre + 300) % len(market.bars))  # the twin: elsewhere there are few
    assert (far >= 0).mean() < 0.3


def test_rates_on_nq_are_those_the_constants_were_chosen_for() -> None:
    path = shared("data/NQ_1m_2023-11-19_2023-12-04.parquet")
    bars = pd.read_parquet(path).set_index("timestamp")
    per_5_years = hindsight_labels(bars)["label"].value_counts() * 1_770_000 / len(bars)
    assert per_5_years["consolidation"] == pytest.approx(12_700, rel=0.25)
    assert per_5_years["retracement"] == pytest.approx(5_400, rel=0.25)


def test_labels_look_ahead_and_features_do_not() -> None:
    bars = bars_of(steps(QUIET, (5, 1.0), (40, 0.0)))
    other = bars.copy()
    other.iloc[60:] = 100.0  # the same until the expansion starts
    assert found(bars) != found(other)
    np.testing.assert_array_equal(compute_features(bars)[:60], compute_features(other)[:60])
    assert (compute_features(bars)[60:] != compute_features(other)[60:]).any()


def test_nothing_that_makes_features_imports_labels() -> None:
    def imports(source: str) -> set[str]:
        nodes = list(ast.walk(ast.parse(source)))
        plain = {
            alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names
        }
        return plain | {
            f"{node.module}.{alias.name}"
            for node in nodes
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }

    package = Path(moola.__file__).parent
    looking_ahead = {"labels", "label_files", "hindsight", "placement"}
    looking_ahead |= {"label_places", "label_studio", "label_tables", "label_times"}
    looking_ahead |= {"label_bars", "label_folds", "label_sources", "market_labels"}
    looking_ahead |= {"move_truth"}
    looking_ahead |= {"synthetic", "planted_moves"}  # a market knows its moves beforehand
    modules = [*package.glob("features/*.py"), *package.glob("data/*.py")]
    causal = [path for path in modules if path.stem not in looking_ahead]
    assert len(causal) == len(modules) - len(looking_ahead) > 12

    forbidden = tuple(f"moola.data.{name}" for name in looking_ahead)
    for path in causal:
        assert not {name for name in imports(path.read_text()) if name.startswith(forbidden)}, path

    assert (
        imports("from moola.data import labels")
        == imports("import moola.data.labels")
        == {"moola.data.labels"}
    )


# --- windows around moves -------------------------------------------------------------------------


def some_moves(n: int = 2000, n_bars: int = 60_000, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    start = np.sort(rng.choice(np.arange(40, n_bars - 20), n, replace=False))
    end = start + rng.integers(3, 16, n)
    label = np.where(rng.random(n) < 0.5, "consolidation", "retracement")
    return pd.DataFrame(
        {"label": label, "state_start_bar": start - 24, "start_bar": start, "end_bar": end}
    )


def test_a_placed_window_holds_the_state_and_the_expansion() -> None:
    moves = some_moves()
    placed = place_windows(moves, minutes(60_000), CONFIG, source="hindsight")
    assert len(placed) == len(moves)
    assert placed.left_out == {}
    for anchor in (placed.anchor, placed.first_anchor, placed.last_anchor):
        assert (anchor >= 0).all()
        assert (anchor + WINDOW <= 60_000).all()
        assert (anchor <= moves["state_start_bar"]).all()
        assert (moves["end_bar"] <= anchor + WINDOW - 1).all()
    np.testing.assert_array_equal(placed.start_bar, moves["start_bar"])
    np.testing.assert_array_equal(placed.end_bar, moves["end_bar"])
    assert [placed.classes[i] for i in placed.label_index] == moves["label"].tolist()


def test_a_window_is_clear_of_stronger_moves_by_hand() -> None:
    moves = hindsight_labels(bars_of(steps((140, 0.0), *PULLBACK, (100, 0.0))))
    # 5 / sqrt(10) in bars 180..189, 5 / sqrt(5) in bars 204..208: the weaker one's windows must end
    # before bar 208
    assert moves[["start_bar", "end_bar", "clear_from", "clear_to"]].to_numpy().tolist() == [
        [180, 189, 0, 208 - 105],
        [204, 208, 0, len(steps((140, 0.0), *PULLBACK, (100, 0.0))) - 105],
    ]


def test_a_window_clear_of_a_stronger_move_before_starts_after_its_first_bar() -> None:
    closes = steps((140, 0.0), (5, 1.0), (30, 0.0), (5, 0.875), (200, 0.0))
    moves = hindsight_labels(bars_of(closes))
    assert moves[["start_bar", "end_bar", "clear_from", "clear_to"]].to_numpy().tolist() == [
        [140, 144, 0, 380 - 105],
        [175, 179, 141, 380 - 105],
    ]


@pytest.mark.parametrize("roll", [37, 59, 60, 62, 64])
def test_no_move_spans_a_roll(roll: int) -> None:
    """Neither the move, bars 60..64, nor the state before it, from bar 36 on."""
    bars = bars_of(steps(QUIET, (5, 1.0), (40, 0.0)))
    moves = hindsight_labels(bars, rolls=[bars.index[roll]])
    assert not ((moves["state_start_bar"] < roll) & (moves["end_bar"] >= roll)).any()

    dropped = bars.drop(bars.index[roll])  # the next bar is then the first of the contract
    moves = hindsight_labels(dropped, rolls=[bars.index[roll]])
    assert not ((moves["state_start_bar"] < roll) & (moves["end_bar"] >= roll)).any()


@pytest.mark.parametrize("roll", [0, 24, 70, 104])
def test_a_roll_elsewhere_changes_no_move(roll: int) -> None:
    bars = bars_of(steps(QUIET, (5, 1.0), (40, 0.0)))
    pd.testing.assert_frame_equal(
        hindsight_labels(bars, rolls=[bars.index[roll]]), hindsight_labels(bars)
    )


def test_of_two_moves_equally_strong_neither_keeps_the_other_out() -> None:
    closes = steps((140, 0.0), (5, 1.0), (30, 0.0), (5, 1.0), (200, 0.0))
    moves = hindsight_labels(bars_of(closes))
    assert moves["start_bar"].tolist() == [140, 175]
    assert moves["clear_from"].tolist() == [0, 0]
    assert moves["clear_to"].tolist() == [380 - 105] * 2


def test_no_window_of_a_label_holds_a_stronger_expansion() -> None:
    market = make_market(MarketConfig(seed=3, start="2025-01-06", end="2025-01-17")).bars
    moves = hindsight_labels(market)
    every = hindsight_labels(
        market, HindsightConfig(max_range_atr=1e9)
    )  # all expansions count as labelled
    strength = every["net_atr"] / np.sqrt(every["end_bar"] - every["start_bar"] + 1)
    placed = place_windows(moves, market.index, LabelConfig(), source="hindsight")
    assert 30 < len(placed) < len(moves)  # some are nowhere the strongest, and they are counted
    assert sum(placed.left_out.values()) == len(moves) - len(placed)
    for i in range(len(placed)):
        own = strength[every["start_bar"] == placed.start_bar[i]].item()
        for anchor in range(placed.first_anchor[i], placed.last_anchor[i] + 1):
            inside = (every["start_bar"] >= anchor) & (every["end_bar"] <= anchor + 104)
            assert strength[inside].max() == own


def test_without_the_clear_places_windows_hold_stronger_moves() -> None:
    """The twin: placed anywhere, many a label is not the strongest of its window."""
    market = make_market(MarketConfig(seed=3, start="2025-01-06", end="2025-01-17")).bars
    moves = hindsight_labels(market)
    anywhere = place_windows(
        moves.drop(columns=["clear_from", "clear_to"]), market.index, LabelConfig(), source="x"
    )
    clear = place_windows(moves, market.index, LabelConfig(), source="x")
    assert len(anywhere) == len(moves) > len(clear)


def largest_share(values: np.ndarray) -> float:
    return np.unique(values, return_counts=True)[1].max() / len(values)


def test_where_the_move_lies_in_its_window_cannot_be_guessed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moves = some_moves()
    placed = place_windows(moves, minutes(60_000), CONFIG, source="hindsight")
    centre = placed.start + placed.end
    assert largest_share(centre // 14) < 0.15  # the best fixed guess, +-3 bars
    assert largest_share(placed.start) < 0.03
    assert placed.start.min() == 24
    assert len(set(placed.start.tolist())) > 70
    monkeypatch.setattr(placement, "splitmix64", lambda values: np.zeros(len(values), np.uint64))
    stuck = place_windows(moves, minutes(60_000), CONFIG, source="hindsight")
    assert largest_share((stuck.start + stuck.end) // 14) > 0.5


def test_a_move_lies_at_the_same_place_however_long_the_series_is() -> None:
    moves = some_moves()
    whole = place_windows(moves, minutes(60_000), CONFIG, source="hindsight")
    late = moves[moves["start_bar"] > 30_200]
    rows = late[["state_start_bar", "start_bar", "end_bar"]] - 30_000
    part = place_windows(
        rows.assign(label=late["label"]), minutes(60_000)[30_000:], CONFIG, source="hindsight"
    )
    np.testing.assert_array_equal(part.anchor + 30_000, whole.anchor[-len(part) :])
    assert part.window_id.tolist() == whole.window_id[-len(part) :].tolist()
    assert len(set(whole.window_id.tolist())) == len(whole)


def test_a_move_at_either_end_of_the_series_has_a_window_inside() -> None:
    moves = pd.DataFrame(
        {
            "label": "retracement",
            "state_start_bar": [0, 276],
            "start_bar": [24, 288],
            "end_bar": [30, 299],
        }
    )
    placed = place_windows(moves, minutes(300), CONFIG, source="hindsight")
    assert (placed.first_anchor.tolist(), placed.last_anchor.tolist()) == ([0, 195], [0, 195])


def test_a_move_too_long_for_a_window_is_left_out_and_counted() -> None:
    moves = pd.DataFrame(
        {
            "label": "retracement",
            "state_start_bar": [100, 400],
            "start_bar": [200, 424],
            "end_bar": [205, 430],
        }
    )
    placed = place_windows(moves, minutes(600), CONFIG, source="planted")
    assert placed.start_bar.tolist() == [424]
    assert placed.left_out == {"state and expansion longer than 105 bars": 1}


def test_a_move_of_an_undeclared_class_is_refused() -> None:
    with pytest.raises(
        DataError,
        match=r"label must be one of up, down .* got '(cons|retr).*\(row 0 of the hindsight",
    ):
        place_windows(
            some_moves(5), minutes(60_000), LabelConfig(classes=("up", "down")), source="hindsight"
        )


def test_planted_labels_point_at_the_planted_moves() -> None:
    market = make_market(MarketConfig(seed=1))
    planted = planted_labels(market.moves, pd.DatetimeIndex(market.bars.index), CONFIG)
    np.testing.assert_array_equal(planted.start_bar, market.moves["expansion_start_bar"])
    np.testing.assert_array_equal(planted.end_bar, market.moves["expansion_end_bar"])
    assert (planted.source, len(planted), min(planted.class_counts().values()) > 0) == (
        "planted",
        len(market.moves),
        True,
    )
    with pytest.raises(
        DataError,
        match=r"state_start must be a minute of the bars .* got '2025.* \(row 0 of the planted",
    ):
        planted_labels(market.moves, minutes(5000, "2030-01-01"), CONFIG)


# --- label files ----------------------------------------------------------------------------------

TIMES = minutes(1000)


def pointing(**columns: object) -> pd.DataFrame:
    """A file of four labels that point into TIMES."""
    table = {
        "window_start": [str(TIMES[i]) for i in (0, 200, 400, 895)],
        "label": ["consolidation", "retracement", "retracement", "consolidation"],
        "expansion_start": [30, 40, 0, 90],
        "expansion_end": [35, 40, 104, 104],
    }
    return pd.DataFrame(table | columns)


def own_bars(n: int = 4, seed: int = 0) -> np.ndarray:
    """[n, T, 4] windows that share no bar."""
    bars = ragged_market(seed, n * WINDOW)[["open", "high", "low", "close"]]
    return bars.to_numpy().reshape(n, WINDOW, 4) + np.arange(n)[:, None, None] / 64


def carrying(bars: np.ndarray | None = None, **columns: object) -> pd.DataFrame:
    """A file of labels that carry their own bars."""
    bars = own_bars() if bars is None else bars
    table = {
        "window_id": [f"w{i}" for i in range(len(bars))],
        "label": [("consolidation", "retracement")[i % 2] for i in range(len(bars))],
        "expansion_start": np.arange(len(bars)) % 60 + 30,
        "expansion_end": np.arange(len(bars)) % 60 + 37,
        "features": [window.tolist() for window in bars],
    }
    return pd.DataFrame(table | columns)


def read(tmp_path: Path, table: pd.DataFrame, suffix: str = "parquet", **more: object) -> LabelSet:
    path = tmp_path / f"my.{suffix}"
    if suffix == "csv":
        table.to_csv(path, index=False)
    else:
        table.to_parquet(path)
    return read_labels(path, CONFIG, **{"times": TIMES} | more)


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_file_that_points_into_the_bars_is_read(tmp_path: Path, suffix: str) -> None:
    got = read(tmp_path, pointing(), suffix)
    assert (got.source, got.anchored, got.left_out) == (f"my.{suffix}", True, {})
    assert got.anchor.tolist() == [0, 200, 400, 895]
    assert got.label_index.tolist() == [0, 1, 1, 0]
    assert (got.start.tolist(), got.end.tolist()) == ([30, 40, 0, 90], [35, 40, 104, 104])
    assert got.start_bar.tolist() == [30, 240, 400, 985]
    assert got.class_counts() == {"consolidation": 2, "retracement": 2}
    # a re-cut keeps the expansion and, as far as the file's window has them, 24 bars before it
    assert got.first_anchor.tolist() == [0, 136, 400, 895]
    assert got.last_anchor.tolist() == [6, 216, 400, 895]
    assert got.window_id.tolist() == [str(TIMES[i]) for i in (0, 200, 400, 895)]


def test_times_may_be_of_another_zone_or_in_the_index(tmp_path: Path) -> None:
    starts = TIMES[[0, 200, 400, 895]]
    for window_start in (starts, starts.tz_convert("America/New_York"), starts.astype(str)):
        table = pointing(window_start=window_start)
        assert read(tmp_path, table).anchor.tolist() == [0, 200, 400, 895]
    table = pointing().set_index("window_start")
    assert read(tmp_path, table).anchor.tolist() == [0, 200, 400, 895]


def test_grade_d_is_left_out_and_counted(tmp_path: Path) -> None:
    table = pointing(
        grade=["A", "d ", None, "B"], window_id=[7, 8, 9, 10], expansion_end=[35, 1000, 104, 104]
    )
    got = read(tmp_path, table)
    assert got.window_id.tolist() == ["7", "9", "10"]
    assert got.left_out == {"grade D": 1}
    with pytest.raises(
        DataError, match=r"at least one label, got none, besides 4 of grade D \(my.parquet\)"
    ):
        read(tmp_path, pointing(grade="D"))


def test_a_repeated_row_counts_once(tmp_path: Path) -> None:
    got = read(tmp_path, pd.concat([pointing(), pointing().iloc[:1]]))
    assert (len(got), got.left_out) == (4, {"repeated": 1})
    two_moves = pd.concat(
        [pointing(), pointing().iloc[:1].assign(expansion_start=50, expansion_end=55)]
    )
    assert len(read(tmp_path, two_moves)) == 5


def as_is(bars: np.ndarray) -> list[object]:
    return [window.tolist() for window in bars]


def flat(bars: np.ndarray) -> list[object]:
    return [window.ravel() for window in bars]


def as_text(bars: np.ndarray) -> list[object]:
    return [json.dumps(window.tolist()) for window in bars]


@pytest.mark.parametrize(
    ("shape", "suffix"), [(as_is, "parquet"), (flat, "parquet"), (as_text, "csv")]
)
def test_windows_that_carry_their_bars_get_features_of_their_own(
    tmp_path: Path, shape: object, suffix: str
) -> None:
    bars = own_bars()
    got = read(tmp_path, carrying(bars, features=shape(bars)), suffix, times=None)
    np.testing.assert_array_equal(got.bars, bars)
    assert not got.anchored
    assert got.anchor.tolist() == got.first_anchor.tolist() == got.last_anchor.tolist() == [-1] * 4
    for k in range(4):
        alone = compute_features(pd.DataFrame(bars[k], columns=["open", "high", "low", "close"]))
        np.testing.assert_array_equal(got.features[k], alone)
    assert (got.features.shape, got.features.dtype) == ((4, WINDOW, 11), np.float32)
    np.testing.assert_array_equal(got.valid, np.tile(np.arange(WINDOW) >= 20, (4, 1)))
    assert got.features[:, 20:].std() > 0


def nan_at_bar_3(bars: np.ndarray) -> np.ndarray:
    bars[1, 3, 2] = np.nan
    return bars


@pytest.mark.parametrize(("state_bars", "least"), [(0, 0), (24, 24), (60, 60), (99, 99), (104, 99)])
def test_the_spec_decides_how_many_bars_before_the_move_a_recut_keeps(
    tmp_path: Path, state_bars: int, least: int
) -> None:
    """With the move of 6 bars at its very end, a window has room for 99 bars before it."""
    pytest.importorskip("torch")
    from moola.data.feature_records import FeatureMetadata
    from moola.data.feature_set import FeatureSet
    from moola.training.data import windows_of

    path = tmp_path / "my.parquet"
    moves = {"expansion_start": 90, "expansion_end": 95}
    pointing(**moves).iloc[1:3].to_parquet(path)
    labels = read_labels(path, LabelConfig(state_bars=state_bars), times=TIMES)

    rows = np.zeros((len(TIMES), 11), np.float32)
    bars = pd.DataFrame(index=TIMES)
    dataset = windows_of(
        labels, FeatureSet(rows, np.ones(len(TIMES), bool), {}, FeatureMetadata(), bars)
    )
    drawn = np.repeat([0, 1], 2000)
    window_start = dataset.recut(drawn, np.random.default_rng(0))
    kept_bars = labels.start_bar[drawn] - window_start
    assert kept_bars.min() == least
    assert kept_bars.max() == 99


REFUSALS = {
    "unknown label": (
        pointing(label=["consolidation", "breakout", "retracement", "consolidation"]),
        r"label must be one of consolidation, retracement \(labels.classes\), got 'breakout' "
        r"\(row 1 of my.parquet\)",
    ),
    "no label": (
        pointing(label=["consolidation", None, "retracement", "x"]),
        r"label must be .* got (None|nan) \(row 1 of",
    ),
    "pointer 105": (
        pointing(expansion_end=[35, 40, 105, 104]),
        r"expansion_end must be a bar 0..104 of the window, got 105 \(row 2 of my.parquet\)",
    ),
    "pointer -1": (
        pointing(expansion_start=[30, 40, 0, -1]),
        r"expansion_start must be a bar 0..104 of the window, got -1 \(row 3 of my.parquet\)",
    ),
    "pointer of another kind": (
        pointing(expansion_start=[True] * 4),
        r"expansion_start must be .* got True \(row 0 of",
    ),
    "pointer 1.5": (
        pointing(expansion_start=[1.5, 40, 0, 90]),
        r"expansion_start must be .* got 1.5 \(row 0 of",
    ),
    "pointer missing": (
        pointing(expansion_start=[30, None, 0, 90]),
        r"expansion_start must be .* got nan \(row 1 of",
    ),
    "end before start": (
        pointing(expansion_end=[35, 39, 104, 104]),
        r"expansion_start must be <= expansion_end, got \(40, 39\) \(row 1 of my.parquet\)",
    ),
    "not in the bars": (
        pointing(window_start=[str(TIMES[0]), "2024-03-05 12:00Z", str(TIMES[400]), str(TIMES[1])]),
        r"window_start must be a minute of the bars \(2024-03-04 00:00 to 2024-03-04 16:39 UTC\), "
        r"got '2024-03-05 12:00Z' \(row 1 of my.parquet\)",
    ),
    "not a time": (
        pointing(window_start=["x", "y", "z", "w"]),
        r"window_start must be a time such as 2024-03-04T21:35Z, got 'x' \(row 0 of",
    ),
    "too late in the bars": (
        pointing(window_start=[str(TIMES[i]) for i in (0, 200, 896, 400)]),
        r"a window needs 105 bars from window_start on .* got '2024-03-04 14:56:00\+00:00' \(row "
        r"2 of my.parquet\)",
    ),
    "move with two labels": (
        pd.concat([pointing(), pointing().iloc[:1].assign(label="retracement")]),
        r"a move must have one label, got 'retracement' and in row 0 'consolidation' for the "
        r"same bars "
        r"\(window_start 2024-03-04 00:00:00\+00:00, row 4 of my.parquet\)",
    ),
    "id of two windows": (
        pointing(window_id=["a", "b", "b", "a"]),
        r"a window_id must name one window, got 'b' for another one in row 1 "
        r"\(window_id b, window_start .*, row 2 of my.parquet\)",
    ),
    "bars with two labels": (
        carrying(own_bars()[[0, 1, 2, 0]], expansion_start=30, expansion_end=37),
        r"a move must have one label, got 'retracement' and in row 0 'consolidation' for the "
        r"same bars \(window_id w3, row 3 of my.parquet\)",
    ),
    "no pointer column": (
        pointing().drop(columns="expansion_end"),
        r"missing column expansion_end: found window_start, label, expansion_start \(my.parquet\)",
    ),
    "neither bars nor a time": (
        pointing().drop(columns="window_start"),
        r"missing column window_start or features: found label, expansion_start, expansion_end "
        r"\(my.parquet\)",
    ),
    "own bars, no id": (
        carrying().drop(columns="window_id"),
        r"missing column window_id: found label, ",
    ),
    "bars of another shape": (
        carrying(own_bars()[:, :104]),
        r"features must be 105 x \[open, high, low, close\], got shape \(104, 4\) \(row 0 of "
        r"my.parquet\)",
    ),
    "bars in rags": (
        carrying(features=[*as_is(own_bars()[:3]), [[1.0, 2.0], [1.0]]]),
        r"features must be 105 x \[open, high, low, close\], got .* \(row 3 of my.parquet\)",
    ),
    "bars not finite": (
        carrying(nan_at_bar_3(own_bars())),
        r"prices must be finite, got .*nan.* as open, high, low, close \(bar 3, row 1 of "
        r"my.parquet\)",
    ),
    "bars at zero": (
        carrying(own_bars() * 0),
        r"the prices of a window must move, got 0.0 throughout \(row 0 of my.parquet\)",
    ),
    "columns out of order": (
        carrying(own_bars()[:, :, [0, 2, 1, 3]]),
        r"open and close must lie in \[low, high\], got .* as open, high, low, close \(bar \d+, "
        r"row 0 of my.parquet\)",
    ),
    "no rows": (
        pointing().iloc[:0],
        r"a file must hold at least one label, got none \(my.parquet\)",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_label_file_is_refused_with_row_and_value(tmp_path: Path, case: str) -> None:
    table, message = REFUSALS[case]
    with pytest.raises(DataError, match=message):
        read(tmp_path, table)


def test_a_window_over_dropped_bars_is_refused(tmp_path: Path) -> None:
    kept = TIMES.delete(
        [210, 950]
    )  # the second is in the last window too, the first in the one of row 1
    message = (
        r"a labelled window must hold no dropped bar: window_start, "
        r"got '2024-03-04 03:20:00\+00:00' \(row 1 of my.par"
    )
    with pytest.raises(DataError, match=message):
        read(tmp_path, pointing().iloc[:3], times=kept, dropped=[TIMES[950], TIMES[210]])
    for outside in (TIMES[199], TIMES[305]):
        assert len(read(tmp_path, pointing().iloc[:3], times=TIMES, dropped=[outside])) == 3
    with pytest.raises(DataError, match="window_start must be a minute of the bars"):
        read(tmp_path, pointing(), times=TIMES.delete(200), dropped=[TIMES[200]])


def test_pointing_labels_without_bars_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"window_start needs the bars it points into, got none \(my.parquet\)"
    ):
        read(tmp_path, pointing(), times=None)


def test_an_unreadable_label_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "empty.csv").write_text("")
    for name in ("torn.parquet", "empty.csv", "absent.csv"):
        with pytest.raises(
            DataError, match=rf"labels must be a readable parquet or CSV file: .* \({name}\)"
        ):
            read_labels(tmp_path / name, CONFIG, times=TIMES)


# --- splits ---------------------------------------------------------------------------------------

SPLITS = {"train": Split(0, 40_000), "val": Split(40_104, 50_000), "test": Split(50_104, 59_896)}


def test_labels_go_to_the_split_that_holds_their_window() -> None:
    placed = place_windows(some_moves(), minutes(60_000), CONFIG, source="hindsight")
    parts, left_out = assign_splits(placed, SPLITS)
    bars_seen = {}
    for name, part in parts.items():
        split = SPLITS[name]
        for anchor in (part.anchor, part.first_anchor, part.last_anchor):
            assert (anchor >= split.start).all()
            assert (anchor < split.stop).all()
        assert (part.first_anchor <= part.anchor).all()
        assert (part.anchor <= part.last_anchor).all()
        cuts = zip(part.first_anchor, part.last_anchor + WINDOW, strict=True)
        bars_seen[name] = {bar for first, stop in cuts for bar in range(first, stop)}
    assert not bars_seen["train"] & bars_seen["val"]
    assert not bars_seen["val"] & bars_seen["test"]
    n_out = len(placed) - sum(map(len, parts.values()))
    assert 0 < n_out < 40
    assert left_out == {"window over a cut or outside the splits": n_out}
    assert (
        parts["train"].last_anchor < placed.last_anchor[: len(parts["train"])]
    ).any()  # one was held back at the cut


def test_the_first_and_the_last_window_of_a_split_are_in_it() -> None:
    anchors = {"train": [0, 1, 39_999, 39_998], "val": [40_104, 40_105, 49_999, 49_998]}
    outside = [40_000, 40_103, 50_000]
    anchor = np.array([*anchors["train"], *anchors["val"], *outside])
    one = place_windows(some_moves(len(anchor)), minutes(60_000), CONFIG, source="hindsight")
    labels = replace(
        one, anchor=anchor, first_anchor=anchor, last_anchor=anchor, label_index=anchor % 2
    )
    splits = {name: SPLITS[name] for name in anchors}
    parts, left_out = assign_splits(labels, splits)
    assert {name: part.anchor.tolist() for name, part in parts.items()} == anchors
    assert sum(left_out.values()) == len(outside)


def test_a_class_with_one_label_in_a_split_is_refused() -> None:
    moves = some_moves()
    in_val = (moves["state_start_bar"] > 40_200) & (moves["end_bar"] < 50_000)
    moves.loc[in_val, "label"] = "consolidation"
    placed = place_windows(moves, minutes(60_000), CONFIG, source="hindsight")
    near_the_cut = int(
        ((placed.label_index == 1) & (placed.anchor >= 40_104) & (placed.anchor < 50_000)).sum()
    )
    keep = (placed.label_index == 0) | (placed.anchor < 40_104) | (placed.anchor >= 50_000)
    with pytest.raises(
        DataError,
        match=r"each class needs 2 labels in each split: retracement has 0 in val \(of \d+ in val",
    ):
        assign_splits(placed.take(keep), SPLITS)
    one = replace(placed.take(keep), label_index=placed.label_index[keep].copy())
    rows = np.flatnonzero((one.anchor >= 40_104) & (one.anchor < 50_000))
    one.label_index[rows[0]] = 1
    with pytest.raises(DataError, match="retracement has 1 in val"):
        assign_splits(one, SPLITS)
    one.label_index[rows[1]] = 1
    assert assign_splits(one, SPLITS)[0]["val"].class_counts()["retracement"] == 2
    assert near_the_cut < 10


def test_labels_with_their_own_bars_are_split_in_file_order(tmp_path: Path) -> None:
    whole = read(tmp_path, carrying(own_bars(40)))
    parts, left_out = split_in_order(whole, {"train": 0.7, "val": 0.15, "test": 0.15})
    ids = {name: part.window_id.tolist() for name, part in parts.items()}
    assert [len(part) for part in parts.values()] == [28, 6, 6]
    assert ids["train"] + ids["val"] + ids["test"] == whole.window_id.tolist()
    assert left_out == {}
    np.testing.assert_array_equal(parts["val"].features, whole.features[28:34])


def test_windows_that_share_bars_with_a_later_split_are_left_out(tmp_path: Path) -> None:
    bars = own_bars(40)
    bars[3, 60:] = bars[30, :45]  # a window of train overlaps one of val
    bars[29, 95:] = bars[39, :10]  # one of val overlaps one of test, by just enough bars to tell
    parts, left_out = split_in_order(
        read(tmp_path, carrying(bars)), {"train": 0.7, "val": 0.15, "test": 0.15}
    )
    assert left_out == {"shares bars with a later split": 2}
    assert "w3" not in parts["train"].window_id
    assert "w29" not in parts["val"].window_id
    bars[29, 95] = bars[29, 94]  # one bar fewer cannot be told from chance
    assert split_in_order(
        read(tmp_path, carrying(bars)), {"train": 0.7, "val": 0.15, "test": 0.15}
    )[1] == {"shares bars with a later split": 1}


def test_each_kind_of_label_is_split_in_its_own_way(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"split by its time, not by their order \(my.parquet\)"):
        split_in_order(read(tmp_path, pointing()), {"train": 0.7, "val": 0.15, "test": 0.15})
    with pytest.raises(
        DataError,
        match=r"carry their own bars are split in their order, not by time \(my.parquet\)",
    ):
        assign_splits(read(tmp_path, carrying()), SPLITS)


def test_classes_are_declared_in_the_spec(tmp_path: Path) -> None:
    pointing(label=["up", "down", "down", "up"]).to_parquet(tmp_path / "my.parquet")
    got = read_labels(
        tmp_path / "my.parquet", LabelConfig(classes=("down", "flat", "up")), times=TIMES
    )
    assert got.label_index.tolist() == [2, 0, 0, 2]
    for wrong in (("one",), ("a", "a"), ("a", "")):
        with pytest.raises(ValidationError):
            LabelConfig(classes=wrong)
