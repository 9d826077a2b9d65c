"""A text file as a table: separator, header, lines that are no rows, and how its numbers are
written.
"""

import contextlib
import csv
import itertools
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from moola import PRICES
from moola.data.advice import command
from moola.data.column_names import DATE_NAMES, ROLE_NAMES, TIME_NAMES
from moola.data.columns import plain
from moola.data.containers import HEAD_BYTES, MAX_TEXT_BYTES, Container
from moola.data.layouts import Layout
from moola.data.time_values import kind_of_text
from moola.errors import DataError
from moola.features.arrays import Flags, Floats
from moola.specs import NAMED_SEPARATORS
from moola.text import quoted

SAMPLE_ROWS = 1_000
MAX_COLUMNS = 1_000
MAX_ROWS = 60_000_000  # a century of minutes has 53 million
LEAST_COLUMNS = 5  # a time and four prices
MAX_FOOTER_ROWS = 100
LEVEL_NAMES = ("ticker", "price")  # of yfinance's header of two lines
MAX_PREAMBLE = 50  # lines above a header that are as wide as it
SEPARATOR_NAMES = {mark: name for name, mark in NAMED_SEPARATORS.items()}
# In this order: a decimal comma makes a file with ; look like one with ,
SEPARATORS = (";", "\t", "|", ",", " ")
RARE_SEPARATORS = ("^", "~", "!", "&", "\x1f")  # asked about
NAMES_TRIED = tuple(SEPARATOR_NAMES[mark] for mark in SEPARATORS)

# Spelled-out absence of a value.
NO_VALUE = (
    "",
    "-",
    "--",
    ".",
    "nan",
    "null",
    "none",
    "na",
    "n/a",
    "n/d",
    "#n/a",
    "<na>",
)

_LINE_END = re.compile(r"\r\n|\n|\r")
_COMMENT = re.compile(r"\s*(#|//|%)")
_NUMBER = re.compile(r"[+-]?[\d.,' \u00a0]*\d[\d.,' \u00a0]*([eE][+-]?\d+)?%?")
_ARROW_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"

_FRACTION = re.compile(r"\d{2,3}'([0-2]\d|3[01])[0257]?")
_DECIMAL_COMMA = re.compile(r"[+-]?(\d+|\d{1,3}(\.\d{3})+),(\d{1,2}|\d{4,})")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(\.\d{3})+")
BLANKS_OF_THOUSANDS = ("'", " ", "\u00a0", "\u202f")

Decimal = Literal[".", ","]


@dataclass(frozen=True)
class TextTable:
    """What a text file looks like. `names` and `tickers` are those of the columns, None where there
    is no header.
    """

    separator: str
    names: tuple[str, ...] | None
    tickers: tuple[str, ...] | None
    n_columns: int
    first_line: int  # of the rows, counted from 0
    sample: tuple[tuple[str, ...], ...]  # the first rows
    comments: int  # lines before the rows that are neither rows nor header

    def column(self, at: int) -> list[str]:
        """The sample's values of one column, without those that are empty."""
        values = (row[at].strip() for row in self.sample)
        return [value for value in values if value.lower() not in NO_VALUE]


def look_at_table(container: Container, layout: Layout) -> TextTable:
    """The table in a text file, judged by its first mebibyte. Raises DataError for what is none."""
    path = container.path
    lines = _head_lines(container)
    separator = layout.separator or _stated_separator(lines) or _find_separator(lines)
    rows = [_fields(line, separator) for line in lines]
    is_row = [_is_row(line) for line in lines]

    sizes = Counter(len(row) for row, counts in zip(rows, is_row, strict=True) if counts)
    n_columns = max(sizes, key=lambda size: (sizes[size], size), default=0)
    if n_columns < LEAST_COLUMNS:
        raise DataError(_no_table(lines, layout, n_columns, path))
    if separator == " " and _is_padded(lines):
        raise DataError(
            f"columns must be one blank apart, and these are padded with blanks: squeeze them: "
            f"sed 's/^ *//' {path.name} | tr -s ' ' > squeezed.csv ({path.name})"
        )
    if n_columns > MAX_COLUMNS:
        raise DataError(f"a table may have {MAX_COLUMNS} columns, got {n_columns} ({path.name})")

    start = _first_full_row(rows, is_row, n_columns)
    has_header = _is_header(rows[start]) if layout.header is None else layout.header
    names, tickers = None, None
    first_line = start

    if has_header:
        names, tickers, n_lines = _header(rows[start:], n_columns)
        first_line = start + n_lines

    for line in range(start):
        if is_row[line] and _holds_bar(lines[line], separator):
            raise DataError(_other_width(lines[line], n_columns, f"line {line + 1}, {path.name}"))

    sample = [
        tuple(row)
        for row, counts in zip(rows[first_line:], is_row[first_line:], strict=True)
        if counts and len(row) == n_columns
    ]
    comments = sum(1 for line in lines[:start] if line.strip())
    return TextTable(
        separator,
        names,
        tickers,
        n_columns,
        first_line,
        tuple(sample[:SAMPLE_ROWS]),
        comments,
    )


