"""Groups compared and removed: what is shared stays, a killed removal goes on, open groups stay."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moola.errors import ArtifactError, AuthError, DataError
from moola.runs.group_ledger import GroupLedger
from moola.runs.group_removal import delete_group, remove_group
from moola.runs.groups import Budget, Group, group_key, group_of, put_group, read_group
from moola.runs.launches import claim
from moola.runs.protocol import REMOVED, STATUS, attempt_key, canonical_json
from moola.runs.removal import remove_runs
from moola.store import Store
from tests.hostile import IMAGE, MACHINE
from tests.runs import attempt_id, committed_run, submitted_run
from tests.test_comparing import trained_run
from tests.test_listing import Command, command
from tests.test_removal import Killed, dying_after, keys_of, states, train_on
from tests.test_watch import NOW

__all__ = ["command"]

KEY = b"k" * 32


def group_keys(store: Store, group_id: str) -> list[str]:
    return [entry.key for entry in store.list_page(group_key(group_id, "")).entries]


def group_ids(store: Store) -> list[str]:
    """Of groups that have any object: some servers keep a folder of what was removed."""
    return [name for name in store.children("groups") if group_keys(store, name)]


def committed_group(store: Store, work: Path, *numbers: int) -> Group:
    """A group of committed runs, with a reservation in its ledger."""
    group = group_of("precompute", [committed_run(store, work, n=n) for n in numbers])
    put_group(store, group)
    for n, run_id in enumerate(group.members, 1):
        reserve(store, group, run_id, n)
    return group


def reserve(store: Store, group: Group, run_id: str, n: int = 1) -> None:
    budget = Budget(group=group.id, max_spend=100.0, max_machines=10)
    machine = MACHINE.model_dump(mode="json")
    launch = claim(store, run_id, 1, group.job, IMAGE, machine, budget=budget, key=KEY)
    assert launch is not None
    store.put(launch.key(STATUS), canonical_json({"state": "failed", "time": NOW.isoformat()}))
    assert GroupLedger(store, group.id, KEY).reserve(launch, budget, 1.0, 0.5).is_free
    assert f"ledger/{n:08d}.json" in "".join(group_keys(store, group.id))


def test_a_removed_group_is_gone_with_its_runs_and_nothing_else(
    store: Store, command: Command, tmp_path: Path
) -> None:
    group = committed_group(store, tmp_path, 1, 2)
    other = committed_group(store, tmp_path, 3)
    kept = [*keys_of(store, other.members[0]), *group_keys(store, other.id)]

    lines = command("remove", group.id[:12], "--yes").splitlines()
    assert lines[-1] == f"removed {group.id}"
    assert {line.split()[1].rstrip(":") for line in lines[:-1]} == set(group.members)
    assert group_keys(store, group.id) == []
    assert set(states(store)) == set(other.members)
    assert [*keys_of(store, other.members[0]), *group_keys(store, other.id)] == kept
    assert committed_group(store, tmp_path, 1, 2) == group  # it can be made again
    assert "none" in command("remove", "group-ffff", "--yes", exit_code=3)


def test_what_others_read_or_name_stays_and_the_group_with_it(
    store: Store, command: Command, tmp_path: Path
) -> None:
    group = committed_group(store, tmp_path, 1, 2, 3)
    read, shared, free = group.members
    reader = train_on(store, tmp_path, read)
    other = group_of("precompute", [shared, committed_run(store, tmp_path, n=4)])
    put_group(store, other)
    ledger = group_keys(store, group.id)

    told = command("remove", group.id, "--yes", exit_code=3)
    assert reader in told
    assert other.id in told
    assert set(states(store)) == {read, shared, reader, *other.members}
    assert free not in states(store)
    assert group_keys(store, group.id) == ledger, "its mark is gone, its ledger is not"

    command("remove", reader, "--yes")
    assert f"kept: {shared} is also a run of {other.id}" in command("remove", group.id, "--yes")
    assert group_ids(store) == [other.id]
    assert set(states(store)) == set(other.members)
    command("remove", other.id, "--yes")
    assert (states(store), group_ids(store)) == ({}, [])


def run_it(store: Store, run_id: str) -> None:
    status = {"state": "running", "time": NOW.isoformat()}
    store.put(attempt_key(run_id, attempt_id(1), STATUS), canonical_json(status))


def launch_it(store: Store, run_id: str) -> None:
    assert claim(store, run_id, 1, "precompute", IMAGE, MACHINE.model_dump(mode="json"))


@pytest.mark.parametrize("begin", [run_it, launch_it])
def test_an_open_group_keeps_its_runs_and_its_ledger(
    store: Store, command: Command, tmp_path: Path, begin: Callable[[Store, str], None]
) -> None:
    """From `remove` and from `gc`; a member that is rented for has a claim before anything else."""
    done = committed_run(store, tmp_path, n=1)
    at_work = submitted_run(store, n=2)
    group = group_of("precompute", [done, at_work])
    put_group(store, group)
    reserve(store, group, done)
    before = group_keys(store, group.id)
    begin(store, at_work)

    assert f"moola cancel {at_work}" in command("remove", group.id, "--yes", exit_code=3)
    shown = json.loads(command("gc", "--keep-last", "0", "--yes", "--json"))
    assert shown["groups"] == []
    why = {run["run"]: (run["remove"], run["why"]) for run in shown["runs"]}
    assert why[done] == (False, f"a run of {group.id}, which has not ended")
    assert set(states(store)) == {done, at_work}
    assert group_keys(store, group.id) == before


def test_gc_removes_the_runs_of_a_group_that_is_over_and_then_the_group(
    store: Store, command: Command, tmp_path: Path
) -> None:
    group = committed_group(store, tmp_path, 1, 2)
    kept = group_of("precompute", [group.members[0], committed_run(store, tmp_path, n=3)])
    put_group(store, kept)
    shown = json.loads(command("gc", "--keep-last", "0", "--dry-run", "--json"))
    assert set(shown["groups"]) == {group.id, kept.id}
    assert len(states(store)) == 3

    remove_runs(store, list(group.members))
    table = command("gc", "--keep-last", "9", "--yes")
    assert f"removed {group.id}" in table
    assert "0 of 1 runs and 1 of 2 groups" in table
    assert group_ids(store) == [kept.id]
    command("gc", "--keep-last", "0", "--yes")
    assert (states(store), group_ids(store)) == ({}, [])


@pytest.mark.parametrize("store_url", ["file"], indirect=True)
@pytest.mark.parametrize("again", ["remove", "gc"])
def test_killed_at_any_point_the_same_command_goes_on(
    store: Store,
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    again: str,
) -> None:
    """And what is left of a ledger is one still: its first entries."""
    monkeypatch.setattr("moola.runs.removal.READERS", 1)  # or two die at once
    n_changes = n_groups = 0
    seen: set[tuple[int, bool, bool]] = set()
    wanted = {(2, True, False), (2, True, True), (1, True, True), (0, True, True), (0, False, True)}
    while seen < wanted:  # a slow run leaves one more heartbeat, and one state may be stepped over
        n_groups += 1
        group = committed_group(store, tmp_path / str(n_groups), 1, 2)
        with pytest.MonkeyPatch.context() as patch:
            dying_after(store, patch, n_changes)
            try:
                remove_group(store, group.id)
                n_changes = 0
                continue
            except Killed:
                pass

        keys = [key.rpartition("/")[2] for key in group_keys(store, group.id)]
        entries = sorted(key for key in keys if key[0] == "0")
        assert entries == [f"{n:08d}.json" for n in range(1, len(entries) + 1)]
        assert len(entries) == 2 or states(store) == {}
        if "group.json" not in keys:
            assert entries == []
        elif REMOVED in keys:
            with pytest.raises(ArtifactError, match=f"moola remove {group.id}"):
                put_group(store, group)
        seen.add((len(entries), "group.json" in keys, REMOVED in keys))

        arguments = ("remove", group.id) if again == "remove" else ("gc", "--keep-last", "0")
        if keys:
            command(*arguments, "--yes")
        assert (states(store), group_ids(store)) == ({}, [])
        n_changes += 1

    assert seen == wanted


def test_a_key_that_may_not_delete_marks_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = committed_group(store, tmp_path, 1)
    before = [*keys_of(store, group.members[0]), *group_keys(store, group.id)]

    def refuse(key: str) -> None:
        raise AuthError(f"the key may not delete {key}")

    monkeypatch.setattr(store, "delete", refuse)
    with pytest.raises(AuthError):
        remove_group(store, group.id)
    assert [*keys_of(store, group.members[0]), *group_keys(store, group.id)] == before


def test_a_run_that_came_back_keeps_the_ledger(store: Store, tmp_path: Path) -> None:
    """A sweep was started again between the removal of its runs and that of the group."""
    group = committed_group(store, tmp_path, 1)
    remove_runs(store, list(group.members))
    assert submitted_run(store, n=1) == group.members[0]
    before = group_keys(store, group.id)
    assert not delete_group(store, group.id, group.members)
    assert group_keys(store, group.id) == before


def test_of_a_sweep_and_a_removal_one_sees_the_other(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of the group begins between the first look and the mark."""
    run_id = committed_run(store, tmp_path, n=1)
    other = submitted_run(store, n=2)
    group = group_of("precompute", [run_id, other])
    put_group(store, group)
    put = store.put

    def put_and_begin(key: str, data: bytes) -> None:
        put(key, data)
        if key == group_key(group.id, REMOVED):
            run_it(store, other)
            with pytest.raises(ArtifactError, match="half removed"):
                put_group(store, group)

    monkeypatch.setattr(store, "put", put_and_begin)
    with pytest.raises(DataError, match="moola cancel"):
        remove_group(store, group.id)
    put_group(store, group)
    assert states(store) == {run_id: "committed", other: "running"}


