"""Files of bars that could be taken for others: each is read right, or refused with what to do."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moola.data.loading import LoadedBars, load_bars
from moola.data.series_checks import SeriesReport, check_series
from moola.errors import DataError
from moola.specs import LayoutConfig
from tests.vendor_files import NEW_YORK, columns, joined, local, market, truth, write_lines

ISO = "%Y-%m-%dT%H:%M:%SZ"
HEADER = "timestamp,open,high,low,close,volume"


def few(n_bars: int = 300, begin: str = "2024-03-04 21:00") -> pd.DataFrame:
    frame = market().iloc[:n_bars].copy()
    times = pd.date_range(begin, periods=n_bars, freq="min", tz="UTC")
    return frame.set_axis(times.rename("timestamp"))


def rows_of(frame: pd.DataFrame, form: str = ISO, zone: str = "UTC") -> list[str]:
    return joined([local(frame, zone, form), *columns(frame)])


def load(path: Path, timezone: str | None = None, **fields: Any) -> LoadedBars:
    return load_bars(path, LayoutConfig(**fields), timezone)


def check(path: Path, timezone: str | None = None, **fields: Any) -> SeriesReport:
    return check_series(load(path, timezone, **fields)).report


def refusal(path: Path, timezone: str | None = None, **fields: Any) -> str:
    with pytest.raises(DataError) as caught:
        check(path, timezone, **fields)
    return str(caught.value)


def assert_same(loaded: LoadedBars, frame: pd.DataFrame) -> None:
    times, values = truth(frame)
    np.testing.assert_array_equal(loaded.times, times)
    np.testing.assert_array_equal(loaded.values[:4], values[:4])


# --- times ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Gmt time", "Local time"])
def test_only_dotted_dates_are_dukascopys(name: str, tmp_path: Path) -> None:
    header = f"{name},Open,High,Low,Close,Volume"
    american = write_lines(tmp_path / "a.csv", header, rows_of(few(), "%m/%d/%Y %H:%M:%S"))
    dotted = write_lines(tmp_path / "b.csv", header, rows_of(few(), "%d.%m.%Y %H:%M:%S"))
    zone = None if name == "Gmt time" else "UTC"

    assert "day and month must not be guessed" in refusal(american, zone)
    assert_same(load(american, zone, time_format="%m/%d/%Y %H:%M:%S"), few())
    assert_same(load(dotted, zone), few())


@pytest.mark.parametrize(
    "name",
    ["time_utc", "timestamp_utc", "Time [UTC]", "DateTimeUTC", "gmt_datetime", "Date (GMT)", "utc"],
)
def test_a_name_that_says_utc_is_believed(name: str, tmp_path: Path) -> None:
    header = f"{name},open,high,low,close,volume"
    path = write_lines(tmp_path / "bars.csv", header, rows_of(few(), "%Y-%m-%d %H:%M"))
    assert_same(load(path), few())
    assert "the times are in UTC already" in refusal(path, NEW_YORK)


def test_date_and_time_of_day_may_say_utc(tmp_path: Path) -> None:
    header = "Date_UTC,Time_UTC,open,high,low,close,volume"
    path = write_lines(tmp_path / "bars.csv", header, rows_of(few(), "%Y-%m-%d,%H:%M"))
    assert_same(load(path), few())


def test_of_two_times_the_bars_opening_is_taken(tmp_path: Path) -> None:
    frame = few()
    closes = local(frame.set_axis(frame.index + pd.Timedelta(minutes=1)), "UTC", ISO)
    rows = joined([closes, local(frame, "UTC", ISO), *columns(frame)])
    header = "timestamp,open_time,open,high,low,close,volume"
    assert_same(load(write_lines(tmp_path / "bars.csv", header, rows)), frame)


def test_a_time_of_the_close_is_offered_as_one(tmp_path: Path) -> None:
    header = "bar_end,open,high,low,close,volume"
    path = write_lines(tmp_path / "bars.csv", header, rows_of(few()))
    assert refusal(path).endswith("--set layout.time=bar_end --set layout.stamp=close")
    shifted = few(begin="2024-03-04 20:59")
    assert_same(load(path, time="bar_end", stamp="close"), shifted)


@pytest.mark.parametrize(
    "form", ["%d/%m/%Y %H:%M:%S%z", "%m/%d/%Y %H:%M %z", "%m/%d/%Y %I:%M %p", "%d-%b-%Y %H:%M"]
)
def test_the_format_that_is_offered_reads_the_file(form: str, tmp_path: Path) -> None:
    upper = [row.upper() for row in rows_of(few(), form)]
    path = write_lines(tmp_path / "bars.csv", HEADER, upper)
    zone = None if "%z" in form else "UTC"
    if "%b" in form:
        assert_same(load(path, zone), few())
        return
    assert_same(load(path, zone, **pasted(refusal(path, zone))), few())

    dotted = [row.replace("PM", "p. m.").replace("AM", "a. m.") for row in upper]
    path = write_lines(tmp_path / "dotted.csv", HEADER, dotted)
    assert_same(load(path, zone, **pasted(refusal(path, zone))), few())


@pytest.mark.parametrize("half", ["{}M", "{}.M.", "{}. M."])
def test_halves_of_the_day_may_have_dots(half: str, tmp_path: Path) -> None:
    """05:00 p. m., as in Spanish."""
    rows = rows_of(few(), "%Y-%m-%d %I:%M %p")
    for letter in "AP":
        rows = [row.replace(f"{letter}M", half.format(letter).lower()) for row in rows]
    assert_same(load(write_lines(tmp_path / "bars.csv", HEADER, rows), "UTC"), few())


@pytest.mark.parametrize("n_before", [3, 170])
def test_midnight_may_have_no_time_of_day(n_before: int, tmp_path: Path) -> None:
    """As R's write.csv leaves it."""
    frame = few(begin=str(pd.Timestamp("2024-03-05") - pd.Timedelta(minutes=n_before)))
    rows = [row.replace(" 00:00:00", "") for row in rows_of(frame, "%Y-%m-%d %H:%M:%S")]
    assert_same(load(write_lines(tmp_path / "bars.csv", HEADER, rows), "UTC"), frame)

    rows = [row.replace(" 00:00,", ",") for row in rows_of(frame, "%m/%d/%Y %H:%M")]
    path = write_lines(tmp_path / "bars.csv", HEADER, rows)
    assert_same(load(path, "UTC", name="kibot"), frame)
    assert_same(load(path, "UTC", time_format="%m/%d/%Y %H:%M"), frame)