def _no_table(lines: list[str], layout: Layout, n_columns: int, path: Path) -> str:
    """Why lines are no table of bars, and the separator that would make one of them."""
    rows = [line for line in lines if _is_row(line)]
    first = rows[0] if rows else ""
    marks = [mark for mark in RARE_SEPARATORS if _cuts_alike(rows, mark)]

    if layout.separator is not None:
        stated = SEPARATOR_NAMES.get(layout.separator, layout.separator)
        which = f"{n_columns} columns, separated by {stated}"
    else:
        which = f"at most {n_columns} columns, by any of {', '.join(NAMES_TRIED)}"
    return (
        f"a table of bars must have a time and four prices, and the rows have {which}: "
        f"{quoted(first[:120])} ({path.name}); if the separator is another: "
        f"{command(path, separator=marks[0] if marks else '...')}"
    )


def _cuts_alike(rows: list[str], mark: str) -> bool:
    sizes = {row.count(mark) for row in rows[:100]}
    return len(sizes) == 1 and sizes.pop() >= LEAST_COLUMNS - 1


def _is_padded(lines: list[str]) -> bool:
    """Whether blanks stand in for a table's lines, as in what pandas prints."""
    rows = [line for line in lines if _is_row(line)]
    return sum("  " in row.strip() for row in rows) * 2 > len(rows)


def _head_lines(container: Container) -> list[str]:
    head = container.head

    if len(head) == HEAD_BYTES:  # the last line may be cut
        end = max(head.rfind(b"\n"), head.rfind(b"\r"))
        if end < 0:
            raise DataError(
                f"a row must fit into {HEAD_BYTES:,} bytes, and the first does not: this is no "
                f"table "
                f"({container.path.name})"
            )
        head = head[: end + 1]

    text = head.decode("utf-8-sig", errors="replace")
    return _LINE_END.split(text)[: SAMPLE_ROWS + 50]


def _stated_separator(lines: list[str]) -> str | None:
    """Excel writes and reads a first line such as `sep=;`."""
    first = lines[0].strip().lower()
    return lines[0].strip()[4] if first.startswith("sep=") and len(first) == 5 else None


def _find_separator(lines: list[str]) -> str:
    """The first separator that cuts nearly all lines into the same number of columns, else the
    likeliest.
    """
    rows = [line for line in lines if _is_row(line)][:100]
    scores: dict[str, float] = {}

    for separator in SEPARATORS:
        sizes = Counter(len(_fields(line, separator)) for line in rows)
        size, count = max(sizes.items(), key=lambda item: item[1], default=(0, 0))
        is_table = size >= LEAST_COLUMNS
        scores[separator] = count / len(rows) if is_table else size / MAX_COLUMNS / 10

    clear = [separator for separator in SEPARATORS if scores[separator] >= 0.9]
    return clear[0] if clear else max(scores, key=lambda separator: scores[separator])


def _is_row(line: str) -> bool:
    return bool(line.strip()) and _COMMENT.match(line) is None


def _fields(line: str, separator: str) -> list[str]:
    return next(csv.reader([line], delimiter=separator), [])


