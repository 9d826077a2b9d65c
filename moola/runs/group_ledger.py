"""The shared ledger of a group: what its machines may still cost, and what they have cost.

    groups/<group_id>/ledger/<n>.json    write-once: entry n

Entries are numbered without a gap and each is written once, so all launchers see them in one
order. Who wants to rent writes a reservation as the next entry; another launcher that was quicker
has that number, and then its entry is read first. So each reservation was checked against all
before it, and no two launchers spend the same money.

Whoever can write to the store can write entries. A reservation counts whoever wrote it: it can
only keep from renting. A settlement, which gives money back, counts with a proof by a holder of
the account's key alone (`moola.runs.authority`).
"""

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import Field

from moola.errors import ArtifactError, ConflictError
from moola.runs.authority import is_proven, proof_of
from moola.runs.groups import Budget, GroupId, group_key
from moola.runs.launches import Launch, LaunchNumber, PodName
from moola.runs.protocol import canonical_json
from moola.runs.records import Record, RunId, Sha256, Usd, read_record_or_none
from moola.store import Store

MAX_ENTRIES = 100_000  # of a group
ROUNDING_USD = 1e-9


class LedgerEntry(Record):
    """One entry: money set aside for a launch, or what the launch has cost in the end."""

    n: Annotated[int, Field(ge=1, le=MAX_ENTRIES)]
    group: GroupId
    kind: Literal["reserve", "settle"]
    run_id: RunId
    launch: LaunchNumber
    pod_name: PodName
    usd: Usd
    price_per_hour: Usd = 0.0  # of the dearest machine that the launch may get
    proof: Sha256 | None = None

    def statement(self) -> dict[str, Any]:
        """What the proof is of: everything but the proof."""
        return self.model_dump(mode="json", exclude={"proof"})


@dataclass(frozen=True)
class Room:
    """Whether the budget has room for a launch; if not, why, and whether it may have some later.

    price_per_hour  USD, of the dearest machine for which there is room
    """

    is_free: bool
    why_not: str = ""
    may_come: bool = True
    price_per_hour: float = math.inf


class GroupLedger:
    """The ledger of a group, as one launcher reads and writes it. `key` is that of its proofs."""

    def __init__(self, store: Store, group_id: str, key: bytes | None) -> None:
        self.store = store
        self.group_id = group_id
        self._key = key
        self._entries: list[LedgerEntry] = []  # those read so far: they never change

    def refresh(self) -> None:
        """Read what was added. Raises ArtifactError for an entry that is damaged."""
        while len(self._entries) < MAX_ENTRIES:
            n = len(self._entries) + 1
            entry = read_record_or_none(self.store, self.key(n), LedgerEntry)
            if entry is None:
                return
            if (entry.n, entry.group) != (n, self.group_id):
                raise ArtifactError(
                    f"{self.key(n)} in {self.store.url} is damaged: it is entry {entry.n} of "
                    f"{entry.group}"
                )
            self._entries.append(entry)

    def held(self) -> dict[str, LedgerEntry]:
        """Pod name -> the reservation, of launches that may have a machine."""
        held: dict[str, LedgerEntry] = {}
        settled = self._settled()
        for entry in self._entries:
            if entry.kind == "reserve" and entry.pod_name not in settled:
                held.setdefault(entry.pod_name, entry)
        return held

    def spent(self) -> float:
        """USD that launches have cost which are over."""
        return sum(self._settled().values())

    def _settled(self) -> dict[str, float]:
        """Pod name -> USD, of launches that are over."""
        settled: dict[str, float] = {}
        for entry in self._entries:
            if entry.kind == "settle" and self._is_proven(entry):
                settled.setdefault(entry.pod_name, entry.usd)
        return settled

    def _is_proven(self, entry: LedgerEntry) -> bool:
        return is_proven(entry.statement(), entry.proof, self.store.url, self._key)

    def room(self, pod_name: str, budget: Budget, usd: float) -> Room:
        """Whether there is room for a launch, as far as was read. One with money aside has it."""
        held = self.held()
        if pod_name in held:
            return Room(is_free=True, price_per_hour=held[pod_name].price_per_hour)

        if len(held) >= budget.max_machines:
            return Room(False, f"{len(held)} of {budget.max_machines} machines are in use")

        others_usd = sum(entry.usd for entry in held.values())
        if self.spent() + others_usd + usd <= budget.max_spend + ROUNDING_USD:
            return Room(is_free=True)
        why_not = (
            f"it may cost {usd:.2f} USD; of {budget.max_spend:g} USD {self.spent():.2f} are spent "
            f"and {others_usd:.2f} set aside for runs at work"
        )
        return Room(False, why_not, may_come=bool(held))

    def reserve(self, launch: Launch, budget: Budget, usd: float, price_per_hour: float) -> Room:
        """Set money aside for a launch, if the budget has room for it.

        A launch that has its money already gets no more.
        """
        while True:
            self.refresh()
            room = self.room(launch.pod_name, budget, usd)
            if not room.is_free or launch.pod_name in self.held():
                return room
            if self._append("reserve", launch, usd, price_per_hour):
                return replace(room, price_per_hour=price_per_hour)

    def settle(self, launch: Launch, usd: float) -> None:
        """Record what a launch has cost: its machine has gone. Once; without money set aside, not.

        Raises ArtifactError for an entry that is damaged.
        """
        while True:
            self.refresh()
            if launch.pod_name not in self.held() or self._append("settle", launch, usd, 0.0):
                return

    def _append(
        self,
        kind: Literal["reserve", "settle"],
        launch: Launch,
        usd: float,
        price_per_hour: float,
    ) -> bool:
        """Write the next entry; False if another launcher has written one meanwhile."""
        if len(self._entries) >= MAX_ENTRIES:
            raise ArtifactError(
                f"the ledger of {self.group_id} in {self.store.url} must have at most "
                f"{MAX_ENTRIES:,} entries, and is full"
            )
        entry = LedgerEntry(
            n=len(self._entries) + 1,
            group=self.group_id,
            kind=kind,
            run_id=launch.run_id,
            launch=launch.n,
            pod_name=launch.pod_name,
            usd=usd,
            price_per_hour=price_per_hour,
        )
        if self._key is not None:
            proof = proof_of(entry.statement(), self.store.url, self._key)
            entry = entry.model_copy(update={"proof": proof})

        document = {"schema": 1, **entry.model_dump(mode="json")}
        try:
            self.store.put_once(self.key(entry.n), canonical_json(document))
        except ConflictError:
            return False
        self._entries.append(entry)
        return True

    def age_s(self, entry: LedgerEntry) -> float | None:
        """Seconds since an entry was written, by the store's clock."""
        dated = self.store.get_dated(self.key(entry.n))
        return None if dated is None else dated.age_s

    def key(self, n: int) -> str:
        """Where entry n is."""
        return group_key(self.group_id, "ledger", f"{n:08d}.json")
