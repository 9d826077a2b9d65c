"""Files of bars in: one file, a folder or a pattern becomes one set of arrays, in order of time.

Arrays of the result's size are made first and filled block by block, so that nothing is held twice.
"""

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from moola import PRICES
from moola.data.blocks import Block, Decisions, Source
from moola.data.containers import is_beside
from moola.data.series import NO_TIME
from moola.data.sources import open_source
from moola.errors import DataError
from moola.features.arrays import Floats, Ints
from moola.runs.submit import sha256_file
from moola.runs.work_limit import mark_fetched
from moola.specs import LayoutConfig
from moola.store.fetch import fetch_uri, file_path, object_names

PATTERN = frozenset("*?[")


@dataclass(frozen=True)
class FileReport:
    """One of the files: what was decided about it. `sha256` where several were joined; a single one
    has its own.
    """

    name: str
    n_rows: int
    decisions: Decisions
    sha256: str | None
    is_turned: bool  # it ran backwards


@dataclass(frozen=True)
class LayoutReport:
    """What was decided about the input, in words."""

    files: tuple[FileReport, ...]

    @property
    def newest_first(self) -> bool:
        """Whether rows were turned round."""
        return any(file.is_turned for file in self.files)

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON: the decisions once where all files are alike."""
        first = self.files[0].decisions
        differing = [file for file in self.files if file.decisions != first]
        files: list[dict[str, Any]] = [
            {
                "name": file.name,
                "n_rows": file.n_rows,
                "sha256": file.sha256,
            }
            for file in self.files
        ]

        for document, file in zip(files, self.files, strict=True):
            if file in differing:
                document["layout"] = file.decisions.as_dict()
        return {
            **first.as_dict(),
            "newest_first": self.newest_first,
            "files": files,
        }


@dataclass(frozen=True)
class Instruments:
    """Who a row belongs to: [n_rows] codes into `names`, -1 where the column is empty."""

    column: str
    codes: NDArray[np.int32]
    names: tuple[str, ...]


@dataclass(frozen=True)
class LoadedBars:
    """The rows as they are, in the files' order: UTC ns of the minute of the open [n_rows], NO_TIME
    where there is none; values [4 or 5, n_rows], open, high, low, close[, volume], NaN where there
    is none.

    `instruments` has an entry for each column that names one: a symbol, and Databento's
    instrument_id. `layout` is what was asked for, `path` what messages name. `order` [n_rows] are
    the rows as they were before joined files were sorted; None where they were in order.
    """

    times: Ints
    values: Floats
    instruments: tuple[Instruments, ...]
    report: LayoutReport
    layout: LayoutConfig
    path: Path
    order: Ints | None = None

    @property
    def n_rows(self) -> int:
        return len(self.times)

    def minute(self, row: int) -> str:
        """A row's minute for a message."""
        time = self.times[row]
        return "no time" if time == NO_TIME else f"{pd.Timestamp(time):%Y-%m-%d %H:%M} UTC"

    def locate(self, row: int) -> tuple[int, str]:
        """A row's number in its file, and the file's name; counted from 0, without the header."""
        if self.order is not None:
            row = int(self.order[row])

        for file in self.report.files:
            if row < file.n_rows:
                return file.n_rows - 1 - row if file.is_turned else row, file.name
            row -= file.n_rows
        return row, self.path.name

    def place(self, row: int) -> str:
        """The same for a message."""
        number, name = self.locate(row)
        return f"row {number}, {name}"


def fetch_bars(uri: str, folder: Path) -> list[Path]:
    """The local files of bars at a path, file:// or s3://: a file, a folder or a pattern.

    Objects are fetched into `folder`; s3://bucket/prefix/ is a folder, and the last part of a key
    may be a pattern. Raises DataError.
    """
    if uri.startswith("file://"):
        return find_files(file_path(uri))
    if not uri.startswith("s3://"):
        return find_files(Path(uri).expanduser() if uri.startswith("~") else uri)

    parent, _, pattern = uri.rpartition("/")
    if pattern and not PATTERN & set(pattern):
        return [fetch_uri(uri, folder, mark_fetched)]

    names = fnmatch.filter(object_names(parent), pattern or "*")
    names = [name for name in names if not is_beside(name)]
    if not names:
        raise DataError(f"there must be files of bars at {uri}, and there are none")
    return [fetch_uri(f"{parent}/{name}", folder, mark_fetched) for name in names]


def find_files(where: Path | str) -> list[Path]:
    """The files of bars at a path, in a folder, or of a pattern such as bars/*.parquet. Raises
    DataError.
    """
    path = Path(where)
    if path.is_file():
        return [path]

    if path.is_dir():
        inside = sorted(path.rglob("*"))
        files = [file for file in inside if file.is_file() and not _is_beside(file, path)]
        what = f"the folder {path} must hold files of bars, and holds none"
    elif PATTERN & set(str(where)):
        names = glob(str(where), recursive=True)  # noqa: PTH207
        files = [Path(name) for name in sorted(names)]
        files = [file for file in files if file.is_file() and not is_beside(file.name)]
        what = f"the pattern {where} must name files, and names none"
    else:
        raise DataError(f"bars must be a file, and there is none at {path}")

    if not files:
        raise DataError(what)
    return files


def _is_beside(file: Path, folder: Path) -> bool:
    parts = file.relative_to(folder).parts
    return any(part.startswith((".", "_")) for part in parts) or is_beside(file.name)


