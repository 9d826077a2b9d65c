"""Tables of runs as data frames: read from the store, and written for people."""

import io
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from moola.errors import ArtifactError
from moola.runs.reading import read_file
from moola.runs.records import Manifest
from moola.store import MAX_DOCUMENT_BYTES, Store

HISTORY = "history.parquet"
PREDICTIONS = "predictions.parquet"
PROBABILITY = "probability_"  # what the columns of predictions begin with that are of a class
FORMULA_STARTS = ("=", "+", "-", "@")  # of what a spreadsheet would run
MAX_TABLE_BYTES = 4 * MAX_DOCUMENT_BYTES
MAX_TEXT_CHARACTERS = 200  # of a text in a history, such as the name of a stage
MAX_HISTORY_CELLS = 1_000_000
UNREADABLE = (pa.ArrowException, OSError, ValueError, TypeError, KeyError)  # of a damaged table


def read_table(store: Store, manifest: Manifest, path: str) -> pd.DataFrame:
    """A small table of a committed run, its digest checked. Raises ArtifactError."""
    data = _read_bytes(store, manifest, path)
    try:
        table: pd.DataFrame = pa.parquet.read_table(io.BytesIO(data)).to_pandas(
            ignore_metadata=True
        )
    except UNREADABLE as error:
        raise _unreadable(store, manifest, path, error) from error
    return table


def read_history(store: Store, manifest: Manifest) -> pd.DataFrame:
    """The learning curves of a train run: its columns of numbers, truth values and texts.

    A small file may stand for a table of any size: what is too large is refused unread. Raises
    ArtifactError.
    """
    data = _read_bytes(store, manifest, HISTORY)
    try:
        with pa.parquet.ParquetFile(io.BytesIO(data)) as file:
            schema = file.schema_arrow
        texts = [field.name for field in schema if _is_text(field.type)]
        with pa.parquet.ParquetFile(io.BytesIO(data), read_dictionary=texts) as file:
            _require_small(file.metadata)
            names = [field.name for field in schema if _is_plain(field.type)]
            table: pd.DataFrame = file.read(columns=names).to_pandas(ignore_metadata=True)
        _require_short_texts(table)
    except UNREADABLE as error:
        raise _unreadable(store, manifest, HISTORY, error) from error
    text_type = pd.Series([""]).dtype  # as pandas itself reads texts
    return table.astype({name: text_type for name in texts if name in table})


def _require_short_texts(table: pd.DataFrame) -> None:
    """Raises ValueError: a text may stand in every row, though the file holds it once."""
    for name in table.select_dtypes("category"):
        longest = max(map(len, table[name].cat.categories), default=0)
        if longest > MAX_TEXT_CHARACTERS:
            raise ValueError(
                f"its texts must have at most {MAX_TEXT_CHARACTERS} characters, {name} has one "
                f"of {longest:,}"
            )


def _require_small(metadata: pa.parquet.FileMetaData) -> None:
    """Raises ValueError for too many values, or texts too long, by what the file says of itself."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    chunks = [group.column(place) for group in groups for place in range(group.num_columns)]
    n_cells = max(
        metadata.num_rows * metadata.num_columns, sum(chunk.num_values for chunk in chunks)
    )
    if n_cells > MAX_HISTORY_CELLS:
        raise ValueError(f"it must have at most {MAX_HISTORY_CELLS:,} values, it has {n_cells:,}")

    n_bytes = sum(chunk.total_uncompressed_size for chunk in chunks)
    if n_bytes > MAX_TABLE_BYTES:
        raise ValueError(f"it must unpack to at most {MAX_TABLE_BYTES:,} bytes, not {n_bytes:,}")


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_plain(kind: pa.DataType) -> bool:
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    return bool(is_number or pa.types.is_boolean(kind) or pa.types.is_null(kind)) or _is_text(kind)


def _read_bytes(store: Store, manifest: Manifest, path: str) -> bytes:
    sizes = {entry.path: entry.size for entry in manifest.files}
    if sizes.get(path, 0) > MAX_TABLE_BYTES:
        raise ArtifactError(
            f"{path} of {manifest.run_id} must have at most {MAX_TABLE_BYTES:,} bytes, "
            f"it has {sizes[path]:,}"
        )
    return read_file(store, manifest, path)


def _unreadable(store: Store, manifest: Manifest, path: str, error: Exception) -> ArtifactError:
    return ArtifactError(f"{path} of {manifest.run_id} is no readable table: {error} ({store.url})")


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write predictions as parquet, or as a CSV that a spreadsheet can open safely."""
    if path.suffix.lower() != ".csv":
        table.to_parquet(path, index=False)
        return

    safe = table.rename(columns=_no_formula)
    for name in safe.select_dtypes(exclude=["number", "bool", "datetime", "datetimetz"]):
        safe[name] = safe[name].map(_no_formula)
    safe.to_csv(path, index=False)


def _no_formula(value: object) -> object:
    """Text without control characters, and with an apostrophe where it would be a formula."""
    if not isinstance(value, str):
        return value
    text = "".join(c for c in value if c.isprintable())
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text
