"""The documents of the run protocol: what is read strictly, what is ignored, what is too much."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moola.data.npy import load_array, read_array
from moola.errors import ArtifactError, DataError
from moola.runs.records import (
    Commit,
    FileEntry,
    Heartbeat,
    Manifest,
    SpecDocument,
    State,
    Status,
    parse_record,
    plain_component,
    read_record,
    read_record_or_none,
)
from moola.runs.submit import describe_input, describe_run, read_spec_document, submit
from moola.store import Folder, Store, TooLargeError, open_store
from moola.text import quoted
from tests.hostile import ARRAYS, EVIL

TIME = "2026-11-22T23:15:00.000+00:00"
GOOD: dict[type, dict[str, Any]] = {
    Status: {"state": "running", "time": TIME},
    Heartbeat: {"time": TIME, "stage": "features", "done": 1, "total": 2, "unit": "bars"},
    Commit: {
        "attempt": "20261122T231500Z-9f86d081",
        "manifest": "runs/x/attempts/y/manifest.json",
        "manifest_sha256": "0" * 64,
    },
    FileEntry: {"path": "a/b.txt", "key": "k", "size": 1, "sha256": "0" * 64},
}


def parse(kind: type, **change: Any) -> Any:
    document = json.dumps({**GOOD[kind], **change})
    return parse_record(kind, document.encode(), "x.json")


@pytest.mark.parametrize("kind", GOOD)
def test_fields_of_a_later_version_are_ignored(kind: type) -> None:
    record = parse(kind, added_later={"deep": [1]})
    assert not hasattr(record, "added_later")


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (Status, "state", "done"),
        (Status, "state", None),
        (Status, "time", 1.0e9),
        (Status, "time", "2026-11-22T23:15:00"),  # of which zone?
        (Status, "exit_code", 256),
        (Status, "exit_code", "3"),
        (Status, "reason", 7),
        (Status, "reason", "x" * 100_001),
        (Heartbeat, "done", -1),
        (Heartbeat, "done", 1.5),
        (Heartbeat, "done", 10**40),
        (Commit, "manifest_sha256", "0" * 63),
        (Commit, "manifest_sha256", "0" * 64 + "\n"),
        (Commit, "manifest_sha256", "F" * 64),
        (Commit, "attempt", "../../x"),
        (Commit, "attempt", "20261122T231500Z-9f86d081\n"),
        (FileEntry, "size", -1),
        (FileEntry, "size", True),
        (FileEntry, "path", "../x"),
    ],
)
def test_a_field_that_decides_is_read_strictly(kind: type, field: str, value: object) -> None:
    with pytest.raises(ArtifactError, match=rf"x\.json is damaged: '{field}"):
        parse(kind, **{field: value})


def test_a_record_is_written_as_it_was_before_there_were_types() -> None:
    """The keys of the contract, and no field that nobody has set."""
    status = Status(state=State.FAILED, time=datetime(2026, 1, 2, tzinfo=UTC), reason="x")
    assert status.to_json() == (
        b'{"reason":"x","state":"failed","time":"2026-01-02T00:00:00.000+00:00"}'
    )
    run_id, document = describe_run("precompute", {"windows": "stored", "k": 1.0}, {})
    fields = json.loads(document.to_json())
    assert set(fields) == {"job", "spec", "inputs", "code_sha256", "fingerprint", "moola"}
    assert fields["spec"] == {"windows": "stored", "k": 1.0}
    assert run_id == f"precompute-{document.fingerprint[:12]}"


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/b", "a\\b", "c:", "a\x00", "a\n", "\x1b[31m", "a\x7f", "a\u202eb", "nul",
     "NUL.txt", "com1", "lpt9.log", " a", "a ", "a.", "x" * 256, "é" * 128],
)  # fmt: skip
def test_a_name_that_is_no_plain_component_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="must"):
        plain_component(name)


@pytest.mark.parametrize("name", ["a", "bars.parquet", ".hidden", "a b?*.csv", "console", "ü"])
def test_a_plain_name_is_taken(name: str) -> None:
    assert plain_component(name) == name


def test_an_input_whose_name_cannot_be_stored_is_refused_before_anything_is(tmp_path: Path) -> None:
    path = tmp_path / "bars\n.parquet"
    path.write_bytes(b"x")
    with pytest.raises(DataError, match=r"an input's name must be .* rename the file"):
        describe_input(path)


def test_a_message_quotes_a_value_in_one_short_line() -> None:
    text = quoted(EVIL * 1000)
    assert len(text) == 200
    assert text.isprintable()


# --- bounds -----------------------------------------------------------------------------------


def test_a_document_that_is_too_large_is_not_fetched(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("big.json", b" " * (16 << 20) + b"{}")
    monkeypatch.setattr("moola.store.s3.read_body", lambda _: pytest.fail("the body was read"))
    monkeypatch.setattr(Path, "read_bytes", lambda _: pytest.fail("the file was read"))
    for read in (read_record, read_record_or_none):
        with pytest.raises(ArtifactError, match=r"big\.json in .* must have at most 16,777,216"):
            read(store, "big.json", Status)


def test_a_reader_that_knows_the_size_takes_no_more(store: Store) -> None:
    store.put("object", b"12345")
    assert store.get("object", 5) == b"12345"
    with pytest.raises(TooLargeError):
        store.get("object", 4)
    assert store.get_or_none("missing", 4) is None


def test_a_deep_document_is_damaged() -> None:
    for data in (b"[" * 100_000, b'{"spec":' * 100_000):
        with pytest.raises(ArtifactError, match="is damaged"):
            parse_record(SpecDocument, data, "spec.json")


def test_more_files_than_a_run_can_have_are_too_many() -> None:
    entry = GOOD[FileEntry]
    manifest = {
        "run_id": "precompute-000000000000",
        "attempt_id": GOOD[Commit]["attempt"],
        "created": TIME,
        "state": "committed",
        "files": [entry] * 100_001,
    }
    with pytest.raises(ArtifactError, match="at most 100000"):
        parse_record(Manifest, json.dumps(manifest).encode(), "manifest.json")


@pytest.mark.parametrize("name", [name for name in ARRAYS if name != "of all NaN"])
def test_an_array_that_its_file_does_not_hold_is_refused_before_it_is_made(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("numpy was asked to load it"))
    path = tmp_path / "bars_11d.npy"
    path.write_bytes(ARRAYS[name])
    if name != "flat":
        with pytest.raises(ArtifactError, match=r"bars_11d\.npy is damaged"):
            load_array(path, np.float32)
    if name not in ("flat", "of doubles", "of no bars"):
        with pytest.raises((ValueError, EOFError)):
            read_array(ARRAYS[name])


# --- the id -----------------------------------------------------------------------------------


def test_a_spec_is_that_of_its_run_alone(store: Store) -> None:
    run_id, document = describe_run("precompute", {"windows": "stored"}, {})
    forced, _ = describe_run("precompute", {"windows": "stored"}, {}, force=True)
    for each in (run_id, forced):
        submit(store, each, document)
        assert read_spec_document(store, each) == document
    other, _ = describe_run("precompute", {"windows": "virtual"}, {})
    submit(store, other, document)
    with pytest.raises(ArtifactError, match=f"belongs to run {run_id}, not to {other}"):
        read_spec_document(store, other)


def test_no_number_in_a_spec_that_has_no_digest(store: Store, run_id: str) -> None:
    document = json.loads(store.get(f"runs/{run_id}/spec.json"))
    document["spec"]["k"] = float("nan")
    store.put(f"runs/{run_id}/spec.json", json.dumps(document).encode())
    with pytest.raises(ArtifactError, match=r"spec\.json in .* is damaged"):
        read_spec_document(store, run_id)


# --- folders ----------------------------------------------------------------------------------


def test_a_named_pipe_in_the_way_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="must be a plain file"):
        Folder(tmp_path).open_to_read("pipe")


def test_without_handles_of_folders_links_are_refused_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows."""
    monkeypatch.setattr("moola.store.folder.HAS_FOLDER_HANDLES", False)
    outside = tmp_path / "outside"
    outside.mkdir()
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(outside)
    (root / "file").symlink_to(outside / "x")
    folder = Folder(root)
    for path in ("link/a", "file"):
        with pytest.raises(DataError, match="no link in the folder is followed"):
            folder.write(path, b"x") if path != "file" else folder.open_to_read(path)
    folder.write("sub/a", b"first")
    folder.write("sub/a", b"second")
    assert (root / "sub" / "a").read_bytes() == b"second"
    assert list(outside.iterdir()) == []


# --- tables -----------------------------------------------------------------------------------


def test_no_cell_of_a_csv_is_run_by_a_spreadsheet(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from moola.evaluation.run_tables import write_table

    names = ["=cmd()", "+1", "-2", "@x", "\t=x", "\r\n+x", "plain", "a=b"]
    safe = ["'=cmd()", "'+1", "'-2", "'@x", "'=x", "'+x", "plain", "a=b"]
    table = pd.DataFrame({"=type": names, "value": [-0.5] * len(names)})
    write_table(table, tmp_path / "out.csv")
    read = pd.read_csv(tmp_path / "out.csv")
    assert list(read.columns) == ["'=type", "value"]
    assert read["'=type"].tolist() == safe
    assert read["value"].tolist() == [-0.5] * len(names)


def test_a_store_in_a_folder_gives_no_bytes_of_what_is_no_file(tmp_path: Path) -> None:
    store = open_store(tmp_path.as_uri())
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for key in ("folder", "pipe"):
        with pytest.raises(ArtifactError, match="must be a file"):
            store.get(key)
