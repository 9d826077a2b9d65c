"""Removing runs: what is read stays, one that was killed is finished, ages are the store's."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from moola.errors import ArtifactError, AuthError, DataError, TryAgainError
from moola.runs.attempt import Attempt
from moola.runs.launches import claim
from moola.runs.protocol import (
    COMMIT,
    REMOVED,
    SPEC,
    attempt_key,
    canonical_json,
    now_text,
    run_key,
)
from moola.runs.reading import describe_input_run, read_commit, require_manifest
from moola.runs.records import InputRun
from moola.runs.removal import choose_runs, remove_runs, require_removable
from moola.runs.submit import describe_run, submit
from moola.runs.survey import newest_run, summarize_runs, survey_runs
from moola.store import Store, open_store
from tests.hostile import IMAGE, MACHINE
from tests.runs import attempt_id, committed_run, submitted_run
from tests.test_listing import Command, command, failed_run

__all__ = ["command"]


def train_on(store: Store, work: Path, features: str, n: int = 0) -> str:
    """A committed train run that reads a precompute run."""
    run_id, document = describe_run("train", {"n": n}, {"features": input_of(store, features)})
    submit(store, run_id, document)
    with Attempt(store, run_id, work=work) as attempt:
        attempt.write("model.json", b"{}", "application/json")
    return run_id


def input_of(store: Store, run_id: str) -> InputRun:
    return describe_input_run(store, run_id)


def keys_of(store: Store, run_id: str) -> list[str]:
    return [entry.key for entry in store.list_page(run_key(run_id, "")).entries]


def states(store: Store) -> dict[str, str]:
    survey = survey_runs(store)
    return {run.run_id: run.shown_state for run in summarize_runs(store, survey, 99)}


def test_a_removed_run_is_gone_and_its_neighbours_are_whole(
    store: Store, command: Command, tmp_path: Path
) -> None:
    """Also the twin whose id begins with the id of the one that goes."""
    run_id = committed_run(store, tmp_path, n=1)
    twin, document = describe_run("precompute", {"n": 1}, {}, force=True)
    submit(store, twin, document)
    kept = keys_of(store, twin)
    n_objects = len(keys_of(store, run_id))

    assert f"removed {run_id}: {n_objects} objects" in command("remove", run_id, "--yes")
    assert keys_of(store, run_id) == []
    assert keys_of(store, twin) == kept
    assert set(states(store)) == {twin}
    assert committed_run(store, tmp_path / "again", n=1) == run_id  # it can be made again


def test_what_another_run_reads_is_not_removed(
    store: Store, command: Command, tmp_path: Path
) -> None:
    features = committed_run(store, tmp_path, n=1)
    reader = train_on(store, tmp_path, features)
    assert reader in command("remove", features, "--yes", exit_code=3)
    require_manifest(store, features)

    command("remove", reader, "--yes")
    command("remove", features, "--yes")
    assert states(store) == {}


def test_a_run_under_way_is_not_removed(store: Store, command: Command, tmp_path: Path) -> None:
    run_id = submitted_run(store)
    with Attempt(store, run_id, work=tmp_path):
        assert f"first: moola cancel {run_id}" in command("remove", run_id, "--yes", exit_code=3)
    command("remove", run_id, "--yes")


def test_a_run_that_was_killed_here_is_removed_once_it_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody records its end. One on a rented machine is not lost until `reap` says so."""
    store = open_store((tmp_path / "store").as_uri())
    here, rented = (submitted_run(store, n=n) for n in range(2))
    launch = claim(store, rented, 1, "precompute", IMAGE, MACHINE.model_dump(mode="json"))
    assert launch is not None
    for run_id, attempt in ((here, attempt_id(1)), (rented, launch.attempt)):
        key = attempt_key(run_id, attempt, "status.json")
        store.put(key, canonical_json({"state": "running", "time": now_text()}))
        os.utime(tmp_path / "store" / key, (time.time() - 4000,) * 2)

    assert [each.run_id for each in choose_runs(store, keep_last=0) if each.is_removed] == [here]
    require_removable(store, here)
    with pytest.raises(DataError, match="moola cancel"):
        require_removable(store, rented)

    monkeypatch.setattr("moola.runs.removal.LOST_AFTER_S", 5000)
    assert not [each for each in choose_runs(store, keep_last=0) if each.is_removed]
    with pytest.raises(DataError, match="moola cancel"):
        require_removable(store, here)


