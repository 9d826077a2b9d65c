"""Word of how a sweep ended: one notice for the group, and one for each member that failed."""

import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("apprise", reason="in the extra `notify`")

from moola.errors import DataError
from moola.jobs.prepare import PreparedRun, prepare_precompute
from moola.launch import notices
from moola.launch import sweep as sweeping
from moola.launch.endings import Endings
from moola.launch.group_notices import tell_group_end
from moola.launch.member_progress import MemberProgress
from moola.launch.members import LocalMembers
from moola.launch.notices import MemberNotices
from moola.launch.on_ray import sweep as on_ray
from moola.launch.settings import Settings
from moola.runs.attempt import Attempt, end_attempt
from moola.runs.groups import Budget, group_of, put_group
from moola.runs.launches import claim, record_rented
from moola.runs.protocol import STATUS, attempt_id_now, attempt_key, canonical_json
from moola.runs.records import State
from moola.specs import parse_spec
from moola.specs.precompute import PrecomputeSpec
from moola.store import Store, open_store
from tests.hook import Hook, running_hook
from tests.rented import rented_machine
from tests.runs import submitted_run
from tests.test_comparing import trained_run
from tests.test_costs import END, HOUR_AGO, IMAGE


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store((tmp_path / "store").as_uri())


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hook]:
    with running_hook() as server:
        monkeypatch.setenv("MOOLA_NOTIFY", server.address)
        yield server


def ended_run(store: Store, state: State, **spec: Any) -> str:
    """A train run whose one attempt ended so."""
    run_id = submitted_run(store, "train", **spec)
    end_attempt(store, run_id, attempt_id_now(), state, f"it was {state}", 1)
    return run_id


def stored_group(store: Store, *run_ids: str) -> str:
    group = group_of("train", run_ids)
    put_group(store, group)
    return group.id


def titles(hook: Hook) -> list[str]:
    return [body["title"].removeprefix("moola: ") for body in hook.bodies]


# --- the group --------------------------------------------------------------------------------


