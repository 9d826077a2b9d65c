"""One contract, two backends; then what only a network does."""

import base64
import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from botocore.exceptions import ClientError
from hypothesis import given, settings
from hypothesis import strategies as st

from moola.errors import (
    ArtifactError,
    AuthError,
    ConflictError,
    DataError,
    ExpiredError,
    MoolaError,
    TryAgainError,
)
from moola.store import (
    BytesSource,
    FileSource,
    Head,
    Store,
    fetch_uri,
    open_store,
)
from moola.store.checksums import crc64
from moola.store.journal import Upload
from moola.store.s3_errors import refusal
from tests.s3_proxy import Call, Proxy, running_proxy
from tests.seaweed import BUCKET, KEYS, Seaweed, running_seaweed

MIB = 1 << 20
PART = 5 * MIB  # the smallest S3 takes
DATA = (
    b"".join(hashlib.sha256(i.to_bytes(4, "big")).digest() for i in range(256)) * (11 * MIB // 8192)
    + b"tail"
)
SHA256 = hashlib.sha256(DATA).hexdigest()
N_PARTS = 3


@pytest.fixture
def proxy(
    s3_environment: dict[str, str],  # noqa: ARG001
    seaweed: Seaweed,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Proxy]:
    """A proxy that the stores opened in this test go through."""
    with running_proxy(seaweed.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        yield proxy


@pytest.fixture
def proxied(proxy: Proxy, s3_url: str) -> Store:
    store = open_store(s3_url)
    proxy.calls.clear()
    return store


def count_sent(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the parts that `store` sends from now on."""
    sent: list[int] = []
    send = store.send_part

    def counting(upload: Upload, number: int, data: memoryview, crc64nvme: str) -> str:
        sent.append(number)
        return send(upload, number, data, crc64nvme)

    monkeypatch.setattr(store, "send_part", counting)
    return sent


def flip(body: bytearray) -> None:
    body[len(body) // 2] ^= 1


# --- small objects ----------------------------------------------------------------------------


def test_an_object_reads_back(store: Store) -> None:
    store.put_once("runs/a/spec.json", b"{}")
    assert store.get("runs/a/spec.json") == store.get_or_none("runs/a/spec.json") == b"{}"
    head = store.head("runs/a/spec.json")
    assert head is not None
    assert head.size == 2


def test_a_missing_object_is_none_or_an_error_that_names_it(store: Store) -> None:
    assert store.get_or_none("runs/none") is None
    assert store.head("runs/none") is None
    with pytest.raises(ArtifactError, match=f"runs/none is not in the store .{store.url}"):
        store.get("runs/none")


def test_a_write_once_key_takes_the_same_bytes_again_and_no_others(store: Store) -> None:
    store.put_once("key", b"one")
    store.put_once("key", b"one")
    with pytest.raises(ConflictError, match="key is written once and holds other bytes"):
        store.put_once("key", b"two")
    assert store.get("key") == b"one"


def test_put_replaces_what_is_there(store: Store) -> None:
    store.put("status.json", b"one")
    store.put("status.json", b"another")
    assert store.get("status.json") == b"another"


def test_children_are_the_names_one_level_down(store: Store) -> None:
    assert store.children("runs") == []
    for key in ("runs/b/x", "runs/a/x/y", "runs/a.json", "runs-other/x", "top"):
        store.put(key, b"x")
    assert store.children("runs") == ["a", "a.json", "b"]
    assert store.children("runs/a") == ["x"]
    assert set(store.children("")) - {"profile.json"} == {"runs", "runs-other", "top"}


def test_a_deleted_object_is_gone_and_can_be_deleted_again(store: Store) -> None:
    store.put("key", b"x")
    store.delete("key")
    store.delete("key")
    assert store.head("key") is None


@pytest.mark.parametrize(
    "key", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "a/./b", "a\\b", "a\0b"]
)
def test_a_key_cannot_leave_the_store(tmp_path: Path, key: str) -> None:
    store = open_store((tmp_path / "store").as_uri())
    for use in (
        store.get,
        store.head,
        store.delete,
        lambda k: store.put(k, b""),
        lambda k: store.put_once(k, b""),
    ):
        with pytest.raises(DataError, match="a key must be a relative path"):
            use(key)


def test_of_racing_writers_one_wins_and_the_others_are_told(store: Store) -> None:
    barrier, won, lost = threading.Barrier(8), [], []

    def write(data: bytes) -> None:
        barrier.wait()
        try:
            store.put_once("COMMIT.json", data)
            won.append(data)
        except ConflictError:
            lost.append(data)

    threads = [threading.Thread(target=write, args=(bytes([n]),)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 7)
    assert store.get("COMMIT.json") == won[0]


# --- upload -----------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"small", DATA], ids=["empty", "one part", "many parts"])
def test_an_upload_is_described_and_reads_back(store: Store, data: bytes) -> None:
    progress: list[int] = []
    stored = store.upload("files/x", BytesSource(data), on_progress=progress.append, part_size=PART)
    assert (stored.key, stored.size, stored.sha256) == (
        "files/x",
        len(data),
        hashlib.sha256(data).hexdigest(),
    )
    assert stored.crc64nvme == crc64(data)
    assert b"".join(store.read_chunks("files/x", len(data))) == data
    assert sum(progress) == len(data)
    assert store.sweep(-60) == []
    head = store.head("files/x")
    assert head is not None
    assert (head.etag, head.crc64nvme) in {(stored.etag, stored.crc64nvme), (stored.etag, None)}


def test_a_new_upload_is_not_read_back(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "read_range", None)
    store.upload("x", BytesSource(DATA), part_size=PART)


def test_a_file_is_uploaded_and_one_that_shrinks_is_refused(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(DATA)
    source = FileSource(path)
    assert store.upload("x", source, part_size=PART).sha256 == SHA256
    path.write_bytes(DATA[:-1])
    with pytest.raises(DataError, match="must not shrink while it is read: 1 B missing"):
        store.upload("y", source, part_size=PART)
    with pytest.raises(DataError, match="an upload needs a file"):
        FileSource(tmp_path / "none")


def test_an_upload_does_not_replace_other_bytes(store: Store) -> None:
    other = DATA[:-1] + b"x"
    store.upload("x", BytesSource(other), part_size=PART)
    with pytest.raises(ConflictError, match="x is written once"):
        store.upload("x", BytesSource(DATA), part_size=PART)
    assert b"".join(store.read_chunks("x", len(other))) == other


def test_a_key_taken_while_an_upload_is_under_way_is_a_conflict(store: Store) -> None:
    class Overtaken(BytesSource):
        def read_into(self, offset: int, buffer: memoryview) -> None:
            if offset == PART:
                store.put("x", b"somebody else was first")
            super().read_into(offset, buffer)

    with pytest.raises(ConflictError, match="x is written once"):
        store.upload("x", Overtaken(DATA), part_size=PART)
    assert store.get("x") == b"somebody else was first"
    assert store.sweep(-60) == []


def test_a_repeated_upload_sends_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = count_sent(store, monkeypatch)
    first = store.upload(
        "attempt-1/x", BytesSource(DATA), journal=tmp_path / "journal", part_size=PART
    )
    assert sorted(sent) == [1, 2, 3]
    again = store.upload(
        "attempt-2/x", BytesSource(DATA), journal=tmp_path / "journal", part_size=PART
    )
    without_journal = store.upload("attempt-1/x", BytesSource(DATA), part_size=PART)
    assert first == again == without_journal
    assert len(sent) == N_PARTS


def test_a_finished_upload_of_other_bytes_does_not_pass_for_these(
    store: Store, tmp_path: Path
) -> None:
    other = DATA[:-1] + b"x"
    store.upload("attempt-1/x", BytesSource(other), journal=tmp_path / "journal", part_size=PART)
    stored = store.upload(
        "attempt-2/x", BytesSource(DATA), journal=tmp_path / "journal", part_size=PART
    )
    assert (stored.key, stored.sha256) == ("attempt-2/x", SHA256)


UPLOADER = """
import signal, sys, time
from pathlib import Path
from moola.store import FileSource, open_store

# A shell's background jobs inherit that it is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)

class Slow(FileSource):
    def read_into(self, offset, buffer):
        if offset >= 2 * 5242880:  # the last part is not there before somebody looks
            time.sleep(60)
        super().read_into(offset, buffer)

url, data, journal = sys.argv[1:]
open_store(url).upload("attempt-1/x", Slow(Path(data)), journal=Path(journal), part_size=5242880)
"""


def start_uploader(url: str, folder: Path, n_parts: int) -> tuple[subprocess.Popen[bytes], Path]:
    """A process in the middle of an upload of DATA, with `n_parts` in its journal; the journal."""
    data, journal = folder / "data", folder / "journal"
    data.write_bytes(DATA)
    process = subprocess.Popen(
        [sys.executable, "-c", UPLOADER, url, str(data), str(journal)], stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while not journal.exists() or journal.read_text().count('"part":') < n_parts:
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process, journal


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_upload_sends_only_the_missing_part(
    store: Store,
    store_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    signum: signal.Signals,
) -> None:
    process, journal = start_uploader(store_url, tmp_path, N_PARTS - 1)
    process.send_signal(signum)
    process.communicate(timeout=30)
    assert process.returncode == -signum
    assert store.head("attempt-1/x") is None
    sent = count_sent(store, monkeypatch)
    stored = store.upload("attempt-2/x", BytesSource(DATA), journal=journal)
    assert sent == [3]
    assert (stored.key, stored.sha256) == ("attempt-1/x", SHA256)
    assert b"".join(store.read_chunks("attempt-1/x", len(DATA))) == DATA


def test_an_object_has_no_more_parts_than_s3_allows(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moola.store.base.MAX_PARTS", 2)
    data = DATA[: 2 * PART + 1]
    store.profile = store.profile.model_copy(update={"part_mib": 5})
    sent = count_sent(store, monkeypatch)
    store.upload("x", BytesSource(data))
    assert sorted(sent) == [1, 2]
    assert b"".join(store.read_chunks("x", len(data))) == data


class InterruptedUploadError(Exception):
    pass


class Breaking(BytesSource):
    """Fails at the last part, once the others are sent."""

    def __init__(self, data: bytes, journal: Path) -> None:
        super().__init__(data)
        self._journal = journal

    def read_into(self, offset: int, buffer: memoryview) -> None:
        if offset == (N_PARTS - 1) * PART:
            while self._journal.read_text().count('"part":') < N_PARTS - 1:
                time.sleep(0.01)
            raise InterruptedUploadError
        super().read_into(offset, buffer)


def break_upload(store: Store, journal: Path, data: bytes = DATA) -> None:
    with pytest.raises(InterruptedUploadError):
        store.upload("attempt-1/x", Breaking(data, journal), journal=journal, part_size=PART)


def test_a_part_that_is_damaged_or_other_is_sent_again(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source's second part is not what the journal says: the part kept for it does not pass."""
    break_upload(store, tmp_path / "journal", DATA[: PART + 7] + b"\0" + DATA[PART + 8 :])
    sent = count_sent(store, monkeypatch)
    assert (
        store.upload("attempt-1/x", BytesSource(DATA), journal=tmp_path / "journal").sha256
        == SHA256
    )
    assert sorted(sent) == [2, 3]
    assert b"".join(store.read_chunks("attempt-1/x", len(DATA))) == DATA


def test_a_byte_damaged_in_a_local_part_file_is_found_on_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store((tmp_path / "store").as_uri())
    break_upload(store, tmp_path / "journal")
    (part,) = (tmp_path / "store" / ".parts").iterdir()
    with part.open("r+b") as stream:
        stream.seek(PART + 3)
        stream.write(b"\0\0\0\0")
    sent = count_sent(store, monkeypatch)
    assert (
        store.upload("attempt-1/x", BytesSource(DATA), journal=tmp_path / "journal").sha256
        == SHA256
    )
    assert sorted(sent) == [2, 3]


def test_an_upload_the_store_forgot_begins_anew_under_the_new_key(
    store: Store, tmp_path: Path
) -> None:
    break_upload(store, tmp_path / "journal")
    assert len(store.sweep(-60)) == 1
    stored = store.upload(
        "attempt-2/x", BytesSource(DATA), journal=tmp_path / "journal", part_size=PART
    )
    assert (stored.key, stored.sha256) == ("attempt-2/x", SHA256)


def test_a_torn_line_and_another_store_in_the_journal_do_no_harm(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = tmp_path / "journal"
    break_upload(store, journal)
    with journal.open("a") as stream:
        stream.write('{"part": {"num')
    sent = count_sent(store, monkeypatch)
    assert store.upload("attempt-2/x", BytesSource(DATA), journal=journal).key == "attempt-1/x"
    assert sent == [3]
    elsewhere = open_store((tmp_path / "elsewhere").as_uri())
    assert (
        elsewhere.upload("attempt-2/x", BytesSource(DATA), journal=journal, part_size=PART).key
        == "attempt-2/x"
    )


def test_a_sweep_removes_old_unfinished_uploads_only(store: Store, tmp_path: Path) -> None:
    break_upload(store, tmp_path / "journal")
    store.put("kept", b"x")
    assert store.sweep(3600) == []
    would_remove = store.sweep(-60, dry_run=True)
    assert len(would_remove) == 1
    assert store.sweep(-60, dry_run=True) == would_remove  # it is still there
    assert store.sweep(-60) == would_remove
    assert store.sweep(-60) == []
    assert store.get("kept") == b"x"


def slow_crc64(data: bytes) -> int:
    """CRC-64/NVME bit by bit, by its published parameters (reflected polynomial below)."""
    crc = (1 << 64) - 1
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x9A6C9329AC4BC9B5 if crc & 1 else 0)
    return crc ^ ((1 << 64) - 1)


@settings(max_examples=25, deadline=None)
@given(data=st.binary(max_size=200), part_size=st.integers(1, 70))
def test_any_part_size_gives_the_same_object(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, part_size: int
) -> None:
    store = open_store(tmp_path_factory.mktemp("store").as_uri())
    stored = store.upload("x", BytesSource(data), part_size=part_size)
    assert store.get("x") == data
    assert stored.sha256 == hashlib.sha256(data).hexdigest()
    assert int.from_bytes(base64.b64decode(stored.crc64nvme), "big") == slow_crc64(data)


# --- pull -------------------------------------------------------------------------------------


def test_a_pull_verifies_and_then_names_the_file(store: Store, tmp_path: Path) -> None:
    store.upload("x", BytesSource(DATA), part_size=PART)
    progress: list[int] = []
    dest = tmp_path / "pulled" / "x"
    store.pull("x", dest, size=len(DATA), sha256=SHA256, on_progress=progress.append)
    assert dest.read_bytes() == DATA
    assert sum(progress) == len(DATA)
    assert [p.name for p in dest.parent.iterdir()] == ["x"]


def test_a_pull_goes_on_from_what_is_there(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.upload("x", BytesSource(DATA), part_size=PART)
    (tmp_path / "x.part").write_bytes(DATA[: 10 * MIB])
    lengths: list[int] = []
    read = store.read_range
    monkeypatch.setattr(
        store, "read_range", lambda key, at, n, etag: lengths.append(n) or read(key, at, n, etag)
    )
    store.pull("x", tmp_path / "x", size=len(DATA), sha256=SHA256)
    assert (tmp_path / "x").read_bytes() == DATA
    assert sum(lengths) == len(DATA) - 10 * MIB


def test_a_damaged_or_overlong_start_is_fetched_anew(store: Store, tmp_path: Path) -> None:
    store.upload("x", BytesSource(DATA), part_size=PART)
    for start in (b"not these bytes", DATA + b"and more"):
        (tmp_path / "x.part").write_bytes(start)
        store.pull("x", tmp_path / "x", size=len(DATA), sha256=SHA256)
        assert (tmp_path / "x").read_bytes() == DATA


def test_an_object_overwritten_after_the_commit_is_refused(store: Store, tmp_path: Path) -> None:
    store.upload("x", BytesSource(DATA), part_size=PART)
    store.put("x", DATA[:-1] + b"x")
    with pytest.raises(
        ArtifactError, match=f"sha256 of x must be {SHA256}, got [0-9a-f]{{64}} in 3 tries"
    ):
        store.pull("x", tmp_path / "x", size=len(DATA), sha256=SHA256)
    store.put("x", DATA[:-1])
    with pytest.raises(ArtifactError, match=f"x must have {len(DATA)} B, got {len(DATA) - 1} B"):
        store.pull("x", tmp_path / "x", size=len(DATA), sha256=SHA256)
    store.delete("x")
    with pytest.raises(ArtifactError, match="x is not in the store"):
        store.pull("x", tmp_path / "x", size=len(DATA), sha256=SHA256)
    assert list(tmp_path.glob("x*")) in ([], [tmp_path / "x.part"])


def test_an_object_that_changes_while_it_is_read_is_refused(store: Store) -> None:
    store.put("x", b"first bytes")
    head = store.head("x")
    assert head is not None
    assert store.read_range("x", 6, 5, head.etag) == b"bytes"
    store.put("x", b"other bytes")
    with pytest.raises(ArtifactError, match="x was changed"):
        store.read_range("x", 6, 5, head.etag)


# --- opening, fetching, checking --------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["", "s3://", "s3:///x", "ftp://x/y", "/tmp/x", "file://", "file://host/x", "s3://b/x?y"]
)
def test_a_bad_url_is_refused(url: str) -> None:
    with pytest.raises(DataError, match="a store URL"):
        open_store(url)


def test_a_file_url_may_be_relative_or_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_store("file://./moola-store").url == (tmp_path / "moola-store").as_uri()
    assert open_store("file:///tmp/a%20b").url == "file:///tmp/a%20b"
    assert open_store("file://localhost/tmp/a").url == "file:///tmp/a"
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="a file:// store must be a folder"):
        open_store("file://./file")


def test_boto3_is_imported_by_s3_stores_only(tmp_path: Path) -> None:
    code = (
        "import sys; from moola.store import open_store\n"
        "open_store(sys.argv[1]).put('x', b''); print(*sys.modules)"
    )
    url = (tmp_path / "store").as_uri()
    loaded = subprocess.run(
        [sys.executable, "-c", code, url], capture_output=True, text=True, check=True
    ).stdout
    assert {"moola.store.local"} <= set(loaded.split())
    assert {"boto3", "botocore", "moola.store.s3"}.isdisjoint(loaded.split())


def test_a_profile_in_the_store_is_used_and_checked(store: Store, store_url: str) -> None:
    store.put("profile.json", b'{"part_mib": 5, "workers": 1}')
    assert open_store(store_url).profile.part_mib == 5
    store.put("profile.json", b'{"part_mib": 1, "worker": 1}')
    with pytest.raises(
        DataError,
        match=r"part_mib: Input should be greater than or equal to 5.*worker: Extra inputs",
    ):
        open_store(store_url)


@pytest.mark.parametrize("integrity", ["crc64nvme", "md5"])
@pytest.mark.parametrize("conditional", [True, False])
def test_every_profile_keeps_the_contract(
    store: Store, store_url: str, integrity: str, conditional: bool
) -> None:
    store.put(
        "profile.json",
        json.dumps({"integrity": integrity, "conditional": conditional, "part_mib": 5}).encode(),
    )
    store = open_store(store_url)
    assert store.upload("x", BytesSource(DATA)).sha256 == SHA256
    assert store.upload("x", BytesSource(DATA)).sha256 == SHA256
    for other in (b"small", DATA[:-1] + b"x"):
        with pytest.raises(ConflictError):
            store.upload("x", BytesSource(other))
    assert b"".join(store.read_chunks("x", len(DATA))) == DATA


def test_a_uri_is_fetched_or_is_the_file_itself(
    store: Store, store_url: str, tmp_path: Path
) -> None:
    store.put("in/bars.csv", b"bars")
    path = fetch_uri(f"{store_url}/in/bars.csv", tmp_path)
    assert path.read_bytes() == b"bars"
    assert path.name == "bars.csv"
    assert path.is_relative_to(tmp_path)
    assert fetch_uri(str(path), tmp_path) == path
    with pytest.raises(DataError, match=f"there must be .* at {store_url}/in/none"):
        fetch_uri(f"{store_url}/in/none", tmp_path)


def test_a_check_of_a_whole_store_passes_and_leaves_nothing(store: Store) -> None:
    check = store.check()
    assert [probe for probe in check.probes if not probe.ok] == []
    assert {"put and get", "conditional put", "multipart", "abort", "delete"} <= {
        probe.name for probe in check.probes
    }
    assert set(store.children("")) <= {"profile.json"}
    assert store.sweep(-60) == []
    assert check.usable_profile().conditional
    assert check.limits == []


def overwriting(store: Store) -> Callable[[str, bytes], bool]:
    def create(key: str, data: bytes) -> bool:
        store.put(key, data)
        return True

    return create


def test_a_check_finds_a_store_that_overwrites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store((tmp_path / "store").as_uri())
    monkeypatch.setattr(store, "create", overwriting(store))
    check = store.check()
    (failed,) = [probe for probe in check.probes if not probe.ok]
    assert (failed.name, failed.detail) == (
        "conditional put",
        "it does not hold that a second write to the same key is refused",
    )
    assert not check.usable_profile().conditional
    assert len(check.limits) == 1


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EACCES, AuthError),
        (errno.EROFS, AuthError),
        (errno.ENOSPC, TryAgainError),
        (errno.EIO, TryAgainError),
    ],
)
def test_a_folder_that_fails_is_told_from_one_that_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[MoolaError]
) -> None:
    store = open_store(tmp_path.as_uri())
    store.put("key", b"bytes")

    def fail(_: Path) -> bytes:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(kind, match="the store's folder"):
        store.get("key")


