"""A feature set on disk: the names of its files, and how they are read back and rebuilt."""

import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from moola import PRICES, WINDOW
from moola.data.feature_records import FeatureMetadata, SplitsDocument
from moola.data.npy import load_array
from moola.data.splits import Split
from moola.data.windows import WindowSource, rows_of_mask
from moola.errors import ArtifactError, DataError
from moola.features.arrays import Array, Flags, Float32s
from moola.runs.records import DerivedEntry, Record, parse_record
from moola.store import MAX_DOCUMENT_BYTES, Folder
from moola.store.folder import part_name, write_all
from moola.text import quoted

FEATURES = "features_11d.npy"
BARS = "bars_11d.npy"
MASK = "valid_mask.npy"
METADATA = "metadata.json"
SPLITS_FILE = "splits.json"
CLEAN_BARS = "bars.parquet"
MOVES = "moves.parquet"  # of synthetic bars: the planted truth

FEATURE_SET_FILES = (BARS, MASK, METADATA, SPLITS_FILE, CLEAN_BARS)  # what `read_feature_set` reads

WINDOWS_RULE = f"windows of {BARS}"  # by which FEATURES is rebuilt

_REBUILD_BYTES = 8 << 20  # written and hashed at a time


@dataclass(frozen=True)
class FeatureSet:
    """A feature set as it is read back.

    rows      [n_bars, F] float32
    valid     [n_bars] False in the warm-up and where a bar was flagged
    bars      what it was made from: UTC minutes, open, high, low, close; none where the rows are
              those of windows that lie in no series, laid end to end
    """

    rows: Float32s
    valid: Flags
    splits: dict[str, Split]
    metadata: FeatureMetadata
    bars: pd.DataFrame

    @property
    def is_series(self) -> bool:
        return len(self.bars) > 0

    @property
    def times(self) -> pd.DatetimeIndex:
        return pd.DatetimeIndex(self.bars.index)


def read_feature_set(folder: Path, n_features: int) -> FeatureSet:
    """The feature set in a pulled folder.

    Raises ArtifactError if a file is missing, DataError where it has another number of features.
    """
    missing = [name for name in FEATURE_SET_FILES if not (folder / name).exists()]
    if missing:
        raise ArtifactError(
            f"a feature set has {', '.join(FEATURE_SET_FILES)}; {', '.join(missing)} is missing "
            f"({folder})"
        )

    rows = load_array(folder / BARS, np.float32)
    if rows.ndim != 2 or rows.shape[1] != n_features:
        raise DataError(
            f"a feature set must have {n_features} features, got {list(rows.shape)} "
            f"({folder / BARS})"
        )
    _require_shape(rows, (max(len(rows), WINDOW), n_features), folder / BARS)

    n_windows = len(rows) - WINDOW + 1
    mask = load_array(folder / MASK, np.bool_, mapped=True)
    _require_shape(mask, (n_windows, WINDOW), folder / MASK)

    metadata, splits = read_documents(folder)
    for name, split in splits.items():
        if not split.start < split.stop <= n_windows:
            raise ArtifactError(
                f"{folder / SPLITS_FILE} is damaged: {name} must lie in 0..{n_windows}, "
                f"got {split.start}..{split.stop}"
            )

    metadata.feature_config()
    return FeatureSet(
        rows=rows,
        valid=rows_of_mask(mask),
        splits=splits,
        metadata=metadata,
        bars=read_clean_bars(folder, len(rows)),
    )


def read_documents(folder: Path) -> tuple[FeatureMetadata, dict[str, Split]]:
    """metadata.json and splits.json of a pulled folder. Raises ArtifactError."""
    metadata = _read_document(folder / METADATA, FeatureMetadata)
    splits = _read_document(folder / SPLITS_FILE, SplitsDocument)
    return metadata, splits.splits()


DocumentType = TypeVar("DocumentType", bound=Record)


def _read_document(path: Path, kind: type[DocumentType]) -> DocumentType:
    """A JSON file of the set, read no further than a document may be long."""
    with path.open("rb") as stream:
        data = stream.read(MAX_DOCUMENT_BYTES + 1)
    return parse_record(kind, data, str(path))


def _require_shape(array: Array, shape: tuple[int, ...], path: Path) -> None:
    if array.shape != shape:
        raise ArtifactError(
            f"{path} is damaged: its shape must be {list(shape)}, got {list(array.shape)}"
        )


