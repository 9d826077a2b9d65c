"""One damaged record of a rented run: it is named, and neither hides nor saves any machine."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from moola.errors import ArtifactError
from moola.launch.rented.costs import cost_of_run
from moola.launch.rented.reap import Reaped, reap
from moola.runs.attempt import end_attempt
from moola.runs.launches import Launch, launch_key
from moola.runs.protocol import HEARTBEAT, STATUS, canonical_json, now_text, run_key
from moola.runs.submit import describe_run, submit
from tests.fake_runpod import FakeRunpod, Pod
from tests.rented import RentedRun, claim_launch, quick_settings, rent_pod
from tests.test_launch import Launcher

NOT_JSON = b"\x1b[31mno JSON"
HUGE_NUMBER = b'{"n": 1' + b"0" * 5000 + b"}"
DEEP = b"[" * 100_000
VARIANTS = {
    "a status that is no JSON": (STATUS, NOT_JSON),
    "a status without a state": (STATUS, b"{}"),
    "a status of an unknown state": (STATUS, b'{"state": "[/INST]", "time": "2026-11-22"}'),
    "a status that is a list": (STATUS, b"[]"),
    "a status that is deep": (STATUS, DEEP),
    "a heartbeat without a time": (HEARTBEAT, b"{}"),
    "a heartbeat of another type": (HEARTBEAT, b'{"time": 4000000000}'),
    "a heartbeat that is no JSON": (HEARTBEAT, b"\xff\xfe"),
    "a launch that is empty": ("launch", b"{}"),
    "a launch that is no JSON": ("launch", b""),
    "a launch with a huge number": ("launch", HUGE_NUMBER),
    "a launch that is null": ("launch", b"null"),
    "a machine without a price": ("pod.json", b'{"pod_id": "x"}'),
    "a machine that is no JSON": ("pod.json", NOT_JSON),
}


@pytest.fixture
def fake() -> Iterator[FakeRunpod]:
    """An account whose pods sleep: no job ends them."""
    with FakeRunpod(lambda _: ["sleep", "600"], per_minute=6000) as running:
        yield running


@pytest.fixture
def run(fake: FakeRunpod, tmp_path: Path) -> RentedRun:
    return RentedRun(fake, f"file://{tmp_path}/store", tmp_path)


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def damaged(request: pytest.FixtureRequest, run: RentedRun) -> tuple[Launch, Pod, str]:
    """A launch with a machine at work, one of whose records is damaged: (launch, pod, its key)."""
    launch = claim_launch(run, retry={"times": 0})
    pod = rent_pod(run, launch.pod_name)
    for name, document in (
        (STATUS, {"state": "running", "time": now_text()}),
        (HEARTBEAT, {"time": now_text()}),
    ):
        run.store.put(launch.key(name), canonical_json(document))

    name, data = request.param
    key = launch_key(run.run_id, 1) if name == "launch" else launch.key(name)
    run.store.put(key, data)
    return launch, pod, key


def other_run(run: RentedRun) -> tuple[str, Pod]:
    """(id, pod) of another run in the same store whose attempt has ended."""
    run_id, document = describe_run("small", {"steps": 4}, {})
    submit(run.store, run_id, document)
    mine = run.run_id
    run.run_id = run_id
    launch = claim_launch(run)
    run.run_id = mine
    pod = rent_pod(run, launch.pod_name)
    end_attempt(run.store, run_id, launch.attempt, "cancelled", "asked for", 130)
    return run_id, pod


def by_pod(verdicts: list[Reaped]) -> dict[str, Reaped]:
    return {verdict.pod.id: verdict for verdict in verdicts}


def test_reap_reports_a_damaged_record_and_ends_the_others(
    run: RentedRun, damaged: tuple[Launch, Pod, str]
) -> None:
    _, pod, key = damaged
    other_id, other = other_run(run)
    verdicts = by_pod(reap(quick_settings(run.store.url), run.store, run.provider()))
    assert (verdicts[other.id].ended, verdicts[other.id].run_id) == (True, other_id)
    assert (verdicts[pod.id].ended, verdicts[pod.id].failed) == (False, True)
    assert f"{key} in {run.store.url} is damaged" in verdicts[pod.id].why
    assert "\x1b" not in verdicts[pod.id].why
    assert pod.alive


def test_a_damaged_record_does_not_save_a_late_machine(
    run: RentedRun, damaged: tuple[Launch, Pod, str]
) -> None:
    _, pod, key = damaged
    pod.env["MOOLA_DEADLINE"] = "1000"
    (verdict,) = reap(quick_settings(run.store.url), run.store, run.provider())
    assert verdict.ended
    assert not pod.alive
    if not key.endswith(HEARTBEAT):  # a late machine's is not looked at
        assert verdict.failed
        assert f"{key} in {run.store.url} is damaged" in verdict.why


def test_cancel_ends_the_machine_and_names_the_damaged_record(
    run: RentedRun, damaged: tuple[Launch, Pod, str]
) -> None:
    _, pod, key = damaged
    context = run.session(grace_s=0.01)
    if key.endswith(HEARTBEAT):  # cancel does not read it
        context.cancel()
    else:
        with pytest.raises(ArtifactError, match=rf"{key} in .* is damaged"):
            context.cancel()
    assert not pod.alive


def test_attach_and_cost_name_the_damaged_record(
    run: RentedRun, damaged: tuple[Launch, Pod, str]
) -> None:
    _, _, key = damaged
    session = run.session(stalled_after_s=1.0, grace_s=0.01)
    if key.endswith(HEARTBEAT):  # the machine is not left to itself: a silent job is ended
        assert session.attach() == 75
        assert f"{key} in {run.store.url} is damaged" in run.reasons()[0]
        return
    with pytest.raises(ArtifactError, match=rf"{key} in .* is damaged"):
        cost_of_run(run.store, run.provider(), run.run_id)
    with pytest.raises(ArtifactError, match=rf"{key} in .* is damaged"):
        session.attach()


@pytest.mark.parametrize(
    "change",
    [
        {"n": 2},
        {"n": True},
        {"run_id": "small-ffffffffffff"},
        {"job": "train"},
        {"attempt": "../../../x"},
        {"image": "ghcr.io/someone/moola:latest"},
        {"image": "\x1b[31m@sha256:" + "0" * 64},
        {"time": float("1e300")},
        {"time": "now"},
        {"retries": -1},
        {"retries": 10**6},
        {"machine": {}},
        {"machine": {"cpu": {}, "max_spend": -1}},
        {"machine": {"cpu": {}, "max_runtime": "9999999999d"}},
        {"machine": {"cpu": {}, "max_runtime": "9" * 4000 + "d"}},
        {"machine": {"cpu": {"vcpus": 3}}},
        {"proof": "x"},
        {"pod_name": "moola-x"},
    ],
    ids=str,
)
def test_a_launch_that_breaks_a_rule_is_damaged(run: RentedRun, change: dict[str, object]) -> None:
    document = claim_launch(run).model_dump(mode="json")
    run.store.put(launch_key(run.run_id, 1), canonical_json({**document, **change}))
    with pytest.raises(ArtifactError, match=r"launches/00000001.json in .* is damaged") as caught:
        Launch.read(run.store, run.run_id, 1)
    assert len(str(caught.value)) < 1000
    assert "\x1b" not in str(caught.value)


def test_a_machine_with_a_field_of_a_later_version_is_read_and_not_rented(run: RentedRun) -> None:
    launch = claim_launch(run)
    document = launch.model_dump(mode="json")
    document["machine"]["min_network_gbps"] = 10
    run.store.put(launch_key(run.run_id, 1), canonical_json(document))
    later = Launch.read(run.store, run.run_id, 1)
    assert later is not None
    assert later.machine_config() == launch.machine_config()


def test_the_command_reap_exits_75_and_cost_4(run: RentedRun, tmp_path: Path) -> None:
    launch = claim_launch(run)
    rent_pod(run, launch.pod_name)
    run.store.put(launch.key(STATUS), b"{}")
    names = {"RUNPOD_API_KEY": run.fake.api_key, "RUNPOD_API_BASE_URL": run.fake.url}
    launcher = Launcher(tmp_path, run.store.url, {**names, "MOOLA_WATCH__GRACE_S": "1"})
    assert "is damaged" in launcher("reap", exit_code=75)
    for command in ("cost", "attach"):
        output = launcher(command, run.run_id, exit_code=4)
        assert f"error: {launch.key(STATUS)} in {run.store.url} is damaged" in output
    assert run_key(run.run_id) in launcher("cancel", run.run_id, exit_code=4)
    assert run.fake.alive() == []
