"""The times in label files, in UTC; nothing about them is guessed."""

import numbers
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd

from moola.data.labels import refuse_first
from moola.data.series import NO_TIME
from moola.data.time_values import (
    COMPACT_CLOCK,
    COMPACT_MOMENT,
    EPOCH_UNITS,
    SECOND_NS,
    SHORT_YEAR,
    YEAR_LAST,
    clock_and_zone,
    epoch_unit,
    read_clock,
    read_day,
    read_offset,
    split_moment,
    undotted,
)
from moola.data.times import fitting_formats, name_of_clock
from moola.errors import DataError
from moola.specs import LabelConfig
from moola.text import quoted


@dataclass(frozen=True)
class _Moment:
    """Nanoseconds since 1970 in UTC; or on the clocks of `zone`, or of one that is not stated."""

    ns: int
    is_local: bool = False
    zone: ZoneInfo | None = None

    @property
    def needs_zone(self) -> bool:
        return self.is_local and self.zone is None


def to_utc(
    column: "pd.Series[Any]",
    config: LabelConfig,
    place: str,
) -> pd.DatetimeIndex:
    """[n] the times of a column in UTC, NaT where there is none.

    They are timestamps, numbers since 1970 or text, with a zone or in `config.timezone`. Raises
    DataError with row and value for what is no time, a naive time without a zone, one that daylight
    saving skips or repeats, and a date whose day and month could be swapped.
    """
    name = str(column.name)
    values = [str(value) for value in column]
    digits = _clock_digits(values)
    moments = [_read(value, config.time_format, digits) for value in column]

    def refuse(broken: list[bool], rule: str) -> None:
        refuse_first(np.array(broken, np.bool_), rule, values, column.index, place)

    _refuse_no_times(column, moments, config, place)
    needs_zone = [moment is not None and moment.needs_zone for moment in moments]
    zone = _zone_of_naive(config, name, is_needed=any(needs_zone))

    if zone is None and any(needs_zone):
        first = moments[needs_zone.index(True)]
        assert first is not None
        refuse(
            needs_zone,
            f"{name} has no zone: write {pd.Timestamp(first.ns):%Y-%m-%dT%H:%M}Z where it is UTC, "
            f"or give --timezone, such as America/New_York",
        )

    utc = np.array([_utc_ns(moment, zone) for moment in moments], np.int64)
    is_lost = [
        ns == NO_TIME and moment is not None for ns, moment in zip(utc, moments, strict=True)
    ]
    refuse(is_lost, f"{name} must exist once in its zone, and clocks that change skip or repeat it")

    return pd.DatetimeIndex(utc.view("datetime64[ns]")).tz_localize("UTC")


def _refuse_no_times(
    column: "pd.Series[Any]",
    moments: list[_Moment | None],
    config: LabelConfig,
    place: str,
) -> None:
    is_missing = column.isna().to_numpy(np.bool_)
    is_unread = np.array([moment is None for moment in moments], np.bool_) & ~is_missing
    could_be_swapped = np.array([_could_be_swapped(value) for value in column], np.bool_)

    if config.time_format is not None:
        rule = f"{column.name} must be as labels.time_format says, {config.time_format}"
    else:
        rule = f"{column.name} must be a time such as 2024-03-04T21:35Z"
        swapped = [str(value).strip() for value in column[is_unread & could_be_swapped]]
        refuse_first(
            is_unread & could_be_swapped,
            f"{column.name} must not be guessed where day and month could be swapped: write "
            f"2024-03-04 21:35, or --set 'labels.time_format={_likely_format(swapped)}'",
            column.tolist(),
            column.index,
            place,
        )
    refuse_first(is_unread, rule, column.tolist(), column.index, place)


def _could_be_swapped(value: object) -> bool:
    if not isinstance(value, str):
        return False
    day, _ = split_moment(value)
    return bool(YEAR_LAST.fullmatch(day) or SHORT_YEAR.fullmatch(day))


