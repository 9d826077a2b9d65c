"""Several processes as one job:
how many, and that the end of one ends all, with an exit code that says why."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from moola.training.processes import process_count  # noqa: E402
from tests.test_launch import wait_for  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
PARENT = """
import sys
from moola.training.processes import start_processes
sys.exit(start_processes(2, [sys.argv[1]]))
"""
CHILD = """
import os, signal, sys, time
if os.environ["RANK"] == "1":
    {end}
time.sleep({wait})
"""


def run_two(folder: Path, end: str, wait: int = 0) -> int:
    """The exit code of two processes of which the second does `end`;
    both wait first if there is nothing to end."""
    script = folder / "child.py"
    script.write_text(CHILD.format(end=end, wait=wait))
    command = [sys.executable, "-c", PARENT, str(script)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120, check=False)
    return done.returncode


def test_processes_that_end_well_end_the_job_well(tmp_path: Path) -> None:
    assert run_two(tmp_path, "pass") == 0


@pytest.mark.parametrize(
    ("end", "exit_code"),
    [("sys.exit(5)", 5), ("os.kill(os.getpid(), signal.SIGKILL)", -9), ("1 / 0", 1)],
)
def test_the_first_process_that_fails_ends_all_with_its_exit_code(
    tmp_path: Path, end: str, exit_code: int
) -> None:
    assert run_two(tmp_path, end, wait=600) == exit_code


@pytest.mark.parametrize(("signum", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGXCPU, 124)])
def test_a_stop_signal_reaches_every_process(tmp_path: Path, signum: int, exit_code: int) -> None:
    script = tmp_path / "child.py"
    script.write_text(
        "import os, pathlib, signal, sys, time\n"
        "mark = pathlib.Path(__file__).parent / os.environ['RANK']\n"
        f"signal.signal({int(signum)}, lambda *_: (mark.write_text('stopped'), sys.exit(0)))\n"
        "mark.write_text('ready')\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(script)], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    marks = [tmp_path / "0", tmp_path / "1"]
    wait_for(lambda: all(mark.exists() for mark in marks), "both processes ready")
    parent.send_signal(signum)
    assert parent.wait(timeout=60) == exit_code
    assert [mark.read_text() for mark in marks] == ["stopped", "stopped"]


def test_one_process_per_gpu_that_can_share_a_batch_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    assert process_count(None, "cpu", 32) == 1
    assert process_count(3, "cpu", 32) == 3  # as asked; the loader refuses the batch
    for gpus, processes in ((0, 1), (1, 1), (2, 2), (3, 2), (8, 8)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda n=gpus: n)
        assert process_count(None, "cuda", 32) == processes
