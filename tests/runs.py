"""Runs in a store as tests need them: submitted, committed, and attempts with ids of their own."""

import hashlib
from pathlib import Path

from pydantic import JsonValue

from moola.runs.attempt import Attempt, Outcome, commit_run, manifest_json, write_status
from moola.runs.protocol import MANIFEST, attempt_key
from moola.runs.reading import run_state
from moola.runs.records import State
from moola.runs.submit import describe_run, submit
from moola.store import Store


def submitted_run(store: Store, job: str = "precompute", **spec: JsonValue) -> str:
    """A run without an attempt; -> its id."""
    run_id, document = describe_run(job, spec or {"windows": "stored"}, {})
    submit(store, run_id, document)
    return run_id


def attempt_id(number: int) -> str:
    """The id of an attempt; a higher number was made later."""
    return f"202601{1 + number // 86_400:02d}T{number % 86_400:06d}Z-{number:08x}"


def committed_run(store: Store, work: Path, job: str = "precompute", **spec: JsonValue) -> str:
    """A run that committed one small file; -> its id."""
    run_id = submitted_run(store, job, **spec)
    with Attempt(store, run_id, work=work) as attempt:
        attempt.write("a/b.txt", b"hello", "text/plain")
    return run_id


def pid_of(store: Store, run_id: str) -> int:
    """The process that is at a run."""
    status = run_state(store, run_id).status
    assert status is not None
    assert status.pid is not None
    return status.pid


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def put_committed(store: Store, number: int, job: str = "precompute") -> str:
    """A committed run as its documents look, in as few requests as they are; -> its id."""
    run_id = submitted_run(store, job, number=number)
    attempt = attempt_id(number)
    outcome = Outcome(State.COMMITTED, 0)
    manifest = manifest_json(run_id, attempt, outcome, provenance={}, logs=[])
    store.put(attempt_key(run_id, attempt, MANIFEST), manifest)
    write_status(store, run_id, attempt, outcome, {})
    for name in ("heartbeat.json", "logs/00000001.jsonl", "files/metadata.json"):
        store.put(attempt_key(run_id, attempt, *name.split("/")), b"{}")
    commit_run(store, run_id, attempt, manifest)
    return run_id
