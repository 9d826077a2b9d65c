"""A parquet, Arrow or DBN file of bars, opened: columns are known, rows come in blocks."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from moola import PRICES
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
    plain,
)
from moola.data.containers import Container
from moola.data.layouts import Layout, known_layout
from moola.data.tables import MAX_ROWS, Decimal, to_numbers
from moola.data.time_columns import to_utc_ns
from moola.data.time_values import kind_of_text
from moola.data.times import (
    TimeFormat,
    find_format,
    refuse_second_zone,
    zone_of_naive,
)
from moola.data.typed_files import TypedFile, typed_file
from moola.errors import DataError
from moola.features.arrays import Floats
from moola.specs import LayoutConfig
from moola.text import quoted


def open_typed(container: Container, config: LayoutConfig, timezone: str | None) -> Source:
    """The source in a container of a typed kind. Raises DataError."""
    file = typed_file(container)
    path = container.path
    schema = file.schema
    columns = [_column(at, name) for at, name in enumerate(schema.names)]
    layout = known_layout(config, {column.plain for column in columns})
    samples = _Samples(file, container)

    index = _time_index(schema, columns)
    found = find_columns(columns, layout, samples.kind_of, path, index)
    for column in found.symbols:
        if pa.types.is_nested(schema.field(column.at).type):
            raise DataError(
                f"an instrument must be a name or a number, and {column.label} is "
                f"{schema.field(column.at).type} ({path.name})"
            )
    for column in found.prices:
        _check_price_type(column, schema.field(column.at).type, path)

    form = _typed_format(found, schema, samples, layout, timezone, path)
    types = [schema.field(column.at).type for column in found.prices]
    scale = layout.price_scale or 1.0
    if layout.price_scale is None and is_fixed_point(columns):
        scale = FIXED_POINT if all(pa.types.is_integer(kind) for kind in types) else 1.0

    decisions = Decisions(
        container=container.name,
        layout=layout.name,
        columns=found.as_dict(),
        time_format=form.description,
        zone="stated" if form.zone is None else form.zone.key,
        stamp=layout.stamp or "open",
        price_scale=scale,
    )
    return _TypedSource(
        path,
        found,
        decisions,
        file,
        layout,
        form,
        layout.decimal or ".",
        scale,
    )


@dataclass(frozen=True)
class _TypedSource:
    path: Path
    columns: Columns
    decisions: Decisions
    file: TypedFile
    layout: Layout
    form: TimeFormat
    decimal: Decimal
    scale: float

    def most_rows(self) -> int:
        with readable(self.path):
            n_rows = self.file.most_rows()
        if n_rows > MAX_ROWS:
            raise DataError(
                f"a file of bars has at most {MAX_ROWS:,} rows, got {n_rows:,} ({self.path.name})"
            )
        return n_rows

    def blocks(self) -> Iterator[Block]:
        names = self.file.schema.names
        used = list(dict.fromkeys(names[column.at] for column in self.columns.used()))
        _require_once(used, names, self.path)
        first_row = 0

        with readable(self.path):
            for batch in self.file.batches(used):
                yield self._block(batch, first_row)
                first_row += batch.num_rows

    def _block(self, batch: pa.RecordBatch, first_row: int) -> Block:
        names = self.file.schema.names

        def column(of: Column) -> pa.Array:
            return batch.column(names[of.at])

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
        if _is_text(column.type):
            numbers, bad = to_numbers(column, self.decimal)
            refuse_no_number(column, bad, of, first_row, self.path)
        else:
            numbers = _to_float64(column)
        return scaled(numbers, self.scale)

    def _volume(self, column: pa.Array) -> Floats:
        return to_numbers(column, self.decimal)[0] if _is_text(column.type) else _to_float64(column)


def _require_once(wanted: Sequence[str], names: Sequence[str], path: Path) -> None:
    """Raises DataError for a column that shares its name with another."""
    repeated = [name for name in wanted if names.count(name) > 1]
    if repeated:
        raise DataError(
            f"a column that is read must have a name of its own, and two are called "
            f"{quoted(repeated[0])}: rename or drop one ({path.name})"
        )


def _column(at: int, name: str) -> Column:
    """pandas writes a name of two levels as the text of a tuple: ('Close', 'NQ=F'), in either
    order.
    """
    if not (name.startswith("('") and name.endswith("')")):
        return Column(at, name)

    parts = name[2:-2].split("', '")
    if len(parts) != 2:
        return Column(at, name)
    known = plain(parts[0]) in (
        *PRICES,
        "volume",
        "adjclose",
        "date",
        "datetime",
    )
    field_name, ticker = parts if known else reversed(parts)
    return Column(at, field_name, ticker)


def _time_index(schema: pa.Schema, columns: Sequence[Column]) -> Column | None:
    """The column that pandas kept its index of times in."""
    written: Any = schema.pandas_metadata  # whatever JSON the file holds
    stored = written.get("index_columns") if isinstance(written, dict) else None
    names = stored if isinstance(stored, list) else []
    named = [name for name in names if isinstance(name, str) and name in schema.names]
    times = [name for name in named if pa.types.is_timestamp(schema.field(name).type)]
    return columns[schema.names.index(times[0])] if len(times) == 1 else None


@dataclass
class _Samples:
    """The first values of a typed file's columns, as text; read when first asked for."""

    file: TypedFile
    container: Container
    seen: dict[int, list[str]] = field(default_factory=dict)

    def values(self, column: Column) -> list[str]:
        if column.at not in self.seen:
            name = self.file.schema.names[column.at]
            _require_once([name], self.file.schema.names, self.container.path)
            batch = next(self.file.batches([name]), None)
            kept = [] if batch is None else batch.column(0).slice(0, 1_000).to_pylist()
            self.seen[column.at] = [str(value).strip() for value in kept if value is not None]
        return self.seen[column.at]

    def kind_of(self, column: Column) -> TimeKind:
        kind = self.file.schema.field(column.at).type
        if pa.types.is_timestamp(kind):
            if kind_of_text(self.values(column)) == "date":
                return "date"
            return "moment" if kind.tz is None else "absolute"
        if pa.types.is_date(kind):
            return "date"
        if pa.types.is_time(kind):
            return "clock"
        return kind_of_text(self.values(column))


