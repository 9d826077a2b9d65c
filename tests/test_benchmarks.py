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


@pytest.mark.parametrize("module", MODULES)
def test_every_benchmark_can_be_imported(module: str) -> None:
    """In a process of its own: no other test has imported what it forgets."""
    done = subprocess.run(
        [sys.executable, "-c", f"import benchmarks.{module}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
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
