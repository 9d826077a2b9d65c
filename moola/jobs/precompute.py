"""Precompute: bars -> features -> windows, mask and splits, checked before the attempt commits."""

import io
import itertools
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moola import WINDOW
from moola.data.bars import Bars, read_bars, read_bars_of, write_bars
from moola.data.bars_text import layout_text
from moola.data.feature_records import FeatureMetadata
from moola.data.feature_set import (
    BARS,
    CLEAN_BARS,
    FEATURES,
    MASK,
    METADATA,
    MOVES,
    SPLITS_FILE,
    WINDOWS_RULE,
    to_json,
    to_npy,
)
from moola.data.splits import split_windows, splits_document
from moola.data.synthetic import make_market
from moola.data.verify import Report, check_metadata, check_splits, check_stats
from moola.data.window_stats import stats_of_rows
from moola.data.windows import WindowSource, density, source_sha256, valid_ratio, valid_rows
from moola.errors import ArtifactError
from moola.evaluation.bars_page import render_bars
from moola.features import FEATURE_NAMES, FEATURE_RANGES, FeatureState
from moola.jobs.inputs import BARS_FOLDER, is_bars
from moola.runs.attempt import Attempt
from moola.runs.records import InputFile, NpyFormat, Provenance, SpecDocument, parse_record
from moola.runs.submit import pull_input
from moola.specs import READING_FIELDS, PrecomputeSpec, parse_spec
from moola.store import BytesSource

log = logging.getLogger("moola")

BARS_PAGE = "bars.html"
STATE = "feature_state.json"  # from which the features of later bars can be computed

PARQUET = "application/vnd.apache.parquet"
NPY = "application/x-npy"
JSON = "application/json"
HTML = "text/html"

JsonObject = dict[str, Any]  # a document before it is written

LOW_PRIORITY = 10  # added to a thread's niceness


@dataclass(frozen=True)
class FeatureRows:
    """What is computed from bars."""

    bars: Bars
    rows: NDArray[np.float32]  # [n_bars, F]
    valid: NDArray[np.bool_]  # [n_bars]
    state: FeatureState  # after the last bar
    splits: JsonObject  # splits.json


def precompute(attempt: Attempt, document: SpecDocument) -> None:
    """The job: bars -> feature set.

    Raises DataError for bad bars, ArtifactError if what was made does not verify.
    """
    spec = parse_spec(PrecomputeSpec, document.spec, place=f"spec.json of {attempt.run_id}")
    times = [time.perf_counter()]

    bars = read_input(attempt, spec, document)
    times.append(time.perf_counter())
    log_report(bars)

    attempt.stage("compute features", len(bars.frame), "bars")
    made = compute_rows(bars, spec)
    times.append(time.perf_counter())

    metadata = store_feature_set(attempt, spec, document, made)
    times.append(time.perf_counter())

    attempt.provenance["timing_s"] = _timing(times)
    attempt.write(METADATA, to_json(metadata), JSON)


def _timing(times: list[float]) -> Provenance:
    """Seconds of each stage from the times at which stages began and the last one ended."""
    durations_s = [round(end - start, 3) for start, end in itertools.pairwise(times)]
    return dict(zip(("bars", "features", "store"), durations_s, strict=True))


# --- bars -------------------------------------------------------------------------------------


def read_input(attempt: Attempt, spec: PrecomputeSpec, document: SpecDocument) -> Bars:
    """The input's bars; without an input the synthetic market's."""
    named = sorted(document.inputs.items())
    items = [item for name, item in named if is_bars(name) and isinstance(item, InputFile)]
    if not items:
        return _synthetic_bars(attempt, spec)

    attempt.stage("read bars")
    files = [pull_input(attempt.store, item, attempt.work.parent) for item in items]
    called = items[0].name if len(items) == 1 else BARS_FOLDER
    return read_bars_of(spec, files, called)


def _synthetic_bars(attempt: Attempt, spec: PrecomputeSpec) -> Bars:
    """The synthetic market's bars; its planted moves become an artifact."""
    attempt.stage("make synthetic bars")
    market = make_market(spec.synthetic)

    moves = io.BytesIO()
    market.moves.to_parquet(moves)
    attempt.write(MOVES, moves.getvalue(), PARQUET)

    path = attempt.work / "synthetic.parquet"
    write_bars(market.bars, path)
    return read_bars(path, called=path.name)


def log_report(bars: Bars) -> None:
    """Log what was read: layout, bars, dates, gaps, oddities, and what was dropped."""
    report = bars.report
    gaps = report.gaps
    log.info("%s", layout_text(bars.layout))
    log.info("%s bars from %s to %s", f"{report.n_bars:,}", report.first, report.last)

    if gaps.count:
        log.info(
            "%s gaps, %s of them session breaks; the longest: %s minutes after %s",
            gaps.count,
            gaps.session_breaks,
            f"{gaps.longest_minutes:,}",
            gaps.longest_after,
        )
    for warning in bars.series.warnings:
        log.warning("%s", warning)
    if report.dropped:
        log.warning("dropped bars, by rule: %s", report.dropped)


# --- features ---------------------------------------------------------------------------------


