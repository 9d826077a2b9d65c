"""Use over time: few points whatever the time, across attempts, from a store nobody need trust."""

import contextlib
import json
import time
from pathlib import Path

import pytest

from moola.errors import ArtifactError
from moola.runs.attempt import Attempt
from moola.runs.heartbeat import Progress, StageRate, earlier_history
from moola.runs.protocol import HEARTBEAT, attempt_key
from moola.runs.reading import read_heartbeat, require_manifest, run_state
from moola.runs.records import (
    MAX_USAGE_POINTS,
    GpuUsage,
    Heartbeat,
    Usage,
    UsageHistory,
    parse_record,
)
from moola.runs.usage import CpuMeter
from moola.runs.usage_history import UsageRecorder
from moola.store import Store
from tests.hostile import EVIL
from tests.runs import attempt_id

TIME = "2026-11-22T23:15:00.000+00:00"
LARGEST_BYTES = 6000  # of a heartbeat whose history is full


def used(cores: float, memory_mb: float, *gpus: float) -> Usage:
    return Usage(
        cpu_cores=cores,
        memory_mb=memory_mb,
        gpus=tuple(GpuUsage(use=use, memory_mb=100.0) for use in gpus),
    )


def history_of(recorder: UsageRecorder) -> UsageHistory:
    history = recorder.history()
    assert history is not None
    return history


def test_a_point_has_the_mean_of_the_work_and_the_most_memory() -> None:
    """Worked out by hand: three looks in the first ten seconds, one in the second."""
    recorder = UsageRecorder(10.0, now_s=100.0)
    assert recorder.history() is None
    for at_s, usage in (
        (100.0, used(1.0, 50.0, 0.0, 1.0)),
        (104.0, used(2.0, 90.0, 1.0, 1.0)),
        (109.9, used(3.0, 70.0)),
        (110.0, used(8.0, 10.0)),
    ):
        recorder.add(usage, at_s)
    assert history_of(recorder).fields() == {
        "every_s": 10.0,
        "cpu_cores": [2.0, 8.0],
        "memory_mb": [90.0, 10.0],
        "gpu": [0.75, None],
        "gpu_memory_mb": [200.0, None],
        "starts": [0],
    }


