"""Follows a run: its log chunks in order, each line once, and on a terminal a bar that shows the heartbeat."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any

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

from deploy.follow import RunLog
from moola.errors import TryAgainError
from moola.launches import newest_launch
from moola.protocol import FINAL_STATES, attempt_key
from moola.runs import is_silent, run_state
from moola.store import Store


def records(
    log: RunLog, *, ended: Callable[[], bool], every_s: float = 1.0, on_wait: Callable[[], None] = lambda: None
) -> Iterator[dict[str, Any]]:
    """Log records of an attempt as they arrive, until `ended` and everything written has been read."""
    while True:
        last = ended()  # asked before reading, so that what came before the end is read after it
        yield from log.lines()
        if last:
            return
        on_wait()
        time.sleep(every_s)


def final(store: Store, run_id: str) -> bool:
    """Has the newest attempt ended? Raises TryAgainError where it is silent, on a machine that nobody rented: who could
    have said that it ended may have been killed, too."""
    found = run_state(store, run_id)
    if is_silent(found) and newest_launch(store, run_id) is None:
        raise TryAgainError(
            f"{run_id} has not been heard of for {found['silent_s']:.0f} s: it was killed, or its machine sleeps; the "
            "command that started it takes it up again"
        )
    return found["state"] in FINAL_STATES


def show(console: Console, record: dict[str, Any]) -> None:
    """One log line: local time, level if it is worth saying, message."""
    at = datetime.fromtimestamp(record["time"]).astimezone()
    level = "" if record["level"] == "INFO" else f"{record['level']} "
    console.print(f"{at:%H:%M:%S} {level}{record['message']}", markup=False, highlight=False, soft_wrap=True)


class Bar:
    """The stage and how far it is, from the heartbeat: a bar on a terminal, nothing elsewhere."""

    def __init__(self, console: Console, store: Store, run_id: str, attempt_id: str) -> None:
        self._store, self._key = store, attempt_key(run_id, attempt_id, "heartbeat.json")
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[amount]}"))
        self._bar = Progress(
            *columns,
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("start", total=None, amount="")
        self._stage = ""

    def __enter__(self) -> "Bar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self) -> None:
        """Show the newest heartbeat."""
        data = None if self._bar.disable else self._store.get_or_none(self._key)
        if data is None:
            return
        beat = json.loads(data)
        if beat["stage"] != self._stage:
            self._stage = beat["stage"]
            self._bar.reset(self._task, description=self._stage, total=beat["total"] or None)
        amount = f"{amount_text(beat['done'], beat['unit'])} / {amount_text(beat['total'], beat['unit'])}"
        note = f"{amount if beat['total'] else ''}  {beat['note']}"
        self._bar.update(self._task, completed=beat["done"], amount=note)


def amount_text(value: int, unit: str) -> str:
    """1,234 bars; bytes as MB."""
    return f"{value / 1e6:,.1f} MB" if unit == "bytes" else f"{value:,} {unit}"


def clock_text(time_s: float) -> str:
    """Unix seconds as local time."""
    return f"{datetime.fromtimestamp(time_s).astimezone():%Y-%m-%d %H:%M %Z}"


def terminal() -> Console:
    """Where progress and log lines go: stderr, so that stdout stays for results."""
    return Console(stderr=True)


def byte_bar(description: str, total: int | None = None) -> AbstractContextManager[Callable[[int], None]]:
    """A bar of bytes done."""
    said = f"{description}{f': {total / 1e6:,.1f} MB' if total else ''}"
    return _bar(description, said, total, DownloadColumn(), TransferSpeedColumn())


def count_bar(description: str, total: int, unit: str) -> AbstractContextManager[Callable[[int], None]]:
    """A bar of things done."""
    return _bar(description, f"{description}: {total:,} {unit}", total, MofNCompleteColumn(), TextColumn(unit))


@contextlib.contextmanager
def _bar(description: str, said: str, total: int | None, *columns: ProgressColumn) -> Iterator[Callable[[int], None]]:
    """On a terminal a bar; elsewhere one line at the start. Yields the function to advance it."""
    console = terminal()
    if not console.is_terminal:
        console.print(said, highlight=False)
    shown = (TextColumn("{task.description}"), BarColumn(), *columns, TimeRemainingColumn())
    with Progress(*shown, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=total)
        yield lambda amount: bar.advance(task, amount)
