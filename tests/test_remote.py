"""Runs on rented machines, and everything that can go wrong: whatever fails when, it ends as named and nothing bills.

The matrix is failure x moment. The moments of a run are

    create      the provider has made the pod, and the answer is not out yet
    pull        the image is being fetched
    running     the job is at its steps
    uploading   the job is at its files
    committed   COMMIT is there, the pod still is, too

A refusal of the provider at `create` is one of the create; later it is one of whatever the launcher and the pod ask
for then: how the pod is, its log, its end.
"""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from moola.errors import AuthError, LaunchError
from moola.runs import read_manifest
from tests.fake_runpod import FakeRunpod, Pod
from tests.rented import Rented, the_runner
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


def test_a_run_is_committed_by_one_machine_that_ends_itself(fake: FakeRunpod, run: Rented) -> None:
    assert run.launch() == 0
    check_committed(run)
    (pod,) = run.pods()
    ended_by = {call.key for call in fake.calls if call.method == "DELETE" and call.status == 204}
    assert ended_by == {"pods"}, "the pod's restricted key"
    assert run.resumed_from() == 0


# -- a machine that is lost --


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("kind", ["lost", "stopped"])
def test_a_lost_machine_is_replaced_and_the_work_resumed(
    fake: FakeRunpod, run: Rented, kind: str, moment: str
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
def test_a_frozen_machine_is_stalled_and_replaced(fake: FakeRunpod, run: Rented, moment: str) -> None:
    at(fake, moment, fake.freeze)
    assert run.launch() == 0
    check_committed(run, *([] if moment == "committed" else ["stalled"]))


def test_a_machine_that_never_gets_its_image_is_replaced(fake: FakeRunpod, run: Rented) -> None:
    fake.fail("pull_hangs")
    assert run.launch(start_timeout_s=6.0) == 0
    check_committed(run, "infra_lost")
    assert "download stuck" in run.reasons()[0]


def test_a_machine_frozen_before_its_first_word_is_replaced(fake: FakeRunpod, run: Rented) -> None:
    at(fake, "pull", lambda pod: threading.Thread(target=freeze_at_once, args=(fake, pod), daemon=True).start())
    assert run.launch(start_timeout_s=6.0) == 0
    check_committed(run, "infra_lost")


def freeze_at_once(fake: FakeRunpod, pod: Pod) -> None:
    fake.wait_until(lambda: pod.container and pod.container.pid)
    fake.freeze(pod)


# -- the provider refuses, or does not answer --


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_provider_that_is_down_for_a_while_is_waited_for(fake: FakeRunpod, run: Rented, moment: str) -> None:
    def down(_: Pod) -> None:
        fake.partitioned = True
        threading.Timer(1.5, lambda: setattr(fake, "partitioned", False)).start()

    if moment == "create":
        fake.fail(503, done=True)
    at(fake, moment, down)
    assert run.launch() == 0
    check_committed(run)


@pytest.mark.parametrize("moment", MOMENTS[1:])
@pytest.mark.parametrize("kind", ["no_capacity", 401, 402, 403, 409, 422, 429, 500, 503, "cut", "withheld", "slow"])
def test_refusals_on_the_way_do_not_end_a_run(fake: FakeRunpod, run: Rented, kind: Any, moment: str) -> None:
    at(fake, moment, lambda _: [fake.fail(kind, on, times=2, seconds=0.7) for on in ("get", "list", "delete", "logs")])
    assert run.launch() == 0
    check_committed(run)


@pytest.mark.parametrize("kind", ["no_capacity", 429, "cut", "withheld", "slow", 500, 503])
def test_a_create_that_may_have_worked_buys_one_machine(fake: FakeRunpod, run: Rented, kind: Any) -> None:
    fake.fail(kind, seconds=0.8, done=kind in (500, 503))
    assert run.launch() == 0
    check_committed(run)
    assert len(run.pods()) == 1


def test_a_create_that_failed_for_certain_unknown_is_settled_before_the_next(fake: FakeRunpod, run: Rented) -> None:
    """A 500 with nothing behind it: nobody can know, so the attempt is given up and another one made."""
    fake.fail(500)
    assert run.launch() == 0
    check_committed(run, "infra_lost")
    assert "could not be settled" in run.reasons()[0]
    assert len(run.pods()) == 1


@pytest.mark.parametrize("status", [401, 402, 403, 409, 422])
def test_a_refused_create_stops_the_run_at_once(fake: FakeRunpod, run: Rented, status: int) -> None:
    fake.fail(status, times=None)
    with pytest.raises(AuthError if status in (401, 403) else LaunchError):
        run.launch()
    run.check_nothing_is_left()
    assert run.states() == ["launch_failed"]
    assert run.reasons() != [""]
    assert len([call for call in fake.calls if call.operation == "create"]) == 1
    assert run.pods() == []
