"""Windows over the feature rows: views, the valid mask, purged splits, and the bytes of the feature set on disk.

Everything is derived from `bars_11d` [n_bars, F]: window w is bars w..w+T-1, stride 1, N = n_bars - T + 1. A window is
a view; the 105-fold repetition exists only in the bytes of `features_11d.npy`, made on the fly by `WindowSource`.
"""

import hashlib
import io
import json
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.lib import format as npy
from numpy.typing import NDArray

from moola import WINDOW
from moola.errors import ArtifactError, DataError
from moola.specs import SplitConfig

FEATURES, BARS, MASK = "features_11d.npy", "bars_11d.npy", "valid_mask.npy"
METADATA, SPLITS_FILE, CLEAN_BARS = "metadata.json", "splits.json", "bars.parquet"
WARM_UP = 20  # first bars of a series, on which the averages have not settled
DEFAULT_ENDS = {"train": date(2024, 12, 31), "val": date(2025, 3, 31), "test": date(2025, 6, 30)}
SPLITS = tuple(DEFAULT_ENDS)


def window_view(rows: NDArray[Any]) -> NDArray[Any]:
    """[n_bars, ...] -> read-only view [N, T, ...] without a copy. Raises DataError below T rows."""
    if len(rows) < WINDOW:
        raise DataError(f"a window needs {WINDOW} bars, got {len(rows)}")
    shape = (len(rows) - WINDOW + 1, WINDOW, *rows.shape[1:])
    return np.lib.stride_tricks.as_strided(rows, shape, (rows.strides[0], *rows.strides), writeable=False)


