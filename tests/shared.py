"""What lies beside the checkout: sample bars, API descriptions, tools of a container engine.

A checkout may stand alone, so whoever needs any of it does without where it is absent, and says so.
Nothing else in the tests and scripts reaches outside the repository. A shell script asks with
`python3 tests/shared.py NAME`, which prints the path, or exits 1 and says what is missing.
"""

import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "shared"


def find_shared(name: str) -> Path | None:
    """Path of a file or folder of ../shared; None where it is absent."""
    path = FOLDER / name
    return path if path.exists() else None


def shared(name: str) -> Path:
    """Path of a file or folder of ../shared; where it is absent the test is skipped."""
    import pytest  # a shell script asks with a Python that has none

    path = find_shared(name)
    if path is None:
        pytest.skip(f"../shared/{name} is not there")
    return path


def main(name: str) -> None:
    path = find_shared(name)
    if path is None:
        sys.exit(f"../shared/{name} is not there")
    print(path)


if __name__ == "__main__":
    main(sys.argv[1])