def _likely_format(values: list[str]) -> str:
    """The first format of a date and time of day that fits all values."""
    parts = [split_moment(value) for value in values]
    if not parts:
        return ""
    days = [day for day, _ in parts]
    fits = fitting_formats(days)
    clock, _ = clock_and_zone(parts[0][1])
    mark = values[0][len(days[0]) :][:1]  # a blank or T
    return "".join([*fits[:1], *([mark, name_of_clock(clock)] if clock else [])])


def _zone_of_naive(config: LabelConfig, name: str, *, is_needed: bool) -> ZoneInfo | None:
    """The zone that the spec gives. Raises DataError where the times have one already."""
    if config.timezone is None:
        return None
    if not is_needed and config.timezone != "UTC":
        raise DataError(
            f"labels.timezone is for naive times: {config.timezone} given, but {name} states its "
            f"zone already; leave it out"
        )

    try:
        return ZoneInfo(config.timezone)
    except (KeyError, ValueError, OSError) as error:
        raise DataError(
            f"labels.timezone must be an IANA name such as America/New_York, "
            f"got {quoted(config.timezone)}"
        ) from error


def _utc_ns(moment: _Moment | None, zone: ZoneInfo | None) -> int:
    """NO_TIME where there is none, or none that exists once."""
    if moment is None:
        return NO_TIME
    if not moment.is_local:
        return moment.ns

    local = pd.Timestamp(moment.ns)
    time = local.tz_localize(
        moment.zone or zone,
        ambiguous="NaT",
        nonexistent="NaT",
    )
    return int(time.value)


# --- single values --------------------------------------------------------------------------------


def _clock_digits(values: list[str]) -> int:
    """4 where the times of day of a column are HHMM, 6 where they are HHMMSS without colons;
    leading zeros may be lost.
    """
    clocks = [clock_and_zone(split_moment(value.strip())[1])[0] for value in values]
    longest = max((len(clock) for clock in clocks if COMPACT_CLOCK.fullmatch(clock)), default=0)
    return 4 if longest <= 4 else 6


def _read(value: object, time_format: str | None, digits: int) -> _Moment | None:
    """None for what is missing or no time."""
    if value is pd.NaT or isinstance(value, bool):
        return None
    if isinstance(value, datetime):
        return _of_datetime(value)
    if isinstance(value, numbers.Real):
        return _of_number(str(value))
    if not isinstance(value, str):
        return None
    if time_format is not None:
        return _of_format(value, time_format)
    return _of_text(value.strip(), digits)


def _of_datetime(value: datetime) -> _Moment:
    time = pd.Timestamp(value)
    return _Moment(time.value, is_local=time.tzinfo is None)


def _of_number(value: str) -> _Moment | None:
    """Seconds, milliseconds, microseconds or nanoseconds since 1970, by their size."""
    unit = epoch_unit(value)
    if unit is None:
        return None

    number = int(value) if value.isdigit() else float(value)
    return _Moment(round(number * (SECOND_NS // EPOCH_UNITS[unit])))


def _of_format(value: str, time_format: str) -> _Moment | None:
    try:
        return _of_datetime(datetime.strptime(undotted(value.strip()), time_format))
    except ValueError:
        return None


def _of_text(value: str, digits: int) -> _Moment | None:
    """2024-03-04T21:35Z, 2024-03-04 16:35:00 US/Eastern, 20240304 213500, 1709588100; `digits`
    are those of a time of day without colons.
    """
    if epoch_unit(value) is not None:
        return _of_number(value)

    day, rest = split_moment(value)
    if COMPACT_MOMENT.fullmatch(value):
        day, rest = value[:8], value[8:]
        digits = len(rest)

    clock, zone = clock_and_zone(rest)
    day_ns = read_day(day, "ymd", None)
    clock_ns = read_clock(clock, digits)
    if day_ns is None or clock_ns is None:
        return None

    offset_ns = read_offset(zone)
    local_ns = day_ns + clock_ns
    if not zone:
        return _Moment(local_ns, is_local=True)
    if offset_ns is not None:
        return _Moment(local_ns - offset_ns)
    return _in_named_zone(local_ns, zone)


def _in_named_zone(local_ns: int, name: str) -> _Moment | None:
    if "/" not in name:
        return None
    try:
        return _Moment(local_ns, is_local=True, zone=ZoneInfo(name))
    except (KeyError, ValueError, OSError):
        return None