@pytest.mark.parametrize("n_looks", [1, 119, 120, 121, 240, 241, 5000])
def test_the_points_are_bounded_and_cover_all_the_time(n_looks: int) -> None:
    """Worked out by hand: the resolution halves until the looks, one a second, fit."""
    recorder = UsageRecorder(1.0, now_s=0.0)
    for second in range(n_looks):
        recorder.add(used(1.0, float(second)), float(second))
    history = history_of(recorder)
    every_s = 1
    while every_s * MAX_USAGE_POINTS < n_looks:
        every_s *= 2
    assert history.every_s == every_s
    assert len(history) == -(-n_looks // every_s)
    assert history.memory_mb == tuple(
        float(min((point + 1) * every_s, n_looks) - 1) for point in range(len(history))
    )
    assert set(history.cpu_cores) == {1.0}


def test_time_without_a_look_is_not_known() -> None:
    """As while the store did not answer."""
    recorder = UsageRecorder(1.0, now_s=0.0)
    recorder.add(used(1.0, 1.0), 0.0)
    recorder.add(used(2.0, 2.0), 3.0)
    assert history_of(recorder).cpu_cores == (1.0, None, None, 2.0)
    recorder.add(used(3.0, 3.0), 1e6)
    assert len(history_of(recorder)) <= MAX_USAGE_POINTS


def test_a_heartbeat_with_a_full_history_is_small() -> None:
    recorder = UsageRecorder(1.0, now_s=0.0)
    for second in range(MAX_USAGE_POINTS):
        recorder.add(used(1 / 3, 123_456.7, 1 / 3), float(second))
    assert len(history_of(recorder)) == MAX_USAGE_POINTS
    assert len(history_of(recorder).to_json()) < LARGEST_BYTES


def test_another_attempt_goes_on_where_the_one_before_stopped() -> None:
    first = UsageRecorder(1.0, now_s=0.0)
    for second in range(100):
        first.add(used(1.0, 1.0), float(second))
    second = UsageRecorder(1.0, now_s=7.0)
    second.go_on(history_of(first))
    for at_s in range(50):
        second.add(used(4.0, 4.0), 7.0 + at_s)
    history = history_of(second)
    assert (history.every_s, len(history), history.starts) == (2.0, 75, (0, 50))
    assert history.cpu_cores == (1.0,) * 50 + (4.0,) * 25


@pytest.mark.parametrize(
    ("every_s", "n_points", "expected"),
    [(0.25, 8, (1.0, 2)), (9e6, 120, (18e6, 60)), (1e12, 120, (1.0, 0)), (5e-324, 120, (1.0, 1))],
)
def test_a_history_of_another_pace_is_taken(
    every_s: float, n_points: int, expected: tuple[float, int]
) -> None:
    """One of a quicker store, and what somebody has put there."""
    column = (1.0,) * n_points
    earlier = UsageHistory(
        every_s=every_s, cpu_cores=column, memory_mb=column, gpu=column, gpu_memory_mb=column
    )
    recorder = UsageRecorder(1.0, now_s=0.0)
    recorder.go_on(earlier)
    recorder.add(used(2.0, 2.0), 0.0)
    history = history_of(recorder)
    assert history.every_s == pytest.approx(expected[0], rel=1.0)
    assert history.starts[-1] == expected[1]
    assert history.cpu_cores[-1] == 2.0


GOOD = {"every_s": 1.0, "cpu_cores": [1.0], "memory_mb": [2], "gpu": [None], "gpu_memory_mb": [0]}
BAD = [
    {"every_s": 0},
    {"every_s": 1e13},
    {"every_s": "1"},
    {"cpu_cores": [1.0, 2.0]},
    {"cpu_cores": [-1.0]},
    {"gpu": [1.5]},
    {"memory_mb": [1e300]},
    {"memory_mb": [EVIL]},
    {name: [1] * 121 for name in ("cpu_cores", "memory_mb", "gpu", "gpu_memory_mb")},
    {"starts": [1]},
    {"starts": [0, 0]},
    {"starts": [-1]},
    {"starts": [0.5]},
]


@pytest.mark.parametrize("change", BAD, ids=[json.dumps(change)[:40] for change in BAD])
def test_a_history_that_breaks_a_rule_damages_the_heartbeat(change: dict[str, object]) -> None:
    def parse(history: dict[str, object]) -> Heartbeat:
        document = json.dumps({"time": TIME, "history": history})
        return parse_record(Heartbeat, document.encode(), "x.json")

    assert parse(GOOD).history is not None
    with pytest.raises(ArtifactError, match=r"x\.json is damaged: 'history"):
        parse({**GOOD, **change})


# --- of attempts ------------------------------------------------------------------------------


def beat_once(store: Store, run_id: str, attempt: str) -> Heartbeat:
    while True:
        heartbeat = read_heartbeat(store, run_id, attempt)
        if heartbeat is not None:
            return heartbeat
        time.sleep(0.02)


class Killed(BaseException):
    """An attempt that ends without a commit."""


def test_use_survives_a_resume_and_is_in_the_manifest(
    store: Store, run_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOOLA_BEAT_S", "0.05")
    first, second = attempt_id(1), attempt_id(2)
    with contextlib.suppress(Killed), Attempt(store, run_id, attempt_id=first, work=tmp_path):
        beat_once(store, run_id, first)
        raise Killed
    known = read_heartbeat(store, run_id, first)
    assert known is not None
    assert known.history is not None

    with Attempt(store, run_id, attempt_id=second, work=tmp_path) as attempt:
        beat_once(store, run_id, second)
        history = attempt.usage_history()
    assert history is not None
    assert history.starts == (0, len(known.history))
    assert history.memory_mb[: len(known.history)] == known.history.memory_mb
    assert (history.memory_mb[-1] or 0.0) > 0

    usage = require_manifest(store, run_id).provenance["usage"]
    assert isinstance(usage, dict)
    assert usage["starts"] == list(history.starts)
    shown = run_state(store, run_id).fields()["heartbeat"]
    assert isinstance(shown, dict)
    assert "history" not in shown
    assert shown["usage"]["memory_mb"] > 0


def test_a_damaged_history_of_an_earlier_attempt_stops_nothing(
    store: Store, run_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOOLA_BEAT_S", "0.05")
    store.put(attempt_key(run_id, attempt_id(1), HEARTBEAT), b'{"history": 1}')
    with pytest.raises(ArtifactError):
        earlier_history(store, run_id, attempt_id(2))
    with Attempt(store, run_id, attempt_id=attempt_id(2), work=tmp_path):
        history = beat_once(store, run_id, attempt_id(2)).history
    assert history is not None
    assert history.starts == (0,)


def test_the_rate_of_a_stage_begins_anew_with_it() -> None:
    """Worked out by hand: a run that resumed at step 100 does 10 steps in 5 seconds."""
    rate = StageRate()
    assert rate.of(Progress("full", 100, 1000), 10.0) is None
    assert rate.of(Progress("full", 100, 1000), 11.0) is None
    assert rate.of(Progress("full", 110, 1000), 15.0) == 2.0
    assert rate.of(Progress("evaluate", 5, 10), 20.0) is None
    assert rate.of(Progress("evaluate", 9, 10), 22.0) == 2.0
    assert rate.of(Progress("evaluate", 2, 10), 30.0) is None

    heartbeat = {"time": TIME, "stage": "full", "done": 110, "total": 1000, "rate": 2.0}
    record = parse_record(Heartbeat, json.dumps(heartbeat).encode(), "x.json")
    assert record.left_s == 445.0
    for change in ({"rate": 0.0}, {"rate": None}, {"total": 0}, {"done": 1000}):
        record = parse_record(Heartbeat, json.dumps({**heartbeat, **change}).encode(), "x.json")
        assert record.left_s is None


def test_cores_at_work_are_measured_since_the_last_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moola.runs.usage.CGROUP", Path("/nowhere"))
    clock = {"cpu": 5.0, "time": 100.0}
    monkeypatch.setattr("moola.runs.usage.time.process_time", lambda: clock["cpu"])
    monkeypatch.setattr("moola.runs.usage.time.monotonic", lambda: clock["time"])
    meter = CpuMeter()
    assert meter.cores() is None
    clock.update(cpu=8.0, time=102.0)
    assert meter.cores() == 1.5


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("cpu.stat", ("usage_usec 1000000\nuser_usec 9\n", "usage_usec 4000000\n")),
        ("cpuacct/cpuacct.usage", ("1000000000\n", "4000000000\n")),
    ],
)
def test_cores_of_a_container_are_those_of_its_cgroup(
    name: str, texts: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moola.runs.usage.CGROUP", tmp_path)
    (tmp_path / "memory.current").write_text("1000000\n")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(texts[0])
    now = [100.0]
    monkeypatch.setattr("moola.runs.usage.time.monotonic", lambda: now[0])
    meter = CpuMeter()
    (tmp_path / name).write_text(texts[1])
    now[0] = 102.0
    assert meter.cores() == 1.5
