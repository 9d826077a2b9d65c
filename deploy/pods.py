"""What a launcher needs of a provider of rented machines, in words of our own; `deploy.runpod` is the one there is."""

import builtins
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal, Protocol

NAME_PREFIX = "moola-"  # of every pod of ours
Cloud = Literal["SECURE", "COMMUNITY"]
Stock = Literal["none", "low", "medium", "high", "unknown"]  # unknown: the provider's API does not say


class PodStatus(StrEnum):
    """Where a pod is. A provider's own words are translated in one table, beside its client."""

    STARTING = "starting"  # placed, or its image is being fetched
    RUNNING = "running"  # its container was started; whether the job does anything, only the bucket tells
    STOPPED = "stopped"  # not running, its disk may still be billed
    FAILED = "failed"  # will not come up by itself
    GONE = "gone"  # terminated
    UNKNOWN = (
        "unknown"  # a word that the table lacks, from `list` alone: every pod has to be seen there, if only to end it
    )


@dataclass(frozen=True)
class Candidate:
    """One kind of machine to ask for. `count` is GPUs, or vCPUs of a CPU machine."""

    kind: Literal["cpu", "gpu"]
    type_id: str
    count: int
    cloud: Cloud = "SECURE"


@dataclass(frozen=True)
class Offer:
    """A candidate as the catalog shows it now: whole price in USD per hour (None: not offered), memory in GB (of one
    GPU, or of the CPU machine), data centres that have it."""

    candidate: Candidate
    name: str
    price_per_hour: float | None
    stock: Stock
    memory_gb: float
    data_centers: tuple[str, ...] = ()


@dataclass(frozen=True)
class PodRequest:
    """Everything a pod is made from. `env` may hold secrets: it is sent, and never printed, logged or stored."""

    name: str
    image: str
    candidate: Candidate
    disk_gb: int
    env: dict[str, str] = field(repr=False)
    args: tuple[str, ...] = ()  # of the image's entry point
    data_centers: tuple[str, ...] = ()
    min_cuda: str | None = None
    registry: str | None = None  # id of the provider's credentials for a private image


@dataclass(frozen=True)
class Pod:
    """A pod as the provider shows it. `provider_status` is its own word, for messages."""

    id: str
    name: str
    status: PodStatus
    provider_status: str
    image: str
    price_per_hour: float
    type_id: str | None = None
    data_center: str | None = None
    created: datetime | None = None
    started: datetime | None = None
    uptime_s: float | None = None  # of the container: falling back toward 0 means that it was restarted
    env: dict[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class LogLine:
    """A line of a pod's live log. `id` is what `logs(after=...)` resumes behind."""

    id: str
    source: Literal["container", "system"]
    time: datetime
    text: str


@dataclass(frozen=True)
class BillingRecord:
    """What the provider has billed a pod for a stretch of time, in USD."""

    pod_id: str
    start: datetime
    end: datetime
    amount: float


class PodApi(Protocol):
    """A provider. Every method raises AuthError (key missing, wrong or without the scope; no balance is a LaunchError)
    and TryAgainError (no answer after all retries)."""

    def body(self, request: PodRequest) -> dict[str, Any]:
        """What `create` would send, without sending it."""
        ...

    def create(self, request: PodRequest) -> Pod:
        """Rent a machine. Never blindly repeated: after a timeout or an unreadable answer the pod is looked up by its
        name, and a TryAgainError says that it could not be settled. Raises NoCapacityError (try another candidate) and
        LaunchError (wrong request, no balance: stop)."""
        ...

    def get(self, pod_id: str) -> Pod | None:
        """The pod, None if it is gone."""
        ...

    def list(self) -> builtins.list[Pod]:
        """All pods of the account, ours and others."""
        ...

    def terminate(self, pod_id: str) -> None:
        """End it and its billing; one that is gone already is fine."""
        ...

    def logs(self, pod_id: str, after: str | None = None) -> Iterator[LogLine]:
        """The live log behind `after`, until the connection ends; an OSError or TryAgainError where it drops. Raises
        NotImplementedError where the provider's API has no logs."""
        ...

    def offers(self, candidates: Sequence[Candidate]) -> builtins.list[Offer]:
        """Stock and price of each candidate now, in the order given."""
        ...

    def catalog(self, kind: Literal["cpu", "gpu"], cloud: Cloud = "SECURE") -> builtins.list[Offer]:
        """All machines of a kind in a cloud (one GPU, or the smallest CPU size)."""
        ...

    def billing(self, pod_ids: Sequence[str]) -> builtins.list[BillingRecord]:
        """Billing records there are so far; they lag by minutes to hours."""
        ...