def load_bars(
    where: Path | str | Sequence[Path],
    layout: LayoutConfig = LayoutConfig(),  # noqa: B008
    timezone: str | None = None,
) -> LoadedBars:
    """The rows of a file, of a folder's files, of a pattern's or of those given, joined in order of
    time.

    `timezone` is the zone of times that do not state one. Raises DataError, for a file in a folder
    with its name.
    """
    files = find_files(where) if isinstance(where, (str, Path)) else list(where)
    sources = [open_source(file, layout, timezone) for file in files]
    is_joined = len(sources) > 1
    if is_joined:
        sources = sorted(sources, key=_first_time)

    table = _Table(sources)
    reports = [_load(source, table, layout, is_joined) for source in sources]
    order = table.sort() if is_joined else None
    path = files[0]
    if is_joined:
        path = Path(where) if isinstance(where, (str, Path)) else path.parent
    return table.finish(LayoutReport(tuple(reports)), layout, path, order)


def _load(source: Source, table: "_Table", layout: LayoutConfig, is_joined: bool) -> FileReport:
    """Adds a file's rows to the table, turned round where they run backwards."""
    start = table.n_rows
    for block in source.blocks():
        table.add(block)

    is_turned = _runs_backwards(table.times[start : table.n_rows], layout)
    if is_turned:
        table.turn_round(start)

    return FileReport(
        name=source.path.name,
        n_rows=table.n_rows - start,
        decisions=source.decisions,
        sha256=sha256_file(source.path) if is_joined else None,
        is_turned=is_turned,
    )


def _first_time(source: Source) -> int:
    """The earliest time of a file's first block; where it has none, it comes first and is refused
    later.
    """
    block = next(source.blocks(), None)
    if block is None or not len(block):
        return NO_TIME
    return int(block.times.min())


def _runs_backwards(times: Ints, layout: LayoutConfig) -> bool:
    """Whether rows stand newest first: where nobody said so, only if no row steps forward."""
    if layout.newest_first is not None:
        return layout.newest_first

    if len(times) and NO_TIME < times[0] < times[-1]:
        return False
    times = times[times != NO_TIME]
    return bool(len(times) > 1 and times[-1] < times[0] and (times[1:] <= times[:-1]).all())


class _Table:
    """Arrays of the most rows there can be, filled from the front; pages that are not written to
    cost nothing.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        most_rows = sum(source.most_rows() for source in sources)
        has_volume = any(source.columns.volume for source in sources)
        n_values = len(PRICES) + has_volume
        n_symbols = max(len(source.columns.symbols) for source in sources)

        self.times = np.empty(most_rows, dtype=np.int64)
        self.values = np.empty((n_values, most_rows))
        self.n_rows = 0
        self._symbols = [
            _SymbolColumn(most_rows, self._heading(at, sources)) for at in range(n_symbols)
        ]

    @staticmethod
    def _heading(at: int, sources: Sequence[Source]) -> str:
        named = [source.columns.symbols for source in sources if len(source.columns.symbols) > at]
        return named[0][at].label

    def add(self, block: Block) -> None:
        rows = slice(self.n_rows, self.n_rows + len(block))
        self.times[rows] = block.times

        for at, column in enumerate(self.values):
            column[rows] = block.values[at] if at < len(block.values) else np.nan
        for at, symbols in enumerate(self._symbols):
            symbols.add(
                rows,
                block.symbols[at] if at < len(block.symbols) else None,
            )
        self.n_rows = rows.stop

    def turn_round(self, start: int) -> None:
        """The rows from `start` on in the opposite order, in place."""
        rows = slice(start, self.n_rows)
        for column in self._columns():
            column[rows] = column[rows][::-1].copy()

    def sort(self) -> Ints | None:
        """In order of time, rows of one minute as they came, a column at a time; the order, None
        where that changed nothing.
        """
        times = self.times[: self.n_rows]
        if (times[1:] >= times[:-1]).all():
            return None
        order = np.argsort(times, kind="stable")
        for column in self._columns():
            column[: self.n_rows] = column[: self.n_rows][order]
        return order

    def _columns(self) -> list[NDArray[Any]]:
        return [
            self.times,
            *self.values,
            *(symbols.codes for symbols in self._symbols),
        ]

    def finish(
        self,
        report: LayoutReport,
        layout: LayoutConfig,
        path: Path,
        order: Ints | None,
    ) -> LoadedBars:
        values = self.values[:, : self.n_rows]
        if len(values) > len(PRICES) and np.isnan(values[-1]).all():
            values = values[: len(PRICES)]  # a volume column without a single value is none

        instruments = tuple(symbols.finish(self.n_rows) for symbols in self._symbols)
        return LoadedBars(
            self.times[: self.n_rows],
            values,
            instruments,
            report,
            layout,
            path,
            order,
        )


class _SymbolColumn:
    """A column that names the instrument, as codes into the names that were met."""

    def __init__(self, most_rows: int, heading: str) -> None:
        self.codes = np.full(most_rows, -1, dtype=np.int32)
        self._heading = heading
        self._known: dict[str, int] = {}

    def add(self, rows: slice, column: pa.Array | None) -> None:
        if column is None:
            return
        if not pa.types.is_dictionary(column.type):
            column = column.dictionary_encode()

        names = [str(name).strip() for name in column.dictionary.to_pylist()]
        codes = [self._known.setdefault(name, len(self._known)) if name else -1 for name in names]
        places = column.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        self.codes[rows] = np.array([*codes, -1], dtype=np.int32)[places]

    def finish(self, n_rows: int) -> Instruments:
        return Instruments(self._heading, self.codes[:n_rows], tuple(self._known))
