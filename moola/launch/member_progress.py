"""How the members of a group get on: one table of bars on a terminal, plain lines elsewhere."""

import contextlib
import time
from collections.abc import Callable, Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from moola.errors import EXIT_DONE, ArtifactError, TryAgainError
from moola.launch.console import one_line, print_text
from moola.launch.progress import amount_text
from moola.runs.reading import read_heartbeat, read_status
from moola.store import Store

UPDATE_S = 1.0  # between looks at the heartbeats, each of which is a request to the store


class MemberProgress:
    """What is shown of a group's members while they run. Use it as a context.

    `titles` is run id -> what tells this run from the others; `on_end` is called with the id of a
    run that has ended.
    """

    def __init__(
        self,
        console: Console,
        store: Store,
        titles: Mapping[str, str],
        on_end: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._console = console
        self._store = store
        self._titles = titles
        self._on_end = on_end
        self._started: dict[str, float] = {}
        self._n_ended = 0
        self.is_stopped = False  # by a person, before all had ended
        self._updated = 0.0

        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[amount]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._all = self._progress.add_task("all", total=len(titles), amount="")
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "MemberProgress":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def started(self, run_id: str) -> None:
        """A member has its turn."""
        self._started[run_id] = time.monotonic()
        self._say(f"started {self._name(run_id)}")
        title = one_line(self._titles[run_id]).plain
        self._tasks[run_id] = self._progress.add_task(title, total=None, amount="start")

    def ended(self, run_id: str, attempt_id: str, exit_code: int, last_words: str = "") -> None:
        """A member has ended; what it wrote to standard error is shown where it failed."""
        self._n_ended += 1
        took_s = time.monotonic() - self._started[run_id]
        self._progress.remove_task(self._tasks.pop(run_id))
        self._progress.advance(self._all)

        outcome = "committed" if exit_code == EXIT_DONE else self._outcome(run_id, attempt_id)
        count = f"{self._n_ended} of {len(self._titles)}"
        self._say(f"{outcome} {self._name(run_id)} after {took_s:.0f} s ({count})")
        if exit_code != EXIT_DONE:
            reason = self._reason(run_id, attempt_id) or last_words or "no reason given"
            self._say(f"  exit {exit_code}: {reason}")
        self._on_end(run_id)

    def update(self, attempts: Mapping[str, str]) -> None:
        """Show the newest heartbeats, run id -> attempt, on a terminal."""
        now = time.monotonic()
        if self._progress.disable or now - self._updated < UPDATE_S:
            return

        self._updated = now
        for run_id, attempt_id in attempts.items():
            if attempt_id:
                self._show_heartbeat(run_id, attempt_id)

    def _show_heartbeat(self, run_id: str, attempt_id: str) -> None:
        try:
            heartbeat = read_heartbeat(self._store, run_id, attempt_id)
        except (ArtifactError, TryAgainError):  # the member goes on without a bar
            return
        if heartbeat is None:
            return

        amount = heartbeat.stage
        if heartbeat.total:
            done = amount_text(heartbeat.done, heartbeat.unit)
            amount = f"{amount}  {done} / {amount_text(heartbeat.total, heartbeat.unit)}"
        self._progress.update(
            self._tasks[run_id],
            total=heartbeat.total or None,
            completed=heartbeat.done,
            amount=f"{amount}  {heartbeat.note}",
        )

    def _outcome(self, run_id: str, attempt_id: str) -> str:
        status = None
        with contextlib.suppress(ArtifactError, TryAgainError):
            status = read_status(self._store, run_id, attempt_id) if attempt_id else None
        return "failed" if status is None else str(status.state)

    def _reason(self, run_id: str, attempt_id: str) -> str:
        with contextlib.suppress(ArtifactError, TryAgainError):
            status = read_status(self._store, run_id, attempt_id) if attempt_id else None
            return "" if status is None else status.reason
        return ""

    def _name(self, run_id: str) -> str:
        title = self._titles[run_id]
        return f"{run_id}: {title}" if title else run_id

    def _say(self, text: str) -> None:
        print_text(text, self._console)
