"""The synthetic market: its calendar by hand, its moments beside NQ's, its moves measured again."""

from datetime import date

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from moola.data.synthetic import Market, make_market
from moola.errors import DataError
from moola.specs import MarketConfig
from tests.shared import shared

# Accepted ratio of a synthetic market's moment to the NQ sample's, over the sample's own dates.
BANDS = {
    "std of r": (0.65, 1.5),
    "kurtosis of r": (0.5, 2.5),
    "acf of |r|, lag 1": (0.7, 1.3),
    "acf of |r|, lag 10": (0.7, 1.3),
    "acf of |r|, lag 60": (0.6, 1.4),
    "10 h over 22 h, std of r": (0.5, 2.0),
    "range / body": (0.9, 1.1),
    "volume against range": (0.85, 1.15),
    "median volume": (0.4, 2.5),
}


@pytest.fixture(scope="module")
def market() -> Market:
    return make_market()


def bars_between(first: str, stop: str, bars: pd.DataFrame) -> int:
    return int(((bars.index >= first) & (bars.index < stop)).sum())


def bars_of(start: date, end: date) -> pd.DataFrame:
    return make_market(MarketConfig(start=start, end=end, moves_per_day=0)).bars


# --- calendar -------------------------------------------------------------------------------------


def outside_sessions(index: pd.DatetimeIndex) -> int:
    """Minutes, in New York, when nothing trades.

    On a Saturday, in the daily halt, after Friday's close or before Sunday's open.
    """
    clock = index.tz_convert("America/New_York")
    closed = (clock.day_of_week == 5) | (clock.hour == 17)
    closed |= (clock.day_of_week == 4) & (clock.hour >= 17)
    closed |= (clock.day_of_week == 6) & (clock.hour < 18)
    return int(closed.sum())


def test_no_bar_lies_outside_the_sessions(market: Market) -> None:
    assert outside_sessions(market.bars.index) == 0
    every_minute = pd.date_range(market.bars.index[0], market.bars.index[-1], freq="min")
    assert outside_sessions(every_minute) > 10_000  # the check counts what it should refuse


def test_a_full_week_is_five_days_of_23_hours() -> None:
    index = bars_of(date(2025, 1, 13), date(2025, 1, 17)).index
    assert len(index) == 5 * 23 * 60
    assert index[0] == pd.Timestamp("2025-01-12 23:00Z")
    assert index[-1] == pd.Timestamp("2025-01-17 21:59Z")
    assert index.is_monotonic_increasing
    assert index.is_unique
    assert (index.name, str(index.tz)) == ("timestamp", "UTC")


@pytest.mark.parametrize(
    ("day", "opens", "closes"),
    [
        (date(2024, 3, 8), "2024-03-07 23:00Z", "2024-03-08 21:59Z"),  # New York is UTC-5
        (date(2024, 3, 11), "2024-03-10 22:00Z", "2024-03-11 20:59Z"),  # UTC-4, since that Sunday
        (date(2024, 11, 1), "2024-10-31 22:00Z", "2024-11-01 20:59Z"),
        (date(2024, 11, 4), "2024-11-03 23:00Z", "2024-11-04 21:59Z"),
        (date(2027, 6, 15), "2027-06-14 22:00Z", "2027-06-15 20:59Z"),
        (
            date(2024, 11, 28),
            "2024-11-27 23:00Z",
            "2024-11-28 17:59Z",
        ),  # Thanksgiving closes at 13:00 New York
    ],
)
def test_a_day_opens_and_closes_by_new_york_time(day: date, opens: str, closes: str) -> None:
    index = bars_of(day, day).index
    assert (index[0], index[-1]) == (pd.Timestamp(opens), pd.Timestamp(closes))


def test_christmas_good_friday_and_new_year_are_closed() -> None:
    winter = bars_of(date(2024, 12, 23), date(2025, 1, 3))
    assert bars_between("2024-12-24 18:00Z", "2024-12-25 23:00Z", winter) == 0
    assert bars_between("2024-12-25 23:00Z", "2024-12-26 00:00Z", winter) == 60
    assert bars_between("2024-12-31 22:00Z", "2025-01-01 23:00Z", winter) == 0
    assert (
        bars_between(
            "2025-04-17 21:00Z", "2025-04-20 22:00Z", bars_of(date(2025, 4, 14), date(2025, 4, 22))
        )
        == 0
    )


