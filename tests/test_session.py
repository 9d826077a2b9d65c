"""Runs on rented machines, and everything that can go wrong.

Whatever fails when, the run ends as named, and no machine is billed any more.

The matrix is failure x moment. The moments of a run are

    create      the provider has made the pod, and the answer is not out yet
    pull        the image is being fetched
    running     the job is at its steps
    uploading   the job is at its files
    committed   COMMIT is there, the pod still is, too

A refusal of the provider at `create` is one of the create; later it is one of whatever the launcher
and the pod ask for then: how the pod is, its log, its end. Those must change nothing, so that one
run is refused at all four moments.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from moola.errors import ArtifactError, AuthError, LaunchError, TryAgainError
from moola.launch.rented.plan import machine_json
from moola.launch.rented.reap import reap
from moola.launch.rented.request import pod_request
from moola.launch.rented.terms import Terms
from moola.providers.base import Candidate, Offer
from moola.runs.attempt import end_attempt
from moola.runs.launches import Launch, newest_launch, record_rented
from moola.runs.reading import read_manifest
from moola.runs.records import FileEntry
from tests.fake_runpod import FakeRunpod, Pod
from tests.rented import (
    IMAGE,
    JOB,
    RentedRun,
    claim_launch,
    commit_launch,
    machine_config,
    quick_settings,
    rented_machine,
    run_small_job,
    wait_for,
)
from tests.small_job import FILES

MOMENTS = ("create", "pull", "running", "uploading", "committed")
SAID = {
    "running": "checkpoint after step 2",
    "uploading": "uploading",
    "committed": "committed small-",
}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRunpod]:
    with FakeRunpod(run_small_job, per_minute=6000, restart_s=0.1) as running:
        monkeypatch.setenv("RUNPOD_TERMINATE_API_KEY", running.restricted_key)
        yield running


@pytest.fixture
def run(fake: FakeRunpod, s3_url: str, tmp_path: Path) -> RentedRun:
    return RentedRun(fake, s3_url, tmp_path)


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
        fake.on_create = lambda pod: threading.Thread(
            target=while_pulling, args=(pod,), daemon=True
        ).start()
    else:
        fake.on_line = lambda pod, text: once(pod) if SAID[moment] in text else None


def kill_first_process(pod: Pod) -> None:
    assert pod.container
    assert pod.container.pid
    os.kill(pod.container.pid, signal.SIGKILL)


def check_committed(run: RentedRun, *before: str, most_alive: int = 1) -> None:
    """Committed, after attempts that ended in the states `before`; nothing is left over."""
    run.check_nothing_is_left(most_alive=most_alive)
    assert run.states() == [*before, "committed"], (run.reasons(), run.output.getvalue())
    assert FILES.items() <= run.pulled().items()


# -- nothing goes wrong --


@pytest.mark.parametrize("key", ["restricted", "of the pod", "none that may"])
def test_a_machine_ends_itself_with_the_key_that_may_or_is_ended(
    fake: FakeRunpod, run: RentedRun, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    if key != "restricted":
        monkeypatch.delenv("RUNPOD_TERMINATE_API_KEY")
        fake.pod_key_terminates = key == "of the pod"
    assert run.launch(grace_s=1.0 if key == "none that may" else 60.0) == 0
    check_committed(run)
    assert run.resumed_from() == 0
    (pod,) = run.pods()
    ended_by = {
        call.key for call in fake.calls if call.operation == "delete" and call.status in (200, 204)
    }
    expected = {"restricted": "pods", "of the pod": f"pod {pod.id}", "none that may": "account"}[
        key
    ]
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
def test_a_lost_machine_is_replaced_and_the_work_resumed(
    fake: FakeRunpod, run: RentedRun, kind: str, moment: str
) -> None:
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
def test_a_frozen_machine_is_stalled_and_replaced(
    fake: FakeRunpod, run: RentedRun, moment: str
) -> None:
    at(fake, moment, fake.freeze)
    assert run.launch(stalled_after_s=5.0) == 0
    check_committed(run, *([] if moment == "committed" else ["stalled"]))


@pytest.mark.parametrize("kind", ["pull_hangs", "frozen"])
def test_a_machine_without_a_word_is_lost_and_the_next_launch_works(
    fake: FakeRunpod, run: RentedRun, kind: str
) -> None:
    if kind == "pull_hangs":
        fake.fail("pull_hangs")
    else:
        at(
            fake,
            "create",
            lambda pod: threading.Thread(
                target=freeze_at_once, args=(fake, pod), daemon=True
            ).start(),
        )
    assert run.launch({"retry": {"times": 0}}, start_timeout_s=1.5) == 75
    run.check_nothing_is_left()
    assert "download stuck" in run.reasons()[0]
    assert run.launch() == 0
    check_committed(run, "infra_lost")


def freeze_at_once(fake: FakeRunpod, pod: Pod) -> None:
    fake.wait_until(lambda: pod.container and pod.container.pid)
    fake.freeze(pod)


@pytest.mark.parametrize(
    "line",
    [
        'error pulling image: Error response from daemon: Head "https://ghcr.io": unauthorized',
        f"Error response from daemon: manifest for {IMAGE} not found: manifest unknown",
    ],
)
def test_an_image_that_cannot_be_pulled_is_paid_for_once(
    fake: FakeRunpod, run: RentedRun, line: str
) -> None:
    fake.fail("pull_fails", times=None, text=line)
    assert run.launch({"retry": {"times": 2}}) == 6
    run.check_nothing_is_left()
    assert run.states() == ["launch_failed"]
    assert line in run.reasons()[0]
    assert len(run.pods()) == 1


def test_a_host_that_cannot_pull_is_left_for_another(fake: FakeRunpod, run: RentedRun) -> None:
    line = 'error pulling image: Get "https://ghcr.io/v2/": dial tcp: lookup ghcr.io: no such host'
    fake.fail("pull_fails", text=line)
    assert run.launch() == 0
    check_committed(run, "infra_lost")
    assert line in run.reasons()[0]


@pytest.mark.parametrize(
    ("secret", "exit_code", "why"),
    [
        ("unheard_of", 3, "it does not know unheard_of (for AWS_SECRET_ACCESS_KEY)"),
        ("wrong", 6, "the store refused the credentials"),
    ],
)
def test_what_another_machine_would_do_no_better_is_paid_for_once(
    fake: FakeRunpod, run: RentedRun, secret: str, exit_code: int, why: str
) -> None:
    """The store cannot be told: the reason is in the machine's log alone."""
    fake.secrets["wrong"] = "not-the-key-of-this-store"
    machine = {"secrets": {"AWS_SECRET_ACCESS_KEY": secret}, "retry": {"times": 2}}
    assert run.launch(machine) == exit_code
    run.check_nothing_is_left()
    assert run.states() == ["failed"]
    assert why in run.reasons()[0]
    assert len(run.pods()) == 1


