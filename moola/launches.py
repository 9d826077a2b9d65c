"""Launches of a run on rented machines: who may rent, what was rented, what it cost.

Launch n of a run is claimed by writing `launches/<n>.json` once, so that of several launchers one rents a machine. A
machine whose launch is not the newest one ends itself without doing the work: at most one does a run at a time.
"""

import contextlib
import re
import secrets
import time
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any, Self

from moola.errors import ConflictError
from moola.protocol import (
    FINAL_STATES,
    STATUS,
    attempt_id_now,
    attempt_key,
    canonical_json,
    read_json_or_none,
    run_key,
)
from moola.store import Store

POD = "pod.json"
RENTING = "renting.json"  # of a launch: it changes for as long as a launcher looks for a machine
NAME_PREFIX = "moola-"  # of every machine of ours
NAME = re.compile(NAME_PREFIX + r"(?P<run>.+)-a(?P<n>\d+)-[0-9a-f]{4}")


@dataclass(frozen=True)
class Launch:
    """One claim to rent a machine for a run: `launches/<n>.json`."""

    n: int
    run_id: str
    attempt: str
    pod_name: str  # unique: the machine is found by it, whatever happened to the answer that named its id
    time: float  # Unix seconds
    job: str
    image: str  # with its digest
    machine: dict[str, Any]  # MachineConfig as JSON
    retries: int = 0  # launches before this one that it takes the place of, since a person asked

    def key(self, *parts: str) -> str:
        """A key below this launch's attempt."""
        return attempt_key(self.run_id, self.attempt, *parts)

    @classmethod
    def read(cls, store: Store, run_id: str, n: int) -> Self | None:
        """Launch n, None if nobody has claimed it. Fields that a later version added are passed over."""
        document = read_json_or_none(store, _launch_key(run_id, n))
        if document is None:
            return None
        return cls(**{field.name: document[field.name] for field in fields(cls) if field.name in document})


@dataclass(frozen=True)
class Rented:
    """The machine a launch really got: `pod.json` of its attempt. Prices in USD, times in Unix seconds."""

    pod_id: str
    pod_name: str
    provider: str
    kind: str  # cpu or gpu
    type_id: str
    count: int
    cloud: str
    data_center: str | None
    price_per_hour: float
    created: float
    deadline: float


def claim(
    store: Store, run_id: str, n: int, job: str, image: str, machine: dict[str, Any], retries: int = 0
) -> Launch | None:
    """Claim the n-th launch of a run; None if another launcher was first."""
    name = f"{NAME_PREFIX}{run_id}-a{n}-{secrets.token_hex(2)}"
    launch = Launch(n, run_id, attempt_id_now(), name, time.time(), job, image, machine, retries)
    try:
        store.put_once(_launch_key(run_id, n), canonical_json({"schema": 1, **asdict(launch)}))
    except ConflictError:
        return None
    return launch


def newest_launch(store: Store, run_id: str) -> Launch | None:
    """The launch that may have a machine; None if there was none. Looks keys up one by one: readers never list."""
    *_, last = [None, *all_launches(store, run_id)]
    return last


def all_launches(store: Store, run_id: str) -> list[Launch]:
    """Every launch of a run, oldest first."""
    found: list[Launch] = []
    while (launch := Launch.read(store, run_id, len(found) + 1)) is not None:
        found.append(launch)
    return found


def run_of_pod_name(name: str) -> tuple[str, int] | None:
    """(run id, n) from a machine's name; None if it is not one of ours."""
    found = NAME.fullmatch(name)
    return (found["run"], int(found["n"])) if found else None


def record_rented(store: Store, launch: Launch, rented: Rented) -> Rented:
    """Write down what was rented; what another launcher wrote first stands."""
    with contextlib.suppress(ConflictError):
        store.put_once(launch.key(POD), canonical_json({"schema": 1, **asdict(rented)}))
    return read_rented(store, launch) or rented


def read_rented(store: Store, launch: Launch) -> Rented | None:
    """What a launch got; None if nothing is written down."""
    document = read_json_or_none(store, launch.key(POD))
    return None if document is None else Rented(**{f.name: document[f.name] for f in fields(Rented)})


def cost_of(store: Store, launch: Launch, now: float | None = None) -> dict[str, Any]:
    """{"attempt", "state", "type_id", "price_per_hour", "hours", "cost"} of a launch: price x time, until its attempt's
    end or now."""
    rented = read_rented(store, launch)
    status = read_json_or_none(store, launch.key(STATUS)) or {}
    row = {"n": launch.n, "attempt": launch.attempt, "state": status.get("state", "submitted")}
    if rented is None:
        return {**row, "pod_id": None, "type_id": None, "price_per_hour": 0.0, "hours": 0.0, "cost": 0.0}
    ended = datetime.fromisoformat(status["time"]).timestamp() if row["state"] in FINAL_STATES else None
    hours = max((ended or now or time.time()) - rented.created, 0.0) / 3600
    price = rented.price_per_hour
    machine = {"pod_id": rented.pod_id, "type_id": rented.type_id, "price_per_hour": price}
    return {**row, **machine, "hours": round(hours, 6), "cost": round(price * hours, 6)}


def rental(store: Store, run_id: str, attempt_id: str) -> dict[str, Any]:
    """{"rented", "attempts", "cost"} of an attempt on a rented machine and those before it; {} for one that is not."""
    launches = all_launches(store, run_id)
    mine = next((launch for launch in launches if launch.attempt == attempt_id), None)
    if mine is None:
        return {}
    costs = [cost_of(store, launch) for launch in launches if launch.n <= mine.n]
    rented = read_rented(store, mine)
    return {
        "rented": None if rented is None else asdict(rented),
        "attempts": costs,
        "cost": round(sum(row["cost"] for row in costs), 6),
    }


def _launch_key(run_id: str, n: int) -> str:
    return run_key(run_id, "launches", f"{n:08d}.json")
