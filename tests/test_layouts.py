"""Files as people have them: every layout reads back equal; what is not read says what to do."""

import bz2
import gzip
import io
import json
import pickle
import re
import subprocess
import sys
import tarfile
import zipfile
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moola.data.containers import open_container
from moola.data.layouts import PRESETS
from moola.data.loading import LoadedBars, find_files, load_bars
from moola.data.series_checks import check_series
from moola.data.tables import count_rows, to_numbers
from moola.data.time_values import epoch_unit
from moola.errors import DataError
from moola.specs import LayoutConfig, LayoutName
from tests.shared import find_shared, shared
from tests.vendor_files import (
    CHICAGO,
    NEW_YORK,
    VENDORS,
    Vendor,
    columns,
    joined,
    local,
    market,
    truth,
    write_lines,
)

CASES = find_shared("cases/inputs")
several = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def bars() -> pd.DataFrame:
    return market()


def few(n_bars: int = 300) -> pd.DataFrame:
    """Some bars that begin on a day on which day and month could be swapped."""
    frame = market().iloc[:n_bars].copy()
    times = pd.date_range("2024-03-04 21:00", periods=n_bars, freq="min", tz="UTC")
    return frame.set_axis(times.rename("timestamp"))


def load(path: Path | str, timezone: str | None = None, **fields: Any) -> LoadedBars:
    return load_bars(path, LayoutConfig(**fields), timezone)


