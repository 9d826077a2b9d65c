"""Names of the run protocol: keys in the store, states, and the JSON that is digested.

inputs/<sha256>/<name>                          content-addressed, uploaded once
runs/<run_id>/spec.json                         the resolved spec, write-once
runs/<run_id>/about.json                        name and tags, for people (moola.runs.about)
runs/<run_id>/launches/<n>.json                 write-once: who may rent (moola.runs.launches)
runs/<run_id>/attempts/<attempt_id>/
    status.json, heartbeat.json                 replaced as the attempt goes on
    logs/<n>.jsonl, files/<path>                write-once
    checkpoints/<step>/<name>                   write-once, each with its own manifest.json
    manifest.json                               write-once, after all files
    cancel.json                                 a note that asks the attempt to stop
    renting.json, pod.json, boots/<n>.json      of an attempt on a rented machine
runs/<run_id>/COMMIT.json                       {attempt, manifest, manifest_sha256}, written last
runs/<run_id>/REMOVED.json                      the run is being removed (moola.runs.removal)
groups/<group_id>/
    group.json                                  write-once: the runs of a sweep (moola.runs.groups)
    ledger/<n>.json                             write-once: its budget (moola.runs.group_ledger)
    notified/<digest>.json                      write-once: word of one of its ends was sent
    REMOVED.json                                it is being removed (moola.runs.group_removal)
studies/<name>/journal/<n>.json                 write-once: a search (moola.launch.search.journal)
"""

import json
import secrets
from datetime import UTC, datetime
from typing import Any

from moola.errors import ArtifactError
from moola.store import Store

Document = dict[str, Any]  # a JSON object of the protocol

SPEC = "spec.json"
ABOUT = "about.json"
REMOVED = "REMOVED.json"
COMMIT = "COMMIT.json"
MANIFEST = "manifest.json"
STATUS = "status.json"
HEARTBEAT = "heartbeat.json"
CANCEL = "cancel.json"

# How an attempt can end, and what happens next.
FINAL_STATES = {
    "committed": "done",
    "failed": "the reason says what to change; never retried by itself, but for exit code 75",
    "cancelled": "it was asked for",
    "terminated": "SIGTERM from outside, as when a machine is taken away: retried as `preempted`",
    "timed_out": "max_runtime or max_spend was reached; raise it and launch again",
    "infra_lost": "the machine or the process disappeared without a status; retried",
    "stalled": "no heartbeat any more; the machine is ended; retried",
    "crash_loop": "the container was started a second time; the machine is ended; look at the log",
    "no_capacity": "nothing free in time; retried",
    "launch_failed": "the provider refused; the reason says what to change",
}


def run_key(run_id: str, *parts: str) -> str:
    return "/".join(("runs", run_id, *parts))


def attempt_key(run_id: str, attempt_id: str, *parts: str) -> str:
    return run_key(run_id, "attempts", attempt_id, *parts)


def log_key(run_id: str, attempt_id: str, chunk: int) -> str:
    return attempt_key(run_id, attempt_id, "logs", f"{chunk:08d}.jsonl")


def checkpoint_key(
    run_id: str,
    attempt_id: str,
    step: int,
    name: str,
) -> str:
    return attempt_key(
        run_id,
        attempt_id,
        "checkpoints",
        f"{step:09d}",
        name,
    )


def attempt_id_now() -> str:
    """Unique, and sorts by time: 20261122T231500Z-9f86d081."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"


def now_text() -> str:
    """This moment, UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def canonical_json(document: object) -> bytes:
    """Sorted keys, no spaces: the same document has the same bytes and the same digest."""
    text = json.dumps(
        document,
        sort_keys=True,
        separators=(",", ":"),
        allow_nan=False,
    )
    return text.encode()


def read_json(store: Store, key: str) -> Document:
    """A JSON object. Raises ArtifactError if it is missing or not a JSON object."""
    return _parse(store, key, store.get(key))


def read_json_or_none(store: Store, key: str) -> Document | None:
    """A JSON object; None if it is missing. Raises ArtifactError if it is not a JSON object."""
    data = store.get_or_none(key)
    return None if data is None else _parse(store, key, data)


def _parse(store: Store, key: str, data: bytes) -> Document:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{key} must be JSON: {error} ({store.url})") from error

    if not isinstance(document, dict):
        raise ArtifactError(
            f"{key} must be a JSON object, got {type(document).__name__} ({store.url})"
        )
    return document
