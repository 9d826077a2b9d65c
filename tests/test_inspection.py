"""`moola bars`: what is understood of a file, what is refused, the page; the user's cases."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from moola.cli.app import app
from moola.data.bars import read_bars, read_bars_of
from moola.data.bars_text import layout_text
from moola.data.inspection import inspect_bars
from moola.errors import DataError
from moola.evaluation.bars_page import render_bars, render_inspection
from moola.evaluation.bars_picture import LEFT, WIDTH, Marks, draw_bars
from moola.features import compute_features
from moola.jobs.prepare import prepare_precompute
from moola.specs import PrecomputeSpec
from tests.shared import find_shared, shared
from tests.test_layouts import NEEDED, REFUSED_CASES, case_files
from tests.vendor_files import (
    NEW_YORK,
    VENDORS,
    Vendor,
    columns,
    joined,
    local,
    market,
    write_lines,
)

CASES = find_shared("cases/inputs")
RUNNER = CliRunner()


def shown(*args: str, exit_code: int = 0) -> dict[str, Any]:
    result = RUNNER.invoke(app, ["bars", *args, "--json"])
    assert result.exit_code == exit_code, result.output
    document = json.loads(result.stdout)
    assert isinstance(document, dict)
    return document


def screen(*args: str, exit_code: int = 0) -> str:
    result = RUNNER.invoke(app, ["bars", *args], env={"COLUMNS": "80"})
    assert result.exit_code == exit_code, result.output
    return result.output


def options(fields: dict[str, Any], timezone: str | None) -> list[str]:
    words = [word for name, value in fields.items() for word in ("--set", f"layout.{name}={value}")]
    return [*words, *(["--timezone", timezone] if timezone else [])]


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.parquet"
    market().to_parquet(path)
    return path


# --- good bars ------------------------------------------------------------------------------------


def test_good_bars_are_shown_with_first_last_and_layout(good: Path) -> None:
    document = shown(str(good))

    times = market().index
    assert document["n_bars"] == len(market())
    assert document["first"] == times[0].isoformat()
    assert document["last"] == times[-1].isoformat()
    assert document["layout"] == "auto"
    assert document["columns"]["time"] == "timestamp"
    assert document["stamp"] == "open"
    assert document["step_s"] == 60
    assert document["gaps"]["session_breaks"] > 0
    assert document["rolls"] == []
    assert document["warnings"] == []
    assert document["refused"] is None
    assert document["command"] == f"moola precompute --bars {good}"
    assert document["first_rows"][0]["open"] == market()["open"].iloc[0]
    assert document["last_rows"][-1]["close"] == market()["close"].iloc[-1]


def test_the_screen_has_80_columns_and_one_page(good: Path) -> None:
    output = screen(str(good))
    lines = output.splitlines()

    assert len(lines) < 30
    assert max(map(len, lines[:-1])) <= 80
    assert lines[-1] == f"moola precompute --bars {good}"
    for word in ("files", "layout", "columns", "times", "first", "last", "step", "rolls", "gaps"):
        assert f"\n{word} " in f"\n{output}"


def test_the_command_that_is_shown_reads_the_bars(tmp_path: Path) -> None:
    vendor = next(vendor for vendor in VENDORS if vendor.layout == "tradestation")
    path = vendor.write(market(), tmp_path)

    document = shown(str(path), *options(vendor.fields, vendor.timezone))
    assert document["n_bars"] == len(market())
    words = document["command"].split()
    assert words[words.index("--layout") + 1] == "tradestation"
    assert words[words.index("--timezone") + 1] == "America/Chicago"


def test_the_command_has_all_that_decides_how_bars_are_read(good: Path) -> None:
    given = ["--set", "on_bad_bars=drop", "--set", "max_dropped_fraction=0.03"]
    document = shown(str(good), *given, "--set", "series.fillers=leave_out")
    assert document["command"] == (
        f"moola precompute --bars {good} --on-bad-bars drop --set max_dropped_fraction=0.03 "
        "--set series.fillers=leave_out"
    )


# --- refused --------------------------------------------------------------------------------------


def test_what_is_refused_is_shown_as_far_as_it_was_understood(tmp_path: Path) -> None:
    frame = (
        market()
        .resample("5min")
        .agg({"open": "first", "high": "max", "low": "min", "close": "last", "volume": "sum"})
    )
    path = tmp_path / "five.csv"
    frame.dropna().to_csv(path)

    document = shown(str(path), exit_code=3)
    assert "5 minutes apart" in document["refused"]
    assert document["n_bars"] is None
    assert document["n_rows"] == len(frame.dropna())
    assert document["separator"] == "comma"
    assert "refused: the bars must be 1 minute apart" in screen(str(path), exit_code=3)


def test_a_file_that_is_not_understood_shows_its_first_lines(tmp_path: Path) -> None:
    path = tmp_path / "us.csv"
    path.write_text("Date,Open,High,Low,Close\n03/04/2024 16:00,1,2,1,2\n\x1b[2Jred,1,2,1,2\n")

    output = screen(str(path), exit_code=3)
    assert "Date,Open,High,Low,Close" in output
    assert "time_format" in output
    assert "\x1b" not in output


ISO = "%Y-%m-%dT%H:%M:%SZ"
# header and rows of a file that is refused with the command that reads it
ASKED: dict[str, Callable[[pd.DataFrame], tuple[str | None, list[str]]]] = {
    "no zone": lambda bars: (
        "time,open,high,low,close,volume",
        joined([local(bars, NEW_YORK, "%Y-%m-%d %H:%M"), *columns(bars)]),
    ),
    "no header, another order": lambda bars: (
        None,
        joined([local(bars, "UTC", ISO), *[columns(bars)[at] for at in (1, 2, 0, 3, 4)]]),
    ),
    "an unknown name of the time": lambda bars: (
        "moment of the bar,open,high,low,close,volume",
        joined([local(bars, "UTC", ISO), *columns(bars)]),
    ),
    "two columns of times": lambda bars: (
        "time,datetime,open,high,low,close,volume",
        joined([*[local(bars, "UTC", ISO)] * 2, *columns(bars)]),
    ),
    "a rare separator": lambda bars: (
        "time^open^high^low^close^volume",
        joined([local(bars, "UTC", ISO), *columns(bars)], "^"),
    ),
    "several instruments": lambda bars: (
        "time,open,high,low,close,volume,symbol",
        [
            row
            for rows in zip(
                joined([local(bars, "UTC", ISO), *columns(bars), ["NQH5"] * len(bars)]),
                joined([local(bars, "UTC", ISO), *columns(bars + 90), ["NQM5"] * len(bars)]),
                strict=True,
            )
            for row in rows
        ],
    ),
    "NinjaTrader's times": lambda bars: (
        None,
        joined([local(bars, "UTC", "%Y%m%d %H%M%S", 1), *columns(bars)], ";"),
    ),
    "two-digit years": lambda bars: (
        "time,open,high,low,close,volume",
        joined([local(bars, NEW_YORK, "%m/%d/%y %H:%M"), *columns(bars)]),
    ),
    "a bad row": lambda bars: (
        "time,open,high,low,close,volume",
        [
            row if at != 77 else f"{row[:20]},5,4,6,5,1"
            for at, row in enumerate(joined([local(bars, "UTC", ISO), *columns(bars)]))
        ],
    ),
}


@pytest.mark.parametrize("case", ASKED)
def test_the_command_that_a_refusal_ends_with_reads_the_bars(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOOLA_STORE", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MOOLA_WORK", str(tmp_path / "work"))
    bars = market().iloc[:1500]
    path = write_lines(tmp_path / "b ars.csv", *ASKED[case](bars))
    command = f"moola precompute --bars {shlex.quote(str(path))}"

    # What is asked for may be asked for one by one.
    for _ in range(3):
        words = [*shlex.split(command)[1:], "--dry-run"]
        result = RUNNER.invoke(app, words)
        if result.exit_code == 0:
            break
        assert isinstance(result.exception, DataError), result.output
        message = str(result.exception)
        following = "moola precompute" + message.rpartition("moola precompute")[2].rstrip()
        assert following != command, message
        command = following

    assert result.exit_code == 0
    fields = json.loads(result.stdout)["spec.json"]["spec"]
    spec = PrecomputeSpec.model_validate(fields)
    read = read_bars_of(spec, path).frame
    right = bars if case != "a bad row" else bars.drop(bars.index[77])
    np.testing.assert_array_equal(read.to_numpy(), right.to_numpy())
    np.testing.assert_array_equal(read.index, right.index)


def test_the_message_repeats_what_was_given_already(tmp_path: Path) -> None:
    path = tmp_path / "us.csv"
    rows = [f"03/04/2024 16:{minute:02d},1,2,1,2" for minute in range(50)]
    path.write_text("\n".join(["Day,Open,High,Low,Close", *rows]))

    given = ("--timezone", "America/Chicago", "--set", "layout.time=Day")
    command = shown(str(path), *given, exit_code=3)["command"]
    assert command == (
        f"moola precompute --bars {path} --timezone America/Chicago --set layout.time=Day "
        "--set 'layout.time_format=%m/%d/%Y %H:%M'"
    )


def test_a_value_that_json_has_not_is_null(tmp_path: Path) -> None:
    frame = market().iloc[:300].copy()
    frame.iloc[0, 1] = np.inf
    path = tmp_path / "bad.parquet"
    frame.to_parquet(path)
    assert shown(str(path), exit_code=3)["first_rows"][0]["high"] is None


# --- the page -------------------------------------------------------------------------------------


def test_the_page_is_whole_and_fetches_nothing(good: Path, tmp_path: Path) -> None:
    page = tmp_path / "new" / "bars.html"
    screen(str(good), "--html", str(page))

    text = page.read_text()
    assert text.endswith("</html>\n")
    assert "<svg" in text
    assert not re.search(r"""(src|href)=|https?://""", text)
    assert len(text) < 300_000
    for panel in ("price", "gaps", "volume"):
        assert f">{panel}</text>" in text


