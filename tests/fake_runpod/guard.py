"""Kills what belongs to a pod; as a process of its own, when the fake is gone.

So `kill -9` of the fake leaves nothing. A container's processes die with its first one, whatever
sessions they made. They are found by process group, by the pod's id in the environment they were
started with, and by a current folder in the pod's scratch (its name starts with the id). The folder
of all scratches is the argument, and removed; on stdin comes one pod id a line.
"""

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

MARK = "RUNPOD_POD_ID"


def members(pod_id: str) -> list[int]:
    """Processes started with the pod's environment, or whose folder is its; [] without /proc."""
    mark, found = f"{MARK}={pod_id}".encode(), []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended, or of somebody else
            marked = mark in (process / "environ").read_bytes().split(b"\0")
            if marked or f"/{pod_id}-" in str((process / "cwd").readlink()):
                found.append(int(process.name))
    return found


def signal_all(pod_id: str, pgid: int, number: int) -> None:
    """Send the signal to everything in the pod."""
    with contextlib.suppress(OSError):
        os.killpg(pgid, number)
    for pid in members(pod_id):
        with contextlib.suppress(OSError):
            os.kill(pid, number)


def kill_all(pod_id: str) -> None:
    """SIGKILL until nothing is left, also of what is being forked meanwhile."""
    while pids := members(pod_id):
        for pid in pids:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)


def main() -> None:
    for pod_id in set(
        sys.stdin.read().split()
    ):  # until the fake has closed its end, in whatever way
        kill_all(pod_id)
    shutil.rmtree(sys.argv[1], ignore_errors=True)


if __name__ == "__main__":
    main()
