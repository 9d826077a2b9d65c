"""What precompute costs, as ratios of two things measured side by side in one run.

    python benchmarks/precompute.py                  # all; needs 20 GB of disk, 10 of memory
    python benchmarks/precompute.py features job     # some of: features, job, virtual, store

Each pair is run in turn, A B A B ..., after a warm-up; a row shows both medians and the median of the paired ratios.
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

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from moola.bars import write_bars
from moola.features import compute_features
from moola.runs import require_manifest
from moola.specs import MarketConfig
from moola.store import open_store
from moola.synthetic import make_market
from moola.windows import WindowSource
from tests.oracle_features import oracle_features
from tests.seaweed import BUCKET, running_seaweed

FIVE_YEARS = MarketConfig.model_validate({"seed": 1, "start": "2020-09-08", "end": "2025-09-05"})
ORACLE_BARS = 200_000
OBJECT_BYTES = 256 << 20
MB, GIB = 1e6, 1 << 30


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def paired(ours: Callable[[], object], other: Callable[[], object], runs: int) -> tuple[float, float, float]:
    """(median of ours, median of other, median of the paired ratios), after one warm-up of each."""
    ours(), other()
    pairs = [(seconds(ours), seconds(other)) for _ in range(runs)]
    return (
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        statistics.median(a / b for a, b in pairs),
    )


def candle_columns_in_pandas(bars: pd.DataFrame) -> pd.DataFrame:
    """The first six features as one writes them in pandas, all columns at once."""
    spread = bars["high"] - bars["low"]
    wide = spread.clip(lower=1e-6)
    columns = {
        "open_norm": (bars["open"] - bars["low"]) / wide,
        "close_norm": (bars["close"] - bars["low"]) / wide,
        "body_pct": (bars["close"] - bars["open"]) / wide,
        "upper_wick_pct": (bars["high"] - bars[["open", "close"]].max(axis=1)) / wide,
        "lower_wick_pct": (bars[["open", "close"]].min(axis=1) - bars["low"]) / wide,
        "range_z": (spread / spread.ewm(span=20, adjust=False).mean().clip(lower=1e-6)).clip(0, 3),
    }
    return pd.DataFrame(columns).astype(np.float32)


def features_rows(table: Table, bars: pd.DataFrame) -> None:
    six = compute_features(bars)[:, :6]
    np.testing.assert_allclose(six, candle_columns_in_pandas(bars).to_numpy(), atol=1e-6)  # the same work
    ours, theirs, ratio = paired(lambda: compute_features(bars), lambda: candle_columns_in_pandas(bars), 7)
    table.add_row("11 features", f"{ours:.3f} s, {len(bars) / ours / 1e6:.1f} M bars/s",
                  "6 candle columns in pandas", f"{theirs:.3f} s", f"{ratio:.2f}", "<= 0.7")  # fmt: skip
    part = bars.iloc[:ORACLE_BARS]
    tuples = list(part[["open", "high", "low", "close"]].itertuples(index=False, name=None))
    ours, theirs, ratio = paired(lambda: compute_features(part), lambda: oracle_features(tuples), 7)
    table.add_row(f"11 features, {len(part):,} bars", f"{ours * 1e3:.1f} ms, {len(part) / ours / 1e6:.1f} M bars/s",
                  "the same in plain Python", f"{theirs:.2f} s", f"1 / {1 / ratio:.0f}", "< 1 / 250")  # fmt: skip


def run_job(folder: Path, bars: Path, windows: str) -> tuple[float, float]:
    """(seconds, peak MB of the job's process) of `launch.py precompute`, started cold, in a store of its own."""
    shutil.rmtree(folder / "store", ignore_errors=True)
    env = {**os.environ, "MOOLA_STORE": f"file://{folder}/store", "MOOLA_WORK": str(folder / "work")}
    command = [
        sys.executable,
        str(ROOT / "deploy" / "launch.py"),
        "precompute",
        "--bars",
        str(bars),
        "--windows",
        windows,
    ]
    before = time.perf_counter()
    subprocess.run(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    took, store = time.perf_counter() - before, open_store(f"file://{folder}/store")
    manifest = require_manifest(store, store.children("runs")[0])
    return took, manifest["provenance"]["peak_memory_mb"]


def plain_writer(source: WindowSource, path: Path) -> None:
    """The same bytes, one 8 MiB buffer after the other, onto the disk."""
    buffer = bytearray(8 << 20)
    with path.open("wb", buffering=0) as stream:
        for offset in range(0, source.size, len(buffer)):
            chunk = memoryview(buffer)[: source.size - offset]
            source.read_into(offset, chunk)
            while chunk:
                chunk = chunk[stream.write(chunk) :]
        os.fsync(stream.fileno())


def job_rows(table: Table, folder: Path, bars: Path, source: WindowSource, runs: int) -> None:
    peaks = []

    def ours() -> None:
        shutil.rmtree(folder / "store", ignore_errors=True)
        peaks.append(run_job(folder, bars, "stored")[1])

    def other() -> None:
        (folder / "plain.npy").unlink(missing_ok=True)
        plain_writer(source, folder / "plain.npy")

    a, b, ratio = paired(ours, other, runs)
    table.add_row(f"whole job, stored, {source.size / 1e9:.2f} GB", f"{a:.1f} s, peak {max(peaks):.0f} MB",
                  "plain sequential writer", f"{b:.1f} s", f"{ratio:.2f}", "< 1.25")  # fmt: skip
    (folder / "plain.npy").unlink()


def hash_in_memory(rows: np.ndarray) -> float:
    """Seconds of sha256 over all windows of `rows`, laid out in memory first."""
    source = WindowSource(rows)
    whole = np.empty(source.size, np.uint8)
    source.read_into(0, memoryview(whole))
    return seconds(lambda: hashlib.sha256(whole).hexdigest())


def virtual_rows(table: Table, folder: Path, bars: Path, rows: np.ndarray, runs: int) -> None:
    """The 8 GB are in a process of their own, which has ended when the job starts: a job has the machine to itself."""
    ours, theirs, peaks = [], [], []
    for _ in range(runs + 1):
        took, peak = run_job(folder, bars, "virtual")
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            theirs.append(process.submit(hash_in_memory, rows).result())
        ours.append(took)
        peaks.append(peak)
    del ours[0], theirs[0]  # the warm-up
    a, b = statistics.median(ours), statistics.median(theirs)
    ratio = statistics.median(x / y for x, y in zip(ours, theirs, strict=True))
    table.add_row(f"whole job, virtual, {WindowSource(rows).size / 1e9:.2f} GB", f"{a:.1f} s, peak {max(peaks):.0f} MB",
                  "sha256 of it in memory", f"{b:.1f} s", f"{ratio:.2f}", "< 1.5")  # fmt: skip


class Noise:
    """256 MiB that do not compress."""

    size = OBJECT_BYTES

    def __init__(self) -> None:
        self.data = np.random.default_rng(0).bytes(self.size)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.data[offset : offset + len(buffer)]


def store_rows(table: Table, folder: Path, runs: int) -> None:
    import boto3

    source, path = Noise(), folder / "noise"
    path.write_bytes(source.data)
    sha256 = hashlib.sha256(source.data).hexdigest()
    with running_seaweed() as server:
        os.environ.update(server.environment())
        store, client, n = open_store(f"s3://{BUCKET}/bench"), boto3.client("s3"), [0]

        def up() -> None:
            n[0] += 1
            store.upload(f"up/{n[0]}", source)

        def boto_up() -> None:
            client.upload_file(str(path), BUCKET, f"boto/{n[0]}")

        def disk_copy() -> None:
            with path.open("rb") as a, (folder / "copy").open("wb") as b:
                shutil.copyfileobj(a, b, 8 << 20)
                b.flush()
                os.fsync(b.fileno())

        def down() -> None:
            store.pull("up/1", folder / "down", size=source.size, sha256=sha256)

        def boto_down() -> None:
            client.download_file(BUCKET, "boto/1", str(folder / "boto_down"))

        rate = source.size / MB
        for name, ours, others in (
            ("upload", up, {"boto3 upload_file": boto_up, "disk copy + fsync": disk_copy}),
            ("pull, verified", down, {"boto3 download_file, unverified": boto_down, "disk copy + fsync": disk_copy}),
        ):
            for other_name, other in others.items():
                a, b, ratio = paired(ours, other, runs)
                table.add_row(f"{name}, 256 MiB, S3 on loopback", f"{rate / a:.0f} MB/s",
                              other_name, f"{rate / b:.0f} MB/s", f"{ratio:.2f}", "")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["features", "job", "virtual", "store"])
    parser.add_argument("--runs", type=int, default=3, help="counted runs of each pair")
    options = parser.parse_args()
    table = Table("ours", "measured", "against", "measured", "time ratio", "goal", title="precompute")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        market = make_market(FIVE_YEARS).bars
        bars = folder / "nq.parquet"
        write_bars(market, bars)
        table.caption = f"{len(market):,} synthetic bars, seed {FIVE_YEARS.seed}, {options.runs} paired runs"
        if "features" in options.parts:
            features_rows(table, market)
        rows = compute_features(market)
        if "job" in options.parts:
            job_rows(table, folder, bars, WindowSource(rows), options.runs)
        if "virtual" in options.parts:
            virtual_rows(table, folder, bars, rows, options.runs)
        if "store" in options.parts:
            store_rows(table, folder, options.runs)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
