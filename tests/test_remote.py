"""Runs on rented machines, and everything that can go wrong: whatever fails when, it ends as named and nothing bills.

The matrix is failure x moment. The moments of a run are

    create      the provider has made the pod, and the answer is not out yet
    pull        the image is being fetched
    running     the job is at its steps
    uploading   the job is at its files
    committed   COMMIT is there, the pod still is, too

A refusal of the provider at `create` is one of the create; later it is one of whatever the launcher and the pod ask
for then: how the pod is, its log, its end. Those must change nothing, so that one run is refused at all four moments.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from deploy.plan import machine_json, pod_request
from deploy.pods import Candidate, Offer
from deploy.reap import reap
from moola.errors import AuthError, LaunchError, TryAgainError
from moola.launches import claim, newest_launch
from moola.runs import end_attempt, read_manifest
from tests.fake_runpod import FakeRunpod, Pod
from tests.rented import IMAGE, JOB, Rented, machine_config, quick_settings, the_runner, wait_for
from tests.small_job import FILES

MOMENTS = ("create", "pull", "running", "uploading", "committed")
SAID = {"running": "checkpoint after step 2", "uploading": "uploading", "committed": "committed small-"}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRunpod]:
    with FakeRunpod(the_runner, per_minute=6000, restart_s=0.1) as running:
        monkeypatch.setenv("RUNPOD_TERMINATE_API_KEY", running.restricted_key)
        yield running


@pytest.fixture
def run(fake: FakeRunpod, s3_url: str, tmp_path: Path) -> Rented:
    return Rented(fake, s3_url, tmp_path)


def at(fake: FakeRunpod, moment: str, event: Callable[[Pod], None]) -> None:
    """Have `event` happen to the first pod at a moment, once."""
    happened = threading.Lock()

    def once(pod: Pod) -> None:
        if happened.acquire(blocking=False):
            event(pod)

    def while_pulling(pod: Pod) -> None:
        fake.wait_until(lambda: pod.status == "STARTING")
        once(pod)

    if moment == "create":
        fake.on_create = once
    elif moment == "pull":
        fake.pull_s = 0.5
        fake.on_create = lambda pod: threading.Thread(target=while_pulling, args=(pod,), daemon=True).start()
    else:
        fake.on_line = lambda pod, text: once(pod) if SAID[moment] in text else None


def check_committed(run: Rented, *before: str, most_alive: int = 1) -> None:
    """Committed, after attempts that ended in the states `before`; nothing is left over."""
    run.check_nothing_is_left(most_alive=most_alive)
    assert run.states() == [*before, "committed"], (run.reasons(), run.said.getvalue())
    assert FILES.items() <= run.pulled().items()


# -- nothing goes wrong --


@pytest.mark.parametrize("key", ["restricted", "of the pod", "none that may"])
def test_a_machine_ends_itself_with_the_key_that_may_or_is_ended(
    fake: FakeRunpod, run: Rented, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    if key != "restricted":
        monkeypatch.delenv("RUNPOD_TERMINATE_API_KEY")
        fake.pod_key_terminates = key == "of the pod"
    assert run.launch(grace_s=1.0 if key == "none that may" else 60.0) == 0
    check_committed(run)
    assert run.resumed_from() == 0
    (pod,) = run.pods()
    ended_by = {call.key for call in fake.calls if call.operation == "delete" and call.status in (200, 204)}
    expected = {"restricted": "pods", "of the pod": f"pod {pod.id}", "none that may": "account"}[key]
    assert expected in ended_by
    assert ("account" in ended_by) == (key == "none that may")


# -- a machine that is lost --


@pytest.mark.parametrize(
    ("kind", "moment"),
    [
        *(("lost", moment) for moment in MOMENTS),
        *(
            ("stopped", moment) for moment in ("create", "running", "committed")
        ),  # as `lost`, but for SIGTERM and a disk
    ],
)
def test_a_lost_machine_is_replaced_and_the_work_resumed(fake: FakeRunpod, run: Rented, kind: str, moment: str) -> None:
    at(fake, moment, fake.lose_host if kind == "lost" else fake.stop_by_provider)
    assert run.launch() == 0
    if moment == "committed":
        check_committed(run)
        return
    first = run.states()[0]
    assert first == "infra_lost" or (kind == "stopped" and first == "terminated")
    check_committed(run, first)
    assert run.resumed_from() >= {"running": 2, "uploading": 3}.get(moment, 0)


@pytest.mark.parametrize("moment", ["running", "uploading", "committed"])
def test_a_frozen_machine_is_stalled_and_replaced(fake: FakeRunpod, run: Rented, moment: str) -> None:
    at(fake, moment, fake.freeze)
    assert run.launch(stalled_after_s=5.0) == 0
    check_committed(run, *([] if moment == "committed" else ["stalled"]))


@pytest.mark.parametrize("kind", ["pull_hangs", "frozen"])
def test_a_machine_without_a_word_is_lost_and_the_next_launch_works(fake: FakeRunpod, run: Rented, kind: str) -> None:
    if kind == "pull_hangs":
        fake.fail("pull_hangs")
    else:
        at(fake, "create", lambda pod: threading.Thread(target=freeze_at_once, args=(fake, pod), daemon=True).start())
    assert run.launch({"retry": {"times": 0}}, start_timeout_s=1.5) == 1
    run.check_nothing_is_left()
    assert "download stuck" in run.reasons()[0]
    assert run.launch() == 0
    check_committed(run, "infra_lost")


def freeze_at_once(fake: FakeRunpod, pod: Pod) -> None:
    fake.wait_until(lambda: pod.container and pod.container.pid)
    fake.freeze(pod)


def test_a_container_started_a_second_time_is_a_crash_loop_and_not_retried(fake: FakeRunpod, run: Rented) -> None:
    at(fake, "running", lambda pod: os.kill(pod.container.pid, signal.SIGKILL))  # type: ignore[union-attr, arg-type]
    assert run.launch() == 1
    run.check_nothing_is_left()
    assert run.states() == ["crash_loop"]
    assert read_manifest(run.store, run.run_id) is None


def test_a_crash_loop_before_the_first_word_is_seen_from_outside(fake: FakeRunpod, run: Rented) -> None:
    fake.clock.speed = 200.0
    fake.fail("crash_loop")
    assert run.launch() == 1
    run.check_nothing_is_left()
    assert run.states() == ["crash_loop"]


# -- the provider refuses, or does not answer --


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_provider_that_is_down_for_a_while_is_waited_for(fake: FakeRunpod, run: Rented, moment: str) -> None:
    def down(_: Pod) -> None:
        fake.partitioned = True
        threading.Timer(1.0, lambda: setattr(fake, "partitioned", False)).start()

    if moment == "create":
        fake.fail(503, done=True)
    at(fake, moment, down)
    assert run.launch(settle_s=10.0) == 0
    check_committed(run)


@pytest.mark.parametrize("kind", [401, 402, 409, 422, 429, 500, 503, "cut", "withheld", "slow"])
def test_refusals_on_the_way_do_not_end_a_run(fake: FakeRunpod, run: Rented, kind: Any) -> None:
    def refuse(*_: object) -> None:
        for on in ("get", "list", "delete", "logs"):
            fake.fail(kind, on, seconds=0.7)

    at(fake, "pull", refuse)
    fake.on_line = lambda _, text: refuse() if any(said in text for said in SAID.values()) else None
    assert run.launch(settle_s=10.0) == 0
    check_committed(run)
    assert len(run.pods()) == 1


@pytest.mark.parametrize("kind", ["no_capacity", 429, "cut", "withheld", "slow", 500, 503])
def test_a_create_that_may_have_worked_buys_one_machine(fake: FakeRunpod, run: Rented, kind: Any) -> None:
    fake.fail(kind, seconds=0.8, done=kind in (500, 503))
    assert run.launch(settle_s=10.0) == 0
    check_committed(run)
    assert len(run.pods()) == 1


@pytest.mark.parametrize("status", [409, 500])
def test_a_create_of_which_nobody_can_know_is_settled_before_the_next(
    fake: FakeRunpod, run: Rented, status: int
) -> None:
    """Nothing is behind the answer, but it does not say so: the attempt is given up, and another one made."""
    fake.fail(status)
    assert run.launch() == 0
    check_committed(run, "infra_lost")
    assert "could not be settled" in run.reasons()[0]
    assert len(run.pods()) == 1


@pytest.mark.parametrize("status", [401, 402, 403, 422])
def test_a_refused_create_stops_the_run_at_once(fake: FakeRunpod, run: Rented, status: int) -> None:
    fake.fail(status, times=None)
    with pytest.raises(AuthError if status in (401, 403) else LaunchError):
        run.launch()
    run.check_nothing_is_left()
    assert run.states() == ["launch_failed"]
    assert run.reasons() != [""]
    assert len([call for call in fake.calls if call.operation == "create"]) == 1
    assert run.pods() == []


def test_no_machine_anywhere_ends_as_no_capacity_and_names_what_was_tried(fake: FakeRunpod, run: Rented) -> None:
    fake.fail("no_capacity", times=None, machine="cpu3c")
    fake.stock.set("cpu5c", "NONE")
    assert run.launch({"max_wait_for_capacity": timedelta(seconds=1), "retry": {"times": 1}}) == 6
    run.check_nothing_is_left()
    assert run.states() == ["no_capacity", "no_capacity"]
    assert "no longer any instances" in run.reasons()[0]
    assert "out of stock" in run.reasons()[0]


# -- the job fails --


@pytest.mark.parametrize(("exit_code", "attempts"), [(3, 1), (5, 1), (75, 2)])
def test_only_a_job_that_says_so_is_tried_again(
    fake: FakeRunpod, s3_url: str, tmp_path: Path, exit_code: int, attempts: int
) -> None:
    run = Rented(fake, s3_url, tmp_path, exit_code=exit_code)
    assert run.launch({"retry": {"times": 1}}) == exit_code
    run.check_nothing_is_left()
    assert run.states() == ["failed"] * attempts
    assert read_manifest(run.store, run.run_id) is None


@pytest.mark.parametrize("cap", ["time", "money", "frozen", "frozen and the launcher dead"])
def test_a_job_that_hangs_is_ended_at_its_deadline(fake: FakeRunpod, s3_url: str, tmp_path: Path, cap: str) -> None:
    run = Rented(fake, s3_url, tmp_path, hang=True)
    machine: dict[str, Any] = {"max_runtime": timedelta(seconds=8)}
    if cap == "money":
        machine = {"max_spend": 0.06 * 8 / 3600}  # of 8 s on 2 vCPUs at 0.03 USD/h each
    if cap.startswith("frozen"):
        at(fake, "running", fake.freeze)
    if cap == "frozen and the launcher dead":
        launcher = run.remote()
        launcher.claim(1, JOB, IMAGE, machine_json(machine_config(**machine)))
        launch = newest_launch(run.store, run.run_id)
        assert launch
        assert launcher.rent(launch)
        wait_for(lambda: reap_all(run) or not fake.alive(), "the end of the pod")
    else:
        assert run.launch(machine) == 124
    run.check_nothing_is_left()
    assert run.states() == ["timed_out"]
    (pod,) = run.pods()
    assert fake.billed(pod) < 2 * 0.06 * 8 / 3600 + 0.06 * 20 / 3600
    assert read_manifest(run.store, run.run_id) is None


def reap_all(run: Rented) -> None:
    reap(quick_settings(run.store.url), run.store, run.provider())


# -- several launchers, or none --


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_launcher_is_replaced_by_attach(fake: FakeRunpod, run: Rented, moment: str) -> None:
    kill_launcher(fake, run, moment)
    assert run.remote().see_through() == 0
    check_committed(run)
    assert len(run.pods()) == 1


@pytest.mark.parametrize("moment", MOMENTS)
def test_after_a_killed_launcher_reap_ends_a_machine_that_cannot_end_itself(
    fake: FakeRunpod, run: Rented, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    monkeypatch.delenv("RUNPOD_TERMINATE_API_KEY")
    fake.pod_key_terminates = False
    kill_launcher(fake, run, moment)
    wait_for(lambda: reap_all(run) or not fake.alive(), "the end of the pod")
    check_committed(run)


def kill_launcher(fake: FakeRunpod, run: Rented, moment: str) -> None:
    """Start a launcher and kill it at that moment."""
    started: list[Any] = []
    at(fake, moment, lambda _: started[0].kill())
    started.append(run.start_launcher())
    assert started[0].wait(60) == -signal.SIGKILL


def test_two_launchers_at_once_rent_one_machine(run: Rented) -> None:
    codes: list[int] = []
    threads = [threading.Thread(target=lambda: codes.append(run.launch())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [0, 0]
    check_committed(run)
    assert len(run.pods()) == 1


def test_a_launcher_that_waits_for_the_provider_is_not_taken_for_dead(fake: FakeRunpod, run: Rented) -> None:
    fake.fail(429, times=3, retry_after=1)  # three seconds at least; the other one gives up after one
    first = threading.Thread(target=lambda: run.launch(settle_s=1.0))
    first.start()
    wait_for(lambda: newest_launch(run.store, run.run_id), "the claim")
    assert run.remote(settle_s=1.0).see_through() == 0
    first.join()
    check_committed(run)
    assert len(run.pods()) == 1


def test_a_claim_without_a_machine_is_no_attempt(run: Rented) -> None:
    claim(run.store, run.run_id, 1, JOB, IMAGE, machine_json(machine_config(retry={"times": 0})))
    assert run.remote(settle_s=0.5).see_through() == 0
    check_committed(run, "infra_lost")


def test_a_launcher_whose_launch_was_given_up_rents_nothing(run: Rented) -> None:
    slow = run.remote()
    slow.claim(1, JOB, IMAGE, machine_json(machine_config()))
    launch = newest_launch(run.store, run.run_id)
    assert launch
    claim(run.store, run.run_id, 2, JOB, IMAGE, machine_json(machine_config()))
    assert slow.rent(launch) is None
    assert run.pods() == []


def test_a_machine_that_comes_too_late_does_no_work(fake: FakeRunpod, run: Rented) -> None:
    """The request of a dead launcher is carried out when its launch has long been given up."""
    late = claim(run.store, run.run_id, 1, JOB, IMAGE, machine_json(machine_config()))
    assert late
    offer = Offer(Candidate("cpu", "cpu3c", 2), "cpu3c", 0.06, "high", 4.0)
    request = pod_request(quick_settings(run.store.url), late, offer, late.time + 600)
    at(fake, "running", lambda _: threading.Thread(target=run.provider().create, args=(request,), daemon=True).start())
    assert run.remote(settle_s=0.5).see_through() == 0
    wait_for(lambda: len(run.pods()) == 2 and not fake.alive(), "the end of the late machine")
    check_committed(run, "infra_lost", most_alive=2)
    (pod,) = [pod for pod in run.pods() if pod.name == late.pod_name]
    assert not [line for line in pod.log.texts() if line.startswith("#")]


def test_what_an_earlier_launcher_left_is_ended_before_the_next_launch(
    fake: FakeRunpod, run: Rented, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RUNPOD_TERMINATE_API_KEY")
    fake.pod_key_terminates = False
    dead = run.remote()
    dead.claim(1, JOB, IMAGE, machine_json(machine_config()))
    launch = newest_launch(run.store, run.run_id)
    assert launch
    dead.rent(launch)
    end_attempt(run.store, run.run_id, launch.attempt, "infra_lost", "by hand")
    assert run.launch() == 0
    check_committed(run, "infra_lost")


def test_a_machine_that_cannot_be_ended_is_named_and_no_other_is_rented(fake: FakeRunpod, run: Rented) -> None:
    at(fake, "running", lambda pod: [fake.freeze(pod), fake.fail(500, "delete", times=None)])
    with pytest.raises(TryAgainError, match=r"could not be ended.*launch.py reap"):
        run.launch(stalled_after_s=3.0, settle_s=1.0)
    assert len(run.pods()) == 1
    fake.clear()
    reap_all(run)
    run.check_nothing_is_left()


# -- cancel --


@pytest.mark.parametrize("when", ["running", "frozen", "waiting for capacity"])
def test_cancel_ends_the_run_and_its_machine(fake: FakeRunpod, s3_url: str, tmp_path: Path, when: str) -> None:
    run, codes, begun = Rented(fake, s3_url, tmp_path, hang=True), [], threading.Event()
    if when == "waiting for capacity":
        fake.fail("no_capacity", times=None)
        begun.set()
    at(fake, "running", lambda pod: [when == "frozen" and fake.freeze(pod), begun.set()])
    launcher = threading.Thread(target=lambda: codes.append(run.launch()))
    launcher.start()
    assert begun.wait(60)
    wait_for(lambda: newest_launch(run.store, run.run_id), "the claim")
    assert run.remote(grace_s=30.0 if when == "running" else 1.0).cancel() == "cancelled"
    launcher.join(60)
    assert codes == [130]
    run.check_nothing_is_left()
    assert run.states() == ["cancelled"]


def test_a_run_cancelled_while_its_attempt_was_ending_is_not_tried_again(run: Rented) -> None:
    lost = claim(run.store, run.run_id, 1, JOB, IMAGE, machine_json(machine_config()))
    assert lost
    end_attempt(run.store, run.run_id, lost.attempt, "infra_lost", "by hand")
    assert run.remote().cancel() == "infra_lost"
    assert run.remote().see_through() == 1
    assert run.states() == ["infra_lost"]
    assert run.pods() == []