# --- what only a network does -----------------------------------------------------------------


def once(fault: Callable[[Call], None], when: Callable[[Call], bool]) -> Callable[[Call], None]:
    """`fault` on the first call that `when` is true of."""
    left = [fault]

    def apply(call: Call) -> None:
        if when(call) and left:
            left.pop()(call)

    return apply


def lose(call: Call) -> None:
    call.lost = True


def cut(call: Call) -> None:
    call.cut = True


def shorten(call: Call) -> None:
    del call.reply[MIB:]


@pytest.mark.parametrize("integrity", ["crc64nvme", "md5"])
def test_a_byte_flipped_on_the_way_up_is_sent_again(
    proxy: Proxy, s3_url: str, integrity: str
) -> None:
    open_store(s3_url).put("profile.json", json.dumps({"integrity": integrity}).encode())
    store = open_store(s3_url)
    proxy.on_request = once(lambda call: flip(call.body), lambda call: call.is_part)
    assert store.upload("x", BytesSource(DATA), part_size=PART).sha256 == SHA256
    assert sum(call.is_part for call in proxy.calls) == N_PARTS + 1
    proxy.on_request = once(lambda call: flip(call.body), lambda call: call.method == "PUT")
    store.put_once("small", b"bytes")
    assert store.get("small") == b"bytes"
    assert b"".join(store.read_chunks("x", len(DATA))) == DATA