def test_a_damaged_group_stops_no_gc_and_is_not_removed(
    store: Store, command: Command, tmp_path: Path
) -> None:
    group = committed_group(store, tmp_path, 1)
    store.put(group_key(group.id), b'{"job": 1}')
    assert "damaged" in command("remove", group.id, "--yes", exit_code=4)
    command("gc", "--keep-last", "0", "--yes")
    assert states(store) == {}
    assert group_keys(store, group.id)


# --- compare ----------------------------------------------------------------------------------


def test_the_committed_runs_of_a_group_are_compared(
    store: Store, command: Command, tmp_path: Path
) -> None:
    def run(seed: int, **values: Any) -> str:
        return trained_run(store, tmp_path, values, training={"seed": seed})

    runs = [run(seed, f1=f1) for seed, f1 in enumerate((0.1, 0.2, 0.6))]
    waiting = submitted_run(store, "train", training={"seed": 3})
    group = group_of("train", [*runs, waiting])
    put_group(store, group)

    document = json.loads(command("compare", group.id, "--json"))
    assert [row["run"] for row in document["runs"]] == runs
    assert document["differences"] == {"training.seed": [0, 1, 2]}
    assert document["metrics"] == {"f1": [0.1, 0.2, 0.6]}
    assert json.loads(command("compare", runs[2], group.id, "--json"))["metrics"] == {
        "f1": [0.6, 0.1, 0.2]
    }
    assert read_group(store, group.id) == group
    few = group_of("train", [runs[0], waiting])
    put_group(store, few)
    assert "2 to 26 different runs, got 1" in command("compare", few.id, exit_code=3)
    told = command("compare", few.id, exit_code=3)
    assert f"1 of 2 runs of {few.id} are not committed" in told
