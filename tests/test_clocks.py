"""No computer's clock is compared with another's: ages are the store's or the provider's own.

A clock that is wrong by minutes or days, of a launcher, a machine or a reaper, ends no healthy
machine and saves no late one.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from moola.launch import local
from moola.launch.rented.machines import created_at, deadline
from moola.launch.rented.reap import Reaped, reap
from moola.launch.rented.signs import Pulse, Sign, last_sign
from moola.providers.clock import ProviderClock
from moola.runs import launches
from moola.runs.attempt import end_attempt
from moola.runs.launches import Launch, newest_attempt, record_rented
from moola.runs.protocol import CANCEL, HEARTBEAT, STATUS, attempt_key, canonical_json, now_text
from moola.runs.reading import run_state
from moola.store import Dated, Store
from tests.fake_runpod import FakeRunpod, Pod
from tests.rented import RentedRun, claim_launch, quick_settings, rent_pod, rented_machine

ROOT = Path(__file__).resolve().parents[1]
DAY_S = 86_400.0
IN_2099 = "2099-01-01T00:00:00.000+00:00"

# `moola` on a computer whose clock is off by MOOLA_TEST_SKEW_S.
SKEWED = """
import datetime, os, sys, time
skew_s = float(os.environ["MOOLA_TEST_SKEW_S"])
true_time = time.time
time.time = lambda: true_time() + skew_s
time.time_ns = lambda: int(time.time() * 1e9)
class Skewed(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(time.time(), tz)
datetime.datetime = Skewed
from moola.cli.app import main
main()
"""


@pytest.fixture
def fake() -> Iterator[FakeRunpod]:
    """An account whose pods sleep: no job ends them."""
    with FakeRunpod(lambda _: ["sleep", "600"], per_minute=6000) as running:
        yield running


@pytest.fixture
def run(fake: FakeRunpod, tmp_path: Path) -> RentedRun:
    return RentedRun(fake, f"file://{tmp_path}/store", tmp_path)


def beat(run: RentedRun, launch: Launch, time_text: str | None = None) -> None:
    for name, more in ((STATUS, {"state": "running"}), (HEARTBEAT, {})):
        document = {"time": time_text or now_text(), **more}
        run.store.put(launch.key(name), canonical_json(document))


def reaped(run: RentedRun, **watch: float) -> Reaped:
    """What `reap` says of the one machine there is."""
    (verdict,) = reap(quick_settings(run.store.url, **watch), run.store, run.provider())
    return verdict


def reap_with_skew(run: RentedRun, skew_s: float) -> str:
    """What `moola reap` prints on a computer whose clock is wrong."""
    names = {
        "MOOLA_STORE": run.store.url,
        "MOOLA_TEST_SKEW_S": str(skew_s),
        "RUNPOD_API_KEY": run.fake.api_key,
        "RUNPOD_API_BASE_URL": run.fake.url,
        "COLUMNS": "300",
    }
    process = subprocess.run(
        [sys.executable, "-c", SKEWED, "reap"],
        cwd=ROOT,
        env={**os.environ, **names},
        capture_output=True,
        text=True,
        check=True,
    )
    return process.stdout


# -- the reaper's clock --


@pytest.mark.parametrize("skew_s", [240.0, -240.0, DAY_S, -DAY_S])
def test_a_reaper_whose_clock_is_wrong_ends_no_healthy_machine(
    run: RentedRun, skew_s: float
) -> None:
    launch = claim_launch(run)
    pod = rent_pod(run, launch.pod_name)
    beat(run, launch)
    assert "at work until" in reap_with_skew(run, skew_s)
    assert pod.alive


@pytest.mark.parametrize("skew_s", [240.0, -DAY_S])
def test_a_reaper_whose_clock_is_wrong_leaves_a_machine_that_fetches_its_image(
    run: RentedRun, skew_s: float
) -> None:
    pod = rent_pod(run, claim_launch(run).pod_name)
    assert "at work until" in reap_with_skew(run, skew_s)
    assert pod.alive


@pytest.mark.parametrize("skew_s", [0.0, 240.0, -DAY_S])
@pytest.mark.parametrize("how", ["late", "silent"])
def test_a_reaper_whose_clock_is_wrong_ends_what_has_to_end(
    run: RentedRun, skew_s: float, how: str
) -> None:
    launch = claim_launch(run, max_runtime=timedelta(days=3))
    pod = rent_pod(run, launch.pod_name, lasts_s=-100.0 if how == "late" else 3600.0)
    beat(run, launch)
    if how == "silent":
        age(run, launch, 600.0)
    assert "1 machines found, 1 ended" in reap_with_skew(run, skew_s)
    assert not pod.alive


def age(run: RentedRun, launch: Launch, age_s: float) -> None:
    """Make the attempt's records that old, by the store's time."""
    written = time.time() - age_s
    for name in (STATUS, HEARTBEAT):
        os.utime(Path(run.store.url.removeprefix("file://")) / launch.key(name), (written, written))


# -- the machine's clock --


@pytest.mark.parametrize("skew", [timedelta(days=1), timedelta(days=-1), timedelta(minutes=4)])
def test_a_machine_whose_clock_is_wrong_is_healthy_while_its_heartbeat_is_new(
    run: RentedRun, skew: timedelta
) -> None:
    launch = claim_launch(run)
    rent_pod(run, launch.pod_name)
    time_text = (datetime.now(UTC) + skew).isoformat()
    beat(run, launch, time_text)
    assert "at work until" in reaped(run).why
    age(run, launch, 61.0)
    assert "no heartbeat for 61 s" in reaped(run).why


def test_a_heartbeat_from_the_future_counts_as_silence(run: RentedRun) -> None:
    launch = claim_launch(run)
    pod = rent_pod(run, launch.pod_name)
    beat(run, launch, IN_2099)
    verdict = reaped(run)
    assert verdict.ended
    assert verdict.why == "no heartbeat that can be believed"
    assert run.states() == ["stalled"]
    assert not pod.alive


@pytest.mark.parametrize(
    ("written_s", "now_s", "time_s", "silent_s"),
    [
        (1e9, 1e9 + 5, 1e9, 5.0),
        (1e9, 1e9 + 5, 1e9 + DAY_S, 5.0),
        (1e9, 1e9 + 5, 1e9 - DAY_S, 5.0),
        (1e9, 1e9 + 5, 1e9 + 3 * DAY_S, float("inf")),
        (1e9, 1e9 + 5, 1e9 - 3 * DAY_S, 3 * DAY_S + 5),  # a bucket that was copied
        (1e9, 1e9 - 59, 1e9, -59.0),  # the store's clock was set back
        (1e9, 1e9 - 61, 1e9, float("inf")),
        (None, 1e9, 1e9, None),
        (1e9, None, 1e9, None),
    ],
)
def test_a_sign_is_as_old_as_the_store_tells(
    written_s: float | None, now_s: float | None, time_s: float, silent_s: float | None
) -> None:
    sign = Sign(Dated(b"{}", "etag", written_s, now_s), datetime.fromtimestamp(time_s, UTC))
    assert sign.silent_s() == (None if silent_s is None else pytest.approx(silent_s))


def test_who_looks_again_counts_the_silence_from_before_the_first_look(
    run: RentedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = claim_launch(run)
    assert Pulse(run.store, launch).silent_s() is None
    beat(run, launch)
    age(run, launch, 100.0)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    pulse = Pulse(run.store, launch)
    assert pulse.silent_s() == pytest.approx(100.0, abs=5.0)
    now += 50.0
    assert pulse.silent_s() == pytest.approx(150.0, abs=5.0)
    beat(run, launch, IN_2099)
    assert pulse.silent_s() == 0.0, "it changes, so it lives"


# -- deadlines --


def lie_about(run: RentedRun, launch: Launch, pod: Pod, **lies: Any) -> None:
    """A record of the machine that a writer to the store has made up."""
    machine = rented_machine(
        pod_id=pod.id,
        pod_name=pod.name,
        price_per_hour=0.0,
        created=time.time(),
        deadline=4e9,
    )
    record_rented(run.store, launch, machine.model_copy(update=lies))


def test_a_record_that_names_a_deadline_in_2096_keeps_no_machine(run: RentedRun) -> None:
    launch = claim_launch(run, max_runtime=timedelta(hours=1))
    pod = rent_pod(run, launch.pod_name, lasts_s=4e9)
    lie_about(run, launch, pod)
    beat(run, launch)
    assert "at work until 20" in reaped(run).why
    assert "2096" not in reaped(run).why

    pod.created -= timedelta(hours=2)
    beat(run, launch, IN_2099)
    verdict = reaped(run)
    assert verdict.ended
    assert "past its deadline" in verdict.why
    assert run.states() == ["timed_out"]


def test_the_caps_of_a_launch_without_a_proof_are_not_believed_beyond_the_local_one(
    run: RentedRun,
) -> None:
    launch = claim_launch(run, max_runtime=timedelta(days=365), max_spend=1e6)
    pod = rent_pod(run, launch.pod_name, lasts_s=4e9)
    beat(run, launch)
    pod.created -= timedelta(hours=23)
    assert "at work until" in reaped(run).why
    pod.created -= timedelta(hours=2)
    assert "at work until" in reaped(run).why, "proven: its own caps hold"

    bare = launch.model_dump(mode="json", exclude={"proof"})
    run.store.put(launches.launch_key(run.run_id, 1), canonical_json(bare))
    assert reaped(run, longest_run_s=2 * DAY_S).ended is False
    assert reaped(run).ended


def test_a_launcher_ends_a_machine_at_its_caps_whatever_is_recorded(run: RentedRun) -> None:
    launch = claim_launch(run, max_runtime=timedelta(hours=1), retry={"times": 0})
    pod = rent_pod(run, launch.pod_name, lasts_s=4e9)
    lie_about(run, launch, pod)
    beat(run, launch, IN_2099)
    pod.created -= timedelta(hours=2)
    assert run.session(grace_s=0.1).attach() == 124
    assert run.states() == ["timed_out"]
    assert not pod.alive


@pytest.mark.parametrize("told", ["nan", "inf", "-inf", "", "soon", "1e400"])
def test_a_deadline_in_a_pod_s_environment_that_is_none_changes_nothing(
    run: RentedRun, told: str
) -> None:
    launch = claim_launch(run)
    pod = rent_pod(run, launch.pod_name)
    pod.env["MOOLA_DEADLINE"] = told
    context = run.session().context
    (shown,) = context.pods.list()
    latest = created_at(context, launch, shown) + 300.0
    until = deadline(context, launch, shown)
    assert until == (0.0 if told == "-inf" else pytest.approx(latest, abs=2.0))


# -- the provider's clock --


def test_the_provider_s_clock_is_that_of_its_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ProviderClock()
    assert clock.now() == pytest.approx(time.time(), abs=1.0)
    clock.learn({})
    clock.learn({"Date": "yesterday"})
    assert clock.now() == pytest.approx(time.time(), abs=1.0)

    clock.learn({"Date": formatdate(1_800_000_000, usegmt=True)})
    assert clock.now() == pytest.approx(1_800_000_000, abs=2.1)
    passed = time.monotonic() + 100.0
    monkeypatch.setattr(time, "monotonic", lambda: passed)
    assert clock.now() == pytest.approx(1_800_000_100, abs=3.0)


def test_the_client_learns_the_clock_from_its_answers(
    run: RentedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = run.provider()
    provider.list()
    true_time = time.time
    monkeypatch.setattr("moola.providers.clock.time.time", lambda: true_time() + DAY_S)
    assert provider.now() == pytest.approx(true_time(), abs=3.0)


# -- the order of attempts --


AHEAD = "20991122T231500Z-ffffffff"  # of a computer whose clock is far ahead


def write_status(store: Store, run_id: str, attempt_id: str, state: str) -> None:
    status = {"state": state, "time": now_text(), "exit_code": None, "reason": ""}
    store.put(attempt_key(run_id, attempt_id, STATUS), canonical_json(status))


def test_after_a_launch_of_a_clock_ahead_the_live_one_is_the_newest(
    run: RentedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(launches, "attempt_id_now", lambda: AHEAD)
        first = claim_launch(run)
    assert first.attempt == AHEAD
    end_attempt(run.store, run.run_id, AHEAD, "infra_lost", "by hand")
    second = claim_launch(run, 2)
    assert newest_attempt(run.store, run.run_id) == second.attempt
    pod = rent_pod(run, second.pod_name)
    beat(run, second)
    assert run_state(run.store, run.run_id).attempt == second.attempt
    assert run.session(grace_s=0.1).cancel() == "cancelled"
    assert run.store.exists(second.key(CANCEL))
    assert not pod.alive


def test_cancel_reaches_the_live_attempt_on_this_computer_after_one_of_a_clock_ahead(
    store: Store, run_id: str
) -> None:
    live = "20261122T231500Z-00000001"
    write_status(store, run_id, AHEAD, "failed")
    if store.url.startswith("s3:"):
        time.sleep(1.1)  # its times are in whole seconds
    write_status(store, run_id, live, "running")
    assert newest_attempt(store, run_id) == live
    assert local.cancel(store, run_id) == "asked to stop"
    assert store.exists(attempt_key(run_id, live, CANCEL))


def test_a_launch_under_way_is_newer_than_attempts_elsewhere(run: RentedRun) -> None:
    launch = claim_launch(run)
    write_status(run.store, run.run_id, AHEAD, "running")
    assert newest_attempt(run.store, run.run_id) == launch.attempt
    end_attempt(run.store, run.run_id, launch.attempt, "infra_lost", "by hand")
    time.sleep(0.05)
    write_status(run.store, run.run_id, AHEAD, "running")
    assert newest_attempt(run.store, run.run_id) == AHEAD


# -- the store's times --


def test_a_store_dates_its_objects_by_its_own_clock(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store.get_dated("runs/none") is None
    store.put("runs/a.json", b"{}")
    true_time = time.time
    monkeypatch.setattr(time, "time", lambda: true_time() + DAY_S)
    dated = store.get_dated("runs/a.json")
    assert dated is not None
    assert dated.age_s is not None
    assert (dated.data, -1.1 < dated.age_s < 5.0) == (b"{}", True)
    first = dated.etag
    store.put("runs/a.json", json.dumps({"n": 1}).encode())
    dated = store.get_dated("runs/a.json")
    assert dated is not None
    assert dated.etag != first


def test_last_sign_of_an_attempt_without_a_heartbeat_is_its_running_status(run: RentedRun) -> None:
    launch = claim_launch(run)
    assert last_sign(run.store, launch) is None
    write_status(run.store, run.run_id, launch.attempt, "waiting")
    assert last_sign(run.store, launch) is None
    write_status(run.store, run.run_id, launch.attempt, "running")
    assert last_sign(run.store, launch) is not None