def test_the_last_lines_of_a_lost_machine_are_the_reason(
    fake: FakeRunpod, s3_url: str, tmp_path: Path
) -> None:
    run = RentedRun(fake, s3_url, tmp_path, hang=True)

    def lose_when_shown(pod: Pod) -> None:
        wait_for(lambda: "running from step 0" in run.output.getvalue(), "the line")
        time.sleep(1.5)  # it may have come from the store: for the live log to be read, too
        fake.lose_host(pod)

    at(fake, "running", lose_when_shown)
    assert run.launch({"retry": {"times": 0}}) == 75
    run.check_nothing_is_left()
    (reason,) = run.reasons()
    assert "the job left no final status; the machine's last lines:\n" in reason
    assert "running from step 0" in reason


def test_a_container_started_a_second_time_is_a_crash_loop_and_not_retried(
    fake: FakeRunpod, run: RentedRun
) -> None:
    at(fake, "running", kill_first_process)
    assert run.launch() == 70
    run.check_nothing_is_left()
    assert run.states() == ["crash_loop"]
    assert read_manifest(run.store, run.run_id) is None


def test_a_crash_loop_before_the_first_word_is_seen_from_outside(
    fake: FakeRunpod, run: RentedRun
) -> None:
    fake.clock.speed = 200.0
    fake.fail("crash_loop")
    assert run.launch() == 70
    run.check_nothing_is_left()
    assert run.states() == ["crash_loop"]


# -- the provider refuses, or does not answer --


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_provider_that_is_down_for_a_while_is_waited_for(
    fake: FakeRunpod, run: RentedRun, moment: str
) -> None:
    def down(_: Pod) -> None:
        fake.partitioned = True
        threading.Timer(1.0, lambda: setattr(fake, "partitioned", False)).start()

    if moment == "create":
        fake.fail(503, done=True)
    at(fake, moment, down)
    assert run.launch(settle_s=10.0) == 0
    check_committed(run)


