"""The table in a label file: its container opened, its columns named, its empty rows gone."""

import csv
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from moola.data import label_studio
from moola.data.columns import plain
from moola.data.containers import HEAD_BYTES, UNREADABLE, Container, open_container
from moola.data.tables import NO_VALUE, SEPARATORS
from moola.errors import DataError
from moola.text import SURROGATE, quoted, shortened

COLUMNS = (
    "window_start",
    "window_id",
    "label",
    "expansion_start",
    "expansion_end",
    "start",
    "end",
    "grade",
    "features",
)
BATCH_ROWS = 256
# Far above what people label. A value may take ten times the memory of its text, and more in JSON.
MAX_BYTES = 1 << 30  # unpacked: 300,000 windows with their bars as text
MAX_JSON_BYTES = 128 << 20
MAX_LINE = 16 << 20  # characters: Label Studio writes all regions of a task into one field
MAX_ROWS = 5_000_000
MAX_COLUMNS = 1000

_NAMES = {plain(name): name for name in COLUMNS} | {"starttime": "start", "endtime": "end"}
_TIMES = ("windowstart", "start", "end", "starttime", "endtime")  # no ids
_COMMENTS = ("#", "//")
_UNNAMED_INDEX = re.compile(r"__index_level_\d+__")
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
_DATA = re.compile(r"[+-]?\d[\d.,:TZ /-]*")  # a value that heads no column

csv.field_size_limit(MAX_LINE)  # all regions of a Label Studio task stand in one field


def read_label_table(path: Path) -> pd.DataFrame:
    """The rows of a parquet, Arrow, CSV or JSON file, packed or not, or of a Label Studio export.

    Columns are named as in COLUMNS, whatever their case, blanks and underscores; others keep their
    names. Text has no blanks around, and what is missing is None or NaN. Rows are numbered from 0
    in the file; those without any value are left out. Raises DataError for what is no such table.
    """
    table = _read(path)
    regions = label_studio.regions_of_table(table, path.name)
    table = _named(table, path.name) if regions is None else regions
    _refuse_odd_values(table, path.name)
    is_empty = table.isna().all(axis=1)
    return table[~is_empty]


