"""Bars in: every spelling of the same bars reads equal; a broken rule is refused.

A refusal names the rule, the value and the place.
"""

import io
import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moola import WINDOW
from moola.data.bar_rules import RULES
from moola.data.bars import Bars, read_bars, write_bars
from moola.errors import DataError
from moola.features import compute_features
from tests.shared import shared

START = "2023-11-20 14:00"
several = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def good_bars(n: int = 200, start: str = START, tz: str | None = "UTC") -> pd.DataFrame:
    """Prices on a tick of 0.25, so that every type of number holds them exactly."""
    rng = np.random.default_rng(7)
    open_, close = 4500 + rng.integers(-40, 40, (2, n)) / 4
    frame = pd.DataFrame(
        {
            "open": open_,
            "high": np.maximum(open_, close) + 0.5,
            "low": np.minimum(open_, close) - 0.25,
        }
    )
    frame["close"], frame["volume"] = close, rng.integers(0, 900, n).astype(float)
    frame.index = pd.date_range(start, periods=n, freq="min", tz=tz, name="timestamp").as_unit("ns")
    return frame


def as_parquet(frame: pd.DataFrame, folder: Path, **options: Any) -> Path:
    path = folder / "nq.parquet"
    frame.to_parquet(path, **options)
    return path


def as_csv(frame: pd.DataFrame, folder: Path, name: str = "nq.csv", **options: Any) -> Path:
    path = folder / name
    frame.to_csv(path, **options)
    return path


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_bars(path, **options)
    return str(caught.value)


def assert_reads(path: Path, frame: pd.DataFrame, **options: Any) -> Bars:
    bars = read_bars(path, **options)
    pd.testing.assert_frame_equal(bars.frame, frame, check_freq=False, check_exact=True)
    return bars


# --- the same bars, however they are written ------------------------------------------------------

NUMBERS = {
    "float32": pa.float32(),
    "float64": pa.float64(),
    "int64": pa.int64(),
    "uint16": pa.uint16(),
    "decimal128": pa.decimal128(12, 2),
    "decimal256": pa.decimal256(40, 5),
}


@several
@given(
    number=st.sampled_from(sorted(NUMBERS)),
    unit=st.sampled_from(["s", "ms", "us", "ns"]),
    zone=st.sampled_from(["UTC", "America/New_York", "Asia/Kolkata", "+05:30", None]),
    time_name=st.sampled_from(["timestamp", "Datetime", "TS_EVENT"]),
    case=st.sampled_from([str.lower, str.upper, str.title]),
    row_group_size=st.integers(1, 300),
    volume=st.booleans(),
    order=st.permutations(range(7)),
)
def test_bars_read_equal_however_a_parquet_file_spells_them(
    tmp_path: Path,
    number: str,
    unit: str,
    zone: str | None,
    time_name: str,
    case: Any,
    row_group_size: int,
    volume: bool,
    order: list[int],
) -> None:
    frame = good_bars()
    if "int" in number:
        frame = frame.round()
    if not volume:
        frame = frame.drop(columns="volume")
    columns = {case(name): pa.array(frame[name]).cast(NUMBERS[number]) for name in frame}
    local = (
        frame.index.tz_convert("America/New_York").tz_localize(None)
        if zone is None
        else frame.index
    )
    columns[time_name] = (
        pa.array(local).cast(pa.timestamp("ns", zone)).cast(pa.timestamp(unit, zone))
    )
    columns["symbol"] = pa.array(["NQ"] * len(frame))
    names = [list(columns)[i] for i in order if i < len(columns)]
    pq.write_table(
        pa.table({n: columns[n] for n in names}),
        tmp_path / "nq.parquet",
        row_group_size=row_group_size,
    )
    assert_reads(
        tmp_path / "nq.parquet", frame, timezone="America/New_York" if zone is None else None
    )


