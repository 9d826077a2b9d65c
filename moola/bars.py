"""1-minute bars in: a parquet or CSV file becomes a checked, UTC, float64 frame; owns the clock convention.

A bar carries the minute it OPENED, so it is known one minute later. Rows are counted from 0, a header not included.
A file is read batch by batch into arrays of the result's size; every rule is then checked over the whole file.
"""

import csv
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from moola import WINDOW
from moola.errors import DataError

PRICES = ("open", "high", "low", "close")
TIME_NAMES = ("timestamp", "datetime", "ts_event")
SESSION_BREAK_MINUTES = 30  # longer than any pause inside a CME session, shorter than the daily halt of 60
MAX_DROPPED_FRACTION = 0.01

_MINUTE_NS = 60_000_000_000
_BATCH_ROWS = 65_536
_NO_TIME = np.iinfo(np.int64).min  # how numpy stores NaT
_ZONE_OFFSET = re.compile(r":\d\d.*(Z|[+-]\d\d(:?\d\d)?)\s*$")

# What each broken rule is called in counts -> the rule in words. The order is that of checking: a row counts once,
# under the first rule it breaks, and the two rules of order look only at rows that are good by themselves.
RULES = {
    "time_missing": "every bar must have a time",
    "time_not_whole_minute": "a bar must open on a whole minute",
    "price_not_positive": "prices must be finite and > 0",
    "high_below_low": "high must be >= low",
    "open_outside_range": "open must lie in [low, high]",
    "close_outside_range": "close must lie in [low, high]",
    "volume_negative": "volume must be finite and >= 0",
    "time_not_increasing": "bars must be in time order",
    "duplicate_minute": "a minute must have one bar",
}
_CODES = {name: np.uint8(code) for code, name in enumerate(RULES, start=1)}  # 0 is a good row


@dataclass(frozen=True)
class Gaps:
    """Places where the next bar is more than a minute later."""

    count: int
    longest_minutes: int  # from one bar to the next; 0 where there is no gap
    longest_after: pd.Timestamp | None  # the bar before the longest gap
    session_breaks: int  # gaps of at least SESSION_BREAK_MINUTES


@dataclass(frozen=True)
class BarsReport:
    """What was found in a file of bars."""

    n_bars: int
    first: pd.Timestamp
    last: pd.Timestamp
    dropped: dict[str, int]  # rule (a key of RULES) -> rows
    dropped_minutes: tuple[pd.Timestamp, ...]  # in file order; rows without a time are only counted
    gaps: Gaps
    has_volume: bool  # False too where the column is there and 0 everywhere

    def as_dict(self) -> dict[str, Any]:
        """The same, ready for JSON: times as ISO text in UTC."""
        after = self.gaps.longest_after
        return {
            "n_bars": self.n_bars,
            "first": self.first.isoformat(),
            "last": self.last.isoformat(),
            "dropped": dict(self.dropped),
            "dropped_minutes": [minute.isoformat() for minute in self.dropped_minutes],
            "gaps": {
                "count": self.gaps.count,
                "longest_minutes": self.gaps.longest_minutes,
                "longest_after": None if after is None else after.isoformat(),
                "session_breaks": self.gaps.session_breaks,
            },
            "has_volume": self.has_volume,
        }


@dataclass(frozen=True)
class Bars:
    """Checked bars: `frame` indexed by "timestamp" (UTC, ns, increasing), float64 columns open, high, low, close
    and volume where the file has one; `flagged` [n_bars] True for a bar that follows dropped rows."""

    frame: pd.DataFrame
    report: BarsReport
    flagged: NDArray[np.bool_]


