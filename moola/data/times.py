"""How the times of a file are written: found from its first rows, or asked for.

Text is a date and a time of day, in one column or two, with or without a zone behind. Day and month
are never guessed.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Literal
from zoneinfo import ZoneInfo

from moola.data.advice import command
from moola.data.layouts import DateOrder, Layout
from moola.data.time_values import (
    CLOCK,
    COMPACT_CLOCK,
    COMPACT_DATE,
    COMPACT_MOMENT,
    MIDNIGHT,
    NAMED_MONTH,
    SHORT_YEAR,
    YEAR_LAST,
    clock_and_zone,
    epoch_unit,
    kind_of_text,
    split_moment,
)
from moola.errors import DataError
from moola.text import quoted

_SPREADSHEET_DAYS = (
    32_000.0,
    74_000.0,
)  # 1987 to 2102, in days since 1900
_FULL_ISO = re.compile(
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d{1,9})?)?(?P<zone>Z|[+-]\d\d(:?\d\d)?)?"
)
How = Literal["timestamp", "iso", "epoch", "text", "format"]


@dataclass(frozen=True)
class TimeFormat:
    """How times are written. `zone` is that of times which do not state one; `stated` says that
    they do.
    """

    how: How
    description: str
    stated: bool = False
    zone: ZoneInfo | None = None
    date_order: DateOrder = "ymd"
    date_format: str | None = None
    clock_format: str | None = None
    clock_digits: int = 6  # of a time of day without colons: 4 is HHMM, 6 is HHMMSS


def find_format(
    samples: Sequence[Sequence[str]],
    layout: Layout,
    timezone: str | None,
    named_zone: str | None,
    path: Path,
) -> TimeFormat:
    """How the text columns `samples` (one, or date and time of day) are written.

    Raises DataError for what is no time, for dates that need `time_format`, and for times that need
    a zone.
    """
    days = [value for value in samples[0] if value]
    if not days:
        raise DataError(f"every bar must have a time, and the first rows have none ({path.name})")

    if layout.time_format is not None:
        shape = _stated_format(layout.time_format, samples)
    elif len(samples) == 1:
        shape = _shape_of_moments(days, layout, path)
    else:
        shape = _shape_of_parts(days, [value for value in samples[1] if value], layout, path)

    if shape.stated:
        refuse_second_zone(timezone, "UTC", path)
        return shape
    return replace(shape, zone=zone_of_naive(layout, timezone, named_zone, path))


def zone_of_naive(
    layout: Layout,
    timezone: str | None,
    named_zone: str | None,
    path: Path,
) -> ZoneInfo:
    """The zone of times that do not state one: the user's, the column's, the layout's. Raises
    DataError.
    """
    if named_zone is not None:
        refuse_second_zone(timezone, named_zone, path)

    given_zones = (named_zone, timezone, layout.zone)
    name = next((zone for zone in given_zones if zone is not None), None)
    if name is None:
        raise DataError(
            f"the times must have a zone, and these are naive: set timezone: to theirs, such as "
            f"America/New_York "
            f"({path.name}): {command(path, layout=_option(layout), timezone='America/New_York')}"
        )
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise DataError(
            f"timezone must be an IANA name such as America/New_York, got {quoted(name)}"
        ) from error


def refuse_second_zone(timezone: str | None, stated: str, path: Path) -> None:
    """Raises DataError where a zone is given for times that have another."""
    if timezone not in (None, stated):
        raise DataError(
            f"timezone is for naive times: {timezone} given, but the times are in {stated} "
            f"already; "
            f"leave timezone out ({path.name})"
        )


def _option(layout: Layout) -> str | None:
    return None if layout.name == "auto" else layout.name


def _stated_format(time_format: str, samples: Sequence[Sequence[str]]) -> TimeFormat:
    """The user's strptime format; date and time of day are read apart where they can be."""
    stated = "%z" in time_format
    has_clock = "%H" in time_format or "%I" in time_format
    day, _, clock = time_format.partition(" ")
    description = f"{time_format} as given"

    is_apart = has_clock and "%" in clock and not re.search(r"%[HIMSfpz]", day)
    if is_apart and not re.search(r"%[YymdbBjG]", clock):
        return TimeFormat("text", description, stated, None, "ymd", day, clock)
    if len(samples) == 2 and not has_clock:
        digits = _clock_digits(samples[1])
        return TimeFormat("text", description, stated, None, "ymd", time_format, None, digits)
    return TimeFormat("format", description, stated, None, "ymd", time_format, None)