def test_a_line_that_always_flips_is_an_error_and_stores_nothing(
    proxied: Store, proxy: Proxy
) -> None:
    proxy.on_request = lambda call: flip(call.body) if call.is_part else None
    with pytest.raises(ArtifactError, match="x did not pass undamaged in 4 tries"):
        proxied.upload("x", BytesSource(DATA[: PART + 1]), part_size=PART)
    assert proxied.head("x") is None


@pytest.mark.parametrize(
    ("integrity", "declared"),
    [
        (
            "crc64nvme",
            {"x-amz-checksum-algorithm": "CRC64NVME", "x-amz-checksum-type": "FULL_OBJECT"},
        ),
        ("md5", {}),
    ],
)
def test_an_upload_in_parts_carries_the_checksums_of_its_profile_alone(
    proxy: Proxy, s3_url: str, integrity: str, declared: dict[str, str]
) -> None:
    open_store(s3_url).put("profile.json", json.dumps({"integrity": integrity}).encode())
    store = open_store(s3_url)
    stored = store.upload("x", BytesSource(DATA), part_size=PART)

    (begin,) = [call for call in proxy.calls if call.begins_parts]
    assert checksum_headers(begin) == declared

    parts = sorted((call for call in proxy.calls if call.is_part), key=lambda call: call.path)
    for number, call in enumerate(parts):
        data = DATA[number * PART : (number + 1) * PART]
        md5 = base64.b64encode(hashlib.md5(data).digest()).decode()
        by_profile = {"crc64nvme": {"x-amz-checksum-crc64nvme": crc64(data)}}
        assert checksum_headers(call) == by_profile.get(integrity, {"content-md5": md5})

    (complete,) = [call for call in proxy.calls if call.is_complete]
    whole = {
        "x-amz-checksum-crc64nvme": stored.crc64nvme,
        "x-amz-checksum-type": "FULL_OBJECT",
        "x-amz-mp-object-size": str(len(DATA)),
    }
    assert checksum_headers(complete) == (whole if integrity == "crc64nvme" else {})
    assert complete.headers["if-none-match"] == "*"


