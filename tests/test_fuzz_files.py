"""Files of bars and of labels, damaged in any way: each is read or refused, in a short message.

A file is input: it may be refused, and nothing else may come of it.
"""

import bz2
import gzip
import io
import json
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from moola.data.bars import read_bars_of
from moola.data.inspection import inspect_bars
from moola.data.label_files import labels_of_file, open_label_file
from moola.errors import DataError
from moola.specs import LabelConfig, PrecomputeSpec, parse_spec
from tests.feature_set import random_bars
from tests.test_label_files import TIMES, windows_csv

LONGEST_LINE = 1000  # characters of a message
N_EXAMPLES = 1000


# --- good files -----------------------------------------------------------------------------------


def zipped(data: bytes, method: int) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.writestr("table.csv", data)
    return stream.getvalue()


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue())


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "bz2": bz2.compress,
    "zstd": zstd,
    "zip": lambda data: zipped(data, zipfile.ZIP_DEFLATED),
    "zip of lzma": lambda data: zipped(data, zipfile.ZIP_LZMA),
    "zip of bz2": lambda data: zipped(data, zipfile.ZIP_BZIP2),
}


def parquet(table: pd.DataFrame) -> bytes:
    stream = io.BytesIO()
    table.to_parquet(stream)
    return stream.getvalue()


def arrow(table: pd.DataFrame, new: Callable[..., Any]) -> bytes:
    return arrow_of_table(pa.Table.from_pandas(table), new)


def arrow_of_table(rows: pa.Table, new: Callable[..., Any]) -> bytes:
    sink = pa.BufferOutputStream()
    with new(sink, rows.schema) as writer:
        writer.write_table(rows)
    return bytes(sink.getvalue())


def typed(table: pd.DataFrame) -> list[bytes]:
    return [parquet(table), arrow(table, pa.ipc.new_file), arrow(table, pa.ipc.new_stream)]


REGION = {
    "start": f"{TIMES[60]:%Y-%m-%dT%H:%M:%SZ}",
    "end": f"{TIMES[68]:%Y-%m-%dT%H:%M:%SZ}",
    "timeserieslabels": ["retracement"],
}
OWN = {
    "window_id": "w1",
    "label": "consolidation",
    "expansion_start": 30,
    "expansion_end": 40,
    "features": [[1.0, 2.0, 0.5, 1.5]] * 104 + [[1.5, 2.0, 1.0, 1.0]],
}
DOCUMENTS: list[Any] = [
    [OWN],
    [{"start": REGION["start"], "end": REGION["end"], "label": "consolidation", "grade": "A"}],
    [{"id": 1, "annotations": [{"result": [{"type": "timeserieslabels", "value": REGION}]}]}],
    [{"id": 1, "label": [REGION]}],
]

BARS_TEXT = random_bars(130).reset_index().to_csv(index=False).encode()
BARS = [BARS_TEXT, *typed(random_bars(130))]
LABELS_TEXT = windows_csv().encode()
LABELS = [
    LABELS_TEXT,
    *typed(pd.read_csv(io.BytesIO(LABELS_TEXT))),
    parquet(pd.DataFrame([OWN])),
    pd.DataFrame([{**OWN, "features": json.dumps(OWN["features"])}]).to_csv(index=False).encode(),
    pd.DataFrame({"id": [1], "label": [json.dumps([REGION])]}).to_csv(index=False).encode(),
]


# --- damages --------------------------------------------------------------------------------------

