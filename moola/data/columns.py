"""Which column of a table is what: by name where there is a header, else by its place."""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from zoneinfo import ZoneInfo

from moola import PRICES
from moola.data.advice import command
from moola.data.column_names import (
    ADDED_UP,
    CLOCK_NAMES,
    CLOSING_NAME,
    DATE_NAMES,
    INSTRUMENT_ID,
    OPENING_NAMES,
    PRICE_FAMILIES,
    ROLE_NAMES,
    SYMBOL_NAMES,
    TIME_NAMES,
    UTC_NAME,
)
from moola.data.layouts import Layout
from moola.errors import DataError
from moola.text import quoted

MAX_BEFORE_TIME = 4  # columns in which a time is looked for without names: ticker, period, date
LONGEST_TYPED = 60  # characters of a name in a command
MAX_LOOKED_AT = 20  # columns whose values are looked at for a time

TimeKind = Literal["moment", "absolute", "date", "clock", "other"]


@dataclass(frozen=True)
class Column:
    """A column's name ("" without a header), and its ticker where names have two levels."""

    at: int
    name: str
    ticker: str = ""

    @property
    def plain(self) -> str:
        return plain(self.name)

    @property
    def label(self) -> str:
        """As a person would point at it."""
        return self.name or f"column {self.at + 1}"


@dataclass(frozen=True)
class Columns:
    """Which column holds what: one time, or a date and a time of day; volumes are added up."""

    time: tuple[Column, ...]
    prices: tuple[Column, Column, Column, Column]  # open, high, low, close
    volume: tuple[Column, ...]
    symbols: tuple[Column, ...]  # that name the instrument, the plainest first
    zone: str | None  # where a column's name says it

    def used(self) -> tuple[Column, ...]:
        return (*self.time, *self.prices, *self.volume, *self.symbols)

    def as_dict(self) -> dict[str, str]:
        """Role -> the file's names."""
        named = {"time": "+".join(column.label for column in self.time)}
        named |= {role: column.label for role, column in zip(PRICES, self.prices, strict=True)}

        if self.volume:
            named["volume"] = "+".join(column.label for column in self.volume)
        if self.symbols:
            named["symbol"] = ", ".join(column.label for column in self.symbols)
        return named


def plain(name: str) -> str:
    """A name without case, accents, blanks, brackets, dots and the like: `<OPEN>`, `1. open` and
    ` Open ` are `open`.
    """
    text = unicodedata.normalize("NFKD", name).casefold()
    text = re.sub(r"^\s*\d+\.\s+", "", text)
    return re.sub(r"[^\w%#]|_", "", text)


def find_columns(
    columns: Sequence[Column],
    layout: Layout,
    kind_of: Callable[[Column], TimeKind],
    path: Path,
    index: Column | None = None,
) -> Columns:
    """The columns of a table with a header. `index` is the one that pandas kept its index of times
    in.

    `kind_of` says what a column's values are; "absolute" is a time with its zone, "moment" one
    without. Raises DataError.
    """
    columns = _of_one_ticker(columns, layout, path)
    taken = {column for column in columns if layout.repeated_columns and _repeats(column, columns)}
    columns = [column for column in columns if column not in taken]

    time = _time_columns(columns, layout, kind_of, path, index)
    prices = _prices(columns, layout, path)
    missing = [role for role, column in zip(PRICES, prices, strict=True) if column is None]
    if not time:
        missing.insert(0, "time")
    if missing:
        raise DataError(_missing(missing, columns, kind_of, path))

    found = [column for column in prices if column is not None]
    symbols = _symbols(columns, layout, path)
    if not any(column.ticker for column in columns):
        _require_symbols(symbols, layout, path)
    return Columns(
        time=time,
        prices=(found[0], found[1], found[2], found[3]),
        volume=_volume(columns, layout, path),
        symbols=symbols,
        zone=_named_zone(time),
    )


