"""The budget of a group: never exceeded, whoever races for it, writes into it, or dies."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from moola.errors import ArtifactError, LaunchError
from moola.launch.rented.budget import most_of_one_machine, reserve
from moola.launch.rented.plan import machine_json
from moola.launch.rented.session import Session
from moola.providers.runpod.rest import RestPods
from moola.runs.authority import signing_key
from moola.runs.group_ledger import GroupLedger, LedgerEntry
from moola.runs.groups import Budget, group_of
from moola.runs.launches import Launch, all_launches, claim, new_launch
from moola.runs.protocol import canonical_json
from moola.store import Store, open_store
from tests.fake_runpod import FakeRunpod, Pod
from tests.rented import (
    IMAGE,
    JOB,
    RentedRun,
    machine_config,
    quick_settings,
    run_small_job,
)

KEY = b"0" * 32
LONGEST_S = 500.0  # for a job to start: a case that takes longer hangs
GROUP = group_of("small", [f"small-{number:012x}" for number in range(30)])
PRICE = 0.072  # USD per hour of the dearest machine that MACHINE of tests.rented may get


def launch_of(store: Store, number: int) -> Launch:
    """A launch that nobody has claimed, of a run of its own."""
    run_id = f"small-{number:012x}"
    return new_launch(store.url, run_id, 1, JOB, IMAGE, machine_json(machine_config()))


def budget(max_spend: float = 1e6, max_machines: int = 1000) -> Budget:
    return Budget(group=GROUP.id, max_spend=max_spend, max_machines=max_machines)


def entries(store: Store) -> list[dict[str, object]]:
    """All entries as they are stored, read without the ledger."""
    found = []
    for name in store.children(f"groups/{GROUP.id}/ledger"):
        found.append(json.loads(store.get(f"groups/{GROUP.id}/ledger/{name}")))
    return found


def check_never_exceeded(store: Store, limits: Budget) -> None:
    """After each entry, what is spent and set aside is within the limits."""
    held: dict[object, float] = {}
    spent = 0.0
    for n, entry in enumerate(entries(store), 1):
        assert entry["n"] == n
        usd = float(str(entry["usd"]))
        if entry["kind"] == "reserve":
            assert entry["pod_name"] not in held
            held[entry["pod_name"]] = usd
        else:
            held.pop(entry["pod_name"])
            spent += usd
        assert len(held) <= limits.max_machines
        assert spent + sum(held.values()) <= limits.max_spend + 1e-6


def at_once(work: Callable[[int], None], count: int) -> None:
    """The same work in so many threads, begun at one moment."""
    barrier = threading.Barrier(count)
    problems: list[BaseException] = []

    def run(number: int) -> None:
        try:
            barrier.wait()
            work(number)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


# --- the ledger -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "fit"), [(budget(max_spend=7.5), 7), (budget(max_machines=5), 5)]
)
def test_twenty_that_race_reserve_no_more_than_there_is(
    store_url: str, limits: Budget, fit: int
) -> None:
    rooms: list[bool] = []

    def reserve_one(number: int) -> None:
        store = open_store(store_url)
        ledger = GroupLedger(store, GROUP.id, KEY)
        room = ledger.reserve(launch_of(store, number), limits, 1.0, PRICE)
        rooms.append(room.is_free)

    at_once(reserve_one, 20)
    assert rooms.count(True) == fit
    store = open_store(store_url)
    assert len(entries(store)) == fit
    check_never_exceeded(store, limits)


def test_what_is_settled_makes_room_and_its_cost_stays_spent(store_url: str) -> None:
    limits = budget(max_spend=3.0, max_machines=2)

    def reserve_and_settle(number: int) -> None:
        store = open_store(store_url)
        ledger = GroupLedger(store, GROUP.id, KEY)
        launch = launch_of(store, number)
        while True:
            room = ledger.reserve(launch, limits, 1.0, PRICE)
            if room.is_free:
                ledger.settle(launch, 0.1)
                ledger.settle(launch, 0.1)  # once is enough
                return
            if not room.may_come:
                return
            time.sleep(0.05)

    at_once(reserve_and_settle, 8)
    store = open_store(store_url)
    check_never_exceeded(store, limits)
    ledger = GroupLedger(store, GROUP.id, KEY)
    ledger.refresh()
    assert ledger.held() == {}
    assert len(entries(store)) == 16
    assert ledger.spent() == pytest.approx(0.8)

    late = launch_of(store, 25)
    room = ledger.reserve(late, limits, 2.21, PRICE)
    assert (room.is_free, room.may_come) == (False, False)


def test_a_launch_has_its_money_once(store: Store) -> None:
    launch = launch_of(store, 1)
    for _ in range(2):
        ledger = GroupLedger(store, GROUP.id, KEY)
        assert ledger.reserve(launch, budget(max_spend=1.5), 1.0, PRICE).is_free
    assert len(entries(store)) == 1


# --- entries that others wrote ----------------------------------------------------------------


def test_money_is_given_back_by_holders_of_the_key_alone(store: Store) -> None:
    limits = budget(max_machines=1)
    launch = launch_of(store, 1)
    assert GroupLedger(store, GROUP.id, KEY).reserve(launch, limits, 1.0, PRICE).is_free

    for key in (None, b"1" * 32):
        forger = GroupLedger(store, GROUP.id, key)
        forger.settle(launch, 0.0)
    ledger = GroupLedger(store, GROUP.id, KEY)
    assert not ledger.reserve(launch_of(store, 2), limits, 1.0, PRICE).is_free

    ledger.settle(launch, 0.5)
    assert ledger.reserve(launch_of(store, 2), limits, 1.0, PRICE).is_free
    assert ledger.spent() == 0.5


def test_a_settlement_that_was_changed_gives_nothing_back(store: Store) -> None:
    launch = launch_of(store, 1)
    ledger = GroupLedger(store, GROUP.id, KEY)
    ledger.reserve(launch, budget(), 1.0, PRICE)
    ledger.settle(launch, 0.9)
    document = json.loads(store.get(ledger.key(2)))
    store.put(ledger.key(2), canonical_json({**document, "usd": 0.0}))

    reader = GroupLedger(store, GROUP.id, KEY)
    reader.refresh()
    assert list(reader.held()) == [launch.pod_name]


@pytest.mark.parametrize(
    "change",
    [{"n": 2}, {"group": "group-" + "0" * 12}, {"usd": -1.0}, {"kind": "gift"}, {"usd": "1"}],
)
def test_a_damaged_entry_is_named(store: Store, change: dict[str, object]) -> None:
    ledger = GroupLedger(store, GROUP.id, KEY)
    ledger.reserve(launch_of(store, 1), budget(), 1.0, PRICE)
    document = json.loads(store.get(ledger.key(1)))
    store.put(ledger.key(1), canonical_json({**document, **change}))
    with pytest.raises(ArtifactError, match=r"ledger/00000001\.json .* is damaged"):
        GroupLedger(store, GROUP.id, KEY).refresh()


def test_a_proof_of_an_entry_is_none_of_a_launch(store: Store) -> None:
    """Whoever sees proofs cannot put one where another stood."""
    ledger = GroupLedger(store, GROUP.id, KEY)
    ledger.reserve(launch_of(store, 1), budget(), 1.0, PRICE)
    document = json.loads(store.get(ledger.key(1)))
    entry = LedgerEntry.model_validate_json(store.get(ledger.key(1)))
    launch = launch_of(store, 1).model_copy(update={"proof": document["proof"]})
    assert not launch.proven(store, KEY)
    assert entry.proof is not None


def test_a_launch_with_a_budget_is_proven_with_it(store: Store) -> None:
    machine = machine_json(machine_config())
    limits = budget(max_spend=1.0)
    launch = claim(store, "small-" + "a" * 12, 1, JOB, IMAGE, machine, budget=limits, key=KEY)
    assert launch is not None
    read = Launch.read(store, launch.run_id, 1)
    assert read == launch
    assert read.proven(store, KEY)
    for other in (None, budget(max_spend=1000.0)):
        assert not read.model_copy(update={"budget": other}).proven(store, KEY)


def test_a_launch_without_a_budget_is_stored_and_proven_as_before(store: Store) -> None:
    machine = machine_json(machine_config())
    launch = claim(store, "small-" + "a" * 12, 1, JOB, IMAGE, machine, key=KEY)
    assert launch is not None
    assert "budget" not in json.loads(store.get(f"runs/{launch.run_id}/launches/00000001.json"))


# --- launchers on rented machines -------------------------------------------------------------


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRunpod]:
    with FakeRunpod(run_small_job, per_minute=60_000, restart_s=0.1) as running:
        monkeypatch.setenv("RUNPOD_TERMINATE_API_KEY", running.restricted_key)
        yield running


def runs_of(fake: FakeRunpod, url: str, folder: Path, count: int) -> list[RentedRun]:
    return [RentedRun(fake, url, folder / str(number), tag=number) for number in range(count)]


def patient(run: RentedRun, **watch: float) -> Session:
    """A launcher that waits for slow answers and slow jobs: many share this computer."""
    plain = httpx.HTTPTransport(verify=False)
    waits = {"read_s": 60.0, "silence_s": 60.0, "first_wait_s": 0.02}
    pods = RestPods(run.fake.api_key, base_url=run.fake.url, transport=plain, **waits)
    settings = quick_settings(
        run.store.url, start_timeout_s=LONGEST_S, stalled_after_s=LONGEST_S, **watch
    )
    return Session(settings, run.store, pods, run.run_id, Console(file=run.output, width=200))


def most_alive(pods: list[Pod]) -> int:
    """The most pods that were billed at one moment."""
    moments: list[tuple[float, int]] = []
    for pod in pods:
        for spell in pod.spells:
            assert spell.end is not None, "a meter still runs"
            moments += [(spell.start, 1), (spell.end, -1)]
    alive = 0
    most = 0
    for _, change in sorted(moments):
        alive += change
        most = max(most, alive)
    return most


def test_twenty_launchers_that_race_never_exceed_the_budget(
    fake: FakeRunpod, s3_url: str, tmp_path: Path
) -> None:
    """Four launchers for each of five runs: two machines at once, and money for two and a half."""
    runs = runs_of(fake, s3_url, tmp_path, 5)
    group = group_of(JOB, [run.run_id for run in runs])
    machine = machine_config(max_runtime=timedelta(minutes=5))
    most_of_one = most_of_one_machine(machine, PRICE, 1.0)
    limits = Budget(group=group.id, max_spend=2.5 * most_of_one, max_machines=2)
    exit_codes: list[int] = []

    def launch(number: int) -> None:
        run = runs[number % len(runs)]
        session = patient(run, settle_s=30.0)
        exit_codes.append(session.run(JOB, IMAGE, machine, limits))

    at_once(launch, 20)
    said = "".join(run.output.getvalue() for run in runs)
    assert exit_codes == [0] * 20, said
    assert "waiting for the budget" in said
    for run in runs:
        run.check_nothing_is_left()
        assert run.states() == ["committed"]

    pods = list(fake.pods.values())
    assert len(pods) == len(runs)
    assert most_alive(pods) == 2
    ledger = GroupLedger(runs[0].store, group.id, signing_key({}, fake.api_key))
    ledger.refresh()
    assert ledger.held() == {}
    assert sum(fake.billed(pod) for pod in pods) <= ledger.spent() * 1.5 + 1e-4
    assert ledger.spent() < limits.max_spend


def test_a_budget_without_room_for_one_machine_rents_none(
    fake: FakeRunpod, s3_url: str, tmp_path: Path
) -> None:
    (run,) = runs_of(fake, s3_url, tmp_path, 1)
    limits = Budget(group=GROUP.id, max_spend=1e-6, max_machines=1)
    with pytest.raises(LaunchError, match="no room for another machine"):
        run.session().run(JOB, IMAGE, machine_config(), limits)
    assert run.states() == ["launch_failed"]
    assert fake.pods == {}


def test_the_money_of_a_launcher_that_died_comes_back(
    fake: FakeRunpod, s3_url: str, tmp_path: Path
) -> None:
    """It had set money aside, and never asked for a machine."""
    dead, heir = runs_of(fake, s3_url, tmp_path, 2)
    group = group_of(JOB, [dead.run_id, heir.run_id])
    limits = Budget(group=group.id, max_spend=100.0, max_machines=1)
    died = patient(dead)
    launch = claim(
        dead.store,
        dead.run_id,
        1,
        JOB,
        IMAGE,
        machine_json(machine_config()),
        budget=limits,
        key=died.context.signing_key(),
    )
    assert launch is not None
    assert reserve(died.context, launch, limits).is_free

    second = threading.Thread(target=patient(dead).attach)
    waiting = threading.Thread(
        target=lambda: patient(heir).run(JOB, IMAGE, machine_config(), limits)
    )
    waiting.start()
    time.sleep(0.5)
    assert heir.pods() == []
    second.start()  # finds that the launcher is gone, and takes its place
    waiting.join(timeout=LONGEST_S)
    second.join(timeout=LONGEST_S)
    for run in (dead, heir):
        run.check_nothing_is_left()
    assert heir.states() == ["committed"]
    assert dead.states() == ["infra_lost", "committed"]
    assert most_alive(list(fake.pods.values())) == 1
    assert len(all_launches(dead.store, dead.run_id)) == 2
