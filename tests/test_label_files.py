"""Label files as people have them: what is read, and what is refused with a way out."""

import bz2
import gzip
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pytest

from moola import WINDOW
from moola.data.bars import read_bars
from moola.data.label_files import read_labels
from moola.data.labels import LabelSet
from moola.errors import DataError
from moola.specs import LabelConfig
from tests.feature_set import random_bars
from tests.shared import shared

TIMES = pd.date_range("2024-03-04 14:00", periods=600, freq="min", tz="UTC")
STARTS = (0, 100, 250, 495)


def minute(bar: int, form: str = "%Y-%m-%dT%H:%M:%SZ") -> str:
    return f"{TIMES[bar]:{form}}"


def windows_csv(separator: str = ",", form: str = "%Y-%m-%dT%H:%M:%SZ") -> str:
    """Four labels that point into TIMES."""
    lines = [["window_start", "label", "expansion_start", "expansion_end"]]
    for k, bar in enumerate(STARTS):
        label = ("consolidation", "retracement")[k % 2]
        lines.append([minute(bar, form), label, str(30 + k), str(36 + k)])
    return "\n".join(separator.join(line) for line in lines) + "\n"


def read(path: Path, **config: object) -> LabelSet:
    return read_labels(path, LabelConfig(source="file", **config), times=TIMES)


def written(tmp_path: Path, text: str, name: str = "my.csv") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def assert_the_four(labels: LabelSet) -> None:
    assert labels.anchor.tolist() == list(STARTS)
    assert labels.label_index.tolist() == [0, 1, 0, 1]
    assert labels.start.tolist() == [30, 31, 32, 33]
    assert labels.end.tolist() == [36, 37, 38, 39]


# --- tables ---------------------------------------------------------------------------------------

TABLES = {
    "semicolon": windows_csv(";"),
    "tab": windows_csv("\t"),
    "bar": windows_csv("|"),
    "blank": windows_csv(" "),
    "excel's separator line": "sep=;\n" + windows_csv(";"),
    "decimal comma": windows_csv(";").replace(";30;36", ";30,0;36,00"),
    "carriage returns": windows_csv().replace("\n", "\r\n"),
    "old mac": windows_csv().replace("\n", "\r"),
    "byte order mark": "\ufeff" + windows_csv(),
    "names in capitals": windows_csv().replace("window_start,label", " Window Start , LABEL"),
    "words in capitals": windows_csv().replace("consolidation", " Consolidation "),
    "rows of commas": windows_csv() + ",,,\n,,,\n\n",
    "blank rows between": windows_csv().replace("\n2024-03-04T15:40", "\n,,,\n\n2024-03-04T15:40"),
    "comments": "# mine\n" + windows_csv() + "# the end\n",
    "header in a comment": "# " + windows_csv(),
    "separator at the end": windows_csv().replace("\n", ",\n"),
    "quoted": windows_csv().replace("consolidation", '"consolidation"'),
    "columns that mean nothing here": re.sub(r"(\d|end)\n", r'\1,"a, b",\n', windows_csv()).replace(
        'end,"a, b",', "end,note,more"
    ),
    "epoch": "\n".join(
        line.replace(minute(bar), str(TIMES[bar].value // 10**9))
        for line, bar in zip(windows_csv().splitlines(), (0, *STARTS), strict=True)
    ),
    "compact": windows_csv(form="%Y%m%d %H%M%SZ"),
    "zone behind": windows_csv(form="%Y-%m-%d %H:%M UTC"),
}


@pytest.mark.parametrize("case", TABLES)
def test_a_table_of_text_is_read(tmp_path: Path, case: str) -> None:
    path = tmp_path / "my.csv"
    path.write_bytes(TABLES[case].encode())
    assert_the_four(read(path))


def as_zip(data: bytes) -> bytes:
    import io

    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("labels.csv", data)
    return stream.getvalue()


PACKED = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
    "zip": as_zip,
}


@pytest.mark.parametrize("suffix", PACKED)
def test_a_packed_file_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"my.csv.{suffix}"
    path.write_bytes(PACKED[suffix](windows_csv(";").encode()))
    assert_the_four(read(path))


def test_arrow_and_json_hold_labels_too(tmp_path: Path) -> None:
    table = pd.read_csv(written(tmp_path, windows_csv()))
    table.to_feather(tmp_path / "my.feather")
    table.to_json(tmp_path / "my.json", orient="records")
    with pa.OSFile(str(tmp_path / "my.arrows"), "wb") as file:
        batch = pa.record_batch(table)
        with pa.ipc.new_stream(file, batch.schema) as stream:
            stream.write(batch)

    for name in ("my.feather", "my.json", "my.arrows"):
        assert_the_four(read(tmp_path / name))


def xlsx(tmp_path: Path) -> Path:
    path = tmp_path / "my.xlsx"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        archive.writestr("xl/workbook.xml", "<workbook/>")
    return path


def test_files_that_are_no_table_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"labels must be a table, and this is a spreadsheet: save"):
        read(xlsx(tmp_path))

    refused = {
        "\ufeff" + windows_csv(): ("utf-16", r"labels must be .* text in UTF-16: save it as UTF-8"),
        windows_csv().replace("label", "l\u00e4bel"): ("latin-1", "text must be UTF-8: .* byte 14"),
        "DBN\x02": ("utf-8", "this is Databento's DBN, which holds bars"),
        "<html>login</html>": ("utf-8", "this is a web page"),
        "{1: 2}": ("utf-8", "JSON must be Label Studio's export or a list of objects"),
        "[1, 2]": ("utf-8", "JSON must be Label Studio's export or a list of objects"),
    }
    for text, (encoding, message) in refused.items():
        path = tmp_path / "my.file"
        path.write_bytes(text.encode(encoding))
        with pytest.raises(DataError, match=message):
            read(path)


