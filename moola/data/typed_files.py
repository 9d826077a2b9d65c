"""Files whose columns have types: parquet, Arrow and Databento's DBN, read batch by batch."""

from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from moola import PRICES
from moola.data.blocks import BLOCK_ROWS
from moola.data.containers import Container
from moola.data.time_values import DAY_NS
from moola.errors import DataError


class TypedFile(Protocol):
    """Columns with types: parquet, Arrow, DBN."""

    schema: pa.Schema

    def most_rows(self) -> int: ...

    def batches(self, names: list[str]) -> Iterator[pa.RecordBatch]: ...


def typed_file(container: Container) -> TypedFile:
    """The file in a container of such a kind. Raises DataError for DBN without its package."""
    match container.kind:
        case "parquet":
            return _ParquetFile(container)
        case "arrow":
            return _ArrowFile(container)
        case _:
            return _DbnFile(container)


class _ParquetFile:
    def __init__(self, container: Container) -> None:
        self._file = pa.parquet.ParquetFile(container.path)
        self.schema = self._file.schema_arrow

    def most_rows(self) -> int:
        return int(self._file.metadata.num_rows)

    def batches(self, names: list[str]) -> Iterator[pa.RecordBatch]:
        return iter(self._file.iter_batches(BLOCK_ROWS, columns=names))


class _ArrowFile:
    """The file format, or the stream format, whose rows have to be counted.

    A batch is checked before it is read: its offsets may point anywhere.
    """

    def __init__(self, container: Container) -> None:
        self._container = container
        self._is_file = container.head.startswith(b"ARROW1")
        self.schema = self._open().schema

    def _open(self) -> Any:
        file = pa.memory_map(str(self._container.path))
        return pa.ipc.open_file(file) if self._is_file else pa.ipc.open_stream(file)

    def most_rows(self) -> int:
        return sum(batch.num_rows for batch in self._all())

    def batches(self, names: list[str]) -> Iterator[pa.RecordBatch]:
        for batch in self._all():
            for start in range(0, batch.num_rows, BLOCK_ROWS):
                yield batch.select(names).slice(start, BLOCK_ROWS)

    def _all(self) -> Iterator[pa.RecordBatch]:
        reader = self._open()
        if self._is_file:
            batches = (reader.get_batch(at) for at in range(reader.num_record_batches))
        else:
            batches = iter(reader)

        for batch in batches:
            batch.validate(full=True)
            yield batch


class _DbnFile:
    """Databento's own format, through Databento's own package."""

    schema = pa.schema(
        [
            ("ts_event", pa.int64()),
            ("rtype", pa.int64()),
            ("publisher_id", pa.int64()),
            ("instrument_id", pa.int64()),
            *((price, pa.int64()) for price in PRICES),
            ("volume", pa.int64()),
            ("symbol", pa.string()),
        ]
    )

    def __init__(self, container: Container) -> None:
        try:
            import databento
        except ImportError as error:
            raise DataError(
                f"DBN is read by Databento's package, which is not installed: pip install "
                f"'moola[databento]', or "
                f"download CSV or parquet ({container.path.name})"
            ) from error

        try:
            self._store = databento.DBNStore.from_file(container.path)
            self._schema_name = str(self._store.schema)
            self._instruments = databento.common.symbology.InstrumentMap()
            self._instruments.insert_metadata(self._store.metadata)
        except Exception as error:  # the package raises errors of its own kinds
            raise DataError(
                f"the DBN file must be whole: {error} ({container.path.name})"
            ) from error

        if self._schema_name != "ohlcv-1m":
            raise DataError(
                f"the bars must be 1 minute apart, and the schema of this DBN file is "
                f"{self._schema_name}: download "
                f"ohlcv-1m ({container.path.name})"
            )

    def most_rows(self) -> int:
        return sum(len(records) for records in self._store.to_ndarray(count=BLOCK_ROWS))

    def batches(self, names: list[str]) -> Iterator[pa.RecordBatch]:
        for records in self._store.to_ndarray(count=BLOCK_ROWS):
            columns = [self._column(records, name) for name in names]
            yield pa.record_batch(columns, names=names)

    def _column(self, records: np.ndarray[Any, Any], name: str) -> pa.Array:
        if name == "symbol":
            return pa.array(self._symbols(records), pa.string())
        return pa.array(records[name].astype(np.int64))

    def _symbols(self, records: np.ndarray[Any, Any]) -> list[str | None]:
        """The symbol of each record's instrument on its day, as the file's metadata have it."""
        days = records["ts_event"] // DAY_NS
        pairs = list(
            zip(
                records["instrument_id"].tolist(),
                days.tolist(),
                strict=True,
            )
        )
        names = {pair: self._instruments.resolve(pair[0], _day(pair[1])) for pair in set(pairs)}
        return [names[pair] for pair in pairs]


def _day(days_since_1970: int) -> date:
    return datetime.fromtimestamp(days_since_1970 * 86_400, UTC).date()