def _first_full_row(rows: list[list[str]], is_row: list[bool], n_columns: int) -> int:
    """The line of the header, or of the first row where there is none."""
    start = next(line for line, row in enumerate(rows) if is_row[line] and len(row) == n_columns)
    before = start - 1

    if before >= 0 and len(rows[before]) == n_columns and plain(rows[before][0].lstrip("#/% ")):
        commented = [rows[before][0].lstrip("#/% "), *rows[before][1:]]
        if _is_header(commented) and not _is_header(rows[start]):
            rows[before] = commented
            return before

    # A header may be one short: rows that end in a separator, or row names without a heading.
    is_short = before >= 0 and is_row[before] and len(rows[before]) == n_columns - 1
    if is_short and _is_header(rows[before]) and not _is_header(rows[start]):
        is_time = kind_of_text(rows[start][:1]) in ("absolute", "moment", "date")
        begins_alike = is_time and plain(rows[before][0]) in TIME_NAMES
        trailing = rows[start][-1].strip() == "" or begins_alike
        rows[before] = [*rows[before], ""] if trailing else ["", *rows[before]]
        return before
    return _named_header(rows, start, n_columns)


def _named_header(rows: list[list[str]], start: int, n_columns: int) -> int:
    """The line of the first header with known names, where those above it have none of them."""
    if plain(rows[start][0]) in LEVEL_NAMES:
        return start
    known = {*TIME_NAMES, *DATE_NAMES, *itertools.chain(*ROLE_NAMES.values())}
    for line in range(start, min(start + MAX_PREAMBLE, len(rows))):
        if len(rows[line]) == n_columns and not _is_header(rows[line]):
            break
        if sum(1 for name in rows[line] if plain(name) in known) >= len(PRICES):
            return line
    return start


def _is_header(row: list[str]) -> bool:
    """A row of bars has at least four numbers; a header may hold some (the lengths of averages)."""
    numbers = sum(1 for value in row if _NUMBER.fullmatch(value.strip()))
    return numbers < LEAST_COLUMNS - 1


def _header(
    rows: list[list[str]], n_columns: int
) -> tuple[tuple[str, ...], tuple[str, ...] | None, int]:
    """Names, tickers and the number of lines of the header: yfinance writes three, one with the
    tickers.
    """
    names = [name.strip() for name in rows[0]]
    below = rows[1] if len(rows) > 1 and len(rows[1]) == n_columns else [""]
    first_words = {plain(names[0]), plain(below[0])}

    if "ticker" not in first_words or not first_words <= {*LEVEL_NAMES, ""}:
        return tuple(names), None, 1

    tickers = [ticker.strip() for ticker in below]
    if plain(names[0]) == "ticker":
        names, tickers = tickers, names

    third = rows[2] if len(rows) > 2 else [""]
    is_index_name = bool(third[0].strip()) and not any(third[1:])
    names[0] = third[0] if is_index_name else "Datetime"
    tickers[0] = ""
    return tuple(names), tuple(tickers), 3 if is_index_name else 2


# --- rows -----------------------------------------------------------------------------------------


@dataclass
class SkippedRows:
    """Rows with another number of columns: comments, and a footer after the last row."""

    # Of those that are no comment: physical row from 1, rows skipped before it, text.
    rows: list[tuple[int, int, str]] = field(default_factory=list)
    n_rows: int = 0

    def take(self, row: pa.csv.InvalidRow) -> str:
        if _is_row(row.text) and len(self.rows) <= MAX_FOOTER_ROWS:
            self.rows.append((row.number, self.n_rows, row.text))
        self.n_rows += 1
        return "skip"

    def check(
        self,
        container: Container,
        first_line: int,
        n_rows: int,
        n_columns: int,
        separator: str,
    ) -> None:
        """Raises DataError where such a row stands before the last one or holds a bar, or where
        they are too many for a footer.
        """
        for number, skipped, text in self.rows:
            row = number - 1 - first_line - skipped
            is_too_long = len(self.rows) > MAX_FOOTER_ROWS
            if row < n_rows or is_too_long or _holds_bar(text, separator):
                place = f"row {row}, {container.path.name}"
                raise DataError(_other_width(text, n_columns, place))


def _other_width(line: str, n_columns: int, place: str) -> str:
    return (
        f"a row must have {n_columns} columns like the others: {quoted(line[:80])} has not "
        f"({place}): mend it, or take it out"
    )


