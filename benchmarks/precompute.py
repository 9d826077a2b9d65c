"""What precompute costs, as ratios of two things measured side by side in one run.

    python -m benchmarks.precompute                  # all; needs 20 GB of disk, 10 of memory
    python -m benchmarks.precompute features job     # some of: features, job, virtual, store

Each pair is run in turn, A B A B ..., after a warm-up; a row shows both medians and the median of
the paired ratios.
"""

import argparse
import hashlib
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import boto3
import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from moola.data.bars import write_bars
from moola.data.synthetic import make_market
from moola.data.windows import WindowSource
from moola.features import compute_features
from moola.runs.reading import require_manifest
from moola.specs import MarketConfig
from moola.store import open_store
from tests.oracle_features import oracle_features
from tests.seaweed import BUCKET, running_seaweed
from tests.watchdog import watch

FIVE_YEARS = MarketConfig.model_validate({"seed": 1, "start": "2020-09-08", "end": "2025-09-05"})
PARTS = ("features", "job", "virtual", "store")
PRICES = ["open", "high", "low", "close"]
ORACLE_BARS = 200_000
OBJECT_BYTES = 256 << 20
COPY_BYTES = 8 << 20
MB = 1e6


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def medians(ours: list[float], other: list[float]) -> tuple[float, float, float]:
    """(median of ours, median of other, median of the paired ratios)."""
    ratios = [a / b for a, b in zip(ours, other, strict=True)]
    return statistics.median(ours), statistics.median(other), statistics.median(ratios)


def paired(
    ours: Callable[[], object], other: Callable[[], object], runs: int
) -> tuple[float, float, float]:
    """Medians of the seconds that both take, in turn, after one warm-up of each."""
    ours()
    other()

    ours_s = []
    other_s = []
    for _ in range(runs):
        ours_s.append(seconds(ours))
        other_s.append(seconds(other))
    return medians(ours_s, other_s)


# --- features -------------------------------------------------------------------------------------


def candle_columns_in_pandas(bars: pd.DataFrame) -> pd.DataFrame:
    """The first six features as one writes them in pandas, all columns at once."""
    spread = bars["high"] - bars["low"]
    divisor = spread.clip(lower=1e-6)
    average = spread.ewm(span=20, adjust=False).mean().clip(lower=1e-6)
    columns = {
        "open_norm": (bars["open"] - bars["low"]) / divisor,
        "close_norm": (bars["close"] - bars["low"]) / divisor,
        "body_pct": (bars["close"] - bars["open"]) / divisor,
        "upper_wick_pct": (bars["high"] - bars[["open", "close"]].max(axis=1)) / divisor,
        "lower_wick_pct": (bars[["open", "close"]].min(axis=1) - bars["low"]) / divisor,
        "range_z": (spread / average).clip(0, 3),
    }
    return pd.DataFrame(columns).astype(np.float32)


def features_rows(table: Table, bars: pd.DataFrame) -> None:
    six_columns = compute_features(bars)[:, :6]
    in_pandas = candle_columns_in_pandas(bars).to_numpy()
    np.testing.assert_allclose(six_columns, in_pandas, atol=1e-6)  # the same work

    ours, other, ratio = paired(
        lambda: compute_features(bars), lambda: candle_columns_in_pandas(bars), 7
    )
    table.add_row(
        "11 features",
        f"{ours:.3f} s, {len(bars) / ours / 1e6:.1f} M bars/s",
        "6 candle columns in pandas",
        f"{other:.3f} s",
        f"{ratio:.2f}",
        "<= 0.7",
    )

    part = bars.iloc[:ORACLE_BARS]
    tuples = list(part[PRICES].itertuples(index=False, name=None))
    ours, other, ratio = paired(lambda: compute_features(part), lambda: oracle_features(tuples), 7)
    table.add_row(
        f"11 features, {len(part):,} bars",
        f"{ours * 1e3:.1f} ms, {len(part) / ours / 1e6:.1f} M bars/s",
        "the same in plain Python",
        f"{other:.2f} s",
        f"1 / {1 / ratio:.0f}",
        "< 1 / 250",
    )


# --- the whole job --------------------------------------------------------------------------------


def run_job(folder: Path, bars: Path, windows: str) -> tuple[float, float]:
    """(seconds, peak MB of the job's process) of `moola precompute`, started cold.

    Its store is its own, and new.
    """
    shutil.rmtree(folder / "store", ignore_errors=True)
    store_url = f"file://{folder}/store"
    environment = {**os.environ, "MOOLA_STORE": store_url, "MOOLA_WORK": str(folder / "work")}
    command = [sys.executable, "-m", "moola", "precompute", "--bars", str(bars)]

    took_s = seconds(
        lambda: subprocess.run(
            [*command, "--windows", windows],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
        )
    )
    store = open_store(store_url)
    manifest = require_manifest(store, store.children("runs")[0])
    peak_memory_mb = manifest.provenance["peak_memory_mb"]
    assert isinstance(peak_memory_mb, float)
    return took_s, peak_memory_mb


def write_plainly(source: WindowSource, path: Path) -> None:
    """The same bytes, one buffer after the other, onto the disk."""
    buffer = bytearray(COPY_BYTES)
    with path.open("wb", buffering=0) as stream:
        for offset in range(0, source.size, len(buffer)):
            chunk = memoryview(buffer)[: source.size - offset]
            source.read_into(offset, chunk)
            while chunk:
                written = stream.write(chunk)
                chunk = chunk[written:]
        os.fsync(stream.fileno())


