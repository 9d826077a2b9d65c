"""What the files of bars are called among a run's inputs: one, or several in their order."""

from collections.abc import Sequence
from pathlib import Path

BARS_INPUT = "bars"
BARS_FOLDER = "bars"  # what a job calls several files together


def name_files(files: Sequence[Path]) -> dict[str, Path]:
    """Name among the inputs -> file; the names sort in the order of the files."""
    if len(files) == 1:
        return {BARS_INPUT: files[0]}
    return {f"{BARS_INPUT}-{at:05d}": file for at, file in enumerate(files, start=1)}


def is_bars(name: str) -> bool:
    """Is it the name of an input of bars?"""
    return name == BARS_INPUT or name.startswith(f"{BARS_INPUT}-")