def _shape_of_moments(values: Sequence[str], layout: Layout, path: Path) -> TimeFormat:
    units = {epoch_unit(value) for value in values}
    if None not in units:
        _refuse_shortened(values, path)
        return TimeFormat(
            "epoch",
            f"epoch {'/'.join(sorted(str(unit) for unit in units))}",
            True,
        )

    if all(_FULL_ISO.fullmatch(value) for value in values):
        zones = {bool(_full_iso_zone(value)) for value in values}
        if len(zones) > 1:
            raise DataError(_zones_differ(values, path))
        return TimeFormat("iso", "ISO 8601", zones.pop())

    kind = kind_of_text(values)
    if kind == "date":
        raise DataError(
            f"the bars must be 1 minute apart, and {values[0]} has no time of day: these are "
            f"daily bars, or the time "
            f"of day is in another column ({path.name}): {command(path, time='Date+Time')}"
        )
    if kind not in ("moment", "absolute"):
        raise DataError(_no_time(values, path))

    days = [split_moment(value)[0] for value in values]
    rests = [split_moment(value)[1] for value in values]
    if COMPACT_MOMENT.fullmatch(values[0]):
        days, rests = (
            [value[:8] for value in values],
            [value[8:] for value in values],
        )

    rests = [rest for rest in rests if rest]  # midnight may have none
    order = _date_order(days, rests, layout, path, joined=True)
    description = f"{_name_of(days[0], order)} {name_of_clock(clock_and_zone(rests[0])[0])}"
    if " " in values[0]:
        _refuse_two_meanings(days[0], rests[0], layout, path)
    return TimeFormat(
        "text",
        description,
        stated=kind == "absolute",
        date_order=order,
        clock_digits=_clock_digits(rests),
    )


def _refuse_shortened(values: Sequence[str], path: Path) -> None:
    """Raises DataError for numbers such as 1.74E+12, of which a spreadsheet kept three digits."""
    has_exponent = [value for value in values if "e" in value.lower()]
    if len(set(has_exponent)) * 2 >= len(has_exponent):
        return

    raise DataError(
        f"every bar must have a time of its own, and {values[0]} stands there again and again: a "
        f"spreadsheet has shortened the numbers: format the column as whole numbers and save it "
        f"again, or take the file as it was downloaded ({path.name})"
    )


def _zones_differ(values: Sequence[str], path: Path) -> str:
    has_zone = [_full_iso_zone(value) is not None for value in values]
    row = has_zone.index(not has_zone[0])
    what = "states its zone" if has_zone[row] else "does not state its zone"
    return (
        f"times must be written alike: {values[row]} {what}, and {values[0]} before it is "
        f"otherwise (row {row}, {path.name})"
    )


def _full_iso_zone(value: str) -> str | None:
    match = _FULL_ISO.fullmatch(value)
    return None if match is None else match["zone"]


def _shape_of_parts(
    days: Sequence[str],
    clocks: Sequence[str],
    layout: Layout,
    path: Path,
) -> TimeFormat:
    if kind_of_text(days) != "date":
        raise DataError(_no_time(days, path))
    days = [MIDNIGHT.sub("", day) for day in days]

    clock, zone = clock_and_zone(clocks[0])
    if not clocks or not (CLOCK.fullmatch(clock) or COMPACT_CLOCK.fullmatch(clock)):
        raise DataError(_no_time(clocks, path))

    order = _date_order(days, clocks, layout, path, joined=False)
    description = f"{_name_of(days[0], order)} + {name_of_clock(clock)}"
    return TimeFormat(
        "text",
        description,
        stated=bool(zone),
        date_order=order,
        clock_digits=_clock_digits(clocks),
    )


def _clock_digits(clocks: Sequence[str]) -> int:
    """4 for HHMM, 6 for HHMMSS; leading zeros may be lost."""
    longest = max((len(clock_and_zone(clock)[0]) for clock in clocks), default=0)
    return 4 if longest <= 4 else 6