def checksum_headers(call: Call) -> dict[str, str]:
    """The headers by which the server verifies a body or an object."""
    starts = ("x-amz-checksum-", "x-amz-mp-", "content-md5")
    return {name: value for name, value in call.headers.items() if name.startswith(starts)}


@pytest.mark.parametrize("which", ["is_part", "is_complete"])
def test_a_lost_reply_is_no_harm(proxied: Store, proxy: Proxy, which: str) -> None:
    proxy.on_reply = once(lose, lambda call: getattr(call, which))
    assert proxied.upload("x", BytesSource(DATA), part_size=PART).sha256 == SHA256
    assert b"".join(proxied.read_chunks("x", len(DATA))) == DATA
    assert proxied.sweep(-60) == []


def test_a_lost_reply_to_a_small_write_is_no_conflict(proxied: Store, proxy: Proxy) -> None:
    proxy.on_reply = once(lose, lambda call: call.method == "PUT")
    proxied.put_once("COMMIT.json", b"{}")
    assert sum(call.method == "PUT" for call in proxy.calls) == 2


def test_a_byte_flipped_on_the_way_down_is_fetched_again(
    proxied: Store, proxy: Proxy, tmp_path: Path
) -> None:
    proxied.upload("x", BytesSource(DATA), part_size=PART)
    proxy.on_reply = once(lambda call: flip(call.reply), lambda call: call.method == "GET")
    proxied.pull("x", tmp_path / "x", size=len(DATA), sha256=SHA256)
    assert (tmp_path / "x").read_bytes() == DATA
    assert sum(call.method == "GET" for call in proxy.calls) == 2
    proxied.put("small", b"bytes")
    proxy.on_reply = once(lambda call: flip(call.reply), lambda call: call.method == "GET")
    assert proxied.get("small") == b"bytes"


