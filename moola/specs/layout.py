"""How a file of bars is written, and what is done about the oddities of a series."""

from typing import Literal

from pydantic import ConfigDict, Field, field_validator

from moola.specs.base import Positive, Spec

LayoutName = Literal[
    "auto",
    "databento",
    "firstrate",
    "kibot",
    "ninjatrader",
    "sierra",
    "tradestation",
    "tradingview",
    "histdata",
    "metatrader",
    "binance",
    "ib",
    "polygon",
    "dukascopy",
    "barchart",
    "yfinance",
]

# Names by which a separator can be given, too; of several the last is shown.
NAMED_SEPARATORS = {
    "semicolon": ";",
    "\\t": "\t",
    "tab": "\t",
    "bar": "|",
    "comma": ",",
    "blank": " ",
}


class LayoutConfig(Spec):
    """How a file of bars is written: what the file does not say itself, or says wrongly.

    Null means: as the named layout documents it, else as the file shows it. A column is named as in
    its header, in any case; in a file without a header by its place, counted from 1.
    """

    model_config = ConfigDict(coerce_numbers_to_str=True)  # a column by its place: 2

    name: LayoutName = Field("auto", description="whose layout it is: `moola.data.layouts`")
    time: str | None = Field(
        None,
        description='column of the time; "Date+Time" where date and time of day are apart',
    )
    time_format: str | None = Field(
        None,
        description="such as %m/%d/%Y %H:%M; needed where day and month could be swapped",
    )
    open: str | None = Field(None, description="column of the open")
    high: str | None = Field(None, description="column of the high")
    low: str | None = Field(None, description="column of the low")
    close: str | None = Field(None, description="column of the close")
    volume: str | None = Field(None, description='column of the volume; "Up+Down" adds two up')
    symbol: str | None = Field(None, description="column that names the instrument")
    instrument: str | None = Field(
        None,
        description="the one to read where the file holds several (--symbol)",
    )
    stamp: Literal["open", "close"] | None = Field(
        None,
        description="the minute that a bar carries: that of its open or that of its close",
    )
    price_scale: Positive | None = Field(
        None,
        description="what stored prices are divided by: 1e9 for Databento's whole numbers",
    )
    separator: str | None = Field(
        None,
        min_length=1,
        max_length=1,
        description="character between the columns of a text file",
    )
    decimal: Literal[".", ","] | None = Field(None, description="decimal point of a text file")
    header: bool | None = Field(None, description="whether a text file begins with column names")
    newest_first: bool | None = Field(
        None,
        description="turn the rows round; null: where the file runs backwards throughout",
    )

    @field_validator("separator", mode="before")
    @classmethod
    def _by_its_name(cls, value: object) -> object:
        return NAMED_SEPARATORS.get(value, value) if isinstance(value, str) else value


class SeriesConfig(Spec):
    """What is done about the oddities of a series of bars that the reader can live with."""

    fillers: Literal["keep", "leave_out"] = Field(
        "keep",
        description="bars without a trade that fill the hours in which a market is closed",
    )
