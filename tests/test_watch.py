"""`--watch`: what a look asks the store for, and what a terminal, a pipe or a program gets."""

import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from moola.errors import TryAgainError
from moola.launch.console import SafeConsole
from moola.launch.live import Picture
from moola.launch.live_table import run_view, runs_table
from moola.runs.about import add_about, new_about
from moola.runs.groups import group_of, put_group
from moola.runs.launches import claim, record_rented
from moola.runs.protocol import HEARTBEAT, STATUS, attempt_key, canonical_json, run_key
from moola.runs.records import GpuUsage, Heartbeat, State, Status, Usage, UsageHistory
from moola.runs.survey import RunSummary, survey_run, survey_runs
from moola.runs.watching import RunWatcher, WatchedRun
from moola.store import Store, open_store
from tests.hostile import EVIL, IMAGE, MACHINE
from tests.rented import rented_machine
from tests.runs import attempt_id, committed_run, submitted_run
from tests.test_console import FORBIDDEN
from tests.test_json_output import fields_of, fields_on_page
from tests.test_listing import Command, command, failed_run

__all__ = ["command"]

ROOT = Path(__file__).resolve().parents[1]
NOW = datetime(2026, 11, 22, 23, 15, tzinfo=UTC)
LONGEST_S = 100.0  # for a terminal: a case that takes longer hangs


def put_status(store: Store, run_id: str, state: str, attempt: str = "", reason: str = "") -> None:
    attempt = attempt or attempt_id(1)
    status = {"state": state, "time": NOW.isoformat(), "reason": reason}
    store.put(attempt_key(run_id, attempt, STATUS), canonical_json(status))


def put_heartbeat(store: Store, run_id: str, attempt: str = "", **fields: Any) -> None:
    beat = {"time": NOW.isoformat(), "stage": "full", "done": 10, "total": 100, "unit": "steps"}
    key = attempt_key(run_id, attempt or attempt_id(1), HEARTBEAT)
    store.put(key, canonical_json({**beat, **fields}))


def running_run(store: Store, n: int = 0, **fields: Any) -> str:
    run_id = submitted_run(store, "train", n=n)
    put_status(store, run_id, "running")
    put_heartbeat(store, run_id, **fields)
    return run_id


# --- looks ------------------------------------------------------------------------------------


class Requests:
    """What is asked of a store."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: set[str] = set()  # one call may be made by another one
        for name in ("get", "get_or_none", "get_dated", "exists", "children", "list_page"):
            monkeypatch.setattr(store, name, self._noting(name, getattr(store, name)))

    def _noting(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def noted(key: str, *args: Any) -> Any:
            word = "list" if name in ("children", "list_page") else "get"
            self.asked.add(f"{word} {key}")
            return call(key, *args)

        return noted

    def of(self, look: Callable[[], object]) -> list[str]:
        self.asked.clear()
        look()
        return sorted(self.asked)


def test_a_look_asks_for_what_has_not_ended_and_nothing_else(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    committed_run(store, tmp_path, n=1)
    failed_run(store, tmp_path, n=2)
    submitted_run(store, n=3)
    running = running_run(store)
    add_about(store, committed_run(store, tmp_path, n=4), new_about("a name", []))
    watcher = RunWatcher(store)
    watcher.newest(survey_runs(store), 20)

    requests = Requests(store, monkeypatch)
    asked = requests.of(lambda: watcher.newest(survey_runs(store), 20))
    lists = [one for one in asked if one.startswith("list")]
    assert len(lists) == 2
    assert set(asked) - set(lists) == {
        f"get {attempt_key(running, attempt_id(1), name)}" for name in (STATUS, HEARTBEAT)
    }


def test_a_run_that_goes_on_is_read_again(store: Store, tmp_path: Path) -> None:
    run_id = failed_run(store, tmp_path, n=1)
    watcher = RunWatcher(store)
    (failed,) = watcher.newest(survey_runs(store), 20)
    assert (failed.summary.state, failed.is_open) == ("failed", False)

    time.sleep(1.1)  # a listing of S3 has whole seconds
    assert committed_run(store, tmp_path, n=1) == run_id
    (committed,) = watcher.newest(survey_runs(store), 20)
    assert committed.summary.state == "committed"
    (alone,) = watcher.all(survey_run(store, run_id), [run_id])
    assert alone == committed


def put_launch(store: Store, run_id: str, n: int, state: str, price: float) -> str:
    """A launch with a machine that was made an hour before NOW; -> its attempt."""
    launch = claim(store, run_id, n, "train", IMAGE, MACHINE.model_dump(mode="json"))
    assert launch is not None
    machine = rented_machine(
        pod_id=f"pod{n}",
        pod_name=launch.pod_name,
        price_per_hour=price,
        created=(NOW - timedelta(hours=1)).timestamp(),
        deadline=NOW.timestamp(),
    )
    record_rented(store, launch, machine)
    put_status(store, run_id, state, launch.attempt)
    put_heartbeat(store, run_id, launch.attempt)
    return launch.attempt


def test_the_cost_so_far_is_of_all_launches_and_asks_for_three_documents(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Worked out by hand: an hour at 0.5 USD, and two hours at 0.25 since NOW - 1 h."""
    monkeypatch.setattr("moola.runs.launches.time.time", (NOW + timedelta(hours=1)).timestamp)
    run_id = submitted_run(store, "train", n=1)
    put_launch(store, run_id, 1, "infra_lost", 0.5)
    newest = put_launch(store, run_id, 2, "running", 0.25)
    watcher = RunWatcher(store)

    (run,) = watcher.newest(survey_runs(store), 20)
    assert (run.summary.attempt, run.is_running) == (newest, True)
    assert run.cost == pytest.approx(0.5 + 0.5)
    requests = Requests(store, monkeypatch)
    asked = requests.of(lambda: watcher.newest(survey_runs(store), 20))
    assert [one.rpartition("/")[2] for one in asked if one.startswith("get")] == [
        HEARTBEAT,
        STATUS,
        "00000002.json",
    ]