def refusal(path: Path | str, timezone: str | None = None, **fields: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(path, timezone, **fields)
    return str(caught.value)


def assert_same(loaded: LoadedBars, frame: pd.DataFrame, *, volume: bool = True) -> None:
    times, values = truth(frame)
    np.testing.assert_array_equal(loaded.times, times)
    np.testing.assert_array_equal(loaded.values[:4], values[:4])
    if volume:
        np.testing.assert_array_equal(loaded.values[4], values[4])


def plain_csv(frame: pd.DataFrame, path: Path) -> Path:
    times = local(frame, "UTC", "%Y-%m-%dT%H:%M:%SZ")
    header = "timestamp,open,high,low,close,volume"
    return write_lines(path, header, joined([times, *columns(frame)]))


# --- presets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("vendor", VENDORS, ids=lambda vendor: vendor.layout)
def test_every_vendors_file_reads_back_equal(
    vendor: Vendor, bars: pd.DataFrame, tmp_path: Path
) -> None:
    path = vendor.write(bars, tmp_path)
    loaded = load(path, vendor.timezone, **vendor.fields)

    assert_same(loaded, bars, volume=vendor.has_volume)
    assert loaded.report.files[0].decisions.layout == vendor.layout
    series = check_series(loaded)
    assert len(series.times) == len(bars)
    assert not series.is_roll.any()
    assert not series.report.stamped_at_close


def test_every_preset_has_a_test_file_and_names_its_documentation() -> None:
    named = {vendor.layout for vendor in VENDORS}

    assert named | {"auto"} == set(PRESETS) == set(get_args(LayoutName))
    assert all(preset.documentation for preset in PRESETS.values())


@pytest.mark.parametrize("vendor", VENDORS, ids=lambda vendor: vendor.layout)
def test_the_report_of_every_vendors_file_is_json(vendor: Vendor, tmp_path: Path) -> None:
    path = vendor.write(few(), tmp_path)
    report = load(path, vendor.timezone, **vendor.fields).report

    document = json.loads(json.dumps(report.as_dict()))
    assert document["layout"] == vendor.layout
    assert document["files"] == [{"name": path.name, "n_rows": 300, "sha256": None}]


def test_a_preset_is_seen_to_matter(bars: pd.DataFrame, tmp_path: Path) -> None:
    vendor = next(vendor for vendor in VENDORS if vendor.layout == "ninjatrader")
    path = vendor.write(bars, tmp_path)

    late = load(path, name="ninjatrader", stamp="open")
    assert (late.times - truth(bars)[0] == 60_000_000_000).all()
    eastern = load(path, name="histdata")
    assert not np.array_equal(eastern.times, truth(bars)[0])


OTHER_FORMS: dict[str, tuple[str | None, str, dict[str, Any], str | None]] = {
    # header, the first columns' format, layout, timezone
    "histdata in MetaTrader's form": (None, "%Y.%m.%d,%H:%M", {"name": "histdata"}, "Etc/GMT+5"),
    "histdata in MetaStock's form": (None, "EURUSD,%Y%m%d%H%M", {"name": "histdata"}, "Etc/GMT+5"),
    "MetaTrader 4": (None, "%Y.%m.%d,%H:%M", {"name": "metatrader"}, "UTC"),
    "Finam": (
        "<TICKER>,<PER>,<DATE>,<TIME>,<OPEN>,<HIGH>,<LOW>,<CLOSE>,<VOL>",
        "NQ,1,%Y%m%d,%H%M%S",
        {},
        "Europe/Moscow",
    ),
    "TradeStation's ASCII": (
        '"Date","Time",O,H,L,"Close","Volume"',
        "%m/%d/%Y,%H%M",
        {"name": "tradestation", "stamp": "open"},
        CHICAGO,
    ),
    "MultiCharts": (
        "<Date>, <Time>, <Open>, <High>, <Low>, <Close>, <Volume>",
        "%Y%m%d,%H:%M:%S",
        {},
        CHICAGO,
    ),
    "TSLab": (None, "%m/%d/%Y,%H:%M", {"time_format": "%m/%d/%Y"}, "UTC"),
    "PiTrading": (
        '"Date","Time","Open","High","Low","Close","Volume"',
        "%m/%d/%Y,%H%M",
        {"time_format": "%m/%d/%Y"},
        NEW_YORK,
    ),
    "CryptoDataDownload": (
        "unix,date,open,high,low,close,Volume",
        "{epoch},%Y-%m-%d %H:%M:%S",
        {},
        None,
    ),
    "ccxt": ("timestamp,open,high,low,close,volume", "{epoch}000", {}, None),
    "Alpha Vantage": (
        "timestamp,1. open,2. high,3. low,4. close,5. volume",
        "%Y-%m-%d %H:%M:%S",
        {},
        NEW_YORK,
    ),
    "short names": ("t,o,h,l,c,v", "{epoch}", {}, None),
    "UTC in the name": ("Time (UTC),Open,High,Low,Close,Volume", "%Y-%m-%d %H:%M", {}, None),
    "named months": ("Date,Time,Open,High,Low,Close,Volume", "%d-%b-%Y,%I:%M %p", {}, NEW_YORK),
    "Polygon's REST": ("t,o,h,l,c,v", "{epoch}000", {"name": "polygon"}, None),
    "old TWS": ("date,open,high,low,close,volume", "%Y%m%d  %H:%M:%S", {"name": "ib"}, NEW_YORK),
    "JForex": ("Etc/UTC,Open,High,Low,Close,Volume", "%Y.%m.%d %H:%M:%S", {}, None),
    "pandas": (",open,high,low,close,volume", "%Y-%m-%d %H:%M:%S+00:00", {}, None),
    "IB with a zone that begins like AM": (
        "date,open,high,low,close,volume",
        "%Y%m%d %H:%M:%S America/New_York",
        {},
        NEW_YORK,
    ),
    "Java's ZonedDateTime": (
        "time,open,high,low,close,volume",
        "%Y-%m-%dT%H:%M:%SZ[Etc/UTC]",
        {},
        None,
    ),
    "OANDA": ("time,mid.o,mid.h,mid.l,mid.c,volume", "%Y-%m-%dT%H:%M:%S.000000000Z", {}, None),
    "German": (
        "Datum,Uhrzeit,Eröffnung,Hoch,Tief,Schluss,Volumen",
        "%d.%m.%Y,%H:%M",
        {"time_format": "%d.%m.%Y"},
        "Europe/Berlin",
    ),
    "French": (
        "Date,Heure,Ouverture,Plus haut,Plus bas,Clôture,Volume",
        "%d/%m/%Y,%H:%M",
        {"time_format": "%d/%m/%Y"},
        "Europe/Paris",
    ),
    "Spanish": (
        "Fecha y hora,Apertura,Máximo,Mínimo,Último,Volumen",
        "%Y-%m-%d %H:%M",
        {},
        "Europe/Madrid",
    ),
    "Italian": (
        "Data,Ora,Apertura,Massimo,Minimo,Chiusura,Volume",
        "%d/%m/%Y,%H:%M",
        {"time_format": "%d/%m/%Y"},
        "Europe/Rome",
    ),
    "Portuguese": (
        "Data,Hora,Abertura,Máxima,Mínima,Fechamento,Volume",
        "%Y-%m-%d,%H:%M",
        {},
        "America/Sao_Paulo",
    ),
    "Polish": (
        "Data,Czas,Otwarcie,Najwyższy,Najniższy,Zamknięcie,Wolumen",
        "%Y-%m-%d,%H:%M:%S",
        {},
        "Europe/Warsaw",
    ),
    "Russian, which is not known": (
        "Дата,Время,Открытие,Макс,Мин,Закрытие,Объём",
        "%d.%m.%Y,%H:%M",
        {
            "time": "дата+время",
            "time_format": "%d.%m.%Y",
            "open": "3",
            "high": "макс",
            "low": "Мин",
            "close": "Закрытие",
            "volume": "Объем",  # е for ё, as Russians write it
        },
        "Europe/Moscow",
    ),
    "stated columns": (
        "when,eins,zwei,drei,vier,fuenf",
        "%Y-%m-%d %H:%M",
        {
            "time": "when",
            "open": "eins",
            "high": "ZWEI",
            "low": "drei",
            "close": "vier",
            "volume": "fuenf",
        },
        "UTC",
    ),
}


@pytest.mark.parametrize("form", OTHER_FORMS)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_other_vendors_forms_read_back_equal(form: str, newline: str, tmp_path: Path) -> None:
    header, pattern, fields, timezone = OTHER_FORMS[form]
    frame = few()
    zone = timezone or "UTC"
    times = [
        text.replace("{epoch}", str(int(time.timestamp())))
        for text, time in zip(local(frame, zone, pattern), frame.index, strict=True)
    ]
    rows = joined([times, *columns(frame)])
    path = tmp_path / "bars.csv"
    path.write_bytes(newline.join([*([header] if header else []), *rows, ""]).encode())

    states_zone = fields.get("name") == "histdata" or "America" in pattern
    given_zone = None if states_zone else timezone
    assert_same(load(path, given_zone, **fields), frame)


# --- containers -----------------------------------------------------------------------------------


def packed(text: bytes, kind: str, folder: Path) -> Path:
    path = folder / f"bars.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("bars.csv", text)
            archive.writestr("__MACOSX/._bars.csv", b"\0")
        return path

    data = {
        "csv": lambda: text,
        "gz": lambda: gzip.compress(text),
        "bz2": lambda: bz2.compress(text),
        "zst": lambda: pa.compress(text, codec="zstd", asbytes=True),
        "two members.gz": lambda: gzip.compress(text[:5000]) + gzip.compress(text[5000:]),
        "utf-8 with a mark": lambda: b"\xef\xbb\xbf" + text,
    }[kind]()
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "kind", ["csv", "gz", "bz2", "zst", "zip", "two members.gz", "utf-8 with a mark"]
)
def test_a_container_is_known_by_its_bytes_and_not_by_its_name(kind: str, tmp_path: Path) -> None:
    text = plain_csv(few(), tmp_path / "plain").read_bytes()
    path = packed(text, kind, tmp_path).rename(tmp_path / "download.dat")

    assert_same(load(path), few())