@pytest.mark.parametrize(
    "kind",
    [
        *(401, 429, 503, "cut", "slow"),
        *(pytest.param(kind, marks=pytest.mark.large) for kind in (402, 409, 422, 500, "withheld")),
    ],
)
def test_refusals_on_the_way_do_not_end_a_run(fake: FakeRunpod, run: RentedRun, kind: Any) -> None:
    def refuse(*_: object) -> None:
        for on in ("get", "list", "delete", "logs"):
            fake.fail(kind, on, seconds=0.7)

    at(fake, "pull", refuse)
    fake.on_line = lambda _, text: refuse() if any(said in text for said in SAID.values()) else None
    assert run.launch(settle_s=10.0) == 0
    check_committed(run)
    assert len(run.pods()) == 1


@pytest.mark.parametrize("kind", ["no_capacity", 429, "cut", "withheld", "slow", 500, 503])
def test_a_create_that_may_have_worked_buys_one_machine(
    fake: FakeRunpod, run: RentedRun, kind: Any
) -> None:
    fake.fail(kind, seconds=0.8, done=kind in (500, 503))
    assert run.launch(settle_s=10.0) == 0
    check_committed(run)
    assert len(run.pods()) == 1


@pytest.mark.parametrize("status", [409, 500])
def test_a_create_of_which_nobody_can_know_is_settled_before_the_next(
    fake: FakeRunpod, run: RentedRun, status: int
) -> None:
    """No pod was made, but the answer does not say so: the attempt is given up for another."""
    fake.fail(status)
    assert run.launch() == 0
    check_committed(run, "infra_lost")
    assert "could not be settled" in run.reasons()[0]
    assert len(run.pods()) == 1


@pytest.mark.parametrize("status", [401, 402, 403, 422])
def test_a_refused_create_stops_the_run_at_once(
    fake: FakeRunpod, run: RentedRun, status: int
) -> None:
    fake.fail(status, times=None)
    with pytest.raises(AuthError if status in (401, 403) else LaunchError):
        run.launch()
    run.check_nothing_is_left()
    assert run.states() == ["launch_failed"]
    assert run.reasons() != [""]
    assert len([call for call in fake.calls if call.operation == "create"]) == 1
    assert run.pods() == []


def test_no_machine_anywhere_ends_as_no_capacity_and_names_what_was_tried(
    fake: FakeRunpod, run: RentedRun
) -> None:
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
    run = RentedRun(fake, s3_url, tmp_path, exit_code=exit_code)
    assert run.launch({"retry": {"times": 1}}) == exit_code
    run.check_nothing_is_left()
    assert run.states() == ["failed"] * attempts
    assert read_manifest(run.store, run.run_id) is None


def test_a_host_whose_gpu_fails_is_left_for_another(
    fake: FakeRunpod, s3_url: str, tmp_path: Path
) -> None:
    run = RentedRun(fake, s3_url, tmp_path, broken_hosts=1)
    assert run.launch() == 0
    check_committed(run, "failed")
    assert "CUDA error: uncorrectable ECC error" in run.reasons()[0]
    assert len(run.pods()) == 2
    assert run.resumed_from() == 3


@pytest.mark.parametrize("cap", ["time", "money", "frozen", "frozen and the launcher dead"])
def test_a_job_that_hangs_is_ended_at_its_deadline(
    fake: FakeRunpod, s3_url: str, tmp_path: Path, cap: str
) -> None:
    run = RentedRun(fake, s3_url, tmp_path, hang=True)
    machine: dict[str, Any] = {"max_runtime": timedelta(seconds=8)}
    if cap == "money":
        machine = {"max_spend": 0.06 * 8 / 3600}  # of 8 s on 2 vCPUs at 0.03 USD/h each
    if cap.startswith("frozen"):
        at(fake, "running", fake.freeze)
    if cap == "frozen and the launcher dead":
        launcher = run.session()
        launcher.renting.claim(1, Terms(JOB, IMAGE, machine_json(machine_config(**machine))))
        launch = newest_launch(run.store, run.run_id)
        assert launch
        assert launcher.renting.rent(launch)
        wait_for(lambda: reap_all(run) or not fake.alive(), "the end of the pod")
    else:
        assert run.launch(machine) == 124
    run.check_nothing_is_left()
    assert run.states() == ["timed_out"]
    (pod,) = run.pods()
    assert fake.billed(pod) < 2 * 0.06 * 8 / 3600 + 0.06 * 20 / 3600
    assert read_manifest(run.store, run.run_id) is None


def reap_all(run: RentedRun) -> None:
    reap(quick_settings(run.store.url), run.store, run.provider())