def _date_order(
    days: Sequence[str],
    rests: Sequence[str],
    layout: Layout,
    path: Path,
    *,
    joined: bool,
) -> DateOrder:
    """Raises DataError where day and month could be swapped and nobody said which is which, or
    years have two digits.
    """
    alike = YEAR_LAST if YEAR_LAST.fullmatch(days[0]) else SHORT_YEAR
    if not alike.fullmatch(days[0]):
        return "ymd"
    mark = next(letter for letter in days[0] if not letter.isdigit())
    is_as_known = alike is YEAR_LAST and layout.date_mark in (None, mark)
    if layout.date_order is not None and is_as_known:
        return layout.date_order

    days = [day for day in days if alike.fullmatch(day)]
    fits = fitting_formats(days)
    fits.sort(key=lambda form: _days_between(days, form))  # bars of one day follow the other's
    clock = f" {_name_of_rest(rests[0])}" if joined else ""
    formats = [form + clock for form in fits]
    shown = f"{days[0]} {rests[0]}" if rests else days[0]

    if not formats:
        raise DataError(_no_time(days, path))
    which = f"it fits {formats[0]}"
    if len(formats) > 1:
        which = f"{' and '.join(formats)} fit, of which the command below has the first"
    vendors = ""
    if layout.name == "auto" and any(form.startswith("%m/%d/%Y") for form in fits):
        vendors = ", or --layout kibot or tradestation where the file is theirs"
    raise DataError(
        f"day and month must not be guessed: {shown} needs time_format, and {which}{vendors} "
        f"({path.name}): {command(path, time_format=formats[0])}"
    )


def fitting_formats(days: Sequence[str]) -> list[str]:
    """The strptime formats that fit dates such as 03/04/2024 or 03.04.24, likeliest first."""
    return [form for form in _candidates(days[0]) if all(_reads(day, form) for day in days)]


def _candidates(day: str) -> list[str]:
    mark = next((letter for letter in day if not letter.isdigit()), "/")
    year = "%Y" if YEAR_LAST.fullmatch(day) else "%y"
    orders = [("%m", "%d", year), ("%d", "%m", year)]
    if mark in ".-":  # of dates that begin with the day: in Europe, in India
        orders.reverse()
    if year == "%y":
        orders.append((year, "%m", "%d"))
    return [mark.join(order) for order in orders]


def _days_between(days: Sequence[str], form: str) -> int:
    """From the first to the last of the days, one after the other."""
    dates = [datetime.strptime(day, form) for day in dict.fromkeys(days)]
    return sum(abs((after - before).days) for before, after in pairwise(dates))


def _reads(day: str, form: str) -> bool:
    try:
        datetime.strptime(day, form)
    except ValueError:
        return False
    return True


def _refuse_two_meanings(day: str, rest: str, layout: Layout, path: Path) -> None:
    """NinjaTrader and HistData write the same text and mean other times: nothing in the file tells
    which.
    """
    is_shared = (
        COMPACT_DATE.fullmatch(day) and re.fullmatch(r"\d{6}", rest) and layout.name == "auto"
    )
    if is_shared and layout.separator is None and layout.stamp is None:
        raise DataError(
            f"times such as {day} {rest} must have a layout: NinjaTrader writes the minute of the "
            f"close in UTC (--layout ninjatrader), HistData that of the open in Eastern Standard "
            f"Time (--layout histdata); of anybody else say what they are: --timezone ZONE and "
            f"--set layout.stamp=open or close ({path.name}): {command(path, layout='ninjatrader')}"
        )


def _no_time(values: Sequence[str], path: Path) -> str:
    value = values[0] if values else ""
    try:
        is_days = _SPREADSHEET_DAYS[0] <= float(value.replace(",", ".")) <= _SPREADSHEET_DAYS[1]
    except ValueError:
        is_days = False

    what = "a spreadsheet's count of days: format the column as text" if is_days else "no time"
    return (
        f"the time must be one: {quoted(value[:60])} is {what}; name its column and format "
        f"({path.name}): "
        f"{command(path, time='NAME', time_format='%Y-%m-%d %H:%M')}"
    )


def _name_of(day: str, order: DateOrder) -> str:
    mark = next((letter for letter in day if not letter.isalnum()), "")
    if NAMED_MONTH.fullmatch(day):
        return mark.join(("%d", "%b", "%Y"))
    parts = {
        "ymd": ("%Y", "%m", "%d"),
        "mdy": ("%m", "%d", "%Y"),
        "dmy": ("%d", "%m", "%Y"),
    }
    return mark.join(parts[order])


def _name_of_rest(rest: str) -> str:
    """The strptime format of a time of day with or without an offset behind it."""
    clock, zone = clock_and_zone(rest)
    if not re.fullmatch(r"Z|[+-]\d\d:?\d\d", zone):
        return name_of_clock(clock)
    return f"{name_of_clock(clock)}{' ' if ' ' + zone in rest else ''}%z"


def name_of_clock(clock: str) -> str:
    """The strptime format of a time of day."""
    match = CLOCK.fullmatch(clock)
    if match is None:
        return "%H%M" if len(clock) <= 4 else "%H%M%S"

    text = "%I:%M" if match["half"] else "%H:%M"
    text += ":%S" if match["second"] else ""
    text += ".%f" if match["fraction"] else ""
    return text + (" %p" if match["half"] else "")
