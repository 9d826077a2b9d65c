"""The checks on a feature set: what must hold, the value found, and whether it holds.

Three things can be checked: a pulled folder, a committed run in a store, and the published pair of
`features_11d.npy` and `metadata.json`. `features_11d.npy` is read once, as a stream, and hashed
meanwhile.
"""

import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from pydantic import JsonValue, TypeAdapter, ValidationError

from moola import WINDOW
from moola.data.feature_records import FeatureMetadata, SplitsDocument
from moola.data.feature_set import (
    BARS,
    FEATURES,
    MASK,
    METADATA,
    SPLITS_FILE,
)
from moola.data.feature_set_files import Files
from moola.data.npy import read_array
from moola.data.recompute import recompute
from moola.data.splits import SPLITS
from moola.data.window_stats import (
    MAX_FEATURES,
    Chunks,
    WindowStats,
    stats_of_rows,
    stats_of_stream,
)
from moola.data.windows import (
    WARM_UP,
    WindowSource,
    rows_of_mask,
    source_sha256,
    valid_ratio,
    window_view,
)
from moola.errors import ArtifactError
from moola.features import FEATURE_NAMES, FEATURE_RANGES, N_FEATURES
from moola.features.arrays import Array, Float32s
from moola.runs.records import parse_record
from moola.specs import READING_FIELDS, PrecomputeSpec
from moola.store import MAX_DOCUMENT_BYTES
from moola.text import quoted

JSON_OBJECT: TypeAdapter[dict[str, JsonValue]] = TypeAdapter(dict[str, JsonValue])
MIN_VALID_RATIO = 0.90
MIN_DENSITY = 0.50

Value = TypeVar("Value")


@dataclass(frozen=True)
class Check:
    """One rule: its name, the value found, the bound it is held to, and whether it holds."""

    name: str
    value: str
    bound: str
    passed: bool


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