def place_columns(
    n_columns: int,
    layout: Layout,
    kind_of: Callable[[Column], TimeKind],
    path: Path,
) -> Columns:
    """The columns of a table without a header: [instrument,] time or date and time, open, high,
    low, close[, volume].

    Raises DataError where no time stands before four other columns, and none is stated.
    """
    columns = [Column(at, "") for at in range(n_columns)]
    time = _stated_time(columns, layout, path) or _first_time(columns, kind_of)

    if not time:
        raise DataError(
            f"the first row is a bar, or the header is not known, and no time stands in its first "
            f"columns: name the "
            f"columns by their place, and the time's format where it is a rare one ({path.name}): "
            f"{command(path, time=1, open=2, high=3, low=4, close=5)}"
        )

    rest = columns[max(column.at for column in time) + 1 :]
    prices = [_stated(role, columns, layout, path) for role in PRICES]
    if None in prices and len(rest) < len(PRICES):
        raise DataError(
            f"four prices must follow the time in a file without a header, got {len(rest)} "
            f"columns ({path.name})"
        )

    found = [rest[at] if column is None else column for at, column in enumerate(prices)]
    other = [column for column in rest[len(PRICES) :] if column not in found]
    symbol = _stated("symbol", columns, layout, path)
    # A row count, such as pandas writes, is no instrument.
    is_named = time[0].at >= 1 and kind_of(columns[0]) != "clock"
    before = columns[:1] if is_named else []
    symbols = tuple(before) if symbol is None else (symbol,)
    _require_symbols(symbols, layout, path)
    return Columns(
        time=time,
        prices=(found[0], found[1], found[2], found[3]),
        volume=_stated_volume(columns, layout, path) or tuple(other[:1]),
        symbols=symbols,
        zone=None,
    )


def _first_time(
    columns: Sequence[Column], kind_of: Callable[[Column], TimeKind]
) -> tuple[Column, ...]:
    """Of the first columns without names: a time, or a date and the time of day behind it."""
    kinds = [kind_of(column) for column in columns[:MAX_BEFORE_TIME]]
    for at, kind in enumerate(kinds[:-1]):
        if kind == "date" and kinds[at + 1] == "clock":
            return tuple(columns[at : at + 2])
        if kind in ("absolute", "moment", "date"):
            return (columns[at],)
    return ()


def _require_symbols(symbols: Sequence[Column], layout: Layout, path: Path) -> None:
    """Raises DataError where an instrument is asked for, and no column names any."""
    if layout.instrument is not None and not symbols:
        raise DataError(
            f"--symbol chooses among the instruments that a column names, and none is known to "
            f"name {quoted(layout.instrument)}: leave it out, give the files of that instrument "
            f"alone, or say which column it is: --set layout.symbol=COLUMN ({path.name})"
        )


# --- times ----------------------------------------------------------------------------------------


def _time_columns(
    columns: Sequence[Column],
    layout: Layout,
    kind_of: Callable[[Column], TimeKind],
    path: Path,
    index: Column | None,
) -> tuple[Column, ...]:
    stated = _stated_time(columns, layout, path)
    if stated:
        return stated
    if index is not None:
        return (index,)

    named = [column for name in TIME_NAMES for column in columns if _time_name(column) == name]
    named += [column for column in columns if _zone_name(column.name) is not None]
    kinds = {column: kind_of(column) for column in named}
    whole = [column for column in named if kinds[column] == "absolute"]
    whole = whole or [column for column in named if kinds[column] == "moment"]

    if len(whole) > 1:
        return (_one_of(whole, path),)
    if whole:
        return (whole[0],)

    dates = [
        column
        for column in columns
        if _time_name(column) in DATE_NAMES and kind_of(column) == "date"
    ] or [column for column in named if kinds[column] == "date"]
    clocks = [
        column
        for column in columns
        if _time_name(column) in CLOCK_NAMES and kind_of(column) == "clock"
    ]
    if dates and clocks:
        return (dates[0], clocks[0])
    return (named[0],) if named else ()