TOKENS = [
    *(b",", b";", b"\t", b"|", b"\n", b"\r", b'"', b'""', b"'", b"#", b":", b" ", b"=1"),
    *(b"\0", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\x1b[31m", b"[/INST]"),
    *(b"[", b"]", b"{", b"}", b"{}", b"[]", b"null", b"true", b"none", b"[[" * 2000),
    *(b"NaN", b"inf", b"-1", b"1e999", b"0x10", b"1_0", b"1,2", b"9" * 5000, b"x" * 70_000),
    *(b"-9223372036854775808", b"18446744073709551616"),
    *(b"2024-02-30", b"9999-12-31T23:59:59Z", b"0001-01-01"),
]
EDIT = st.tuples(
    st.floats(0, 1),  # where
    st.sampled_from([0, 0, 0, 1, 4, 60, 10**9]),  # how many bytes go
    st.just(b"") | st.sampled_from(TOKENS) | st.binary(max_size=6),  # what comes
)
EDITS = st.lists(EDIT, max_size=4)


def damaged(data: bytes, edits: list[tuple[float, int, bytes]]) -> bytes:
    for where, n_removed, added in edits:
        at = round(where * len(data))
        data = data[:at] + added + data[at + n_removed :]
    return data


ODD = [
    *(None, True, 0, -1, 1.5, 10**30, float("nan"), float("inf")),
    *("", "x", "none", "\x1b[31m", "\ud800", "9" * 500, "2024-03-04T15:00:00"),
    *([], {}, [[]], [None], ["a", "b"], {"a": 1}, 10**400),
]


def with_odd_value(value: Any, path: list[int], odd: Any) -> Any:
    """The document with what lies at a path of child numbers replaced."""
    if not path or not value or not isinstance(value, dict | list):
        return odd
    at = path[0] % len(value)
    names = list(value) if isinstance(value, dict) else range(len(value))
    changed = value.copy()
    changed[names[at]] = with_odd_value(value[names[at]], path[1:], odd)
    return changed


# --- any file -------------------------------------------------------------------------------------


def ending_of(read: Callable[[], object]) -> str:
    """The message of a reading that was refused; "" for one that was not."""
    message = ""
    try:
        read()
    except DataError as error:
        message = str(error)
    assert max(map(len, [*message.splitlines(), ""])) < LONGEST_LINE
    return message


def read_as_bars(path: Path, timezone: str | None) -> None:
    spec = parse_spec(PrecomputeSpec, {"timezone": timezone}, place="the test")
    inspection = inspect_bars(spec, [path], str(path))  # as `moola bars` does
    json.dumps(inspection.as_dict(), default=str)
    assert inspection.refused is None or len(inspection.refused) < LONGEST_LINE
    ending_of(lambda: read_bars_of(spec, [path], str(path)))


def read_as_labels(path: Path, *, has_series: bool) -> str:
    times = TIMES if has_series else None
    config = LabelConfig(source="file")
    return ending_of(lambda: labels_of_file(open_label_file(path), config, times=times))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "damaged"


FUZZ = settings(
    max_examples=N_EXAMPLES,
    derandomize=True,  # CI is no lottery; for other files give it another N_EXAMPLES
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@FUZZ
@given(
    kind=st.sampled_from(BARS),
    pack=st.sampled_from(sorted(PACKED)),
    inside=EDITS,
    outside=EDITS,
    timezone=st.sampled_from([None, "UTC"]),
)
def test_any_file_of_bars_is_read_or_refused(
    path: Path,
    kind: bytes,
    pack: str,
    inside: list[tuple[float, int, bytes]],
    outside: list[tuple[float, int, bytes]],
    timezone: str | None,
) -> None:
    path.write_bytes(damaged(PACKED[pack](damaged(kind, inside)), outside))
    read_as_bars(path, timezone)


@FUZZ
@given(
    kind=st.sampled_from(LABELS),
    pack=st.sampled_from(sorted(PACKED)),
    inside=EDITS,
    outside=EDITS,
    has_series=st.booleans(),
)
def test_any_file_of_labels_is_read_or_refused(
    path: Path,
    kind: bytes,
    pack: str,
    inside: list[tuple[float, int, bytes]],
    outside: list[tuple[float, int, bytes]],
    has_series: bool,
) -> None:
    path.write_bytes(damaged(PACKED[pack](damaged(kind, inside)), outside))
    read_as_labels(path, has_series=has_series)


@FUZZ
@given(
    document=st.sampled_from(DOCUMENTS),
    changes=st.lists(
        st.tuples(st.lists(st.integers(0, 105), max_size=7), st.sampled_from(ODD)),
        min_size=1,
        max_size=3,
    ),
)
@example(document=DOCUMENTS[2], changes=[([0, 1, 0, 0], "text for an object")])
@example(document=DOCUMENTS[0], changes=[([0, 4, 0, 0], 10**400)])
@example(document=DOCUMENTS[0], changes=[([0, 2], 10**400)])
@example(document=DOCUMENTS[0], changes=[([0, 0], [])])
@example(document=DOCUMENTS[0], changes=[([0, 1], "\ud800")])
def test_any_labels_in_json_are_read_or_refused(
    path: Path, document: Any, changes: list[tuple[list[int], Any]]
) -> None:
    for place, odd in changes:
        document = with_odd_value(document, place, odd)
    path.write_text(json.dumps(document))
    read_as_labels(path, has_series=True)


def test_the_files_that_are_damaged_are_good_before(path: Path) -> None:
    for data in LABELS:
        path.write_bytes(data)
        assert read_as_labels(path, has_series=True) == ""
    for document in DOCUMENTS:
        path.write_text(json.dumps(document))
        assert read_as_labels(path, has_series=True) == ""
    for data in BARS:
        path.write_bytes(data)
        spec = PrecomputeSpec()
        assert ending_of(lambda spec=spec: read_bars_of(spec, [path], str(path))) == ""


# --- what a fuzz finds seldom ---------------------------------------------------------------------


def with_wild_offsets(table: pd.DataFrame, column: str) -> bytes:
    """An Arrow file in which a text begins and ends far outside the file's bytes."""
    rows = pa.Table.from_pandas(table, preserve_index=False)
    texts = rows[column].cast(pa.string()).combine_chunks()
    rows = rows.set_column(rows.schema.get_field_index(column), column, texts)
    offsets = np.frombuffer(texts.buffers()[1], "<i4")[: len(table) + 1]

    data = arrow_of_table(rows, pa.ipc.new_file)
    assert data.count(offsets.tobytes()) == 1
    wild = offsets.copy()
    wild[1:] += 1_900_000_000
    return data.replace(offsets.tobytes(), wild.tobytes())


def test_an_arrow_file_that_points_outside_itself_is_refused_before_it_is_read(path: Path) -> None:
    """Reading it would read other memory of the process, or end it."""
    path.write_bytes(with_wild_offsets(pd.read_csv(io.BytesIO(LABELS_TEXT)), "label"))
    assert "offset" in read_as_labels(path, has_series=True)

    path.write_bytes(with_wild_offsets(random_bars(130).reset_index(), "close"))
    with pytest.raises(DataError, match="offset"):
        read_bars_of(PrecomputeSpec(), [path], str(path))


def test_a_short_row_that_is_no_utf_8_prints_no_traceback(path: Path) -> None:
    lines = BARS_TEXT.splitlines()
    lines[60] = b"\x93" + lines[60].rpartition(b",")[0]
    path.write_bytes(b"\n".join(lines))
    done = subprocess.run(
        [sys.executable, "-m", "moola", "bars", str(path)],
        cwd=path.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == DataError.exit_code
    assert "Traceback" not in done.stdout + done.stderr


def test_a_small_file_of_many_equal_labels_is_not_unpacked_beyond_the_bound(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moola.data.label_tables.MAX_BYTES", 1 << 20)
    table = pd.concat([pd.read_csv(io.BytesIO(LABELS_TEXT))] * 50_000)
    table.to_parquet(path, index=False)
    assert "at most" in read_as_labels(path, has_series=True)


HEADER = b"window_start,label,expansion_start,expansion_end\n"


@pytest.mark.parametrize(
    ("bound", "most", "data", "message"),
    [
        ("MAX_LINE", 1000, HEADER + b"0" * 2000, "a line must have at most 1,000 characters"),
        ("MAX_BYTES", 1000, LABELS_TEXT + b"\n" * 1000, "at most 5,000,000 rows, 0 MiB"),
        ("MAX_ROWS", 100, LABELS_TEXT + b"\n" * 100, "a file of labels has at most 100 rows"),
        ("MAX_JSON_BYTES", 1000, json.dumps([OWN]).encode(), "0 MiB as JSON"),
        ("MAX_COLUMNS", 3, LABELS_TEXT, "a table may have 3 columns, got 4"),
    ],
)
def test_labels_in_text_are_read_in_bounded_memory(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bound: str,
    most: int,
    data: bytes,
    message: str,
) -> None:
    monkeypatch.setattr(f"moola.data.label_tables.{bound}", most)
    path.write_bytes(gzip.compress(data))
    assert message in read_as_labels(path, has_series=True)


def test_labels_that_are_one_endless_line_are_refused_without_being_held(path: Path) -> None:
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(200):
            file.write(b"0" * (1 << 20))

    tracemalloc.start()
    try:
        assert "this is no table of labels" in read_as_labels(path, has_series=True)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10 << 20