def test_a_line_that_always_flips_on_the_way_down_gives_no_file(
    proxied: Store, proxy: Proxy, tmp_path: Path
) -> None:
    proxied.upload("x", BytesSource(DATA), part_size=PART)
    proxy.on_reply = lambda call: flip(call.reply) if call.method == "GET" else None
    with pytest.raises(ArtifactError, match=f"sha256 of x must be {SHA256}, got .* in 3 tries"):
        proxied.pull("x", tmp_path / "x", size=len(DATA), sha256=SHA256)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fault", [cut, shorten])
def test_a_reply_cut_short_is_fetched_again(
    proxied: Store, proxy: Proxy, tmp_path: Path, fault: Callable[[Call], None]
) -> None:
    proxied.upload("x", BytesSource(DATA), part_size=PART)
    proxy.on_reply = once(fault, lambda call: call.method == "GET")
    proxied.pull("x", tmp_path / "x", size=len(DATA), sha256=SHA256)
    assert sum(call.method == "GET" for call in proxy.calls) == 2


def test_a_signal_does_not_wait_for_a_store_that_hangs(
    proxy: Proxy, s3_url: str, tmp_path: Path
) -> None:
    """Ctrl-C while every reply to a part hangs: the process ends long before the read timeout."""
    release = threading.Event()
    proxy.on_reply = lambda call: release.wait(120) and None if call.is_part else None
    process, _ = start_uploader(s3_url, tmp_path, n_parts=0)
    while not any(call.is_part for call in proxy.calls):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    try:
        process.communicate(timeout=30)
    finally:
        release.set()
    assert process.returncode == -signal.SIGINT


