"""Layouts of bar files: what is known about a vendor's files before they are read, as data.

A preset says what a file does not say about itself: the zone of its times, whether a bar carries
the minute it opened or the one it closed, the order of day and month, the columns of a file without
a header. Everything else is read off the file, and a field of `LayoutConfig` overrides both.
"""

from dataclasses import dataclass, replace
from typing import Literal

from moola.specs import LayoutConfig

Stamp = Literal["open", "close"]
DateOrder = Literal["ymd", "mdy", "dmy"]

NEW_YORK = "America/New_York"
EST = "Etc/GMT+5"  # Eastern Standard Time all year: POSIX counts offsets westwards


@dataclass(frozen=True)
class Layout:
    """What is known about a file; None is found out from the file.

    `time` .. `newest_first` are the fields of `LayoutConfig`. `zone` is that of times which do not
    state one.
    """

    name: str
    documentation: str
    zone: str | None = None
    stamp: Stamp | None = None
    date_order: DateOrder | None = None
    date_mark: str | None = None  # dates with another mark have another order, too
    volume: str | None = None
    decimal: Literal[".", ","] | None = None
    repeated_columns: bool = False  # of columns with the same name, the first is the bar's
    time: str | None = None
    time_format: str | None = None
    open: str | None = None
    high: str | None = None
    low: str | None = None
    close: str | None = None
    symbol: str | None = None
    instrument: str | None = None
    price_scale: float | None = None
    separator: str | None = None
    header: bool | None = None
    newest_first: bool | None = None


AUTO = Layout("auto", "nothing is known beforehand")

_PRESETS = (
    AUTO,
    Layout("databento", "databento.com/docs/schemas/ohlcv", "UTC", "open"),
    Layout(
        "firstrate",
        "the _readme_documentation.txt in its zips",
        NEW_YORK,
        "open",
    ),
    Layout("kibot", "kibot.com/Data_Format.aspx", NEW_YORK, "open", "mdy"),
    Layout(
        "ninjatrader",
        "ninjatrader.com/support/helpGuides/nt8: importing",
        "UTC",
        "close",
    ),
    Layout(
        "sierra",
        "sierrachart.com: doc/TextCSVDataFormat.html",
        repeated_columns=True,
    ),
    Layout(
        "tradestation",
        "help.tradestation.com: ASCII 3rd party data",
        None,
        "close",
        "mdy",
    ),
    Layout(
        "tradingview",
        "tradingview.com/support: export chart data",
        None,
        "open",
    ),
    Layout(
        "histdata",
        "histdata.com/f-a-q: data files detailed specification",
        EST,
        "open",
    ),
    Layout(
        "metatrader",
        "metatrader5.com/en/terminal/help: export of bars",
        None,
        "open",
    ),
    Layout(
        "binance",
        "github.com/binance/binance-public-data: klines",
        "UTC",
        "open",
    ),
    Layout(
        "ib",
        "interactivebrokers.github.io/tws-api/historical_bars.html",
        None,
        "open",
    ),
    Layout(
        "polygon",
        "polygon.io/docs/flat-files: minute aggregates",
        "UTC",
        "open",
    ),
    Layout(
        "dukascopy",
        "dukascopy.com/swiss/english/marketwatch: export",
        None,
        "open",
        "dmy",
        ".",
    ),
    Layout(
        "barchart",
        "barchart.com/my/price-history/download",
        None,
        "open",
        decimal=".",
    ),
    Layout(
        "yfinance",
        "ranaroussi.github.io/yfinance: download()",
        None,
        "open",
    ),
)
PRESETS = {preset.name: preset for preset in _PRESETS}

# Header names (as `columns.plain` gives them) by which a vendor's file is known; each set is one
# way.
SIGNATURES: tuple[tuple[str, frozenset[str]], ...] = (
    ("databento", frozenset({"rtype", "publisherid", "instrumentid"})),
    ("dukascopy", frozenset({"gmttime"})),
    ("dukascopy", frozenset({"localtime"})),
    ("sierra", frozenset({"date", "time", "last", "numberoftrades"})),
    ("sierra", frozenset({"date", "time", "last", "#oftrades"})),
    ("barchart", frozenset({"time", "latest", "%change"})),
    ("polygon", frozenset({"windowstart", "ticker"})),
    ("binance", frozenset({"opentime", "closetime", "takerbuyvolume"})),
    ("metatrader", frozenset({"date", "time", "tickvol"})),
)


def known_layout(config: LayoutConfig, names: set[str]) -> Layout:
    """The layout of a file whose plain column names are `names`, with the fields of `config` on
    top.

    A vendor is only recognised by its header. One whose dates could be read in two ways never is,
    except Dukascopy: its times are dd.mm.yyyy everywhere.
    """
    preset = PRESETS[config.name]

    if preset is AUTO:
        recognised = [name for name, signature in SIGNATURES if signature <= names]
        preset = PRESETS[recognised[0]] if recognised else AUTO

    stated = config.model_dump(exclude={"name"}, exclude_none=True)
    return replace(preset, **stated)
