"""Windows over the feature rows: views, their bytes as a file, the valid mask, means over windows.

Everything is derived from `bars_11d` [n_bars, F]: window w is bars w..w+T-1, stride 1, and there
are N = n_bars - T + 1. A window is a view; the 105-fold repetition exists only in the bytes of
`features_11d.npy`, made as they are read by `WindowSource`.
"""

import hashlib
import io
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
from numpy.lib import format as npy

from moola import PRICES, WINDOW
from moola.errors import DataError
from moola.features import compute_features
from moola.features.arrays import (
    Array,
    Bytes,
    Flags,
    Float32s,
    Floats,
    Ints,
)
from moola.specs import FeatureConfig

WARM_UP = 20  # first bars of a series, on which the averages have not settled

_HASH_BYTES = 4 << 20  # in one buffer
_HASH_BUFFERS = 4  # so that the hash never waits for the next


def window_view(rows: Array) -> Array:
    """[n_bars, ...] -> read-only view [N, T, ...] without a copy. Raises DataError below T rows."""
    if len(rows) < WINDOW:
        raise DataError(f"a window needs {WINDOW} bars, got {len(rows)}")

    n_windows = len(rows) - WINDOW + 1
    shape = (n_windows, WINDOW, *rows.shape[1:])
    strides = (rows.strides[0], *rows.strides)

    return np.lib.stride_tricks.as_strided(
        rows,
        shape,
        strides,
        writeable=False,
    )


def valid_rows(flagged: Flags) -> Flags:
    """[n_bars] True where a bar is past the warm-up and was not flagged."""
    valid = ~flagged
    valid[:WARM_UP] = False
    return valid


def rows_of_mask(mask: Flags) -> Flags:
    """[N, T] -> [n_bars]: the inverse of `window_view`."""
    first = mask[0]
    last_of_others = mask[1:, -1]
    return np.concatenate([first, last_of_others])


def features_of_windows(bars: Floats, config: FeatureConfig) -> tuple[Float32s, Flags]:
    """Bars [n, T, 4] -> (features [n, T, F], valid [n, T]).

    Each window is a series of its own, with a warm-up of its own.
    """
    features = []

    for window in bars:
        frame = pd.DataFrame(window, columns=list(PRICES))
        features.append(compute_features(frame, config))

    flagged = np.zeros(WINDOW, np.bool_)
    valid = np.tile(valid_rows(flagged), (len(bars), 1))

    return np.stack(features), valid


# --- the bytes of all windows ---------------------------------------------------------------------


class WindowSource:
    """The bytes of `np.save(window_view(rows))`, any range of them; the array never exists.

    `rows` is C-contiguous, [n_bars] or [n_bars, F]. Implements the store's `Source`.
    """

    def __init__(self, rows: Array) -> None:
        rows = np.ascontiguousarray(rows)
        view = window_view(rows)
        self.shape = view.shape
        self.dtype = view.dtype
        self._header = _npy_header(self.shape, self.dtype)

        row_bytes = rows.reshape(len(rows), -1).view(np.uint8)  # [n_bars, bytes of a row]
        self._windows = window_view(row_bytes)  # [N, T, bytes of a row]
        self._window_bytes = WINDOW * row_bytes.shape[1]
        self.size = len(self._header) + len(self._windows) * self._window_bytes

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fills `buffer` with the file's bytes from `offset` on. Raises ValueError past the end."""
        stop = offset + len(buffer)
        if offset < 0 or stop > self.size:
            raise ValueError(f"bytes {offset}..{stop} are outside a file of {self.size}")

        out = np.frombuffer(buffer, np.uint8)
        head = self._header[offset : offset + len(out)]
        out[: len(head)] = head

        window_offset = offset + len(head) - len(self._header)
        self._fill(window_offset, out[len(head) :])

    def _fill(self, offset: int, out: Bytes) -> None:
        """Window bytes from `offset` on: the rest of a window, whole ones, the head of a window."""
        window, skip = divmod(offset, self._window_bytes)

        if skip:
            window_bytes = self._windows[window].reshape(-1)
            rest = window_bytes[skip : skip + len(out)]
            out[: len(rest)] = rest
            out = out[len(rest) :]
            window += 1

        n_whole, tail = divmod(len(out), self._window_bytes)
        stop = len(out) - tail
        whole = self._windows[window : window + n_whole]
        np.copyto(out[:stop].reshape(whole.shape), whole)

        if tail:
            last = self._windows[window + n_whole].reshape(-1)
            out[stop:] = last[:tail]


def _npy_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Bytes:
    stream = io.BytesIO()
    fields = {
        "descr": npy.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": shape,
    }
    npy.write_array_header_1_0(stream, fields)

    return np.frombuffer(stream.getvalue(), np.uint8)


def source_sha256(
    source: WindowSource,
    on_progress: Callable[[int], None] | None = None,
) -> str:
    """sha256 of all bytes of `source`: one thread makes them, one hashes them, in a few buffers."""
    digest = hashlib.sha256()
    buffers = [bytearray(_HASH_BYTES) for _ in range(_HASH_BUFFERS)]
    pending = deque[Future[None]]()

    with ThreadPoolExecutor(1) as hasher:
        for i, offset in enumerate(range(0, source.size, _HASH_BYTES)):
            if len(pending) == len(buffers):
                pending.popleft().result()

            buffer = memoryview(buffers[i % len(buffers)])
            part = buffer[: source.size - offset]
            source.read_into(offset, part)
            pending.append(hasher.submit(digest.update, part))

            if on_progress:
                on_progress(len(part))

        for last in pending:
            last.result()

    return digest.hexdigest()


# --- means over all windows -----------------------------------------------------------------------


def window_weights(n_bars: int) -> Ints:
    """[n_bars] how many windows each bar is in: 1, 2, ..., T, ..., T, ..., 2, 1."""
    from_first = np.arange(1, n_bars + 1)
    from_last = from_first[::-1]
    most = min(WINDOW, n_bars - WINDOW + 1)

    return np.minimum(np.minimum(from_first, from_last), most)


def density(rows: Float32s) -> Floats:
    """[F] fraction of non-zero values over all windows, from the rows [n_bars, F]."""
    return _mean_over_windows(rows != 0)


def valid_ratio(valid: Flags) -> float:
    """Fraction of True in the mask [N, T], from the rows [n_bars]."""
    return float(_mean_over_windows(valid[:, None])[0])


def _mean_over_windows(hits: Flags) -> Floats:
    """[n_bars, F] -> [F]: every bar counts as often as windows hold it."""
    weights = window_weights(len(hits))
    most = weights.max()

    # Nearly all bars are in the most windows: those are only counted, and what the two ends have
    # less is taken off.
    ends = np.flatnonzero(weights < most)
    missing = (most - weights[ends]) @ hits[ends]
    total = most * np.count_nonzero(hits, axis=0) - missing

    return np.asarray(total / weights.sum())
