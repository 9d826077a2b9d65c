"""What kind of file it is, told by its first bytes: the container is opened, or refused by name
with the way out.
"""

import lzma
import struct
import zipfile
import zlib
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa

from moola.errors import DataError
from moola.text import shortened

Kind = Literal["parquet", "arrow", "dbn", "text", "json"]
Contents = Literal["bars", "labels"]
Compression = Literal["gzip", "zstd", "bz2", "zip"]

# What libraries raise for a file that is damaged, or packed in a way they do not know.
UNREADABLE: tuple[type[Exception], ...] = (
    pa.ArrowException,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
)

HEAD_BYTES = 1 << 20  # of the contents, enough to see what a table looks like
MAX_TEXT_BYTES = 16 << 30  # unpacked: ten times a century of minutes

_STREAMS: dict[bytes, Compression] = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bz2",
}
_KINDS: dict[bytes, Kind] = {
    b"PAR1": "parquet",
    b"ARROW1": "arrow",
    b"\xff\xff\xff\xff": "arrow",  # the stream format
    b"DBN": "dbn",
}

# First bytes -> what it is and the way out.
_REFUSED: tuple[tuple[bytes, str, str], ...] = (
    (b"PARE", "an encrypted parquet file", "decrypt it first"),
    (
        b"FEA1",
        "a Feather file of version 1",
        "write it again with pandas.DataFrame.to_feather",
    ),
    (
        b"\xd0\xcf\x11\xe0",
        "an old spreadsheet (.xls)",
        "save it as CSV",
    ),
    (b"\xfd7zXZ\x00", "packed with xz", "unpack it first: xz -d FILE"),
    (
        b"\x04\x22\x4d\x18",
        "packed with lz4",
        "unpack it first: lz4 -d FILE",
    ),
    (
        b"7z\xbc\xaf\x27\x1c",
        "a 7z archive",
        "unpack it and name the folder",
    ),
    (b"Rar!", "a rar archive", "unpack it and name the folder"),
    (
        b"\x89HDF\r\n",
        "an HDF5 file",
        "read it with pandas.read_hdf, write it with to_parquet",
    ),
    (
        b"\x93NUMPY",
        "a NumPy array",
        "write a table with column names, such as parquet",
    ),
    (
        b"SQLite format 3",
        "an SQLite database",
        "export the table as CSV",
    ),
    (
        b"ORC",
        "an ORC file",
        "write it as parquet: pyarrow.orc.read_table",
    ),
    (b"Obj\x01", "an Avro file", "write it as parquet"),
    (
        b"RDX",
        "an R data file",
        "write it with data.table::fwrite or arrow::write_parquet",
    ),
    (
        b"SCID",
        "Sierra Chart's own file (.scid)",
        "export it as text: Edit > Export Bar and Study Data",
    ),
    (
        b"\x91\x01\x00\x00",
        "MetaTrader 4's own file (.hst)",
        "export it as CSV in the History Center",
    ),
    (b"%PDF", "a PDF", "look for a download as CSV"),
    (
        b"\xff\xfe\0\0",
        "text in UTF-32",
        "save it as UTF-8: iconv -f UTF-32 -t UTF-8 FILE > utf8.csv",
    ),
    (
        b"version https://git-lfs",
        "a pointer of Git LFS and not the file itself",
        "fetch the file: git lfs pull",
    ),
    (
        b"\xff\xfe",
        "text in UTF-16",
        "save it as UTF-8: iconv -f UTF-16 -t UTF-8 FILE > utf8.csv",
    ),
    (
        b"\xfe\xff",
        "text in UTF-16",
        "save it as UTF-8: iconv -f UTF-16 -t UTF-8 FILE > utf8.csv",
    ),
)
# Files that vendors put beside the bars, by the end of their name.
_BESIDE = (
    ".json",
    ".md",
    ".html",
    ".htm",
    ".pdf",
    ".log",
    ".sha256",
    ".md5",
)
_READ: dict[Contents, str] = {
    "bars": "parquet, Arrow, DBN or CSV",
    "labels": "parquet, Arrow, CSV or JSON",
}
_PICKLE_PROTOCOLS = frozenset(b"\x80" + bytes([protocol]) for protocol in range(2, 6))
_TAR_MAGIC = slice(257, 262)


@dataclass(frozen=True)
class Container:
    """How the table is packed. `member` is the file inside a zip; `head` are the first bytes of the
    contents.
    """

    path: Path
    kind: Kind
    compression: Compression | None
    member: str | None
    head: bytes

    @property
    def name(self) -> str:
        """Such as "text", "zstd of dbn", "zip of text"."""
        return self.kind if self.compression is None else f"{self.compression} of {self.kind}"

    def stream(self) -> pa.NativeFile:
        """The contents from their beginning; a compressed file is unpacked on the way."""
        return _stream(self.path, self.compression, self.member)


