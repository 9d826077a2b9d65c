"""Sweeps on rented machines by the commands alone: --on runpod, and --detach with `tend`."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from moola.runs.authority import signing_key
from moola.runs.group_ledger import GroupLedger
from moola.runs.groups import Group, read_group
from moola.runs.reading import attempts_of, read_manifest
from moola.store import open_store
from tests.fake_runpod import FakeRunpod
from tests.feature_set import random_bars
from tests.hook import Hook, running_hook
from tests.rented import wait_for
from tests.test_launch import Launcher
from tests.test_rented_launch import Account, account, environment, fake, images

__all__ = ["account", "environment", "fake", "images"]

SWEEP = ("sweep", "precompute", "--bars", "bars/*.parquet", "--windows", "virtual")
ON_RUNPOD = (*SWEEP, "--on", "runpod")
PATIENT = {  # a job that takes long on a busy computer is neither late nor silent
    "MOOLA_WATCH__START_TIMEOUT_S": "500",
    "MOOLA_WATCH__STALLED_AFTER_S": "500",
    "MOOLA_WATCH__CAPACITY_POLL_S": "0.5",
}
LONGEST_S = 280.0


def computer(account: Account, n_files: int, hook: Hook) -> Launcher:
    """With files of bars; it sends notices to the hook."""
    launcher = account.computer(**PATIENT, MOOLA_NOTIFY=hook.address)
    folder = launcher.folder / "bars"
    folder.mkdir()
    for number in range(n_files):
        random_bars(seed=number).to_parquet(folder / f"market-{number}.parquet")
    return launcher


@pytest.fixture
def hook() -> Iterator[Hook]:
    with running_hook() as running:
        yield running


def group_in(account: Account) -> Group:
    store = open_store(account.store)
    (group_id,) = store.children("groups")
    return read_group(store, group_id)


def ledger_of(account: Account, group: Group) -> GroupLedger:
    key = signing_key({}, account.fake.api_key)
    ledger = GroupLedger(open_store(account.store), group.id, key)
    ledger.refresh()
    return ledger


def check_all_is_done(account: Account, group: Group) -> None:
    """Each run committed once, no pod is left, and the money of each was settled."""
    store = open_store(account.store)
    for run_id in group.members:
        assert read_manifest(store, run_id) is not None
    assert account.fake.alive() == []
    ledger = ledger_of(account, group)
    assert ledger.held() == {}
    assert 0 < ledger.spent() < 1.0


def test_a_sweep_on_rented_machines_holds_its_caps_and_computes_nothing_twice(
    fake: FakeRunpod, account: Account, environment: None, hook: Hook
) -> None:
    """And one notice is sent, of the group."""
    del environment
    laptop = computer(account, 3, hook)
    pods_before = set(fake.pods)
    said = account.say(laptop, *ON_RUNPOD, "--machines", "2", "--dry-run")
    assert "group-" in said
    assert account.objects() == {}
    assert set(fake.pods) == pods_before

    refused = account.say(laptop, *ON_RUNPOD, "--max-spend", "0.01", "--yes", exit_code=3)
    assert "--max-spend 0.01 must have room for one machine" in refused
    assert set(fake.pods) == pods_before

    said = account.say(laptop, *ON_RUNPOD, "--machines", "2", "--yes")
    group = group_in(account)
    assert "3 committed" in said
    check_all_is_done(account, group)
    store = open_store(account.store)
    assert [len(attempts_of(store, run_id)) for run_id in group.members] == [1, 1, 1]
    pods = [pod for name, pod in fake.pods.items() if name not in pods_before]
    assert sorted(pod.run for pod in pods) == list(group.members)
    third = max(pod.spells[0].start for pod in pods)
    assert min(pod.spells[-1].end or 0.0 for pod in pods) <= third, "two at once, not three"

    again = account.say(laptop, *ON_RUNPOD, "--machines", "2", "--yes")
    assert "3 of them committed already" in again
    assert len(set(fake.pods) - pods_before) == 3
    require_one_notice(hook, group)


def require_one_notice(hook: Hook, group: Group) -> None:
    (sent,) = hook.bodies
    n_runs = len(group.members)
    assert sent["title"] == f"moola: {group.id} {n_runs} committed"
    assert f"USD on {n_runs} machines" in sent["message"]


def test_a_detached_sweep_is_seen_through_by_a_tender_that_goes_on(
    fake: FakeRunpod, account: Account, environment: None, tmp_path: Path, hook: Hook
) -> None:
    """And it sends word of the group, once."""
    del environment
    pods_before = set(fake.pods)
    laptop = computer(account, 2, hook)
    said = account.say(laptop, *ON_RUNPOD, "--detach", "--yes")
    assert "2 runs can be left" in said
    group = group_in(account)
    assert set(fake.pods) == pods_before
    shown = account.say(laptop, "list", "--state", "submitted", "--state", "waiting")
    assert all(run_id in shown for run_id in group.members)

    tender = account.computer("server", **PATIENT, MOOLA_NOTIFY=hook.address)
    assert tmp_path in tender.folder.parents
    process = tender.start("tend", "--follow")
    store = open_store(account.store)

    def is_done() -> bool:
        committed = [read_manifest(store, run_id) is not None for run_id in group.members]
        return all(committed) and not fake.alive() and not ledger_of(account, group).held()

    wait_for(is_done, "both runs committed, and their machines gone", LONGEST_S)
    process.send_signal(signal.SIGINT)
    told = account.end(process, exit_code=130)
    assert all(run_id in told for run_id in group.members)
    check_all_is_done(account, group)
    assert "0 runs open" in account.say(tender, "tend")
    require_one_notice(hook, group)


@pytest.mark.parametrize("options", [("--detach",), ("--detach", "--on", "docker")])
def test_only_what_is_rented_can_be_left(tmp_path: Path, options: tuple[str, ...]) -> None:
    (tmp_path / "bars").mkdir()
    random_bars().to_parquet(tmp_path / "bars" / "market.parquet")
    launch = Launcher(tmp_path, f"file://{tmp_path}/store")
    assert "--on" in launch(*SWEEP, *options, exit_code=2)
    assert not (tmp_path / "store").exists()
