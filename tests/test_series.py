"""What a series is, is checked: the wrong one is refused by what it is, what can be lived with is
reported.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moola.data.loading import load_bars
from moola.data.series_checks import Series, check_series, step_text
from moola.errors import DataError
from moola.specs import LayoutConfig, SeriesConfig
from tests.shared import shared
from tests.vendor_files import market

REAL = ("NQ_1m_2023-11-19_2023-12-04", "EURUSD_1m_2017", "ES_1m_sample_days", "SPY_1m_sample_days")
several = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def bars() -> pd.DataFrame:
    return market().copy()


def series_of(frame: pd.DataFrame, folder: Path, fillers: Any = "keep", **fields: Any) -> Series:
    path = folder / "nq.parquet"
    frame.to_parquet(path)
    return check_series(load_bars(path, LayoutConfig(**fields)), SeriesConfig(fillers=fillers))


def refusal(frame: pd.DataFrame, folder: Path, **fields: Any) -> str:
    with pytest.raises(DataError) as caught:
        series_of(frame, folder, **fields)
    return str(caught.value)


def quiet(series: Series) -> bool:
    """Nothing found, nothing left out."""
    return not series.report.warnings and series.rows is None and not series.is_roll.any()


def resampled(frame: pd.DataFrame, rule: str) -> pd.DataFrame:
    how = {"open": "first", "high": "max", "low": "min", "close": "last", "volume": "sum"}
    return frame.resample(rule).agg(how).dropna()


# --- good series ----------------------------------------------------------------------------------


def test_the_shipped_market_is_a_series(bars: pd.DataFrame, tmp_path: Path) -> None:
    series = series_of(bars, tmp_path)

    assert quiet(series)
    assert series.report.step_s == 60
    assert series.report.step_fraction > 0.99
    np.testing.assert_array_equal(series.times, pd.DatetimeIndex(bars.index).as_unit("ns").asi8)


@pytest.mark.parametrize("name", REAL)
def test_real_bars_are_series_without_rolls(name: str) -> None:
    path = shared(f"data/{name}.parquet")
    assert quiet(check_series(load_bars(path)))


@pytest.mark.parametrize("n_bars", [0, 1, 2, 15, 30])
def test_short_series_are_looked_at_without_a_fault(
    bars: pd.DataFrame, n_bars: int, tmp_path: Path
) -> None:
    assert len(series_of(bars.iloc[:n_bars], tmp_path).times) == n_bars


def test_prices_below_zero_and_tiny_ones_are_prices(bars: pd.DataFrame, tmp_path: Path) -> None:
    prices = ["open", "high", "low", "close"]
    below = bars.assign(**{name: bars[name] - 20_000 for name in prices})
    tiny = bars.assign(**{name: bars[name] * 5e-7 for name in prices})

    assert quiet(series_of(below, tmp_path))
    assert quiet(series_of(tiny, tmp_path))


def test_the_report_is_json(bars: pd.DataFrame, tmp_path: Path) -> None:
    bars["instrument_id"] = np.where(np.arange(len(bars)) < 3000, 1, 2)
    document = json.loads(json.dumps(series_of(bars, tmp_path).report.as_dict()))

    assert document["rolls"][0]["minute"] == bars.index[3000].isoformat()
    assert document["step_s"] == 60


# --- spacing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "text"), [("5min", "5 minutes"), ("2min", "2 minutes"), ("1h", "1 hour")]
)
def test_bars_of_another_size_are_refused_by_their_size(
    bars: pd.DataFrame, rule: str, text: str, tmp_path: Path
) -> None:
    message = refusal(resampled(bars, rule), tmp_path)
    assert f"1 minute apart, and these are {text} apart" in message


def test_one_second_and_daily_bars_are_refused_by_their_size(
    bars: pd.DataFrame, tmp_path: Path
) -> None:
    seconds = bars.iloc[:900].copy()
    seconds.index = pd.date_range("2024-03-04", periods=900, freq="s", tz="UTC", name="timestamp")
    days = bars.iloc[:300].copy()
    days.index = pd.date_range("2024-03-04", periods=300, freq="D", tz="UTC", name="timestamp")

    assert "1 second apart (899 of 899 steps)" in refusal(seconds, tmp_path)
    assert "1 day apart (299 of 299 steps)" in refusal(days, tmp_path)


@pytest.mark.parametrize("rule", ["5min", "15min", "1h"])
def test_a_change_of_spacing_is_named_with_its_place(
    bars: pd.DataFrame, rule: str, tmp_path: Path
) -> None:
    coarse = resampled(bars.iloc[3000:], rule)
    joined = pd.concat([bars.iloc[:3000], coarse[coarse.index > bars.index[2999]]])

    message = refusal(joined, tmp_path)
    assert "1 minute apart throughout" in message
    assert f"{pd.Timedelta(rule).seconds // 60} minutes" in message or "1 hour" in message
    row = int(message.rsplit("(row ", 1)[1].split(",")[0])
    assert 2999 <= row < 3100


def test_a_late_change_to_a_longer_spacing_is_named_with_its_place(
    bars: pd.DataFrame, tmp_path: Path
) -> None:
    mixed = pd.concat([bars.iloc[:2000], resampled(bars.iloc[2000:], "2min")])
    assert f"from {bars.index[2000]:%Y-%m-%d %H:%M} UTC on" in refusal(mixed, tmp_path)


def test_a_series_with_few_of_its_minutes_is_refused_as_that(
    bars: pd.DataFrame, tmp_path: Path
) -> None:
    thin = bars[np.random.default_rng(0).random(len(bars)) < 0.02]
    assert "the commonest step must be 1 minute, and it is" in refusal(thin, tmp_path)


def test_thin_bars_are_no_other_spacing(bars: pd.DataFrame, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    thin = bars[rng.random(len(bars)) < 0.6]
    assert quiet(series_of(thin, tmp_path))


@given(seconds=st.integers(min_value=1, max_value=10_000_000))
@several
def test_a_step_is_said_in_its_largest_whole_unit(seconds: int) -> None:
    number, unit = step_text(seconds * 10**9).split()
    size = {"day": 86_400, "hour": 3_600, "minute": 60, "second": 1}[unit.rstrip("s")]
    assert int(number) * size == seconds


# --- instruments ----------------------------------------------------------------------------------


def two_contracts(bars: pd.DataFrame, column: str, names: tuple[Any, Any]) -> pd.DataFrame:
    later = bars.copy()
    later[["open", "high", "low", "close"]] += 190.0
    both = pd.concat(
        [bars.assign(**{column: names[0]}), later.iloc[::3].assign(**{column: names[1]})]
    )
    return both.sort_index(kind="stable")


@pytest.mark.parametrize(
    ("column", "names"),
    [
        ("symbol", ("NQH5", "NQM5")),
        ("Ticker", ("AAPL", "MSFT")),
        ("contract", ("202503", "202506")),
        ("instrument_id", (3522, 750)),
    ],
)
def test_several_instruments_are_refused_with_their_rows(
    bars: pd.DataFrame, column: str, names: tuple[Any, Any], tmp_path: Path
) -> None:
    both = two_contracts(bars, column, names)
    message = refusal(both, tmp_path)

    assert f"the column {column} names 2" in message
    assert f"{names[0]} ({len(bars)} rows)" in message
    assert message.endswith(f"--symbol {names[0]}")

    chosen = series_of(both, tmp_path, instrument=str(names[0]))
    np.testing.assert_array_equal(chosen.values[3], bars["close"].to_numpy())
    assert chosen.report.n_other_instruments == len(both) - len(bars)


def test_several_instruments_one_after_the_other_in_the_file_are_refused(
    bars: pd.DataFrame, tmp_path: Path
) -> None:
    stacked = pd.concat([bars.assign(symbol="AAPL"), bars.assign(symbol="MSFT")])
    assert "names 2" in refusal(stacked, tmp_path)

    following = pd.concat(
        [bars.iloc[:3000].assign(symbol="AAPL"), bars.iloc[3000:].assign(symbol="MSFT")]
    )
    assert "names 2" in refusal(following, tmp_path)


def test_an_instrument_that_is_not_there_is_refused_with_those_that_are(
    bars: pd.DataFrame, tmp_path: Path
) -> None:
    both = two_contracts(bars, "symbol", ("NQH5", "NQM5"))
    assert "no rows of NQU5: the column symbol has NQH5, NQM5" in refusal(
        both, tmp_path, instrument="NQU5"
    )


def test_two_contracts_without_a_column_are_noticed(bars: pd.DataFrame, tmp_path: Path) -> None:
    both = two_contracts(bars, "symbol", ("NQH5", "NQM5")).drop(columns="symbol")
    message = refusal(both, tmp_path)
    assert f"a minute must have one bar, and {len(both) - len(bars)} have several" in message
    assert "two contracts in one file?" in message


@pytest.mark.parametrize("pattern", ["in turn", "at random", "in blocks"])
def test_prices_of_two_contracts_in_turn_are_noticed(
    pattern: str, bars: pd.DataFrame, tmp_path: Path
) -> None:
    rows = np.arange(len(bars))
    is_other = {
        "in turn": rows % 2 == 0,
        "at random": np.random.default_rng(1).random(len(bars)) < 0.4,
        "in blocks": rows // 13 % 2 == 0,
    }[pattern]
    bars.loc[is_other, ["open", "high", "low", "close"]] += 190.0

    assert "up and down in turn" in refusal(bars, tmp_path)


def test_bad_prints_are_no_second_contract(bars: pd.DataFrame, tmp_path: Path) -> None:
    bars.iloc[100:5000:1000, :4] += 190.0
    assert quiet(series_of(bars, tmp_path))


# --- rolls ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "names"),
    [
        ("instrument_id", (3522, 750)),
        ("symbol", ("NQH5", "NQM5")),
        ("contract", ("NQ 03-25", "NQ 06-25")),
    ],
)
def test_a_change_of_contract_is_a_roll(
    column: str, names: tuple[Any, Any], bars: pd.DataFrame, tmp_path: Path
) -> None:
    bars[column] = np.where(np.arange(len(bars)) < 3000, *names)
    series = series_of(bars, tmp_path)

    assert np.flatnonzero(series.is_roll).tolist() == [3000]
    (roll,) = series.report.rolls
    assert (roll.minute, roll.before, roll.after) == (
        bars.index[3000],
        str(names[0]),
        str(names[1]),
    )
    assert "the contract rolls at" in series.report.warnings[0]


def test_contracts_that_overlap_are_several(bars: pd.DataFrame, tmp_path: Path) -> None:
    old = bars.iloc[:3010].assign(symbol="NQH5")
    new = bars.iloc[3000:].assign(symbol="NQM5")
    both = pd.concat([old, new]).sort_index(kind="stable")

    message = refusal(both, tmp_path)
    assert "the column symbol names 2" in message
    assert "NQH5 (3010 rows)" in message


def test_a_continuous_series_may_roll_back(bars: pd.DataFrame, tmp_path: Path) -> None:
    day = np.searchsorted([2000, 3000, 4000], np.arange(len(bars)), side="right")
    bars["instrument_id"] = np.array([1, 2, 1, 2])[day]
    bars["symbol"] = "NQ.v.0"

    assert np.flatnonzero(series_of(bars, tmp_path).is_roll).tolist() == [2000, 3000, 4000]


@pytest.mark.parametrize("jump", [190.0, -190.0])
def test_a_jump_to_another_level_inside_a_session_is_a_roll(
    jump: float, bars: pd.DataFrame, tmp_path: Path
) -> None:
    bars.iloc[3000:, :4] += jump
    series = series_of(bars, tmp_path)

    assert np.flatnonzero(series.is_roll).tolist() == [3000]
    assert series.report.rolls[0].reason == "jump"
    assert series.report.rolls[0].jump * jump > 0


def first_after_break(bars: pd.DataFrame, least: str, most: str) -> int:
    """The second row, where there is one, that follows a break of this length."""
    steps = pd.DatetimeIndex(bars.index).to_series().diff()
    rows = np.flatnonzero((steps > pd.Timedelta(least)) & (steps < pd.Timedelta(most)))
    return int(rows[min(1, len(rows) - 1)])


def test_a_jump_over_a_weekend_is_the_markets(bars: pd.DataFrame, tmp_path: Path) -> None:
    bars.iloc[first_after_break(bars, "24h", "72h") :, :4] += 190.0
    assert quiet(series_of(bars, tmp_path))


@pytest.mark.parametrize(("jump", "is_roll"), [(240.0, True), (-240.0, True), (40.0, False)])
def test_a_wide_jump_over_a_daily_halt_is_a_roll(
    jump: float, is_roll: bool, bars: pd.DataFrame, tmp_path: Path
) -> None:
    row = first_after_break(bars, "30min", "2h")
    bars.iloc[row:, :4] += jump

    series = series_of(bars, tmp_path)
    assert np.flatnonzero(series.is_roll).tolist() == ([row] if is_roll else [])


def test_a_wide_jump_into_wide_bars_is_news(bars: pd.DataFrame, tmp_path: Path) -> None:
    row = first_after_break(bars, "30min", "2h")
    bars.iloc[row:, :4] += 240.0
    bars.iloc[row : row + 20, 1] += 20.0
    assert quiet(series_of(bars, tmp_path))


def test_a_fast_bar_is_no_roll(bars: pd.DataFrame, tmp_path: Path) -> None:
    bars.iloc[3001:, :4] += 190.0
    bars.iloc[3000, [1, 3]] += 190.0
    assert quiet(series_of(bars, tmp_path))


# --- what is reported -----------------------------------------------------------------------------


def test_bars_stamped_at_their_close_are_noticed(bars: pd.DataFrame, tmp_path: Path) -> None:
    late = bars.copy()
    late.index = late.index + pd.Timedelta(minutes=1)
    series = series_of(late, tmp_path)

    assert series.report.stamped_at_close
    assert "layout.stamp=close" in series.report.warnings[0]
    assert quiet(series_of(late, tmp_path, stamp="open"))
    mended = series_of(late, tmp_path, stamp="close")
    assert quiet(mended)
    np.testing.assert_array_equal(mended.times, pd.DatetimeIndex(bars.index).as_unit("ns").asi8)


def test_a_first_minute_without_a_trade_is_no_stamp(bars: pd.DataFrame, tmp_path: Path) -> None:
    first = np.diff(pd.DatetimeIndex(bars.index).as_unit("ns").asi8, prepend=0) > 30 * 60 * 10**9
    assert not series_of(bars[~first], tmp_path).report.stamped_at_close


@pytest.mark.parametrize("volume", [0.0, np.nan, None])
def test_filled_closed_hours_are_reported_and_can_be_left_out(
    volume: float | None, bars: pd.DataFrame, tmp_path: Path
) -> None:
    filled = bars.resample("min").asfreq()
    last = filled["close"].ffill()
    for name in ("open", "high", "low", "close"):
        filled[name] = filled[name].fillna(last)
    if volume is None:
        filled = filled.drop(columns="volume")
        bars = bars.drop(columns="volume")
    else:
        filled["volume"] = filled["volume"].fillna(volume)

    series = series_of(filled, tmp_path)
    assert len(series.times) == len(filled)
    total = sum(run.n_bars for run in series.report.filler_runs)
    assert total == len(filled) - len(bars)
    assert "without a trade" in series.report.warnings[0]

    left = series_of(filled, tmp_path, "leave_out")
    np.testing.assert_array_equal(left.values[3], bars["close"].to_numpy())
    assert left.report.fillers_left_out


def test_a_quiet_stretch_is_no_filler(bars: pd.DataFrame, tmp_path: Path) -> None:
    price = bars["close"].iloc[999]
    bars.iloc[1000:1020, :4] = price
    bars.iloc[1000:1020, 4] = 0
    assert not series_of(bars, tmp_path).report.filler_runs


@pytest.mark.parametrize("volume", ["repeated", "zero", "none"])
def test_bars_that_are_carried_forward_are_fillers(
    volume: str, bars: pd.DataFrame, tmp_path: Path
) -> None:
    filled = bars.resample("min").asfreq()
    was_closed = filled["close"].isna()
    filled = filled.ffill()
    if volume == "zero":
        filled.loc[was_closed, "volume"] = 0
    if volume == "none":
        filled = filled.drop(columns="volume")

    series = series_of(filled, tmp_path, "leave_out")
    assert len(series.times) == len(bars)
    assert sum(run.n_bars for run in series.report.filler_runs) == was_closed.sum()


def test_a_pinned_price_with_trades_is_no_filler(bars: pd.DataFrame, tmp_path: Path) -> None:
    bars.iloc[1000:1060, :4] = bars["close"].iloc[999]
    bars.iloc[1000:1060, 4] = 7
    assert not series_of(bars, tmp_path).report.filler_runs


def test_rows_without_prices_are_pauses(bars: pd.DataFrame, tmp_path: Path) -> None:
    gaps = bars.resample("min").asfreq()
    series = series_of(gaps, tmp_path)

    assert series.report.n_pauses == len(gaps) - len(bars)
    np.testing.assert_array_equal(series.values[0], bars["open"].to_numpy())
    assert series.loaded_row(len(bars) - 1) == len(gaps) - 1


def test_a_row_with_some_prices_is_no_pause(bars: pd.DataFrame, tmp_path: Path) -> None:
    bars.iloc[50, 0] = np.nan
    bars.iloc[60, :4] = np.nan
    assert len(series_of(bars, tmp_path).times) == len(bars)


def test_rows_that_say_the_same_count_once(bars: pd.DataFrame, tmp_path: Path) -> None:
    twice = pd.concat([bars.iloc[:300], bars.iloc[200:], bars.iloc[250:260]])
    series = series_of(twice, tmp_path)

    assert series.report.n_repeats == 110
    np.testing.assert_array_equal(series.times, pd.DatetimeIndex(bars.index).as_unit("ns").asi8)


def test_rows_that_differ_are_both_kept_for_the_rules(bars: pd.DataFrame, tmp_path: Path) -> None:
    other = bars.iloc[[70]].assign(close=bars["close"].iloc[70] + 0.25)
    both = pd.concat([bars.iloc[:71], other, bars.iloc[71:]])
    assert len(series_of(both, tmp_path).times) == len(bars) + 1


@pytest.mark.parametrize("value", [-1.0, np.inf, np.nan])
def test_a_volume_that_is_odd_throughout_is_none(
    value: float, bars: pd.DataFrame, tmp_path: Path
) -> None:
    bars.loc[bars.index[::2], "volume"] = value
    series = series_of(bars, tmp_path)

    assert len(series.values) == 4
    assert series.report.volume_left_out
    assert "volumes are no numbers of at least 0" in series.report.warnings[0]


def test_a_volume_without_a_number_is_told(bars: pd.DataFrame, tmp_path: Path) -> None:
    odd = bars.astype({"volume": object})
    odd["volume"] = "-"
    series = series_of(odd, tmp_path)

    assert len(series.values) == 4
    assert series.report.n_odd_volumes == len(bars)
    assert "the column is left out" in series.report.warnings[0]


def test_a_few_odd_volumes_count_as_nothing(bars: pd.DataFrame, tmp_path: Path) -> None:
    bars.iloc[[5, 70], 4] = [-3.0, np.nan]
    series = series_of(bars, tmp_path)

    assert series.report.n_odd_volumes == 2
    assert series.values[4, [5, 70]].tolist() == [0.0, 0.0]


@given(data=st.data())
@several
def test_what_is_left_out_is_exactly_what_was_put_in(data: st.DataObject, tmp_path: Path) -> None:
    frame = market().iloc[:600]
    rows = data.draw(st.lists(st.integers(0, 599), max_size=30, unique=True))
    empty = frame.iloc[rows].assign(
        open=np.nan, high=np.nan, low=np.nan, close=np.nan, volume=np.nan
    )
    empty.index = empty.index + pd.Timedelta(days=400)
    repeated = frame.iloc[data.draw(st.lists(st.integers(0, 599), max_size=30))]

    series = series_of(pd.concat([frame, empty, repeated]), tmp_path)
    assert series.report.n_pauses == len(empty)
    assert series.report.n_repeats == len(repeated)
    np.testing.assert_array_equal(series.values[:4], frame.iloc[:, :4].to_numpy().T)