def _read(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise DataError(_unreadable("there is no such file", path))
    if path.stat().st_size == 0:
        raise DataError(_unreadable("it is empty", path))

    container = open_container(path, "labels")
    try:
        match container.kind:
            case "text":
                _refuse_long_line(container)
                return _text_table(_text(container, MAX_BYTES), path.name)
            case "json":
                return _json_table(_text(container, MAX_JSON_BYTES), path.name)
            case "parquet":
                return _without_blanks(_parquet_table(path))
            case "arrow":
                return _without_blanks(_arrow_table(container))
            case "dbn":
                raise DataError(
                    f"labels must be parquet, Arrow, CSV or JSON, and this is Databento's DBN, "
                    f"which holds bars: those go to moola precompute --bars ({path.name})"
                )
    except UNREADABLE as error:
        raise DataError(_unreadable(shortened(str(error)), path)) from error


def _unreadable(problem: object, path: Path) -> str:
    return f"labels must be a readable parquet or CSV file: {problem} ({path.name})"


def _too_large(name: str) -> str:
    return (
        f"a file of labels has at most {MAX_ROWS:,} rows, {MAX_BYTES >> 20:,} MiB unpacked, and "
        f"{MAX_JSON_BYTES >> 20} MiB as JSON, and this one has more ({name})"
    )


def _named(table: pd.DataFrame, place: str) -> pd.DataFrame:
    """The table with the columns' known names. Raises DataError where two are the same."""
    names = [str(name) for name in table.columns]
    known = [_NAMES.get(plain(name)) for name in names]

    for name in COLUMNS:
        alike = [given for given, column in zip(names, known, strict=True) if column == name]
        if len(alike) > 1:
            listed = " and ".join(alike)
            raise DataError(f"a column must occur once in any case, found {listed} ({place})")

    renamed = table.copy(deep=False)
    renamed.columns = pd.Index(
        [column or name for name, column in zip(names, known, strict=True)],
        dtype=object,
    )
    return renamed


def _refuse_odd_values(table: pd.DataFrame, place: str) -> None:
    """Raises DataError for what is no plain value: a list, a huge number, half a character."""
    for name in COLUMNS:
        if name == "features" or name not in table or table[name].dtype != object:
            continue
        for row, value in table[name].items():
            where = f"row {row} of {place}"
            if isinstance(value, list | dict | np.ndarray):
                raise DataError(f"{name} must be one value, got {quoted(value)} ({where})")
            if isinstance(value, int) and value.bit_length() > 63:
                raise DataError(f"{name} must fit into 64 bits, got {quoted(value)} ({where})")
            if isinstance(value, str) and SURROGATE.search(value):
                raise DataError(f"{name} must be Unicode, got {quoted(value)} ({where})")


# --- tables with types ----------------------------------------------------------------------------


def _parquet_table(path: Path) -> pd.DataFrame:
    with pa.parquet.ParquetFile(path) as file:
        return _to_pandas(_bounded(file.iter_batches(BATCH_ROWS), file.schema_arrow, path.name))


def _arrow_table(container: Container) -> pd.DataFrame:
    is_file = container.head.startswith(b"ARROW1")

    with pa.memory_map(str(container.path)) as file:
        if is_file:
            reader = pa.ipc.open_file(file)
            batches = (reader.get_batch(at) for at in range(reader.num_record_batches))
        else:
            reader = pa.ipc.open_stream(file)
            batches = iter(reader)
        return _to_pandas(_bounded(batches, reader.schema, container.path.name))


def _bounded(batches: Iterable[pa.RecordBatch], schema: pa.Schema, name: str) -> pa.Table:
    """All rows, each batch checked first: its offsets may point anywhere.

    Raises DataError for more than can be held: a small file may repeat a row any number of times.
    """
    kept = []
    n_bytes = 0
    n_rows = 0
    for batch in batches:
        batch.validate(full=True)
        kept.append(batch)
        n_bytes += batch.nbytes
        n_rows += batch.num_rows
        if n_bytes > MAX_BYTES or n_rows > MAX_ROWS:
            raise DataError(_too_large(name))
    return pa.Table.from_batches(kept, schema)


def _to_pandas(table: pa.Table) -> pd.DataFrame:
    """The columns as they are stored; what pandas noted of its index is any text."""
    names = [name for name in table.column_names if not _UNNAMED_INDEX.fullmatch(name)]
    frame: pd.DataFrame = table.select(names).to_pandas(ignore_metadata=True)
    return frame


def _without_blanks(table: pd.DataFrame) -> pd.DataFrame:
    """Rows numbered from 0, the index a column if it has a known name, text without blanks."""
    if any(plain(str(name)) in _NAMES for name in table.index.names if name is not None):
        table = table.reset_index()
    table = table.reset_index(drop=True)

    for at, kind in enumerate(table.dtypes):
        is_text = isinstance(kind, pd.StringDtype | pd.CategoricalDtype)
        if is_text or pd.api.types.is_object_dtype(kind):
            values = np.empty(len(table), object)
            values[:] = [_stripped(value) for value in table.iloc[:, at]]
            table.isetitem(at, values)
    return table


def _stripped(value: object) -> object:
    return (value.strip() or None) if isinstance(value, str) else value


# --- JSON -----------------------------------------------------------------------------------------


def _json_table(text: str, place: str) -> pd.DataFrame:
    """A list of objects with the columns' names, or Label Studio's tasks as regions."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"JSON must be Label Studio's export or a list of objects: {error} ({place})"
        ) from error

    items = document if isinstance(document, list) else [document]
    if not items or not all(isinstance(item, dict) for item in items):
        raise DataError(
            f"JSON must be Label Studio's export or a list of objects with the columns' names, "
            f"got {quoted(text.strip()[:60])} ({place})"
        )
    if label_studio.are_tasks(items):
        return label_studio.regions_of_tasks(items, place)
    return _without_blanks(pd.DataFrame(items))


# --- text -----------------------------------------------------------------------------------------


def _refuse_long_line(container: Container) -> None:
    """Raises DataError where the first line is none of a table, before anything is unpacked."""
    head = container.head
    if len(head) == HEAD_BYTES and b"\n" not in head and b"\r" not in head:
        raise DataError(_long_line(HEAD_BYTES, container.path.name))


def _long_line(most: int, place: str) -> str:
    return f"a line must have at most {most:,} characters: this is no table of labels ({place})"


def _lines(text: str, place: str) -> Iterator[str]:
    """The lines with their ends, one at a time: a list of them would double the memory."""
    for number, line in enumerate(_LINE.finditer(text)):
        if line.end() - line.start() > MAX_LINE:
            raise DataError(_long_line(MAX_LINE, place))
        if number > MAX_ROWS:
            raise DataError(_too_large(place))
        yield line[0]


def _text(container: Container, max_bytes: int) -> str:
    with container.stream() as stream:
        data = stream.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise DataError(_too_large(container.path.name))

    try:
        return str(data, "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"text must be UTF-8: {error.reason} at byte {error.start}; save it as CSV UTF-8 "
            f"({container.path.name})"
        ) from error


def _text_table(text: str, place: str) -> pd.DataFrame:
    """A table with a header, in any of SEPARATORS; all values are text, or None."""
    separator = _find_separator(text, place)
    reader = csv.reader(_lines(text, place), delimiter=separator, strict=True)

    header: list[str] | None = None
    rows: list[list[str | None]] = []
    try:
        for record in reader:
            values = [value.strip() for value in record]
            if _is_skipped(values, has_header=header is not None):
                _refuse_numbered(values, header, len(rows), place)
                continue
            if header is None:
                header = _header(values, place)
            else:
                rows.append(_row(values, len(header), len(rows), place))
    except csv.Error as error:
        raise DataError(
            f"quotes must be closed and stand around whole values: {error} "
            f"(line {reader.line_num} of {place})"
        ) from error

    if header is None:
        raise DataError(f"a file must hold labels, and this one has no row ({place})")
    columns = pd.Index(header, dtype=object)
    return pd.DataFrame(rows, columns=columns, dtype=object)


def _find_separator(text: str, place: str) -> str:
    """The one by which the first line has most of the known names, else most columns."""
    for line in itertools.islice(_lines(text, place), 100):
        stripped = line[:HEAD_BYTES].strip()
        if stripped.lower().startswith("sep=") and len(stripped) == len("sep=;"):
            return stripped[-1]
        if _is_skipped([stripped], has_header=False):
            continue

        def score(separator: str, line: str = stripped) -> tuple[int, int]:
            names = line.split(separator)
            known = [name for name in names if plain(name.strip(" \"'#/")) in _NAMES]
            return len(known), len(names)

        return max(SEPARATORS, key=score)
    return ","


def _is_skipped(values: Sequence[str], *, has_header: bool) -> bool:
    """Whether a line is no row: blank, a comment, or Excel's statement of the separator.

    A header may stand in a comment.
    """
    first = values[0] if values else ""
    if len(values) <= 1 and not first:
        return True
    if first.startswith(_COMMENTS):
        names = {plain(value.lstrip("#/ ")) for value in values}
        return has_header or not names & set(_NAMES)
    return not has_header and first.lower().startswith("sep=")


def _refuse_numbered(
    values: Sequence[str], header: Sequence[str] | None, row: int, place: str
) -> None:
    """Raises DataError for a row whose first value is an id such as #3: no comment."""
    if header is None or plain(header[0]) in _TIMES:
        return
    if len(values) >= len(header) and re.fullmatch(r"(#|//)\s*\w{1,20}", values[0]):
        raise DataError(
            f"a line that begins with # is a comment, and {quoted(','.join(values)[:80])} has all "
            f"values of a row (row {row} of {place}): write the id without #, or take it out"
        )


def _header(values: list[str], place: str) -> list[str]:
    names = [values[0].lstrip("#/ "), *values[1:]]
    while names and not names[-1]:  # lines that end in a separator
        names.pop()
    if len(names) > MAX_COLUMNS:
        raise DataError(f"a table may have {MAX_COLUMNS} columns, got {len(names)} ({place})")

    is_known = any(plain(name) in _NAMES for name in names)
    if not is_known and any(_DATA.fullmatch(name) for name in names):
        raise DataError(
            f"a file of labels begins with the names of its columns, and this one with a row: "
            f"{quoted(', '.join(names)[:120])}; put "
            "window_start,label,expansion_start,expansion_end or start,end,label above it "
            f"({place})"
        )
    return names


def _row(
    values: list[str],
    n_columns: int,
    row: int,
    place: str,
) -> list[str | None]:
    """[n_columns] Raises DataError where there are fewer values, or more."""
    excess = values[n_columns:]
    if not any(values):
        return [None] * n_columns
    if len(values) < n_columns or any(excess):
        raise DataError(
            f"a row must have {n_columns} values like the header, got {len(values)} "
            f"(row {row} of {place}): {quoted(' | '.join(values)[:80])}"
        )

    return [None if _is_missing(value) else value for value in values[:n_columns]]


def _is_missing(value: str) -> bool:
    """Spelled-out absence; "none" is a word that labels use."""
    word = value.lower()
    return word in NO_VALUE and word != "none"