@pytest.mark.parametrize("kind", ["parquet", "feather", "arrow file", "arrow stream"])
def test_columnar_files_are_read(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "bars.bin"
    table = pa.Table.from_pandas(few())

    match kind:
        case "parquet":
            pq.write_table(table, path)
        case "feather":
            pyarrow.feather.write_feather(table, path)
        case "arrow file":
            with pa.ipc.new_file(path, table.schema) as writer:
                writer.write_table(table, max_chunksize=70)
        case _:
            with pa.ipc.new_stream(path, table.schema) as writer:
                writer.write_table(table, max_chunksize=70)
    assert_same(load(path), few())


@pytest.mark.filterwarnings("ignore:Exception ignored")  # the package leaves its file open
@pytest.mark.filterwarnings("ignore:unclosed file")
def test_databentos_own_format_is_read(tmp_path: Path) -> None:
    pytest.importorskip("databento", reason="the extra `databento` is not installed")
    import databento_dbn as dbn

    frame = few()
    start = int(frame.index[0].timestamp()) * 10**9
    metadata = dbn.Metadata(
        dataset="GLBX.MDP3",
        start=start,
        stype_in=dbn.SType.RAW_SYMBOL,
        stype_out=dbn.SType.INSTRUMENT_ID,
        schema=dbn.Schema.OHLCV_1M,
        symbols=["NQH4"],
        partial=[],
        not_found=[],
        mappings=[],
    )
    records = [
        dbn.OHLCVMsg(
            rtype=33,
            publisher_id=1,
            instrument_id=3522,
            ts_event=int(time.timestamp()) * 10**9,
            open=round(bar.open * 1e9),
            high=round(bar.high * 1e9),
            low=round(bar.low * 1e9),
            close=round(bar.close * 1e9),
            volume=int(bar.volume),
        )
        for time, bar in zip(frame.index, frame.itertuples(), strict=True)
    ]
    path = tmp_path / "bars.dbn"
    path.write_bytes(metadata.encode() + b"".join(bytes(record) for record in records))

    loaded = load(path)
    assert_same(loaded, frame)
    assert loaded.report.files[0].decisions.container == "dbn"


def test_dbn_without_its_package_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "databento", None)
    path = tmp_path / "bars.dbn"
    path.write_bytes(b"DBN\x03" + bytes(100))

    assert "pip install 'moola[databento]'" in refusal(path)


