"""Columns of times to UTC nanoseconds: typed timestamps, numbers since 1970, and text.

The names of days and minutes repeat, so each is read once per block and not once per row.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from moola.data.series import NO_TIME
from moola.data.time_values import (
    EARLIEST_S,
    EPOCH_UNITS,
    LATEST_S,
    MIDNIGHT,
    SECOND_NS,
    clock_and_zone,
    read_clock,
    read_clock_as,
    read_day,
    read_offset,
)
from moola.data.times import TimeFormat
from moola.errors import DataError
from moola.features.arrays import Ints
from moola.text import quoted


def to_utc_ns(
    columns: Sequence[pa.Array],
    form: TimeFormat,
    first_row: int,
    path: Path,
) -> Ints:
    """[n_rows] UTC nanoseconds of a block, NO_TIME where there is none. Raises DataError with the
    row.
    """
    first = columns[0]

    if pa.types.is_timestamp(first.type) and len(columns) == 1:
        times = _of_timestamps(first)
    elif form.how == "epoch":
        times = _of_epochs(first, first_row, path)
    elif form.how == "format":
        return _of_format(columns, form, first_row, path)
    else:
        return _of_text(columns, form, first_row, path)

    return times if form.zone is None else localized(times, form.zone, first_row, path)


def localized(times: Ints, zone: ZoneInfo, first_row: int, path: Path) -> Ints:
    """UTC of naive times. Raises DataError for one that daylight saving skips or repeats."""
    if zone.key == "UTC":
        return times

    naive = pd.DatetimeIndex(times.view("datetime64[ns]"))
    utc: Ints = naive.tz_localize(zone, ambiguous="NaT", nonexistent="NaT").asi8
    lost = np.flatnonzero((utc == NO_TIME) & (times != NO_TIME))

    if len(lost):
        at = naive[lost[0]]
        is_skipped = at.tz_localize(zone, ambiguous=True, nonexistent="NaT") is pd.NaT
        what = "is skipped (clocks go forward)" if is_skipped else "happens twice (clocks go back)"
        raise DataError(
            f"a naive time must exist once in its zone: {at} {what} in {zone.key} "
            f"(row {first_row + lost[0]}, {path.name})"
        )
    return utc


def _of_timestamps(column: pa.Array) -> Ints:
    ns = column.cast(pa.timestamp("ns", column.type.tz)).cast(pa.int64())
    times: Ints = ns.fill_null(NO_TIME).to_numpy(zero_copy_only=False)
    return times


def _of_epochs(column: pa.Array, first_row: int, path: Path) -> Ints:
    """Each number by its own size, so that a file may change from milliseconds to microseconds."""
    written = column
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = _whole_numbers(column)
    if not pa.types.is_integer(column.type):
        column = pc.floor(column.cast(pa.float64())).cast(pa.int64(), safe=False)

    numbers = column.cast(pa.int64(), safe=False).fill_null(NO_TIME).to_numpy(zero_copy_only=False)
    times = np.full(len(numbers), NO_TIME, dtype=np.int64)

    for per_second in EPOCH_UNITS.values():
        fits = (numbers >= EARLIEST_S * per_second) & (numbers <= LATEST_S * per_second)
        times[fits] = numbers[fits] * (SECOND_NS // per_second)

    lost = np.flatnonzero((times == NO_TIME) & (numbers != NO_TIME))
    if len(lost):
        raise DataError(
            f"the time must be one: {written[int(lost[0])].as_py()} is no time since 1970 between "
            f"1990 and 2100 "
            f"(row {first_row + lost[0]}, {path.name})"
        )
    return times


def _whole_numbers(text: pa.Array) -> pa.Array:
    """Text such as 1709586000, 1709586000.0 as pandas writes a column with gaps, or 1.709586e+18 as
    NumPy writes one of floats.
    """
    text = _without_exponent(pc.utf8_trim_whitespace(text))
    text = pc.replace_substring_regex(text, r"\.\d*$", "")
    is_number = pc.match_substring_regex(text, r"^\d{9,19}$")
    is_empty = pc.equal(text, "")
    text = pc.if_else(is_number, text, pc.if_else(is_empty, None, "0"))
    return text.cast(pa.int64())


def _without_exponent(text: pa.Array) -> pa.Array:
    """Whole minutes in ns are exact as floats: they are multiples of 2 ** 11."""
    is_scientific = pc.match_substring_regex(text, r"^\d(\.\d+)?[eE]\+?\d{1,2}$")
    if not pc.any(is_scientific, min_count=0).as_py():
        return text

    numbers = pc.if_else(is_scientific, text, None).cast(pa.float64())
    whole = numbers.cast(pa.int64(), safe=False).cast(pa.string())
    return pc.if_else(is_scientific, whole, text)


def _of_format(
    columns: Sequence[pa.Array],
    form: TimeFormat,
    first_row: int,
    path: Path,
) -> Ints:
    text = _joined(columns)
    values = text.to_pandas()
    times = pd.to_datetime(
        values,
        format=form.date_format,
        errors="coerce",
        utc=form.stated,
    )
    index = pd.DatetimeIndex(times).as_unit("ns")
    ns: Ints = index.asi8

    filled = pc.not_equal(text, "").fill_null(False).to_numpy(zero_copy_only=False)
    lost = np.flatnonzero((ns == NO_TIME) & filled)
    if len(lost):
        raise DataError(
            f"the time must be as time_format says: {quoted(text[int(lost[0])].as_py())} is not "
            f"{form.date_format} "
            f"(row {first_row + lost[0]}, {path.name})"
        )
    return ns if form.zone is None else localized(ns, form.zone, first_row, path)


def _joined(columns: Sequence[pa.Array]) -> pa.Array:
    trimmed = [pc.utf8_trim_whitespace(_text(column)) for column in columns]
    if len(trimmed) == 1:
        return trimmed[0]
    return pc.utf8_trim_whitespace(pc.binary_join_element_wise(*trimmed, " "))


def _text(column: pa.Array) -> pa.Array:
    """Text of any column: dates of a typed column as ISO, whole numbers without a point."""
    return column if pa.types.is_string(column.type) else column.cast(pa.string())


def _of_text(
    columns: Sequence[pa.Array],
    form: TimeFormat,
    first_row: int,
    path: Path,
) -> Ints:
    if len(columns) == 2:
        days, rests = (pc.utf8_trim_whitespace(_text(column)) for column in columns)
        if "%H" not in (form.date_format or ""):
            days = pc.replace_substring_regex(days, MIDNIGHT.pattern, "")
    else:
        days, rests = _split_column(pc.utf8_trim_whitespace(_text(columns[0])))
        if not form.stated:  # R writes no time of day at midnight
            midnight = datetime.min.strftime(form.clock_format or "%H:%M")
            is_midnight = pc.and_(pc.equal(rests, ""), pc.not_equal(days, ""))
            rests = pc.if_else(is_midnight, midnight, rests)

    try:
        day_ns = _mapped(
            days,
            lambda value: read_day(value, form.date_order, form.date_format),
        )
        clock_ns, zones = _clock_column(rests, form)
    except _BadValueError as error:
        written = " ".join(str(column[error.row].as_py()).strip() for column in columns)
        zone = "with a zone" if form.stated else "without a zone"
        raise DataError(
            f"the time must be written as in the first rows ({form.description}, {zone}): "
            f"{quoted(written)} is not (row {first_row + error.row}, {path.name})"
        ) from error

    times = np.where(
        (day_ns == NO_TIME) | (clock_ns == NO_TIME),
        NO_TIME,
        day_ns + clock_ns,
    )
    in_zone = _named_zone(zones, path) or form.zone
    return times if in_zone is None else localized(times, in_zone, first_row, path)


def _split_column(text: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Dates and the rest, cut at the first blank or T; at the same letter in all rows where that is
    possible.
    """
    if pc.all(
        pc.match_substring_regex(text, r"^(\d{12}(\d{2})?)?$"),
        min_count=0,
    ).as_py():
        return pc.utf8_slice_codeunits(text, 0, 8), pc.utf8_slice_codeunits(text, 8)

    mark = " " if pc.any(pc.match_substring(text, " "), min_count=0).as_py() else "T"
    filled = pc.if_else(pc.equal(text, ""), None, text)
    places = pc.min_max(pc.find_substring(filled, mark))
    first, last = places["min"].as_py(), places["max"].as_py()

    if first is not None and first == last and first > 0:
        days = pc.utf8_slice_codeunits(text, 0, first)
        rests = pc.utf8_slice_codeunits(text, first + 1)
    else:
        parts = pc.extract_regex(text, r"^(?P<day>[^ T]*)[ T]?(?P<rest>.*)$")
        days, rests = parts.field("day"), parts.field("rest")
    return days, pc.utf8_trim_whitespace(rests)


