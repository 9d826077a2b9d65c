"""The process of a job on this machine, which may be started before its run is known.

Imports nothing of ours and nothing heavy: it is what the launcher does first.
"""

import atexit
import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

Process = subprocess.Popen[bytes]


def start(job: str, environment: dict[str, str], *args: str, stdin: int = subprocess.DEVNULL) -> Process:
    """Start jobs/<job>.py in a session of its own, so that Ctrl-C reaches it once, through the launcher.

    What it prints is in the log chunks already; only a traceback before the protocol starts would be lost, so
    stderr stays connected.
    """
    command = [sys.executable, str(ROOT / "jobs" / f"{job}.py"), *args]
    env = {**os.environ, **environment}
    return subprocess.Popen(command, env=env, stdin=stdin, stdout=subprocess.DEVNULL, start_new_session=True)


def start_ahead(job: str) -> Process:
    """Start a job that imports what it needs while the launcher finds out what it is to do, and then waits.

    It ends when this process does, unless it has been told its run.
    """
    process = start(job, {"PYTHONUNBUFFERED": "1"}, "--ahead", stdin=subprocess.PIPE)
    atexit.register(process.kill)
    return process


def tell(process: Process, environment: dict[str, str]) -> Process:
    """Let a job that was started ahead begin."""
    atexit.unregister(process.kill)
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin as stdin:  # it is dead: its exit code will say so
        stdin.write(json.dumps(environment).encode() + b"\n")
    return process