def tar(text: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo("bars.csv")
        member.size = len(text)
        archive.addfile(member, io.BytesIO(text))
    return buffer.getvalue()


def archive_of(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, "a,b\n")
    return buffer.getvalue()


REFUSED: dict[str, tuple[bytes, str]] = {
    "xlsx": (archive_of("[Content_Types].xml", "xl/workbook.xml"), "spreadsheet: save it as CSV"),
    "ods": (archive_of("content.xml", "mimetype"), "save it as CSV"),
    "xls": (b"\xd0\xcf\x11\xe0" + bytes(100), "spreadsheet .*save it as CSV"),
    "zip of three": (archive_of("a.csv", "b.csv", "c.csv"), r"holds 3 \(a.csv, b.csv, c.csv\)"),
    "utf-32": ("timestamp,open,high,low,close\n".encode("utf-32"), "UTF-32: save it as UTF-8"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "empty zip": (archive_of(), "this one is empty"),
    "utf-16": ("timestamp,open,high,low,close\n".encode("utf-16"), "UTF-16: save it as UTF-8"),
    "utf-16 without a mark": (("timestamp,open\n" * 9).encode("utf-16-le"), "UTF-16"),
    "xz": (b"\xfd7zXZ\x00" + bytes(50), "xz -d FILE"),
    "lz4": (b"\x04\x22\x4d\x18" + bytes(50), "lz4 -d FILE"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(50), "7z archive"),
    "rar": (b"Rar!" + bytes(50), "rar archive"),
    "tar": (tar(b"a,b\n"), "tar archive"),
    "tar.gz": (gzip.compress(tar(b"a,b\n")), "tar archive"),
    "packed twice": (gzip.compress(gzip.compress(b"a")), "packed twice"),
    "parquet in gz": (gzip.compress(b"PAR1" + bytes(50)), "parquet file is not packed again"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(50), "HDF5"),
    "pickle": (pickle.dumps({"a": 1}), "pickle"),
    "npy": (b"\x93NUMPY" + bytes(50), "NumPy array"),
    "sqlite": (b"SQLite format 3\0" + bytes(50), "SQLite"),
    "feather 1": (b"FEA1" + bytes(50), "Feather file of version 1"),
    "sierra's own": (b"SCID" + bytes(50), ".scid"),
    "json": (b'[{"t": 1}]', "JSON"),
    "html": (b"<!DOCTYPE html><html>login</html>", "web page"),
    "pdf": (b"%PDF-1.7", "a PDF"),
    "encrypted parquet": (b"PARE" + bytes(50), "encrypted parquet"),
    "zeros": (bytes(5000), "binary file"),
    "nothing": (b"", "empty"),
    "cut gz": (
        gzip.compress(b"timestamp,open,high,low,close\n" * 90)[:-20],
        "whole|end-of-stream|runcated",
    ),
    "cut zip": (archive_of("a.csv")[:60], "whole"),
    "cut parquet": (b"PAR1" + bytes(50), "parquet"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_kinds_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    data, pattern = REFUSED[kind]
    path = tmp_path / "bars.csv"
    path.write_bytes(data)

    with pytest.raises(DataError, match=pattern) as caught:
        load(path)
    assert "bars.csv" in str(caught.value)


def test_the_note_beside_histdatas_csv_is_no_second_file(tmp_path: Path) -> None:
    text = plain_csv(few(), tmp_path / "plain").read_bytes()
    path = tmp_path / "HISTDATA_COM_ASCII_NSXUSD_M12024.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("DAT_ASCII_NSXUSD_M1_2024.csv", text)
        archive.writestr("DAT_ASCII_NSXUSD_M1_2024.txt", "Gap of 65s found ...")

    assert_same(load(path), few())


def test_notes_beside_the_bars_in_a_zip_are_no_second_file(tmp_path: Path) -> None:
    text = plain_csv(few(), tmp_path / "bars.csv").read_text()
    path = tmp_path / "bars.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("2024/bars.csv", text)
        archive.writestr("2024/README.txt", "see you")
        archive.writestr("2024/license.pdf", "%PDF")

    assert_same(load(path), few())


def test_a_file_of_zeros_is_refused_without_being_held(tmp_path: Path) -> None:
    path = tmp_path / "bars.csv.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(200):
            file.write(b"0" * (1 << 20))

    before = pa.total_allocated_bytes()
    assert "this is no table" in refusal(path)
    assert pa.total_allocated_bytes() - before < 10 << 20


def test_more_rows_than_a_century_of_minutes_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moola.data.tables.MAX_ROWS", 200)
    path = plain_csv(few(), tmp_path / "bars.csv")

    with pytest.raises(DataError, match="at most 200 rows"):
        count_rows(open_container(path))


def test_a_table_with_too_many_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bars.csv"
    path.write_text("\n".join([",".join(f"c{i}" for i in range(1500))] * 3))

    assert "may have 1000 columns, got 1500" in refusal(path)


# --- folders and patterns -------------------------------------------------------------------------


def test_a_folder_is_joined_in_order_of_time(tmp_path: Path) -> None:
    frame = few()
    (tmp_path / "day=2").mkdir()
    plain_csv(frame.iloc[200:], tmp_path / "a.csv")
    frame.iloc[:120].to_parquet(tmp_path / "z.parquet")
    plain_csv(frame.iloc[120:200].iloc[::-1], tmp_path / "day=2" / "part-0.csv")
    (tmp_path / "_SUCCESS").write_text("")
    (tmp_path / "manifest.json").write_text("{}")

    loaded = load(tmp_path)
    assert_same(loaded, frame)
    document = json.loads(json.dumps(loaded.report.as_dict()))
    assert [file["name"] for file in document["files"]] == ["z.parquet", "part-0.csv", "a.csv"]
    assert all(len(file["sha256"]) == 64 for file in document["files"])


def test_overlaps_of_joined_files_count_once(tmp_path: Path) -> None:
    frame = few()
    plain_csv(frame.iloc[:180], tmp_path / "1.csv")
    plain_csv(frame.iloc[150:], tmp_path / "2.csv")

    series = check_series(load(tmp_path))
    np.testing.assert_array_equal(series.times, truth(frame)[0])
    assert series.report.n_repeats == 30


def test_files_that_interleave_are_sorted(tmp_path: Path) -> None:
    plain_csv(few().iloc[::2], tmp_path / "even.csv")
    plain_csv(few().iloc[1::2], tmp_path / "odd.csv")

    assert_same(load(tmp_path), few())


def test_a_pattern_names_files(tmp_path: Path) -> None:
    plain_csv(few().iloc[:150], tmp_path / "1.csv")
    plain_csv(few().iloc[150:], tmp_path / "2.csv")
    (tmp_path / "3.txt").write_text("no bars")
    (tmp_path / "README.csv").write_text("no bars either")

    assert_same(load(f"{tmp_path}/*.csv"), few())
    assert [path.name for path in find_files(f"{tmp_path}/[12].csv")] == ["1.csv", "2.csv"]


@pytest.mark.parametrize("where", ["none.csv", "*.csv", "."])
def test_no_files_are_refused_by_the_path(where: str, tmp_path: Path) -> None:
    assert str(tmp_path) in refusal(str(tmp_path / where))


def test_a_bad_file_in_a_folder_is_named(tmp_path: Path) -> None:
    plain_csv(few(), tmp_path / "good.csv")
    (tmp_path / "notes.txt").write_text("see you\n")

    assert "notes.txt" in refusal(tmp_path)


def test_text_that_is_padded_with_blanks_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "bars.txt"
    frame = few().reset_index()
    frame["timestamp"] = frame["timestamp"].dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    path.write_text(frame.to_string(index=False))
    message = refusal(path)
    assert "padded with blanks" in message

    way_out = message.partition("squeeze them: ")[2].rpartition(" (")[0]
    subprocess.run(["bash", "-c", way_out], cwd=tmp_path, check=True)
    assert_same(load(tmp_path / "squeezed.csv"), few())


@pytest.mark.parametrize("mark", ["^", "~"])
def test_a_rare_separator_is_named_by_the_command(mark: str, tmp_path: Path) -> None:
    path = plain_csv(few(), tmp_path / "bars.csv")
    path.write_text(path.read_text().replace(",", mark))

    assert f"layout.separator={mark}" in refusal(path)
    assert_same(load(path, separator=mark), few())


# --- tables ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("separator", "decimal"), [(";", ","), ("\t", ","), ("|", "."), (";", ".")]
)
def test_separators_and_decimal_commas_are_found(
    separator: str, decimal: str, tmp_path: Path
) -> None:
    times = local(few(), "UTC", "%Y-%m-%dT%H:%M:%SZ")
    numbers = [[value.replace(".", decimal) for value in column] for column in columns(few())]
    header = separator.join(["timestamp", "open", "high", "low", "close", "volume"])
    path = write_lines(tmp_path / "bars.csv", header, joined([times, *numbers], separator))

    loaded = load(path)
    assert_same(loaded, few())
    assert loaded.report.files[0].decisions.decimal == decimal


@pytest.mark.parametrize(
    "lines",
    [
        ["# made by somebody", "# in 2024"],
        ["https://www.CryptoDataDownload.com"],
        ["sep=,"],
        ["", "  "],
        ["NASDAQ 100 E-mini, 1 minute"],
    ],
)
def test_lines_before_the_table_are_no_rows(lines: list[str], tmp_path: Path) -> None:
    path = plain_csv(few(), tmp_path / "bars.csv")
    path.write_text("\n".join(lines) + "\n" + path.read_text())

    assert_same(load(path), few())


def test_comments_and_footers_are_no_rows(tmp_path: Path) -> None:
    path = plain_csv(few(), tmp_path / "bars.csv")
    lines = path.read_text().splitlines()
    lines.insert(100, "# a new file begins")
    path.write_text("\n".join([*lines, "", "Total: 300 rows", ""]))

    assert_same(load(path), few())


def test_a_header_between_the_rows_is_no_row(tmp_path: Path) -> None:
    path = plain_csv(few().iloc[:150], tmp_path / "bars.csv")
    more = plain_csv(few().iloc[150:], tmp_path / "more.csv")
    path.write_text(path.read_text() + more.read_text())

    assert_same(load(path), few())


def test_a_short_row_amid_the_rows_is_refused_with_its_place(tmp_path: Path) -> None:
    path = plain_csv(few(), tmp_path / "bars.csv")
    lines = path.read_text().splitlines()
    lines[51] = "2024-03-04T21:50:00Z,1,2"
    path.write_text("\n".join(lines))

    assert "row 50, bars.csv" in refusal(path)


def test_blank_rows_are_pauses(tmp_path: Path) -> None:
    path = plain_csv(few(), tmp_path / "bars.csv")
    path.write_text(path.read_text() + ",,,,,\n,,,,,\n")

    series = check_series(load(path))
    assert series.report.n_pauses == 2
    np.testing.assert_array_equal(series.times, truth(few())[0])


def test_row_names_without_a_heading_are_read_over(tmp_path: Path) -> None:
    times = local(few(), "UTC", "%Y-%m-%dT%H:%M:%SZ")
    rows = joined([[f'"{row}"' for row in range(300)], times, *columns(few())])
    path = write_lines(tmp_path / "r.csv", '"timestamp","open","high","low","close","volume"', rows)

    assert_same(load(path), few())


def test_a_trailing_separator_is_no_column(tmp_path: Path) -> None:
    path = plain_csv(few(), tmp_path / "bars.csv")
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header, *(row + "," for row in rows)]))

    assert_same(load(path), few())


