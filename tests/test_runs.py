"""The run protocol on both stores.

One commit point, failures that leave a record, readers that trust nothing.
"""

import json
import logging
import os
import resource
import signal
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moola.errors import ArtifactError, ConflictError, DataError, TryAgainError
from moola.runs import logs
from moola.runs.attempt import COMMITTED, Attempt, commit_run, end_attempt, manifest_json
from moola.runs.protocol import attempt_key, canonical_json, now_text, run_key
from moola.runs.provenance import process_provenance
from moola.runs.reading import (
    SILENT_S,
    find_run,
    log_records,
    newest_checkpoint,
    pull_files,
    read_manifest,
    read_status,
    require_manifest,
    run_state,
)
from moola.runs.signals import Stopped, held_signals, stop_on_signals
from moola.runs.submit import describe_input, describe_run, pull_input, put_input
from moola.runs.survey import newest_run
from moola.runs.usage import usage
from moola.store import BytesSource, Dated, Store, open_store
from tests.runs import attempt_id, sha256, submitted_run

log = logging.getLogger("moola")
log.setLevel(logging.INFO)


def records(store: Store, run_id: str, attempt_id: str) -> list[str]:
    chunks = log_records(store, run_id, attempt_id)
    return [line.message for _, lines in chunks for line in lines]


def test_a_run_commits_its_files_logs_and_provenance(
    store: Store, run_id: str, tmp_path: Path
) -> None:
    with Attempt(store, run_id, work=tmp_path) as attempt:
        attempt.stage("think", 3, "thoughts")
        attempt.write("a/b.txt", b"hello", "text/plain")
        assert read_manifest(store, run_id) is None
    manifest = require_manifest(store, run_id)
    (item,) = manifest.files
    assert item.sha256 == sha256(b"hello")
    assert item.key == attempt_key(run_id, attempt.attempt_id, "files", "a/b.txt")
    provenance: dict[str, Any] = manifest.provenance
    assert provenance["versions"]["numpy"]
    assert len(provenance["code_sha256"]) == 64
    assert run_state(store, run_id).state == "committed"
    assert records(store, run_id, attempt.attempt_id) == [
        "think (3 thoughts)",
        f"committed {run_id}",
    ]
    for chunk in manifest.logs:
        assert sha256(store.get(chunk.key)) == chunk.sha256
    pull_files(store, manifest, tmp_path / "out")
    assert (tmp_path / "out" / "a" / "b.txt").read_bytes() == b"hello"