@pytest.mark.parametrize(
    "form",
    [
        "%Y-%m-%d 00:00:00,%H:%M:%S",
        "%Y-%m-%dT00:00:00.000Z,%H:%M:%S",
        "%m/%d/%Y 0:00,%H:%M",
        "%m/%d/%Y 12:00:00 AM,%H:%M",
    ],
)
def test_a_date_at_midnight_and_a_time_of_day_are_one_time(form: str, tmp_path: Path) -> None:
    frame = few()
    header = "timestamp,time,open,high,low,close,volume"
    path = write_lines(tmp_path / "bars.csv", header, rows_of(frame, form))
    stated = {} if form.startswith("%Y") else {"time_format": "%m/%d/%Y"}
    assert_same(load(path, "UTC", **stated), frame)

    times = pd.DatetimeIndex(frame.index).tz_localize(None)
    table = frame.reset_index(drop=True).assign(date=times.normalize(), time=times.time)
    table.to_parquet(tmp_path / "bars.parquet")
    assert_same(load(tmp_path / "bars.parquet", "UTC"), frame)


# --- prices ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("price", ["452'6", "452 6", "110'04", "110'1"])
def test_fractions_are_not_glued_together(price: str, tmp_path: Path) -> None:
    rows = joined([local(few(), "UTC", ISO), *[[price] * 300] * 4])
    path = write_lines(tmp_path / "bars.csv", "timestamp,open,high,low,close", rows)
    assert "must be a" in refusal(path)


def test_32nds_in_three_digits_are_no_thousands(tmp_path: Path) -> None:
    prices = ["110'165", "110'170", "109'312", "110'000"] * 75
    rows = joined([local(few(), "UTC", ISO), *[prices] * 4])
    path = write_lines(tmp_path / "bars.csv", "timestamp,open,high,low,close", rows)
    assert "looks like points and 32nds" in refusal(path)


@pytest.mark.parametrize("mark", ["'", " ", "\u00a0", "\u202f"])
def test_groups_of_three_are_thousands(mark: str, tmp_path: Path) -> None:
    rows = joined([local(few(), "UTC", ISO), *[[f"18{mark}345.25"] * 300] * 4])
    path = write_lines(tmp_path / "bars.csv", "timestamp,open,high,low,close", rows)
    assert (load(path).values == 18345.25).all()


