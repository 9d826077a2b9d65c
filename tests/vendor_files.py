"""Bars in the layouts that vendors document: a writer for each preset, and what it takes to read
its file back.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from moola import PRICES
from moola.data.synthetic import make_market
from moola.specs import MarketConfig

NEW_YORK = "America/New_York"
CHICAGO = "America/Chicago"
FIXED_EST = "Etc/GMT+5"


@cache
def market() -> pd.DataFrame:
    """Six trading days of the shipped market, whole volumes, with the daily halt and a change of
    clocks.
    """
    config = MarketConfig(start=date(2025, 3, 6), end=date(2025, 3, 13))
    return make_market(config).bars


@dataclass(frozen=True)
class Vendor:
    """`write` puts bars into a file in a folder; reading it needs `fields` and `timezone`."""

    layout: str
    write: Callable[[pd.DataFrame, Path], Path]
    fields: dict[str, Any]
    timezone: str | None = None
    has_volume: bool = True


def local(bars: pd.DataFrame, zone: str, form: str, minutes: int = 0) -> list[str]:
    """The bars' times in a zone, as text; `minutes` 1 is the minute of the close."""
    times = pd.DatetimeIndex(bars.index) + pd.Timedelta(minutes=minutes)
    return times.tz_convert(zone).strftime(form).tolist()


def columns(bars: pd.DataFrame, form: str = "{:.2f}") -> list[list[str]]:
    """Open, high, low, close and volume as text."""
    prices = [[form.format(value) for value in bars[name]] for name in PRICES]
    return [*prices, [str(int(value)) for value in bars["volume"]]]


def write_lines(path: Path, header: str | None, rows: list[str], footer: str | None = None) -> Path:
    lines = [*([header] if header else []), *rows, *([footer] if footer else [])]
    path.write_text("\n".join(lines) + "\n")
    return path


def joined(parts: list[list[str]], separator: str = ",") -> list[str]:
    return [separator.join(row) for row in zip(*parts, strict=True)]


def databento(bars: pd.DataFrame, folder: Path) -> Path:
    times = [str(value) for value in pd.DatetimeIndex(bars.index).as_unit("ns").asi8]
    same = [["33", "1", "3522"]] * len(bars)
    prices = _fixed_point(bars)
    rows = [
        ",".join([time, *ids, *row, "NQH5"])
        for time, ids, row in zip(times, same, zip(*prices, strict=True), strict=True)
    ]
    header = "ts_event,rtype,publisher_id,instrument_id,open,high,low,close,volume,symbol"
    return write_lines(folder / "glbx-mdp3.ohlcv-1m.csv", header, rows)


def _fixed_point(bars: pd.DataFrame) -> list[list[str]]:
    prices = [[str(round(value * 4) * 250_000_000) for value in bars[name]] for name in PRICES]
    return [*prices, [str(int(value)) for value in bars["volume"]]]


def firstrate(bars: pd.DataFrame, folder: Path) -> Path:
    times = local(bars, NEW_YORK, "%Y-%m-%d %H:%M:%S")
    return write_lines(folder / "NQ_1min.txt", None, joined([times, *columns(bars)]))


def kibot(bars: pd.DataFrame, folder: Path) -> Path:
    times = local(bars, NEW_YORK, "%m/%d/%Y,%H:%M")
    return write_lines(folder / "NQ.txt", None, joined([times, *columns(bars)]))


def ninjatrader(bars: pd.DataFrame, folder: Path) -> Path:
    times = local(bars, "UTC", "%Y%m%d %H%M%S", 1)
    return write_lines(folder / "NQ 03-25.Last.txt", None, joined([times, *columns(bars)], ";"))


def sierra(bars: pd.DataFrame, folder: Path) -> Path:
    zoned = pd.DatetimeIndex(bars.index).tz_convert(CHICAGO)
    days = [f"{time.year}/{time.month}/{time.day}" for time in zoned]
    clocks = zoned.strftime("%H:%M:%S.000000").tolist()
    extra = [["10"] * len(bars), ["5"] * len(bars), ["0.0"] * len(bars)]
    header = "Date, Time, Open, High, Low, Last, Volume, # of Trades, Bid Volume, Open"
    rows = joined([days, clocks, *columns(bars), *extra], ", ")
    return write_lines(folder / "NQH25-CME-BarData.txt", header, rows)


