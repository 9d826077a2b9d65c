"""Following a run: its whole log is shown, also what was written just before its end."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from moola.launch.follow import follow
from moola.launch.run_log import RunLog
from moola.runs.protocol import log_key
from moola.store import Store, open_store

RUN = "small-000000000000"
ATTEMPT = "20261122T231500Z-9f86d081"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path.as_uri())


def put_line(store: Store, number: int, message: str, level: str = "INFO") -> None:
    record = {"seq": number, "time": 0.0, "level": level, "message": message}
    store.put_once(log_key(RUN, ATTEMPT, number), json.dumps(record).encode())


def test_a_line_written_at_the_very_end_is_shown(store: Store) -> None:
    """The last line comes between two readings, together with the end."""
    shown = io.StringIO()
    waits: list[str] = []

    def has_ended() -> bool:
        if not waits:
            return False
        put_line(store, 2, "last words", "ERROR")
        return True

    put_line(store, 1, "first [red]words[/] at row:100:")
    follow(
        RunLog(store, RUN, ATTEMPT),
        Console(file=shown, width=20, emoji=False),
        has_ended=has_ended,
        poll_s=0.0,
        on_wait=lambda: waits.append(shown.getvalue()),
    )
    first, last = shown.getvalue().splitlines()
    assert first.endswith(" first [red]words[/] at row:100:")
    assert last.endswith(" ERROR last words")
    assert waits == [f"{first}\n"]
