"""The run protocol on both stores: one commit point, failures that leave a record, readers that trust nothing."""

import hashlib
import json
import logging
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from moola.errors import ArtifactError, ConflictError, DataError, TryAgainError
from moola.protocol import attempt_key, canonical_json, run_key
from moola.runs import (
    SILENT_S,
    Attempt,
    commit_run,
    describe_input,
    describe_run,
    end_attempt,
    find_run,
    is_silent,
    log_records,
    pull_files,
    pull_input,
    put_input,
    read_manifest,
    require_manifest,
    run_state,
    submit,
)
from moola.signals import Stopped, stop_on_signals
from moola.store import BytesSource, Store, open_store

log = logging.getLogger("moola")
log.setLevel(logging.INFO)


def records(store: Store, run_id: str, attempt_id: str) -> list[str]:
    return [r["message"] for _, lines in log_records(store, run_id, attempt_id) for r in lines]


def test_a_run_commits_its_files_logs_and_provenance(store: Store, run_id: str, tmp_path: Path) -> None:
    with Attempt(store, run_id, work=tmp_path) as attempt:
        attempt.stage("think", 3, "thoughts")
        attempt.write("a/b.txt", b"hello", "text/plain")
        assert read_manifest(store, run_id) is None
    manifest = require_manifest(store, run_id)
    (item,) = manifest["files"]
    assert item["sha256"] == hashlib.sha256(b"hello").hexdigest()
    assert item["key"] == attempt_key(run_id, attempt.attempt_id, "files", "a/b.txt")
    assert manifest["provenance"]["versions"]["numpy"]
    assert len(manifest["provenance"]["code_sha256"]) == 64
    assert run_state(store, run_id)["state"] == "committed"
    assert records(store, run_id, attempt.attempt_id) == ["think (3 thoughts)", f"committed {run_id}"]
    for chunk in manifest["logs"]:
        assert hashlib.sha256(store.get(chunk["key"])).hexdigest() == chunk["sha256"]
    pull_files(store, manifest, tmp_path / "out")
    assert (tmp_path / "out" / "a" / "b.txt").read_bytes() == b"hello"


@pytest.mark.parametrize(
    ("error", "state", "exit_code"),
    [
        (DataError("prices must be > 0"), "failed", 3),
        (ArtifactError("truncated"), "failed", 4),
        (ZeroDivisionError("division by zero"), "failed", 1),
        (Stopped(2), "cancelled", 130),
        (Stopped(15), "terminated", 143),
    ],
)
def test_an_attempt_that_fails_leaves_state_reason_and_manifest_but_no_commit(
    store: Store, run_id: str, tmp_path: Path, error: BaseException, state: str, exit_code: int
) -> None:
    attempt = Attempt(store, run_id, work=tmp_path)
    with pytest.raises(type(error)), attempt:  # noqa: PT012 - the block is what is tested
        attempt.write("half.txt", b"half", "text/plain")
        raise error
    assert read_manifest(store, run_id) is None
    found = run_state(store, run_id)
    assert (found["state"], found["status"]["exit_code"]) == (state, exit_code)
    assert str(error) in found["status"]["reason"]
    manifest = json.loads(store.get(attempt.key("manifest.json")))
    assert (manifest["state"], [f["path"] for f in manifest["files"]]) == (state, ["half.txt"])
    with pytest.raises(ArtifactError, match=f"is not committed: its state is {state}"):
        require_manifest(store, run_id)


def test_of_two_attempts_one_commits(store: Store, run_id: str, tmp_path: Path) -> None:
    with Attempt(store, run_id, work=tmp_path / "one") as first:
        first.write("x", b"1", "text/plain")
        late = Attempt(store, run_id, work=tmp_path / "two").__enter__()
        late.write("x", b"2", "text/plain")
    late.__exit__(None, None, None)  # no error: the run is done
    assert require_manifest(store, run_id)["attempt_id"] == first.attempt_id
    status = json.loads(store.get(attempt_key(run_id, late.attempt_id, "status.json")))
    assert (status["state"], status["reason"]) == ("failed", "another attempt committed the run first")


