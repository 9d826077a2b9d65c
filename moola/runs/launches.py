"""Launches of a run on rented machines: who may rent, what was rented, what it cost.

Launch n of a run is claimed by writing `launches/<n>.json` once, so that of several launchers one
rents a machine. A machine whose launch is not the newest ends itself without doing the work: at
most one does a run at a time.

Both records are input like everything in a store: they are read strictly, bound to their run and
number, and decide nothing about money unless they carry a proof (`moola.runs.authority`).
"""

import contextlib
import secrets
import time
from typing import Annotated, Any, Literal, Self, TypedDict

from pydantic import Field, JsonValue, StringConstraints, ValidationError, model_validator

from moola.errors import ArtifactError, ConflictError, DataError
from moola.runs.authority import is_proven, proof_of
from moola.runs.binding import is_attempt_id
from moola.runs.groups import Budget
from moola.runs.pod_names import new_pod_name, parse_pod_name, store_tag
from moola.runs.protocol import (
    HEARTBEAT,
    STATUS,
    attempt_id_now,
    attempt_key,
    canonical_json,
    run_key,
)
from moola.runs.records import (
    AttemptId,
    Record,
    RunId,
    Sha256,
    State,
    Status,
    UnixTime,
    Usd,
    read_record_or_none,
)
from moola.specs import MachineConfig
from moola.store import Store
from moola.text import quoted

POD = "pod.json"
RENTING = "renting.json"  # of a launch: it changes for as long as a launcher looks for a machine
MAX_LAUNCHES = 999  # of a run
SECONDS_PER_HOUR = 3600

LaunchNumber = Annotated[int, Field(ge=1, le=MAX_LAUNCHES)]
Retries = Annotated[int, Field(ge=0, le=MAX_LAUNCHES)]
JobName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
ImageDigest = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,254}@sha256:[0-9a-f]{64}$"),
]
PodName = Annotated[str, StringConstraints(max_length=200)]
Word = Annotated[str, StringConstraints(pattern=r"^[ -~]{1,200}$")]  # of a provider
# It becomes a part of the provider's URLs.
PodId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,99}$")]


class Launch(Record):
    """One claim to rent a machine for a run: `launches/<n>.json`.

    The pod's name is unique: the pod is found by it, whatever happened to the answer with its id.
    """

    n: LaunchNumber
    run_id: RunId
    attempt: AttemptId
    pod_name: PodName
    time: UnixTime
    job: JobName
    image: ImageDigest
    machine: dict[str, JsonValue]  # MachineConfig as JSON
    retries: Retries = 0  # launches before it that it takes the place of, since a person asked
    budget: Budget | None = None  # of the group that it is launched for
    proof: Sha256 | None = None  # that a holder of the account's key has claimed it

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        """The job and the pod's name are those of the run and the launch."""
        if self.job != self.run_id.partition("-")[0]:
            raise ValueError(f"job must be that of {self.run_id}, got {quoted(self.job)}")

        name = parse_pod_name(self.pod_name)
        if name is None or (name.run_id, name.n) != (self.run_id, self.n):
            raise ValueError(
                f"pod_name must be moola-{self.run_id}-a{self.n}-<store>-<4 hex digits>, "
                f"got {quoted(self.pod_name)}"
            )
        return self

    @model_validator(mode="after")
    def _check_machine(self) -> Self:
        """The machine is one, as far as this version knows its fields."""
        try:
            self.machine_config()
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            place = ".".join(map(str, ("machine", *fault["loc"])))
            raise ValueError(f"{place}: {fault['msg']}, got {quoted(fault['input'])}") from None
        except OverflowError as error:
            raise ValueError(f"machine: {error}") from None
        return self

    def machine_config(self) -> MachineConfig:
        """The machine, as far as this version knows its fields."""
        known = MachineConfig.model_fields.keys() & self.machine.keys()
        return MachineConfig.model_validate({name: self.machine[name] for name in known})

    def key(self, *parts: str) -> str:
        """A key below this launch's attempt."""
        return attempt_key(self.run_id, self.attempt, *parts)

    def is_of(self, store: Store) -> bool:
        """Does the pod's name tell that it was launched from this store?

        That of an earlier version tells of no store.
        """
        name = parse_pod_name(self.pod_name)
        return name is not None and name.store_tag == store_tag(store.url)

    def proven(self, store: Store, key: bytes | None) -> bool:
        """Was it claimed, exactly as it stands, in this store by a holder of the key?"""
        return self.is_of(store) and is_proven(self.statement(), self.proof, store.url, key)

    def statement(self) -> dict[str, Any]:
        """What the proof is of: everything but the proof, and but a budget where there is none."""
        left_out = {"proof"} if self.budget is not None else {"proof", "budget"}
        return self.model_dump(mode="json", exclude=left_out)

    @classmethod
    def read(cls, store: Store, run_id: str, n: int) -> Self | None:
        """Launch n, None if nobody has claimed it. Fields of a later version are ignored.

        Raises ArtifactError for a record that is damaged, or of another run or number.
        """
        key = launch_key(run_id, n)
        launch = read_record_or_none(store, key, cls)
        if launch is not None and (launch.run_id, launch.n) != (run_id, n):
            raise ArtifactError(
                f"{key} in {store.url} is damaged: it is launch {launch.n} of {launch.run_id}"
            )
        return launch