def test_thousands_that_begin_late_are_read(tmp_path: Path) -> None:
    frame = few()
    frame.iloc[290, 4] = 1_234.0
    path = plain_csv(frame, tmp_path / "bars.csv")
    path.write_text(path.read_text().replace(",1234\n", ',"1,234"\n'))

    assert_same(load(path), frame)


@pytest.mark.parametrize(("separator", "likely"), [(",", "."), (";", ","), ("\t", ",")])
def test_a_comma_that_could_be_either_is_asked_about(
    separator: str, likely: str, tmp_path: Path
) -> None:
    times = local(few(), "UTC", "%Y-%m-%dT%H:%M:%SZ")
    rows = joined([times, *[['"1,085"'] * 300] * 4], separator)
    header = separator.join(("timestamp", "open", "high", "low", "close"))
    path = write_lines(tmp_path / "bars.csv", header, rows)

    assert refusal(path).endswith(f"--set layout.decimal={likely}")
    assert load(path, decimal=".").values[0, 0] == 1085
    assert load(path, decimal=",").values[0, 0] == 1.085


def test_a_price_that_is_none_is_refused_with_row_and_column(tmp_path: Path) -> None:
    path = plain_csv(few(), tmp_path / "bars.csv")
    lines = path.read_text().splitlines()
    lines[8] = lines[8].rsplit(",", 2)[0] + ",n.a.?,5"
    path.write_text("\n".join(lines))

    message = refusal(path)
    assert "close is 'n.a.?'" in message
    assert "row 7, bars.csv" in message


def test_an_odd_volume_is_no_reason_to_refuse(tmp_path: Path) -> None:
    path = plain_csv(few(), tmp_path / "bars.csv")
    lines = path.read_text().splitlines()
    odd = [line.rsplit(",", 1)[0] + ",1.2K" for line in lines[1:]]
    path.write_text("\n".join([lines[0], *odd]))

    loaded = load(path)
    assert_same(loaded, few(), volume=False)
    assert len(loaded.values) == 4


@given(
    value=st.decimals(min_value=-99_999, max_value=9_999_999, places=3),
    decimal=st.sampled_from([".", ","]),
    grouped=st.booleans(),
)
@several
def test_numbers_are_read_exactly_however_they_are_written(
    value: Decimal, decimal: Any, grouped: bool
) -> None:
    text = f"{value:,.3f}" if grouped else f"{value:.3f}"
    if decimal == ",":
        text = text.translate(str.maketrans(",.", ".,"))

    numbers, bad = to_numbers(pa.array([f" {text} "]), decimal)
    assert numbers[0] == float(value)
    assert not bad[0]


@given(text=st.text(max_size=12))
@several
def test_any_text_is_a_number_or_bad_or_missing(text: str) -> None:
    numbers, bad = to_numbers(pa.array([text]), ".")
    if bad[0] or np.isnan(numbers[0]):
        return
    bare = text.strip().translate(dict.fromkeys(map(ord, ",' \u00a0\u202f")))
    assert numbers[0] == float(bare)


@pytest.mark.parametrize(
    "text", ["1,5", "1,2345", "1234,567", ",5", "1.5.2", "12,34.5", "0x10", "1 2x"]
)
def test_a_comma_out_of_place_is_no_separator_of_thousands(text: str) -> None:
    numbers, bad = to_numbers(pa.array([text]), ".")
    assert bad[0]
    assert np.isnan(numbers[0])


# --- columns --------------------------------------------------------------------------------------


def test_missing_columns_are_named_with_the_way_out(tmp_path: Path) -> None:
    rows = joined([local(few(), "UTC", "%Y-%m-%dT%H:%M:%SZ"), *columns(few())])
    path = write_lines(tmp_path / "bars.csv", "timestamp,open,peak,low,close,volume", rows)

    message = refusal(path)
    assert "missing column high: found timestamp, open, peak" in message
    assert message.endswith("--set layout.high=NAME")
    assert_same(load(path, high="peak"), few())


def test_the_column_of_times_is_named_by_its_values(tmp_path: Path) -> None:
    times = local(few(), NEW_YORK, "%Y-%m-%d,%H:%M")
    rows = joined([times, *columns(few())])
    header = "Tarih,Saat,Open,High,Low,Close,Volume"
    path = write_lines(tmp_path / "bars.csv", header, rows)

    assert "--set layout.time=Tarih+Saat" in refusal(path)
    assert_same(load(path, NEW_YORK, time="Tarih+Saat"), few())


