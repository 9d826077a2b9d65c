"""What every file of bars comes down to: blocks of UTC times and float64 prices and volume."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from moola.data.advice import command
from moola.data.columns import Column, Columns
from moola.data.containers import UNREADABLE
from moola.data.layouts import Layout
from moola.data.series import MINUTE_NS, NO_TIME
from moola.errors import DataError
from moola.features.arrays import Flags, Floats, Ints
from moola.text import quoted, shortened

BLOCK_ROWS = 65_536
FIXED_POINT = 1e9  # Databento's whole numbers: 1 is 0.000000001
_UNDEFINED = float(np.iinfo(np.int64).max)  # Databento's price that is none
_FIXED_POINT_COLUMNS = frozenset({"rtype", "publisherid", "instrumentid"})


@dataclass(frozen=True)
class Decisions:
    """What was decided about a file, in words, for log and metadata."""

    container: str
    layout: str
    columns: dict[str, str]
    time_format: str
    zone: str  # in which the times are written, "stated" where each says its own
    stamp: str
    price_scale: float
    separator: str | None = None  # of text
    decimal: str | None = None
    header: bool | None = None
    lines_skipped: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON; what does not apply is left out."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Block:
    """Some rows: UTC ns of the minute of the open, values [4 or 5, n_rows], texts that name the
    instrument.
    """

    times: Ints
    values: list[Floats]  # open, high, low, close[, volume]
    symbols: list[pa.Array]

    def __len__(self) -> int:
        return len(self.times)


class Source(Protocol):
    """A file whose rows can be read, once or again."""

    @property
    def path(self) -> Path: ...

    @property
    def columns(self) -> Columns: ...

    @property
    def decisions(self) -> Decisions: ...

    def most_rows(self) -> int:
        """At least as many as there are."""
        ...

    def blocks(self) -> Iterator[Block]:
        """Raises DataError."""
        ...


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Errors of a damaged file as DataError."""
    try:
        yield
    except UNREADABLE as error:
        raise DataError(
            f"bars must be readable parquet or CSV: {shortened(str(error))} ({path.name})"
        ) from error


def is_fixed_point(columns: Sequence[Column]) -> bool:
    """Whether the columns are Databento's, whose whole prices are billionths."""
    return {column.plain for column in columns} >= _FIXED_POINT_COLUMNS


def scaled(values: Floats, scale: float) -> Floats:
    """Divided, which is exact for whole numbers where multiplying by 1e-9 is not."""
    if scale == 1.0:
        return values
    scaled: Floats = np.where(values >= _UNDEFINED, np.nan, values / scale)
    return scaled


def added_up(
    volumes: list[Floats],
) -> Floats:
    total = volumes[0]
    for volume in volumes[1:]:
        total = total + volume
    return total


def stamp_shift(layout: Layout) -> int:
    """What is taken from a time so that it is the minute of the open."""
    return MINUTE_NS if layout.stamp == "close" else 0


def shifted(times: Ints, layout: Layout) -> Ints:
    shift = stamp_shift(layout)
    if shift == 0:
        return times
    shifted: Ints = np.where(times == NO_TIME, NO_TIME, times - shift)
    return shifted


def refuse_no_number(
    column: pa.Array,
    bad: Flags,
    of: Column,
    first_row: int,
    path: Path,
) -> None:
    """Raises DataError for the first price that is none."""
    rows = np.flatnonzero(bad)
    if not len(rows):
        return

    value = column[int(rows[0])].as_py()
    way_out = ""
    if re.fullmatch(r"[+-]?[\d.]*,\d*", value.strip()):
        way_out = f"; if , is the decimal point: {command(path, decimal=',')}"
    raise DataError(
        f"a price must be a number: {of.label} is {quoted(value)} (row {first_row + rows[0]}, "
        f"{path.name}){way_out}"
    )