def _holds_bar(line: str, separator: str) -> bool:
    """Whether a line has a time and four numbers, also where it is cut or quoted otherwise."""
    first = line.strip().splitlines()[0].replace('"', "")
    for mark in (separator, ";", "\t", "|", ","):
        fields = [value.strip() for value in first.split(mark)]
        numbers = [value for value in fields if _NUMBER.fullmatch(value)]
        is_timed = fields[0][:1].isdigit() or any(
            kind_of_text([value]) in ("absolute", "moment", "date") for value in fields[:4]
        )
        if is_timed and len(numbers) >= len(PRICES):
            return True
    return False


def count_rows(container: Container) -> int:
    """At least as many as there are rows: the lines, counted without parsing."""
    n_lines = 1
    n_bytes = 0

    with container.stream() as stream:
        while block := stream.read(HEAD_BYTES):
            n_bytes += len(block)
            n_lines += block.count(b"\n") or block.count(b"\r")
            if n_bytes > MAX_TEXT_BYTES or n_lines > MAX_ROWS:
                raise DataError(
                    f"a file of bars has at most {MAX_ROWS:,} rows and {MAX_TEXT_BYTES >> 30} GiB "
                    f"unpacked, and "
                    f"this one has more ({container.path.name})"
                )
    return n_lines


def read_rows(
    container: Container,
    table: TextTable,
    types: Mapping[int, pa.DataType],
    decimal: Decimal,
    skipped: SkippedRows,
) -> Iterator[pa.RecordBatch]:
    """Blocks of the columns in `types`, named by place: "0", "1" ... Raises pyarrow's errors."""
    stream = container.stream()
    try:
        with _no_traceback_of_bad_text():
            reader = _open_csv(stream, table, types, decimal, skipped)
        while True:
            with _no_traceback_of_bad_text():
                try:
                    batch = reader.read_next_batch()
                except StopIteration:
                    return
            yield batch
    finally:
        if container.compression == "zip":  # a file of Python's; of Arrow's own it reads ahead
            stream.close()


@contextlib.contextmanager
def _no_traceback_of_bad_text() -> Iterator[None]:
    """pyarrow prints one where a row that it would skip is no UTF-8, before it refuses the row."""
    hook = sys.unraisablehook

    def pass_on(unraisable: "sys.UnraisableHookArgs") -> None:
        if unraisable.exc_type is not UnicodeDecodeError:
            hook(unraisable)

    sys.unraisablehook = pass_on
    try:
        yield
    finally:
        sys.unraisablehook = hook


def _open_csv(
    stream: pa.NativeFile,
    table: TextTable,
    types: Mapping[int, pa.DataType],
    decimal: Decimal,
    skipped: SkippedRows,
) -> pa.csv.CSVStreamingReader:
    places = [str(at) for at in range(table.n_columns)]
    return pa.csv.open_csv(
        stream,
        read_options=pa.csv.ReadOptions(
            use_threads=False,  # threads lose the row numbers of errors
            column_names=places,
            skip_rows=table.first_line,
        ),
        parse_options=pa.csv.ParseOptions(
            delimiter=table.separator, invalid_row_handler=skipped.take
        ),
        convert_options=pa.csv.ConvertOptions(
            column_types={str(at): kind for at, kind in types.items()},
            include_columns=[str(at) for at in types],
            decimal_point=decimal,
        ),
    )


# --- numbers --------------------------------------------------------------------------------------


def find_decimal(
    container: Container,
    table: TextTable,
    prices: list[int],
    volume: list[int],
    layout: Layout,
) -> Decimal:
    """The decimal point of the columns at `prices`; that of a `volume` may contradict it. Raises
    DataError where 1,085 could be 1085 or 1.085.
    """
    if layout.decimal is not None:
        return layout.decimal

    values = [value for at in prices for value in table.column(at)]
    _refuse_fractions(values, container.path)
    with_comma = [value for value in values if "," in value]
    if not with_comma:
        _refuse_other_decimal(values, table, volume, container.path)
        return "."

    if any("." in value for value in values):
        last = [max(value.rfind(","), value.rfind(".")) for value in with_comma]
        marks = {
            value[place] for value, place in zip(with_comma, last, strict=True) if "." in value
        }
        return "," if marks == {","} else "."

    if all(re.fullmatch(r"[+-]?\d{1,3}(,\d{3})+", value) for value in with_comma):
        likely = "." if table.separator == "," else ","
        raise DataError(
            f"a comma must be a decimal point or a separator of thousands, and {with_comma[0]} "
            f"could be either: set decimal to , for {with_comma[0].replace(',', '.', 1)} or to . "
            f"for {with_comma[0].replace(',', '')} ({container.path.name}): "
            f"{command(container.path, decimal=likely)}"
        )
    return ","


