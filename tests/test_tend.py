"""`moola tend`: passes over a store whose launchers have all gone. No launcher runs here but it."""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from moola.launch.rented.plan import machine_json
from moola.launch.rented.tend import Pass, tend
from moola.launch.rented.terms import Terms
from moola.runs.groups import Budget, group_of
from moola.runs.launches import all_launches, claim
from tests.fake_runpod import FakeRunpod, Pod
from tests.hook import running_hook
from tests.rented import (
    IMAGE,
    JOB,
    ROOT,
    WATCH,
    RentedRun,
    machine_config,
    quick_settings,
    run_small_job,
    wait_for,
)

PAUSE_S = 0.2
LONGEST_S = 500.0  # for a run: a case that takes longer hangs


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRunpod]:
    with FakeRunpod(run_small_job, per_minute=60_000, restart_s=0.1) as running:
        monkeypatch.setenv("RUNPOD_TERMINATE_API_KEY", running.restricted_key)
        yield running


@pytest.fixture
def run(fake: FakeRunpod, s3_url: str, tmp_path: Path) -> RentedRun:
    return RentedRun(fake, s3_url, tmp_path)


def detach(run: RentedRun, budget: Budget | None = None, **machine: Any) -> None:
    """What `--detach` does at its end; the computer is off from then on."""
    terms = Terms(JOB, IMAGE, machine_json(machine_config(**machine)), budget)
    assert run.session().detach(terms) == 0


def one_pass(run: RentedRun) -> Pass:
    """A pass as a cron job makes it, from a computer that has seen nothing before."""
    settings = quick_settings(run.store.url, start_timeout_s=LONGEST_S, stalled_after_s=LONGEST_S)
    return tend(settings, run.store, run.provider())


def pass_until_over(run: RentedRun, within_s: float = LONGEST_S) -> list[str]:
    """Passes until no run is open and no pod is left; -> all that they told."""
    told: list[str] = []
    end = time.monotonic() + within_s
    while True:
        done = one_pass(run)
        told += done.lines()
        if not done.tended and not run.fake.alive():
            return told
        assert time.monotonic() < end, told
        time.sleep(PAUSE_S)


def test_a_detached_run_is_seen_through_by_passes_alone(run: RentedRun) -> None:
    detach(run)
    assert run.pods() == []
    told = pass_until_over(run)
    run.check_nothing_is_left()
    assert run.states()[-1] == "committed", told
    assert len(run.pods()) == 1
    assert all(launch.retries == 0 for launch in all_launches(run.store, run.run_id))
    assert one_pass(run).lines() == []


def test_passes_ask_again_until_there_is_a_machine(fake: FakeRunpod, run: RentedRun) -> None:
    fake.fail("no_capacity", times=None)
    detach(run)
    wait_for(lambda: one_pass(run) and len(all_launches(run.store, run.run_id)) >= 3, "asked twice")
    assert fake.alive() == []
    fake.clear()
    pass_until_over(run)
    run.check_nothing_is_left()
    assert run.states()[-1] == "committed"
    launches = all_launches(run.store, run.run_id)
    assert {launch.retries for launch in launches} == {0}, "no machine, no further attempt"