class _BadValueError(ValueError):
    def __init__(self, value: str, row: int) -> None:
        super().__init__(value)
        self.value = value
        self.row = row


def _mapped(text: pa.Array, read: Callable[[str], int | None]) -> Ints:
    """`read` of each distinct value, spread over the rows; "" and null are NO_TIME."""
    encoded = text.dictionary_encode()
    values = [NO_TIME]

    for value in encoded.dictionary.to_pylist():
        number = read(value) if value else NO_TIME
        if number is None:
            row = pc.index(text, value).as_py()
            raise _BadValueError(value, row)
        values.append(number)

    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    spread: Ints = np.array(values, dtype=np.int64)[codes + 1]
    return spread


def _clock_column(rests: pa.Array, form: TimeFormat) -> tuple[Ints, set[str]]:
    """Nanoseconds since the day's beginning, less the offset from UTC; and the zones that are named
    behind.
    """
    zones: set[str] = set()

    def read(value: str) -> int | None:
        if form.clock_format is not None:
            return read_clock_as(value, form.clock_format)

        clock, zone = clock_and_zone(value)
        since_midnight = read_clock(clock, form.clock_digits)
        offset = read_offset(zone)
        if since_midnight is None or bool(zone) != form.stated:
            return None
        if offset is None:
            zones.add(zone)
            return since_midnight
        return since_midnight - offset

    return _mapped(rests, read), zones


def _named_zone(names: set[str], path: Path) -> ZoneInfo | None:
    """The zone that all times name, None where they name none. Raises DataError."""
    if not names:
        return None

    some = ", ".join(sorted(names)[:3])
    if len(names) > 1 or "/" not in some:
        raise DataError(
            f"a zone behind the times must be one IANA name such as America/New_York, or offsets "
            f"such as -05:00, got {some}, which may be several: write offsets, or leave it away "
            f"and give --timezone ({path.name})"
        )
    try:
        return ZoneInfo(some)
    except (KeyError, ValueError, OSError) as error:
        raise DataError(
            "a zone behind the times must be an IANA name such as America/New_York, got "
            f"{quoted(some)} ({path.name})"
        ) from error