REFUSED_TABLES = {
    "no header": (
        windows_csv().split("\n", 1)[1],
        r"begins with the names of its columns, and this one with a row: '2024-03-04T14:00:00Z, ",
    ),
    "a short row": (
        windows_csv() + "2024-03-04T15:00:00Z,retracement\n",
        r"a row must have 4 values like the header, got 2 \(row 4 of my.csv\)",
    ),
    "a long row": (
        windows_csv() + "2024-03-04T15:00:00Z,retracement,3,4,5\n",
        r"a row must have 4 values like the header, got 5 \(row 4 of my.csv\)",
    ),
    "an open quote": (
        windows_csv() + '2024-03-04T15:00:00Z,"retracement,3,4\n',
        r"quotes must be closed .* \(line \d of my.csv\)",
    ),
    "a column twice": (
        windows_csv().replace("expansion_end", "Label"),
        r"a column must occur once in any case, found label and Label \(my.csv\)",
    ),
    "no label in a row": (
        windows_csv().replace("consolidation", "", 1),
        r"label must be one of consolidation, retracement .* got None \(row 0 of my.csv\)",
    ),
    "another label": (
        windows_csv().replace("consolidation", "Breakout", 1),
        r"label must be one of consolidation, retracement .* got 'Breakout' \(row 0 of my.csv\)",
    ),
}


@pytest.mark.parametrize("case", REFUSED_TABLES)
def test_a_table_that_breaks_a_rule_is_refused(tmp_path: Path, case: str) -> None:
    text, message = REFUSED_TABLES[case]
    with pytest.raises(DataError, match=message):
        read(written(tmp_path, text))


# --- times ----------------------------------------------------------------------------------------


def test_a_naive_window_start_needs_a_zone(tmp_path: Path) -> None:
    text = windows_csv(form="%Y-%m-%d %H:%M")
    message = (
        r"window_start has no zone: write 2024-03-04T14:00Z where it is UTC, or give --timezone, "
        r"such as America/New_York, got '2024-03-04 14:00' \(row 0 of my.csv\)"
    )
    with pytest.raises(DataError, match=message):
        read(written(tmp_path, text))
    assert_the_four(read(written(tmp_path, text), timezone="UTC"))

    local = TIMES.tz_convert("America/New_York").tz_localize(None)
    table = pd.read_csv(written(tmp_path, text)).assign(window_start=local[list(STARTS)])
    table.to_parquet(tmp_path / "my.parquet")
    with pytest.raises(DataError, match="window_start has no zone"):
        read(tmp_path / "my.parquet")
    assert_the_four(read(tmp_path / "my.parquet", timezone="America/New_York"))


