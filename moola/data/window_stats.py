"""Statistics over all windows of a feature set: ranges, density, liveness, whether they slide.

Two ways to the same numbers: one pass over the bytes of `features_11d.npy`, and a closed form over
the rows of `bars_11d.npy`.
"""

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numba
import numpy as np

from moola import WINDOW
from moola.data.npy import HEADER_BYTES, NpyHeader, read_header
from moola.data.windows import density, window_view
from moola.features import N_FEATURES
from moola.features.arrays import Flags, Float32s, Floats, Ints

Chunks = Iterable[bytes | memoryview]

_NONFINITE, _SLIDE = range(2)  # what `_accumulate` counts as faults
MAX_FEATURES = 1024  # of a set that is read at all; more would not fit into memory


@dataclass(frozen=True)
class WindowStats:
    """What one look at all windows gives.

    minimum, maximum  [F]
    density           [F] fraction of non-zero values
    live              [T, F] whether the value varies from window to window
    n_slide_faults    windows that are not the window before moved by one bar
    """

    n_windows: int
    minimum: Float32s
    maximum: Float32s
    density: Floats
    live: Flags
    n_nonfinite: int
    n_slide_faults: int


# --- one pass over every window -------------------------------------------------------------------


def stats_of_stream(
    chunks: Chunks,
    rows: Float32s | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> WindowStats:
    """Statistics of a `features_11d.npy` that is read once.

    With `rows` [n_bars, F], windows that are not theirs count as a slide fault. Raises ValueError
    if the file is not float32 [N, T, F].
    """
    totals: _Totals | None = None
    expected = None if rows is None else window_view(rows)

    for shape, windows in _read_windows(chunks):
        if totals is None:
            totals = _Totals(windows[0], shape[2])

        if expected is not None:
            first = totals.n_windows
            part = expected[first : first + len(windows)]
            width = WINDOW * part.shape[2]
            totals.compare(windows, part.reshape(len(part), width))

        totals.add(windows)

        if on_progress:
            on_progress(windows.nbytes)

    if totals is None:
        raise ValueError("must hold at least one window, got none")

    return totals.stats()


class _Totals:
    """What is known of the windows [n, T*F] so far."""

    def __init__(self, first: Float32s, n_features: int) -> None:
        self.n_windows = 0
        infinity = np.full(len(first), np.inf, np.float32)
        self._low = infinity
        self._high = -infinity
        self._nonzero = np.zeros(n_features, np.int64)
        self._faults = np.zeros(2, np.int64)
        self._before = np.roll(first, n_features)  # the first window slides from this

    def compare(self, windows: Float32s, expected: Float32s) -> None:
        is_same = np.array_equal(expected, windows)
        self._faults[_SLIDE] += not is_same

    def add(self, windows: Float32s) -> None:
        _accumulate(
            windows,
            self._before,
            self._low,
            self._high,
            self._nonzero,
            self._faults,
        )
        self._before = windows[-1].copy()
        self.n_windows += len(windows)

    def stats(self) -> WindowStats:
        low = self._low.reshape(WINDOW, -1)
        high = self._high.reshape(WINDOW, -1)

        return WindowStats(
            n_windows=self.n_windows,
            minimum=low.min(axis=0),
            maximum=high.max(axis=0),
            density=self._nonzero / (self.n_windows * WINDOW),
            live=high > low,
            n_nonfinite=int(self._faults[_NONFINITE]),
            n_slide_faults=int(self._faults[_SLIDE]),
        )


@numba.njit(cache=True, nogil=True)
def _accumulate(
    windows: Float32s,
    before: Float32s,
    low: Float32s,
    high: Float32s,
    nonzero: Ints,
    faults: Ints,
) -> None:
    """One pass over whole windows [n, T*F]; `before` is the window that came before them."""
    n_windows, width = windows.shape
    n_features = len(nonzero)

    for w in range(n_windows):
        for j in range(width):
            value = windows[w, j]
            if not np.isfinite(value):
                faults[_NONFINITE] += 1
                continue

            low[j] = min(low[j], value)
            high[j] = max(high[j], value)
            if value != 0:
                nonzero[j % n_features] += 1

        last = before if w == 0 else windows[w - 1]
        slides = True
        for j in range(width - n_features):
            value = windows[w, j]
            expected = last[j + n_features]
            both_nan = np.isnan(value) and np.isnan(expected)
            slides &= value == expected or both_nan

        faults[_SLIDE] += not slides


def _read_windows(
    chunks: Chunks,
) -> Iterator[tuple[tuple[int, ...], Float32s]]:
    """(shape of the whole, [n, T*F] whole windows) chunk by chunk.

    Raises ValueError on a wrong header or length.
    """
    shape: tuple[int, ...] | None = None
    rest = b""
    n_read = 0

    for chunk in chunks:
        data = rest + bytes(chunk)
        if shape is None:
            shape, dtype, header_bytes = _read_windows_header(data)
            width = shape[1] * shape[2]
            data = data[header_bytes:]

        n = len(data) // (width * dtype.itemsize)
        rest = data[n * width * dtype.itemsize :]
        n_read += n

        if n:
            values = np.frombuffer(data, np.float32, n * width)
            yield shape, values.reshape(n, width)

    if shape is None or n_read != shape[0] or rest:
        raise ValueError(
            f"must hold as many windows as its header says ({shape}), got {n_read} and "
            f"{len(rest)} bytes"
        )


def _read_windows_header(first: bytes) -> NpyHeader:
    """The header of a .npy stream of windows from its first chunk. Raises ValueError."""
    header = read_header(io.BytesIO(first[:HEADER_BYTES]))
    shape = header.shape
    has_windows = len(shape) == 3 and shape[1] == WINDOW and 0 < shape[2] <= MAX_FEATURES
    if not has_windows or header.dtype != np.float32:
        raise ValueError(
            f"must be C-ordered float32 [N, {WINDOW}, {N_FEATURES}], "
            f"got {header.dtype} {list(shape)}"
        )

    return header


# --- the same from the rows -----------------------------------------------------------------------


def stats_of_rows(rows: Float32s) -> WindowStats:
    """The statistics from `bars_11d` [n_bars, F], whose windows are views and slide."""
    is_finite = np.isfinite(rows)

    return WindowStats(
        n_windows=len(rows) - WINDOW + 1,
        minimum=np.fmin.reduce(rows, axis=0),  # NaN where there is nothing else, and no warning
        maximum=np.fmax.reduce(rows, axis=0),
        density=density(rows),
        live=_live_positions(rows),
        n_nonfinite=int(rows.size - np.count_nonzero(is_finite)),
        n_slide_faults=0,
    )


def _live_positions(rows: Float32s) -> Flags:
    """[T, F] whether a feature varies, from window to window, at a position in the window."""
    n_windows = len(rows) - WINDOW + 1
    changed = rows[1:] != rows[:-1]  # [n_bars - 1, F] from bar i to bar i + 1
    live = np.zeros((WINDOW, rows.shape[1]), np.bool_)

    # Position p sees the bars p .. p + N - 1: what changes inside all of these ranges, and what
    # changes near either end.
    changed_in_all = changed[WINDOW - 1 : n_windows - 1].any(axis=0)

    for p in range(WINDOW):
        stop = p + n_windows - 1
        head = changed[p : min(WINDOW - 1, stop)]
        tail = changed[max(p, n_windows - 1) : stop]
        changed_near_ends = head.any(axis=0) | tail.any(axis=0)
        live[p] = changed_in_all | changed_near_ends

    return live