def test_names_that_are_not_utf_8_are_told_with_the_way_out(tmp_path: Path) -> None:
    rows = joined([local(few(), "UTC", "%Y-%m-%dT%H:%MZ"), *columns(few())])
    text = "\n".join(["Zeit,Eröffnung,Hoch,Tief,Schluss,Volumen", *rows, ""])
    path = tmp_path / "bars.csv"
    path.write_bytes(text.encode("latin-1"))

    assert "the names are not UTF-8: iconv -f WINDOWS-1252" in refusal(path)
    assert_same(load(path, time="1", open="2", high="3", low="4", close="5", volume="6"), few())


def test_a_column_that_is_stated_and_not_there_is_refused(tmp_path: Path) -> None:
    path = plain_csv(few(), tmp_path / "bars.csv")
    assert "layout.close must name a column, got 'Schluss'" in refusal(path, close="Schluss")


def test_two_columns_of_times_are_a_question(tmp_path: Path) -> None:
    frame = few().reset_index()
    frame["datetime"] = frame["timestamp"] + pd.Timedelta(hours=1)
    path = tmp_path / "bars.parquet"
    frame.to_parquet(path)

    assert "timestamp and datetime" in refusal(path)
    assert_same(load(path, time="timestamp"), few())


def test_the_index_is_the_time_where_there_are_two(tmp_path: Path) -> None:
    frame = few()
    frame["datetime"] = frame.index + pd.Timedelta(hours=1)
    frame.to_parquet(tmp_path / "bars.parquet")

    assert_same(load(tmp_path / "bars.parquet"), few())


@pytest.mark.parametrize("order", [("Price", "Ticker"), ("Ticker", "Price")])
def test_names_of_two_levels_are_read_in_either_order(
    order: tuple[str, str], tmp_path: Path
) -> None:
    frame = few().rename(columns=str.capitalize)
    levels = [(name, "NQ=F") if order[0] == "Price" else ("NQ=F", name) for name in frame.columns]
    frame.columns = pd.MultiIndex.from_tuples(levels, names=list(order))
    frame.to_parquet(tmp_path / "bars.parquet")
    frame.to_csv(tmp_path / "bars.csv")

    assert_same(load(tmp_path / "bars.parquet"), few())
    assert_same(load(tmp_path / "bars.csv"), few())


def test_of_several_tickers_one_is_chosen(tmp_path: Path) -> None:
    one = few().rename(columns=str.capitalize)
    frame = pd.concat({"NQ=F": one, "ES=F": one / 4}, axis=1).swaplevel(axis=1)
    frame.to_parquet(tmp_path / "bars.parquet")

    message = refusal(tmp_path / "bars.parquet")
    assert "holds 2 (ES=F, NQ=F)" in message
    assert "--symbol ES=F" in message
    assert_same(load(tmp_path / "bars.parquet", instrument="NQ=F"), few())


def test_the_order_of_prices_without_a_header_is_told_by_their_values(tmp_path: Path) -> None:
    open_, high, low, close, volume = columns(few())
    times = local(few(), NEW_YORK, "%Y-%m-%d %H:%M:%S")
    rows = joined([times, high, low, open_, close, volume])
    places = {"open": "4", "high": "2", "low": "3", "close": "5"}

    for way in (1, -1):
        path = write_lines(tmp_path / "iqfeed.csv", None, rows[::way])
        message = refusal(path, NEW_YORK)
        assert "they look like high, low, open, close" in message
        assert all(f"layout.{role}={place}" in message for role, place in places.items())
        assert_same(load(path, NEW_YORK, **places), few())


def test_a_file_without_a_header_is_checked_to_be_bars(tmp_path: Path) -> None:
    open_, high, low, close, volume = columns(few())
    times = local(few(), "UTC", "%Y-%m-%d %H:%M:%S")
    backwards = joined([times, close, high, low, open_, volume])
    shuffled = joined([times, high, open_, low, close, volume])
    swapped = write_lines(tmp_path / "swapped.csv", None, backwards)
    mixed = write_lines(tmp_path / "mixed.csv", None, shuffled)

    assert "no header" in refusal(swapped, "UTC")
    assert "no header" in refusal(mixed, "UTC")
    assert_same(load(swapped, "UTC", time="1", open="5", high="3", low="4", close="2"), few())


def test_float16_is_named(tmp_path: Path) -> None:
    table = pa.Table.from_pandas(few())
    half = pa.array(few()["open"].to_numpy().astype(np.float16))
    pq.write_table(table.set_column(0, "open", half), tmp_path / "bars.parquet")

    assert "float16" in refusal(tmp_path / "bars.parquet")


def test_prices_as_text_decimals_and_whole_numbers_are_read(tmp_path: Path) -> None:
    frame = few()
    frame["open"] = frame["open"].map("{:,.2f}".format)
    frame["high"] = frame["high"].map(lambda value: Decimal(str(value)))
    frame["close"] = frame["close"].astype(np.float32)
    frame.to_parquet(tmp_path / "bars.parquet")

    assert_same(load(tmp_path / "bars.parquet"), few())


# --- times ----------------------------------------------------------------------------------------


def times_file(times: list[str], folder: Path) -> Path:
    frame = few(len(times))
    header = "timestamp;open;high;low;close;volume"
    return write_lines(folder / "bars.csv", header, joined([times, *columns(frame)], ";"))


@pytest.mark.parametrize(
    "form", ["%m/%d/%Y %H:%M", "%d/%m/%Y %H:%M:%S", "%m-%d-%Y %I:%M %p", "%d.%m.%Y %H:%M"]
)
def test_day_and_month_are_never_guessed(form: str, tmp_path: Path) -> None:
    path = times_file(local(few(), NEW_YORK, form), tmp_path)

    message = refusal(path, NEW_YORK)
    assert "day and month must not be guessed" in message
    assert form in message
    assert_same(load(path, NEW_YORK, time_format=form), few())