class RentedMachine(Record):
    """The machine that a launch got: `pod.json` of its attempt. USD and Unix seconds."""

    pod_id: PodId
    pod_name: PodName
    provider: Word
    kind: Literal["cpu", "gpu"]
    type_id: Word
    count: Annotated[int, Field(ge=0, le=1024)]
    cloud: Word
    data_center: Word | None
    price_per_hour: Usd
    created: UnixTime
    deadline: UnixTime


class LaunchCost(TypedDict):
    """What a launch has cost: price x time, in USD. Without a machine the last fields are 0."""

    n: int
    attempt: str
    state: str
    pod_id: str | None
    type_id: str | None
    price_per_hour: float
    hours: float
    cost: float


# --- claims -----------------------------------------------------------------------------------


def claim(
    store: Store,
    run_id: str,
    n: int,
    job: str,
    image: str,
    machine: dict[str, Any],
    retries: int = 0,
    *,
    budget: Budget | None = None,
    key: bytes | None = None,
) -> Launch | None:
    """Claim the n-th launch of a run, with a proof by `key`; None if another launcher was first.

    Raises DataError as `new_launch` does.
    """
    launch = new_launch(store.url, run_id, n, job, image, machine, retries, budget=budget)
    if key is not None:
        proof = proof_of(launch.statement(), store.url, key)
        launch = launch.model_copy(update={"proof": proof})

    document = {"schema": 1, **launch.statement(), "proof": launch.proof}
    try:
        store.put_once(launch_key(run_id, n), canonical_json(document))
    except ConflictError:
        return None
    return launch


def new_launch(
    store_url: str,
    run_id: str,
    n: int,
    job: str,
    image: str,
    machine: dict[str, Any],
    retries: int = 0,
    *,
    budget: Budget | None = None,
) -> Launch:
    """A launch that nobody has claimed. Raises DataError for one that no reader would accept."""
    try:
        return Launch(
            n=n,
            run_id=run_id,
            attempt=attempt_id_now(),
            pod_name=new_pod_name(run_id, n, store_url, secrets.token_hex(2)),
            time=time.time(),
            job=job,
            image=image,
            machine=machine,
            retries=retries,
            budget=budget,
        )
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        field = ".".join(map(str, fault["loc"])) or "launch"
        raise DataError(
            f"launch {n} of {run_id}: {field}: {fault['msg']}, got {quoted(fault['input'])}"
        ) from None


def newest_launch(store: Store, run_id: str) -> Launch | None:
    """The launch that may have a machine; None if there was none."""
    launches = all_launches(store, run_id)
    return launches[-1] if launches else None


def all_launches(store: Store, run_id: str) -> list[Launch]:
    """Every launch of a run, oldest first. Keys are looked up one by one: readers never list.

    Raises ArtifactError that names the key of one that is damaged.
    """
    launches: list[Launch] = []
    while len(launches) < MAX_LAUNCHES:
        launch = Launch.read(store, run_id, len(launches) + 1)
        if launch is None:
            break
        launches.append(launch)
    return launches


def launch_key(run_id: str, n: int) -> str:
    """Where launch n of a run is recorded."""
    return run_key(run_id, "launches", f"{n:08d}.json")


# --- attempts ---------------------------------------------------------------------------------


