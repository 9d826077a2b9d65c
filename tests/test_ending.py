"""Which pods of a run are ended, and when: pods that sleep, since no job ends them."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from moola.errors import TryAgainError
from moola.launch.rented.context import RunContext
from moola.launch.rented.ending import end_pod, end_pods
from moola.runs.attempt import end_attempt
from tests.fake_runpod import FakeRunpod
from tests.rented import RentedRun, claim_launch, commit_launch, rent_pod


@pytest.fixture
def fake() -> Iterator[FakeRunpod]:
    with FakeRunpod(lambda _: ["sleep", "600"], per_minute=6000) as running:
        yield running


@pytest.fixture
def run(fake: FakeRunpod, tmp_path: Path) -> RentedRun:
    return RentedRun(fake, f"file://{tmp_path}/store", tmp_path)


def context(run: RentedRun, **watch: float) -> RunContext:
    return run.session(**watch).context


def alive(run: RentedRun) -> list[str]:
    return [pod.name for pod in run.fake.alive()]


def test_only_the_pod_of_the_newest_launch_is_left_to_its_work(run: RentedRun) -> None:
    launches = [claim_launch(run, n) for n in (1, 2, 3)]
    for launch in launches:
        rent_pod(run, launch.pod_name)
    rent_pod(run, "someones")
    end_pods(context(run, grace_s=0.01))
    assert alive(run) == [launches[2].pod_name, "someones"]


def test_the_pod_of_an_attempt_that_has_ended_is_ended(run: RentedRun) -> None:
    launch = claim_launch(run)
    rent_pod(run, launch.pod_name)
    end_attempt(run.store, run.run_id, launch.attempt, "stalled", "by hand")
    end_pods(context(run, grace_s=0.01))
    assert alive(run) == []


def test_once_the_run_is_committed_the_newest_pod_is_ended_too(run: RentedRun) -> None:
    first, second = (claim_launch(run, n) for n in (1, 2))
    rent_pod(run, second.pod_name)
    commit_launch(run, first)
    end_pods(context(run, grace_s=0.01))
    assert alive(run) == []


@pytest.mark.parametrize(("at_once", "least_s"), [(False, 0.5), (True, 0.0)])
def test_a_pod_has_its_time_of_grace_unless_it_is_to_end_at_once(
    run: RentedRun, at_once: bool, least_s: float
) -> None:
    pod = rent_pod(run, "moola-x")
    started = time.monotonic()
    end_pod(context(run, grace_s=0.5, poll_s=0.05), pod.id, at_once=at_once)
    took_s = time.monotonic() - started
    assert not pod.alive
    assert took_s >= least_s


def test_a_stopped_pod_is_ended_without_a_time_of_grace(run: RentedRun) -> None:
    """It cannot end itself any more, and its disk is billed."""
    pod = rent_pod(run, "moola-x")
    run.fake.stop_by_provider(pod)
    started = time.monotonic()
    end_pod(context(run, grace_s=60.0), pod.id)
    assert pod.gone
    assert time.monotonic() - started < 30.0


def test_a_pod_that_stays_is_named_with_what_to_do(run: RentedRun) -> None:
    pod = rent_pod(run, "moola-x")
    run.fake.fail(422, "delete", times=None)
    with pytest.raises(TryAgainError, match=rf"{pod.id} could not be ended.*`moola reap`"):
        end_pod(context(run, grace_s=0.01, settle_s=0.3), pod.id)
    assert pod.alive
