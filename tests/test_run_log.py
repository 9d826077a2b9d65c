"""A run's log from two sources: each line once, in order, whatever drops and whatever is late."""

import contextlib
import json
import logging
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime

import pytest

from moola.launch.run_log import LiveLines, LogMerge, LogRecord, RunLog
from moola.providers.base import Candidate, LogLine, PodRequest
from moola.providers.runpod.rest import RestPods
from moola.runs.logs import NumberedFormatter
from moola.runs.protocol import attempt_key
from moola.store import Store, open_store
from tests.fake_runpod import FakeRunpod
from tests.rented import wait_for

NOW = datetime(2026, 11, 22, tzinfo=UTC)
RUN, ATTEMPT = "small-000000000000", "20261122T231500Z-9f86d081"
N_LINES, N_DROPS = 10_000, 20


def live_line(text: str, source: str = "container") -> LogLine:
    return LogLine("id", source, NOW, text)  # type: ignore[arg-type]


def live(text: str) -> list[LogRecord]:
    return [LogRecord.of_live_line(live_line(text))]


def stored(*numbers: int) -> list[LogRecord]:
    return [LogRecord(n, 0.0, "INFO", f"line {n}") for n in numbers]


def numbers(records: list[LogRecord]) -> list[int | None]:
    return [record.seq for record in records]


@pytest.mark.parametrize(
    "message",
    [
        "plain",
        "two\nlines",
        "a \\n that is none",
        "\\",
        "\\\\n",
        "ends in a backslash\\",
        "\n",
        "#7 INFO not a number",
        "",
    ],
)
def test_a_message_comes_back_from_a_pod_s_line_as_it_was(message: str) -> None:
    record = logging.LogRecord("moola", logging.WARNING, "", 0, message, None, None)
    record.sequence = 12
    line = NumberedFormatter().format(record)
    assert "\n" not in line
    parsed = LogRecord.of_live_line(live_line(line))
    assert (parsed.seq, parsed.level, parsed.message) == (12, "WARNING", message)


def test_a_line_of_no_chunk_is_unescaped_and_unnumbered() -> None:
    record = logging.LogRecord("other", logging.ERROR, "", 0, "two\nlines", None, None)
    parsed = LogRecord.of_live_line(live_line(NumberedFormatter().format(record)))
    assert (parsed.seq, parsed.level, parsed.message) == (None, "ERROR", "two\nlines")


def test_the_machine_s_own_lines_are_marked_and_never_numbered() -> None:
    parsed = LogRecord.of_live_line(live_line("#1 INFO start container", "system"))
    assert (parsed.seq, parsed.message) == (None, "machine: #1 INFO start container")
    assert LogRecord.of_live_line(live_line("Traceback")).message == "Traceback"


def test_a_line_waits_for_those_before_it() -> None:
    merge = LogMerge()
    assert numbers(merge.add(live("#2 INFO two"))) == []
    assert numbers(merge.add(live("#1 INFO one"))) == [1, 2]


def test_a_line_that_the_stream_lost_comes_from_the_chunk() -> None:
    merge = LogMerge()
    assert numbers(merge.add(live("#1 INFO one"))) == [1]
    assert numbers(merge.add(live("#3 INFO three"))) == []
    assert numbers(merge.add(stored(1, 2, 3, 4))) == [2, 3, 4]
    assert numbers(merge.add(live("#4 INFO four"))) == []


def test_lines_without_a_number_are_shown_once_and_at_once() -> None:
    merge = LogMerge()
    assert [record.message for record in merge.add(live("up"))] == ["up"]
    assert merge.add(stored(1))[0].message == "line 1"


# -- ten thousand lines --


@pytest.fixture
def fake() -> Iterator[FakeRunpod]:
    with FakeRunpod(
        lambda _: [sys.executable, "-c", PRINTER], per_minute=60_000, restart_s=3600.0
    ) as running:
        yield running