def test_names_on_the_page_are_escaped(tmp_path: Path) -> None:
    path = tmp_path / "<b>&bars.parquet"
    market().iloc[:300].to_parquet(path)
    found = inspect_bars(PrecomputeSpec(), [path], str(path))
    page = render_inspection(found)
    assert "<b>&bars" not in page
    assert "&lt;b&gt;&amp;bars.parquet" in page


@pytest.mark.parametrize("spoil", ["flat", "no volume", "one gap", "rolls", "below zero"])
def test_a_page_is_drawn_of_odd_bars(spoil: str, tmp_path: Path) -> None:
    frame = market().iloc[:400].copy()
    prices = ["open", "high", "low", "close"]
    if spoil == "flat":
        frame[prices] = 100.0
        frame["volume"] = 0.0
    elif spoil == "no volume":
        frame = frame.drop(columns="volume")
    elif spoil == "one gap":
        frame.index = pd.date_range("2024-03-04", periods=400, freq="min", tz="UTC")
    elif spoil == "rolls":
        frame["instrument_id"] = np.where(np.arange(400) < 200, 1, 2)
    else:
        frame[prices] -= frame["close"].iloc[200]
    path = tmp_path / "odd.parquet"
    frame.to_parquet(path)

    bars = read_bars(path)
    page = render_bars(bars, path.name)
    assert page == render_bars(bars, path.name)
    assert "nan" not in page.lower().split("<svg")[1]