def newest_attempt(store: Store, run_id: str) -> str | None:
    """The id of a run's newest attempt; None if there is none.

    Attempts on rented machines are in the order of their launches, whatever the clocks of their
    launchers. Between those and attempts elsewhere the one that was heard of last is the newest,
    by the store's time; a launch under way always is.
    """
    launches = all_launches(store, run_id)
    launched = {launch.attempt for launch in launches}
    names = store.children(run_key(run_id, "attempts"))
    candidates = [name for name in names if is_attempt_id(name) and name not in launched]

    if launches:
        newest = launches[-1]
        if not candidates or not _has_ended(store, newest):
            return newest.attempt
        candidates.append(newest.attempt)

    if len(candidates) <= 1:
        return candidates[0] if candidates else None
    ages_s = {attempt: silent_s(store, run_id, attempt) for attempt in candidates}
    return min(candidates, key=lambda attempt: ages_s[attempt])


def _has_ended(store: Store, launch: Launch) -> bool:
    status = read_record_or_none(store, launch.key(STATUS), Status)
    return status is not None and status.state.is_final


def silent_s(store: Store, run_id: str, attempt_id: str) -> float:
    """Seconds since an attempt's last word, by the store's time; infinite without one."""
    ages_s = [float("inf")]
    for name in (STATUS, HEARTBEAT):
        dated = store.get_dated(attempt_key(run_id, attempt_id, name))
        if dated is not None and dated.age_s is not None:
            ages_s.append(dated.age_s)
    return min(ages_s)


# --- machines and their cost ------------------------------------------------------------------


def record_rented(store: Store, launch: Launch, machine: RentedMachine) -> RentedMachine:
    """Record what was rented; what another launcher wrote first stands."""
    document = {"schema": 1, **machine.model_dump(mode="json")}
    with contextlib.suppress(ConflictError):
        store.put_once(launch.key(POD), canonical_json(document))
    return read_rented(store, launch) or machine


def read_rented(store: Store, launch: Launch) -> RentedMachine | None:
    """The machine that a launch got; None if none is recorded.

    Raises ArtifactError for a record that is damaged or of another launch's machine.
    """
    key = launch.key(POD)
    machine = read_record_or_none(store, key, RentedMachine)
    if machine is not None and machine.pod_name != launch.pod_name:
        raise ArtifactError(
            f"{key} in {store.url} is damaged: pod_name must be {launch.pod_name}, "
            f"got {quoted(machine.pod_name)}"
        )
    return machine


def cost_of(store: Store, launch: Launch, now: float | None = None) -> LaunchCost:
    """What a launch has cost until its attempt's end, or until now (Unix seconds).

    Raises ArtifactError for a damaged record.
    """
    machine = read_rented(store, launch)
    status = read_record_or_none(store, launch.key(STATUS), Status)
    return launch_cost(launch, machine, status, now)


def launch_cost(
    launch: Launch,
    machine: RentedMachine | None,
    status: Status | None,
    now: float | None = None,
) -> LaunchCost:
    """As `cost_of`, of records that were read."""
    state = State.SUBMITTED if status is None else status.state
    cost: LaunchCost = {
        "n": launch.n,
        "attempt": launch.attempt,
        "state": str(state),
        "pod_id": None,
        "type_id": None,
        "price_per_hour": 0.0,
        "hours": 0.0,
        "cost": 0.0,
    }
    if machine is None:
        return cost

    end = now or time.time()
    if status is not None and state.is_final:
        end = status.time.timestamp()
    hours = max(end - machine.created, 0.0) / SECONDS_PER_HOUR

    cost["pod_id"] = machine.pod_id
    cost["type_id"] = machine.type_id
    cost["price_per_hour"] = machine.price_per_hour
    cost["hours"] = round(hours, 6)
    cost["cost"] = round(machine.price_per_hour * hours, 6)
    return cost


def rental(store: Store, run_id: str, attempt_id: str) -> dict[str, Any]:
    """{"rented", "attempts", "cost"} of an attempt on a rented machine and those before it.

    {} for an attempt on no rented machine. Records that are damaged are named, and keep no attempt
    from its end.
    """
    try:
        return _rental(store, run_id, attempt_id)
    except ArtifactError as error:
        return {"rented": None, "damaged": str(error)}


def _rental(store: Store, run_id: str, attempt_id: str) -> dict[str, Any]:
    launches = all_launches(store, run_id)
    own_launch = next((launch for launch in launches if launch.attempt == attempt_id), None)
    if own_launch is None:
        return {}

    machine = read_rented(store, own_launch)
    costs = [cost_of(store, launch) for launch in launches if launch.n <= own_launch.n]
    return {
        "rented": None if machine is None else machine.model_dump(mode="json"),
        "attempts": costs,
        "cost": round(sum(cost["cost"] for cost in costs), 6),
    }