def test_many_attempts_race_to_commit_and_one_wins(store: Store, run_id: str) -> None:
    outcomes: list[str] = []

    def race(name: str) -> None:
        manifest = canonical_json({"files": [], "derived": [], "attempt_id": name})
        store.put_once(attempt_key(run_id, name, "manifest.json"), manifest)
        try:
            commit_run(store, run_id, name, manifest)
            outcomes.append(name)
        except ConflictError:
            pass

    threads = [threading.Thread(target=race, args=(f"a{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [require_manifest(store, run_id)["attempt_id"]] == outcomes


def test_this_machine_does_a_run_once_at_a_time(store: Store, run_id: str, tmp_path: Path) -> None:
    with (
        Attempt(store, run_id, work=tmp_path),
        pytest.raises(TryAgainError, match="another process on this machine is at run"),
        Attempt(store, run_id, work=tmp_path),
    ):
        pass


def test_a_resumed_attempt_refers_to_what_the_killed_one_stored(store_url: str, run_id: str, tmp_path: Path) -> None:
    open_store(store_url).put("profile.json", b'{"part_mib": 5}')
    store, data = open_store(store_url), bytes(range(256)) * (12 << 12)  # 12 MiB: three parts
    killed = Attempt(store, run_id, work=tmp_path)
    killed.work.mkdir(parents=True)
    killed.upload("big.bin", BytesSource(data), "application/octet-stream")
    killed.write("metadata.json", b'{"timing": 1}', "application/json")
    with Attempt(store, run_id, work=tmp_path) as attempt:
        attempt.upload("big.bin", BytesSource(data), "application/octet-stream")
        attempt.write("metadata.json", b'{"timing": 2}', "application/json")
    big, metadata = require_manifest(store, run_id)["files"]
    assert big["key"] == attempt_key(run_id, killed.attempt_id, "files", "big.bin")
    assert store.head(attempt_key(run_id, attempt.attempt_id, "files", "big.bin")) is None
    assert store.get(metadata["key"]) == b'{"timing": 2}'
    pull_files(store, require_manifest(store, run_id), tmp_path / "out")
    assert (tmp_path / "out" / "big.bin").read_bytes() == data


def test_a_changed_manifest_is_not_believed(store: Store, run_id: str, tmp_path: Path) -> None:
    with Attempt(store, run_id, work=tmp_path) as attempt:
        pass
    key = attempt.key("manifest.json")
    store.put(key, store.get(key).replace(b'"committed"', b'"c0mmitted"'))
    with pytest.raises(ArtifactError, match=r"sha256 of runs/.*/manifest.json must be [0-9a-f]{64}, got"):
        read_manifest(store, run_id)


@pytest.mark.parametrize("path", ["../outside", "/etc/outside", "a/../../outside"])
def test_a_manifest_that_points_outside_the_run_is_refused(store: Store, run_id: str, path: str) -> None:
    manifest = canonical_json({"files": [{"path": path}], "derived": []})
    store.put_once(attempt_key(run_id, "a", "manifest.json"), manifest)
    commit_run(store, run_id, "a", manifest)
    with pytest.raises(ArtifactError, match="a manifest's paths stay inside the run, got"):
        read_manifest(store, run_id)


def test_an_attempt_that_was_given_up_cannot_commit_any_more(store: Store, run_id: str, tmp_path: Path) -> None:
    attempt = Attempt(store, run_id, work=tmp_path).__enter__()
    log.info("a line that was stored")
    attempt._flush_logs()
    assert end_attempt(store, run_id, attempt.attempt_id, "infra_lost", "no word for 3 minutes") == "infra_lost"
    manifest = json.loads(store.get(attempt_key(run_id, attempt.attempt_id, "manifest.json")))
    assert (manifest["state"], len(manifest["logs"])) == ("infra_lost", 1)
    with pytest.raises(ConflictError, match=r"was given up as infra_lost .no word for 3 minutes.: it cannot commit"):
        attempt.__exit__(None, None, None)
    assert run_state(store, run_id)["state"] == "infra_lost"
    assert read_manifest(store, run_id) is None


def test_an_attempt_that_ended_keeps_its_state(store: Store, run_id: str, tmp_path: Path) -> None:
    with Attempt(store, run_id, work=tmp_path) as attempt:
        pass
    assert end_attempt(store, run_id, attempt.attempt_id, "infra_lost", "gone") == "committed"
    assert run_state(store, run_id)["state"] == "committed"


def test_an_attempt_that_failed_but_died_before_its_status_keeps_its_reason(
    store: Store, run_id: str, tmp_path: Path
) -> None:
    """Exit 3 must not turn into a loss that is retried."""
    with pytest.raises(DataError), Attempt(store, run_id, work=tmp_path) as attempt:
        raise DataError("prices must be > 0")
    store.put(attempt_key(run_id, attempt.attempt_id, "status.json"), canonical_json({"state": "running"}))
    assert end_attempt(store, run_id, attempt.attempt_id, "infra_lost", "gone") == "failed"
    status = run_state(store, run_id)["status"]
    assert (status["exit_code"], status["reason"]) == (3, "prices must be > 0")


def test_an_attempt_killed_between_commit_and_status_is_committed(store: Store, run_id: str, tmp_path: Path) -> None:
    with Attempt(store, run_id, work=tmp_path) as attempt:
        pass
    store.put(attempt_key(run_id, attempt.attempt_id, "status.json"), canonical_json({"state": "running"}))
    assert end_attempt(store, run_id, attempt.attempt_id, "infra_lost", "gone") == "committed"


def test_a_cancel_note_in_the_store_stops_the_job(
    store: Store, run_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOOLA_BEAT_S", "0.05")

    def cancelled_job() -> None:
        with stop_on_signals(), Attempt(store, run_id, work=tmp_path) as attempt:
            store.put(attempt_key(run_id, attempt.attempt_id, "cancel.json"), b"{}")
            time.sleep(30)

    with pytest.raises(Stopped):
        cancelled_job()
    assert run_state(store, run_id)["state"] == "cancelled"


def test_the_run_id_follows_from_spec_inputs_and_code_alone(tmp_path: Path) -> None:
    path = tmp_path / "bars.parquet"
    path.write_bytes(b"bars")
    item = describe_input(path)
    run_id, document = describe_run("precompute", {"a": 1}, {"bars": item})
    renamed = {**item, "name": "other.parquet", "key": "inputs/x/other.parquet"}
    assert describe_run("precompute", {"a": 1}, {"bars": renamed})[0] == run_id
    others = [
        describe_run("precompute", {"a": 2}, {"bars": item})[0],
        describe_run("precompute", {"a": 1}, {"bars": {**item, "sha256": "0" * 64}})[0],
        describe_run("precompute", {"a": 1}, {"bars": item}, force=True)[0],
    ]
    assert len({run_id, *others}) == 4
    assert str(tmp_path) not in json.dumps(document)


def test_an_input_is_stored_once_and_read_back_verified(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "bars.parquet"
    path.write_bytes(b"bars" * 1000)
    item = describe_input(path)
    put_input(store, path, item)
    put_input(store, path, item)
    assert pull_input(store, item, tmp_path / "work").read_bytes() == path.read_bytes()
    pull_input(store, item, tmp_path / "work").write_bytes(b"barz" * 1000)  # the local copy was changed
    assert pull_input(store, item, tmp_path / "work").read_bytes() == path.read_bytes()
    store.put(item["key"], b"barz" * 1000)
    with pytest.raises(ArtifactError, match=r"sha256.*; delete it from the store, and the same command"):
        pull_input(store, item, tmp_path / "work2")


def test_a_run_is_found_by_the_start_of_its_id(store: Store) -> None:
    for run_id in ("precompute-abc1", "precompute-abd2"):
        submit(store, run_id, {})
    assert find_run(store, "precompute-abd") == "precompute-abd2"
    assert find_run(store, "precompute-abc1") == "precompute-abc1"
    submit(store, "precompute-abe3", {"job": "precompute"})
    assert find_run(store, "precompute-abe", "precompute") == "precompute-abe3"
    with pytest.raises(DataError, match="RUN must be a train run, got precompute-abe3"):
        find_run(store, "precompute-abe3", "train")
    for name in ("precompute-ab", "nothing", "", "precompute-abc1/"):
        with pytest.raises(DataError, match="RUN must be a run's id or the start of exactly one"):
            find_run(store, name)


def test_a_missing_spec_is_an_artifact_error(store: Store) -> None:
    with pytest.raises(ArtifactError, match=r"spec\.json"):
        store.get(run_key("precompute-none", "spec.json"))


def test_a_running_attempt_that_is_not_heard_of_is_silent(store: Store, run_id: str) -> None:
    for seconds, silent in ((1, False), (SILENT_S + 1, True)):
        said = {"state": "running", "time": (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()}
        store.put(attempt_key(run_id, "a1", "status.json"), canonical_json(said))
        assert is_silent(run_state(store, run_id)) is silent


@pytest.mark.parametrize("damage", [b"", b"{", b"[]"])
def test_damaged_records_of_a_run_are_named(store: Store, run_id: str, tmp_path: Path, damage: bytes) -> None:
    with Attempt(store, run_id, work=tmp_path) as attempt:
        log.info("a line")
    chunk = attempt_key(run_id, attempt.attempt_id, "logs", "00000001.jsonl")
    store.put(chunk, b'{"seq": 1, "mess')
    with pytest.raises(ArtifactError, match=r"00000001\.jsonl must hold lines of JSON"):
        list(log_records(store, run_id, attempt.attempt_id))
    store.put(run_key(run_id, "COMMIT.json"), damage)
    with pytest.raises(ArtifactError, match=r"COMMIT\.json must be"):
        run_state(store, run_id)
