"""A detached run under every failure switch, with passes of `moola tend` alone, as cron makes them.

It ends as the same switch ends with a launcher that watches (tests/test_session.py). `-m large`.
"""

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from moola.errors import LaunchError, TryAgainError
from moola.launch.rented.tend import tend
from tests.fake_runpod import FakeRunpod
from tests.fake_runpod.faults import Kind
from tests.rented import RentedRun, quick_settings
from tests.test_session import at, fake, kill_first_process
from tests.test_tend import LONGEST_S, PAUSE_S, detach

__all__ = ["fake"]

pytestmark = pytest.mark.large

COMMITTED = ("committed",)
LOST = ("infra_lost", "committed")
FAILED = ("launch_failed",)
GIVEN_UP = "its launcher went away before there was a machine"  # no attempt: it counts for nothing
UNAUTHORIZED = "error pulling image: Error response from daemon: unauthorized"
ON_THE_WAY: list[Kind] = [401, 402, 409, 422, 429, 500, 503, "cut", "withheld", "slow"]
OF_CREATE: list[Kind] = ["no_capacity", 429, "cut", "withheld", "slow", 500, 503]


@dataclass(frozen=True)
class Case:
    """What goes wrong, and how the attempts end.

    `n_pods` is how many machines there ever were; None where chance decides.
    """

    states: tuple[str, ...]
    arrange: Callable[[FakeRunpod], object] = lambda _: None
    spec: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    watch: Mapping[str, float] = field(default_factory=dict)
    n_pods: int | None = 1


def once(moment: str, event: str) -> Callable[[FakeRunpod], None]:
    """An event of the fake's happens to the first pod at a moment."""
    return lambda fake: at(fake, moment, getattr(fake, event))


def refuse(kind: Kind) -> Callable[[FakeRunpod], None]:
    """All calls but create fail once whenever the job says something."""

    def arrange(fake: FakeRunpod) -> None:
        def fail(*_: object) -> None:
            for on in ("get", "list", "delete", "logs"):
                fake.fail(kind, on, seconds=0.7)

        at(fake, "pull", fail)
        fake.on_line = fail

    return arrange


def create_fails(kind: Kind, **how: Any) -> Callable[[FakeRunpod], object]:
    return lambda fake: fake.fail(kind, **how)


CASES = {
    **{
        f"lost, {moment}": Case(LOST, once(moment, "lose_host"), n_pods=2)
        for moment in ("create", "pull", "running", "uploading")
    },
    "lost, committed": Case(COMMITTED, once("committed", "lose_host")),
    "stopped by the provider": Case(LOST, once("create", "stop_by_provider"), n_pods=2),
    **{
        f"frozen, {moment}": Case(
            ("stalled", "committed"),
            once(moment, "freeze"),
            watch={"stalled_after_s": 5.0},
            n_pods=2,
        )
        for moment in ("running", "uploading")
    },
    "the pull hangs": Case(
        LOST, create_fails("pull_hangs"), watch={"start_timeout_s": 10.0}, n_pods=2
    ),
    "no right to pull": Case(FAILED, create_fails("pull_fails", times=None, text=UNAUTHORIZED)),
    "a crash loop": Case(("crash_loop",), lambda fake: at(fake, "running", kill_first_process)),
    **{f"on the way, {kind}": Case(COMMITTED, refuse(kind)) for kind in ON_THE_WAY},
    **{
        f"create, {kind}": Case(COMMITTED, create_fails(kind, seconds=0.8, done=kind in (500, 503)))
        for kind in OF_CREATE
    },
    "create, 500 without a machine": Case(LOST, create_fails(500)),
    **{
        f"create refused, {status}": Case(FAILED, create_fails(status, times=None), n_pods=0)
        for status in (401, 402, 403, 422)
    },
    "bad input": Case(("failed",), spec={"exit_code": 3}),
    "divergence": Case(("failed",), spec={"exit_code": 5}),
    "try again": Case(
        ("failed", "failed"), spec={"exit_code": 75}, machine={"retry": {"times": 1}}, n_pods=2
    ),
    "a broken GPU": Case(  # its first launch is given up: it had no machine
        ("failed", "committed"), spec={"broken_hosts": 2}, n_pods=2
    ),
    "too long": Case(
        ("timed_out",), spec={"hang": True}, machine={"max_runtime": timedelta(seconds=8)}
    ),
    "too long and frozen": Case(
        ("timed_out",),
        once("running", "freeze"),
        spec={"hang": True},
        machine={"max_runtime": timedelta(seconds=8)},
    ),
}


def pass_until_over(run: RentedRun, watch: Mapping[str, float]) -> None:
    """Passes until no run is open and no pod is left. One without an answer is the next one's."""
    patient = {"start_timeout_s": LONGEST_S, "stalled_after_s": LONGEST_S}
    settings = quick_settings(run.store.url, **{**patient, **watch})
    end = time.monotonic() + LONGEST_S
    told: list[str] = []
    while time.monotonic() < end:
        with contextlib.suppress(LaunchError, TryAgainError):
            done = tend(settings, run.store, run.provider())
            told += done.lines()
            if not done.tended and not run.fake.alive():
                return
        time.sleep(PAUSE_S)
    raise AssertionError(told)


@pytest.mark.parametrize("name", CASES)
def test_passes_alone_end_it_as_named(
    fake: FakeRunpod, s3_url: str, tmp_path: Path, name: str
) -> None:
    case = CASES[name]
    run = RentedRun(fake, s3_url, tmp_path, **case.spec)
    detach(run, **case.machine)
    case.arrange(fake)
    pass_until_over(run, case.watch)

    run.check_nothing_is_left()
    ends = zip(run.states(), run.reasons(), strict=True)
    ended = [state for state, reason in ends if reason != GIVEN_UP]
    assert tuple(ended) == case.states, (run.states(), run.reasons())
    if case.n_pods is not None:
        assert len(run.pods()) == case.n_pods
