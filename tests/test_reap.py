"""What `reap` ends and what it leaves alone: only pods of this store, only for a stated reason."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from moola.launch.rented.reap import Reaped, reap, reap_table
from moola.runs.attempt import end_attempt
from moola.runs.launches import Launch
from moola.runs.protocol import HEARTBEAT, STATUS, canonical_json, now_text
from tests.fake_runpod import FakeRunpod
from tests.rented import RentedRun, claim_launch, commit_launch, quick_settings, rent_pod


@pytest.fixture
def fake() -> Iterator[FakeRunpod]:
    """An account whose pods sleep: no job ends them."""
    with FakeRunpod(lambda _: ["sleep", "600"], per_minute=6000) as running:
        yield running


@pytest.fixture
def run(fake: FakeRunpod, tmp_path: Path) -> RentedRun:
    return RentedRun(fake, f"file://{tmp_path}/store", tmp_path)


def beat(run: RentedRun, launch: Launch, time_text: str | None = None) -> None:
    run.store.put(
        launch.key(STATUS), canonical_json({"state": "running", "time": time_text or now_text()})
    )
    run.store.put(launch.key(HEARTBEAT), canonical_json({"time": time_text or now_text()}))


def reaped(run: RentedRun, **watch: float) -> Reaped:
    """What `reap` says of the one machine there is."""
    (verdict,) = reap(quick_settings(run.store.url, **watch), run.store, run.provider())
    return verdict


def check_ended(run: RentedRun, verdict: Reaped, why: str, state: str) -> None:
    assert verdict.ended
    assert why in verdict.why
    assert run.states()[0] == state
    run.check_nothing_is_left()


def test_a_machine_at_work_is_left_and_written_down(run: RentedRun) -> None:
    launch = claim_launch(run)
    pod = rent_pod(run, launch.pod_name)
    beat(run, launch)
    verdict = reaped(run)
    assert (verdict.ended, verdict.run_id) == (False, run.run_id)
    assert "at work until" in verdict.why
    assert pod.alive
    assert run.store.exists(launch.key("pod.json"))


def test_strangers_and_other_buckets_machines_are_left_alone(run: RentedRun) -> None:
    """Another bucket may hold the same run, and claim it: run ids come from the work."""
    mine = claim_launch(run)
    end_attempt(run.store, run.run_id, mine.attempt, "timed_out", "late", 124)
    same_run = f"{mine.pod_name[:-4]}{'0000' if mine.pod_name[-4:] != '0000' else '1111'}"
    names = [
        mine.pod_name,
        same_run,
        "moola-small-ffffffffffff-a1-0a1b",
        "someones",
        f"x{mine.pod_name}",
        "moola-x",
    ]
    for name in names:
        rent_pod(run, name, lasts_s=-1000.0)
    verdicts = reap(quick_settings(run.store.url), run.store, run.provider())
    assert {one.pod.name: one.ended for one in verdicts} == {
        name: name == mine.pod_name for name in names[:3]
    }
    assert [one.why for one in verdicts if not one.ended] == [
        f"not launched from {run.store.url}: left alone"
    ] * 2
    assert {pod.name for pod in run.fake.alive()} == set(names) - {mine.pod_name}


def test_a_machine_whose_attempt_has_ended_is_ended(run: RentedRun) -> None:
    launch = claim_launch(run)
    rent_pod(run, launch.pod_name)
    end_attempt(run.store, run.run_id, launch.attempt, "cancelled", "asked for", 130)
    check_ended(run, reaped(run), "its attempt ended as cancelled", "cancelled")


def test_a_machine_of_a_committed_run_is_ended_and_stays_committed(run: RentedRun) -> None:
    launch = claim_launch(run)
    rent_pod(run, launch.pod_name)
    commit_launch(run, launch)
    check_ended(run, reaped(run), "the run is committed", "committed")


def test_a_machine_whose_launch_was_given_up_is_ended(run: RentedRun) -> None:
    launch = claim_launch(run)
    rent_pod(run, launch.pod_name)
    beat(run, launch)
    claim_launch(run, 2)
    check_ended(run, reaped(run), "given up for launch 2", "infra_lost")


def test_a_machine_past_its_deadline_is_ended(run: RentedRun) -> None:
    launch = claim_launch(run)
    rent_pod(run, launch.pod_name, lasts_s=-10.0)
    beat(run, launch)
    check_ended(run, reaped(run, grace_s=1.0), "past its deadline", "timed_out")


@pytest.mark.parametrize("left_s", [10.0, -10.0], ids=["before it", "after it"])
def test_a_machine_within_its_grace_around_the_deadline_is_left(
    run: RentedRun, left_s: float
) -> None:
    launch = claim_launch(run)
    pod = rent_pod(run, launch.pod_name, lasts_s=left_s)
    beat(run, launch)
    assert "at work until" in reaped(run, grace_s=60.0).why
    assert pod.alive


def test_a_heartbeat_that_cannot_be_read_does_not_save_a_late_machine(run: RentedRun) -> None:
    launch = claim_launch(run)
    rent_pod(run, launch.pod_name, lasts_s=-10.0)
    run.store.put(launch.key(HEARTBEAT), b"no JSON")
    check_ended(run, reaped(run, grace_s=1.0), "past its deadline", "timed_out")


@pytest.mark.parametrize("beaten", [True, False])
def test_a_silent_machine_is_ended(run: RentedRun, beaten: bool) -> None:
    """Also one that fell silent between its status and its first heartbeat."""
    launch = claim_launch(run)
    rent_pod(run, launch.pod_name)
    beat(run, launch, "2026-11-22T23:15:00.000+00:00")
    if not beaten:
        run.store.delete(launch.key(HEARTBEAT))
    check_ended(run, reaped(run), "no heartbeat for", "stalled")


def test_a_machine_that_never_began_is_ended(run: RentedRun) -> None:
    rent_pod(run, claim_launch(run).pod_name)
    assert not reaped(run).ended, "it may still be fetching its image"
    check_ended(run, reaped(run, start_timeout_s=0.01), "did not start within", "infra_lost")
    (reason,) = run.reasons()
    assert "; the machine's last lines:\n" in reason
    assert "start container" in reason


def test_one_machine_that_cannot_be_ended_does_not_save_the_others(run: RentedRun) -> None:
    pods = [rent_pod(run, claim_launch(run, n).pod_name) for n in (1, 2, 3)]
    refused = run.provider()
    terminate = refused.terminate

    def terminate_others(pod_id: str) -> None:
        if pod_id != pods[0].id:
            terminate(pod_id)

    refused.terminate = terminate_others  # type: ignore[method-assign]
    verdicts = reap(quick_settings(run.store.url, settle_s=0.3), run.store, refused)
    assert [one.ended for one in verdicts] == [False, True, False]
    assert "could not be ended" in verdicts[0].why
    assert [pod.alive for pod in pods] == [True, False, True]


def test_the_table_says_what_was_done_and_why(run: RentedRun) -> None:
    launch = claim_launch(run)
    pod = rent_pod(run, launch.pod_name)
    end_attempt(run.store, run.run_id, launch.attempt, "timed_out", "late", 124)
    rent_pod(run, "moola-small-ffffffffffff-a1-0a1b")
    out = io.StringIO()
    verdicts = reap(quick_settings(run.store.url), run.store, run.provider())
    Console(file=out, width=300).print(reap_table(verdicts))
    ended, left = (
        next(line for line in out.getvalue().splitlines() if name in line)
        for name in (pod.id, "ffffff")
    )
    for word in (pod.name, run.run_id, "0.060", "ended", "its attempt ended as timed_out"):
        assert word in ended
    assert "left alone" in left