def test_points_are_asked_about_beside_a_decimal_comma(tmp_path: Path) -> None:
    """128.565 is some points of the Ibovespa: its volume shows the decimal comma."""
    volume = ["25000,00"] * 300
    rows = joined([local(few(), "UTC", ISO), *[["128.565"] * 300] * 4, volume], ";")
    path = write_lines(tmp_path / "bars.csv", HEADER.replace(",", ";"), rows)

    assert refusal(path).endswith("--set layout.decimal=,")
    rows = joined([local(few(), "UTC", ISO), *[["1.07995"] * 300] * 4, volume], ";")
    exact = write_lines(tmp_path / "exact.csv", HEADER.replace(",", ";"), rows)
    assert (load(exact).values[:4] == 1.07995).all()
    assert (load(path, decimal=",").values[:4] == 128565).all()
    assert (load(path, decimal=".").values[:4] == 128.565).all()


@pytest.mark.parametrize(
    "header",
    [
        "time,open_bid,high_bid,low_bid,close_bid,last",
        "time,first,max,min,last,open",
        "time,open,high,low,close,last",
    ],
)
def test_prices_are_of_one_family(header: str, tmp_path: Path) -> None:
    other = ["7.0"] * 300
    rows = joined([local(few(), "UTC", ISO), *columns(few())[:4], other])
    assert_same(load(write_lines(tmp_path / "bars.csv", header, rows)), few())


# --- rows of another kind -------------------------------------------------------------------------


def wider(rows: list[str]) -> list[str]:
    return [f"{row},1" for row in rows]


OTHER_ROWS = {
    "a column more from here on": lambda rows: rows[:150] + wider(rows[150:]),
    "a column less at the end": lambda rows: (
        rows[:250] + [row.rpartition(",")[0] for row in rows[250:]]
    ),
    "another separator": lambda rows: rows[:250] + [row.replace(",", ";") for row in rows[250:]],
    "thousands without quotes": lambda rows: (
        rows[:250] + [row.replace("18", "1,8", 1) for row in rows[250:]]
    ),
    "a quote that is not closed": lambda rows: [*rows[:200], f'"{rows[200]}', *rows[201:]],
    "rows before a wider table": lambda rows: rows[:50] + wider(rows[50:]),
}


@pytest.mark.parametrize("kind", OTHER_ROWS)
def test_no_bar_is_dropped_with_a_footer(kind: str, tmp_path: Path) -> None:
    rows = OTHER_ROWS[kind](rows_of(few()))
    path = write_lines(tmp_path / "bars.csv", HEADER, rows)
    assert "a row must have" in refusal(path)


def test_comments_do_not_hide_a_row_that_is_cut(tmp_path: Path) -> None:
    rows = rows_of(few(1300))
    rows[1200:1200] = ["# tick"] * 1500 + ["2024-03-05T17:00:00Z,18000.25"]
    path = write_lines(tmp_path / "bars.csv", HEADER, rows)
    assert "'2024-03-05T17:00:00Z,18000.25' has not (row 1200" in refusal(path)


def test_a_footer_is_left_out(tmp_path: Path) -> None:
    """Also one with numbers; a row has a time as well."""
    footer = [
        "Rows,3000,18000.25,17500,1",
        "Data as of 2024-03-07, 1, 2, 3, 4",
        "",
        "Downloaded from a vendor, 2024-03-05 04:30pm",
        "3 symbols",
        "# the end",
    ]
    path = write_lines(tmp_path / "bars.csv", HEADER, rows_of(few()) + footer)
    assert_same(load(path), few())


def test_lines_above_the_header_may_be_as_wide(tmp_path: Path) -> None:
    """As Bloomberg writes, and a spreadsheet that fills lines up."""
    above = ["Security,NQH4 Index,,,,", "Start Date,04/03/2024,,,,", ",,,,,"]
    path = write_lines(tmp_path / "bars.csv", None, [*above, HEADER, *rows_of(few())])
    assert_same(load(path), few())


@pytest.mark.parametrize("is_index", [False, True])
def test_a_name_may_be_missing_at_either_end(is_index: bool, tmp_path: Path) -> None:
    rows = rows_of(few())
    wide = [f"{k},{row}" if is_index else f"{row},9" for k, row in enumerate(rows)]
    assert_same(load(write_lines(tmp_path / "bars.csv", HEADER, wide)), few())


def test_a_column_that_is_there_twice_is_chosen_by_its_place(tmp_path: Path) -> None:
    rows = joined([local(few(), "UTC", ISO), *columns(few()), ["7"] * 300])
    path = write_lines(tmp_path / "bars.csv", f"{HEADER},Volume", rows)
    message = refusal(path)
    assert message.endswith("--set layout.volume=6")
    np.testing.assert_array_equal(load(path, **pasted(message)).values, truth(few())[1])