def read_clean_bars(folder: Path, n_bars: int | None) -> pd.DataFrame:
    """The bars that precompute wrote, as many as there must be, where that is known.

    Raises ArtifactError for a file that cannot be theirs.
    """
    path = folder / CLEAN_BARS
    columns = ["timestamp", *PRICES]
    try:
        file = pa.parquet.ParquetFile(path)
        n_rows = file.metadata.num_rows
        types = {name: file.schema_arrow.field(name).type for name in columns}
        is_numbers = all(pa.types.is_floating(types[name]) for name in PRICES)
        is_whole = n_bars in (None, n_rows)
        if not is_whole or not is_numbers or not pa.types.is_timestamp(types["timestamp"]):
            raise ValueError(f"must have {n_bars} bars, got {n_rows} rows of {types}")
        frame: pd.DataFrame = file.read().to_pandas().set_index("timestamp")
        index = frame.index
        if not isinstance(index, pd.DatetimeIndex) or index.tz is None:
            raise ValueError("must have times in UTC")
        if not index.is_monotonic_increasing:
            raise ValueError("must be in time order")
        prices = frame[list(PRICES)].to_numpy()
        if not np.isfinite(prices).all():
            raise ValueError("prices must be finite")
    except (pa.ArrowException, OSError, ValueError, KeyError, AttributeError) as error:
        raise ArtifactError(f"{path} is damaged: {error}") from error
    return frame


def rebuild(
    folder: Path,
    item: DerivedEntry,
    on_progress: Callable[[int], None] | None = None,
) -> None:
    """Writes the file that a manifest records as derived: the windows of `bars_11d.npy`.

    Raises ArtifactError if the rule is another one, or if the bytes have another size or sha256;
    then nothing is left under the file's name.
    """
    if item.rule != WINDOWS_RULE or item.path != FEATURES:
        raise ArtifactError(
            f"only {FEATURES} is rebuilt, as {WINDOWS_RULE!r}; "
            f"got {quoted(item.path)} as {quoted(item.rule)}"
        )
    rows = load_array(folder / BARS, np.float32, mapped=True)
    if rows.ndim != 2 or len(rows) < WINDOW:
        raise ArtifactError(f"{folder / BARS} must be [n_bars, F], got {list(rows.shape)}")
    source = WindowSource(rows)
    if source.size != item.size:
        raise ArtifactError(f"{item.path} must have {source.size} B, the manifest has {item.size}")

    target = Folder(folder)
    part = part_name(item.path)
    sha256 = _write(source, target, part, on_progress)

    if sha256 != item.sha256:
        target.remove(part)
        raise ArtifactError(
            f"sha256 of the rebuilt {item.path} must be {item.sha256}, got {sha256}"
        )

    target.rename(part, item.path)


def _write(
    source: WindowSource,
    folder: Folder,
    path: str,
    on_progress: Callable[[int], None] | None,
) -> str:
    """Writes all bytes of `source` to the disk; their sha256."""
    digest = hashlib.sha256()
    buffer = bytearray(_REBUILD_BYTES)

    with folder.open_to_append(path) as stream:
        stream.truncate(0)
        for offset in range(0, source.size, len(buffer)):
            chunk = memoryview(buffer)[: source.size - offset]
            source.read_into(offset, chunk)
            write_all(stream, chunk)
            digest.update(chunk)

            if on_progress:
                on_progress(len(chunk))

        os.fsync(stream.fileno())

    return digest.hexdigest()


def to_npy(array: Array) -> bytes:
    """The bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def to_json(document: Mapping[str, object]) -> bytes:
    """Indented JSON, one trailing newline."""
    return (json.dumps(document, indent=2, allow_nan=False) + "\n").encode()


@dataclass(frozen=True)
class Series:
    """What labels need of a feature set.

    bars     UTC minutes, open, high, low, close
    dropped  minutes whose rows were dropped
    rolls    minutes from which on the bars are those of another contract
    moves    the file of the planted truth, which only synthetic bars have
    metadata how its features were made
    """

    run: str
    bars: pd.DataFrame
    dropped: tuple[pd.Timestamp, ...]
    rolls: tuple[pd.Timestamp, ...]
    splits: Mapping[str, Split]
    moves: Path
    metadata: FeatureMetadata

    @property
    def times(self) -> pd.DatetimeIndex:
        return pd.DatetimeIndex(self.bars.index)