# -- several launchers, or none --


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_launcher_is_replaced_by_attach(
    fake: FakeRunpod, run: RentedRun, moment: str
) -> None:
    kill_launcher(fake, run, moment)
    assert run.session().attach() == 0
    check_committed(run)
    assert len(run.pods()) == 1


@pytest.mark.parametrize("moment", MOMENTS)
def test_after_a_killed_launcher_reap_ends_a_machine_that_cannot_end_itself(
    fake: FakeRunpod, run: RentedRun, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    monkeypatch.delenv("RUNPOD_TERMINATE_API_KEY")
    fake.pod_key_terminates = False
    kill_launcher(fake, run, moment)
    wait_for(lambda: reap_all(run) or not fake.alive(), "the end of the pod")
    check_committed(run)


def kill_launcher(fake: FakeRunpod, run: RentedRun, moment: str) -> None:
    """Start a launcher and kill it at that moment."""
    started: list[Any] = []
    at(fake, moment, lambda _: started[0].kill())
    started.append(run.start_launcher())
    assert started[0].wait(60) == -signal.SIGKILL


def test_two_launchers_at_once_rent_one_machine(run: RentedRun) -> None:
    codes: list[int] = []
    threads = [threading.Thread(target=lambda: codes.append(run.launch())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [0, 0]
    check_committed(run)
    assert len(run.pods()) == 1


def test_a_launcher_that_waits_for_the_provider_is_not_taken_for_dead(
    fake: FakeRunpod, run: RentedRun
) -> None:
    fake.fail(
        429, times=3, retry_after=1
    )  # three seconds at least; the other one gives up after one
    first = threading.Thread(target=lambda: run.launch(settle_s=1.0))
    first.start()
    wait_for(lambda: newest_launch(run.store, run.run_id), "the claim")
    assert run.session(settle_s=1.0).attach() == 0
    first.join()
    check_committed(run)
    assert len(run.pods()) == 1


def test_a_claim_without_a_machine_is_no_attempt(run: RentedRun) -> None:
    claim_launch(run, retry={"times": 0})
    assert run.session(settle_s=0.5).attach() == 0
    check_committed(run, "infra_lost")


def test_a_launcher_whose_launch_was_given_up_rents_nothing(run: RentedRun) -> None:
    slow = run.session()
    slow.renting.claim(1, Terms(JOB, IMAGE, machine_json(machine_config())))
    launch = newest_launch(run.store, run.run_id)
    assert launch
    claim_launch(run, 2)
    assert slow.renting.rent(launch) is None
    assert run.pods() == []


def test_a_machine_that_comes_too_late_does_no_work(fake: FakeRunpod, run: RentedRun) -> None:
    """The request of a dead launcher is carried out when its launch has long been given up."""
    late = claim_launch(run)
    assert late
    offer = Offer(Candidate("cpu", "cpu3c", 2), "cpu3c", 0.06, "high", 4.0)
    request = pod_request(quick_settings(run.store.url), late, offer, late.time + 600)
    at(
        fake,
        "running",
        lambda _: threading.Thread(
            target=run.provider().create, args=(request,), daemon=True
        ).start(),
    )
    assert run.session(settle_s=0.5).attach() == 0
    wait_for(lambda: len(run.pods()) == 2 and not fake.alive(), "the end of the late machine")
    check_committed(run, "infra_lost", most_alive=2)
    (pod,) = [pod for pod in run.pods() if pod.name == late.pod_name]
    assert not [line for line in pod.log.texts() if line.startswith("#")]


def test_what_an_earlier_launcher_left_is_ended_before_the_next_launch(
    fake: FakeRunpod, run: RentedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RUNPOD_TERMINATE_API_KEY")
    fake.pod_key_terminates = False
    dead = run.session()
    dead.renting.claim(1, Terms(JOB, IMAGE, machine_json(machine_config())))
    launch = newest_launch(run.store, run.run_id)
    assert launch
    dead.renting.rent(launch)
    end_attempt(run.store, run.run_id, launch.attempt, "infra_lost", "by hand")
    assert run.launch() == 0
    check_committed(run, "infra_lost")


def test_a_machine_that_cannot_be_ended_is_named_and_no_other_is_rented(
    fake: FakeRunpod, run: RentedRun
) -> None:
    at(fake, "running", lambda pod: [fake.freeze(pod), fake.fail(500, "delete", times=None)])
    with pytest.raises(TryAgainError, match=r"could not be ended.*moola reap"):
        run.launch(stalled_after_s=3.0, settle_s=1.0)
    assert len(run.pods()) == 1
    fake.clear()
    reap_all(run)
    run.check_nothing_is_left()


# -- money --


def lose_machine(run: RentedRun, launch: Launch, *, spent: float) -> None:
    """The launch had a machine for which that many USD are due, and it is gone."""
    hour_ago = time.time() - 3600
    machine = rented_machine(
        pod_id=f"gone{launch.n}",
        pod_name=launch.pod_name,
        price_per_hour=spent,
        created=hour_ago,
        deadline=hour_ago + 300,
    )
    record_rented(run.store, launch, machine)
    end_attempt(run.store, run.run_id, launch.attempt, "infra_lost", "by hand")


def test_no_further_attempt_is_made_once_max_spend_is_spent(run: RentedRun) -> None:
    launch = claim_launch(run, max_spend=0.05)
    lose_machine(run, launch, spent=0.0501)
    assert run.session().attach() == 75
    assert run.states() == ["infra_lost"]
    assert "no further attempt: 0.05 USD of max_spend 0.05" in run.output.getvalue()
    assert run.pods() == []


def test_a_further_attempt_has_only_the_money_that_is_left(run: RentedRun) -> None:
    """0.06 USD/h: of 0.07 USD, 0.06 are spent, and 0.01 pay for 600 s; max_runtime is an hour."""
    machine = {"max_spend": 0.07, "max_runtime": timedelta(hours=1)}
    lose_machine(run, claim_launch(run, **machine), spent=0.06)
    session = run.session()
    second = claim_launch(run, 2, **machine)
    rented = session.renting.rent(second)
    assert rented is not None
    assert rented.deadline - time.time() == pytest.approx(600, abs=60)


# -- what a person is told --


def test_a_committed_run_whose_files_are_not_whole_is_no_success(run: RentedRun) -> None:
    launch = claim_launch(run)
    key = launch.key("files/part.bin")
    commit_launch(run, launch, FileEntry(path="part.bin", key=key, size=3, sha256="0" * 64))
    end_attempt(run.store, run.run_id, launch.attempt, "infra_lost", "by hand")

    with pytest.raises(ArtifactError, match=r"part.bin must have 3 B in the store, it is missing"):
        run.session().attach()
    run.store.put(key, b"12")
    with pytest.raises(ArtifactError, match=r"part.bin must have 3 B in the store, it is 2 B"):
        run.session().attach()
    run.store.put(key, b"123")
    assert run.session().attach() == 0


def test_a_run_that_was_never_launched_cannot_be_attached_to(run: RentedRun) -> None:
    for work in (run.session().attach, run.session().cancel):
        with pytest.raises(ArtifactError, match="was never launched on a rented machine"):
            work()


@pytest.mark.parametrize("has_machine", [True, False])
def test_ctrl_c_leaves_the_run_alone_and_tells_how_to_come_back(
    run: RentedRun, has_machine: bool
) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    launch = claim_launch(run)
    if has_machine:
        lose_machine(run, launch, spent=0.01)
    assert run.session().attended(interrupted) == 130
    output = run.output.getvalue()
    assert f"moola attach {run.run_id}" in output
    assert f"moola cancel {run.run_id}" in output
    assert ("goes on, and ends its machine by itself" in output) == has_machine


# -- cancel --


@pytest.mark.parametrize("when", ["running", "frozen", "waiting for capacity"])
def test_cancel_ends_the_run_and_its_machine(
    fake: FakeRunpod, s3_url: str, tmp_path: Path, when: str
) -> None:
    run, codes, begun = RentedRun(fake, s3_url, tmp_path, hang=True), [], threading.Event()
    if when == "waiting for capacity":
        fake.fail("no_capacity", times=None)
        begun.set()
    at(fake, "running", lambda pod: [when == "frozen" and fake.freeze(pod), begun.set()])
    launcher = threading.Thread(target=lambda: codes.append(run.launch()))
    launcher.start()
    assert begun.wait(60)
    wait_for(lambda: newest_launch(run.store, run.run_id), "the claim")
    assert run.session(grace_s=30.0 if when == "running" else 1.0).cancel() == "cancelled"
    launcher.join(60)
    assert codes == [130]
    run.check_nothing_is_left()
    assert run.states() == ["cancelled"]


def test_a_run_cancelled_while_its_attempt_was_ending_is_not_tried_again(run: RentedRun) -> None:
    lost = claim_launch(run)
    assert lost
    end_attempt(run.store, run.run_id, lost.attempt, "infra_lost", "by hand")
    assert run.session().cancel() == "infra_lost"
    assert run.session().attach() == 75
    assert run.states() == ["infra_lost"]
    assert run.pods() == []