def small_pages(store: Any, operation: str, field: str) -> None:
    """Make the server page by one, where a real listing pages by a thousand."""
    store._bucket.client.meta.events.register(
        f"provide-client-params.s3.{operation}", lambda params, **_: {**params, field: 1}
    )


def test_listings_of_several_pages_are_read_to_their_end(
    proxied: Store, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_pages(proxied, "ListParts", "MaxParts")
    small_pages(proxied, "ListObjectsV2", "MaxKeys")
    small_pages(proxied, "ListMultipartUploads", "MaxUploads")
    break_upload(proxied, tmp_path / "journal")
    proxy.calls.clear()
    sent = count_sent(proxied, monkeypatch)
    proxied.upload("attempt-2/x", BytesSource(DATA), journal=tmp_path / "journal")
    assert sent == [3]
    assert sum(call.method == "GET" and "uploadId" in call.path for call in proxy.calls) == 2
    for n in range(5):
        proxied.put(f"keys/{n}", b"")
        proxied.begin_parts(f"pending/{n}", PART)
    assert proxied.children("keys") == list("01234")
    assert proxied.sweep(-60) == [f"pending/{n}" for n in range(5)]


def test_a_missing_bucket_and_refused_credentials_are_told_apart(
    s3_url: str, seaweed: Seaweed, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="the bucket must exist: NoSuchBucket"):
        open_store("s3://no-such-bucket/x")
    for name, value in seaweed.environment("reader").items():
        monkeypatch.setenv(name, value)
    with pytest.raises(AuthError, match=r"they lack s3:PutObject .*: AccessDenied"):
        open_store(s3_url).put("x", b"")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    with pytest.raises(AuthError, match="SignatureDoesNotMatch") as caught:
        open_store(s3_url)
    assert "not-the-secret" not in str(caught.value)
    assert KEYS["reader"][1] not in str(caught.value)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    with pytest.raises(
        AuthError, match="the store needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    ):
        open_store(s3_url)


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("NoSuchBucket", 404, DataError),
        ("ExpiredToken", 401, ExpiredError),
        ("AccessDenied", 403, AuthError),
        ("NotImplemented", 501, DataError),
        ("MethodNotAllowed", 405, DataError),
        ("PermanentRedirect", 301, DataError),
        ("InternalError", 500, TryAgainError),
        ("ServiceUnavailable", 503, TryAgainError),
        ("TooManyRequests", 429, TryAgainError),
        ("SlowDown", 400, TryAgainError),
        ("RequestTimeout", 400, TryAgainError),
        ("NoSuchUpload", 404, ArtifactError),
        ("InvalidRequest", 400, ArtifactError),
        ("PreconditionFailed", 412, ArtifactError),
    ],
)
def test_an_error_response_says_what_can_be_done(
    code: str, status: int, kind: type[MoolaError]
) -> None:
    response = {
        "Error": {"Code": code, "Message": "why"},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    error = refusal(ClientError(response, "PutObject"), "s3://bucket/key")  # type: ignore[arg-type]
    assert type(error) is kind
    assert f"{code} ({status}) to PutObject: why (s3://bucket/key)" in str(error)


def test_an_object_that_shows_late_is_waited_for(
    proxied: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A provider is known to acknowledge an object before it can be seen."""
    heads: list[str] = []
    head = proxied.head

    def late_head(key: str) -> Head | None:
        heads.append(key)
        return head(key) if len(heads) > 3 else None  # the first look is before the upload

    monkeypatch.setattr(proxied, "head", late_head)
    monkeypatch.setattr("moola.store.s3.time.sleep", lambda _: None)
    assert proxied.upload("x", BytesSource(DATA), part_size=PART).sha256 == SHA256


@pytest.mark.parametrize("wrong", ["size", "crc64nvme"])
def test_an_object_completed_with_other_bytes_is_not_ours(
    proxied: Store, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    head = proxied.head

    def wrong_head(key: str) -> Head | None:
        seen = head(key)
        if seen is None:
            return None
        crc = "AAAAAAAAAAA=" if wrong == "crc64nvme" else crc64(DATA)
        return Head(seen.size + (wrong == "size"), seen.etag, crc)

    monkeypatch.setattr(proxied, "head", wrong_head)
    with pytest.raises(ConflictError, match="x is written once"):
        proxied.upload("x", BytesSource(DATA), part_size=PART)


def test_a_store_that_does_not_answer_is_to_be_tried_again(
    s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(TryAgainError, match=r"the store did not answer: .*127\.0\.0\.1:9"):
        open_store(s3_url)


def test_the_test_server_lets_no_stranger_in(seaweed: Seaweed) -> None:
    """Without credentials in its settings SeaweedFS makes everyone admin.

    Tests of refusals would then mean nothing.
    """
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{seaweed.endpoint}/{BUCKET}/")
    caught.value.close()
    assert caught.value.code == 403


@pytest.mark.usefixtures("s3_environment")
def test_uploads_and_pulls_work_over_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    paths = {name: tmp_path / f"{name}.pem" for name in ("ca", "stranger", "cert", "key")}
    authority.cert_pem.write_to_path(paths["ca"])
    stranger.cert_pem.write_to_path(paths["stranger"])
    certificate.cert_chain_pems[0].write_to_path(paths["cert"])
    certificate.private_key_pem.write_to_path(paths["key"])
    with running_seaweed(tls=(paths["cert"], paths["key"])) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.endpoint)
        monkeypatch.setenv("AWS_CA_BUNDLE", str(paths["ca"]))
        store = open_store(f"s3://{BUCKET}/tls")
        store.upload("x", BytesSource(DATA), part_size=PART)
        store.put_once("small", b"bytes")
        store.pull("x", tmp_path / "x", size=len(DATA), sha256=SHA256)
        assert (tmp_path / "x").read_bytes() == DATA
        assert store.get("small") == b"bytes"
        monkeypatch.setenv("AWS_CA_BUNDLE", str(paths["stranger"]))
        with pytest.raises(DataError, match=r"AWS_CA_BUNDLE.*CERTIFICATE_VERIFY_FAILED"):
            open_store(f"s3://{BUCKET}/tls")
