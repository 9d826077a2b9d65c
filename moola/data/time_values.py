"""Single times as files write them: what a text is, and the nanoseconds it means."""

import re
from collections.abc import Sequence
from datetime import date, datetime

from moola.data.columns import TimeKind
from moola.data.layouts import DateOrder
from moola.data.series import MINUTE_NS

SECOND_NS = 1_000_000_000
HOUR_NS = 60 * MINUTE_NS
DAY_NS = 24 * HOUR_NS
# Seconds, milliseconds, microseconds and nanoseconds since 1970 are told apart by size: from 1990
# to 2100.
EARLIEST_S = 631_152_000
LATEST_S = 4_102_444_800
EPOCH_UNITS = {
    "s": 1,
    "ms": 1_000,
    "us": 1_000_000,
    "ns": 1_000_000_000,
}
YEAR_FIRST = re.compile(r"(\d{4})([-/.])(\d{1,2})\2(\d{1,2})")
YEAR_LAST = re.compile(r"(\d{1,2})([-/.])(\d{1,2})\2(\d{4})")
SHORT_YEAR = re.compile(r"\d{1,2}[-/.]\d{1,2}[-/.]\d{2}")
COMPACT_DATE = re.compile(r"(\d{4})(\d{2})(\d{2})T?")
NAMED_MONTH = re.compile(r"(\d{1,2})[-/.]([A-Za-z]{3})[A-Za-z]*[-/.](\d{4})")
_MONTHS = [
    "jan",
    "feb",
    "mar",
    "apr",
    "may",
    "jun",
    "jul",
    "aug",
    "sep",
    "oct",
    "nov",
    "dec",
]
CLOCK = re.compile(
    r"(?P<hour>\d{1,2}):(?P<minute>\d{2})(:(?P<second>\d{2})([.,](?P<fraction>\d{1,9}))?)?(\s*(?P<half>[AaPp](\.\s?)?[Mm]\.?)(?![A-Za-z]))?"
)
COMPACT_CLOCK = re.compile(r"\d{1,6}")
_OFFSET = re.compile(r"(?:UTC|GMT)?([+-])(\d{1,2}):?(\d{2})?", re.IGNORECASE)
# Java writes the zone's name behind its offset: -05:00[America/New_York]
_NAME_BEHIND = re.compile(r"(?<=.)\[[\w/+-]+\]$")
MIDNIGHT = re.compile(r"[ T](0?0:00(:00(\.0+)?)?|12:00(:00)? [Aa][Mm])(Z|[+]00:?00)?$")
_DOTTED_HALF = re.compile(r"([AaPp])\.\s?([Mm])\.?")
COMPACT_MOMENT = re.compile(r"\d{12}(\d{2})?")


def kind_of_text(values: Sequence[str]) -> TimeKind:
    """What the values of a text column are; "other" where they differ or are no times.

    Moments may be dates at midnight, as R writes them. Where all are at midnight they are dates.
    """
    kinds = {_kind_of_value(value) for value in values[:50]}
    is_dated = kinds in ({"moment"}, {"absolute"}) and len(values) > 1
    if is_dated and all(map(MIDNIGHT.search, values)):
        return "date"
    if kinds == {"moment", "date"}:
        return "moment"
    return kinds.pop() if len(kinds) == 1 else "other"


def _kind_of_value(value: str) -> TimeKind:
    value = value.strip()
    if _is_date(value):
        return "date"
    if epoch_unit(value) is not None:
        return "absolute"
    if COMPACT_MOMENT.fullmatch(value):
        return "moment"
    if CLOCK.fullmatch(value) or COMPACT_CLOCK.fullmatch(value):
        return "clock"

    day, rest = split_moment(value)
    if rest and (_is_date(day) or SHORT_YEAR.fullmatch(day)):
        clock, zone = clock_and_zone(rest)
        if CLOCK.fullmatch(clock) or COMPACT_CLOCK.fullmatch(clock):
            return "absolute" if zone else "moment"
    return "other"


def _is_date(value: str) -> bool:
    patterns = (YEAR_FIRST, YEAR_LAST, NAMED_MONTH)
    if any(pattern.fullmatch(value) for pattern in patterns):
        return True

    compact = COMPACT_DATE.fullmatch(value)
    return compact is not None and 1 <= int(compact[2]) <= 12 and 1 <= int(compact[3]) <= 31


def epoch_unit(value: str) -> str | None:
    """s, ms, us or ns where a number is a time since 1970."""
    try:
        number = float(value)
    except ValueError:
        return None
    for unit, per_second in EPOCH_UNITS.items():
        if EARLIEST_S * per_second <= number <= LATEST_S * per_second:
            return unit
    return None