def verify(
    files: Files,
    *,
    digests: Mapping[str, str] | None = None,
    spec: PrecomputeSpec | None = None,
    bars: Sequence[Path] = (),
    overrides: Mapping[str, object] | None = None,
    published: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> Report:
    """Checks a feature set; every rule that can be checked is in the report.

    `digests` (path -> sha256) are those of the run's manifest, `spec` is what the run was to do,
    `bars` recomputes the features from these files, with `overrides` read otherwise than by the run
    (see `moola.data.recompute`), `published` is the shape with features and metadata only. Raises
    DataError if `bars` themselves are refused.
    """
    report = Report()
    reader = _Reader(files, report)
    metadata = reader.read(METADATA, _parse_metadata)
    splits = mask = rows = None

    if not published:
        splits = reader.read(SPLITS_FILE, _parse_json)
        mask = reader.read(MASK, _parse_npy)
        rows = reader.read(BARS, _parse_rows)

    if files.has(FEATURES) or published or rows is None:
        report.stats = reader.read(
            FEATURES, lambda chunks: stats_of_stream(chunks, rows, on_progress)
        )
    else:
        report.stats = stats_of_rows(rows)

    if metadata is None or report.stats is None:
        return report

    check_metadata(report, metadata)
    check_stats(report, report.stats)

    if mask is not None:
        _check_mask(report, mask, report.stats.n_windows)
    else:
        _check_stated_valid_ratio(report, metadata)
    if splits is not None:
        check_splits(report, splits, report.stats.n_windows)

    if spec is not None:
        _check_spec(report, metadata, spec)
    if digests is not None:
        if rows is not None and FEATURES not in reader.digests:
            # The windows are virtual: the digest of what pull would rebuild.
            reader.digests[FEATURES] = source_sha256(WindowSource(rows))
        _check_digests(reader, digests)

    if bars:
        recomputed = recompute(bars, overrides or {}, metadata)
        _check_recomputed(report, files, rows, recomputed)

    return report


# --- reading --------------------------------------------------------------------------------------


class _Reader:
    """Reads the files of a set once: a check that each loads, and its digest.

    digests  file -> sha256 of what was read so far
    """

    def __init__(self, files: Files, report: Report) -> None:
        self.files = files
        self.report = report
        self.digests: dict[str, str] = {}

    def read(self, name: str, parse: Callable[[Chunks], Value]) -> Value | None:
        """The parsed file; None where it does not load."""
        digest = hashlib.sha256()
        try:
            value = parse(_hashed(self.files.chunks(name), digest.update))
        except (ArtifactError, ValueError, KeyError, EOFError) as error:
            self.report.add(f"{name} loads", error, "a readable file", False)
            return None

        self.digests[name] = digest.hexdigest()
        self.report.add(
            f"{name} loads",
            _shape_text(value),
            "a readable file",
            True,
        )

        return value


def _shape_text(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return "yes"


def _hashed(
    chunks: Chunks, update: Callable[[bytes | memoryview], object]
) -> Iterator[bytes | memoryview]:
    """The same chunks, hashed by a second thread while the caller works on them."""
    with ThreadPoolExecutor(1) as hasher:
        for chunk in chunks:
            pending = hasher.submit(update, chunk)
            yield chunk
            pending.result()


def _parse_json(chunks: Chunks) -> dict[str, JsonValue]:
    return JSON_OBJECT.validate_json(_read_bounded(chunks, MAX_DOCUMENT_BYTES))


def _parse_metadata(chunks: Chunks) -> FeatureMetadata:
    return parse_record(FeatureMetadata, _read_bounded(chunks, MAX_DOCUMENT_BYTES), METADATA)


def _read_bounded(chunks: Chunks, most: int) -> bytes:
    """All bytes. Raises ValueError if there are more."""
    data = b""
    for chunk in chunks:
        data += chunk
        if len(data) > most:
            raise ValueError(f"must have at most {most:,} bytes")
    return data


def _parse_npy(chunks: Chunks) -> Array:
    return read_array(b"".join(chunks))


def _parse_rows(chunks: Chunks) -> Float32s:
    rows = _parse_npy(chunks)
    has_rows = rows.ndim == 2 and len(rows) >= WINDOW and 0 < rows.shape[1] <= MAX_FEATURES
    if not has_rows or rows.dtype != np.float32:
        raise ValueError(f"must be float32 [n_bars, F], got {rows.dtype} {list(rows.shape)}")
    return rows


# --- checks ---------------------------------------------------------------------------------------


def check_metadata(report: Report, metadata: FeatureMetadata) -> None:
    """Names and shapes as metadata states them, against the contract and the windows themselves."""
    names = list(metadata.feature_names)
    has_proxy = "expansion_proxy" in names

    report.add(
        "feature names",
        f"{len(names)} names",
        f"the {N_FEATURES} of the contract, in order",
        names == list(FEATURE_NAMES),
    )
    report.add(
        "expansion_proxy among them",
        "yes" if has_proxy else "no",
        "yes",
        has_proxy,
    )

    if report.stats is None:
        return

    n_windows = report.stats.n_windows
    shape = [n_windows, WINDOW, len(report.stats.minimum)]
    stated_shape = [metadata.n_windows, WINDOW, len(names)]
    report.add(
        "shape agrees with metadata",
        shape,
        str(stated_shape),
        shape == stated_shape,
    )

    n_bars = metadata.n_bars
    report.add(
        f"windows = bars - {WINDOW - 1}",
        n_windows,
        f"{n_bars} - {WINDOW - 1}",
        n_bars is not None and n_windows == n_bars - WINDOW + 1,
    )


def check_stats(report: Report, stats: WindowStats) -> None:
    """Ranges, finiteness, density, liveness and slide."""
    report.add(
        "non-finite values",
        stats.n_nonfinite,
        "0",
        stats.n_nonfinite == 0,
    )

    n_features = len(stats.minimum)
    if n_features != N_FEATURES:
        report.add("number of features", n_features, str(N_FEATURES), False)
        return

    outside = _outside_range(stats)
    report.add(
        "features inside their range",
        ", ".join(outside) or "all",
        "all",
        not outside,
    )

    density = float(stats.density.mean())
    report.add(
        "non-zero density",
        f"{density:.1%}",
        f"> {MIN_DENSITY:.0%}",
        density > MIN_DENSITY,
    )

    n_live = int(stats.live.all(axis=1).sum())
    report.add(
        "LIVENESS: positions that vary in every feature",
        n_live,
        str(WINDOW),
        n_live == WINDOW,
    )
    report.add(
        "windows slide by one bar",
        f"{stats.n_slide_faults} faults",
        "0 faults",
        stats.n_slide_faults == 0,
    )


def _outside_range(stats: WindowStats) -> list[str]:
    """Names of the features that leave their range, or of which no value is finite."""
    names = []

    for column, name in enumerate(FEATURE_NAMES):
        low, high = FEATURE_RANGES[name]
        if not low <= stats.minimum[column] <= stats.maximum[column] <= high:
            names.append(name)

    return names


def _check_mask(report: Report, mask: Array, n_windows: int) -> None:
    has_shape = mask.dtype == np.bool_ and mask.shape == (n_windows, WINDOW)
    report.add(
        "valid_mask shape",
        f"{mask.dtype} {list(mask.shape)}",
        f"bool [{n_windows}, {WINDOW}]",
        has_shape,
    )
    if not has_shape:
        return

    valid = rows_of_mask(mask)
    slides = bool((window_view(valid) == mask).all())
    holds = slides and not valid[:WARM_UP].any()
    report.add(
        "valid_mask slides, warm-up masked",
        "yes" if holds else "no",
        f"first {WARM_UP} bars False",
        holds,
    )
    _add_valid_ratio(report, "valid ratio", valid_ratio(valid))


def _check_stated_valid_ratio(report: Report, metadata: FeatureMetadata) -> None:
    ratio = math.nan if metadata.valid_ratio is None else metadata.valid_ratio
    _add_valid_ratio(report, "valid ratio (as metadata states)", ratio)


def _add_valid_ratio(report: Report, name: str, ratio: float) -> None:
    report.add(
        name,
        f"{ratio:.2%}",
        f"> {MIN_VALID_RATIO:.0%}",
        ratio > MIN_VALID_RATIO,
    )


def check_splits(report: Report, document: Mapping[str, JsonValue], n_windows: int) -> None:
    """In time order, inside the set, none empty, no bar in two."""
    try:
        splits = list(SplitsDocument.model_validate(document).splits().values())
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        report.add(
            "splits",
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}",
            f"start and stop of {', '.join(SPLITS)}",
            False,
        )
        return

    names = zip(SPLITS, splits, strict=True)
    text = ", ".join(f"{name} {split.start}..{split.stop}" for name, split in names)

    inside = all(0 <= split.start < split.stop <= n_windows for split in splits)
    report.add(
        "splits inside the set, none empty",
        text,
        f"0..{n_windows}",
        inside,
    )

    in_order = all(a.start < b.start for a, b in itertools.pairwise(splits))
    report.add("splits in time order", text, ", ".join(SPLITS), in_order)

    n_shared = 0
    for before, after in itertools.pairwise(splits):
        stop_bar = before.stop + WINDOW - 1
        n_shared += max(0, stop_bar - after.start)

    report.add("bars in two splits", n_shared, "0", n_shared == 0)


def _check_spec(report: Report, metadata: FeatureMetadata, spec: PrecomputeSpec) -> None:
    """The set was made as its run's spec says."""
    made_with = {**_config_of(metadata), "on_bad_bars": metadata.on_bad_bars}
    expected = {**spec.features.model_dump(mode="json"), "on_bad_bars": spec.on_bad_bars}
    if metadata.reading is not None:
        made_with |= metadata.reading
        expected |= spec.model_dump(mode="json", include=READING_FIELDS)
    others = [name for name in made_with | expected if made_with.get(name) != expected.get(name)]
    report.add(
        "made as the run's spec says",
        ", ".join(f"{quoted(name)} {quoted(made_with.get(name))}" for name in others) or "yes",
        ", ".join(f"{quoted(name)} {quoted(expected.get(name))}" for name in others) or "yes",
        not others,
    )


def _config_of(metadata: FeatureMetadata) -> dict[str, JsonValue]:
    """The constants of the features, without those of older versions; as stated where none are."""
    try:
        config: dict[str, JsonValue] = metadata.feature_config().model_dump(mode="json")
    except ArtifactError:
        return metadata.config
    return config


def _check_digests(reader: _Reader, digests: Mapping[str, str]) -> None:
    """Every file of the manifest against its sha256; those read already are not read again."""
    for path, expected in digests.items():
        try:
            sha256 = reader.digests.get(path) or _sha256(reader.files.chunks(path))
        except ArtifactError as error:
            sha256 = str(error)

        reader.report.add(
            f"sha256 of {path}",
            sha256[:16],
            expected[:16],
            sha256 == expected,
        )


def _sha256(chunks: Chunks) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)

    return digest.hexdigest()


def _check_recomputed(
    report: Report,
    files: Files,
    rows: Array | None,
    recomputed: Float32s,
) -> None:
    """Every bit of the set against the recomputed rows."""
    name = "recomputed from the bars"

    if rows is None:
        n_faults = stats_of_stream(files.chunks(FEATURES), recomputed).n_slide_faults
        report.add(name, f"{n_faults} faults", "0 faults", n_faults == 0)
    elif rows.shape != recomputed.shape:
        report.add(name, f"{len(recomputed)} bars", "0 values differ", False)
    else:
        n_different = int((rows != recomputed).sum())
        report.add(
            name,
            f"{n_different} values differ",
            "0 values differ",
            n_different == 0,
        )