@pytest.mark.parametrize("name", ["pod.json", HEARTBEAT, "about.json"])
def test_what_is_damaged_beside_the_state_is_not_shown(store: Store, name: str) -> None:
    run_id = submitted_run(store, "train", n=1)
    attempt = put_launch(store, run_id, 1, "running", 0.5)
    key = run_key(run_id, name) if name == "about.json" else attempt_key(run_id, attempt, name)
    store.put(key, b'{"time": "' + EVIL.encode() + b'"}')
    (run,) = RunWatcher(store).newest(survey_runs(store), 20)
    if name == "about.json":
        assert run.summary.shown_state == "damaged"
    else:
        assert run.is_running
        assert (run.cost is None) is (name == "pod.json")
        assert (run.heartbeat is None) is (name == HEARTBEAT)


# --- pictures ---------------------------------------------------------------------------------


def watched(n: int, state: str = "running", job: str = "train", **fields: Any) -> WatchedRun:
    beat = Heartbeat(
        time=NOW,
        **{
            "stage": "full",
            "done": 1234,
            "total": 2700,
            "unit": "steps",
            "rate": 35.2,
            "usage": Usage(
                cpu_cores=12.34,
                memory_mb=6100.0,
                memory_limit_mb=16_000.0,
                gpus=(GpuUsage(use=0.8, memory_mb=11_200.0), GpuUsage(use=0.9, memory_mb=0.0)),
            ),
            "history": UsageHistory(
                every_s=5.0,
                cpu_cores=(0.0, None, 12.0, 24.0),
                memory_mb=(6100.0,) * 4,
                gpu=(None,) * 4,
                gpu_memory_mb=(None,) * 4,
            ),
            **fields,
        },
    )
    cost: Any = {"cost": 0.1234, "n": 1, "type_id": "NVIDIA A40", "price_per_hour": 0.39}
    status = Status(state=State(state), time=NOW, reason="" if state == "running" else "x" * 900)
    summary = RunSummary(f"{job}-{n:012x}", State(state), attempt_id(n), status, 1.0)
    return WatchedRun(summary, beat, (cost,))


def drawn(picture: object, width: int = 80, height: int = 24) -> list[str]:
    stream = io.StringIO()
    console = SafeConsole(stream)
    console.width = width
    console.height = height
    console.print(picture(console) if callable(picture) else picture)
    return [line.rstrip() for line in stream.getvalue().splitlines()]


def table_of(runs: list[WatchedRun], width: int = 80, height: int = 24, **titles: Any) -> list[str]:
    return drawn(lambda console: runs_table(runs, console, **titles), width, height)


MANY = [
    watched(1),
    watched(2, done=138_412_032, total=283_303_248, unit="bytes", stage="hash features_11d.npy"),
    watched(3, "failed"),
    watched(4, "committed", "precompute"),
]