def split_moment(value: str) -> tuple[str, str]:
    """Date and the rest, at the first blank, or T behind a digit."""
    place = next(
        (
            at
            for at, letter in enumerate(value)
            if letter == " " or (letter == "T" and value[:at][-1:].isdigit())
        ),
        len(value),
    )
    return value[:place], value[place + 1 :].strip()


def clock_and_zone(rest: str) -> tuple[str, str]:
    """Time of day and zone of "16:00:00 US/Eastern", "04:00 PM", "21:00:00.000 GMT+0100",
    "15:00-06:00".
    """
    match = CLOCK.match(rest) or COMPACT_CLOCK.match(rest)
    if match is None:
        return rest, ""
    return match[0].strip(), rest[match.end() :].strip()


def read_offset(zone: str) -> int | None:
    """Offset from UTC in ns; None for a zone by name."""
    zone = _NAME_BEHIND.sub("", zone)
    if zone.upper() in ("", "Z", "UTC", "GMT"):
        return 0
    match = _OFFSET.fullmatch(zone)
    if match is None:
        return None
    offset = int(match[2]) * HOUR_NS + int(match[3] or 0) * MINUTE_NS
    return -offset if match[1] == "-" else offset


def read_day(value: str, order: DateOrder, date_format: str | None) -> int | None:
    """Nanoseconds from 1970 to the beginning of a day; None for what is no such date."""
    if date_format is not None:
        try:
            day = datetime.strptime(value, date_format).date()
        except ValueError:
            return None
        return _days_ns(day.year, day.month, day.day)

    year_first = YEAR_FIRST.fullmatch(value)
    if year_first is not None and order == "ymd":
        return _days_ns(int(year_first[1]), int(year_first[3]), int(year_first[4]))

    compact = COMPACT_DATE.fullmatch(value)
    if compact is not None and order == "ymd":
        return _days_ns(int(compact[1]), int(compact[2]), int(compact[3]))

    named = NAMED_MONTH.fullmatch(value)
    if named is not None and named[2].lower() in _MONTHS:
        return _days_ns(
            int(named[3]),
            _MONTHS.index(named[2].lower()) + 1,
            int(named[1]),
        )

    year_last = YEAR_LAST.fullmatch(value)
    if year_last is None or order == "ymd":
        return None
    if order == "mdy":
        return _days_ns(int(year_last[4]), int(year_last[1]), int(year_last[3]))
    return _days_ns(int(year_last[4]), int(year_last[3]), int(year_last[1]))


def _days_ns(year: int, month: int, day: int) -> int | None:
    try:
        days = date(year, month, day).toordinal() - date(1970, 1, 1).toordinal()
    except ValueError:
        return None
    return days * DAY_NS if abs(days) < 100_000 else None


def read_clock(value: str, n_digits: int) -> int | None:
    match = CLOCK.fullmatch(value)

    if match is None:
        if not COMPACT_CLOCK.fullmatch(value) or len(value) > n_digits:
            return None
        digits = value.zfill(n_digits).ljust(6, "0")
        return _clock_ns(int(digits[:2]), int(digits[2:4]), int(digits[4:]), 0)

    hour = int(match["hour"])
    if match["half"]:
        if not 1 <= hour <= 12:
            return None
        hour = hour % 12 + (12 if match["half"][0] in "pP" else 0)

    fraction = int((match["fraction"] or "0").ljust(9, "0"))
    return _clock_ns(hour, int(match["minute"]), int(match["second"] or 0), fraction)


def undotted(value: str) -> str:
    """05:00 p. m. as strptime reads it: 05:00 pm."""
    return _DOTTED_HALF.sub(r"\1\2", value)


def read_clock_as(value: str, clock_format: str) -> int | None:
    try:
        moment = datetime.strptime(undotted(value), clock_format)
    except ValueError:
        return None

    offset = moment.utcoffset()
    offset_ns = 0 if offset is None else round(offset.total_seconds()) * SECOND_NS
    since_midnight = _clock_ns(
        moment.hour,
        moment.minute,
        moment.second,
        moment.microsecond * 1_000,
    )
    return None if since_midnight is None else since_midnight - offset_ns


def _clock_ns(hour: int, minute: int, second: int, fraction: int) -> int | None:
    """24:00:00 is the end of a day, as some vendors write the close of its last minute."""
    is_end = hour == 24 and minute == second == fraction == 0
    if minute > 59 or second > 59 or (hour > 23 and not is_end):
        return None
    return hour * HOUR_NS + minute * MINUTE_NS + second * SECOND_NS + fraction