def test_a_price_with_a_currency_has_no_other_decimal_point(tmp_path: Path) -> None:
    rows = joined([local(few(), "UTC", ISO), *[['"$18,001.25"'] * 300] * 4])
    path = write_lines(tmp_path / "bars.csv", "timestamp,open,high,low,close", rows)
    assert "--set layout.decimal" not in refusal(path)


def test_a_header_in_between_must_say_the_same(tmp_path: Path) -> None:
    frame = few()
    swapped = joined([local(frame, "UTC", ISO), *[columns(frame)[at] for at in (3, 1, 2, 0, 4)]])
    rows = rows_of(frame)
    other = "timestamp,close,high,low,open,volume"
    path = write_lines(tmp_path / "bars.csv", HEADER, [*rows[:150], other, *swapped[150:]])

    assert "the header at row 150 has 'close' in place of 'open'" in refusal(path)
    path = write_lines(tmp_path / "same.csv", HEADER, [*rows[:150], HEADER, *rows[150:]])
    assert_same(load(path), frame)


# --- without a header -----------------------------------------------------------------------------


def pasted(message: str) -> dict[str, str]:
    """The fields of the layout in the command at the end of a message."""
    words = message.split(" --set ")[1:]
    return dict(word.strip("'").removeprefix("layout.").split("=", 1) for word in words)


@pytest.mark.parametrize("form", ["%m/%d/%Y,%H:%M", "%d.%m.%Y,%H:%M", "%Y-%m-%d,%H:%M"])
@pytest.mark.parametrize("is_turned", [False, True])
def test_a_series_that_runs_backwards_keeps_open_and_close(
    form: str, is_turned: bool, tmp_path: Path
) -> None:
    rows = rows_of(few(), form)
    path = write_lines(tmp_path / "bars.txt", None, rows[::-1] if is_turned else rows)
    assert_same(load(path, "UTC", time_format=form.partition(",")[0]), few())


def test_prices_that_hardly_move_are_bars(tmp_path: Path) -> None:
    """As of a rate that stays where it is."""
    flat = ["100.0"] * 300
    rows = joined([local(few(), "UTC", ISO), flat, ["100.005"] * 300, flat, flat, ["1"] * 300])
    path = write_lines(tmp_path / "bars.csv", None, rows)
    assert (load(path).values[1] == 100.005).all()


def test_what_is_stated_is_not_judged(tmp_path: Path) -> None:
    frame = few()
    prices = columns(frame)
    rows = joined([local(frame, "UTC", ISO), *[prices[at] for at in (3, 1, 2, 0)]])
    path = write_lines(tmp_path / "bars.csv", None, rows)
    assert "they look like close, high, low, open" in refusal(path)
    stated = {"open": "2", "high": "3", "low": "4", "close": "5"}
    assert (load(path, **stated).values[0] == truth(frame)[1][3]).all()


def test_a_count_of_rows_is_no_instrument(tmp_path: Path) -> None:
    rows = [f"{k},{row}" for k, row in enumerate(rows_of(few()))]
    assert_same(load(write_lines(tmp_path / "bars.csv", None, rows)), few())


def test_a_volume_before_the_prices_is_none_of_them(tmp_path: Path) -> None:
    """As Gate.io writes: time, volume, close, high, low, open."""
    frame = few()
    prices = columns(frame)
    rows = joined([local(frame, "UTC", ISO), *[prices[at] for at in (4, 3, 1, 2, 0)]])
    path = write_lines(tmp_path / "bars.csv", None, rows)

    message = refusal(path)
    assert "they look like another number, close, high, low, open" in message or (
        "they look like close, high, low, open" in message
    )
    loaded = load(path, **pasted(message))
    assert_same(loaded, frame)
    assert len(loaded.values) == 4, "what stands behind the prices is one of them, and no volume"


def test_a_symbol_behind_the_time_is_no_price(tmp_path: Path) -> None:
    frame = few()
    rows = joined([local(frame, "UTC", ISO), ["NQH4"] * 300, *columns(frame)])
    path = write_lines(tmp_path / "bars.csv", None, rows)

    message = refusal(path)
    assert "they look like open, high, low, close" in message
    assert_same(load(path, **pasted(message)), frame)