def read_bars(path: Path, *, timezone: str | None = None, on_bad_bars: Literal["fail", "drop"] = "fail") -> Bars:
    """The bars of a local parquet or CSV file (also .csv.gz), at least WINDOW of them.

    Time is the pandas index or a column of TIME_NAMES, column names in any case; open, high, low, close (float, int or
    decimal) are required, volume is optional, anything else is ignored. CSV times are ISO 8601 text. Times with a zone
    are converted to UTC; naive ones need `timezone`, an IANA name. For times with a zone `timezone` must be left out,
    or name the very zone that the file states.

    "drop" removes rows that break one of RULES (of a duplicate the later one, out of order the one that steps back),
    at most MAX_DROPPED_FRACTION of them. A time that daylight saving makes ambiguous or skips, and a CSV row that
    cannot be parsed, fail in both modes. Raises DataError.
    """
    rows = _load(_open(path, timezone))
    broken = _broken_rules(rows)
    bad = broken != 0
    if bad.any():
        _refuse_bad(rows, broken, on_bad_bars)
    n_good = len(bad) - np.count_nonzero(bad)
    if n_good < WINDOW:
        raise DataError(f"a file must hold at least {WINDOW} good bars, got {n_good} ({path.name})")
    flagged = np.zeros(len(bad), dtype=np.bool_)
    flagged[1:] = bad[:-1]
    frame = _frame(rows)
    if bad.any():
        frame, flagged = frame[~bad], flagged[~bad]
    dropped_minutes = _utc(rows.times[bad & (rows.times != _NO_TIME)])
    return Bars(frame, _report(frame, _counts(broken), dropped_minutes), flagged)


def probe_bars(path: Path, timezone: str | None = None) -> None:
    """The cheap part of read_bars: file, columns, types, zone, and rows as far as the footer or first block show them.

    Raises DataError.
    """
    source = _open(path, timezone)
    if source.parquet is None:
        with _readable(path):
            next(source.batches(), None)
    elif source.parquet.metadata.num_rows < WINDOW:
        n_rows = source.parquet.metadata.num_rows
        raise DataError(f"a file must hold at least {WINDOW} good bars, got {n_rows} ({path.name})")


def write_bars(frame: pd.DataFrame, destination: Path | IO[bytes]) -> None:
    """Bars as parquet, `timestamp` in UTC first: the same frame gives the same bytes (with the same pyarrow)."""
    index = frame.index
    if not isinstance(index, pd.DatetimeIndex) or index.tz is None:
        raise DataError(f"bars must be indexed by times with a zone, got {index.dtype}")
    columns = {"timestamp": pa.array(index.tz_convert("UTC").as_unit("ns").asi8).cast(pa.timestamp("ns", "UTC"))}
    for name in (*PRICES, "volume"):
        if name in frame:
            columns[name] = pa.array(frame[name].to_numpy(np.float64))
    pa.parquet.write_table(pa.table(columns), destination, compression="zstd", row_group_size=2 * _BATCH_ROWS)


# --- opening: which columns hold what ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """An opened file whose columns are known; `columns`: our name -> the file's, "time" first."""

    path: Path
    columns: dict[str, str]
    zone: ZoneInfo | None  # of naive times
    parquet: pa.parquet.ParquetFile | None
    time_type: pa.DataType

    def most_rows(self) -> int:
        """Exact for parquet; for CSV its lines, counted without parsing."""
        if self.parquet is not None:
            return int(self.parquet.metadata.num_rows)
        with pa.input_stream(self.path) as stream:
            blocks: Iterator[bytes] = iter(lambda: stream.read(1 << 20), b"")
            return 1 + sum(block.count(b"\n") + block.count(b"\r") for block in blocks)

    def batches(self) -> Iterator[pa.RecordBatch]:
        if self.parquet is not None:
            return iter(self.parquet.iter_batches(_BATCH_ROWS, columns=list(self.columns.values())))
        types = {name: pa.float64() for name in self.columns.values()} | {self.columns["time"]: self.time_type}
        return iter(
            pa.csv.open_csv(
                pa.input_stream(self.path),
                read_options=pa.csv.ReadOptions(use_threads=False),  # threads lose the row numbers of errors
                convert_options=pa.csv.ConvertOptions(column_types=types, include_columns=list(types)),
            )
        )


def _open(path: Path, timezone: str | None) -> _Source:
    if not path.is_file():
        raise DataError(f"bars must be a file, and there is none at {path}")
    with _readable(path):
        with path.open("rb") as file:
            is_parquet = file.read(4) == b"PAR1" or path.suffix.lower() in (".parquet", ".pq")
        return _open_parquet(path, timezone) if is_parquet else _open_csv(path, timezone)