def job_rows(table: Table, folder: Path, bars: Path, source: WindowSource, runs: int) -> None:
    peaks_mb = []
    plain = folder / "plain.npy"

    def whole_job() -> None:
        _, peak_mb = run_job(folder, bars, "stored")
        peaks_mb.append(peak_mb)

    def plain_writer() -> None:
        plain.unlink(missing_ok=True)
        write_plainly(source, plain)

    ours, other, ratio = paired(whole_job, plain_writer, runs)
    table.add_row(
        f"whole job, stored, {source.size / 1e9:.2f} GB",
        f"{ours:.1f} s, peak {max(peaks_mb):.0f} MB",
        "plain sequential writer",
        f"{other:.1f} s",
        f"{ratio:.2f}",
        "< 1.25",
    )
    plain.unlink()


def hash_in_memory(rows: np.ndarray) -> float:
    """Seconds of sha256 over all windows of `rows`, laid out in memory first."""
    source = WindowSource(rows)
    windows = np.empty(source.size, np.uint8)
    source.read_into(0, memoryview(windows))
    return seconds(lambda: hashlib.sha256(windows).hexdigest())


def virtual_rows(table: Table, folder: Path, bars: Path, rows: np.ndarray, runs: int) -> None:
    """The 8 GB are in a process of their own, which has ended when the next job starts.

    So a job has the machine to itself.
    """
    jobs_s = []
    hashes_s = []
    peaks_mb = []
    context = multiprocessing.get_context("spawn")
    for _ in range(runs + 1):  # the first is the warm-up
        took_s, peak_mb = run_job(folder, bars, "virtual")
        with ProcessPoolExecutor(1, mp_context=context) as process:
            hashes_s.append(process.submit(hash_in_memory, rows).result())
        jobs_s.append(took_s)
        peaks_mb.append(peak_mb)

    ours, other, ratio = medians(jobs_s[1:], hashes_s[1:])
    table.add_row(
        f"whole job, virtual, {WindowSource(rows).size / 1e9:.2f} GB",
        f"{ours:.1f} s, peak {max(peaks_mb):.0f} MB",
        "sha256 of it in memory",
        f"{other:.1f} s",
        f"{ratio:.2f}",
        "< 1.5",
    )


# --- the store ------------------------------------------------------------------------------------


class Noise:
    """256 MiB that do not compress."""

    size = OBJECT_BYTES

    def __init__(self) -> None:
        self.data = np.random.default_rng(0).bytes(self.size)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.data[offset : offset + len(buffer)]


def copy_on_disk(source: Path, target: Path) -> None:
    with source.open("rb") as reading, target.open("wb") as writing:
        shutil.copyfileobj(reading, writing, COPY_BYTES)
        writing.flush()
        os.fsync(writing.fileno())


def upload_and_pull_rows(table: Table, folder: Path, runs: int) -> None:
    """Against the S3 server that the environment names."""
    source = Noise()
    noise = folder / "noise"
    noise.write_bytes(source.data)
    sha256 = hashlib.sha256(source.data).hexdigest()
    store = open_store(f"s3://{BUCKET}/bench")
    client = boto3.client("s3")
    uploads = iter(range(1, 1_000))  # nothing is stored twice under one name

    def upload() -> None:
        store.upload(f"ours/{next(uploads)}", source)

    def upload_with_boto3() -> None:
        client.upload_file(str(noise), BUCKET, f"boto3/{next(uploads)}")

    def copy() -> None:
        copy_on_disk(noise, folder / "copy")

    def pull() -> None:
        store.pull("pulled", folder / "pulled", size=source.size, sha256=sha256)

    def download_with_boto3() -> None:
        client.download_file(BUCKET, "bench/pulled", str(folder / "downloaded"))

    store.upload("pulled", source)
    for name, ours, other_name, other in (
        ("upload", upload, "boto3 upload_file", upload_with_boto3),
        ("upload", upload, "disk copy + fsync", copy),
        ("pull, verified", pull, "boto3 download_file, unverified", download_with_boto3),
        ("pull, verified", pull, "disk copy + fsync", copy),
    ):
        ours_s, other_s, ratio = paired(ours, other, runs)
        table.add_row(
            f"{name}, 256 MiB, S3 on loopback",
            f"{source.size / MB / ours_s:.0f} MB/s",
            other_name,
            f"{source.size / MB / other_s:.0f} MB/s",
            f"{ratio:.2f}",
            "",
        )


def store_rows(table: Table, folder: Path, runs: int) -> None:
    with running_seaweed() as server:
        os.environ.update(server.environment())
        upload_and_pull_rows(table, folder, runs)


def measure(parts: list[str], runs: int, folder: Path) -> Table:
    table = Table(
        "ours", "measured", "against", "measured", "time ratio", "goal", title="precompute"
    )
    market = make_market(FIVE_YEARS).bars
    bars = folder / "nq.parquet"
    write_bars(market, bars)
    table.caption = f"{len(market):,} synthetic bars, seed {FIVE_YEARS.seed}, {runs} paired runs"

    if "features" in parts:
        features_rows(table, market)
    rows = compute_features(market)
    if "job" in parts:
        job_rows(table, folder, bars, WindowSource(rows), runs)
    if "virtual" in parts:
        virtual_rows(table, folder, bars, rows, runs)
    if "store" in parts:
        store_rows(table, folder, runs)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", default=list(PARTS))
    parser.add_argument("--runs", type=int, default=3, help="counted runs of each pair")
    options = parser.parse_args()

    watch()  # a server ends with this process, also if it is killed
    with tempfile.TemporaryDirectory() as folder:
        table = measure(options.parts, options.runs, Path(folder))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