def test_at_80_columns_each_run_is_one_line_and_its_id_and_state_are_whole() -> None:
    lines = table_of(MANY)
    assert max(map(len, lines)) <= 80
    assert len(lines) == 2 + len(MANY)
    for run, line in zip(MANY, lines[2:], strict=True):
        assert line.startswith(f"{run.run_id} ")
        assert f" {run.summary.shown_state} " in line
        assert "0.12" in line
    first = lines[2].split()
    assert first[2:4] == ["46%", "full"]
    assert "42 s" in lines[2]
    assert "85%" in lines[2]


def test_a_wide_terminal_shows_all() -> None:
    heading, _, first, second, *_ = table_of(MANY, width=140)
    names = ("rate", "left", "USD", "GPU", "GPU GB", "GB", "cores")
    assert [heading.index(f" {name}") for name in names] == sorted(
        heading.index(f" {name}") for name in names
    )
    assert first.split()[-8:] == ["35.2/s", "42", "s", "0.12", "85%", "11.2", "6.1", "12.3"]
    assert "0.0 MB/s" not in second
    assert "35.2" not in second


def test_a_narrow_terminal_leaves_out_what_matters_least() -> None:
    titles = {run.run_id: "0.1 64" for run in MANY}
    for width in range(60, 141):
        lines = table_of(MANY, width=width)
        assert len(lines) == 2 + len(MANY), width
        assert max(map(len, lines)) <= width
        assert "state" in lines[0]
        assert "differs in" in table_of(MANY, width=max(width, 80), titles=titles)[0]


def test_a_low_terminal_says_what_it_does_not_show() -> None:
    lines = table_of([watched(n) for n in range(50)], height=24)
    assert len(lines) < 24
    assert "and 31 more" in lines[-1]


def test_one_run_is_shown_with_all_that_it_tells() -> None:
    text = "\n".join(drawn(run_view(watched(1))))
    for words in (
        "train-000000000001",
        "running, attempt 20260101T000001Z-00000001, heard of 1 s ago",
        "46%  1,234 of 2,700 steps",
        "35.2 steps/s, 42 s left of this stage",
        "12.3            ▁ ▅█",
        "6.1 of 16.0 GB  ████",
        "85% of 2",
        "0.1234 USD so far; launch 1: NVIDIA A40 at 0.390 USD an hour",
    ):
        assert words in text
    assert max(map(len, text.splitlines())) <= 80


def test_texts_of_a_heartbeat_style_nothing_and_stay_on_one_line() -> None:
    hostile = (EVIL + "\n") * 3
    run = watched(1, stage=hostile, unit=hostile, note=hostile, rate=1e15, done=2**53, total=1)
    for lines in (table_of([run]), drawn(run_view(run))):
        text = "".join(lines)
        assert not set(FORBIDDEN) & set(text)
        assert "[/INS" in text
        assert max(map(len, lines)) <= 80


# --- the command ------------------------------------------------------------------------------


Events = list[Callable[[], object]]


@pytest.fixture
def between(monkeypatch: pytest.MonkeyPatch) -> Events:
    """What happens between two looks; then Ctrl-C."""
    events: Events = []

    def sleep(seconds: float) -> None:
        del seconds
        if not events:
            raise KeyboardInterrupt
        events.pop(0)()

    monkeypatch.setattr("moola.launch.live.time.sleep", sleep)
    return events


@pytest.fixture
def output(command: Command, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """Lines on standard output of a command, whatever its exit code."""
    from moola.cli import app as command_line

    assert command

    def run(*arguments: str, exit_code: int = 0) -> list[str]:
        ended = command_line.run(arguments)
        captured = capsys.readouterr()
        assert ended == exit_code, captured
        assert "Abort" not in captured.err
        return captured.out.splitlines()

    return run


Output = Callable[..., list[str]]


def test_without_a_terminal_a_line_tells_what_has_changed(
    store: Store, output: Output, between: Events
) -> None:
    run_id = running_run(store)
    between += [
        lambda: put_heartbeat(store, run_id, done=50),
        lambda: put_heartbeat(store, run_id, stage="evaluate"),
        lambda: None,
        lambda: put_status(store, run_id, "failed", reason="no\nbars"),
    ]
    lines = output("list", "--watch", exit_code=130)
    assert [line.partition(" ")[2] for line in lines] == [
        f"{run_id} running: full",
        f"{run_id} running: evaluate",
        f"{run_id} failed: no bars",
    ]
    assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in lines)