def test_a_zone_is_not_given_twice_nor_one_that_is_none(tmp_path: Path) -> None:
    path = written(tmp_path, windows_csv())
    with pytest.raises(DataError, match="America/New_York given, but window_start states its zone"):
        read(path, timezone="America/New_York")
    assert_the_four(read(path, timezone="UTC"))

    naive = written(tmp_path, windows_csv(form="%Y-%m-%d %H:%M"))
    with pytest.raises(DataError, match=r"must be an IANA name .* got 'Eastern'"):
        read(naive, timezone="Eastern")


@pytest.mark.parametrize(
    ("time", "config", "message"),
    [
        ("03/04/2024 14:00", {}, "day and month could be swapped: .*time_format"),
        ("4.3.24 14:00", {}, "day and month could be swapped: .*time_format"),
        ("2024-03-04", {}, "window_start must be a time such as"),
        ("35", {}, "window_start must be a time such as"),
        ("2024-03-04 14:00 EST", {}, "window_start must be a time such as"),
        ("2024-03-10 02:30", {"timezone": "America/New_York"}, "clocks that change"),
        ("2024-11-03 01:30", {"timezone": "America/New_York"}, "clocks that change"),
        ("2024-03-04", {"time_format": "%m/%d/%Y"}, "as labels.time_format says, %m/%d/%Y"),
        ("2024-03-04T14:00:30Z", {}, "whose next ones are 2024-03-04 14:00 and 14:01"),
    ],
)
def test_a_time_that_is_none_is_refused(
    tmp_path: Path, time: str, config: dict[str, str], message: str
) -> None:
    text = windows_csv().replace(minute(0), time)
    with pytest.raises(DataError, match=message) as caught:
        read(written(tmp_path, text), **config)
    assert "(row 0 of my.csv)" in str(caught.value)


@pytest.mark.parametrize(
    ("form", "zone"),
    [
        ("%m/%d/%Y %H:%M", "UTC"),
        ("%d.%m.%Y %H:%M", "UTC"),
        ("%m/%d/%Y %I:%M %p", "UTC"),
        ("%m/%d/%y %H:%M:%S", "UTC"),
    ],
)
def test_the_format_that_is_offered_reads_the_file(tmp_path: Path, form: str, zone: str) -> None:
    path = written(tmp_path, windows_csv(form=form))
    with pytest.raises(DataError) as caught:
        read(path, timezone=zone)
    offered = re.search(r"labels.time_format=([^']+)'", str(caught.value))
    assert offered is not None
    assert_the_four(read(path, time_format=offered[1], timezone=zone))


@pytest.mark.parametrize("lost", ["", "0", "00"])
def test_leading_zeros_of_a_time_of_day_may_be_lost(tmp_path: Path, lost: str) -> None:
    """Where one value is of six digits all are: 500 is 00:05:00, not 05:00."""
    lines = ["start,end,label"]
    for first, last in (("000500", "000900"), ("114000", "114500")):
        lines.append(f"20240305 {first.removeprefix(lost)},20240305 {last},retracement")
    times = pd.date_range("2024-03-04 20:00", periods=1200, freq="min", tz="UTC")
    config = LabelConfig(source="file", timezone="UTC")
    labels = read_labels(written(tmp_path, "\n".join(lines)), config, times=times)

    begins = times[labels.anchor + labels.start]
    assert [f"{time:%H:%M}" for time in begins] == ["00:05", "11:40"]


@pytest.mark.parametrize("mark", ["#", "# ", "#A", "//"])
def test_an_id_is_no_comment(tmp_path: Path, mark: str) -> None:
    head, *rows = windows_csv().strip().split("\n")
    lines = [f"window_id,{head}", *(f"{mark}{k},{row}" for k, row in enumerate(rows))]
    with pytest.raises(DataError, match=r"0,.* has all values of a row \(row 0 of my.csv\)"):
        read(written(tmp_path, "\n".join(lines)))

    commented = "\n".join([head, "# taken out", f"# {rows[0]}", *rows])
    assert_the_four(read(written(tmp_path, commented)))


def test_a_time_format_tells_day_and_month(tmp_path: Path) -> None:
    path = written(tmp_path, windows_csv(form="%d/%m/%Y %H:%M"))
    assert_the_four(read(path, time_format="%d/%m/%Y %H:%M", timezone="UTC"))


# --- start and end as times -----------------------------------------------------------------------

MOVES = ((30, 36), (120, 120), (250, 300), (0, 5), (590, 599), (270, 374))