def test_a_stated_time_is_taken_where_none_is_known(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "bars.csv", None, rows_of(few(), "%m/%d/%y,%H:%M"))
    fields = {"time": "1+2", "time_format": "%m/%d/%y"}
    assert_same(load(path, "UTC", **fields), few())


def test_ticker_and_period_may_stand_before_the_time(tmp_path: Path) -> None:
    """As Finam writes."""
    rows = [f"SPFB.RTS,1,{row}" for row in rows_of(few(), "%Y%m%d,%H%M%S")]
    path = write_lines(tmp_path / "bars.csv", None, rows)
    assert_same(load(path, "UTC"), few())


# --- instruments ----------------------------------------------------------------------------------


def test_a_symbol_is_refused_where_no_column_names_one(tmp_path: Path) -> None:
    for name in ("NQH4", "NQM4"):
        write_lines(tmp_path / f"{name}.csv", HEADER, rows_of(few()))
    for path in (tmp_path, tmp_path / "NQH4.csv"):
        assert "--symbol chooses among the instruments" in refusal(path, instrument="NQH4")


def test_the_column_of_symbols_is_stated_by_its_place(tmp_path: Path) -> None:
    frame = few()
    rows = [f"{row},NQH4" for row in rows_of(frame)]
    others = [f"{row},ESH4" for row in rows_of(few(begin="2024-03-06 00:00"))]
    path = write_lines(tmp_path / "bars.csv", None, rows + others)

    report = check(path, symbol="7", instrument="NQH4")
    assert report.n_other_instruments == 300


def contracts(symbols: list[str], contract: list[str], path: Path) -> Path:
    frame = few(len(symbols))
    rows = joined([local(frame, "UTC", ISO), symbols, contract, *columns(frame)])
    return write_lines(path, "timestamp,symbol,contract,open,high,low,close,volume", rows)


def test_a_roll_is_seen_in_the_column_that_changes(tmp_path: Path) -> None:
    path = contracts(["NQ"] * 300, ["NQH4"] * 150 + ["NQM4"] * 150, tmp_path / "bars.csv")
    assert [(roll.before, roll.after) for roll in check(path).rolls] == [("NQH4", "NQM4")]


@pytest.mark.parametrize(
    "name", ["CME_MINI:NQ{}", "/NQ{}:XCME", "@NQ{}", "NQ{} Index", "NQ{}.CME", "NQ{}"]
)
def test_a_roll_is_seen_however_a_vendor_names_contracts(name: str, tmp_path: Path) -> None:
    """A roll by volume may flap back for less than an hour."""
    names = ["H24"] * 200 + ["M24"] * 40 + ["H24"] * 60 + ["M24"] * 300
    path = contracts(["NQ"] * 600, [name.format(each) for each in names], tmp_path / "bars.csv")
    assert len(check(path).rolls) == 3


def test_names_that_differ_in_their_case_alone_are_told_apart(tmp_path: Path) -> None:
    """As Binance's streams name a bar's fields: L is the last trade's id, V what buyers took."""
    header = "t,o,h,l,c,v,L,V"
    other = ["6000"] * 300
    rows = joined([local(few(), "UTC", ISO), *columns(few()), other, other])
    path = write_lines(tmp_path / "bars.csv", header, rows)
    assert_same(load(path), few())
    np.testing.assert_array_equal(load(path).values[4], truth(few())[1][4])


def test_a_column_with_the_name_of_another_is_refused_where_it_is_read(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pandas(few().reset_index(), preserve_index=False)
    twice = table.append_column("close", table["close"])
    pq.write_table(twice, tmp_path / "twice.parquet")
    message = refusal(tmp_path / "twice.parquet")
    assert "must have a name of its own" in refusal(tmp_path / "twice.parquet", **pasted(message))

    two_times = table.append_column("timestamp", table["timestamp"])
    pq.write_table(two_times, tmp_path / "times.parquet")
    assert "two are called 'timestamp'" in refusal(tmp_path / "times.parquet")

    listed = table.append_column("symbol", pa.array([["NQ"]] * 300))
    pq.write_table(listed, tmp_path / "listed.parquet")
    assert "symbol is list<" in refusal(tmp_path / "listed.parquet")


@pytest.mark.parametrize("other", ["NQH4-NQM4", "NQM4"])
def test_lone_rows_of_another_contract_are_no_rolls(other: str, tmp_path: Path) -> None:
    names = ["NQH4"] * 1000
    names[500] = names[700] = other
    path = contracts(["NQ"] * 1000, names, tmp_path / "bars.csv")
    assert "a file must hold the bars of one instrument" in refusal(path)