def open_container(path: Path, contents: Contents = "bars") -> Container:
    """The container of a local file. Raises DataError for a kind that is not read, with the way
    out. JSON is read where it holds labels.
    """
    if not path.is_file():
        raise DataError(f"{contents} must be a file, and there is none at {path}")

    with path.open("rb") as file:
        first = file.read(512)
    if not first:
        raise DataError(f"a file must hold {contents}, and this one is empty ({path.name})")

    compression, member = _compression(path, first, contents)
    try:
        with closing(_stream(path, compression, member)) as stream:
            head = stream.read(HEAD_BYTES)
    except UNREADABLE as error:
        raise DataError(f"the file must be whole: {shortened(str(error))} ({path.name})") from error

    kind = _kind(path, head, contents)
    if kind in ("parquet", "arrow") and compression is not None:
        raise DataError(f"a {kind} file is not packed again: unpack it first ({path.name})")

    return Container(path, kind, compression, member, head)


def is_beside(name: str) -> bool:
    """Whether a file in a folder holds no bars: hidden, a marker, a vendor's note."""
    lower = name.lower()
    return lower.startswith((".", "_", "readme")) or lower.endswith(_BESIDE)


def _compression(
    path: Path, first: bytes, contents: Contents
) -> tuple[Compression | None, str | None]:
    if first.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip", _only_member(path, contents)

    for magic, compression in _STREAMS.items():
        if first.startswith(magic):
            return compression, None
    return None, None


def _stream(path: Path, compression: Compression | None, member: str | None) -> pa.NativeFile:
    if compression is None:
        return pa.OSFile(str(path))
    if compression == "zip":
        assert member is not None
        with zipfile.ZipFile(path) as archive:  # the member stays open behind it
            return pa.PythonFile(archive.open(member), mode="r")
    return pa.CompressedInputStream(pa.OSFile(str(path)), compression)


def _only_member(path: Path, contents: Contents) -> str:
    """The one file in a zip. A text of the same name beside a CSV is the vendor's note on it
    (HistData).
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    except UNREADABLE as error:
        raise DataError(f"the zip must be whole: {shortened(str(error))} ({path.name})") from error

    names = [entry.filename for entry in entries if not _is_hidden(entry.filename)]
    if any(name.startswith("xl/") for name in names):
        raise DataError(
            f"{contents} must be a table, and this is a spreadsheet: save it as CSV ({path.name})"
        )
    if "content.xml" in names:
        raise DataError(
            f"{contents} must be a table, and this is a document: save it as CSV ({path.name})"
        )
    if any(entry.flag_bits & 1 for entry in entries):
        raise DataError(f"a zip must not be encrypted: unpack it first ({path.name})")

    if not names:
        raise DataError(f"a zip must hold a file, and this one is empty ({path.name})")

    if len(names) == 2:
        tables = [name for name in names if name.lower().endswith(".csv")]
        notes = {name[:-4] for name in names if name.lower().endswith(".txt")}
        if len(tables) == 1 and notes == {tables[0][:-4]}:
            names = tables
    if len(names) > 1:
        names = [name for name in names if not is_beside(Path(name).name)] or names

    if len(names) != 1:
        some = ", ".join(map(shortened, names[:3])) + (", ..." if len(names) > 3 else "")
        then = "name the folder" if contents == "bars" else "name the file with the labels"
        raise DataError(
            f"a zip must hold one file, and this one holds {len(names)} ({some}): unpack it and "
            f"{then}: unzip {path.name} -d {contents}, then --{contents} {contents} ({path.name})"
        )
    return names[0]


def _is_hidden(name: str) -> bool:
    return name.startswith("__MACOSX/") or Path(name).name.startswith(".")


def _kind(path: Path, head: bytes, contents: Contents) -> Kind:
    if contents == "labels" and _is_json(head):
        return "json"
    for magic, kind in _KINDS.items():
        if head.startswith(magic):
            return kind

    refusal = _refusal(head)
    if refusal is not None:
        what, way_out = refusal
        raise DataError(
            f"{contents} must be {_READ[contents]}, and this is {what}: {way_out} ({path.name})"
        )
    return "text"


def _is_json(head: bytes) -> bool:
    return _visible(head).startswith((b"{", b"["))


def _visible(head: bytes) -> bytes:
    """The first bytes behind a byte order mark and blanks."""
    return head[:256].lstrip(b"\xef\xbb\xbf \t\r\n").lower()


def _refusal(head: bytes) -> tuple[str, str] | None:
    """What is not read, and the way out; None for text."""
    for magic, what, way_out in _REFUSED:
        if head.startswith(magic):
            return what, way_out

    if head[:2] in _PICKLE_PROTOCOLS:
        return (
            "a Python pickle, which could run code",
            "write it with pandas.DataFrame.to_parquet",
        )
    if head[_TAR_MAGIC] == b"ustar":
        return (
            "a tar archive",
            "unpack it and name the folder: tar -xf FILE -C bars",
        )
    if head.startswith((b"PK\x03\x04", *_STREAMS)):
        return "packed twice", "unpack it first"

    start = _visible(head)
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<table")):
        return (
            "a web page",
            "look whether the download needs a login, or save it as CSV",
        )
    if _is_json(head):
        return (
            "JSON",
            "read it with pandas.read_json, write it with to_parquet",
        )

    if abs(head[0:80:2].count(b"\0") - head[1:80:2].count(b"\0")) > 30:
        return (
            "text in UTF-16",
            "save it as UTF-8: iconv -f UTF-16LE -t UTF-8 FILE > utf8.csv",
        )
    if b"\0" in head[:4096]:
        return (
            "a binary file of a kind that is not known here",
            "export it as CSV or parquet",
        )
    return None