PRINTER = f"""
import time
for n in range(1, {N_LINES} + 1):
    print(f"#{{n}} INFO line {{n}}", flush=True)
    if n % 250 == 0:
        time.sleep(0.05)
time.sleep(3600)
"""


@pytest.fixture
def store(s3_url: str) -> Store:
    return open_store(s3_url)


@contextlib.contextmanager
def log_of_a_pod(fake: FakeRunpod, store: Store) -> Iterator[RunLog]:
    """A pod that prints, and its log; the store has no chunk yet."""
    pods = RestPods(fake.api_key, base_url=fake.url, silence_s=1.0, first_wait_s=0.02)
    image = "img@sha256:" + "0" * 64
    pod = pods.create(
        PodRequest("moola-small", image, Candidate("cpu", "cpu3c", 2), 20, {"MOOLA_RUN": RUN})
    )
    run_log = RunLog(store, RUN, ATTEMPT, LiveLines(pods, pod.id))
    yield run_log
    run_log.close()


def n_streams(fake: FakeRunpod) -> int:
    return len([call for call in fake.calls if call.operation == "logs"])


def test_ten_thousand_lines_through_twenty_drops_arrive_once_and_in_order(
    fake: FakeRunpod, store: Store
) -> None:
    """The stream is cut within a frame; the chunks come later, some of them before the stream."""
    draw = random.Random(7)
    for _ in range(N_DROPS):
        fake.fail("drop", "logs", lines=draw.randrange(1, 400))
    chunks = threading.Thread(target=put_chunks, args=(store, draw), daemon=True)
    with log_of_a_pod(fake, store) as run_log:
        chunks.start()
        shown = collect(
            run_log, lambda got: n_numbered(got) == N_LINES and n_streams(fake) > N_DROPS
        )
        chunks.join()
        shown += list(run_log.lines())
    numbered = [record for record in shown if record.seq is not None]
    assert [record.seq for record in numbered] == list(range(1, N_LINES + 1))
    assert [record.message for record in numbered] == [f"line {n}" for n in range(1, N_LINES + 1)]
    system = [record.message for record in shown if record.seq is None]
    assert len(system) == len(set(system)) == 2, system


def test_the_stream_alone_brings_every_line_through_the_drops(
    fake: FakeRunpod, store: Store
) -> None:
    for _ in range(N_DROPS):
        fake.fail("drop", "logs", lines=200)
    with log_of_a_pod(fake, store) as run_log:
        shown = collect(run_log, lambda got: n_numbered(got) == N_LINES)
    assert [record.seq for record in shown if record.seq] == list(range(1, N_LINES + 1))
    assert n_streams(fake) > N_DROPS


def test_without_a_stream_the_chunks_bring_every_line(store_url: str) -> None:
    store = open_store(store_url)
    put_chunks(store, random.Random(7), pause_s=0.0)
    assert numbers(list(RunLog(store, RUN, ATTEMPT).lines())) == list(range(1, N_LINES + 1))


def put_chunks(store: Store, draw: random.Random, pause_s: float = 0.1) -> None:
    """The lines in chunks of uneven length, one after another."""
    first, chunk = 1, 1
    while first <= N_LINES:
        last = min(first + draw.randrange(100, 900), N_LINES)
        lines = [
            json.dumps(asdict(record)).encode() + b"\n"
            for record in stored(*range(first, last + 1))
        ]
        store.put_once(attempt_key(RUN, ATTEMPT, "logs", f"{chunk:08d}.jsonl"), b"".join(lines))
        first, chunk = last + 1, chunk + 1
        time.sleep(pause_s)


def n_numbered(records: list[LogRecord]) -> int:
    return sum(record.seq is not None for record in records)


def collect(run_log: RunLog, enough: Callable[[list[LogRecord]], bool]) -> list[LogRecord]:
    shown: list[LogRecord] = []
    wait_for(lambda: shown.extend(run_log.lines()) or enough(shown), "all lines")
    return shown
