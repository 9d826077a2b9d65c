"""`python -m moola` is the command `moola`."""

import os
import signal
from types import FrameType

from moola.errors import EXIT_CANCELLED


def main() -> None:
    """The command line. Ctrl-C ends it quietly also while it is still being imported."""
    signal.signal(signal.SIGINT, _leave)
    from moola.cli.app import main as run

    run()


def _leave(_signum: int, _frame: FrameType | None) -> None:
    os._exit(EXIT_CANCELLED)


if __name__ == "__main__":
    main()