@pytest.mark.parametrize(
    ("error", "state", "exit_code"),
    [
        (DataError("prices must be > 0"), "failed", 3),
        (ArtifactError("truncated"), "failed", 4),
        (ZeroDivisionError("division by zero"), "failed", 70),
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
    run = run_state(store, run_id)
    assert (run.state, run.status and run.status.exit_code) == (state, exit_code)
    assert str(error) in run.reason
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
    assert require_manifest(store, run_id).attempt_id == first.attempt_id
    status = json.loads(store.get(attempt_key(run_id, late.attempt_id, "status.json")))
    assert (status["state"], status["reason"]) == (
        "failed",
        "another attempt committed the run first",
    )


def test_many_attempts_race_to_commit_and_one_wins(store: Store, run_id: str) -> None:
    outcomes: list[str] = []

    def race(name: str) -> None:
        manifest = manifest_json(run_id, name, COMMITTED, provenance={}, logs=[])
        store.put_once(attempt_key(run_id, name, "manifest.json"), manifest)
        try:
            commit_run(store, run_id, name, manifest)
            outcomes.append(name)
        except ConflictError:
            pass

    threads = [threading.Thread(target=race, args=(attempt_id(i),)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [require_manifest(store, run_id).attempt_id] == outcomes


def test_this_machine_does_a_run_once_at_a_time(store: Store, run_id: str, tmp_path: Path) -> None:
    with (
        Attempt(store, run_id, work=tmp_path),
        pytest.raises(TryAgainError, match="another process on this machine is at run"),
        Attempt(store, run_id, work=tmp_path),
    ):
        pass


def test_a_resumed_attempt_refers_to_what_the_killed_one_stored(
    store_url: str, run_id: str, tmp_path: Path
) -> None:
    open_store(store_url).put("profile.json", b'{"part_mib": 5}')
    store, data = open_store(store_url), bytes(range(256)) * (12 << 12)  # 12 MiB: three parts
    killed = Attempt(store, run_id, work=tmp_path)
    killed.work.mkdir(parents=True)
    killed.upload("big.bin", BytesSource(data), "application/octet-stream")
    killed.write("metadata.json", b'{"timing": 1}', "application/json")
    with Attempt(store, run_id, work=tmp_path) as attempt:
        attempt.upload("big.bin", BytesSource(data), "application/octet-stream")
        attempt.write("metadata.json", b'{"timing": 2}', "application/json")
    big, metadata = require_manifest(store, run_id).files
    assert big.key == attempt_key(run_id, killed.attempt_id, "files", "big.bin")
    assert store.head(attempt_key(run_id, attempt.attempt_id, "files", "big.bin")) is None
    assert store.get(metadata.key) == b'{"timing": 2}'
    pull_files(store, require_manifest(store, run_id), tmp_path / "out")
    assert (tmp_path / "out" / "big.bin").read_bytes() == data


def test_a_changed_manifest_is_not_believed(store: Store, run_id: str, tmp_path: Path) -> None:
    with Attempt(store, run_id, work=tmp_path) as attempt:
        pass
    key = attempt.key("manifest.json")
    store.put(key, store.get(key).replace(b'"committed"', b'"c0mmitted"'))
    with pytest.raises(
        ArtifactError, match=r"sha256 of runs/.*/manifest.json must be [0-9a-f]{64}, got"
    ):
        read_manifest(store, run_id)


PATHS_OUTSIDE = ["../outside", "/etc/outside", "a/../../outside", "a//b", "a/.", "c:\\x", "nul"]


@pytest.mark.parametrize("path", PATHS_OUTSIDE)
def test_a_manifest_that_points_outside_the_run_is_refused(
    store: Store, run_id: str, path: str
) -> None:
    attempt = attempt_id(1)
    key = attempt_key(run_id, attempt, "files", path)
    file = {"path": path, "key": key, "size": 1, "sha256": "0" * 64}
    npy = {"dtype": "float32", "shape": [1]}
    derived = {"path": path, "size": 1, "sha256": "0" * 64, "rule": "x", "npy": npy}
    plain = json.loads(manifest_json(run_id, attempt, COMMITTED, provenance={}, logs=[]))

    for change in ({"files": [file]}, {"derived": [derived]}):
        manifest = canonical_json({**plain, **change})
        store.put(attempt_key(run_id, attempt, "manifest.json"), manifest)
        store.delete(run_key(run_id, "COMMIT.json"))
        commit_run(store, run_id, attempt, manifest)
        with pytest.raises(ArtifactError, match=r"manifest\.json in .* is damaged: .*path"):
            read_manifest(store, run_id)


def test_an_attempt_that_was_given_up_cannot_commit_any_more(
    store: Store, run_id: str, tmp_path: Path
) -> None:
    attempt = Attempt(store, run_id, work=tmp_path).__enter__()
    log.info("a line that was stored")
    attempt.log_chunks.write()
    assert (
        end_attempt(store, run_id, attempt.attempt_id, "infra_lost", "no word for 3 minutes")
        == "infra_lost"
    )
    manifest = json.loads(store.get(attempt_key(run_id, attempt.attempt_id, "manifest.json")))
    assert (manifest["state"], len(manifest["logs"])) == ("infra_lost", 1)
    with pytest.raises(
        ConflictError, match=r"was given up as infra_lost .no word for 3 minutes.: it cannot commit"
    ):
        attempt.__exit__(None, None, None)
    assert run_state(store, run_id).state == "infra_lost"
    assert read_manifest(store, run_id) is None


def test_an_attempt_that_ended_keeps_its_state(store: Store, run_id: str, tmp_path: Path) -> None:
    with Attempt(store, run_id, work=tmp_path) as attempt:
        pass
    assert end_attempt(store, run_id, attempt.attempt_id, "infra_lost", "gone") == "committed"
    assert run_state(store, run_id).state == "committed"


def test_an_attempt_that_failed_but_died_before_its_status_keeps_its_reason(
    store: Store, run_id: str, tmp_path: Path
) -> None:
    """Exit 3 must not turn into a loss that is retried."""
    with pytest.raises(DataError), Attempt(store, run_id, work=tmp_path) as attempt:
        raise DataError("prices must be > 0")
    store.put(
        attempt_key(run_id, attempt.attempt_id, "status.json"),
        canonical_json({"state": "running", "time": now_text()}),
    )
    assert end_attempt(store, run_id, attempt.attempt_id, "infra_lost", "gone") == "failed"
    run = run_state(store, run_id)
    assert (run.status and run.status.exit_code, run.reason) == (3, "prices must be > 0")


def test_an_attempt_killed_between_commit_and_status_is_committed(
    store: Store, run_id: str, tmp_path: Path
) -> None:
    with Attempt(store, run_id, work=tmp_path) as attempt:
        pass
    store.put(
        attempt_key(run_id, attempt.attempt_id, "status.json"),
        canonical_json({"state": "running", "time": now_text()}),
    )
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
    assert run_state(store, run_id).state == "cancelled"


def test_the_run_id_follows_from_spec_inputs_and_code_alone(tmp_path: Path) -> None:
    path = tmp_path / "bars.parquet"
    path.write_bytes(b"bars")
    item = describe_input(path)
    run_id, document = describe_run("precompute", {"a": 1}, {"bars": item})
    renamed = describe_input(path.rename(path.with_name("other.parquet")))
    assert describe_run("precompute", {"a": 1}, {"bars": renamed})[0] == run_id
    renamed_path = tmp_path / "other.parquet"
    renamed_path.write_bytes(b"barz")
    other_bytes = describe_input(renamed_path)
    others = [
        describe_run("precompute", {"a": 2}, {"bars": item})[0],
        describe_run("precompute", {"a": 1}, {"bars": other_bytes})[0],
        describe_run("precompute", {"a": 1}, {"bars": item}, force=True)[0],
    ]
    assert len({run_id, *others}) == 4
    assert str(tmp_path) not in document.to_json().decode()


def test_an_input_is_stored_once_and_read_back_verified(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "bars.parquet"
    path.write_bytes(b"bars" * 1000)
    item = describe_input(path)
    put_input(store, path, item)
    put_input(store, path, item)
    assert pull_input(store, item, tmp_path / "work").read_bytes() == path.read_bytes()
    pull_input(store, item, tmp_path / "work").write_bytes(
        b"barz" * 1000
    )  # the local copy was changed
    assert pull_input(store, item, tmp_path / "work").read_bytes() == path.read_bytes()
    store.put(item.key, b"barz" * 1000)
    with pytest.raises(
        ArtifactError, match=r"sha256.*; delete it from the store, and the same command"
    ):
        pull_input(store, item, tmp_path / "work2")


def test_a_run_is_found_by_the_start_of_its_id(store: Store) -> None:
    first, second = (submitted_run(store, number=number) for number in (1, 2))
    assert first[:13] != second[:13]
    assert find_run(store, first[:13]) == first
    assert find_run(store, second) == second
    assert find_run(store, second[:13], "precompute") == second
    with pytest.raises(DataError, match=f"RUN must be a train run, got {first}"):
        find_run(store, first, "train")
    for name in ("precompute-", "nothing", "", f"{first}/"):
        with pytest.raises(DataError, match="RUN must be a run's id or the start of exactly one"):
            find_run(store, name)


def test_a_missing_spec_is_an_artifact_error(store: Store) -> None:
    with pytest.raises(ArtifactError, match=r"spec\.json"):
        store.get(run_key("precompute-none", "spec.json"))


def test_a_running_attempt_that_is_not_heard_of_is_silent(
    store: Store, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the store's clock: what stands in a record is of another one."""
    get_dated = store.get_dated
    status = {"state": "running", "time": "2099-01-01T00:00:00+00:00"}  # of a clock that is wrong
    store.put(attempt_key(run_id, attempt_id(1), "status.json"), canonical_json(status))

    for seconds, silent in ((0, False), (SILENT_S + 5, True)):

        def get_later(key: str, seconds: float = seconds) -> Dated | None:
            dated = get_dated(key)
            if dated is None or dated.now_s is None:
                return dated
            return replace(dated, now_s=dated.now_s + seconds)

        monkeypatch.setattr(store, "get_dated", get_later)
        assert run_state(store, run_id).is_silent is silent


@pytest.mark.parametrize("damage", [b"", b"{", b"[]"])
def test_damaged_records_of_a_run_are_named(
    store: Store, run_id: str, tmp_path: Path, damage: bytes
) -> None:
    with Attempt(store, run_id, work=tmp_path) as attempt:
        log.info("a line")
    chunk = attempt_key(run_id, attempt.attempt_id, "logs", "00000001.jsonl")
    store.put(chunk, b'{"seq": 1, "mess')
    with pytest.raises(ArtifactError, match=r"line 1 of runs/.*00000001\.jsonl in .* is damaged"):
        list(log_records(store, run_id, attempt.attempt_id))
    store.put(run_key(run_id, "COMMIT.json"), damage)
    with pytest.raises(ArtifactError, match=r"COMMIT\.json in .* is damaged"):
        run_state(store, run_id)


def test_a_log_chunk_that_could_not_be_written_is_written_again(
    store: Store, run_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader stops at the first chunk that is missing: its number must not be passed over."""
    monkeypatch.setenv("MOOLA_BEAT_S", "3600")
    put_once = store.put_once

    def unreachable(key: str, _data: bytes) -> None:
        raise TryAgainError(f"no answer ({key})")

    with Attempt(store, run_id, work=tmp_path) as attempt:
        log.info("first")
        monkeypatch.setattr(store, "put_once", unreachable)
        with pytest.raises(TryAgainError):
            attempt.log_chunks.write()
        log.info("second")
        monkeypatch.setattr(store, "put_once", put_once)
        attempt.log_chunks.write()
        assert records(store, run_id, attempt.attempt_id) == ["first", "second"]

    entries = require_manifest(store, run_id).logs
    assert [entry.key[-14:] for entry in entries] == ["00000001.jsonl", "00000002.jsonl"]


def test_a_log_that_grows_as_fast_as_it_is_written_keeps_no_heartbeat_waiting(
    store: Store, run_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOOLA_BEAT_S", "3600")
    put_once = store.put_once
    n_lines = 1

    def slowly(key: str, data: bytes) -> None:
        nonlocal n_lines
        assert n_lines < 3, "a beat writes on and on"
        n_lines += 1
        log.info("line %d", n_lines)
        put_once(key, data)

    with Attempt(store, run_id, work=tmp_path) as attempt:
        log.info("line 1")
        monkeypatch.setattr(store, "put_once", slowly)
        for _ in range(2):
            attempt.log_chunks.write()
        monkeypatch.setattr(store, "put_once", put_once)
        assert records(store, run_id, attempt.attempt_id) == ["line 1", "line 2"]
    assert records(store, run_id, attempt.attempt_id)[:3] == ["line 1", "line 2", "line 3"]


def test_a_long_log_is_cut_into_chunks_that_can_be_read(
    store: Store, run_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOOLA_BEAT_S", "3600")
    monkeypatch.setattr(logs, "MAX_CHUNK_BYTES", 500)
    lines = [f"line {number} {'x' * (number % 90)}" for number in range(100)]
    with Attempt(store, run_id, work=tmp_path) as attempt:
        for line in lines:
            log.info(line)

    assert records(store, run_id, attempt.attempt_id)[:100] == lines
    sizes = [entry.size for entry in require_manifest(store, run_id).logs]
    assert max(sizes) <= 500
    assert len(sizes) > 20


def test_the_heartbeat_shows_the_stage_and_how_far_it_is(
    store: Store, run_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOOLA_BEAT_S", "0.02")
    with Attempt(store, run_id, work=tmp_path) as attempt:
        attempt.stage("upload", 100, "bytes")
        attempt.advance(30)
        attempt.advance(12)
        deadline = time.monotonic() + 30
        while (beat := run_state(store, run_id).heartbeat) is None or beat.done != 42:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    beat = run_state(store, run_id).heartbeat
    assert beat is not None
    assert (beat.stage, beat.total, beat.unit) == ("upload", 100, "bytes")
    assert beat.last_log_sequence == 1


def test_the_newest_run_is_the_one_committed_last(store: Store, tmp_path: Path) -> None:
    runs = [
        submitted_run(store, job, n=n)
        for n, job in enumerate(("precompute", "precompute", "train"))
    ]
    for number, run_id in enumerate(runs):
        with Attempt(store, run_id, attempt_id=attempt_id(number), work=tmp_path):
            pass
    failed = submitted_run(store, n=4)
    with pytest.raises(DataError), Attempt(store, failed, work=tmp_path):
        raise DataError("not committed")
    assert newest_run(store, "precompute") == runs[1]
    assert newest_run(store, "train") == runs[2]
    assert newest_run(store, "other") is None


def test_the_newest_checkpoint_is_the_furthest_that_is_whole(
    store: Store, run_id: str, tmp_path: Path
) -> None:
    assert newest_checkpoint(store, run_id) is None
    for number, steps in enumerate([(9, 10), (2, 11, 12, 13)]):
        attempt = Attempt(store, run_id, attempt_id=attempt_id(number), work=tmp_path)
        for step in steps:
            attempt.checkpoint(step, {"state": b"%d" % step, "more": b""})

    folder = attempt_key(run_id, attempt_id(1), "checkpoints")
    store.delete(f"{folder}/000000013/manifest.json")
    store.put(f"{folder}/000000012/state", b"13")
    store.delete(f"{folder}/000000011/more")
    assert newest_checkpoint(store, run_id) == (10, {"state": b"10", "more": b""})


@pytest.mark.parametrize("place", ["_write_status", "_heartbeat.start"])
def test_a_signal_while_an_attempt_begins_leaves_its_end(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Between the first status, which others see, and the job's own work."""
    run_id = submitted_run(store)
    attempt = Attempt(store, run_id, work=tmp_path)
    held, _, name = place.rpartition(".")
    owner = attempt._heartbeat if held else attempt
    begin = getattr(owner, name)

    def interrupted(*arguments: object) -> None:
        begin(*arguments)
        monkeypatch.undo()
        raise Stopped(signal.SIGTERM)

    monkeypatch.setattr(owner, name, interrupted)
    with pytest.raises(Stopped), attempt:
        raise AssertionError("the block is not entered")
    status = read_status(store, run_id, attempt.attempt_id)
    assert status is not None
    assert (status.state, status.exit_code) == ("terminated", 143)
    with Attempt(store, run_id, work=tmp_path):  # the lock is free
        pass


def test_signals_that_are_held_stop_the_job_at_the_end_of_the_block() -> None:
    reached = []

    def work() -> None:
        with held_signals() as first_signal:
            assert first_signal() is None
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
            reached.append(first_signal())

    with pytest.raises(Stopped, match="SIGTERM") as caught, stop_on_signals():
        work()
    assert reached == [signal.SIGTERM]
    assert (caught.value.state, caught.value.exit_code) == ("terminated", 143)


def test_a_second_signal_does_not_cut_the_clean_up_short() -> None:
    before = signal.getsignal(signal.SIGTERM)
    cleaned_up = []

    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(30)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            cleaned_up.append(True)

    with pytest.raises(Stopped, match="SIGINT"), stop_on_signals():
        work()
    assert cleaned_up
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_commit_of_the_code_is_the_image_s_or_the_checkout_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOOLA_GIT_SHA", "0123abc")
    monkeypatch.setenv("MOOLA_IMAGE_DIGEST", "sha256:45")
    made_by = process_provenance()
    assert (made_by["git_sha"], made_by["git_dirty"]) == ("0123abc", False)
    assert made_by["image_digest"] == "sha256:45"

    monkeypatch.delenv("MOOLA_GIT_SHA")
    monkeypatch.setattr("moola.__file__", str(tmp_path / "__init__.py"))
    assert process_provenance()["git_sha"] is None

    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run([*git, *command], check=True)
    made_by: dict[str, Any] = process_provenance()
    assert len(made_by["git_sha"]) == 40
    assert made_by["git_dirty"] is False
    (tmp_path / "changed").touch()
    assert process_provenance()["git_dirty"] is True


V2 = {"memory.current": "1500000000\n", "memory.max": "2000000000\n"}
V1 = {"memory/memory.usage_in_bytes": "1500000000", "memory/memory.limit_in_bytes": "2000000000"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (V2, {"memory_mb": 1500.0, "memory_limit_mb": 2000.0}),
        (V1, {"memory_mb": 1500.0, "memory_limit_mb": 2000.0}),
        ({**V2, "memory.max": "max\n"}, {"memory_mb": 1500.0}),
        (
            {**V1, "memory/memory.limit_in_bytes": "9223372036854771712"},
            {"memory_mb": 1500.0},
        ),
        ({"statm": "900 500 7\n"}, {"memory_mb": 500 * resource.getpagesize() / 1e6}),
        ({}, {}),
    ],
    ids=["v2", "v1", "no limit in v2", "no limit in v1", "this process", "nothing"],
)
def test_memory_is_read_from_either_kind_of_cgroup(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: dict[str, str],
    expected: dict[str, float],
) -> None:
    monkeypatch.setattr("moola.runs.usage.CGROUP", tmp_path)
    monkeypatch.setattr("moola.runs.usage.STATM", tmp_path / "statm")
    monkeypatch.setenv("PATH", str(tmp_path))
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert usage().fields() == {name: round(mb, 1) for name, mb in expected.items()}


def test_the_use_of_gpus_is_what_the_driver_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moola.runs.usage.CGROUP", tmp_path)
    monkeypatch.setattr("moola.runs.usage.STATM", tmp_path / "statm")
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho '25, 1000'\necho '100, 0'\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert usage().fields()["gpus"] == [
        {"use": 0.25, "memory_mb": 1048.6},
        {"use": 1.0, "memory_mb": 0.0},
    ]
    driver.write_text("#!/bin/sh\necho 'no devices were found'\nexit 6\n")
    assert usage().gpus == ()