def _open_parquet(path: Path, timezone: str | None) -> _Source:
    file = pa.parquet.ParquetFile(path)
    schema = file.schema_arrow
    index = [name for name in (schema.pandas_metadata or {}).get("index_columns", []) if name in schema.names]
    is_time = len(index) == 1 and pa.types.is_timestamp(schema.field(index[0]).type)
    columns = _find_columns(schema.names, index[0] if is_time else None, path)
    for ours, name in columns.items():
        _check_type(ours, name, schema.field(name).type, path)
    time_type = schema.field(columns["time"]).type
    zone = _zone_of(time_type.tz, timezone, path)
    return _Source(path, columns, zone, file, time_type)


def _open_csv(path: Path, timezone: str | None) -> _Source:
    with io.TextIOWrapper(pa.input_stream(path), encoding="utf-8-sig", newline="") as text:
        reader = csv.reader(text)
        header = next(reader, [])
        if not header:
            raise DataError(f"a file must hold at least {WINDOW} bars, and this one is empty ({path.name})")
        head = [row for row in islice(reader, 100) if row]
        # pandas writes an index without a name as a first column without a name, be it times or a count of rows
        is_index = header[0] == "" and any(":" in row[0] for row in head)
        columns = _find_columns(header, "" if is_index else None, path)
        at = header.index(columns["time"])
        first_time = next((row[at] for row in head if len(row) > at and row[at]), "")
    tz = "UTC" if _ZONE_OFFSET.search(first_time) else None
    return _Source(path, columns, _zone_of(tz, timezone, path), None, pa.timestamp("ns", tz))


def _find_columns(names: list[str], index: str | None, path: Path) -> dict[str, str]:
    """Our name -> the file's name, "time" first; `index` is the column that pandas kept its index in."""
    found: dict[str, str] = {}
    times = [name for name in names if name == index or _plain(name) in TIME_NAMES]
    if len(times) > 1:
        raise DataError(f"the time must be in one column, found {' and '.join(times)} ({path.name})")
    if times:
        found["time"] = times[0]
    for ours in (*PRICES, "volume"):
        matches = [name for name in names if _plain(name) == ours]
        if len(matches) > 1:
            raise DataError(f"a column must occur once in any case, found {' and '.join(matches)} ({path.name})")
        if matches:
            found[ours] = matches[0]
    missing = [ours for ours in ("time", *PRICES) if ours not in found]
    if missing:
        wanted = [f"time (an index, or one of {', '.join(TIME_NAMES)})" if m == "time" else m for m in missing]
        raise DataError(f"missing column {' and '.join(wanted)}: found {', '.join(names)[:300]} ({path.name})")
    return found


def _plain(name: str) -> str:
    return name.strip().lower()


def _check_type(ours: str, name: str, found: pa.DataType, path: Path) -> None:
    if ours == "time":
        if not pa.types.is_timestamp(found):
            raise DataError(f"the time must be of a timestamp type: {name} is {found} ({path.name})")
        return
    kinds = (pa.types.is_floating, pa.types.is_integer, pa.types.is_decimal, pa.types.is_null)
    if not any(is_kind(found) for is_kind in kinds):
        raise DataError(f"{ours} must be of a float, int or decimal type: {name} is {found} ({path.name})")


def _zone_of(stated: str | None, timezone: str | None, path: Path) -> ZoneInfo | None:
    """The zone to read naive times in; None where the file states its own."""
    if stated is not None:
        if timezone not in (None, stated):
            raise DataError(
                f"timezone is for naive times: {timezone} given, but the times are in {stated} already; "
                f"leave timezone out ({path.name})"
            )
        return None
    if timezone is None:
        raise DataError(
            f"the times must have a zone, and these are naive: set timezone: to theirs, such as America/New_York "
            f"({path.name})"
        )
    try:
        return ZoneInfo(timezone)
    except (KeyError, ValueError, OSError) as error:
        raise DataError(f"timezone must be an IANA name such as America/New_York, got {timezone!r}") from error


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError, csv.Error) as error:
        # Arrow counts CSV rows from 1 with the header as the first
        text = re.sub(r"[Rr]ow #(\d+)", lambda match: f"row {int(match[1]) - 2}", str(error))
        raise DataError(f"bars must be readable parquet or CSV: {text} ({path.name})") from error