def _refuse_fractions(values: list[str], path: Path) -> None:
    """Raises DataError for Treasury prices such as 110'165, which are 110 and 16.5 / 32."""
    fractions = [_FRACTION.fullmatch(value) for value in values]
    if values and all(fractions):
        raise DataError(
            f"a price must be a decimal number, and {values[0]} looks like points and 32nds: write "
            f"it as one first, such as 110.515625 for 110'165; if these are thousands "
            f"({path.name}): "
            f"{command(path, decimal='.')}"
        )


def _refuse_other_decimal(
    values: list[str], table: TextTable, volume: list[int], path: Path
) -> None:
    """Raises DataError for prices such as 128.565 beside a volume such as 25000,00."""
    volumes = [value for at in volume for value in table.column(at)]
    commas = [value for value in volumes if _DECIMAL_COMMA.fullmatch(value)]
    points = [value for value in values if "." in value]
    if commas and points and all(_THOUSANDS.fullmatch(value) for value in points):
        raise DataError(
            f"a file must write its numbers in one way, and {points[0]} stands beside a volume of "
            f"{commas[0]}: set decimal to , for {points[0].replace('.', '')} or to . for "
            f"{points[0]} ({path.name}): {command(path, decimal=',')}"
        )


def to_numbers(column: pa.Array, decimal: Decimal) -> tuple[Floats, Flags]:
    """Text as float64, NaN where there is no value, and which values are no numbers (NaN, too)."""
    text = pc.utf8_trim_whitespace(column)
    is_empty = pc.is_in(pc.utf8_lower(text), pa.array(NO_VALUE))
    text = _with_point(pc.if_else(is_empty, None, text), decimal)

    try:
        numbers = text.cast(pa.float64())
        bad = np.zeros(len(column), dtype=np.bool_)
    except pa.ArrowInvalid:
        is_number = pc.match_substring_regex(text, _ARROW_NUMBER)
        numbers = pc.if_else(is_number, text, None).cast(pa.float64())
        bad = pc.invert(is_number).fill_null(False).to_numpy(zero_copy_only=False)

    values: Floats = numbers.to_numpy(zero_copy_only=False)
    return values, bad


def _occurs(text: pa.Array, mark: str) -> bool:
    return bool(pc.any(pc.match_substring(text, mark), min_count=0).as_py())


def _with_point(text: pa.Array, decimal: Decimal) -> pa.Array:
    """Numbers with a point and nothing between thousands; what is neither becomes no number."""
    thousands = "," if decimal == "." else "."
    if any(_occurs(text, mark) for mark in BLANKS_OF_THOUSANDS):
        grouped = r"^[+-]?\d{1,3}([' \x{a0}\x{202f}]\d{3})+([.,]\d*)?$"
        is_grouped = pc.match_substring_regex(text, grouped)
        without = pc.replace_substring_regex(text, r"[' \x{a0}\x{202f}]", "")
        text = pc.if_else(is_grouped, without, text)

    # A separator of thousands is one only in its place: 1,5 is not 15.
    if _occurs(text, thousands):
        grouped = rf"^[+-]?\d{{1,3}}(\{thousands}\d{{3}})+(\{decimal}\d*)?$"
        is_grouped = pc.match_substring_regex(text, grouped)
        text = pc.if_else(is_grouped, pc.replace_substring(text, thousands, ""), text)

    if decimal == ",":
        has_point = pc.match_substring(text, ".")
        text = pc.if_else(has_point, "?", pc.replace_substring(text, ",", "."))
    return text
