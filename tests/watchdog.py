"""Ends what a test process started, should that process be killed: `kill -9` leaves no server.

`watch()` marks this process's environment, which all that it starts inherits, and starts this file
as a process of its own. That one waits until the test process is gone, in whatever way, and then
kills all that carries the mark and removes the folders that the mark names. Linux only: elsewhere
nothing is watched.
"""

import contextlib
import os
import secrets
import select
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

VARIABLE = "STARTED_BY_TESTS"
SECONDS_TO_SETTLE = 10.0  # for what the kernel cannot kill at once


def watch() -> None:
    """Have all that this process starts from now on killed once it is gone."""
    if sys.platform != "linux":
        return

    unmarked = {name: value for name, value in os.environ.items() if name != VARIABLE}
    mark = f"{os.getpid()}-{secrets.token_hex(4)}"
    os.environ[VARIABLE] = mark

    os.posix_spawn(  # not Popen, which would warn that its process outlives it
        sys.executable,
        [sys.executable, "-I", "-S", __file__, str(os.getpid()), mark],
        unmarked,
        setsid=True,  # a Ctrl-C in the terminal is not for it
    )


def scratch_folder(prefix: str) -> Path:
    """A new folder, short as the names of sockets must be, that goes when the test process does."""
    mark = os.environ.get(VARIABLE, "unwatched")
    return Path(tempfile.mkdtemp(prefix=f"{prefix}{mark}-", dir="/tmp"))


def marked_processes(mark: str) -> list[int]:
    """Processes that were started with the mark in their environment."""
    assignment = f"{VARIABLE}={mark}".encode()
    pids = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended, or is somebody else's
            if assignment in (process / "environ").read_bytes().split(b"\0"):
                pids.append(int(process.name))
    return pids


def wait_until_gone(pid: int) -> None:
    with contextlib.suppress(OSError):  # it is gone already
        descriptor = os.pidfd_open(pid)
        if os.getppid() == pid:
            select.select([descriptor], [], [])


def main(pid: int, mark: str) -> None:
    wait_until_gone(pid)

    deadline = time.monotonic() + SECONDS_TO_SETTLE
    while (pids := marked_processes(mark)) and time.monotonic() < deadline:
        for each in pids:
            with contextlib.suppress(OSError):
                os.kill(each, signal.SIGKILL)
        time.sleep(0.01)

    for folder in Path("/tmp").glob(f"*{mark}-*"):
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
