"""A text file of bars, opened: its table and columns are known, and its rows come in blocks."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from moola import PRICES
from moola.data.advice import command
from moola.data.blocks import (
    FIXED_POINT,
    Block,
    Decisions,
    Source,
    added_up,
    is_fixed_point,
    readable,
    refuse_no_number,
    scaled,
    shifted,
)
from moola.data.columns import (
    Column,
    Columns,
    TimeKind,
    find_columns,
    place_columns,
)
from moola.data.containers import Container
from moola.data.layouts import Layout, known_layout
from moola.data.series import NO_TIME
from moola.data.tables import (
    SEPARATOR_NAMES,
    Decimal,
    SkippedRows,
    TextTable,
    count_rows,
    find_decimal,
    look_at_table,
    read_rows,
    to_numbers,
)
from moola.data.time_columns import to_utc_ns
from moola.data.time_values import kind_of_text
from moola.data.times import TimeFormat, find_format
from moola.errors import DataError
from moola.features.arrays import Floats
from moola.specs import LayoutConfig
from moola.text import quoted

MAX_TRIED = 7  # columns without names, in which four prices are looked for
LEAST_JUDGED = 10  # rows
MOST_RANGES = 50  # of the steps from close to close and from open to close


def open_text(container: Container, config: LayoutConfig, timezone: str | None) -> Source:
    """The source in a container of text. Raises DataError."""
    path = container.path
    table = look_at_table(container, known_layout(config, set()))
    if not table.sample:
        shown = table.separator.join(table.names or ())[:120]
        raise DataError(
            f"a file must hold bars, and this one has a header only: {quoted(shown)} ({path.name})"
        )

    names = table.names or ()
    columns = [
        Column(at, name, "" if table.tickers is None else table.tickers[at])
        for at, name in enumerate(names)
    ]
    layout = known_layout(config, {column.plain for column in columns})

    def kind_of(column: Column) -> TimeKind:
        return kind_of_text(table.column(column.at))

    if table.names is None:
        found = place_columns(table.n_columns, layout, kind_of, path)
    else:
        index = columns[0] if _is_unnamed_index(columns, kind_of) else None
        found = find_columns(columns, layout, kind_of, path, index)

    texts = [table.column(column.at) for column in found.time]
    form = find_format(texts, layout, timezone, found.zone, path)
    decimal = find_decimal(
        container,
        table,
        [column.at for column in found.prices],
        [column.at for column in found.volume],
        layout,
    )
    are_stated = all(getattr(layout, role) is not None for role in PRICES)
    if table.names is None and not are_stated:
        _check_order(table, found, form, decimal, path)

    scale = layout.price_scale or _fixed_point_scale(columns, table, found)
    decisions = Decisions(
        container=container.name,
        layout=layout.name,
        columns=found.as_dict(),
        time_format=form.description,
        zone="stated" if form.zone is None else form.zone.key,
        stamp=layout.stamp or "open",
        price_scale=scale,
        separator=SEPARATOR_NAMES.get(table.separator, table.separator),
        decimal=decimal,
        header=table.names is not None,
        lines_skipped=table.comments,
    )
    return _TextSource(
        path,
        found,
        decisions,
        container,
        table,
        layout,
        form,
        decimal,
        scale,
    )


@dataclass(frozen=True)
class _TextSource:
    path: Path
    columns: Columns
    decisions: Decisions
    container: Container
    table: TextTable
    layout: Layout
    form: TimeFormat
    decimal: Decimal
    scale: float

    def most_rows(self) -> int:
        return count_rows(self.container)

    def blocks(self) -> Iterator[Block]:
        """Numbers are converted while parsing; a file with other text among them is read again, as
        text.
        """
        n_given = 0
        try:
            for block in self._read(as_text=False):
                n_given += len(block)
                yield block
            return
        except pa.ArrowInvalid:
            pass

        n_again = 0
        with readable(self.path):
            for block in self._read(as_text=True):
                known = max(0, n_given - n_again)
                n_again += len(block)
                if known < len(block):
                    yield _from_row(block, known)

    def _read(self, *, as_text: bool) -> Iterator[Block]:
        skipped = SkippedRows()
        first_row = 0
        types = self._types(as_text)

        for batch in read_rows(self.container, self.table, types, self.decimal, skipped):
            rows = self._without_header(batch, first_row) if as_text else batch
            yield self._block(rows, first_row)
            first_row += batch.num_rows
        skipped.check(
            self.container,
            self.table.first_line,
            first_row,
            self.table.n_columns,
            self.table.separator,
        )

    def _without_header(self, batch: pa.RecordBatch, first_row: int) -> pa.RecordBatch:
        """Files that were put together with their headers repeat it between the rows. Raises
        DataError where it says otherwise there.
        """
        time = self.columns.time[0]
        if not time.name:
            return batch

        def is_name(column: Column) -> pa.Array:
            text = pc.utf8_trim_whitespace(batch.column(str(column.at)))
            return pc.equal(text, column.name).fill_null(False)

        is_header = is_name(time)
        for column in self.columns.used():
            other = pc.and_not(is_header, is_name(column))
            if pc.any(other, min_count=0).as_py():
                row = pc.index(other, True).as_py()
                raise DataError(
                    f"files that were put together must have the same columns: the header at row "
                    f"{first_row + row} has {quoted(batch.column(str(column.at))[row].as_py())} "
                    f"in place of {quoted(column.name)} ({self.path.name}): give them as a folder"
                )
        return batch.filter(pc.invert(is_header))

    def _types(self, as_text: bool) -> dict[int, pa.DataType]:
        number = pa.string() if as_text else pa.float64()
        types = {column.at: number for column in (*self.columns.prices, *self.columns.volume)}
        types |= {column.at: pa.string() for column in self.columns.symbols}
        types |= {column.at: pa.string() for column in self.columns.time}

        if self.form.how == "iso" and not as_text:
            zone = "UTC" if self.form.stated else None
            types[self.columns.time[0].at] = pa.timestamp("ns", zone)
        return types

    def _block(self, batch: pa.RecordBatch, first_row: int) -> Block:
        def column(of: Column) -> pa.Array:
            return batch.column(str(of.at))

        times = to_utc_ns(
            [column(of) for of in self.columns.time],
            self.form,
            first_row,
            self.path,
        )
        values = [self._price(column(of), of, first_row) for of in self.columns.prices]
        if self.columns.volume:
            values.append(added_up([self._volume(column(of)) for of in self.columns.volume]))

        return Block(
            shifted(times, self.layout),
            values,
            [column(of) for of in self.columns.symbols],
        )

    def _price(self, column: pa.Array, of: Column, first_row: int) -> Floats:
        if pa.types.is_string(column.type):
            numbers, bad = to_numbers(column, self.decimal)
            refuse_no_number(column, bad, of, first_row, self.path)
        else:
            numbers = column.to_numpy(zero_copy_only=False)
        return scaled(numbers, self.scale)

    def _volume(self, column: pa.Array) -> Floats:
        if pa.types.is_string(column.type):
            return to_numbers(column, self.decimal)[0]
        values: Floats = column.to_numpy(zero_copy_only=False)
        return values


def _from_row(block: Block, row: int) -> Block:
    return Block(
        block.times[row:],
        [values[row:] for values in block.values],
        [symbols[row:] for symbols in block.symbols],
    )


def _is_unnamed_index(columns: Sequence[Column], kind_of: Callable[[Column], TimeKind]) -> bool:
    """pandas writes an index without a name as a first column without one: of times, or a count of
    rows.
    """
    return columns[0].name == "" and kind_of(columns[0]) in (
        "moment",
        "absolute",
    )


def _fixed_point_scale(columns: Sequence[Column], table: TextTable, found: Columns) -> float:
    values = [value for column in found.prices for value in table.column(column.at)]
    is_whole = all(value.lstrip("+-").isdigit() for value in values)
    return FIXED_POINT if is_fixed_point(columns) and is_whole else 1.0


def _check_order(
    table: TextTable,
    columns: Columns,
    form: TimeFormat,
    decimal: Decimal,
    path: Path,
) -> None:
    """Raises DataError where the numbers of a file without a header are not open, high, low and
    close in this order.
    """
    is_turned = _sample_runs_backwards(table, columns, form, path)

    def numbers_at(at: int) -> Floats:
        numbers = to_numbers(pa.array([row[at] for row in table.sample]), decimal)[0]
        return numbers[::-1] if is_turned else numbers

    taken = [column.at for column in columns.prices]
    if _are_bars(*map(numbers_at, taken)):
        return

    # The order that makes bars of them, where there is one alone: of these four, else of all.
    behind = range(columns.time[-1].at + 1, min(table.n_columns, taken[0] + MAX_TRIED))
    numbers = {at: numbers_at(at) for at in sorted({*taken, *behind})}
    numeric = [at for at in numbers if not np.isnan(numbers[at]).all()]
    orders: list[tuple[int, ...]] = []
    for tried in ([at for at in taken if at in numeric], numeric):
        orders = orders or [
            order
            for order in itertools.permutations(tried, len(PRICES))
            if _are_bars(*(numbers[at] for at in order))
        ]

    order = orders[0] if len(orders) == 1 else tuple(taken)
    time = "+".join(str(column.at + 1) for column in columns.time)
    places = [str(at + 1) for at in order]
    fields = {"time": time, **dict(zip(PRICES, places, strict=True))}
    roles = dict(zip(order, PRICES, strict=True))
    shown = ", ".join(roles.get(at, "another number") for at in range(min(order), max(order) + 1))
    likely = f"; they look like {shown}" if len(orders) == 1 else ""
    raise DataError(
        f"the file has no header, and the numbers behind the time are not open, high, low, "
        f"close{likely}: name the columns by their place ({path.name}): "
        f"{command(path, **fields)}"
    )


def _are_bars(open_: Floats, high: Floats, low: Floats, close: Floats) -> bool:
    """Whether most rows are bars that open near the close before them, not the other way round, and
    their ranges are of the size of the steps between them, which a volume's would not be.
    """
    outside = np.mean((high < np.fmax(open_, close)) | (low > np.fmin(open_, close)))
    follows = np.nansum(np.abs(open_[1:] - close[:-1]))
    precedes = np.nansum(np.abs(close[1:] - open_[:-1]))
    ranges = np.nansum(high - low)
    steps = np.nansum(np.abs(np.diff(close))) + np.nansum(np.abs(close - open_))
    is_alike = len(close) < LEAST_JUDGED or steps == 0 or ranges <= MOST_RANGES * steps
    return bool(outside <= 0.1 and follows <= precedes and is_alike)


def _sample_runs_backwards(
    table: TextTable, columns: Columns, form: TimeFormat, path: Path
) -> bool:
    ends = [
        pa.array([table.sample[at][column.at].strip() for at in (0, -1)]) for column in columns.time
    ]
    first, last = to_utc_ns(ends, form, 0, path).tolist()
    return NO_TIME not in (first, last) and bool(last < first)