def test_a_span_without_a_trading_day_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"at least one trading day: none from 2025-01-11 to 2025-01-12"
    ):
        make_market(MarketConfig(start=date(2025, 1, 11), end=date(2025, 1, 12)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"start": date(2025, 2, 1), "end": date(2025, 1, 1)},
            "start <= end, got 2025-02-01 / 2025-01-01",
        ),
        ({"moves_per_day": 21}, "less than or equal to 20"),
        ({"difficulty": float("nan")}, "a finite number"),
        ({"moves": 3}, "Extra inputs"),
    ],
)
def test_a_config_out_of_bounds_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MarketConfig(**fields)  # type: ignore[arg-type]


# --- bars -----------------------------------------------------------------------------------------


def bar_faults(bars: pd.DataFrame) -> list[str]:
    prices = bars[["open", "high", "low", "close"]]
    body = bars[["open", "close"]]
    rules = {
        "finite": np.isfinite(bars).all(axis=None),
        "positive": (bars > 0).all(axis=None),
        "on the tick": (prices % 0.25 == 0).all(axis=None),
        "high is highest": (bars["high"] >= body.max(axis=1)).all(),
        "low is lowest": (bars["low"] <= body.min(axis=1)).all(),
        "whole volume": (bars["volume"] % 1 == 0).all(),
        "float64": (bars.dtypes == np.float64).all(),
    }
    return [name for name, holds in rules.items() if not holds]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), price=st.floats(1_000, 100_000), difficulty=st.floats(0, 1))
def test_bars_are_consistent(seed: int, price: float, difficulty: float) -> None:
    config = MarketConfig(
        seed=seed,
        start_price=price,
        difficulty=difficulty,
        start=date(2025, 1, 6),
        end=date(2025, 1, 7),
    )
    assert bar_faults(make_market(config).bars) == []


@pytest.mark.parametrize(
    ("column", "value", "fault"),
    [
        ("open", 16_000.1, "on the tick"),
        ("high", 1.0, "high is highest"),
        ("low", 1e6, "low is lowest"),
        ("volume", 0.0, "positive"),
        ("volume", 1.5, "whole volume"),
        ("close", np.inf, "finite"),
    ],
)
def test_the_bar_check_sees_a_damaged_bar(
    market: Market, column: str, value: float, fault: str
) -> None:
    bars = market.bars.head(500).copy()
    bars.loc[bars.index[7], column] = value
    assert fault in bar_faults(bars)


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(market: Market) -> None:
    again = make_market()
    pd.testing.assert_frame_equal(again.bars, market.bars, check_exact=True)
    pd.testing.assert_frame_equal(again.moves, market.moves, check_exact=True)
    other = make_market(MarketConfig(seed=1)).bars
    assert (other["close"] != market.bars["close"]).mean() > 0.9


# --- moments --------------------------------------------------------------------------------------


def moments(bars: pd.DataFrame) -> dict[str, float]:
    log_close = np.log(bars["close"])
    returns = log_close.diff().where(bars.index.to_series().diff() == pd.Timedelta(minutes=1))
    size = returns.abs()
    hour = bars.index.tz_convert("America/New_York").hour
    spread = bars["high"] - bars["low"]
    return {
        "std of r": returns.std(),
        "kurtosis of r": returns.kurt() + 3,
        "acf of |r|, lag 1": size.autocorr(1),
        "acf of |r|, lag 10": size.autocorr(10),
        "acf of |r|, lag 60": size.autocorr(60),
        "10 h over 22 h, std of r": returns[hour == 10].std() / returns[hour == 22].std(),
        "range / body": spread.mean() / (bars["close"] - bars["open"]).abs().mean(),
        "volume against range": bars["volume"].corr(spread),
        "median volume": bars["volume"].median(),
    }


def outside_bands(bars: pd.DataFrame, sample: pd.DataFrame) -> set[str]:
    ours, theirs = moments(bars), moments(sample)
    return {
        name for name, (low, high) in BANDS.items() if not low <= ours[name] / theirs[name] <= high
    }


