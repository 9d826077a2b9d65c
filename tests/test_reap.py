"""What `reap` ends and what it leaves alone: only machines of this store's launches, and only for a stated reason."""

import io
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from deploy.plan import machine_json
from deploy.pods import Candidate, PodRequest
from deploy.reap import Verdict, reap, verdict_table
from moola.launches import Launch, claim
from moola.protocol import HEARTBEAT, STATUS, canonical_json, now_text
from moola.runs import commit_run, end_attempt
from tests.fake_runpod import FakeRunpod, Pod
from tests.rented import IMAGE, JOB, Rented, machine_config, quick_settings


@pytest.fixture
def fake() -> Iterator[FakeRunpod]:
    """An account whose pods sleep: no job ends them."""
    with FakeRunpod(lambda _: ["sleep", "600"], per_minute=6000) as running:
        yield running


@pytest.fixture
def run(fake: FakeRunpod, tmp_path: Path) -> Rented:
    return Rented(fake, f"file://{tmp_path}/store", tmp_path)


def claimed(run: Rented, n: int = 1) -> Launch:
    launch = claim(run.store, run.run_id, n, JOB, IMAGE, machine_json(machine_config()))
    assert launch is not None
    return launch


def rented(run: Rented, name: str, *, lasts_s: float = 3600.0) -> Pod:
    """A machine of this name that runs."""
    env = {"MOOLA_RUN": run.run_id, "MOOLA_DEADLINE": f"{time.time() + lasts_s:.0f}"}
    pod = run.fake.pods[run.provider().create(PodRequest(name, IMAGE, Candidate("cpu", "cpu3c", 2), 20, env)).id]
    run.fake.wait_until(lambda: pod.status == "RUNNING")
    return pod


def beat(run: Rented, launch: Launch, time_text: str | None = None) -> None:
    run.store.put(launch.key(STATUS), canonical_json({"state": "running", "time": time_text or now_text()}))
    run.store.put(launch.key(HEARTBEAT), canonical_json({"time": time_text or now_text()}))


def reaped(run: Rented, **watch: float) -> Verdict:
    """What `reap` says of the one machine there is."""
    (verdict,) = reap(quick_settings(run.store.url, **watch), run.store, run.provider())
    return verdict


def check_ended(run: Rented, verdict: Verdict, why: str, state: str) -> None:
    assert verdict.ended
    assert why in verdict.why
    assert run.states()[0] == state
    run.check_nothing_is_left()


def test_a_machine_at_work_is_left_and_written_down(run: Rented) -> None:
    launch = claimed(run)
    pod = rented(run, launch.pod_name)
    beat(run, launch)
    verdict = reaped(run)
    assert (verdict.ended, verdict.run_id) == (False, run.run_id)
    assert "at work until" in verdict.why
    assert pod.alive
    assert run.store.exists(launch.key("pod.json"))


def test_strangers_and_other_buckets_machines_are_left_alone(run: Rented) -> None:
    """Another bucket may hold the same run, and claim it: run ids come from the work."""
    mine = claimed(run)
    end_attempt(run.store, run.run_id, mine.attempt, "timed_out", "late", 124)
    same_run = f"{mine.pod_name[:-4]}{'0000' if mine.pod_name[-4:] != '0000' else '1111'}"
    names = [mine.pod_name, same_run, "moola-small-ffffffffffff-a1-0a1b", "someones", f"x{mine.pod_name}", "moola-x"]
    for name in names:
        rented(run, name, lasts_s=-1000.0)
    verdicts = reap(quick_settings(run.store.url), run.store, run.provider())
    assert {one.pod.name: one.ended for one in verdicts} == {name: name == mine.pod_name for name in names[:3]}
    assert [one.why for one in verdicts if not one.ended] == [f"not launched from {run.store.url}: left alone"] * 2
    assert {pod.name for pod in run.fake.alive()} == set(names) - {mine.pod_name}


def test_a_machine_whose_attempt_has_ended_is_ended(run: Rented) -> None:
    launch = claimed(run)
    rented(run, launch.pod_name)
    end_attempt(run.store, run.run_id, launch.attempt, "cancelled", "asked for", 130)
    check_ended(run, reaped(run), "its attempt ended as cancelled", "cancelled")


def test_a_machine_of_a_committed_run_is_ended_and_stays_committed(run: Rented) -> None:
    launch = claimed(run)
    rented(run, launch.pod_name)
    manifest = canonical_json({"files": [], "derived": []})
    run.store.put_once(launch.key("manifest.json"), manifest)
    commit_run(run.store, run.run_id, launch.attempt, manifest)
    check_ended(run, reaped(run), "the run is committed", "committed")


def test_a_machine_whose_launch_was_given_up_is_ended(run: Rented) -> None:
    launch = claimed(run)
    rented(run, launch.pod_name)
    beat(run, launch)
    claimed(run, 2)
    check_ended(run, reaped(run), "given up for launch 2", "infra_lost")


def test_a_machine_past_its_deadline_is_ended(run: Rented) -> None:
    launch = claimed(run)
    rented(run, launch.pod_name, lasts_s=-10.0)
    beat(run, launch)
    check_ended(run, reaped(run, grace_s=1.0), "past its deadline", "timed_out")


@pytest.mark.parametrize("beaten", [True, False])
def test_a_silent_machine_is_ended(run: Rented, beaten: bool) -> None:
    """Also one that fell silent between its status and its first heartbeat."""
    launch = claimed(run)
    rented(run, launch.pod_name)
    beat(run, launch, "2026-11-22T23:15:00.000+00:00")
    if not beaten:
        run.store.delete(launch.key(HEARTBEAT))
    check_ended(run, reaped(run), "no heartbeat for", "stalled")


def test_a_machine_that_never_began_is_ended(run: Rented) -> None:
    rented(run, claimed(run).pod_name)
    assert not reaped(run).ended, "it may still be fetching its image"
    check_ended(run, reaped(run, start_timeout_s=0.01), "did not start within", "infra_lost")


def test_one_machine_that_cannot_be_ended_does_not_save_the_others(run: Rented) -> None:
    pods = [rented(run, claimed(run, n).pod_name) for n in (1, 2, 3)]
    refused = run.provider()
    terminate = refused.terminate
    refused.terminate = lambda pod_id: None if pod_id == pods[0].id else terminate(pod_id)  # type: ignore[method-assign]
    verdicts = reap(quick_settings(run.store.url, settle_s=0.3), run.store, refused)
    assert [one.ended for one in verdicts] == [False, True, False]
    assert "could not be ended" in verdicts[0].why
    assert [pod.alive for pod in pods] == [True, False, True]


def test_the_table_says_what_was_done_and_why(run: Rented) -> None:
    launch = claimed(run)
    pod = rented(run, launch.pod_name)
    end_attempt(run.store, run.run_id, launch.attempt, "timed_out", "late", 124)
    rented(run, "moola-small-ffffffffffff-a1-0a1b")
    out = io.StringIO()
    verdicts = reap(quick_settings(run.store.url), run.store, run.provider())
    Console(file=out, width=300).print(verdict_table(verdicts))
    ended, left = (next(line for line in out.getvalue().splitlines() if name in line) for name in (pod.id, "ffffff"))
    for word in (pod.name, run.run_id, "0.060", "ended", "its attempt ended as timed_out"):
        assert word in ended
    assert "left alone" in left