def times_csv(form: str = "%Y-%m-%dT%H:%M:%SZ") -> str:
    lines = ["start,end,label"]
    for k, (first, last) in enumerate(MOVES):
        label = ("consolidation", "retracement")[k % 2]
        lines.append(f"{minute(first, form)},{minute(last, form)},{label}")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("state_bars", [0, 24, 104])
def test_moves_by_their_times_are_anchored_in_the_bars(tmp_path: Path, state_bars: int) -> None:
    labels = read(written(tmp_path, times_csv()), state_bars=state_bars)
    first, last = np.array(MOVES).T
    np.testing.assert_array_equal(labels.start_bar, first)
    np.testing.assert_array_equal(labels.end_bar, last)
    assert labels.label_index.tolist() == [0, 1, 0, 1, 0, 1]

    for anchor in (labels.anchor, labels.first_anchor, labels.last_anchor):
        assert (anchor >= 0).all()
        assert (anchor + WINDOW <= len(TIMES)).all()
        assert (anchor <= first).all()
        assert (last < anchor + WINDOW).all()
    assert (labels.first_anchor <= labels.anchor).all()
    assert (labels.anchor <= labels.last_anchor).all()
    assert labels.last_anchor[0] == max(30 - state_bars, 0)  # with its state, where there is room
    assert labels.last_anchor[5] == 270  # a move as long as a window has room for no state


def test_where_a_move_lies_in_its_window_cannot_be_guessed(tmp_path: Path) -> None:
    times = pd.date_range("2024-03-04", periods=60_000, freq="min", tz="UTC")
    rows = np.arange(200, 59_000, 150)
    columns = {"start": times[rows], "end": times[rows + 5], "label": "retracement"}
    pd.DataFrame(columns).to_parquet(tmp_path / "my.parquet")
    config = LabelConfig(source="file")
    labels = read_labels(tmp_path / "my.parquet", config, times=times)
    assert labels.start.min() >= config.state_bars
    assert np.unique(labels.start, return_counts=True)[1].max() < 0.05 * len(labels)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((minute(50), minute(49)), r"start must be <= end, got .* \(row 6 of my.csv\)"),
        ((minute(50), minute(155)), r"fit into a window of 105 bars, got '106 bars' \(row 6 of"),
        (
            (minute(50), minute(53).replace("00Z", "20Z")),
            r"end must be a minute of the bars .* whose next ones are 2024-03-04 14:53 and 14:54",
        ),
        ((minute(50), ""), r"end must be a minute of the bars .* got 'None' \(row 6 of my.csv\)"),
        (("35", "41"), r"start must be a time such as .* got '35' \(row 6 of my.csv\)"),
        (("2024-03-04 14:50", minute(53)), r"start has no zone: .* \(row 6 of my.csv\)"),
        ((minute(30), minute(36)), r"a move must have one label, got 'retracement' and in row 0"),
    ],
)
def test_a_move_that_breaks_a_rule_is_refused(
    tmp_path: Path, row: tuple[str, str], message: str
) -> None:
    path = written(tmp_path, times_csv() + f"{row[0]},{row[1]},retracement\n")
    with pytest.raises(DataError, match=message):
        read(path)


def test_times_that_are_not_there_are_missed_by_name(tmp_path: Path) -> None:
    path = written(tmp_path, times_csv().replace("end,", "stop,"))
    with pytest.raises(DataError, match=r"missing column end: found start, stop, label \(my.csv\)"):
        read(path)


# --- Label Studio ---------------------------------------------------------------------------------


def region(first: int, last: int, *labels: str) -> dict[str, object]:
    return {
        "start": minute(first),
        "end": minute(last),
        "instant": first == last,
        "timeserieslabels": list(labels),
    }


REGIONS = [region(30, 36, "Consolidation"), region(120, 126, "retracement")]


def task(*regions: dict[str, object], **more: object) -> dict[str, object]:
    results = [{"type": "timeserieslabels", "value": value} for value in regions]
    results.append({"type": "choices", "value": {"choices": ["good"]}})
    return {"id": 1, "annotations": [{"id": 1, "result": results, **more}]}


def studio_csv(*regions: dict[str, object], separator: str = ",") -> str:
    cells = ["1", "me@example.com", "/data/bars.csv", "1", json.dumps(list(regions))]
    quoted = ['"' + cell.replace('"', '""') + '"' for cell in cells]
    header = ["annotation_id", "annotator", "csv", "id", "moves"]
    return separator.join(header) + "\n" + separator.join(quoted) + "\n"