def test_as_json_a_document_a_line(store: Store, output: Output, between: Events) -> None:
    run_id = running_run(store, rate=2.0, usage={"memory_mb": 5.0}, history={"every_s": 1.0})
    between += [lambda: put_heartbeat(store, run_id, stage="evaluate")]
    first, second = map(json.loads, output("list", "--watch", "--json", exit_code=130))
    assert fields_of(first) == fields_on_page("list") | fields_on_page("list --watch")
    assert first["n_runs"] == 1
    (run,) = first["runs"]
    assert (run["heartbeat"]["stage"], run["left_s"], run["cost"]) == ("full", 45.0, None)
    assert run["heartbeat"]["usage"] == {"memory_mb": 5.0}
    assert "history" not in run["heartbeat"]
    assert second["runs"][0]["heartbeat"]["stage"] == "evaluate"


def test_a_query_holds_while_watching(store: Store, output: Output, between: Events) -> None:
    first, second = running_run(store, 1), running_run(store, 2)
    between += [lambda: put_status(store, second, "failed")]
    lines = output("list", "--watch", "--state", "failed", exit_code=130)
    assert [line.split()[1] for line in lines] == [second]
    assert first not in "".join(lines)


def test_open_runs_stand_first_and_stay_where_they_are(
    store: Store, output: Output, between: Events
) -> None:
    """Whichever of them wrote a heartbeat last."""
    runs = [running_run(store, n) for n in range(3)]
    put_status(store, runs[0], "failed")
    between += [
        lambda n=n, done=done: put_heartbeat(store, runs[n], done=done)
        for n, done in ((1, 20), (2, 30), (1, 40))
    ]
    documents = map(json.loads, output("list", "--watch", "--json", exit_code=130))
    orders = [[run["run"] for run in document["runs"]] for document in documents]
    assert len(orders) == 4
    assert {tuple(order) for order in orders} == {(*sorted(runs[1:], reverse=True), runs[0])}


def test_status_watches_until_the_run_has_ended(
    store: Store, output: Output, between: Events
) -> None:
    run_id = running_run(store)
    between += [lambda: put_status(store, run_id, "failed", reason="bars")]
    lines = output("status", run_id, "--watch")
    assert [line.partition(" ")[2] for line in lines] == [
        f"{run_id} running: full",
        f"{run_id} failed: bars",
    ]
    (document,) = map(json.loads, output("status", run_id, "--watch", "--json"))
    assert document == json.loads("\n".join(output("status", run_id)))


@pytest.mark.parametrize("store_url", ["file"], indirect=True)
def test_a_watched_run_that_nobody_hears_of_is_told_so(
    store: Store, tmp_path: Path, output: Output, between: Events
) -> None:
    """As by `logs --follow`: nobody will ever record its end."""
    run_id = running_run(store)
    for path in (tmp_path / "store" / "runs" / run_id / "attempts").rglob("*.json"):
        os.utime(path, (time.time() - 100,) * 2)
    assert not between
    assert f"{run_id} silent" in output("status", run_id, "--watch", exit_code=75)[0]


@pytest.mark.parametrize("store_url", ["file"], indirect=True)
def test_a_group_whose_runs_nobody_hears_of_is_not_watched_for_ever(
    store: Store, tmp_path: Path, output: Output
) -> None:
    runs = [running_run(store), committed_run(store, tmp_path, "train", n=2)]
    group = group_of("train", runs)
    put_group(store, group)
    for path in (tmp_path / "store" / "runs" / runs[0] / "attempts").rglob("*.json"):
        os.utime(path, (time.time() - 100,) * 2)
    assert any(f"{runs[0]} silent" in line for line in output("group", group.id, "--watch"))


def test_a_rate_from_the_store_gives_no_endless_time() -> None:
    assert Heartbeat(time=NOW, total=2**53, rate=1e-300).left_s is None
    assert Heartbeat(time=NOW, total=100, rate=2.0).left_s == 50


def test_a_picture_that_has_seen_no_run_shows_its_trouble() -> None:
    file = io.StringIO()
    console = SafeConsole(file)
    with Picture(console, lambda runs, _: run_view(runs[0])) as picture:
        picture.trouble("no answer, trying again")
    assert "no answer, trying again" in file.getvalue()