def _time_name(column: Column) -> str:
    return UTC_NAME.sub("", column.plain) or column.plain


def _one_of(whole: Sequence[Column], path: Path) -> Column:
    """Of several columns of times, the one whose name is that of a bar's opening; DataError where
    none is.
    """
    for column in whole:
        if _time_name(column) in OPENING_NAMES:
            return column

    names = " and ".join(column.label for column in whole)[:300]
    raise DataError(
        f"the time must be in one column, found {names}: choose one ({path.name}): "
        f"{command(path, time=_pointer(whole[0]))}"
    )


def _named_zone(time: Sequence[Column]) -> str | None:
    for column in time:
        if UTC_NAME.search(column.plain):
            return "UTC"
        zone = _zone_name(column.name)
        if zone is not None:
            return zone
    return None


def _zone_name(name: str) -> str | None:
    """JForex heads the column of times with their zone, such as Etc/UTC."""
    if "/" not in name:
        return None
    try:
        return ZoneInfo(name.strip()).key
    except (KeyError, ValueError, OSError):
        return None


# --- roles ----------------------------------------------------------------------------------------


def _of_one_ticker(columns: Sequence[Column], layout: Layout, path: Path) -> list[Column]:
    """Where names have a second level (yfinance): the columns of the one ticker, or of the one that
    is asked for.
    """
    tickers = sorted({column.ticker for column in columns if column.ticker})
    chosen = layout.instrument

    if len(tickers) < 2 and chosen is None:
        return list(columns)
    if chosen is None:
        raise DataError(
            f"a file must hold the bars of one instrument, and this one holds {len(tickers)} "
            f"({', '.join(tickers[:8])}): "
            f"choose one ({path.name}): {command(path, symbol=tickers[0])}"
        )
    if not tickers:
        return list(columns)
    if chosen not in tickers:
        raise DataError(
            f"no columns of {chosen}: the tickers are {', '.join(tickers[:8])} ({path.name})"
        )
    return [column for column in columns if column.ticker in ("", chosen)]


def _repeats(column: Column, columns: Sequence[Column]) -> bool:
    return any(other.plain == column.plain and other.at < column.at for other in columns)


def _prices(columns: Sequence[Column], layout: Layout, path: Path) -> list[Column | None]:
    """Open, high, low and close, of one family where it is whole and none is stated."""
    if all(getattr(layout, role) is None for role in PRICES):
        for family in PRICE_FAMILIES:
            found = [_alike(columns, name) for name in family]
            if all(len(alike) == 1 for alike in found):
                return [alike[0] for alike in found]
    return [_role(role, columns, layout, path) for role in PRICES]


def _alike(columns: Sequence[Column], name: str) -> list[Column]:
    """The columns with a name; of two letters that differ in their case, the one written so."""
    alike = [column for column in columns if column.plain == name]
    exact = [column for column in alike if column.name.strip() == name and len(name) == 1]
    return exact if len(exact) == 1 else alike


def _role(role: str, columns: Sequence[Column], layout: Layout, path: Path) -> Column | None:
    stated = _stated(role, columns, layout, path)
    if stated is not None:
        return stated

    for name in ROLE_NAMES[role]:
        matches = _alike(columns, name)
        if len(matches) > 1:
            names = " and ".join(column.label for column in matches)[:300]
            raise DataError(
                f"a column must occur once in any case, found {names}: choose one by its place "
                f"({path.name}): {command(path, **{role: str(matches[0].at + 1)})}"
            )
        if matches:
            return matches[0]
    return None


def _volume(columns: Sequence[Column], layout: Layout, path: Path) -> tuple[Column, ...]:
    stated = _stated_volume(columns, layout, path)
    if stated:
        return stated

    volume = _role("volume", columns, layout, path)
    if volume is not None:
        return (volume,)

    parts = [column for name in ADDED_UP for column in columns if column.plain == name]
    return tuple(parts) if len(parts) == len(ADDED_UP) else ()