def compute_rows(bars: Bars, spec: PrecomputeSpec) -> FeatureRows:
    """Features, mask and splits of the bars."""
    state = FeatureState(spec.features)
    rows = state.extend(bars.frame)
    valid = valid_rows(bars.flagged)

    times = pd.DatetimeIndex(bars.frame.index)
    rule, splits = split_windows(times, spec.splits)
    return FeatureRows(
        bars=bars,
        rows=rows,
        valid=valid,
        state=state,
        splits=splits_document(rule, splits, times),
    )


def describe_checked(
    spec: PrecomputeSpec,
    document: SpecDocument,
    made: FeatureRows,
) -> JsonObject:
    """metadata.json but for the digest of the windows.

    Raises ArtifactError if a check fails.
    """
    metadata: JsonObject = {
        "moola": document.moola,
        "source": "bars" if document.inputs else "synthetic",
        "inputs": document.fields()["inputs"],
        "feature_names": list(FEATURE_NAMES),
        "feature_ranges": {name: list(FEATURE_RANGES[name]) for name in FEATURE_NAMES},
        "config": spec.features.model_dump(mode="json"),
        "on_bad_bars": spec.on_bad_bars,
        "reading": spec.model_dump(mode="json", include=READING_FIELDS),
        "n_windows": len(made.rows) - WINDOW + 1,
        "window_bars": WINDOW,
        **made.bars.as_dict(),
        "valid_ratio": valid_ratio(made.valid),
        "density": dict(
            zip(
                FEATURE_NAMES,
                density(made.rows).tolist(),
                strict=True,
            )
        ),
        "windows": spec.windows,
    }
    check(metadata, made.splits, made.rows)
    return metadata


def check(
    metadata: JsonObject,
    splits: JsonObject,
    rows: NDArray[np.float32],
) -> None:
    """The checks that need no file. Raises ArtifactError that lists those that fail."""
    stats = stats_of_rows(rows)
    report = Report(stats=stats)
    check_metadata(report, parse_record(FeatureMetadata, to_json(metadata), METADATA))
    check_stats(report, stats)
    check_splits(report, splits, stats.n_windows)

    failed = [check for check in report.checks if not check.passed]
    if failed:
        faults = [f"{check.name}: {check.value}, must be {check.bound}" for check in failed]
        raise ArtifactError(f"the feature set does not verify: {'; '.join(faults)}")
    log.info("verified: %d checks passed", len(report.checks))


# --- artifacts --------------------------------------------------------------------------------


def store_feature_set(
    attempt: Attempt,
    spec: PrecomputeSpec,
    document: SpecDocument,
    made: FeatureRows,
) -> JsonObject:
    """Check and store all but the metadata; -> metadata.json."""
    # The windows keep one core busy with hashing. The rest is done meanwhile, at low priority,
    # which in Linux a thread has of its own.
    background = ThreadPoolExecutor(1, initializer=os.nice, initargs=(LOW_PRIORITY,))
    with background:
        described = background.submit(describe_checked, spec, document, made)
        rest = background.submit(write_rest, attempt, made)
        windows = write_windows(attempt, made.rows, spec.windows)

        metadata = described.result()
        rest.result()

    metadata["features_11d"] = windows
    return metadata


def write_windows(
    attempt: Attempt,
    rows: NDArray[np.float32],
    windows: str,
) -> JsonObject:
    """Store features_11d.npy, or record the sha256 that pull rebuilds it to."""
    source = WindowSource(rows)
    npy = NpyFormat(dtype=str(source.dtype), shape=source.shape)

    if windows == "stored":
        attempt.stage(f"upload {FEATURES}", source.size, "bytes")
        sha256 = attempt.upload(
            FEATURES,
            source,
            NPY,
            npy,
            on_progress=attempt.advance,
        )
    else:
        attempt.stage(f"hash {FEATURES}", source.size, "bytes")
        sha256 = source_sha256(source, attempt.advance)
        attempt.derive(
            FEATURES,
            source.size,
            sha256,
            npy,
            rule=WINDOWS_RULE,
        )

    return {"path": FEATURES, "size": source.size, "sha256": sha256, **npy.fields()}


def write_rest(attempt: Attempt, made: FeatureRows) -> None:
    """Store all but the windows and the metadata."""
    clean = io.BytesIO()
    write_bars(made.bars.frame, clean)
    attempt.write(CLEAN_BARS, clean.getvalue(), PARQUET)
    page = render_bars(made.bars, made.bars.layout.files[0].name)
    attempt.write(BARS_PAGE, page.encode(), HTML)

    attempt.write(
        STATE,
        made.state.to_json().encode(),
        JSON,
    )
    attempt.write(SPLITS_FILE, to_json(made.splits), JSON)

    rows = made.rows
    rows_npy = NpyFormat(dtype=str(rows.dtype), shape=rows.shape)
    attempt.upload(BARS, BytesSource(to_npy(rows)), NPY, rows_npy)

    mask = WindowSource(made.valid)
    mask_npy = NpyFormat(dtype=str(mask.dtype), shape=mask.shape)
    attempt.upload(MASK, mask, NPY, mask_npy)
