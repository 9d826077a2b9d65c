"""Whoever can write to the store decides nothing about money: what is rented, what is ended.

The attacks are those of a writer to the prefix: forged, changed, copied and deleted records.
"""

import contextlib
import json
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import typer

from moola.errors import ArtifactError, DataError, LaunchError
from moola.launch.rented.ledger import Ledger
from moola.launch.rented.reap import reap
from moola.launch.rented.request import pod_environment
from moola.launch.rented.terms import Terms
from moola.launch.settings import Settings
from moola.runs.attempt import end_attempt
from moola.runs.authority import is_proven, signing_key
from moola.runs.launches import Launch, all_launches, claim, launch_key, record_rented
from moola.runs.pod_names import new_pod_name, parse_pod_name, store_tag
from moola.runs.protocol import STATUS, canonical_json, now_text
from moola.specs import MachineConfig
from moola.store import open_store
from tests.fake_runpod import FakeRunpod, Pod
from tests.rented import (
    IMAGE,
    JOB,
    RentedRun,
    claim_launch,
    machine_config,
    quick_settings,
    rent_pod,
    run_small_job,
)

OTHER_IMAGE = "ghcr.io/attacker/miner@sha256:" + "6" * 64
GREEDY: dict[str, Any] = {
    "cpu": {"flavors": ["cpu5c"], "vcpus": 2},
    "max_price_per_hour": 1e6,
    "max_runtime": "365d",
    "max_spend": 1e6,
    "secrets": {"X": "other_secret"},
}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRunpod]:
    with FakeRunpod(run_small_job, per_minute=6000, restart_s=0.1) as running:
        monkeypatch.setenv("RUNPOD_TERMINATE_API_KEY", running.restricted_key)
        yield running


@pytest.fixture
def run(fake: FakeRunpod, s3_url: str, tmp_path: Path) -> RentedRun:
    return RentedRun(fake, s3_url, tmp_path)


@pytest.fixture
def sleeping() -> Iterator[FakeRunpod]:
    """An account whose pods sleep: no job ends them."""
    with FakeRunpod(lambda _: ["sleep", "600"], per_minute=6000) as running:
        yield running


@pytest.fixture
def quiet_run(sleeping: FakeRunpod, tmp_path: Path) -> RentedRun:
    return RentedRun(sleeping, f"file://{tmp_path}/store", tmp_path)


def forge(run: RentedRun, n: int = 1, **change: Any) -> dict[str, Any]:
    """A launch that nobody with a key has claimed, written where launches are."""
    document = {
        "n": n,
        "run_id": run.run_id,
        "attempt": f"20261122T231500Z-0000000{n}",
        "pod_name": new_pod_name(run.run_id, n, run.store.url, "0000"),
        "time": 1_763_000_000.0,
        "job": JOB,
        "image": OTHER_IMAGE,
        "machine": GREEDY,
        "retries": 0,
        **change,
    }
    run.store.put(launch_key(run.run_id, n), canonical_json(document))
    return document


def created(fake: FakeRunpod) -> list[Pod]:
    return list(fake.pods.values())


# -- what is rented --


def test_a_launch_in_the_store_makes_a_launcher_rent_nothing_but_what_it_has_shown(
    fake: FakeRunpod, run: RentedRun
) -> None:
    """It is followed, given up as nobody looks after it, and replaced by what was shown."""
    forge(run)
    assert run.launch(settle_s=0.5) == 0
    (pod,) = created(fake)
    assert (pod.wanted.image, pod.wanted.machine) == (IMAGE, "cpu3c")
    assert "X" not in pod.env
    run.check_nothing_is_left()


def test_attach_rents_nothing_for_a_launch_without_a_proof_where_nobody_can_answer(
    fake: FakeRunpod, run: RentedRun
) -> None:
    forge(run)
    with pytest.raises(LaunchError, match=r"carries no proof .* Launch the run again with"):
        run.session(settle_s=0.5).attach()
    assert created(fake) == []

    shown = " ".join(run.output.getvalue().split())
    for part in (OTHER_IMAGE, "cpu5c", "365d", "1e+06 USD", "X from other_secret"):
        assert part in shown


@pytest.mark.parametrize("answer", [False, True])
def test_attach_asks_before_it_rents_for_a_launch_without_a_proof(
    fake: FakeRunpod, run: RentedRun, monkeypatch: pytest.MonkeyPatch, answer: bool
) -> None:
    fake.secrets["other_secret"] = "of the account"
    forge(run)
    questions: list[str] = []
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr(typer, "confirm", lambda text, **_: questions.append(text) or answer)
    session = run.session(settle_s=0.5)
    if answer:
        assert session.attach() == 0
    else:
        with pytest.raises(LaunchError, match="nothing is rented"):
            session.attach()
    assert len(questions) == 1
    assert [pod.wanted.image for pod in created(fake)] == [OTHER_IMAGE] * answer