@pytest.fixture(scope="module")
def nq() -> pd.DataFrame:
    path = shared("data/NQ_1m_2023-11-19_2023-12-04.parquet")
    return pd.read_parquet(path).set_index("timestamp")


@pytest.mark.parametrize("seed", range(4))
def test_moments_are_those_of_nq(nq: pd.DataFrame, seed: int) -> None:
    bars = make_market(
        MarketConfig(seed=seed, start=date(2023, 11, 20), end=date(2023, 12, 4))
    ).bars
    assert outside_bands(bars, nq) == set()


def test_an_iid_gaussian_market_has_not_the_moments_of_nq(nq: pd.DataFrame) -> None:
    rng = np.random.default_rng(0)
    walk = 15_900 * np.exp(
        1.9e-4 * np.cumsum(rng.standard_normal((len(nq), 60)) / np.sqrt(60))
    ).reshape(len(nq), 60)
    bars = pd.DataFrame(
        {"open": walk[:, 0], "high": walk.max(1), "low": walk.min(1), "close": walk[:, -1]},
        index=nq.index,
    )
    bars["volume"] = rng.permutation(nq["volume"].to_numpy())
    assert outside_bands(bars, nq) >= {
        "kurtosis of r",
        "acf of |r|, lag 1",
        "acf of |r|, lag 10",
        "acf of |r|, lag 60",
        "10 h over 22 h, std of r",
        "volume against range",
    }


# --- planted moves --------------------------------------------------------------------------------


def move_faults(bars: pd.DataFrame, move: pd.Series) -> list[str]:  # type: ignore[type-arg]
    """The rules a planted move breaks, worked out with pandas from the bars alone."""
    true_range = pd.concat(
        [
            bars["high"] - bars["low"],
            (bars["high"] - bars["close"].shift()).abs(),
            (bars["low"] - bars["close"].shift()).abs(),
        ],
        axis=1,
    ).max(axis=1)
    start, end = move["expansion_start"], move["expansion_end"]
    atr = true_range[true_range.index < start].tail(20).mean()
    closes = bars["close"][(bars.index >= start - pd.Timedelta(minutes=1)) & (bars.index <= end)]
    state = bars[(bars.index >= move["state_start"]) & (bars.index < start)]
    net = closes.iloc[-1] - closes.iloc[0]
    width = (state["high"].max() - state["low"].min()) / atr
    rules = {
        "length": 4 <= len(closes) - 1 <= 16 and len(state) == 24,
        "direction": np.sign(net) == move["direction"],
        "net": net == move["net"] and abs(net) / atr == pytest.approx(move["net_atr"]),
        "net >= 4 ATR": abs(net) >= 4 * atr,
        "efficiency": abs(net) >= 0.75 * closes.diff().abs().sum(),
        "first and last bar": (closes.diff().iloc[[1, -1]] * move["direction"] > 0).all(),
    }
    if move["label"] == "consolidation":
        return [name for name, holds in {**rules, "quiet": width <= 4.5}.items() if not holds]
    up = state if move["direction"] > 0 else -state.rename(columns={"high": "low", "low": "high"})
    peak = int(up["high"].to_numpy().argmax())
    leg = up["high"].iloc[peak] - up["low"].iloc[: peak + 1].min()
    back = (up["high"].iloc[peak] - up["close"].iloc[-1]) / leg
    deepest = (up["high"].iloc[peak] - up["low"].iloc[peak:].min()) / leg
    rules |= {
        "not quiet": width > 4.5,
        "leg": leg >= 4 * atr,
        "pullback": back >= 0.25 and deepest <= 0.75,
    }
    return [name for name, holds in rules.items() if not holds]


def around(market: Market, move: pd.Series) -> pd.DataFrame:  # type: ignore[type-arg]
    return market.bars.iloc[move["state_start_bar"] - 30 : move["expansion_end_bar"] + 30]


@pytest.mark.parametrize("difficulty", [0.0, 0.5, 1.0])
def test_planted_moves_hold_on_the_bars(difficulty: float) -> None:
    made = make_market(MarketConfig(seed=3, difficulty=difficulty, end=date(2025, 1, 24)))
    faults = {row: move_faults(around(made, move), move) for row, move in made.moves.iterrows()}
    assert len(faults) > 100
    assert {row: names for row, names in faults.items() if names} == {}


