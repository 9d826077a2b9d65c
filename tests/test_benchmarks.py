"""The benchmarks can be started: what they import and the options that their pages show exist."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))

pytest.importorskip("torch")


def test_there_are_benchmarks() -> None:
    assert {"gpu", "precompute", "quality", "train"} <= set(MODULES)


FORKS = """
import importlib, os, sys
import lightgbm, pandas, rich.table, torch

for name in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        importlib.import_module(name)
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        sys.exit(f"{name} cannot be imported")
"""


def test_every_benchmark_can_be_imported() -> None:
    """Each in a process of its own, which has other people's modules and none of ours: no other
    benchmark has imported what it forgets."""
    pytest.importorskip("lightgbm")
    modules = [f"benchmarks.{module}" for module in MODULES]
    done = subprocess.run(
        [sys.executable, "-c", FORKS, *modules], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_without_a_gpu_its_benchmark_says_so() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "benchmarks.gpu needs a GPU: " in done.stderr