def _typed_format(
    columns: Columns,
    schema: pa.Schema,
    samples: _Samples,
    layout: Layout,
    timezone: str | None,
    path: Path,
) -> TimeFormat:
    kind = schema.field(columns.time[0].at).type

    if pa.types.is_timestamp(kind) and len(columns.time) == 1:
        if kind.tz is not None:
            refuse_second_zone(timezone, kind.tz, path)
            return TimeFormat("timestamp", f"timestamp in {kind.tz}", True)
        zone = zone_of_naive(layout, timezone, columns.zone, path)
        return TimeFormat("timestamp", "timestamp without a zone", False, zone)

    texts = [samples.values(column) for column in columns.time]
    return find_format(texts, layout, timezone, columns.zone, path)


def _check_price_type(column: Column, kind: pa.DataType, path: Path) -> None:
    if pa.types.is_float16(kind):
        raise DataError(
            f"prices must be exact, and {column.label} is float16, which holds three digits: "
            f"write float64 ({path.name})"
        )
    kinds: tuple[Callable[[pa.DataType], bool], ...] = (
        pa.types.is_floating,
        pa.types.is_integer,
        pa.types.is_decimal,
        pa.types.is_null,
        _is_text,
    )
    if not any(is_kind(kind) for is_kind in kinds):
        raise DataError(
            f"prices must be of a float, int or decimal type: {column.label} is {kind} "
            f"({path.name})"
        )


def _is_text(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _to_float64(column: pa.Array) -> Floats:
    if pa.types.is_decimal(column.type):
        # Arrow's own decimal -> double is off by a bit for every second value.
        column = column.cast(pa.string())
    values: Floats = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return values