def test_a_lost_machine_is_replaced_and_the_job_resumes(
    fake: FakeRunpod, run: RentedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And word is sent of its end, not of the machine's."""
    lost = threading.Event()

    def lose_first(pod: Pod, text: str) -> None:
        if "checkpoint after step 2" in text and not lost.is_set():
            lost.set()
            fake.lose_host(pod)

    fake.on_line = lose_first
    detach(run)
    with running_hook() as hook:
        monkeypatch.setenv("MOOLA_NOTIFY", hook.address)
        pass_until_over(run)
        for _ in range(2):
            one_pass(run)
    run.check_nothing_is_left()
    assert ["committed" in json.dumps(body) for body in hook.bodies] == [True]
    assert run.states()[-2:] == ["infra_lost", "committed"]
    assert run.resumed_from() >= 1
    assert all_launches(run.store, run.run_id)[-1].retries == 1


def test_a_run_that_fails_for_good_is_left_so(
    fake: FakeRunpod, s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RentedRun(fake, s3_url, tmp_path, exit_code=3)
    detach(run)
    with running_hook() as hook:
        monkeypatch.setenv("MOOLA_NOTIFY", hook.address)
        pass_until_over(run)
    assert ["failed" in json.dumps(body) for body in hook.bodies] == [True]
    run.check_nothing_is_left()
    assert run.states()[-1] == "failed"
    assert len(run.pods()) == 1


def test_an_image_that_cannot_be_pulled_is_paid_for_once(fake: FakeRunpod, run: RentedRun) -> None:
    """Seen in the machine's log: it says nothing in the store, and has hours to start in."""
    line = "error pulling image: Error response from daemon: unauthorized"
    fake.fail("pull_fails", times=None, text=line)
    detach(run)
    pass_until_over(run)
    run.check_nothing_is_left()
    assert run.states()[-1] == "launch_failed"
    assert line in run.reasons()[-1]
    assert len(run.pods()) == 1


def test_a_cancelled_run_is_not_gone_on_with(run: RentedRun) -> None:
    detach(run)
    assert run.session().cancel() == "cancelled"
    pass_until_over(run)
    assert run.states() == ["cancelled"]
    assert run.pods() == []


@pytest.mark.parametrize("key", [None, b"1" * 32])
def test_nothing_is_rented_for_a_launch_without_the_holders_proof(
    run: RentedRun, key: bytes | None
) -> None:
    machine = machine_json(machine_config())
    assert claim(run.store, run.run_id, 1, JOB, IMAGE, machine, key=key)
    time.sleep(WATCH["settle_s"] + 0.5)
    passes = [one_pass(run) for _ in range(3)]
    assert run.pods() == []
    assert any("carries no proof" in line for done in passes for line in done.lines())
    assert all(done.has_failed for done in passes[1:])


def test_any_number_of_tenders_rent_one_machine_for_each_run(
    fake: FakeRunpod, s3_url: str, tmp_path: Path
) -> None:
    runs = [RentedRun(fake, s3_url, tmp_path / str(n), tag=n) for n in range(2)]
    for run in runs:
        detach(run)
    told: list[list[str]] = []
    tenders = [
        threading.Thread(target=lambda: told.append(pass_until_over(runs[0]))) for _ in range(5)
    ]
    for tender in tenders:
        tender.start()
    for tender in tenders:
        tender.join()

    assert len(told) == len(tenders)
    for run in runs:
        run.check_nothing_is_left()
        assert run.states()[-1] == "committed"


def test_tenders_hold_the_budget_of_a_group(fake: FakeRunpod, s3_url: str, tmp_path: Path) -> None:
    runs = [RentedRun(fake, s3_url, tmp_path / str(n), tag=n) for n in range(3)]
    group = group_of(JOB, [run.run_id for run in runs])
    limits = Budget(group=group.id, max_spend=100.0, max_machines=1)
    for run in runs:
        detach(run, limits)
    told = pass_until_over(runs[0])
    assert any("waiting for the budget: 1 of 1 machines" in line for line in told)
    for run in runs:
        run.check_nothing_is_left()
        assert run.states()[-1] == "committed"
    spells = sorted((pod.spells[0].start, pod.spells[-1].end or 0.0) for pod in fake.pods.values())
    assert len(spells) == len(runs)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spells))


def start_tender(run: RentedRun) -> "subprocess.Popen[bytes]":
    """`moola tend` in a process of its own, which may be killed."""
    watch = {f"MOOLA_WATCH__{name.upper()}": str(value) for name, value in WATCH.items()}
    names = {"MOOLA_STORE": run.store.url, "RUNPOD_API_BASE_URL": run.fake.url}
    environment = {**os.environ, **watch, **names, "RUNPOD_API_KEY": run.fake.api_key}
    command = [sys.executable, "-m", "moola", "tend"]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)


def test_what_a_killed_tender_left_the_next_pass_goes_on_with(
    fake: FakeRunpod, run: RentedRun
) -> None:
    """Killed when the provider has made the pod, and before the answer is out."""
    detach(run)
    time.sleep(WATCH["settle_s"] + 0.5)
    tender = start_tender(run)
    fake.on_create = lambda _: os.kill(tender.pid, signal.SIGKILL)
    tender.wait(timeout=LONGEST_S)
    assert tender.returncode == -signal.SIGKILL
    fake.on_create = lambda _: None

    pass_until_over(run)
    run.check_nothing_is_left()
    assert run.states()[-1] == "committed"
    assert len(run.pods()) == 1, "the machine of the killed tender did the work"


def test_no_capacity_for_too_long_is_told_and_ends(fake: FakeRunpod, run: RentedRun) -> None:
    fake.fail("no_capacity", times=None)
    detach(run, max_wait_for_capacity=timedelta(seconds=3), retry={"times": 0})
    pass_until_over(run)
    assert run.states()[-1] == "no_capacity"
    assert run.pods() == []
