"""--watch: the same look again and again, as a picture, as lines, or as JSON."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import typer

from moola.errors import EXIT_CANCELLED

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from moola.launch.settings import Settings
    from moola.runs.watching import WatchedRun


def watch_runs(
    settings: "Settings",
    look: "Callable[[], Sequence[WatchedRun]]",
    draw: "Callable[[Sequence[WatchedRun], Console], RenderableType]",
    document: "Callable[[Sequence[WatchedRun]], Mapping[str, object]]",
    *,
    as_json: bool,
    is_over: "Callable[[Sequence[WatchedRun]], bool]",
) -> None:
    """Look every `watch.poll_s` until it is over. Ctrl-C is exit code 130."""
    from moola.launch.console import output
    from moola.launch.live import JsonLines, open_screen, watch

    console = output()
    screen = JsonLines(console, document) if as_json else open_screen(console, draw)
    try:
        watch(look, screen, is_over=is_over, every_s=settings.watch.poll_s)
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_CANCELLED) from None


def live_document(run: "WatchedRun") -> dict[str, object]:
    """What a look adds to the document of a run."""
    from moola.runs.reading import heartbeat_fields

    heartbeat = {} if run.heartbeat is None else heartbeat_fields(run.heartbeat)
    return {
        "heartbeat": heartbeat,
        "left_s": None if run.heartbeat is None or not run.is_running else run.heartbeat.left_s,
        "cost": run.cost,
    }