@pytest.mark.parametrize(("mark", "first"), [("/", "%m/%d/%Y"), (".", "%d.%m.%Y")])
def test_of_two_orders_of_a_date_the_one_that_people_write_so_comes_first(
    mark: str, first: str, tmp_path: Path
) -> None:
    path = times_file(local(few(100), "UTC", f"%m{mark}%d{mark}%Y %H:%M"), tmp_path)  # of a day
    assert refusal(path, "UTC").endswith(f"--set 'layout.time_format={first} %H:%M'")


@pytest.mark.parametrize("form", ["%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%y-%m-%d", "%d/%m/%y"])
def test_the_format_by_which_days_follow_each_other_comes_first(form: str, tmp_path: Path) -> None:
    path = times_file(local(few(), "UTC", f"{form} %H:%M"), tmp_path)  # over midnight
    assert refusal(path, "UTC").endswith(f"--set 'layout.time_format={form} %H:%M'")


def test_a_date_that_fits_one_way_is_asked_about_with_that_way(tmp_path: Path) -> None:
    later = few()
    later.index = later.index + pd.Timedelta(days=20)
    path = times_file(local(later, "UTC", "%m/%d/%Y %H:%M"), tmp_path)

    message = refusal(path, "UTC")
    assert "it fits %m/%d/%Y %H:%M" in message
    assert "%d/%m/%Y" not in message


def test_the_formats_of_a_date_read_other_bars(tmp_path: Path) -> None:
    path = times_file(local(few(), "UTC", "%m/%d/%Y %H:%M"), tmp_path)
    swapped = load(path, "UTC", time_format="%d/%m/%Y %H:%M")
    assert not np.array_equal(swapped.times, truth(few())[0])


@pytest.mark.parametrize(
    "form",
    ["%H:%M %d/%m/%Y", "%d%m%Y%H%M", "%b %d %Y %H:%M", "%m/%d/%y %H:%M", "%d/%m/%Y %H:%M:%S %z"],
)
def test_a_stated_format_is_taken_as_it_is(form: str, tmp_path: Path) -> None:
    path = times_file(local(few(), "UTC", form), tmp_path)
    assert_same(load(path, None if "%z" in form else "UTC", time_format=form), few())


def test_a_row_in_another_format_is_refused_with_its_place(tmp_path: Path) -> None:
    times = local(few(), "UTC", "%Y.%m.%d %H:%M")
    times[40] = "04/03/2024 21:40"
    path = times_file(times, tmp_path)

    assert "row 40, bars.csv" in refusal(path, "UTC")
    times[40] = "2024.02.30 21:40"
    assert "'2024.02.30 21:40' is not (row 40" in refusal(times_file(times, tmp_path), "UTC")


def test_naive_times_need_a_zone_and_stated_ones_must_not_have_another(tmp_path: Path) -> None:
    naive = times_file(local(few(), NEW_YORK, "%Y-%m-%d %H:%M:%S"), tmp_path)
    message = refusal(naive)
    assert message.endswith(f"moola precompute --bars {naive} --timezone America/New_York")
    assert_same(load(naive, NEW_YORK), few())

    stated = times_file(local(few(), "UTC", "%Y-%m-%dT%H:%M:%SZ"), tmp_path)
    assert "leave timezone out" in refusal(stated, NEW_YORK)
    again = times_file(local(few(), NEW_YORK, "%Y-%m-%d %H:%M"), tmp_path)
    assert "must be an IANA name" in refusal(again, "Nowhere")


def test_a_zone_by_its_short_name_is_refused(tmp_path: Path) -> None:
    times = [f"{text} EST" for text in local(few(), NEW_YORK, "%Y-%m-%d %H:%M:%S")]
    assert "got EST, which may be several: write offsets" in refusal(times_file(times, tmp_path))


def test_two_vendors_of_one_text_are_a_question(tmp_path: Path) -> None:
    times = local(few(), "UTC", "%Y%m%d %H%M%S")
    path = write_lines(tmp_path / "bars.txt", None, joined([times, *columns(few())], ";"))
    message = refusal(path)
    assert "--layout ninjatrader" in message
    assert "--layout histdata" in message


@pytest.mark.parametrize(
    ("times", "what"),
    [
        (["2024-03-04"] * 300, "daily bars"),
        ([str(45355.875 + row / 1440) for row in range(300)], "spreadsheet's count of days"),
        (["yesterday"] * 300, "'yesterday' is no time"),
        ([str(row) for row in range(300)], "is no time"),
    ],
)
def test_what_is_no_time_is_said_before_a_zone_is_asked_for(
    times: list[str], what: str, tmp_path: Path
) -> None:
    message = refusal(times_file(times, tmp_path))
    assert what in message
    assert "must have a zone" not in message


@given(
    moment=st.datetimes(min_value=pd.Timestamp("1990-01-02"), max_value=pd.Timestamp("2099-12-30")),
    unit=st.sampled_from(["s", "ms", "us", "ns"]),
)
@several
def test_epochs_are_told_apart_by_their_size(moment: Any, unit: str) -> None:
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    seconds = int(pd.Timestamp(moment, tz="UTC").timestamp())
    assert epoch_unit(str(seconds * per_second)) == unit