def _symbols(columns: Sequence[Column], layout: Layout, path: Path) -> tuple[Column, ...]:
    stated = _stated("symbol", columns, layout, path)
    ids = [column for column in columns if column.plain == INSTRUMENT_ID]
    if stated is not None:
        return tuple(dict.fromkeys((stated, *ids)))

    named = [column for name in SYMBOL_NAMES for column in columns if column.plain == name]
    return tuple(dict.fromkeys((*named, *ids)))


def _stated(role: str, columns: Sequence[Column], layout: Layout, path: Path) -> Column | None:
    name = getattr(layout, role)
    return None if name is None else _named(role, name, columns, path)


def _stated_time(columns: Sequence[Column], layout: Layout, path: Path) -> tuple[Column, ...]:
    return _all_stated("time", layout.time, columns, path)


def _stated_volume(columns: Sequence[Column], layout: Layout, path: Path) -> tuple[Column, ...]:
    return _all_stated("volume", layout.volume, columns, path)


def _all_stated(
    role: str, names: str | None, columns: Sequence[Column], path: Path
) -> tuple[Column, ...]:
    if names is None:
        return ()
    try:
        return (_named(role, names, columns, path),)
    except DataError:
        if "+" not in names:
            raise
    return tuple(_named(role, name, columns, path) for name in names.split("+"))


def _named(role: str, name: str, columns: Sequence[Column], path: Path) -> Column:
    exact = [column for column in columns if column.name.strip() == name.strip()]
    alike = [column for column in columns if column.plain == plain(name)]

    if not exact and not alike and name.strip().isdigit():
        alike = [column for column in columns if column.at == int(name) - 1]
    if exact or alike:
        return (exact or alike)[0]

    names = ", ".join(column.label for column in columns)[:300]
    raise DataError(
        f"layout.{role} must name a column, got {quoted(name)}: found {names} ({path.name})"
    )


def _missing(
    missing: list[str],
    columns: Sequence[Column],
    kind_of: Callable[[Column], TimeKind],
    path: Path,
) -> str:
    """Which columns are not known by name, and the command that names them where values tell."""
    names = ", ".join(column.label for column in columns)
    fields = dict.fromkeys(missing, "NAME")
    if "time" in missing:
        fields["time"] = _time_by_values(columns, kind_of)
        if CLOSING_NAME.search(plain(fields["time"])):
            fields["stamp"] = "close"

    unreadable = ""
    if "\ufffd" in names:
        unreadable = (
            "; the names are not UTF-8: iconv -f WINDOWS-1252 -t UTF-8 FILE > utf8.csv (or from "
            "the file's own encoding), or name columns by their place, counted from 1"
        )
    what = "the column that holds it" if len(missing) == 1 else "the columns that hold them"
    return (
        f"missing column {' and '.join(missing)}: found {names[:300]}; name {what}{unreadable} "
        f"({path.name}): {command(path, **fields)}"
    )


def _time_by_values(columns: Sequence[Column], kind_of: Callable[[Column], TimeKind]) -> str:
    """The column that holds times, or "Date+Time"; NAME where none does."""
    kinds = {column: kind_of(column) for column in columns[:MAX_LOOKED_AT]}

    for wanted in ("absolute", "moment"):
        whole = [_pointer(column) for column, kind in kinds.items() if kind == wanted]
        if whole:
            return whole[0]

    dates = [_pointer(column) for column, kind in kinds.items() if kind == "date"]
    clocks = [_pointer(column) for column, kind in kinds.items() if kind == "clock"]
    return f"{dates[0]}+{clocks[0]}" if dates and clocks else "NAME"


def _pointer(column: Column) -> str:
    """What `_named` finds a column by: its place where its name cannot be typed."""
    is_typed = 0 < len(column.name) <= LONGEST_TYPED and "\ufffd" not in column.name
    return column.name if is_typed else str(column.at + 1)
