"""Names of the run protocol: keys in the store, states, and the JSON that is digested.

inputs/<sha256>/<name>                          content-addressed, uploaded once
runs/<run_id>/spec.json                         the resolved spec, write-once
runs/<run_id>/launches/<n>.json                 write-once: who may rent a machine (moola.launches)
runs/<run_id>/attempts/<attempt_id>/status.json, heartbeat.json, logs/<n>.jsonl, files/<path>, manifest.json
                                    cancel.json, renting.json, boots/<n>.json, pod.json
runs/<run_id>/COMMIT.json                       {attempt, manifest, manifest_sha256}, written last
"""

import json
import secrets
from datetime import UTC, datetime
from typing import Any

from moola.errors import ArtifactError
from moola.store import Store

COMMIT, MANIFEST, STATUS, HEARTBEAT, CANCEL = (
    "COMMIT.json",
    "manifest.json",
    "status.json",
    "heartbeat.json",
    "cancel.json",
)

# How an attempt can end, and what happens next.
FINAL_STATES = {
    "committed": "done",
    "failed": "the reason says what to change; never retried by itself, but for exit code 75",
    "cancelled": "it was asked for",
    "terminated": "SIGTERM came from outside, as when a machine is taken away: retried as `preempted`",
    "timed_out": "max_runtime or max_spend was reached; raise it and launch again",
    "infra_lost": "the machine or the process went without a word; retried",
    "stalled": "no heartbeat any more; the machine is ended; retried",
    "crash_loop": "the container was started a second time; the machine is ended; look at the log",
    "no_capacity": "nothing free in time; retried",
    "launch_failed": "the provider refused; the reason says what to change",
}


def run_key(run_id: str, *parts: str) -> str:
    return "/".join(("runs", run_id, *parts))


def attempt_key(run_id: str, attempt_id: str, *parts: str) -> str:
    return run_key(run_id, "attempts", attempt_id, *parts)


def attempt_id_now() -> str:
    """Unique, and sorts by time: 20261122T231500Z-9f86d081."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"


def canonical_json(document: Any) -> bytes:
    """Sorted keys, no spaces: the same document has the same bytes and the same digest."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def now_text() -> str:
    """This moment, UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def read_json(store: Store, key: str) -> dict[str, Any]:
    """A JSON object. Raises ArtifactError if it is missing or is none."""
    return _parse(store, key, store.get(key))


def read_json_or_none(store: Store, key: str) -> dict[str, Any] | None:
    """A JSON object, None if it is missing. Raises ArtifactError if it is no JSON object."""
    data = store.get_or_none(key)
    return None if data is None else _parse(store, key, data)


def _parse(store: Store, key: str, data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except ValueError as error:
        raise ArtifactError(f"{key} must be JSON: {error} ({store.url})") from error
    if not isinstance(document, dict):
        raise ArtifactError(f"{key} must be a JSON object, got {type(document).__name__} ({store.url})")
    return document
