"""The programs that the dev extra brings."""

import os
import shutil
import sys
from pathlib import Path

import pytest


def tool(name: str) -> str:
    """Path of a program beside this Python, or on PATH; without it the test is skipped."""
    beside_python = Path(sys.executable).parent
    path = shutil.which(name, path=f"{beside_python}{os.pathsep}{os.environ['PATH']}")
    if path is None:
        pytest.skip(f"{name} is not installed (it is in the dev extra)")
    return path