def tradestation(bars: pd.DataFrame, folder: Path) -> Path:
    days = local(bars, CHICAGO, "%m/%d/%Y", 1)
    clocks = local(bars, CHICAGO, "%H:%M", 1)
    *prices, volume = columns(bars)
    up = [str(int(value) // 3) for value in volume]
    down = [str(int(value) - int(value) // 3) for value in volume]
    header = '"Date","Time","Open","High","Low","Close","Up","Down"'
    return write_lines(folder / "@NQ.txt", header, joined([days, clocks, *prices, up, down]))


def tradingview(bars: pd.DataFrame, folder: Path) -> Path:
    zoned = pd.DatetimeIndex(bars.index).tz_convert(CHICAGO)
    times = [time.isoformat() for time in zoned]
    *prices, volume = columns(bars)
    header = "time,open,high,low,close,20,Volume,Volume MA"
    rows = joined([times, *prices, prices[0], volume, ["NaN"] * len(bars)])
    return write_lines(folder / "CME_MINI_NQ1!, 1.csv", header, rows)


def histdata(bars: pd.DataFrame, folder: Path) -> Path:
    times = local(bars, FIXED_EST, "%Y%m%d %H%M%S")
    *prices, _ = columns(bars, "{:.6f}")
    rows = joined([times, *prices, ["0"] * len(bars)], ";")
    return write_lines(folder / "DAT_ASCII_NSXUSD_M1_2025.csv", None, rows)


def metatrader(bars: pd.DataFrame, folder: Path) -> Path:
    times = local(bars, "Europe/Athens", "%Y.%m.%d\t%H:%M:%S")
    header = "<DATE>\t<TIME>\t<OPEN>\t<HIGH>\t<LOW>\t<CLOSE>\t<TICKVOL>\t<VOL>\t<SPREAD>"
    extra = [["0"] * len(bars), ["21"] * len(bars)]
    return write_lines(folder / "NQ_M1.csv", header, joined([times, *columns(bars), *extra], "\t"))


def binance(bars: pd.DataFrame, folder: Path) -> Path:
    opens = pd.DatetimeIndex(bars.index).as_unit("ns").asi8 // 1_000
    times = [str(value) for value in opens]
    closes = [str(value + 59_999_999) for value in opens]
    extra = [["1.5"] * len(bars), ["79"] * len(bars), ["1.0"] * len(bars), ["0.5"] * len(bars)]
    rows = joined([times, *columns(bars, "{:.8f}"), closes, *extra, ["0"] * len(bars)])
    return write_lines(folder / "BTCUSDT-1m-2025-03.csv", None, rows)


def ib(bars: pd.DataFrame, folder: Path) -> Path:
    times = [f"{text} US/Central" for text in local(bars, CHICAGO, "%Y%m%d %H:%M:%S")]
    header = "date,open,high,low,close,volume,average,barCount"
    rows = joined([times, *columns(bars), columns(bars)[3], ["9"] * len(bars)])
    return write_lines(folder / "NQ_ib.csv", header, rows)


def polygon(bars: pd.DataFrame, folder: Path) -> Path:
    times = [str(value) for value in pd.DatetimeIndex(bars.index).as_unit("ns").asi8]
    open_, high, low, close, volume = columns(bars)
    header = "ticker,volume,open,close,high,low,window_start,transactions"
    ticker = ["NQH5"] * len(bars)
    rows = joined([ticker, volume, open_, close, high, low, times, ["7"] * len(bars)])
    return write_lines(folder / "2025-03.csv", header, rows)


def dukascopy(bars: pd.DataFrame, folder: Path) -> Path:
    zoned = pd.DatetimeIndex(bars.index).tz_convert("Europe/Berlin")
    times = [f"{time:%d.%m.%Y %H:%M:%S}.000 GMT{time:%z}" for time in zoned]
    header = "Local time,Open,High,Low,Close,Volume"
    return write_lines(
        folder / "USATECH.IDXUSD_M1_BID.csv", header, joined([times, *columns(bars)])
    )


def barchart(bars: pd.DataFrame, folder: Path) -> Path:
    times = local(bars, CHICAGO, "%Y-%m-%d %H:%M")
    open_, high, low, close, _ = (
        [f'"{value}"' for value in column] for column in columns(bars, "{:,.2f}")
    )
    volume = [f'"{int(value):,}"' for value in bars["volume"]]
    change = [["0"] * len(bars), ["0.00%"] * len(bars)]
    rows = joined([times, open_, high, low, close, *change, volume])[::-1]
    header = "Time,Open,High,Low,Latest,Change,%Change,Volume"
    footer = '"Downloaded from Barchart.com as of 03-14-2025 07:59am CDT"'
    return write_lines(folder / "nqh25_intraday-1min.csv", header, rows, footer)


def yfinance(bars: pd.DataFrame, folder: Path) -> Path:
    times = [str(time) for time in bars.index]
    open_, high, low, close, volume = columns(bars)
    header = "Price,Close,High,Low,Open,Volume\nTicker,NQ=F,NQ=F,NQ=F,NQ=F,NQ=F\nDatetime,,,,,"
    return write_lines(folder / "nq.csv", header, joined([times, close, high, low, open_, volume]))


VENDORS = [
    Vendor("databento", databento, {}),
    Vendor("firstrate", firstrate, {"name": "firstrate"}),
    Vendor("kibot", kibot, {"name": "kibot"}),
    Vendor("ninjatrader", ninjatrader, {"name": "ninjatrader"}),
    Vendor("sierra", sierra, {}, CHICAGO),
    Vendor("tradestation", tradestation, {"name": "tradestation"}, CHICAGO),
    Vendor("tradingview", tradingview, {"name": "tradingview"}),
    Vendor("histdata", histdata, {"name": "histdata"}, None, False),
    Vendor("metatrader", metatrader, {}, "Europe/Athens"),
    Vendor("binance", binance, {"name": "binance"}),
    Vendor("ib", ib, {"name": "ib"}),
    Vendor("polygon", polygon, {}),
    Vendor("dukascopy", dukascopy, {}),
    Vendor("barchart", barchart, {}, CHICAGO),
    Vendor("yfinance", yfinance, {"name": "yfinance"}),
]


def truth(bars: pd.DataFrame) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """UTC ns and values [5, n], as they should be read."""
    values = bars[["open", "high", "low", "close", "volume"]].to_numpy().T
    return pd.DatetimeIndex(bars.index).as_unit("ns").asi8, values