STUDIO = {
    "json": json.dumps([task(*REGIONS)]),
    "two annotators": json.dumps([task(*REGIONS), task(*REGIONS)]),
    "one task": json.dumps(task(*REGIONS)),
    "two tasks": json.dumps([task(REGIONS[0]), task(REGIONS[1]), task()]),
    "a cancelled annotation": json.dumps(
        [task(*REGIONS), task(region(30, 36, "retracement"), was_cancelled=True)]
    ),
    "json-min": json.dumps([{"id": 1, "csv": "bars.csv", "label": REGIONS}]),
    "csv": studio_csv(*REGIONS),
    "tsv": studio_csv(*REGIONS, separator="\t"),
}


@pytest.mark.parametrize("case", STUDIO)
def test_label_studios_exports_are_read(tmp_path: Path, case: str) -> None:
    labels = read(written(tmp_path, STUDIO[case], "export"))
    assert labels.start_bar.tolist() == [30, 120]
    assert labels.end_bar.tolist() == [36, 126]
    assert labels.label_index.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps([task(region(3, 9))]), r"must have a label, got none \(row 0 of export\)"),
        (
            json.dumps([task(*REGIONS, region(3, 9, "a", "b"))]),
            r"must have one label, got a, b \(row 2 of export\)",
        ),
        (json.dumps([task()]), "must hold regions of TimeSeriesLabels, got none"),
        (studio_csv(region(3, 9, "a")), r"label must be one of .* got 'a' \(row 0 of export\)"),
        (
            json.dumps([{"annotations": [], "label": 1}, {"annotations": []}]),
            "must hold regions of TimeSeriesLabels, got none",
        ),
        (
            json.dumps([task(region(30, 36, "retracement") | {"start": 30, "end": 36})]),
            r"start must be a time such as .* got 30 \(row 0 of export\)",
        ),
    ],
)
def test_a_label_studio_export_that_breaks_a_rule_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read(written(tmp_path, text, "export"))


# --- several moves, and none ----------------------------------------------------------------------


def own_windows(n: int = 6, offset: float = 0.0) -> np.ndarray:
    bars = random_bars(n * WINDOW)[["open", "high", "low", "close"]]
    return bars.to_numpy().reshape(n, WINDOW, 4) + offset


def own_table(bars: np.ndarray, **columns: object) -> pd.DataFrame:
    n = len(bars)
    table = {
        "window_id": [f"w{k}" for k in range(n)],
        "label": [("consolidation", "retracement")[k % 2] for k in range(n)],
        "expansion_start": np.arange(n) + 30,
        "expansion_end": np.arange(n) + 37,
        "features": [window.tolist() for window in bars],
    }
    return pd.DataFrame(table | columns)


def test_a_window_may_hold_several_moves_of_any_type(tmp_path: Path) -> None:
    more = f"{minute(0)},retracement,50,60\n{minute(0)},consolidation,70,80\n"
    labels = read(written(tmp_path, windows_csv() + more))
    assert labels.anchor.tolist() == [*STARTS, 0, 0]
    assert labels.label_index.tolist() == [0, 1, 0, 1, 1, 0]

    bars = own_windows()[[0, 1, 2, 0]]
    own_table(bars, window_id=["w0", "w1", "w2", "w0"]).to_parquet(tmp_path / "my.parquet")
    own = read(tmp_path / "my.parquet")
    assert own.label_index.tolist() == [0, 1, 0, 1]
    assert own.window_id.tolist() == ["w0", "w1", "w2", "w0"]


def test_none_says_that_nobody_sees_a_move(tmp_path: Path) -> None:
    """It is counted, kept apart, and no label of a class."""
    more = f"{minute(300)},None ,,\n{minute(400)},none,5,9\n"
    labels = read(written(tmp_path, windows_csv() + more))
    assert_the_four(labels)
    assert labels.left_out == {"none: nobody sees a move": 2}
    assert labels.no_moves.first_bar.tolist() == [300, 400]
    assert labels.no_moves.last_bar.tolist() == [404, 504]

    more = f"{minute(40)},{minute(110)},none\n"
    by_times = read(written(tmp_path, times_csv() + more))
    assert (len(by_times), len(by_times.no_moves)) == (len(MOVES), 1)
    assert by_times.no_moves.first_bar.tolist() == [40]
    assert by_times.no_moves.last_bar.tolist() == [110]

    bars = own_windows()
    table = own_table(bars).astype({"label": object})
    table.loc[[1, 4], "label"] = "NONE"
    table.to_parquet(tmp_path / "my.parquet")
    own = read(tmp_path / "my.parquet")
    assert own.window_id.tolist() == ["w0", "w2", "w3", "w5"]
    np.testing.assert_array_equal(own.no_moves.bars, bars[[1, 4]])
    assert read(written(tmp_path, windows_csv())).no_moves is None


