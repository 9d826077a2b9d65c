"""The checks on a feature set: what must hold, what was found, and whether it does.

Three things can be checked: a pulled folder, a committed run in a store, and the published pair of
`features_11d.npy` and `metadata.json`. `features_11d.npy` is read once, as a stream, and hashed on the way.
"""

import hashlib
import io
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numba
import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from rich.table import Table

from moola import WINDOW
from moola.bars import read_bars
from moola.errors import ArtifactError
from moola.features import FEATURE_NAMES, FEATURE_RANGES, N_FEATURES, compute_features
from moola.specs import FeatureConfig
from moola.store import Store
from moola.windows import (
    BARS,
    FEATURES,
    MASK,
    METADATA,
    SPLITS,
    SPLITS_FILE,
    WARM_UP,
    WindowSource,
    density,
    read_splits,
    source_sha256,
    valid_ratio,
    window_view,
)

MIN_VALID_RATIO, MIN_DENSITY = 0.90, 0.50
CHUNK_BYTES = 16 << 20


@dataclass(frozen=True)
class Check:
    """One rule: its name, the value found, the bound it is held to, and whether it holds."""

    name: str
    value: str
    bound: str
    passed: bool


@dataclass
class WindowStats:
    """What one look at all windows gives, per position and feature where it says so."""

    n_windows: int
    minimum: NDArray[np.float32]  # [F]
    maximum: NDArray[np.float32]  # [F]
    density: NDArray[np.float64]  # [F] fraction of non-zero values
    live: NDArray[np.bool_]  # [T, F] does the value vary from window to window
    n_nonfinite: int
    n_slide_faults: int  # windows that are not the window before moved by one bar
    sha256: str | None = None


@dataclass
class Report:
    """The checks of one feature set; `stats` is None where the windows could not be read."""

    checks: list[Check] = field(default_factory=list)
    stats: WindowStats | None = None

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def add(self, name: str, value: object, bound: str, passed: bool) -> None:
        self.checks.append(Check(name, str(value), bound, bool(passed)))


class Files(Protocol):
    """Where a feature set's files are; a missing one raises ArtifactError."""

    def chunks(self, path: str) -> Iterator[bytes | memoryview]: ...
    def has(self, path: str) -> bool: ...


class FolderFiles:
    """Files of a folder, or of given paths."""

    def __init__(self, folder: Path, paths: dict[str, Path] | None = None) -> None:
        self._folder, self._paths = folder, paths

    def _path(self, name: str) -> Path | None:
        return self._folder / name if self._paths is None else self._paths.get(name)

    def has(self, path: str) -> bool:
        file = self._path(path)
        return file is not None and file.exists()

    def chunks(self, path: str) -> Iterator[bytes | memoryview]:
        file = self._path(path)
        if file is None or not file.exists():
            raise ArtifactError(f"{path} is missing ({file or self._folder})")
        with file.open("rb") as stream:
            while data := stream.read(CHUNK_BYTES):
                yield data


class RunFiles:
    """Files of a committed run, straight from the store."""

    def __init__(self, store: Store, manifest: dict[str, Any]) -> None:
        self._store, self._items = store, {item["path"]: item for item in manifest["files"]}

    def has(self, path: str) -> bool:
        return path in self._items

    def chunks(self, path: str) -> Iterator[bytes | memoryview]:
        if path not in self._items:
            raise ArtifactError(f"{path} is missing (not in the manifest)")
        yield from self._store.read_chunks(self._items[path]["key"], self._items[path]["size"])