def test_epochs_may_change_their_unit_within_a_file(tmp_path: Path) -> None:
    ns = truth(few())[0]
    times = [str(value // 10**6) for value in ns[:150]]
    times += [str(value // 10**3) for value in ns[150:]]
    assert_same(load(times_file(times, tmp_path)), few())


@pytest.mark.parametrize("form", ["{:.18e}", "{:.12e}", "{:.9E}"])
@pytest.mark.parametrize("per_second", [1, 1e3, 1e9])
def test_epochs_with_an_exponent_are_read(form: str, per_second: float, tmp_path: Path) -> None:
    seconds = truth(few())[0] // 10**9
    times = [form.format(second * per_second) for second in seconds]
    assert_same(load(times_file(times, tmp_path)), few())


def test_numbers_that_a_spreadsheet_shortened_are_told(tmp_path: Path) -> None:
    times = [f"{value / 1e6:.2E}" for value in truth(few())[0]]
    message = refusal(times_file(times, tmp_path))
    assert "1.71E+12 stands there again and again: a spreadsheet has shortened" in message


@pytest.mark.parametrize("zone", ["EST", "America/Nowhere", "EST and EDT"])
def test_a_zone_that_is_none_is_named(zone: str, tmp_path: Path) -> None:
    names = zone.split(" and ")
    times = local(few(), NEW_YORK, "%Y-%m-%d %H:%M:%S")
    named = [f"{text} {names[row % len(names)]}" for row, text in enumerate(times)]
    message = refusal(times_file(named, tmp_path))
    assert "a zone behind the times must be" in message
    assert ", ".join(sorted(names)) in message


@given(
    minutes=st.lists(st.integers(0, 50_000_000), min_size=2, max_size=6, unique=True),
    zone=st.sampled_from(["UTC", "Asia/Tokyo", "Asia/Kolkata", "Etc/GMT+5"]),
    form=st.sampled_from(["%Y%m%d %H:%M:%S", "%Y/%m/%d %I:%M %p", "%d-%b-%Y %H:%M", "%Y%m%d%H%M"]),
)
@several
def test_every_minute_reads_back_in_every_form(
    minutes: list[int], zone: str, form: str, tmp_path: Path
) -> None:
    ns = np.array(sorted(minutes)) * 60_000_000_000 + 10**18
    index = pd.DatetimeIndex(ns, tz="UTC").floor("min")
    frame = few(len(minutes)).set_axis(index)
    times = local(frame, zone, form)
    header = "time;open;high;low;close;volume"
    path = write_lines(tmp_path / "bars.csv", header, joined([times, *columns(frame)], ";"))

    np.testing.assert_array_equal(load(path, zone).times, index.as_unit("ns").asi8)


def test_a_minute_that_happens_twice_is_refused_with_its_row(tmp_path: Path) -> None:
    times = [f"2023-11-05 {hour:02d}:{minute:02d}:00" for hour in range(5) for minute in range(60)]
    assert "happens twice (clocks go back) in America/New_York (row 60" in refusal(
        times_file(times, tmp_path), NEW_YORK
    )


def test_newest_first_is_turned_round_unless_forbidden(tmp_path: Path) -> None:
    path = plain_csv(few().iloc[::-1], tmp_path / "bars.csv")

    loaded = load(path)
    assert_same(loaded, few())
    assert loaded.report.as_dict()["newest_first"] is True
    assert load(path, newest_first=False).times[0] == truth(few())[0][-1]


def test_whole_prices_beside_databentos_columns_are_fixed_point(tmp_path: Path) -> None:
    frame = few()
    path = VENDORS[0].write(frame, tmp_path)

    assert load(path).report.files[0].decisions.price_scale == 1e9
    raw = path.read_text().replace("rtype", "sort")
    path.write_text(raw)
    assert load(path).values[0, 0] == frame["open"].iloc[0] * 1e9
    assert_same(load(path, price_scale=1e9), frame)


# --- the user's cases -----------------------------------------------------------------------------

NEEDED: dict[str, tuple[dict[str, Any], str | None]] = {
    "noheader-firstrate": ({}, NEW_YORK),
    "noheader-ninjatrader": ({"name": "ninjatrader"}, None),
    "noheader-metatrader4": ({}, "UTC"),
    "split-sierrachart": ({}, CHICAGO),
    "split-metatrader5": ({}, "UTC"),
    "text-thousands-and-footer": ({}, CHICAGO),
    "silent-close-stamped": ({"stamp": "close"}, None),
    "time-us-dates/bars.csv": ({"time_format": "%m/%d/%Y %H:%M"}, NEW_YORK),
    "time-us-dates/ampm.csv": ({"time_format": "%m/%d/%Y %I:%M %p"}, NEW_YORK),
}
# Rows of the truth, where not all 300.
PART = {
    "overlapping-downloads": slice(0, 260),
    "nan-rows-for-closed-minutes": slice(30, 270),
    "several-symbols": slice(0, 200),
}
OTHER_BARS = {
    "close-one-tick-outside",
    "negative-prices",
    "silent-small-prices",
    "silent-roll",
    "silent-filled-closed-minutes",
}
REFUSED_CASES = {
    "silent-5-minute-bars": "5 minutes apart (299 of 299 steps)",
    "one-second-bars": "1 second apart",
    "container-xlsx": "spreadsheet: save it as CSV",
}


def case_files() -> list[Path]:
    """The cases of bars; where they are absent one name stands for all, whose test is skipped."""
    if CASES is None:
        return [Path("cases/inputs/none/bars.csv")]

    folders = [folder for folder in sorted(CASES.iterdir()) if folder.is_dir()]
    of_bars = [folder for folder in folders if not folder.name.startswith("labels")]
    files = [file for folder in of_bars for file in sorted(folder.iterdir())]
    return [file for file in files if file.name != "README.md"]


@pytest.mark.parametrize("path", case_files(), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_users_cases_end_as_wanted(path: Path) -> None:
    cases = shared("cases/inputs")
    name = path.parent.name
    fields, timezone = NEEDED.get(f"{name}/{path.name}", NEEDED.get(name, ({}, None)))
    if name == "several-symbols":
        fields = {"instrument": "NQH4"}

    if name in REFUSED_CASES:
        with pytest.raises(DataError, match=re.escape(REFUSED_CASES[name])):
            check_series(load(path, timezone, **fields))
        return

    series = check_series(load(path, timezone, **fields))
    if name in OTHER_BARS:
        assert len(series.times) == 300
        return

    right = pd.read_csv(cases / "truth.csv").iloc[PART.get(name, slice(None))]
    times = pd.DatetimeIndex(pd.to_datetime(right["timestamp"], utc=True)).as_unit("ns").asi8
    np.testing.assert_array_equal(series.times, times)
    prices = right[["open", "high", "low", "close"]].to_numpy().T
    np.testing.assert_array_equal(series.values[:4], prices)