def test_none_may_be_a_class_of_its_own(tmp_path: Path) -> None:
    text = windows_csv().replace("retracement", "none")
    labels = read(written(tmp_path, text), classes=("consolidation", "none"))
    assert labels.label_index.tolist() == [0, 1, 0, 1]
    assert labels.no_moves is None


def test_there_is_no_move_where_nobody_sees_one(tmp_path: Path) -> None:
    message = r"none in row 4, and consolidation inside it \(2024-03-04T14:00:00Z, my.csv\)"
    with pytest.raises(DataError, match=message):
        read(written(tmp_path, windows_csv() + f"{minute(20)},none,,\n"))

    table = own_table(own_windows()[[0, 1, 0]], label=["consolidation", "retracement", "none"])
    table["window_id"] = ["w0", "w1", "w0"]
    table.to_parquet(tmp_path / "my.parquet")
    with pytest.raises(DataError, match="none in row 2, and consolidation inside it"):
        read(tmp_path / "my.parquet")


def test_a_file_of_none_alone_is_refused(tmp_path: Path) -> None:
    text = "start,end,label\n" + f"{minute(3)},{minute(9)},none\n"
    with pytest.raises(DataError, match=r"at least one label, got none, besides 1 of label none"):
        read(written(tmp_path, text))


@pytest.mark.parametrize("offset", [-15_000.0, -18_500.0, -1e6])
def test_windows_may_have_prices_of_any_sign(tmp_path: Path, offset: float) -> None:
    own_table(own_windows()).to_parquet(tmp_path / "above.parquet")
    own_table(own_windows(offset=offset)).to_parquet(tmp_path / "below.parquet")
    above = read(tmp_path / "above.parquet")
    below = read(tmp_path / "below.parquet")
    assert (below.bars < 0).any()
    np.testing.assert_array_equal(above.features, below.features)


# --- the cases beside the checkout ----------------------------------------------------------------

CASES = {
    "labels-capitals-and-blanks": 10,
    "labels-blank-rows": 10,
    "labels-semicolon": 10,
    "labels-start-and-end-as-times": 10,
    "labels-label-studio": 10,
    "labels-own-bars-negative": 10,
    "labels-silent-naive-local-time": "window_start has no zone: write 2024-03-0",
}


def test_every_shared_case_of_labels_is_here() -> None:
    folder = shared("cases/inputs")
    assert {path.name for path in folder.glob("labels-*")} == set(CASES)


@pytest.mark.parametrize("case", CASES)
def test_a_shared_case_ends_as_is_wanted(case: str) -> None:
    folder = shared(f"cases/inputs/{case}")
    truth = read_bars(folder.parent / "truth.csv").frame
    expected = CASES[case]
    files = [path for path in folder.iterdir() if path.stem == "labels"]
    assert files

    for path in files:
        if isinstance(expected, str):
            with pytest.raises(DataError, match=expected):
                read_labels(path, LabelConfig(source="file"), times=truth.index)
            continue

        labels = read_labels(path, LabelConfig(source="file"), times=truth.index)
        assert len(labels) == expected
        assert labels.left_out == {}
        assert set(labels.label_index.tolist()) == {0, 1}


@pytest.mark.parametrize("case", ["blank-rows", "capitals-and-blanks", "semicolon"])
def test_a_shared_case_is_read_as_the_good_file(case: str) -> None:
    folder = shared("cases/inputs")
    times = read_bars(folder / "truth.csv").frame.index
    config = LabelConfig(source="file")
    good = read_labels(folder / "labels_ok.csv", config, times=times)
    labels = read_labels(folder / f"labels-{case}" / "labels.csv", config, times=times)

    for column in ("anchor", "start", "end", "label_index", "first_anchor", "last_anchor"):
        np.testing.assert_array_equal(getattr(labels, column), getattr(good, column))