def test_a_damaged_run_ends_the_watch_as_it_ends_status(
    store: Store, output: Output, between: Events
) -> None:
    run_id = running_run(store)
    key = attempt_key(run_id, attempt_id(1), STATUS)
    between += [lambda: store.put(key, b"[]")]
    output("status", run_id, "--watch", exit_code=4)
    output("status", run_id, "--watch", "--json", exit_code=4)
    output("status", run_id, exit_code=4)


def test_a_store_that_does_not_answer_is_asked_again(
    store: Store, output: Output, between: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = running_run(store)
    answers: Iterator[bool] = iter([True, False, False, True])

    def survey(store: Store, run_id: str) -> Any:
        if next(answers):
            return survey_run(store, run_id)
        raise TryAgainError("the store is away")

    monkeypatch.setattr("moola.runs.survey.survey_run", survey)
    between += [
        lambda: None,
        lambda: None,
        lambda: put_status(store, run_id, "cancelled"),
    ]
    lines = output("status", run_id, "--watch")
    assert [line.partition(" ")[2] for line in lines] == [
        f"{run_id} running: full",
        "no answer, trying again: the store is away",
        f"{run_id} cancelled",
    ]


def test_a_group_is_watched_until_all_its_runs_have_ended(
    store: Store, output: Output, between: Events, tmp_path: Path
) -> None:
    runs = [running_run(store, n) for n in (1, 2)]
    group = group_of("train", runs)
    put_group(store, group)
    between += [
        lambda: put_status(store, runs[0], "failed", reason="why"),
        lambda: committed_run(store, tmp_path, "train", n=2),
    ]
    documents = list(map(json.loads, output("group", group.id, "--watch", "--json")))
    plain = json.loads("\n".join(output("group", group.id, "--json")))
    of_folds = {name for name in fields_on_page("group") if name.startswith("cross_validation[]")}
    assert fields_of(plain) == fields_on_page("group") - of_folds
    assert fields_of(documents[0]) - fields_of(plain) == {
        f"members[].{name}" for name in ("heartbeat", "left_s", "cost")
    }
    states = [[member["state"] for member in one["members"]] for one in documents]
    assert states == [["running", "running"], ["failed", "running"], ["failed", "committed"]]
    assert [member["state"] for member in plain["members"]] == states[-1]


# --- a real terminal --------------------------------------------------------------------------


class Terminal:
    """A command in a terminal of 80 columns and 24 lines."""

    def __init__(self, store: Store, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        environment = {**os.environ, "MOOLA_STORE": store.url, "MOOLA_WATCH__POLL_S": "0.1"}
        for name in ("COLUMNS", "LINES"):
            environment.pop(name, None)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "moola", *arguments],
            cwd=ROOT,
            env={**environment, "TERM": "xterm-256color"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        os.close(slave)
        self.written = ""

    def wait_for(self, text: str, count: int = 1) -> None:
        end = time.monotonic() + LONGEST_S
        while self.written.count(text) < count:
            assert time.monotonic() < end, self.written
            if not self._read():
                return

    def _read(self) -> bool:
        try:
            if select.select([self._master], [], [], 0.1)[0]:
                self.written += os.read(self._master, 65536).decode(errors="replace")
        except OSError:  # the other side is closed
            return False
        return True

    def end(self, signum: int | None = None) -> int:
        if signum is not None:
            self.process.send_signal(signum)
        while self.process.poll() is None:
            self._read()
        while self._read() and select.select([self._master], [], [], 0)[0]:
            pass
        os.close(self._master)
        return self.process.wait()


def test_a_terminal_is_redrawn_in_place_and_left_clean(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/store")
    run_id = running_run(store)
    terminal = Terminal(store, "list", "--watch")
    terminal.wait_for("10% full")
    put_heartbeat(store, run_id, done=20)
    terminal.wait_for("20% full")
    assert terminal.end(signal.SIGINT) == 130

    written = terminal.written
    assert "\x1b[1A" in written  # up, over the picture before
    assert "\x1b[2J" not in written  # and never a cleared screen
    assert written.count("\x1b[?25l") == written.count("\x1b[?25h") == 1  # the cursor is back
    assert "Abort" not in written
    assert "Traceback" not in written


def test_a_watched_run_that_ends_ends_the_watch_on_a_terminal(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/store")
    run_id = running_run(store)
    terminal = Terminal(store, "status", run_id, "--watch")
    terminal.wait_for("10 of 100 steps")
    put_status(store, run_id, "failed", reason="bars must be good")
    assert terminal.end() == 0
    assert terminal.written.rstrip().splitlines()[-1]
    assert "bars must be good" in terminal.written
