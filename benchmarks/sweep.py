"""Sweeps against each other: several runs at once against one, and Ray against no Ray, as ratios.

    python -m benchmarks.sweep [--parallel 2] [--runs 6] [--ray]

All sweeps do the same train runs, each in a store of its own. With --ray the same sweeps, and ones
of a third of the runs, are done --on ray too, on the cluster of RAY_ADDRESS or on one of this
computer: what a further run takes there, against what it takes --on local with as many at once, is
the overhead of Ray for each member; what is left is the start of the cluster.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

SMALL = (
    *("--set", "training.full_epochs=2", "--set", "training.windows_per_epoch=512"),
    *("--set", "trees.members=1", "--set", "presence.windows=300"),
)


def moola(folder: Path, *arguments: str) -> float:
    """Seconds that a command takes."""
    environment = {
        **os.environ,
        "MOOLA_STORE": f"file://{folder}/store",
        "MOOLA_WORK": f"{folder}/work",
    }
    command = [sys.executable, "-m", "moola", *arguments]
    start = time.monotonic()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - start


def sweep_s(base: Path, runs: int, how: Sequence[str]) -> float:
    """Seconds that a sweep of so many runs takes, in a copy of the store that has the features."""
    seeds = ",".join(map(str, range(runs)))
    with tempfile.TemporaryDirectory(dir=base.parent) as name:
        folder = shutil.copytree(base, Path(name) / "store-and-work")
        return moola(folder, "sweep", "train", "--over", f"training.seed={seeds}", *SMALL, *how)


def compare_with_ray(base: Path, runs: int, parallel: int, local_s: float) -> None:
    """Print what Ray adds to each member, and to the sweep as a whole."""
    few = max(runs // 3, 1)
    at_once = ("--parallel", str(parallel))
    local_few_s = sweep_s(base, few, at_once)
    ray_few_s = sweep_s(base, few, (*at_once, "--on", "ray"))
    ray_s = sweep_s(base, runs, (*at_once, "--on", "ray"))

    local_member_s = (local_s - local_few_s) / (runs - few)
    ray_member_s = (ray_s - ray_few_s) / (runs - few)
    print(
        f"on ray: {ray_s:.1f} s {parallel} at a time; a further run takes {ray_member_s:.2f} s, "
        f"{local_member_s:.2f} s on local: {ray_member_s / local_member_s:.2f} times as long; "
        f"the whole sweep {ray_s / local_s:.2f} times"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parallel", type=int, default=2)
    parser.add_argument("--runs", type=int, default=6, help="at least 3 with --ray")
    parser.add_argument("--ray", action="store_true", help="the same on Ray, too")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as name:
        base = Path(name) / "base"
        moola(base, "precompute", "--windows", "virtual", "--set", "synthetic.end=2025-03-31")
        one_s = sweep_s(base, options.runs, ("--parallel", "1"))
        several_s = sweep_s(base, options.runs, ("--parallel", str(options.parallel)))
        print(
            f"{options.runs} train runs: {one_s:.1f} s one at a time, {several_s:.1f} s "
            f"{options.parallel} at a time; speed-up {one_s / several_s:.2f}"
        )
        if options.ray:
            compare_with_ray(base, options.runs, options.parallel, several_s)


if __name__ == "__main__":
    main()