def test_what_a_process_left_at_a_removed_run_is_removed(store: Store, tmp_path: Path) -> None:
    """It went on after the removal, and committed a run without a spec."""
    run_id = submitted_run(store)
    with Attempt(store, run_id, work=tmp_path):
        remove_runs(store, [run_id])
    assert states(store) == {run_id: "damaged"}
    require_removable(store, run_id)
    remove_runs(store, [run_id])
    assert states(store) == {}


def test_nobody_is_asked_where_nobody_can_answer(
    store: Store, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    run_id = committed_run(store, tmp_path)
    assert "add --yes" in command("remove", run_id, exit_code=3)
    require_manifest(store, run_id)


class Killed(BaseException):
    """As kill -9: nothing is tidied up."""


def dying_after(store: Store, monkeypatch: pytest.MonkeyPatch, n_changes: int) -> None:
    """The process is killed before the change of the store with this number."""
    left = [n_changes]

    def dying(change: Callable[..., None]) -> Callable[..., None]:
        def run(*arguments: object) -> None:
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            change(*arguments)

        return run

    monkeypatch.setattr(store, "delete", dying(store.delete))
    monkeypatch.setattr(store, "put", dying(store.put))


@pytest.mark.parametrize("kind", ["file", "s3"])
def test_killed_at_any_point_a_run_is_whole_or_a_second_remove_finishes(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A run whose commit can be read is whole, and one without the mark is as before."""
    url = (tmp_path / "store").as_uri() if kind == "file" else request.getfixturevalue("s3_url")
    store = open_store(url)
    n_changes = 0
    n_states: dict[str, int] = {}
    while True:
        run_id = committed_run(store, tmp_path / str(n_changes), n=1)
        keys = keys_of(store, run_id)
        with pytest.MonkeyPatch.context() as patch:
            dying_after(store, patch, n_changes)
            try:
                remove_runs(store, [run_id])
                break
            except Killed:
                pass

        left = keys_of(store, run_id)
        state = states(store).get(run_id, "gone")
        n_states[state] = n_states.get(state, 0) + 1
        if run_key(run_id, COMMIT) in left:
            assert set(keys) <= set(left)
        assert state == ("half_removed" if run_key(run_id, REMOVED) in left else "committed")
        if state == "half_removed":
            with pytest.raises(ArtifactError, match="half removed"):
                describe_input_run(store, run_id)
            with pytest.raises(ArtifactError, match="half removed"):
                committed_run(store, tmp_path / "other", n=1)
            assert newest_run(store, "precompute") is None

        require_removable(store, run_id)
        remove_runs(store, [run_id])
        assert keys_of(store, run_id) == []
        n_changes += 1 if kind == "file" else 3

    assert n_states["committed"] >= 1
    assert n_states["half_removed"] >= 2


def test_a_key_that_may_not_delete_marks_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = committed_run(store, tmp_path)
    before = keys_of(store, run_id)

    def refuse(key: str) -> None:
        raise AuthError(f"the key may not delete {key}")

    monkeypatch.setattr(store, "delete", refuse)
    with pytest.raises(AuthError):
        remove_runs(store, [run_id])
    assert keys_of(store, run_id) == before


def test_of_who_removes_and_who_reads_one_sees_the_other(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A train run is submitted between the mark and the look for readers."""
    features = committed_run(store, tmp_path, n=1)
    run_id, document = describe_run("train", {"n": 1}, {"features": input_of(store, features)})
    put = store.put

    def put_and_submit(key: str, data: bytes) -> None:
        put(key, data)
        if key.endswith(REMOVED):
            with pytest.raises(ArtifactError, match="half removed"):
                submit(store, run_id, document)

    monkeypatch.setattr(store, "put", put_and_submit)
    stay = remove_runs(store, [features])
    assert run_id in stay[features]
    require_manifest(store, features)  # it is whole
    submit(store, run_id, document)  # and can be read again


def test_gc_keeps_the_newest_of_each_kind_and_what_they_read(
    store: Store, command: Command, tmp_path: Path
) -> None:
    """Worked out by hand. Each was made later than the one before."""
    old_features = committed_run(store, tmp_path, n=1)
    read_features = committed_run(store, tmp_path, n=2)
    old_train = train_on(store, tmp_path, old_features, n=1)
    failed = failed_run(store, tmp_path, n=3)
    time.sleep(1.1)
    waiting = submitted_run(store, n=4)
    new_features = committed_run(store, tmp_path, n=5)
    new_train = train_on(store, tmp_path, read_features, n=2)

    shown = json.loads(command("gc", "--keep-last", "1", "--dry-run", "--json"))
    assert [run["run"] for run in shown["runs"] if run["remove"]] == [old_train, old_features]
    assert len(states(store)) == 7

    command("gc", "--keep-last", "1", "--yes")
    assert set(states(store)) == {read_features, failed, waiting, new_features, new_train}
    command("gc", "--keep-last", "0", "--yes")
    assert set(states(store)) == {waiting}


def test_gc_counts_age_by_the_store_s_clock(
    store: Store, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A computer whose clock is a year ahead removes nothing."""
    run_id = committed_run(store, tmp_path)
    ahead = time.time() + 365 * 86_400
    monkeypatch.setattr("moola.runs.removal.now_text", lambda: "2099-01-01T00:00:00+00:00")
    if store.url.startswith("s3:"):
        monkeypatch.setattr("time.time", lambda: ahead)
    command("gc", "--older-than", "30d", "--yes")
    require_manifest(store, run_id)

    time.sleep(2.1)
    command("gc", "--older-than", "1s", "--yes")
    assert states(store) == {}


def test_gc_without_a_rule_or_with_a_wrong_one_is_refused(store: Store, command: Command) -> None:
    del store
    assert "--keep-last N" in command("gc", "--yes", exit_code=2)
    assert "90s, 30m" in command("gc", "--older-than", "a month", exit_code=2)


def test_a_damaged_run_is_kept_and_stops_no_other(store: Store, tmp_path: Path) -> None:
    good, bad = (committed_run(store, tmp_path / str(n), n=n) for n in range(2))
    store.put(run_key(bad, COMMIT), b"{}")
    store.put(run_key(bad, SPEC), b"[]")
    candidates = {each.run_id: each for each in choose_runs(store, keep_last=0)}
    assert candidates[good].is_removed
    assert not candidates[bad].is_removed
    assert "damaged" in candidates[bad].why


def test_a_mark_alone_makes_gc_remove_no_committed_run(store: Store, tmp_path: Path) -> None:
    """A machine's key may write and not delete; it must not delete by the hand of whoever may."""
    run_id = committed_run(store, tmp_path)
    store.put(run_key(run_id, REMOVED), b"{}")
    (kept,) = choose_runs(store, keep_last=1)
    assert not kept.is_removed
    (old,) = choose_runs(store, keep_last=0)
    assert old.is_removed

    store.delete(run_key(run_id, COMMIT))
    (begun,) = choose_runs(store, keep_last=1)
    assert begun.is_removed


def test_runs_that_claim_to_read_each_other_are_kept(store: Store, tmp_path: Path) -> None:
    """Ids do not bind the names of runs that are read, so a hostile writer can make a circle."""
    first = committed_run(store, tmp_path / "1", n=1)
    second = train_on(store, tmp_path / "2", first)
    item = describe_input_run(store, second)
    run_id, document = describe_run("train", {"n": 9}, {"features": item})
    submit(store, run_id, document)
    with Attempt(store, run_id, work=tmp_path / "3"):
        pass
    spec = json.loads(store.get(run_key(second, SPEC)))
    spec["inputs"]["features"]["run"] = run_id
    store.put(run_key(second, SPEC), json.dumps(spec).encode())

    removed = [each.run_id for each in choose_runs(store, keep_last=0) if each.is_removed]
    assert removed == [first]


def test_a_store_that_does_not_answer_ends_a_removal_that_can_be_finished(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = committed_run(store, tmp_path)
    delete = store.delete

    def refuse_files(key: str) -> None:
        if "/files/" in key:
            raise TryAgainError("no answer")
        delete(key)

    with monkeypatch.context() as patch:
        patch.setattr(store, "delete", refuse_files)
        with pytest.raises(TryAgainError):
            remove_runs(store, [run_id])
    assert states(store) == {run_id: "half_removed"}
    assert read_commit(store, run_id) is None
    remove_runs(store, [run_id])
    assert states(store) == {}


def test_require_removable_names_the_readers(store: Store, tmp_path: Path) -> None:
    features = committed_run(store, tmp_path, n=1)
    readers = [train_on(store, tmp_path / str(n), features, n) for n in range(2)]
    with pytest.raises(DataError) as refused:
        require_removable(store, features)
    assert all(reader in str(refused.value) for reader in readers)
