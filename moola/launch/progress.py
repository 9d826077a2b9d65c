"""Progress bars: of bytes and of things done, and of a run by its heartbeat.

A bar is drawn on a terminal only.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from moola.errors import ArtifactError
from moola.launch.console import print_text, terminal
from moola.runs.reading import read_heartbeat
from moola.store import Store

Advance = Callable[[int], None]  # moves a bar on by an amount


class HeartbeatBar:
    """The stage of an attempt and how far it is; nothing where `console` is no terminal."""

    def __init__(self, console: Console, store: Store, run_id: str, attempt_id: str) -> None:
        self._store = store
        self._run_id = run_id
        self._attempt_id = attempt_id
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[amount]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("start", total=None, amount="")
        self._stage = ""

    def __enter__(self) -> "HeartbeatBar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self) -> None:
        """Show the newest heartbeat."""
        if self._progress.disable:
            return
        try:
            heartbeat = read_heartbeat(self._store, self._run_id, self._attempt_id)
        except ArtifactError:  # the log goes on without a bar
            return
        if heartbeat is None:
            return

        done = heartbeat.done
        total = heartbeat.total
        unit = heartbeat.unit

        if heartbeat.stage != self._stage:
            self._stage = heartbeat.stage
            self._progress.reset(self._task, description=self._stage, total=total or None)

        amount = f"{amount_text(done, unit)} / {amount_text(total, unit)}" if total else ""
        self._progress.update(self._task, completed=done, amount=f"{amount}  {heartbeat.note}")


def amount_text(value: int, unit: str) -> str:
    """1,234 bars; bytes as MB."""
    if unit == "bytes":
        return f"{value / 1e6:,.1f} MB"
    return f"{value:,} {unit}"


def byte_bar(description: str, total: int | None = None) -> AbstractContextManager[Advance]:
    """A bar of `total` bytes; gives the function that advances it."""
    title = f"{description}: {amount_text(total, 'bytes')}" if total else description
    return _bar(description, title, total, DownloadColumn(), TransferSpeedColumn())


def count_bar(description: str, total: int, unit: str) -> AbstractContextManager[Advance]:
    """A bar of `total` things; gives the function that advances it."""
    title = f"{description}: {amount_text(total, unit)}"
    return _bar(description, title, total, MofNCompleteColumn(), TextColumn(unit, markup=False))


@contextlib.contextmanager
def _bar(
    description: str, title: str, total: int | None, *columns: ProgressColumn
) -> Iterator[Advance]:
    """On a terminal a bar; elsewhere its title, once."""
    console = terminal()
    if not console.is_terminal:
        print_text(title, console)

    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with progress:
        task = progress.add_task(description, total=total)
        yield lambda amount: progress.advance(task, amount)
