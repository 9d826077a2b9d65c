"""The terminal: everything that the commands print or ask goes through here.

Results go to standard output, where a pipe can take them. Logs, progress, plans and questions go
to standard error. Texts come from files, stores, providers and exceptions: none of them can style,
move the cursor or show a secret. What is to have a style is a `rich.text.Text`.
"""

import json
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import TextIO

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from moola.errors import DataError
from moola.runs.redaction import inner_stream, safe_text
from moola.text import LINE_BREAKS_AND_TABS


class SafeConsole(Console):
    """A console of rich that takes texts as they are: no markup, no control characters."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(file=stream, markup=False, highlight=False, emoji=False)

    def render_str(self, text: str, **options: object) -> Text:
        """The text that stands for a string, such as a cell of a table."""
        return super().render_str(safe_text(text), **options)  # type: ignore[arg-type]

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """The pieces of text and the control codes that are printed."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment(safe_text(segment.text), segment.style)


def output() -> Console:
    """Standard output."""
    return SafeConsole(inner_stream(sys.stdout))


def terminal() -> Console:
    """Standard error."""
    return SafeConsole(inner_stream(sys.stderr))


def print_text(text: str, console: Console | None = None) -> None:
    """Print text as it is, without markup; long lines are not broken. Goes to standard output."""
    console = console or output()
    console.print(safe_text(text), markup=False, highlight=False, soft_wrap=True)


def print_error(text: str) -> None:
    """Tell on standard error what ends the command."""
    print_text(f"error: {text}", terminal())


def print_table(table: RenderableType, console: Console | None = None) -> None:
    """Print a table of rich. Goes to standard output."""
    console = console or output()
    console.print(table)


def print_json(document: Mapping[str, object]) -> None:
    """Print a JSON object to standard output."""
    print_text(json.dumps(document, indent=2, default=str))


def one_line(value: object, style: str = "") -> Text:
    """A cell of a table: one line, cut with an ellipsis where the column is too narrow."""
    text = LINE_BREAKS_AND_TABS.sub(" ", safe_text(str(value)))
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def confirm(question: str) -> bool:
    """Ask a yes-or-no question. Raises DataError where nobody can answer it."""
    question = safe_text(question)
    if not sys.stdin.isatty():
        raise DataError(f"{question} Nobody can answer here: add --yes")
    return typer.confirm(question, err=True)


def local_time(time_s: float) -> datetime:
    """Unix seconds in this computer's time zone; the first or last moment where it is beyond."""
    try:
        return datetime.fromtimestamp(time_s).astimezone()
    except (OverflowError, ValueError, OSError):
        return datetime.max.replace(tzinfo=UTC) if time_s > 0 else datetime.min.replace(tzinfo=UTC)


def clock_text(time_s: float) -> str:
    """Unix seconds as local time, to the minute."""
    return f"{local_time(time_s):%Y-%m-%d %H:%M %Z}"