def verify(
    files: Files,
    *,
    manifest: dict[str, Any] | None = None,
    bars: Path | None = None,
    timezone: str | None = None,
    published: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> Report:
    """Check a feature set; every rule that can be checked is in the report.

    `manifest` adds the digests, `bars` recomputes the features from that file, `published` is the shape with
    features and metadata only. Raises DataError if `bars` itself is refused.
    """
    report = Report()
    digests: dict[str, str] = {}
    metadata = _load(report, files, METADATA, _as_json, digests)
    small: dict[str, Any] = {}
    if not published:
        small[SPLITS_FILE] = _load(report, files, SPLITS_FILE, _as_json, digests)
        small[MASK] = _load(report, files, MASK, _as_npy, digests)
        small[BARS] = _load(report, files, BARS, _as_npy, digests)
    rows = small.get(BARS)
    if files.has(FEATURES) or published or rows is None:
        report.stats = _load(report, files, FEATURES, lambda c: stats_of_stream(c, rows, on_progress), digests)
    else:
        report.stats = stats_of_rows(rows)
    if metadata is None or report.stats is None:
        return report
    check_metadata(report, metadata)
    check_stats(report, report.stats)
    if small.get(MASK) is not None:
        _check_mask(report, small[MASK], report.stats.n_windows)
    else:
        ratio = float(metadata.get("valid_ratio", math.nan))
        report.add(
            "valid ratio (as metadata states)", f"{ratio:.2%}", f"> {MIN_VALID_RATIO:.0%}", ratio > MIN_VALID_RATIO
        )
    if small.get(SPLITS_FILE) is not None:
        check_splits(report, small[SPLITS_FILE], report.stats.n_windows)
    if manifest is not None:
        if rows is not None and FEATURES not in digests:  # virtual: the digest of what pull would rebuild
            digests[FEATURES] = source_sha256(WindowSource(rows))
        _check_digests(report, files, manifest, digests)
    if bars is not None:
        _check_recomputed(report, files, metadata, rows, bars, timezone)
    return report


# --- reading ----------------------------------------------------------------------------------------------------


def _load(
    report: Report,
    files: Files,
    name: str,
    parse: Callable[[Iterable[bytes | memoryview]], Any],
    digests: dict[str, str],
) -> Any:
    """Parse a file and add the check that it loads; None where it does not. Its digest is taken on the way."""
    digest = hashlib.sha256()
    try:
        value = parse(_hashed(files.chunks(name), digest.update))
    except (ArtifactError, ValueError, KeyError, EOFError) as error:
        report.add(f"{name} loads", error, "a readable file", False)
        return None
    digests[name] = digest.hexdigest()
    shape = getattr(value, "shape", None)
    report.add(f"{name} loads", "yes" if shape is None else f"{value.dtype} {list(shape)}", "a readable file", True)
    return value


def _hashed(
    chunks: Iterable[bytes | memoryview], update: Callable[[bytes | memoryview], object]
) -> Iterator[bytes | memoryview]:
    """The same chunks, hashed by a second thread while the caller works on them."""
    with ThreadPoolExecutor(1) as hasher:
        for chunk in chunks:
            pending = hasher.submit(update, chunk)
            yield chunk
            pending.result()


def _as_json(chunks: Iterable[bytes | memoryview]) -> dict[str, Any]:
    document = json.loads(b"".join(chunks))
    if not isinstance(document, dict):
        raise ValueError(f"must be a JSON object, got {type(document).__name__}")  # noqa: TRY004
    return document


def _as_npy(chunks: Iterable[bytes | memoryview]) -> NDArray[Any]:
    return np.asarray(np.load(io.BytesIO(b"".join(chunks)), allow_pickle=False))


def _npy_header(first: bytes | memoryview) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """(shape, dtype, header bytes) of a .npy stream from its first chunk. Raises ValueError."""
    stream = io.BytesIO(bytes(first[: 1 << 16]))
    version = npy.read_magic(stream)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if fortran or len(shape) != 3 or shape[1] != WINDOW or dtype != np.float32:
        raise ValueError(f"must be C-ordered float32 [N, {WINDOW}, {N_FEATURES}], got {dtype} {list(shape)}")
    return shape, dtype, stream.tell()


def _windows_of(chunks: Iterable[bytes | memoryview]) -> Iterator[tuple[tuple[int, ...], NDArray[np.float32]]]:
    """(shape of the whole, [n, T*F] whole windows) chunk by chunk. Raises ValueError on a wrong header or length."""
    rest, shape, seen = b"", None, 0
    for chunk in chunks:
        data = rest + bytes(chunk)
        if shape is None:
            shape, _, start = _npy_header(data)
            data = data[start:]
        window_bytes = 4 * shape[1] * shape[2]
        n = len(data) // window_bytes
        rest, seen = data[n * window_bytes :], seen + n
        if n:
            yield shape, np.frombuffer(data, np.float32, n * shape[1] * shape[2]).reshape(n, -1)
    if shape is None or seen != shape[0] or rest:
        raise ValueError(f"must hold as many windows as its header says ({shape}), got {seen} and {len(rest)} bytes")


# --- statistics -------------------------------------------------------------------------------------------------


@numba.njit(cache=True, nogil=True)
def _accumulate(windows, before, low, high, nonzero, faults):  # type: ignore[no-untyped-def]
    """One pass over whole windows [n, T*F]; `before` is the window that came before, `faults` [nonfinite, slide]."""
    n, width = windows.shape
    n_features = len(nonzero)
    for w in range(n):
        slides = True
        for j in range(width):
            value = windows[w, j]
            if not np.isfinite(value):
                faults[0] += 1
                continue
            low[j] = min(low[j], value)
            high[j] = max(high[j], value)
            if value != 0:
                nonzero[j % n_features] += 1
        for j in range(width - n_features):
            last = before[j + n_features] if w == 0 else windows[w - 1, j + n_features]
            slides &= windows[w, j] == last or (np.isnan(windows[w, j]) and np.isnan(last))
        faults[1] += not slides


def stats_of_stream(
    chunks: Iterable[bytes | memoryview],
    rows: NDArray[np.float32] | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> WindowStats:
    """Statistics of a `features_11d.npy` that is read once. With `rows` [n_bars, F], a window that is not theirs
    counts as a slide fault. Raises ValueError if it is not float32 [N, T, F]."""
    low: NDArray[Any]
    high: NDArray[Any]
    low = high = before = nonzero = np.empty(0)
    faults, n, n_features = np.zeros(2, np.int64), 0, 0
    view = None if rows is None else window_view(rows)
    for shape, windows in _windows_of(chunks):
        if n == 0:
            n_features = shape[2]
            low, high = (np.full(windows.shape[1], sign * np.inf, np.float32) for sign in (1, -1))
            nonzero, before = np.zeros(n_features, np.int64), np.roll(windows[0], n_features)
        _accumulate(windows, before, low, high, nonzero, faults)
        if view is not None:
            theirs = view[n : n + len(windows)].reshape(len(windows), -1)
            same = theirs.shape == windows.shape and bool((theirs == windows).all())
            faults[1] += 0 if same else 1
        before, n = windows[-1].copy(), n + len(windows)
        if on_progress:
            on_progress(windows.nbytes)
    if n == 0:
        raise ValueError("must hold at least one window, got none")
    low, high = low.reshape(WINDOW, n_features), high.reshape(WINDOW, n_features)
    share = nonzero / (n * WINDOW)
    return WindowStats(n, low.min(0), high.max(0), share, high > low, int(faults[0]), int(faults[1]))


def stats_of_rows(rows: NDArray[np.float32]) -> WindowStats:
    """The same statistics from `bars_11d` [n_bars, F], whose windows are views and slide by construction."""
    n_windows = len(rows) - WINDOW + 1
    changed = rows[1:] != rows[:-1]  # [n_bars - 1, F] from bar i to bar i + 1
    # Position p sees bars p .. p + N - 1: what changes inside all of these ranges, and what changes near either end.
    live = np.zeros((WINDOW, rows.shape[1]), np.bool_)
    common = changed[WINDOW - 1 : n_windows - 1].any(axis=0)
    for p in range(WINDOW):
        head, tail = changed[p : min(WINDOW - 1, p + n_windows - 1)], changed[max(p, n_windows - 1) : p + n_windows - 1]
        live[p] = common | head.any(axis=0) | tail.any(axis=0)
    n_nonfinite = int(rows.size - np.count_nonzero(np.isfinite(rows)))
    return WindowStats(n_windows, np.nanmin(rows, 0), np.nanmax(rows, 0), density(rows), live, n_nonfinite, 0)


# --- checks -----------------------------------------------------------------------------------------------------


def check_metadata(report: Report, metadata: dict[str, Any]) -> None:
    """Names and shapes as metadata states them, against the contract and the windows found."""
    names = list(metadata.get("feature_names", []))
    report.add(
        "feature names",
        f"{len(names)} names",
        f"the {N_FEATURES} of the contract, in order",
        names == list(FEATURE_NAMES),
    )
    has_proxy = "expansion_proxy" in names
    report.add("expansion_proxy among them", "yes" if has_proxy else "no", "yes", has_proxy)
    if report.stats is not None:
        found = [report.stats.n_windows, WINDOW, len(report.stats.minimum)]
        stated = [metadata.get("n_windows"), WINDOW, len(names)]
        report.add("shape agrees with metadata", found, str(stated), found == stated)
        bars = metadata.get("n_bars")
        report.add(
            "windows = bars - 104",
            found[0],
            f"{bars} - {WINDOW - 1}",
            isinstance(bars, int) and found[0] == bars - WINDOW + 1,
        )


def check_stats(report: Report, stats: WindowStats) -> None:
    """Ranges, finiteness, density, liveness and slide."""
    report.add("non-finite values", stats.n_nonfinite, "0", stats.n_nonfinite == 0)
    if len(stats.minimum) != N_FEATURES:
        report.add("number of features", len(stats.minimum), str(N_FEATURES), False)
        return
    bounds = np.array([FEATURE_RANGES[name] for name in FEATURE_NAMES], np.float32)
    outside = [
        n
        for n, lo, hi, (a, b) in zip(FEATURE_NAMES, stats.minimum, stats.maximum, bounds, strict=True)
        if not a <= lo <= hi <= b
    ]
    report.add("features inside their range", ", ".join(outside) or "all", "all", not outside)
    overall = float(stats.density.mean())
    report.add("non-zero density", f"{overall:.1%}", f"> {MIN_DENSITY:.0%}", overall > MIN_DENSITY)
    live = int(stats.live.all(axis=1).sum())
    report.add("LIVENESS: positions that vary in every feature", live, str(WINDOW), live == WINDOW)
    report.add("windows slide by one bar", f"{stats.n_slide_faults} faults", "0 faults", stats.n_slide_faults == 0)


def _check_mask(report: Report, mask: NDArray[Any], n_windows: int) -> None:
    good = mask.dtype == np.bool_ and mask.shape == (n_windows, WINDOW)
    report.add("valid_mask shape", f"{mask.dtype} {list(mask.shape)}", f"bool [{n_windows}, {WINDOW}]", good)
    if not good:
        return
    rows = np.concatenate([mask[0], mask[1:, -1]])
    slides = bool((window_view(rows) == mask).all()) and not rows[:WARM_UP].any()
    report.add("valid_mask slides, warm-up masked", "yes" if slides else "no", f"first {WARM_UP} bars False", slides)
    ratio = valid_ratio(rows)
    report.add("valid ratio", f"{ratio:.2%}", f"> {MIN_VALID_RATIO:.0%}", ratio > MIN_VALID_RATIO)


def check_splits(report: Report, document: dict[str, Any], n_windows: int) -> None:
    """In time order, inside the set, none empty, no bar in two."""
    try:
        splits = read_splits(document)
    except (KeyError, TypeError, ValueError) as error:
        report.add("splits", f"{type(error).__name__} {error}", f"start and stop of {', '.join(SPLITS)}", False)
        return
    found = ", ".join(f"{name} {s.start}..{s.stop}" for name, s in splits.items())
    spans = list(splits.values())
    inside = all(0 <= s.start < s.stop <= n_windows for s in spans)
    report.add("splits inside the set, none empty", found, f"0..{n_windows}", inside)
    in_order = all(a.start < b.start for a, b in itertools.pairwise(spans))
    report.add("splits in time order", found, "train, val, test", in_order)
    shared = sum(max(0, a.stop + WINDOW - 1 - b.start) for a, b in itertools.pairwise(spans))
    report.add("bars in two splits", shared, "0", shared == 0)


def _check_digests(report: Report, files: Files, manifest: dict[str, Any], digests: dict[str, str]) -> None:
    """Every file of the manifest against its sha256; those read already are not read again."""
    for item in manifest["files"] + manifest["derived"]:
        path, expected = item["path"], item["sha256"]
        try:
            found = digests.get(path) or _sha256(files.chunks(path))
        except ArtifactError as error:
            found = str(error)
        report.add(f"sha256 of {path}", found[:16], expected[:16], found == expected)


def _sha256(chunks: Iterable[bytes | memoryview]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def _check_recomputed(
    report: Report, files: Files, metadata: dict[str, Any], rows: Any, bars: Path, timezone: str | None
) -> None:
    """Compute the features of `bars` again, with the set's own configuration, and compare every bit."""
    read = read_bars(bars, timezone=timezone, on_bad_bars=metadata.get("on_bad_bars", "fail"))
    again = compute_features(read.frame, FeatureConfig.model_validate(metadata.get("config", {})))
    if rows is None:
        stats = stats_of_stream(files.chunks(FEATURES), again)
        report.add("recomputed from the bars", f"{stats.n_slide_faults} faults", "0 faults", stats.n_slide_faults == 0)
        return
    differ = f"{len(again)} bars" if rows.shape != again.shape else f"{int((rows != again).sum())} values differ"
    report.add(
        "recomputed from the bars", differ, "0 values differ", rows.shape == again.shape and bool((rows == again).all())
    )


# --- tables -----------------------------------------------------------------------------------------------------


def checks_table(report: Report) -> Table:
    """All checks: value found, bound, pass or FAIL."""
    table = Table("check", "found", "must be", "", title="Feature set")
    for check in report.checks:
        mark = "[green]pass[/]" if check.passed else "[bold red]FAIL[/]"
        table.add_row(check.name, check.value, check.bound, mark)
    return table


def features_table(stats: WindowStats) -> Table:
    """Per feature: range found and allowed, density, live positions."""
    table = Table("feature", "min", "max", "allowed", "non-zero %", f"live of {WINDOW}", title="Features")
    for i, name in enumerate(FEATURE_NAMES[: len(stats.minimum)]):
        low, high = FEATURE_RANGES[name]
        found = (f"{stats.minimum[i]:.3f}", f"{stats.maximum[i]:.3f}", f"[{low:g}, {high:g}]".replace("[", r"\["))
        table.add_row(name, *found, f"{stats.density[i]:.1%}".rstrip("%"), str(int(stats.live[:, i].sum())))
    return table
