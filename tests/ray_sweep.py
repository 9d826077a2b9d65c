"""A group of small jobs on a Ray cluster, as a launcher of its own.

`python -m tests.ray_sweep STORE WORK RUN_ID...`, with the cluster in RAY_ADDRESS, runs two at a
time; the last line is run id -> exit code as JSON.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from moola.launch.console import terminal
from moola.launch.member_progress import MemberProgress
from moola.launch.on_ray.environment import member_environment
from moola.launch.on_ray.members import MemberOrder, RayMembers
from moola.launch.settings import Settings
from moola.providers.ray_cluster import Share, open_cluster
from moola.store import open_store

SMALL_JOB = Path(__file__).with_name("small_job.py")
SHARE = Share(cores=1, gpus=0, memory_gb=0.1)
FURTHER_TRIES = 2
LONGEST_S = 500.0


def run_small(store_url: str, work: Path, run_ids: list[str], address: str) -> dict[str, int]:
    """Run id -> exit code, of small jobs on the nodes of the cluster at this address."""
    return ended_small(start_small(store_url, work, run_ids, address))


def start_small(
    store_url: str, work: Path, run_ids: list[str], address: str
) -> "subprocess.Popen[str]":
    """The launcher of small jobs, at work."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.ray_sweep", store_url, str(work), *run_ids],
        env={**os.environ, "RAY_ADDRESS": address},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended_small(launcher: "subprocess.Popen[str]") -> dict[str, int]:
    """Run id -> exit code, once the launcher has ended."""
    out, err = launcher.communicate(timeout=LONGEST_S)
    assert launcher.returncode == 0, err
    exit_codes: dict[str, int] = json.loads(out.splitlines()[-1])
    return exit_codes


def main(store_url: str, work: str, run_ids: list[str]) -> None:
    store = open_store(store_url)
    settings = Settings(store=store.url, work=Path(work))
    orders = {}
    for run_id in run_ids:
        variables = member_environment(settings, store, run_id, SHARE, {"MOOLA_BEAT_S": "0.1"})
        orders[run_id] = MemberOrder(SHARE, FURTHER_TRIES, variables)

    titles = dict.fromkeys(run_ids, "")
    with (
        open_cluster(1, with_gpus=False) as cluster,
        MemberProgress(terminal(), store, titles) as progress,
    ):
        members = RayMembers(cluster, store, [str(SMALL_JOB)], orders, parallel=2)
        exit_codes = members.run(run_ids, progress)
    print(json.dumps(exit_codes))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
