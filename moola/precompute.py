"""Precompute: bars -> features -> windows, mask and splits, checked before the attempt commits them."""

import io
import itertools
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pandas as pd

from moola import WINDOW
from moola.bars import Bars, read_bars, write_bars
from moola.errors import ArtifactError
from moola.features import FEATURE_NAMES, FEATURE_RANGES, FeatureState
from moola.runs import Attempt, pull_input
from moola.specs import PrecomputeSpec
from moola.store import BytesSource
from moola.synthetic import make_market
from moola.verify import Report, check_metadata, check_splits, check_stats, stats_of_rows
from moola.windows import (
    BARS,
    CLEAN_BARS,
    FEATURES,
    MASK,
    METADATA,
    SPLITS_FILE,
    WindowSource,
    density,
    source_sha256,
    split_windows,
    splits_document,
    to_json,
    to_npy,
    valid_ratio,
    valid_rows,
)

log = logging.getLogger("moola")
MOVES = "moves.parquet"  # of synthetic bars: the planted truth
PARQUET, NPY, JSON = "application/vnd.apache.parquet", "application/x-npy", "application/json"


def load_bars(attempt: Attempt, spec: PrecomputeSpec, inputs: dict[str, dict[str, Any]]) -> Bars:
    """The input's bars; without an input the synthetic market's, whose planted moves become an artifact."""
    if "bars" in inputs:
        attempt.stage("read bars")
        path = pull_input(attempt.store, inputs["bars"], attempt.work.parent)
        return read_bars(path, timezone=spec.timezone, on_bad_bars=spec.on_bad_bars)
    attempt.stage("make synthetic bars")
    market = make_market(spec.synthetic)
    moves = io.BytesIO()
    market.moves.to_parquet(moves)
    attempt.write(MOVES, moves.getvalue(), PARQUET)
    path = attempt.work / "synthetic.parquet"
    write_bars(market.bars, path)
    return read_bars(path)


def describe_checked(
    spec: PrecomputeSpec, document: dict[str, Any], bars: Bars, split_document: dict[str, Any], rows: Any, valid: Any
) -> dict[str, Any]:
    """metadata.json but for the timing and the digest of the windows. Raises ArtifactError if a check fails."""
    metadata = {
        "moola": document["moola"],
        "source": "bars" if document["inputs"] else "synthetic",
        "inputs": document["inputs"],
        "feature_names": list(FEATURE_NAMES),
        "feature_ranges": {name: list(FEATURE_RANGES[name]) for name in FEATURE_NAMES},
        "config": spec.features.model_dump(mode="json"),
        "on_bad_bars": spec.on_bad_bars,
        "n_windows": len(rows) - WINDOW + 1,
        "window_bars": WINDOW,
        **bars.report.as_dict(),
        "valid_ratio": valid_ratio(valid),
        "density": dict(zip(FEATURE_NAMES, density(rows).tolist(), strict=True)),
        "windows": spec.windows,
    }
    check(metadata, split_document, rows)
    return metadata


def check(metadata: dict[str, Any], split_document: dict[str, Any], rows: Any) -> None:
    """The checks that need no file. Raises ArtifactError that lists those that fail."""
    stats = stats_of_rows(rows)
    report = Report(stats=stats)
    check_metadata(report, metadata)
    check_stats(report, stats)
    check_splits(report, split_document, metadata["n_windows"])
    failed = [f"{c.name}: {c.value}, must be {c.bound}" for c in report.checks if not c.passed]
    if failed:
        raise ArtifactError("the feature set does not verify: " + "; ".join(failed))
    log.info("verified: %d checks passed", len(report.checks))


def write_windows(attempt: Attempt, rows: Any, windows: str) -> dict[str, Any]:
    """Store features_11d.npy, or record the sha256 that pull rebuilds it to."""
    source = WindowSource(rows)
    npy = {"dtype": str(source.dtype), "shape": list(source.shape)}
    attempt.stage(f"{'upload' if windows == 'stored' else 'hash'} {FEATURES}", source.size, "bytes")
    if windows == "stored":
        sha256 = attempt.upload(FEATURES, source, NPY, npy, on_progress=attempt.advance)
    else:
        sha256 = source_sha256(source, attempt.advance)
        attempt.derive(FEATURES, source.size, sha256, npy, rule=f"windows of {BARS}")
    return {"path": FEATURES, "size": source.size, "sha256": sha256, **npy}


def precompute(attempt: Attempt, document: dict[str, Any]) -> None:
    """Bars -> feature set. Raises DataError for bad bars, ArtifactError if what was made does not verify."""
    spec = PrecomputeSpec.model_validate(document["spec"])
    clock = [time.perf_counter()]
    bars = load_bars(attempt, spec, document["inputs"])
    clock.append(time.perf_counter())
    log_report(bars)

    attempt.stage("compute features", len(bars.frame), "bars")
    state = FeatureState(spec.features)
    rows, valid, times = state.extend(bars.frame), valid_rows(bars.flagged), pd.DatetimeIndex(bars.frame.index)
    rule, splits = split_windows(times, spec.splits)
    split_document = splits_document(rule, splits, times)
    clock.append(time.perf_counter())

    # The windows keep one core busy hashing. The rest is done meanwhile, at low priority (in Linux a thread's own).
    with ThreadPoolExecutor(1, initializer=os.nice, initargs=(10,)) as beside:
        described = beside.submit(describe_checked, spec, document, bars, split_document, rows, valid)
        rest = beside.submit(write_rest, attempt, bars, state, split_document, rows, valid)
        windows = write_windows(attempt, rows, spec.windows)
        metadata = described.result()
        rest.result()
    metadata["features_11d"] = windows
    clock.append(time.perf_counter())
    laps = [round(b - a, 3) for a, b in itertools.pairwise(clock)]
    metadata["timing_s"] = dict(zip(("bars", "features", "store"), laps, strict=True))
    attempt.write(METADATA, to_json(metadata), JSON)


def write_rest(
    attempt: Attempt, bars: Bars, state: FeatureState, split_document: dict[str, Any], rows: Any, valid: Any
) -> None:
    """Store all but the windows and the metadata."""
    clean, mask = io.BytesIO(), WindowSource(valid)
    write_bars(bars.frame, clean)
    attempt.write(CLEAN_BARS, clean.getvalue(), PARQUET)
    attempt.write("feature_state.json", state.to_json().encode(), JSON)
    attempt.write(SPLITS_FILE, to_json(split_document), JSON)
    attempt.upload(BARS, BytesSource(to_npy(rows)), NPY, {"dtype": str(rows.dtype), "shape": list(rows.shape)})
    attempt.upload(MASK, mask, NPY, {"dtype": str(mask.dtype), "shape": list(mask.shape)})


def log_report(bars: Bars) -> None:
    """Say what was read: bars, dates, gaps, and what was dropped."""
    report, gaps = bars.report, bars.report.gaps
    log.info("%s bars from %s to %s", f"{report.n_bars:,}", report.first, report.last)
    if gaps.count:
        text = "%s gaps, %s of them session breaks; the longest: %s minutes after %s"
        log.info(text, gaps.count, gaps.session_breaks, f"{gaps.longest_minutes:,}", gaps.longest_after)
    if report.dropped:
        log.warning("dropped bars, by rule: %s", report.dropped)