# --- loading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rows:
    """A file's rows as they are: UTC times in ns [n_rows], values [4 or 5, n_rows]; missing is _NO_TIME and NaN."""

    times: NDArray[np.int64]
    values: NDArray[np.float64]
    file: str

    def minute(self, row: int) -> str:
        time = self.times[row]
        return "no time" if time == _NO_TIME else f"{pd.Timestamp(time):%Y-%m-%d %H:%M} UTC"


def _load(source: _Source) -> _Rows:
    most = source.most_rows()
    times = np.empty(most, dtype=np.int64)
    values = np.empty((len(source.columns) - 1, most))
    n_rows = 0
    with _readable(source.path):
        for batch in source.batches():
            rows = slice(n_rows, n_rows + batch.num_rows)
            time, *numbers = (batch.column(name) for name in source.columns.values())
            times[rows] = _to_utc_ns(time, source, n_rows)
            for of_column, number in zip(values, numbers, strict=True):
                of_column[rows] = _to_float64(number)
            n_rows = rows.stop
    values = values[:, :n_rows]
    if len(values) > len(PRICES) and np.isnan(values[-1]).all():
        values = values[: len(PRICES)]  # a volume column without a single value is no volume column
    return _Rows(times[:n_rows], values, source.path.name)


def _to_float64(column: pa.Array) -> NDArray[np.float64]:
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.string())  # Arrow's own decimal -> double is off by a bit for every second value
    values: NDArray[np.float64] = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return values


def _to_utc_ns(column: pa.Array, source: _Source, first_row: int) -> NDArray[np.int64]:
    ns = column.cast(pa.timestamp("ns", column.type.tz)).cast(pa.int64()).fill_null(int(_NO_TIME))
    times: NDArray[np.int64] = ns.to_numpy(zero_copy_only=False)
    if source.zone is None:
        return times
    naive = pd.DatetimeIndex(times.view("datetime64[ns]"))
    utc: NDArray[np.int64] = naive.tz_localize(source.zone, ambiguous="NaT", nonexistent="NaT").asi8
    lost = np.flatnonzero((utc == _NO_TIME) & (times != _NO_TIME))
    if len(lost):
        at = naive[lost[0]]
        skipped = at.tz_localize(source.zone, ambiguous=True, nonexistent="NaT") is pd.NaT
        what = "is skipped (clocks go forward)" if skipped else "happens twice (clocks go back)"
        raise DataError(
            f"a naive time must exist once in its zone: {at} {what} in {source.zone.key} "
            f"(row {first_row + lost[0]}, {source.path.name})"
        )
    return utc


# --- the rules --------------------------------------------------------------------------------------------------------


def _broken_rules(rows: _Rows) -> NDArray[np.uint8]:
    """[n_rows] code of the first rule each row breaks, 0 where it is good."""
    times, values = rows.times, rows.values
    open_, high, low, close = values[:4]
    broken = np.zeros(len(times), dtype=np.uint8)

    def mark(name: str, is_broken: NDArray[np.bool_]) -> None:
        broken[is_broken & (broken == 0)] = _CODES[name]

    mark("time_missing", times == _NO_TIME)
    mark("time_not_whole_minute", times % _MINUTE_NS != 0)
    for price in values[:4]:
        mark("price_not_positive", ~((price > 0) & (price < np.inf)))
    mark("high_below_low", high < low)
    mark("open_outside_range", (open_ < low) | (open_ > high))
    mark("close_outside_range", (close < low) | (close > high))
    for volume in values[4:]:
        mark("volume_negative", ~((volume >= 0) & (volume < np.inf)))

    good = np.flatnonzero(broken == 0)
    latest = np.maximum.accumulate(times[good])
    broken[good[1:][times[good][1:] < latest[:-1]]] = _CODES["time_not_increasing"]
    broken[good[1:][times[good][1:] == latest[:-1]]] = _CODES["duplicate_minute"]
    return broken