def test_what_a_launcher_has_claimed_is_rented_though_the_record_is_changed_meanwhile(
    fake: FakeRunpod, run: RentedRun
) -> None:
    session = run.session()
    session.renting.claim(1, Terms(JOB, IMAGE, machine_config().model_dump(mode="json")))
    own = session.context.newest_launch()
    forge(run)
    assert own is not None
    assert session.context.newest_launch() == own
    assert session.attach() == 0
    (pod,) = created(fake)
    assert (pod.name, pod.wanted.image) == (own.pod_name, IMAGE)


def test_a_launch_with_a_proof_is_replaced_by_another_launcher_with_the_same_key(
    fake: FakeRunpod, run: RentedRun
) -> None:
    lost = claim_launch(run)
    end_attempt(run.store, run.run_id, lost.attempt, "infra_lost", "by hand")
    assert run.session().attach() == 0
    (pod,) = created(fake)
    assert pod.wanted.image == IMAGE


# -- the proof --


@pytest.mark.parametrize(
    "change",
    [
        {"image": OTHER_IMAGE},
        {"machine": GREEDY},
        {"retries": 5},
        {"attempt": "20261122T231500Z-00000001"},
        {"time": 1.0},
        {"n": 2},
        {"pod_name": "moola-{run}-a1-{tag}-ffff"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_proof_is_of_every_field(quiet_run: RentedRun, change: dict[str, Any]) -> None:
    key = signing_key({}, quiet_run.fake.api_key)
    launch = claim_launch(quiet_run)
    assert launch.proven(quiet_run.store, key)
    if "pod_name" in change:
        tag = store_tag(quiet_run.store.url)
        change = {"pod_name": change["pod_name"].format(run=quiet_run.run_id, tag=tag)}
    assert not launch.model_copy(update=change).proven(quiet_run.store, key)


def test_a_proof_is_of_the_store_and_of_the_account_s_key(
    quiet_run: RentedRun, tmp_path: Path
) -> None:
    fake, launch = quiet_run.fake, claim_launch(quiet_run)
    key = signing_key({}, fake.api_key)
    assert not launch.proven(open_store(f"file://{tmp_path}/other"), key)
    assert not launch.proven(quiet_run.store, None)
    for other_key in (fake.restricted_key, "rpa_" + "1" * 40):
        assert not launch.proven(quiet_run.store, signing_key({}, other_key))
    statement = launch.statement()
    assert is_proven(statement, launch.proof, quiet_run.store.url, key)
    assert not is_proven(statement, launch.proof, "s3://other/store", key)
    bare = launch.model_copy(update={"proof": None})
    assert not bare.proven(quiet_run.store, key)


def test_a_signing_key_makes_two_keys_of_an_account_agree(quiet_run: RentedRun) -> None:
    shared = {"MOOLA_SIGNING_KEY": "5" * 64}
    machine = machine_config().model_dump(mode="json")
    laptop = signing_key(shared, "rpa_laptop")
    launch = claim(quiet_run.store, quiet_run.run_id, 1, JOB, IMAGE, machine, key=laptop)
    assert launch is not None
    assert launch.proven(quiet_run.store, signing_key(shared, "rpa_cron"))
    assert not launch.proven(quiet_run.store, signing_key({}, "rpa_cron"))
    with pytest.raises(DataError, match="MOOLA_SIGNING_KEY must have at least 32 characters"):
        signing_key({"MOOLA_SIGNING_KEY": "short"}, "rpa_laptop")


# -- how much is spent --


def test_a_record_that_says_an_attempt_does_not_count_buys_no_second_machine(
    fake: FakeRunpod, run: RentedRun
) -> None:
    def lose_and_lie(pod: Pod) -> None:
        fake.lose_host(pod)
        key = f"runs/{run.run_id}/attempts/{pod.env['MOOLA_ATTEMPT']}/{STATUS}"
        lie = {"state": "infra_lost", "time": now_text(), "orphan": True}
        run.store.put(key, canonical_json(lie))

    fake.on_create = lose_and_lie
    assert run.launch({"retry": {"times": 1}}) == 75
    assert len(created(fake)) == 2


def test_however_often_a_claim_is_called_an_orphan_a_launcher_stops_claiming(
    fake: FakeRunpod, run: RentedRun
) -> None:
    for flavor in ("cpu3c", "cpu5c"):
        fake.stock.set(flavor, "NONE")
    done = threading.Event()

    def lie() -> None:
        while not done.wait(0.05):
            for launch in all_launches(run.store, run.run_id):
                orphan = {"state": "infra_lost", "time": now_text(), "orphan": True}
                run.store.put(launch.key(STATUS), canonical_json(orphan))

    liar = threading.Thread(target=lie, daemon=True)
    liar.start()
    try:
        assert run.launch({"retry": {"times": 1}}) == 75
    finally:
        done.set()
        liar.join()
    assert len(all_launches(run.store, run.run_id)) == 5
    assert "this launcher has claimed 5 already" in run.output.getvalue()


def test_records_do_not_lower_what_a_launcher_knows_to_have_spent(
    quiet_run: RentedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("moola.launch.rented.ledger.time.monotonic", lambda: now)
    ledger = Ledger()
    ledger.rented(1, price_per_hour=0.5)
    now += 7200.0
    assert ledger.spent() == pytest.approx(1.0)
    ledger.ended()
    now += 7200.0
    assert ledger.spent() == pytest.approx(1.0), "an ended machine costs no more"

    context = quiet_run.session().context
    context.ledger.rented(1, price_per_hour=0.5)
    now += 3600.0
    assert context.spent() == pytest.approx(0.5), "the store knows of no machine"


# -- what is ended --


@pytest.mark.parametrize("name", ["production-database", "of another run", "of another store"])
def test_a_record_that_names_another_pod_ends_nothing(quiet_run: RentedRun, name: str) -> None:
    run_id, url = quiet_run.run_id, quiet_run.store.url
    names = {
        "of another run": new_pod_name("small-ffffffffffff", 1, url, "0000"),
        "of another store": new_pod_name(run_id, 1, "s3://other/store", "0000"),
    }
    victim = rent_pod(quiet_run, names.get(name, name))
    document = forge(quiet_run, pod_name=victim.name)
    status = {"state": "infra_lost", "time": now_text()}
    key = f"runs/{run_id}/attempts/{document['attempt']}/{STATUS}"
    quiet_run.store.put(key, canonical_json(status))

    session = quiet_run.session(grace_s=0.01, settle_s=0.3)
    for command in (session.attach, session.cancel):
        with contextlib.suppress(ArtifactError, LaunchError):
            command()
    reap(quick_settings(url), quiet_run.store, quiet_run.provider())
    assert victim.alive


def test_a_record_that_names_no_pod_of_its_run_is_damaged(quiet_run: RentedRun) -> None:
    forge(quiet_run, pod_name="production-database")
    session = quiet_run.session()
    for command in (session.attach, session.cancel):
        with pytest.raises(
            ArtifactError, match=r"launches/00000001.json in .* pod_name must be moola-small-"
        ):
            command()


def test_the_record_of_another_bucket_copied_here_ends_nothing_there(
    quiet_run: RentedRun, tmp_path: Path
) -> None:
    """Also where the run was cancelled here: its records are those of a run that has ended."""
    launch = claim_launch(quiet_run)
    victim = rent_pod(quiet_run, launch.pod_name)
    copy = open_store(f"file://{tmp_path}/copy")
    record = quiet_run.store.get(launch_key(quiet_run.run_id, 1))
    copy.put(launch_key(quiet_run.run_id, 1), record)
    end_attempt(copy, quiet_run.run_id, launch.attempt, "timed_out", "forged", 124)

    (reaped,) = reap(quick_settings(copy.url), copy, quiet_run.provider())
    assert reaped.why == f"not launched from {copy.url}: left alone"
    quiet_run.store = copy
    session = quiet_run.session(grace_s=0.01)
    assert session.cancel() == "timed_out"
    assert session.attach() == 124
    assert victim.alive
    assert "is left alone; to end it by hand: curl -X DELETE" in quiet_run.output.getvalue()


def test_a_pod_of_an_earlier_version_is_listed_and_left_with_the_command_that_ends_it(
    quiet_run: RentedRun,
) -> None:
    name = f"moola-{quiet_run.run_id}-a1-0a1b"
    pod = rent_pod(quiet_run, name)
    document = forge(quiet_run, pod_name=name)
    end_attempt(quiet_run.store, quiet_run.run_id, document["attempt"], "stalled", "by hand")
    (reaped,) = reap(quick_settings(quiet_run.store.url), quiet_run.store, quiet_run.provider())
    assert (reaped.ended, reaped.failed, reaped.run_id) == (False, False, quiet_run.run_id)
    assert f"/v2/pods/{pod.id}" in reaped.why
    assert pod.alive


def test_attach_leaves_a_launch_of_an_earlier_version_and_cancel_gives_it_up(
    quiet_run: RentedRun,
) -> None:
    pod = rent_pod(quiet_run, f"moola-{quiet_run.run_id}-a1-0a1b")
    forge(quiet_run, pod_name=pod.name)
    session = quiet_run.session(grace_s=0.01)
    with pytest.raises(LaunchError, match="does not tell that it belongs to file:"):
        session.attach()
    assert session.cancel() == "cancelled"
    assert pod.alive


def test_a_machine_s_record_that_names_another_pod_is_damaged_and_ends_nothing(
    quiet_run: RentedRun,
) -> None:
    victim = rent_pod(quiet_run, "production-database")
    launch = claim_launch(quiet_run)
    session = quiet_run.session(settle_s=0.3)
    mine = rent_pod(quiet_run, launch.pod_name)
    machine = session.renting.machine_of(launch)
    assert machine is not None
    assert machine.pod_id == mine.id

    quiet_run.fake.terminate(mine)
    lie = machine.model_copy(update={"pod_id": victim.id})
    quiet_run.store.delete(launch.key("pod.json"))
    record_rented(quiet_run.store, launch, lie)
    with pytest.raises(ArtifactError, match=r"pod.json .* is 'production-database', and not"):
        session.attach()
    assert victim.alive


# -- what a machine is given --


KEYS = {
    "AWS_ACCESS_KEY_ID": "AKIA-example",
    "AWS_SECRET_ACCESS_KEY": "the-secret-value",
    "RUNPOD_API_KEY": "rpa_account",
    "MOOLA_SIGNING_KEY": "5" * 64,
}


def environment_of(environ: dict[str, str], **secrets: str) -> dict[str, str]:
    run_id = "small-ffffffffffff"
    machine = MachineConfig(cpu={}, secrets=secrets)  # type: ignore[arg-type]
    launch = Launch(
        n=1,
        run_id=run_id,
        attempt="20261122T231500Z-00000001",
        pod_name=new_pod_name(run_id, 1, "s3://bucket", "0000"),
        time=0.0,
        job="small",
        image=IMAGE,
        machine=machine.model_dump(mode="json"),
    )
    return pod_environment(Settings(store="s3://bucket"), launch, machine, 0.0, environ)


def test_no_machine_gets_the_account_s_key_or_the_signing_key() -> None:
    given = environment_of({**KEYS, "RUNPOD_TERMINATE_API_KEY": "rpa_restricted"})
    assert not {"RUNPOD_API_KEY", "MOOLA_SIGNING_KEY"} & given.keys()
    assert not {KEYS["RUNPOD_API_KEY"], KEYS["MOOLA_SIGNING_KEY"]} & set(given.values())


@pytest.mark.parametrize(
    ("environ", "secrets", "why"),
    [
        ({"RUNPOD_TERMINATE_API_KEY": "rpa_account"}, {}, "TERMINATE_API_KEY is the same key as"),
        ({"RUNPOD_TERMINATE_API_KEY": " rpa_account\n"}, {}, "TERMINATE_API_KEY is the same key"),
        ({"AWS_SESSION_TOKEN": "5" * 64}, {}, "AWS_SESSION_TOKEN is the same key as MOOLA_SIGNING"),
        ({}, {"RUNPOD_API_KEY": "other"}, "may not name RUNPOD_API_KEY"),
        ({}, {"MOOLA_SIGNING_KEY": "other"}, "may not name MOOLA_SIGNING_KEY"),
        ({}, {"X": "runpod_api_key"}, "may not name runpod_api_key"),
        ({}, {"X": "a }}{{ RUNPOD_SECRET_b"}, "letters, digits and _"),
        ({}, {"A=B": "c"}, "letters, digits and _"),
    ],
)
def test_a_key_that_no_machine_may_have_is_refused(
    environ: dict[str, str], secrets: dict[str, str], why: str
) -> None:
    with pytest.raises(DataError, match=why):
        environment_of({**KEYS, **environ}, **secrets)


# -- names --


@pytest.mark.parametrize("n", [1, 12, 999])
@pytest.mark.parametrize("run_id", ["small-ffffffffffff", "small-ffffffffffff-a123"])
def test_a_pod_s_name_is_read_in_one_way_only(run_id: str, n: int) -> None:
    for url in (f"s3://bucket/{number}" for number in range(3000)):
        name = new_pod_name(run_id, n, url, "a123")
        assert parse_pod_name(name) == (run_id, n, store_tag(url))


def test_the_json_of_a_launch_reads_back_as_it_was_claimed(quiet_run: RentedRun) -> None:
    launch = claim_launch(quiet_run, max_runtime=timedelta(minutes=90))
    assert Launch.read(quiet_run.store, quiet_run.run_id, 1) == launch
    document = json.loads(quiet_run.store.get(launch_key(quiet_run.run_id, 1)))
    assert document["machine"]["max_runtime"] == "90m"
    assert len(document["proof"]) == 64
