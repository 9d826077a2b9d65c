"""Watching runs: a picture that is redrawn on a terminal, lines of what changed elsewhere, or JSON.

The picture is drawn anew every few seconds; nothing else is written to the terminal meanwhile.
"""

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live

from moola.errors import TryAgainError
from moola.launch.console import local_time, one_line, print_text
from moola.launch.live_table import plain_state
from moola.runs.watching import WatchedRun

Runs = Sequence[WatchedRun]
Draw = Callable[[Runs, Console], RenderableType]


class Screen(ABC):
    """Where what was seen is shown. Used as a context."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave it as it should be for whatever is printed next."""
        return

    @abstractmethod
    def show(self, runs: Runs) -> None:
        """Show what a look has found."""

    @abstractmethod
    def trouble(self, text: str) -> None:
        """Tell that the store did not answer."""


def watch(
    look: Callable[[], Runs],
    screen: Screen,
    *,
    is_over: Callable[[Runs], bool],
    every_s: float,
) -> None:
    """Look and show until `is_over`, or until Ctrl-C: KeyboardInterrupt.

    A store that does not answer is told of, and asked again.
    """
    with screen:
        while True:
            try:
                runs = look()
            except TryAgainError as error:
                screen.trouble(f"no answer, trying again: {error}")
            else:
                screen.show(runs)
                if is_over(runs):
                    return
            time.sleep(every_s)


def never(_: Runs) -> bool:
    """Until Ctrl-C."""
    return False


def open_screen(console: Console, draw: Draw) -> Screen:
    """The picture on a terminal, lines elsewhere."""
    return Picture(console, draw) if console.is_terminal else Lines(console)


class Picture(Screen):
    """What `draw` makes of the newest look, in place of the picture before."""

    def __init__(self, console: Console, draw: Draw) -> None:
        self._console = console
        self._draw = draw
        self._live = Live(console=console, auto_refresh=False)
        self._runs: Runs | None = None

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, runs: Runs) -> None:
        self._runs = runs
        self._redraw(f"{local_time(time.time()):%H:%M:%S}; Ctrl-C ends this, and no run")

    def trouble(self, text: str) -> None:
        self._redraw(text)

    def _redraw(self, last_line: str) -> None:
        note = one_line(last_line, "dim")
        seen = [] if self._runs is None else [self._draw(self._runs, self._console)]
        self._live.update(Group(*seen, note), refresh=True)


class Lines(Screen):
    """A line for each run whose state or stage has changed."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._told: dict[str, str] = {}

    def show(self, runs: Runs) -> None:
        for run in runs:
            self._tell(run.run_id, plain_state(run))
        self._told.pop("", None)  # it answers: the next trouble is news

    def trouble(self, text: str) -> None:
        self._tell("", text)

    def _tell(self, subject: str, text: str) -> None:
        if self._told.get(subject) == text:
            return
        self._told[subject] = text
        words = (f"{local_time(time.time()):%H:%M:%S}", subject, text)
        print_text(" ".join(filter(None, words)), self._console)


class JsonLines(Screen):
    """A JSON document a line, each time that something has changed."""

    def __init__(self, console: Console, document: Callable[[Runs], Mapping[str, object]]) -> None:
        self._console = console
        self._document = document
        self._told = ""

    def show(self, runs: Runs) -> None:
        line = json.dumps(self._document(runs), default=str)
        if line != self._told:
            print_text(line, self._console)
        self._told = line

    def trouble(self, text: str) -> None:
        """Nothing: a document is of the runs."""