def test_the_end_of_a_group_is_told_once_by_any_number_of_launchers(
    store: Store, tmp_path: Path, hook: Hook
) -> None:
    """By hand: 0.2 and 0.6 have the mean 0.4. Gone on with, the group ends anew."""
    best = trained_run(store, tmp_path, {"f1_macro": 0.6}, n=1)
    lesser = trained_run(store, tmp_path, {"f1_macro": 0.2}, n=2)
    failed = ended_run(store, State.FAILED, n=3)
    group = stored_group(store, best, lesser, failed)
    threads = [threading.Thread(target=tell_group_end, args=(store, group)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert titles(hook) == [f"{group} 2 committed, 1 failed"]
    (message,) = [body["message"] for body in hook.bodies]
    assert "3 train runs: 2 committed, 1 failed" in message
    assert f"{failed} failed: it was failed" in message
    assert f"F1_MACRO: mean 0.400 of 2, best 0.600 ({best})" in message
    assert f"moola group {group} --store {store.url}" in message
    assert "USD" not in message

    with Attempt(store, failed, work=tmp_path):
        pass
    for _ in range(2):
        tell_group_end(store, group)
    assert titles(hook)[1:] == [f"{group} 3 committed"]
    assert "mean 0.400 of 2" in hook.bodies[1]["message"]  # it has no metrics


def test_the_cost_is_that_of_all_machines_of_all_members(store: Store, hook: Hook) -> None:
    """By hand: an hour at 0.10 and one at 0.20 USD; a launch that got no machine cost nothing."""
    runs = [submitted_run(store, "train", n=n) for n in range(2)]
    group = stored_group(store, *runs)
    assert claim(store, runs[1], 1, "train", IMAGE, {"cpu": {}}) is not None
    rent(store, runs[0], group, 0.1)
    rent(store, runs[1], group, 0.2, n=2)
    tell_group_end(store, group)
    assert titles(hook) == [f"{group} 2 infra_lost"]
    assert "0.3000 USD on 2 machines" in hook.bodies[0]["message"]


def rent(store: Store, run_id: str, group: str, price: float, n: int = 1) -> None:
    """A machine for an hour, paid from the group's budget, and then lost."""
    budget = Budget(group=group, max_spend=9.0, max_machines=2)
    launch = claim(store, run_id, n, "train", IMAGE, {"cpu": {}}, budget=budget)
    assert launch is not None
    status = {"state": "infra_lost", "time": END.isoformat(), "reason": "host lost"}
    store.put(launch.key(STATUS), canonical_json(status))
    machine = rented_machine(
        pod_id=f"pod-{run_id}",
        pod_name=launch.pod_name,
        price_per_hour=price,
        created=HOUR_AGO.timestamp(),
        deadline=END.timestamp(),
    )
    record_rented(store, launch, machine)


def test_a_group_with_open_runs_has_not_ended(store: Store, hook: Hook) -> None:
    """A run that never began is open too, unless its launcher has ended."""
    ended = ended_run(store, State.CANCELLED, n=1)
    waiting = submitted_run(store, "train", n=2)
    group = stored_group(store, ended, waiting)
    tell_group_end(store, group)
    assert titles(hook) == []
    tell_group_end(store, group, is_left=True)
    assert titles(hook) == [f"{group} 1 cancelled, 1 submitted"]

    running = submitted_run(store, "train", n=3)
    status = {"state": "running", "time": END.isoformat()}
    store.put(attempt_key(running, attempt_id_now(), STATUS), canonical_json(status))
    other = stored_group(store, ended, running)
    tell_group_end(store, other, is_left=True)
    assert len(hook.bodies) == 1


def test_a_damaged_member_stops_no_word_of_the_others(
    store: Store, tmp_path: Path, hook: Hook
) -> None:
    good = trained_run(store, tmp_path, {"f1_macro": 0.6})
    bad = submitted_run(store, "train", n=2)
    store.put(attempt_key(bad, attempt_id_now(), STATUS), b"[]")
    group = stored_group(store, good, bad)
    tell_group_end(store, group)
    assert titles(hook) == [f"{group} 1 committed, 1 damaged"]
    assert f"{bad} damaged: " in hook.bodies[0]["message"]


def test_a_notice_of_a_group_that_fails_is_said_and_fails_nothing(
    store: Store, hook: Hook, capsys: pytest.CaptureFixture[str]
) -> None:
    tell_group_end(store, "group-0123456789ab")
    assert "no notice of the end of group-0123456789ab was sent" in capsys.readouterr().err
    assert hook.bodies == []


# --- its members ------------------------------------------------------------------------------


def test_a_member_has_a_notice_of_its_own_where_it_failed(
    store: Store, tmp_path: Path, hook: Hook
) -> None:
    committed = trained_run(store, tmp_path, {"f1_macro": 0.6})
    states = (State.FAILED, State.CANCELLED, State.TERMINATED, State.INFRA_LOST)
    ended = {state: ended_run(store, state, end=str(state)) for state in states}
    for _ in range(2):
        members = MemberNotices()
        for run_id in (committed, submitted_run(store, "train", n=9), *ended.values()):
            members.tell(store, run_id, "group-0123456789ab")
    failed = [State.FAILED, State.INFRA_LOST]
    assert titles(hook) == [f"{ended[state]} {state}" for state in failed]
    assert all("a run of group-0123456789ab" in body["message"] for body in hook.bodies)


def test_the_notices_of_members_have_a_limit(
    store: Store, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "MOST_MEMBERS", 2)
    members = MemberNotices()
    for n in range(4):
        members.tell(store, ended_run(store, State.FAILED, n=n), "group-0123456789ab")
    assert len(hook.bodies) == 2


def test_whoever_sees_the_end_of_a_rented_member_tells_of_it_as_one(
    store: Store, tmp_path: Path, hook: Hook
) -> None:
    """As `tend`, `attach`, `cancel` and `reap` do. One that went on here is a run of its own."""
    runs = [submitted_run(store, "train", n=n) for n in range(2)]
    group = stored_group(store, *runs)
    rent(store, runs[0], group, 0.1)
    endings = Endings(Settings())
    endings.tell(store, runs[0])
    endings.tell_groups(store)
    assert titles(hook) == [f"{runs[0]} infra_lost"]

    rent(store, runs[1], group, 0.2)
    for _ in range(2):
        endings = Endings(Settings())
        for run_id in runs:
            endings.tell(store, run_id)
        endings.tell_groups(store)
    assert titles(hook)[1:] == [f"{runs[1]} infra_lost", f"{group} 2 infra_lost"]

    with Attempt(store, runs[0], work=tmp_path):
        pass
    Endings(Settings()).tell(store, runs[0])
    assert titles(hook)[3:] == [f"{runs[0]} committed"]


# --- sweeps -----------------------------------------------------------------------------------


class Members:
    """In the place of those that run: the first one fails, the others are committed."""

    def __init__(self, store: Store, work: Path) -> None:
        self.store = store
        self.work = work

    def run(self, run_ids: list[str], progress: MemberProgress) -> dict[str, int]:
        exit_codes = dict.fromkeys(run_ids, 0)
        exit_codes[run_ids[0]] = DataError.exit_code
        for run_id, exit_code in exit_codes.items():
            progress.started(run_id)
            try:
                with Attempt(self.store, run_id, work=self.work) as attempt:
                    if exit_code:
                        raise DataError("bars must be good")
            except DataError:
                pass
            progress.ended(run_id, attempt.attempt_id, exit_code)
        return exit_codes


def small_runs(work: Path) -> list[tuple[str, PreparedRun]]:
    specs = [
        parse_spec(PrecomputeSpec, {"windows": each}, place="here")
        for each in ("stored", "virtual")
    ]
    return [(spec.windows, prepare_precompute(spec, work)) for spec in specs]


@pytest.mark.parametrize("on", ["local", "ray"])
def test_a_sweep_tells_of_what_failed_and_of_its_end(
    store: Store, tmp_path: Path, hook: Hook, monkeypatch: pytest.MonkeyPatch, on: str
) -> None:
    """Without processes or a cluster: the members are ended here."""
    import typer

    members = Members(store, tmp_path / "work")
    monkeypatch.setattr(LocalMembers, "run", lambda _, *args: members.run(*args))
    monkeypatch.setattr(on_ray, "require_ray", lambda: None)
    monkeypatch.setattr(on_ray, "open_cluster", lambda *_, **__: nullcontext())
    monkeypatch.setattr(on_ray, "ray_members", lambda *_: members)
    monkeypatch.setattr(on_ray, "_say_how", lambda *_: None)
    run_sweep = {"local": sweeping.run_sweep, "ray": on_ray.run_ray_sweep}[on]
    settings = Settings(store=store.url, work=tmp_path / "work")
    sweep = sweeping.sweep_of("precompute", small_runs(tmp_path))
    with pytest.raises(typer.Exit):
        run_sweep(settings, sweep)

    first = sweep.runs[0].run_id
    assert titles(hook) == [f"{first} failed", f"{sweep.group.id} 1 committed, 1 failed"]
    assert f"a run of {sweep.group.id}" in hook.bodies[0]["message"]

    hook.bodies.clear()
    with Attempt(store, first, work=tmp_path / "work"):
        pass
    run_sweep(settings, sweep)  # nothing was left to do
    assert hook.bodies == []

    monkeypatch.setenv("MOOLA_NOTIFY", "nonsense://somewhere")
    with pytest.raises(DataError, match="number 1 of 1 is none"):
        run_sweep(settings, sweep)