def valid_rows(flagged: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[n_bars] True where a bar is past the warm-up and was not flagged."""
    valid = ~flagged
    valid[:WARM_UP] = False
    return valid


class WindowSource:
    """The bytes of `np.save(window_view(rows))`, any range of them, without the array ever existing.

    `rows` is C-contiguous, [n_bars] or [n_bars, F]. Implements the store's `Source`.
    """

    def __init__(self, rows: NDArray[Any]) -> None:
        rows = np.ascontiguousarray(rows)
        view = window_view(rows)
        self.shape, self.dtype = view.shape, view.dtype
        header = io.BytesIO()
        npy.write_array_header_1_0(
            header, {"descr": npy.dtype_to_descr(rows.dtype), "fortran_order": False, "shape": self.shape}
        )
        self._header = np.frombuffer(header.getvalue(), np.uint8)
        flat = rows.reshape(len(rows), -1).view(np.uint8)  # [n_bars, bytes of a row]
        self._windows = window_view(flat)  # [N, T, bytes of a row]
        self._window_bytes = WINDOW * flat.shape[1]
        self.size = len(self._header) + len(self._windows) * self._window_bytes

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the file's bytes from `offset` on. Raises ValueError past the end."""
        if offset < 0 or offset + len(buffer) > self.size:
            raise ValueError(f"bytes {offset}..{offset + len(buffer)} are outside a file of {self.size}")
        out = np.frombuffer(buffer, np.uint8)
        head = self._header[offset : offset + len(out)]
        out[: len(head)] = head
        self._fill(offset + len(head) - len(self._header), out[len(head) :])

    def _fill(self, start: int, out: NDArray[np.uint8]) -> None:
        """Window bytes from `start` on: the rest of a window, whole windows in one copy, the start of a window."""
        window, skip = divmod(start, self._window_bytes)
        if skip:
            rest = self._windows[window].reshape(-1)[skip : skip + len(out)]
            out[: len(rest)] = rest
            out, window = out[len(rest) :], window + 1
        whole, tail = divmod(len(out), self._window_bytes)
        np.copyto(out[: len(out) - tail].reshape(whole, *self._windows.shape[1:]), self._windows[window:][:whole])
        if tail:
            out[len(out) - tail :] = self._windows[window + whole].reshape(-1)[:tail]


def source_sha256(source: WindowSource, on_progress: Callable[[int], None] | None = None) -> str:
    """sha256 of all bytes of `source`: one thread makes them, one hashes them, four 4 MiB buffers in all."""
    size, digest, pending = 4 << 20, hashlib.sha256(), deque[Future[None]]()
    buffers = [bytearray(size) for _ in range(4)]  # so that the hash never waits for the next
    with ThreadPoolExecutor(1) as hasher:
        for i, offset in enumerate(range(0, source.size, size)):
            if len(pending) == len(buffers):
                pending.popleft().result()
            part = memoryview(buffers[i % len(buffers)])[: source.size - offset]
            source.read_into(offset, part)
            pending.append(hasher.submit(digest.update, part))
            if on_progress:
                on_progress(len(part))
        for last in pending:
            last.result()
    return digest.hexdigest()


def rebuild(folder: Path, item: dict[str, Any], on_progress: Callable[[int], None] | None = None) -> None:
    """Write the file that a manifest records as derived: the windows of `bars_11d.npy`, to the recorded sha256.

    Raises ArtifactError if the bytes are others; then nothing is left under the file's name.
    """
    path = folder / item["path"]
    source = WindowSource(np.load(folder / BARS, mmap_mode="r"))
    part, digest = path.with_name(path.name + ".part"), hashlib.sha256()
    buffer = bytearray(8 << 20)
    with part.open("wb") as stream:
        for offset in range(0, source.size, len(buffer)):
            chunk = memoryview(buffer)[: source.size - offset]
            source.read_into(offset, chunk)
            stream.write(chunk)
            digest.update(chunk)
            if on_progress:
                on_progress(len(chunk))
        stream.flush()
        os.fsync(stream.fileno())
    if digest.hexdigest() != item["sha256"]:
        part.unlink()
        raise ArtifactError(f"sha256 of the rebuilt {item['path']} must be {item['sha256']}, got {digest.hexdigest()}")
    part.replace(path)


@dataclass(frozen=True)
class Split:
    """Windows [start, stop); they cover the bars [start, stop + T - 1) and no other split's."""

    start: int
    stop: int


def split_windows(times: pd.DatetimeIndex, config: SplitConfig) -> tuple[str, dict[str, Split]]:
    """("dates" | "fractions", {"train": Split, "val": Split, "test": Split}) for bars that opened at `times` (UTC).

    Cuts fall between bars; a window belongs to a split only if all its bars do, so T - 1 windows are purged at each
    cut. Raises DataError if a split would be without a window.
    """
    dates = {"train": config.train_end, "val": config.val_end, "test": config.test_end}
    ends = {name: dates[name] or DEFAULT_ENDS[name] for name in SPLITS}
    by_date = any(dates.values()) or _default_dates_hold(times, config)
    if by_date:
        if not ends["train"] < ends["val"] < ends["test"]:
            raise DataError(f"splits must be in order: train_end < val_end < test_end, got {_text(ends)}")
        cuts, why = _cuts(times, ends), _text(ends)
    else:
        cuts = [round(len(times) * float(share)) for share in np.cumsum(config.fractions)]
        why = f"fractions {config.fractions}"
    splits = {}
    for name, first, stop in zip(SPLITS, [0, *cuts], cuts, strict=False):
        if stop - first < WINDOW:
            raise DataError(
                f"each split needs a window of {WINDOW} bars: {name} has {max(stop - first, 0)} "
                f"of the {len(times)} bars from {times[0]:%Y-%m-%d} to {times[-1]:%Y-%m-%d} "
                f"({f'splits.{name}_end' if by_date else 'splits'}, {why})"
            )
        splits[name] = Split(first, stop - WINDOW + 1)
    return ("dates" if by_date else "fractions"), splits


def _default_dates_hold(times: pd.DatetimeIndex, config: SplitConfig) -> bool:
    """Not where fractions were asked for, nor where the bars end so early or start so late that a split is empty."""
    if config.fractions != SplitConfig().fractions or times[-1] < _day_after(DEFAULT_ENDS["test"]):
        return False
    return bool((np.diff([0, *_cuts(times, DEFAULT_ENDS)]) >= WINDOW).all())


def _cuts(times: pd.DatetimeIndex, ends: dict[str, date]) -> list[int]:
    """The first bar after each end."""
    return [int(times.searchsorted(_day_after(ends[name]))) for name in SPLITS]


def _day_after(day: date) -> pd.Timestamp:
    return pd.Timestamp(day, tz="UTC") + pd.Timedelta(days=1)


def _text(ends: dict[str, date]) -> str:
    return " / ".join(str(ends[name]) for name in SPLITS)


def splits_document(rule: str, splits: dict[str, Split], times: pd.DatetimeIndex) -> dict[str, Any]:
    """splits.json: window ranges with the time of their first and last bar."""
    spans = {
        name: {
            "start": split.start,
            "stop": split.stop,
            "first_bar": times[split.start].isoformat(),
            "last_bar": times[split.stop + WINDOW - 2].isoformat(),
        }
        for name, split in splits.items()
    }
    return {"rule": rule, "purged_windows_per_cut": WINDOW - 1, **spans}


def read_splits(document: dict[str, Any]) -> dict[str, Split]:
    """The inverse of `splits_document`."""
    return {name: Split(int(document[name]["start"]), int(document[name]["stop"])) for name in SPLITS}


@dataclass(frozen=True)
class FeatureSet:
    """A feature set as it is read back: rows [n_bars, F] float32, valid [n_bars], and what describes them.

    `bars` are the bars it was made from: UTC minutes, open, high, low, close.
    """

    rows: NDArray[np.float32]
    valid: NDArray[np.bool_]
    splits: dict[str, Split]
    metadata: dict[str, Any]
    bars: pd.DataFrame

    @property
    def times(self) -> pd.DatetimeIndex:
        return pd.DatetimeIndex(self.bars.index)


FEATURE_SET_FILES = (BARS, MASK, METADATA, SPLITS_FILE, CLEAN_BARS)  # all that `read_feature_set` reads


def read_feature_set(folder: Path, n_features: int) -> FeatureSet:
    """The feature set in a pulled folder. Raises ArtifactError if a file is missing, DataError for another width."""
    missing = [name for name in FEATURE_SET_FILES if not (folder / name).exists()]
    if missing:
        names = ", ".join(FEATURE_SET_FILES)
        raise ArtifactError(f"a feature set has {names}; {', '.join(missing)} is missing ({folder})")
    rows = np.load(folder / BARS)
    if rows.ndim != 2 or rows.shape[1] != n_features:
        raise DataError(f"a feature set must have {n_features} features, got {list(rows.shape)} ({folder / BARS})")
    mask = np.load(folder / MASK, mmap_mode="r")
    bars = pd.read_parquet(folder / CLEAN_BARS).set_index("timestamp")
    return FeatureSet(
        rows,
        np.concatenate([mask[0], mask[1:, -1]]),
        read_splits(json.loads((folder / SPLITS_FILE).read_text())),
        json.loads((folder / METADATA).read_text()),
        bars,
    )


def window_weights(n_bars: int) -> NDArray[np.int64]:
    """[n_bars] how many windows each bar is in: 1, 2, ..., T, ..., T, ..., 2, 1."""
    from_start = np.arange(1, n_bars + 1)
    return np.minimum(np.minimum(from_start, from_start[::-1]), min(WINDOW, n_bars - WINDOW + 1))


def density(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """[F] fraction of non-zero values over all windows, from the rows [n_bars, F]."""
    return _weighted(rows != 0)


def valid_ratio(valid: NDArray[np.bool_]) -> float:
    """Fraction of True in the mask [N, T], from the rows [n_bars]."""
    return float(_weighted(valid[:, None])[0])


def _weighted(hits: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[n_bars, F] -> [F] mean over all windows: every bar counts as often as windows hold it."""
    weights = window_weights(len(hits))
    most = weights.max()
    # Nearly all bars are in the most windows: those are only counted, and what the two ends have less is taken off.
    ends = np.flatnonzero(weights < most)
    total = most * np.count_nonzero(hits, axis=0) - (most - weights[ends]) @ hits[ends]
    return np.asarray(total / weights.sum())


def to_npy(array: NDArray[Any]) -> bytes:
    """The bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def to_json(document: dict[str, Any]) -> bytes:
    """Indented JSON, one trailing newline."""
    return (json.dumps(document, indent=2, allow_nan=False) + "\n").encode()