def _refuse_bad(rows: _Rows, broken: NDArray[np.uint8], on_bad_bars: Literal["fail", "drop"]) -> None:
    """Raises DataError unless the bad rows may be dropped: the first in full, the rest counted."""
    first = int(np.flatnonzero(broken)[0])
    n_bad = np.count_nonzero(broken)
    fraction = n_bad / len(broken)
    message = _fault(rows, broken, first)
    if on_bad_bars == "fail":
        more = f"; {n_bad - 1} more bad rows: {_in_words(broken[first + 1 :])}" if n_bad > 1 else ""
        raise DataError(message + more)
    if fraction > MAX_DROPPED_FRACTION:
        raise DataError(
            f"at most {MAX_DROPPED_FRACTION:.0%} of the rows may be dropped: {n_bad} of {len(broken)} "
            f"({fraction:.2%}) are bad: {_in_words(broken)}; the first: {message}"
        )


def _counts(broken: NDArray[np.uint8]) -> dict[str, int]:
    counts = np.bincount(broken, minlength=len(RULES) + 1)[1:].tolist()
    return {name: n for name, n in zip(RULES, counts, strict=True) if n}


def _in_words(broken: NDArray[np.uint8]) -> str:
    return ", ".join(f"{name} {n}" for name, n in _counts(broken).items())


def _fault(rows: _Rows, broken: NDArray[np.uint8], row: int) -> str:
    """The rule that the first bad row breaks, its value and its place."""
    name = list(RULES)[broken[row] - 1]
    bar = dict(zip((*PRICES, "volume"), rows.values[:, row].tolist(), strict=False))
    match name:
        case "time_missing":
            value = "the time is null"
        case "time_not_whole_minute":
            value = str(pd.Timestamp(rows.times[row], tz="UTC"))
        case "price_not_positive":
            value = next(f"{price} {bar[price]}" for price in PRICES if not 0 < bar[price] < np.inf)
        case "high_below_low":
            value = f"high {bar['high']} < low {bar['low']}"
        case "open_outside_range" | "close_outside_range":
            price = name.partition("_")[0]
            value = f"{price} {bar[price]} not in [{bar['low']}, {bar['high']}]"
        case "volume_negative":
            value = f"volume {bar['volume']}"
        case _:  # the two rules of order; rows before the first bad one are in order
            value = f"{rows.minute(row)} follows {rows.minute(row - 1)}"
    return f"{RULES[name]}: {value} (row {row}, {rows.minute(row)}, {rows.file})"


# --- the result -------------------------------------------------------------------------------------------------------


def _utc(times: NDArray[np.int64]) -> pd.DatetimeIndex:
    return pd.DatetimeIndex(times.view("datetime64[ns]"), tz="UTC", name="timestamp")


def _frame(rows: _Rows) -> pd.DataFrame:
    columns = [*PRICES, "volume"][: len(rows.values)]
    return pd.DataFrame(rows.values.T, index=_utc(rows.times), columns=columns, copy=False)


def _report(frame: pd.DataFrame, dropped: dict[str, int], dropped_minutes: pd.DatetimeIndex) -> BarsReport:
    index = pd.DatetimeIndex(frame.index)
    has_volume = "volume" in frame and bool((frame["volume"] > 0).any())
    minutes = tuple(dropped_minutes)
    return BarsReport(len(index), index[0], index[-1], dropped, minutes, _gaps(index), has_volume)


def _gaps(index: pd.DatetimeIndex) -> Gaps:
    minutes = np.diff(index.asi8) // _MINUTE_NS
    gaps = minutes[minutes > 1]
    if not len(gaps):
        return Gaps(0, 0, None, 0)
    longest = int(minutes.argmax())
    return Gaps(len(gaps), int(gaps.max()), index[longest], int((gaps >= SESSION_BREAK_MINUTES).sum()))