@several
@given(
    zone=st.sampled_from(["UTC", "America/New_York", "Asia/Kolkata", None]),
    time_format=st.sampled_from(["%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S.000"]),
    case=st.sampled_from([str.lower, str.upper]),
    name=st.sampled_from(["nq.csv", "nq.csv.gz", "NQ.txt"]),
    ending=st.sampled_from(["\n", "\r\n"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig"]),
)
def test_bars_read_equal_however_a_csv_file_spells_them(
    tmp_path: Path,
    zone: str | None,
    time_format: str,
    case: Any,
    name: str,
    ending: str,
    encoding: str,
) -> None:
    frame = good_bars()
    local = frame.index.tz_convert(zone or "America/New_York")
    written = frame.rename(columns=case)
    written.index = local.strftime(time_format + ("%z" if zone else "")).rename("ts_event")
    path = as_csv(written, tmp_path, name, lineterminator=ending, encoding=encoding)
    assert_reads(path, frame, timezone=None if zone else "America/New_York")


@pytest.mark.parametrize("name", ["timestamp", "Date", None])
def test_the_pandas_index_is_the_time_whatever_its_name(tmp_path: Path, name: str | None) -> None:
    frame = good_bars()
    assert_reads(as_parquet(frame.rename_axis(name), tmp_path), frame)


def test_a_csv_index_without_a_name_is_the_time(tmp_path: Path) -> None:
    frame = good_bars()
    assert_reads(as_csv(frame.rename_axis(None), tmp_path), frame)
    assert_reads(
        as_csv(frame.reset_index(), tmp_path), frame
    )  # here the nameless column is a count of rows


def test_decimals_read_as_the_nearest_float(tmp_path: Path) -> None:
    texts = [f"{price / 100:.2f}" for price in range(451_000, 452_000)]
    frame = good_bars(len(texts))
    decimals = pa.array([Decimal(text) for text in texts])
    columns = {"timestamp": frame.index} | dict.fromkeys(("open", "high", "low", "close"), decimals)
    pq.write_table(pa.table(columns), tmp_path / "nq.parquet")
    assert read_bars(tmp_path / "nq.parquet").frame["close"].tolist() == [
        float(text) for text in texts
    ]


def test_daylight_saving_moves_naive_times_by_hand_worked_hours(tmp_path: Path) -> None:
    winter = pd.date_range("2023-03-12 01:00", "2023-03-12 01:59", freq="min")  # UTC - 5 hours
    summer = pd.date_range("2023-03-12 03:00", "2023-03-12 03:59", freq="min")  # UTC - 4 hours
    frame = good_bars(120).set_axis(winter.append(summer))
    bars = read_bars(as_parquet(frame, tmp_path), timezone="America/New_York")
    assert str(bars.frame.index[0]) == "2023-03-12 06:00:00+00:00"
    assert str(bars.frame.index[-1]) == "2023-03-12 07:59:00+00:00"
    assert bars.report.gaps.count == 0


def test_written_bars_read_back_equal_and_the_same_frame_gives_the_same_bytes(
    tmp_path: Path,
) -> None:
    frame = good_bars()
    buffers = [io.BytesIO(), io.BytesIO(), io.BytesIO()]
    write_bars(frame, buffers[0])
    write_bars(frame.tz_convert("Asia/Tokyo").astype("float32").copy(), buffers[1])
    write_bars(
        frame.assign(close=frame["close"].where(frame["close"] != frame["close"].iloc[3], 4501)),
        buffers[2],
    )
    assert buffers[0].getvalue() == buffers[1].getvalue() != buffers[2].getvalue()
    write_bars(frame, tmp_path / "written.parquet")
    assert (tmp_path / "written.parquet").read_bytes() == buffers[0].getvalue()
    assert_reads(tmp_path / "written.parquet", frame)
    with pytest.raises(DataError, match="must be indexed by times with a zone, got datetime64"):
        write_bars(frame.tz_localize(None), io.BytesIO())


# --- rows that break a rule -----------------------------------------------------------------------

FAULTS: dict[str, tuple[str, dict[str, float], str]] = {  # id: (rule, what the row gets, message)
    "high < low": (
        "high_below_low",
        {"high": 10.25, "low": 11.0},
        "high must be >= low: high 10.25 < low 11.0",
    ),
    "open": (
        "open_outside_range",
        {"open": 9e3},
        "open must lie in [low, high]: open 9000.0 not in [",
    ),
    "close": (
        "close_outside_range",
        {"close": 1.5},
        "close must lie in [low, high]: close 1.5 not in [",
    ),
    "zero": (
        "price_zero",
        {"low": 0.0},
        "a price of 0 must not stand for a missing one: low 0.0",
    ),
    "infinite": ("price_not_finite", {"high": np.inf}, "prices must be finite: high inf"),
    "minus infinite": ("price_not_finite", {"low": -np.inf}, "prices must be finite: low -inf"),
    "huge": ("price_not_finite", {"high": 1e301}, "prices must be finite: high 1e+301"),
    "null": ("price_not_finite", {"close": np.nan}, "prices must be finite: close nan"),
}
TIME_FAULTS = {  # id: (rule, minutes by which the row is moved, message)
    "steps back": (
        "time_not_increasing",
        -2.0,
        "bars must be in time order: {now} UTC follows {before} UTC",
    ),
    "duplicate": (
        "duplicate_minute",
        -1.0,
        "a minute must have one bar: {now} UTC follows {before} UTC",
    ),
    "seconds": ("time_not_whole_minute", 0.5, "a bar must open on a whole minute: {seconds}"),
}


def with_fault(frame: pd.DataFrame, fault: str, row: int) -> tuple[pd.DataFrame, str, str]:
    """(frame with one broken row, rule, the message that must open with)."""
    frame = frame.copy()
    if fault in FAULTS:
        rule, values, message = FAULTS[fault]
        frame.loc[frame.index[row], list(values)] = list(values.values())
        return frame, rule, message
    rule, minutes, message = TIME_FAULTS[fault]
    times = frame.index.to_series().reset_index(drop=True)
    times[row] += pd.Timedelta(minutes=minutes)
    frame.index = pd.DatetimeIndex(times, name="timestamp")
    now, before = (f"{times[i]:%Y-%m-%d %H:%M}" for i in (row, row - 1))
    return frame, rule, message.format(now=now, before=before, seconds=times[row])


def dropping(path: Path) -> str:
    """The command that a message about a few bad rows ends with."""
    return f"moola precompute --bars {path} --on-bad-bars drop"


@pytest.mark.parametrize("fault", [*FAULTS, *TIME_FAULTS])
@settings(several, max_examples=8)
@given(row=st.integers(2, 199), row_group_size=st.integers(1, 200), text=st.booleans())
def test_a_bad_row_is_refused_by_rule_value_row_and_file_or_dropped(
    tmp_path: Path, fault: str, row: int, row_group_size: int, text: bool
) -> None:
    clean = good_bars()
    frame, rule, expected = with_fault(clean, fault, row)
    path = (
        as_csv(frame, tmp_path)
        if text
        else as_parquet(frame, tmp_path, row_group_size=row_group_size)
    )
    message = refusal(path)
    assert message.startswith(expected)
    place = f" (row {row}, {frame.index[row]:%Y-%m-%d %H:%M} UTC, {path.name})"
    assert message.endswith(f"{place}; without it: {dropping(path)}")

    bars = read_bars(path, on_bad_bars="drop")  # the twin: the same file without that row is good
    pd.testing.assert_frame_equal(bars.frame, clean.drop(clean.index[row]), check_freq=False)
    assert bars.report.dropped == {rule: 1}
    assert bars.report.dropped_minutes == (frame.index[row],)
    assert np.flatnonzero(bars.flagged).tolist() == (
        [row] if row < 199 else []
    )  # the bar that now stands there


def test_every_rule_has_a_fault_that_breaks_it() -> None:
    broken = {fault[0] for fault in (*FAULTS.values(), *TIME_FAULTS.values())}
    assert broken | {"time_missing"} == set(RULES)


def test_the_refusal_reads_like_the_documented_one(tmp_path: Path) -> None:
    frame = good_bars()
    frame.iloc[2, :4] = 4511.0, 4510.25, 4511.0, 4510.25
    expected = (
        "high must be >= low: high 4510.25 < low 4511.0 (row 2, 2023-11-20 14:02 UTC, nq.parquet)"
    )
    path = as_parquet(frame, tmp_path)
    assert refusal(path) == f"{expected}; without it: {dropping(path)}"


def test_a_missing_time_is_refused_or_counted(tmp_path: Path) -> None:
    frame = good_bars().reset_index()
    frame.loc[150, "timestamp"] = pd.NaT
    path = as_parquet(frame, tmp_path)
    expected = "every bar must have a time: the time is null (row 150, no time, nq.parquet)"
    assert refusal(path) == f"{expected}; without it: {dropping(path)}"
    report = read_bars(path, on_bad_bars="drop").report
    assert (report.dropped, report.dropped_minutes) == ({"time_missing": 1}, ())


def test_several_faults_are_counted_per_rule_after_the_first(tmp_path: Path) -> None:
    frame = good_bars()
    frame.iloc[[50, 60, 61], 2] = 0.0
    frame.iloc[70, 0] = 1.0
    message = refusal(as_parquet(frame, tmp_path))
    assert message.startswith("a price of 0 must not stand for a missing one: low 0.0 (row 50, ")
    assert message.endswith("; 3 more bad rows: price_zero 2, open_outside_range 1")


def test_two_bad_rows_next_to_each_other_are_two(tmp_path: Path) -> None:
    frame = good_bars()
    frame.iloc[[50, 51], 2] = 0.0
    message = refusal(as_parquet(frame, tmp_path))
    assert message.startswith("a price of 0 must not stand for a missing one: low 0.0 (row 50, ")
    assert "; 1 more bad rows: price_zero 1; without them: " in message


def test_a_bar_may_open_or_close_at_its_end_and_have_no_range(tmp_path: Path) -> None:
    frame = good_bars()
    frame.iloc[50, :4] = 4500.0, 4502.0, 4500.0, 4502.0  # opens at the low, closes at the high
    frame.iloc[51, :4] = 4502.0, 4502.0, 4500.0, 4500.0
    frame.iloc[52, :4] = 4500.0
    assert_reads(as_parquet(frame, tmp_path), frame)


def test_a_row_that_jumps_ahead_is_kept_only_if_it_is_good(tmp_path: Path) -> None:
    """A bad row must not make the good ones after it look late."""
    frame = good_bars()
    frame.iloc[50, 2] = -np.inf
    times = frame.index.to_series().reset_index(drop=True)
    times[50] += pd.Timedelta(days=900)
    frame.index = pd.DatetimeIndex(times, name="timestamp")
    report = read_bars(as_parquet(frame, tmp_path), on_bad_bars="drop").report
    assert report.dropped == {"price_not_finite": 1}


def test_every_row_up_to_the_latest_time_so_far_steps_back(tmp_path: Path) -> None:
    frame = good_bars(300)
    order = [*range(100), 20, 21, *range(102, 300)]  # 21 follows 20, yet both come after 99
    mixed = frame.iloc[order]
    mixed.iloc[[100, 101], 4] += 1.0  # rows that said the same would count once
    bars = read_bars(as_parquet(mixed, tmp_path), on_bad_bars="drop")
    assert bars.report.dropped == {"time_not_increasing": 2}
    assert bars.frame.index.equals(frame.index.delete([100, 101]))


def test_of_a_duplicate_minute_the_first_row_stays(tmp_path: Path) -> None:
    frame = good_bars()
    twice = pd.concat([frame.iloc[:51], frame.iloc[50:] + 1.0])
    twice.index = frame.index[:51].append(frame.index[50:])
    bars = read_bars(as_parquet(twice.rename_axis("timestamp"), tmp_path), on_bad_bars="drop")
    assert bars.frame["close"].iloc[50] == frame["close"].iloc[50]
    assert bars.frame["close"].iloc[51] == frame["close"].iloc[51] + 1.0


@pytest.mark.parametrize(("n_bad", "passes"), [(2, True), (3, False)])
def test_more_than_one_percent_dropped_fails_all_the_same(
    tmp_path: Path, n_bad: int, passes: bool
) -> None:
    frame = good_bars(200)
    frame.iloc[20 : 20 + n_bad, 3] = 1.0
    path = as_parquet(frame, tmp_path)
    if passes:
        bars = read_bars(path, on_bad_bars="drop")
        assert bars.report.n_bars == 198
        assert np.flatnonzero(bars.flagged).tolist() == [20]
    else:
        message = refusal(path, on_bad_bars="drop")
        assert (
            "at most 1% of the rows may be dropped (max_dropped_fraction): 3 of 200 (1.50%) are "
            "bad: close_outside_range 3; the first:" in message
        )
        assert "close 1.0 not in [" in message
        assert "(row 20, 2023-11-20 14:20 UTC, nq.parquet)" in message
        more = read_bars(path, on_bad_bars="drop", max_dropped_fraction=0.015)
        assert more.report.n_bars == 197


def test_a_window_of_bars_is_the_least(tmp_path: Path) -> None:
    assert_reads(as_parquet(good_bars(WINDOW), tmp_path), good_bars(WINDOW))
    path = as_parquet(good_bars(WINDOW - 1), tmp_path)
    assert refusal(path) == "a file must hold at least 105 good bars, got 104 (nq.parquet)"


def test_a_header_alone_is_no_file_of_bars(tmp_path: Path) -> None:
    assert "a file must hold bars, and this one has a header only: 'timestamp,open" in refusal(
        as_csv(good_bars().iloc[:0], tmp_path), timezone="UTC"
    )


# --- of any sign and size -------------------------------------------------------------------------

PRICES = ["open", "high", "low", "close"]


@pytest.mark.parametrize("change", ["below zero", "through zero", "tiny", "huge"])
def test_prices_of_any_sign_and_size_are_prices(change: str, tmp_path: Path) -> None:
    frame = good_bars()
    prices = frame[PRICES]
    moved = {
        "below zero": prices - 18_500.0,
        "through zero": prices - frame["close"].iloc[100],
        "tiny": prices * 2.0**-40,
        "huge": prices * 2.0**600,
    }
    frame[PRICES] = moved[change]
    assert_reads(as_parquet(frame, tmp_path), frame)


def test_features_of_prices_that_were_moved_are_the_same_bits(tmp_path: Path) -> None:
    """Back-adjusted contracts go below zero."""
    frame = good_bars(400)
    rows = compute_features(read_bars(as_parquet(frame, tmp_path)).frame)
    frame[PRICES] -= 18_500.0
    moved = compute_features(read_bars(as_parquet(frame, tmp_path)).frame)
    np.testing.assert_array_equal(rows, moved)


def test_bars_filled_with_zeros_are_refused_and_those_that_go_through_zero_are_not(
    tmp_path: Path,
) -> None:
    frame = good_bars()
    frame.iloc[[0, 40, 41, 199], :4] = 0.0
    message = refusal(as_parquet(frame, tmp_path))
    assert "a price of 0 must not stand for a missing one: open 0.0 (row 0, " in message
    assert message.endswith("; 3 more bad rows: price_zero 3")

    oil = good_bars()
    oil[PRICES] = (oil[PRICES] - oil["close"].iloc[100]) / 100
    oil.iloc[100, :4] = 0.0
    assert_reads(as_parquet(oil, tmp_path), oil)


# --- rolls, sessions, several files ---------------------------------------------------------------


def rolled(n_bars: int = 400, row: int = 200) -> pd.DataFrame:
    frame = good_bars(n_bars)
    frame["instrument_id"] = np.where(np.arange(n_bars) < row, 3522, 750)
    return frame


def test_the_first_bar_of_a_contract_is_flagged(tmp_path: Path) -> None:
    bars = read_bars(as_parquet(rolled(), tmp_path))
    assert np.flatnonzero(bars.flagged).tolist() == [200]
    assert bars.as_dict()["series"]["rolls"][0]["minute"] == bars.frame.index[200].isoformat()
    assert not read_bars(as_parquet(good_bars(400), tmp_path)).flagged.any()


@pytest.mark.parametrize("bad", [199, 200])
def test_a_bad_bar_beside_a_roll_hides_it_not(bad: int, tmp_path: Path) -> None:
    frame = rolled()
    frame.iloc[bad, 3] = 1.0
    bars = read_bars(as_parquet(frame, tmp_path), on_bad_bars="drop")
    assert np.flatnonzero(bars.flagged).tolist() == [bad if bad == 199 else 200]
    assert bars.frame.index[np.flatnonzero(bars.flagged)[0]] == frame.index[max(bad + 1, 200)]


def test_pauses_and_repeats_are_no_bad_bars(tmp_path: Path) -> None:
    frame = good_bars(400)
    frame.iloc[50:60, :] = np.nan
    doubled = pd.concat([frame, frame.iloc[100:130]])
    bars = read_bars(as_parquet(doubled, tmp_path))
    assert bars.report.n_bars == 390
    assert bars.report.dropped == {}
    assert not bars.flagged.any()
    assert len(bars.series.warnings) == 2


def test_rows_of_messages_are_those_of_their_file(tmp_path: Path) -> None:
    """Newest first, or one of several files: where a person would look."""
    frame = good_bars(400)
    frame.iloc[350, 3] = 1.0
    newest_first = as_csv(frame[::-1], tmp_path)
    assert "(row 49, 2023-11-20 19:50 UTC, nq.csv)" in refusal(newest_first)

    folder = tmp_path / "parts"
    folder.mkdir()
    frame.iloc[:300].to_parquet(folder / "b.parquet")
    frame.iloc[300:].to_parquet(folder / "a.parquet")
    assert "(row 50, 2023-11-20 19:50 UTC, a.parquet)" in refusal(folder)

    frame.iloc[::2].to_parquet(folder / "a.parquet")
    frame.iloc[1::2].to_parquet(folder / "b.parquet")
    assert "(row 175, 2023-11-20 19:50 UTC, a.parquet)" in refusal(folder)


# --- files that are refused before a row is read --------------------------------------------------


def assert_refused(path: Path, *parts: str, timezone: str | None = None) -> None:
    message = refusal(path, timezone=timezone)
    for part in (*parts, path.name):
        assert part in message


@pytest.mark.parametrize("write", [as_parquet, as_csv])
def test_wrong_columns_are_refused(tmp_path: Path, write: Any) -> None:
    frame = good_bars()
    assert_refused(
        write(frame.drop(columns=["low", "close"]).assign(a=1.0, b=1.0), tmp_path),
        "missing column low and close: found",
    )
    counted = frame.reset_index(drop=True)
    assert_refused(
        write(counted, tmp_path),
        "missing column time: found",
    )
    assert_refused(
        write(frame.assign(Open=1.0), tmp_path),
        "a column must occur once in any case, found open and Open",
    )


def test_numbers_and_times_as_text_are_read(tmp_path: Path) -> None:
    frame = good_bars()
    text = frame.assign(low=frame["low"].map(str))
    assert_reads(as_parquet(text, tmp_path), frame)
    numbers = frame.reset_index()
    numbers["timestamp"] = numbers["timestamp"].astype("int64")
    assert_reads(as_parquet(numbers, tmp_path), frame)
    assert_reads(as_csv(numbers, tmp_path, index=False), frame)


def test_words_and_dates_that_may_be_swapped_are_refused(tmp_path: Path) -> None:
    frame = good_bars()
    flags = frame.assign(low=True)
    assert_refused(as_parquet(flags, tmp_path), "low", "bool")
    words = frame.rename(lambda time: f"{time:%d/%m/%Y %H:%M}").rename_axis("timestamp")
    assert_refused(
        as_csv(words, tmp_path),
        "day and month must not be guessed: 20/11/2023 14:00 needs time_format",
        timezone="UTC",
    )


def test_the_zone_rule(tmp_path: Path) -> None:
    naive = good_bars(tz=None)
    for path in (as_parquet(naive, tmp_path), as_csv(naive, tmp_path)):
        assert_refused(
            path, "the times must have a zone, and these are naive: set timezone: to theirs"
        )
        with pytest.raises(
            DataError,
            match="timezone must be an IANA name such as America/New_York, got 'New York'",
        ):
            read_bars(path, timezone="New York")
        for folder in ("America", "../UTC", ""):
            assert "timezone must be an IANA name" in refusal(path, timezone=folder)
    aware = good_bars()
    for path in (as_parquet(aware, tmp_path), as_csv(aware, tmp_path)):
        assert_refused(
            path,
            "timezone is for naive times: America/New_York given, but the times are in UTC already",
            timezone="America/New_York",
        )
        assert_reads(path, aware, timezone="UTC")
    mixed = "\n".join(as_csv(aware, tmp_path).read_text().splitlines()).replace(
        "14:40:00+00:00", "14:40:00"
    )
    (tmp_path / "nq.csv").write_text(mixed)
    assert_refused(tmp_path / "nq.csv", "row 40", "2023-11-20 14:40:00 does not state its zone")


@pytest.mark.parametrize("on_bad_bars", ["fail", "drop"])
@pytest.mark.parametrize(
    ("start", "row", "what"),
    [
        ("2023-11-05 00:30", 30, "2023-11-05 01:00:00 happens twice (clocks go back)"),
        ("2023-03-12 01:50", 10, "2023-03-12 02:00:00 is skipped (clocks go forward)"),
    ],
)
def test_times_that_daylight_saving_breaks_are_refused(
    tmp_path: Path, start: str, row: int, what: str, on_bad_bars: str
) -> None:
    path = as_parquet(good_bars(start=start, tz=None), tmp_path, row_group_size=7)
    expected = (
        f"a naive time must exist once in its zone: {what} in America/New_York "
        f"(row {row}, nq.parquet)"
    )
    assert refusal(path, timezone="America/New_York", on_bad_bars=on_bad_bars) == expected
    assert (
        read_bars(path, timezone="Asia/Tokyo").report.n_bars == 200
    )  # Tokyo has no daylight saving


@pytest.mark.parametrize("write", [as_parquet, as_csv])
def test_rows_are_counted_over_the_whole_file(tmp_path: Path, write: Any) -> None:
    """46 days of 1440 minutes after the start: far beyond the first batch."""
    frame = good_bars(70_000, start="2023-09-20 01:00", tz=None)
    path = write(frame, tmp_path)
    assert "2023-11-05 01:00:00 happens twice" in (
        message := refusal(path, timezone="America/New_York")
    )
    assert f"(row 66240, {path.name})" in message
    assert_reads(path, frame.tz_localize("UTC"), timezone="UTC")
    frame.iloc[69_000, 2] = 0.0
    assert "(row 69000, " in refusal(write(frame, tmp_path), timezone="UTC")


def test_broken_files_are_refused(tmp_path: Path) -> None:
    path = as_csv(good_bars(), tmp_path)
    lines = path.read_text().splitlines()
    for broken, parts in {
        "\n".join([*lines[:43], lines[43] + ",1", *lines[44:]]): (
            "row 42",
            "a row must have 6 columns like the others",
        ),
        "\n".join([*lines[:43], lines[43].rsplit(",", 1)[0], *lines[44:]]): (
            "row 42",
            "a row must have 6 columns like the others",
        ),
        "\n".join([*lines[:43], re.sub(",[^,]*,", ",abc,", lines[43], count=1)]): (
            "row 42",
            "open is 'abc'",
        ),
        "": ("a file must hold bars, and this one is empty",),
        "no bars here\n": ("a table of bars must have a time and four prices",),
    }.items():
        path.write_text(broken)
        assert_refused(path, *parts)
    path.write_bytes(b"\x00\xff\xfe\x80" * 99)
    assert_refused(path, "this is a binary file of a kind that is not known here")
    whole = as_parquet(good_bars(), tmp_path).read_bytes()
    for part in (whole[: len(whole) // 2], b"PAR1"):
        (tmp_path / "nq.parquet").write_bytes(part)
        assert_refused(tmp_path / "nq.parquet", "bars must be readable parquet or CSV")
    assert_refused(tmp_path / "absent.parquet", "bars must be a file, and there is none at")
    (tmp_path / "empty").mkdir()
    assert_refused(tmp_path / "empty", "must hold files of bars, and holds none")


def test_times_beyond_nanoseconds_are_refused(tmp_path: Path) -> None:
    frame = good_bars()
    columns = {name: pa.array(frame[name]) for name in frame}
    columns["timestamp"] = pa.array(frame.index.asi8 // 10**9 + 40_000_000_000).cast(
        pa.timestamp("s", "UTC")
    )
    pq.write_table(pa.table(columns), tmp_path / "nq.parquet")
    assert "out of bounds" in refusal(tmp_path / "nq.parquet")


def test_damage_inside_a_parquet_file_is_refused(tmp_path: Path) -> None:
    path = as_parquet(good_bars(2000), tmp_path)
    content = bytearray(path.read_bytes())
    content[200:2000] = bytes(1800)
    path.write_bytes(content)
    assert "bars must be readable parquet or CSV" in refusal(path)


# --- the report -----------------------------------------------------------------------------------


def test_gaps_are_counted_as_worked_out_by_hand(tmp_path: Path) -> None:
    frame = good_bars(200)
    minutes = np.arange(200)
    minutes[50:] += 1  # one minute absent: 2 minutes from bar to bar
    minutes[90:] += 28  # 29 minutes from bar to bar: not yet a session break
    minutes[120:] += 29  # 30 minutes
    minutes[150:] += 99  # 100 minutes
    frame.index = (pd.Timestamp(START, tz="UTC") + pd.to_timedelta(minutes, unit="min")).rename(
        "timestamp"
    )
    report = read_bars(as_parquet(frame, tmp_path)).report
    assert report.as_dict() == {
        "n_bars": 200,
        "first": "2023-11-20T14:00:00+00:00",
        "last": "2023-11-20T19:56:00+00:00",
        "dropped": {},
        "dropped_minutes": [],
        "gaps": {
            "count": 4,
            "longest_minutes": 100,
            "longest_after": "2023-11-20T17:27:00+00:00",
            "session_breaks": 2,
        },
        "has_volume": True,
    }


def test_of_two_longest_gaps_the_first_is_reported(tmp_path: Path) -> None:
    frame = good_bars(200)
    minutes = np.arange(200) + 9 * (np.arange(200) >= 50) + 9 * (np.arange(200) >= 90)
    times = pd.Timestamp(START, tz="UTC") + pd.to_timedelta(minutes, unit="min")
    frame.index = times.rename("timestamp")
    gaps = read_bars(as_parquet(frame, tmp_path)).report.gaps
    assert (gaps.count, gaps.longest_minutes, gaps.longest_after) == (2, 10, times[49])


def test_the_report_is_ready_for_json_with_and_without_faults(tmp_path: Path) -> None:
    frame = good_bars(200)
    assert read_bars(as_parquet(frame, tmp_path)).report.as_dict()["gaps"]["longest_after"] is None
    frame.iloc[9, 2] = 0.0
    message = json.loads(
        json.dumps(read_bars(as_parquet(frame, tmp_path), on_bad_bars="drop").report.as_dict())
    )
    assert message["dropped"] == {"price_zero": 1}
    assert message["dropped_minutes"] == ["2023-11-20T14:09:00+00:00"]
    assert message["gaps"] == {
        "count": 1,
        "longest_minutes": 2,
        "longest_after": "2023-11-20T14:08:00+00:00",
        "session_breaks": 0,
    }


def test_volume_counts_only_where_it_says_something(tmp_path: Path) -> None:
    frame = good_bars()
    assert read_bars(as_parquet(frame, tmp_path)).report.has_volume
    zero = read_bars(as_parquet(frame.assign(volume=0.0), tmp_path))
    assert not zero.report.has_volume
    assert "volume" in zero.frame
    for nothing in (np.nan, None):
        assert_reads(
            as_parquet(frame.assign(volume=nothing), tmp_path), frame.drop(columns="volume")
        )
    assert_reads(as_csv(frame.assign(volume=None), tmp_path), frame.drop(columns="volume"))


@pytest.mark.parametrize(
    ("name", "n_bars", "n_gaps"),
    [
        ("NQ_1m_2023-11-19_2023-12-04", 14714, 11),
        ("EURUSD_1m_2017", 186348, 306),
        ("ES_1m_sample_days", 17784, 210),
        ("SPY_1m_sample_days", 5786, 458),
    ],
)
def test_real_bars_read(name: str, n_bars: int, n_gaps: int) -> None:
    path = shared(f"data/{name}.parquet")
    bars = read_bars(path)
    theirs = pd.read_parquet(path).set_index("timestamp")
    pd.testing.assert_frame_equal(bars.frame, theirs, check_index_type=False, check_freq=False)
    assert (bars.report.n_bars, bars.report.gaps.count) == (n_bars, n_gaps)
    assert int((theirs.index.to_series().diff() > pd.Timedelta(minutes=1)).sum()) == n_gaps
