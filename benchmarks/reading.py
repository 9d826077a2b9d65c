"""What reading and checking five years of bars costs, beside another commit in one run.

    python -m benchmarks.reading                             # parquet and CSV
    python -m benchmarks.reading --against ../other-checkout # and the same there, as ratios

Processes here and there take turns. Each reads once to warm up and three times more, of which the
quickest counts. The ratio is that of processor time, which other work on the machine disturbs less.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from moola.data.bars import write_bars
from moola.data.synthetic import make_market
from moola.specs import MarketConfig

FIVE_YEARS = MarketConfig.model_validate({"seed": 1, "start": "2020-09-08", "end": "2025-09-05"})
HERE = Path(__file__).resolve().parents[1]
GOALS = {"bars.parquet": "< 1.2 of the other's time", "bars.csv": "< 3 s, < 1 GB"}
# Runs in either checkout; the reader stood in moola.bars before it moved to moola.data.bars.
READ = """
import json, sys, time
from pathlib import Path
try:
    from moola.data.bars import read_bars
except ImportError:
    from moola.bars import read_bars

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith(name))

before = status("VmRSS")
read_bars(Path(sys.argv[1]))
took = []
for _ in range(3):
    start, cpu_start = time.perf_counter(), time.process_time()
    bars = read_bars(Path(sys.argv[1]))
    took.append((time.process_time() - cpu_start, time.perf_counter() - start))
    n_bars = len(bars.frame)
    del bars
cpu_seconds, seconds = map(min, zip(*took))
peak = status("VmHWM") - before
reading = {"n_bars": n_bars, "seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": peak}
print(json.dumps(reading))
"""


@dataclass(frozen=True)
class Reading:
    """Seconds of the quickest reading, and the most memory of all in one process, beyond its
    imports.
    """

    n_bars: int
    seconds: float
    cpu_seconds: float
    peak_mb: float


def read_in(checkout: Path, file: Path) -> Reading:
    """A reading of `file` by the package in `checkout`."""
    done = subprocess.run(
        [sys.executable, "-c", READ, str(file)],
        cwd=checkout,
        check=True,
        capture_output=True,
        text=True,
    )
    return Reading(**json.loads(done.stdout))


def write_csv(bars: pd.DataFrame, path: Path) -> None:
    bars.to_csv(path, date_format="%Y-%m-%dT%H:%M:%SZ")


def add_row(table: Table, file: Path, checkouts: list[Path], runs: int) -> None:
    readings = [[read_in(checkout, file) for checkout in checkouts] for _ in range(runs)]
    columns = list(zip(*readings, strict=True))
    texts = [_text(list(column)) for column in columns]
    ratio = ""

    if len(columns) == 2:
        ours, other = columns
        paired = [a.cpu_seconds / b.cpu_seconds for a, b in zip(ours, other, strict=True)]
        ratio = f"{statistics.median(paired):.2f}"
    table.add_row(file.name, *texts, ratio, GOALS[file.name])


def _text(readings: list[Reading]) -> str:
    seconds = statistics.median(reading.seconds for reading in readings)
    cpu = statistics.median(reading.cpu_seconds for reading in readings)
    peak_mb = max(reading.peak_mb for reading in readings)
    return f"{seconds:.2f} s, processor {cpu:.2f} s, {peak_mb:.0f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--against", type=Path, help="a checkout of another commit")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="keep the files there, and use those there")
    arguments = parser.parse_args()

    checkouts = [HERE]
    if arguments.against is not None:
        checkouts.append(arguments.against.resolve())

    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        files = [folder / name for name in GOALS]
        if not all(file.exists() for file in files):
            bars = make_market(FIVE_YEARS).bars
            write_bars(bars, files[0])
            write_csv(bars, files[1])

        others = [path.name for path in checkouts[1:]]
        table = Table("file", "here", *others, "ratio", "goal")
        for file in files:
            add_row(table, file, checkouts, arguments.runs)
        Console().print(table)


if __name__ == "__main__":
    main()