def test_the_move_check_sees_a_shifted_or_mislabelled_move(market: Market) -> None:
    minute = pd.Timedelta(minutes=1)
    for _, move in market.moves.head(30).iterrows():
        bars = around(market, move)
        other = {"consolidation": "retracement", "retracement": "consolidation"}[move["label"]]
        assert move_faults(bars, pd.Series({**move, "label": other}))
        assert "direction" in move_faults(
            bars, pd.Series({**move, "direction": -move["direction"]})
        )
        assert "net" in move_faults(
            bars, pd.Series({**move, "expansion_end": move["expansion_end"] - minute})
        )
        assert "length" in move_faults(
            bars, pd.Series({**move, "state_start": move["state_start"] + minute})
        )


def test_moves_stay_in_a_session_and_share_no_bar(market: Market) -> None:
    moves, index = market.moves, market.bars.index
    for name in ("state_start", "expansion_start", "expansion_end"):
        assert (index[moves[f"{name}_bar"]] == moves[name]).all()
    in_bars = moves["expansion_end_bar"] - moves["state_start_bar"]
    assert (
        (moves["expansion_end"] - moves["state_start"]) / pd.Timedelta(minutes=1) == in_bars
    ).all()  # no halt inside
    assert (
        moves["state_start_bar"].to_numpy()[1:] > moves["expansion_end_bar"].to_numpy()[:-1]
    ).all()


def test_rate_mix_and_direction_follow_the_config(market: Market) -> None:
    days = 59  # 12 weeks of five, without the day of mourning on 9 January 2025
    assert (
        len(market.bars) == (days - 2) * 1380 + 2 * 1140
    )  # King's and Presidents' Day close at 13:00
    assert len(market.moves) / days == pytest.approx(12, rel=0.15)
    assert (market.moves["direction"] == 1).mean() == pytest.approx(0.5, abs=0.1)
    assert (market.moves["label"] == "consolidation").mean() == pytest.approx(0.5, abs=0.1)
    week = {"start": date(2025, 1, 13), "end": date(2025, 1, 17)}
    only = make_market(MarketConfig(**week, consolidation_fraction=0.0)).moves
    assert set(only["label"]) == {"retracement"}
    assert len(make_market(MarketConfig(**week, moves_per_day=0)).moves) == 0


def test_moves_begin_at_every_time_of_day_and_last_every_length(market: Market) -> None:
    hours = market.moves["state_start"].dt.tz_convert("America/New_York").dt.hour
    assert set(hours) == set(range(24)) - {17}
    lengths = market.moves["expansion_end_bar"] - market.moves["expansion_start_bar"] + 1
    assert set(lengths) == set(range(4, 17))


def test_difficulty_makes_the_paths_less_straight() -> None:
    def mean_efficiency(difficulty: float) -> float:
        made = make_market(MarketConfig(difficulty=difficulty, end=date(2025, 1, 17)))
        path = made.bars["close"].diff().abs().cumsum().to_numpy()
        begin, end = made.moves["expansion_start_bar"], made.moves["expansion_end_bar"]
        return float((made.moves["net"].abs() / (path[end] - path[begin - 1])).mean())

    straight, noisy = mean_efficiency(0.0), mean_efficiency(1.0)
    assert straight > 0.95
    assert noisy < 0.9


def test_prices_continue_from_the_moved_price(market: Market) -> None:
    closes, opens, index = (
        market.bars["close"].to_numpy(),
        market.bars["open"].to_numpy(),
        market.bars.index,
    )
    end = market.moves["expansion_end_bar"].to_numpy()
    goes_on = (index[end] + pd.Timedelta(minutes=1)).isin(index)  # not the last bar before a halt
    end, begin = end[goes_on], market.moves["expansion_start_bar"].to_numpy()[goes_on]
    small = 0.25 * market.moves["net"].abs().to_numpy()[goes_on]
    assert goes_on.mean() > 0.9
    assert (np.abs(opens[end + 1] - closes[end]) < small).all()
    assert not (np.abs(opens[end + 1] - closes[begin - 1]) < small).any()