def test_bars_of_many_years_are_drawn_from_left_to_right() -> None:
    """Nanoseconds times pixels do not fit into 64 bits."""
    times = pd.date_range("2000-01-03", "2024-12-31", freq="6h", tz="UTC")
    price = np.linspace(1.0, 2.0, len(times))
    frame = pd.DataFrame({"high": price + 0.1, "low": price}, index=times)

    picture = draw_bars(frame, Marks([], [], []))
    lines = picture.split('stroke="#0072b2"')[0].rsplit('d="', 1)[1]
    places = [float(place) for place in re.findall(r"M([-\d.]+) ", lines)]
    assert places == sorted(places)
    assert places[0] == LEFT
    assert places[-1] == WIDTH - 1


def test_the_log_names_file_columns_and_zone(good: Path) -> None:
    text = layout_text(read_bars(good).layout)
    assert text.startswith("good.parquet: parquet, layout auto; time = timestamp, open")
    assert "\n" not in text


# --- every vendor, every case ---------------------------------------------------------------------


@pytest.mark.parametrize("vendor", VENDORS, ids=lambda vendor: vendor.layout)
def test_features_of_every_vendors_file_are_equal(vendor: Vendor, tmp_path: Path) -> None:
    path = vendor.write(market(), tmp_path)
    args = options(vendor.fields, vendor.timezone)
    spec = PrecomputeSpec.model_validate(
        {"bars": str(path), "layout": vendor.fields, "timezone": vendor.timezone}
    )

    bars = read_bars(path, layout=spec.layout, timezone=spec.timezone)
    rows = compute_features(bars.frame)
    np.testing.assert_array_equal(rows, compute_features(market()))
    assert not bars.flagged.any()

    run = prepare_precompute(spec, tmp_path)
    assert run.inputs == {"bars": path}
    assert shown(str(path), *args)["layout"] == vendor.layout


@pytest.mark.parametrize("path", case_files(), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_users_cases_are_shown_as_wanted(path: Path) -> None:
    shared("cases/inputs")
    name = path.parent.name
    fields, timezone = NEEDED.get(f"{name}/{path.name}", NEEDED.get(name, ({}, None)))
    args = options(fields, timezone)
    if name == "several-symbols":
        assert "choose one" in shown(str(path), *args, exit_code=3)["refused"]
        args += ["--symbol", "NQH4"]

    if name in REFUSED_CASES:
        assert REFUSED_CASES[name] in shown(str(path), *args, exit_code=3)["refused"]
        return
    if name == "close-one-tick-outside":
        drop = ["--set", "on_bad_bars=drop"]
        assert "max_dropped_fraction" in shown(str(path), *args, *drop, exit_code=3)["refused"]
        args += [*drop, "--set", "max_dropped_fraction=0.03"]

    document = shown(str(path), *args)
    assert document["refused"] is None
    assert 190 <= document["n_bars"] <= 300
