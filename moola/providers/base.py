"""The interface to a provider of rented machines, in terms that name no provider.

`moola.providers.runpod` has the implementations.
"""

import builtins
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal, Protocol

Kind = Literal["cpu", "gpu"]
Cloud = Literal["SECURE", "COMMUNITY"]
Stock = Literal["none", "low", "medium", "high", "unknown"]  # unknown: the API does not tell


class PodStatus(StrEnum):
    """Where a pod is. Each client translates its provider's words in one table."""

    STARTING = "starting"  # placed, or its image is being fetched
    RUNNING = "running"  # its container runs; whether the job does anything, only the store tells
    STOPPED = "stopped"  # not running; its disk may still be billed
    FAILED = "failed"  # will not come up by itself
    GONE = "gone"  # terminated
    UNKNOWN = "unknown"  # a word missing in the table, from `list` alone: a pod must be seen to end


@dataclass(frozen=True)
class Candidate:
    """One kind of machine to ask for. `count` is GPUs, or vCPUs of a CPU machine."""

    kind: Kind
    type_id: str
    count: int
    cloud: Cloud = "SECURE"


@dataclass(frozen=True)
class Offer:
    """A candidate as the provider's catalog shows it now."""

    candidate: Candidate
    name: str
    price_per_hour: float | None  # USD, of the whole machine; None: not offered
    stock: Stock
    memory_gb: float  # of one GPU, or of the CPU machine
    data_centers: tuple[str, ...] = ()  # those that have it


@dataclass(frozen=True)
class PodRequest:
    """Everything a pod is made from.

    `env` may hold secrets: it is sent, and never printed, logged or stored.
    """

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
    uptime_s: float | None = None  # of the container: it falls back toward 0 with a restart
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
    """A provider's client.

    Every method but `body` raises AuthError (the key is missing, wrong or lacks the scope; no
    balance is a LaunchError) and TryAgainError (no answer after all retries).
    """

    provider: str  # its name, as it stands in the record of a rented machine

    @property
    def account_key(self) -> str | None:
        """The key that it is spoken to with: proofs are made by one derived from it."""
        ...

    @property
    def machines_are_local(self) -> bool:
        """Is the provider on this computer or its network, as a fake one is?"""
        ...

    def now(self) -> float:
        """Unix seconds by the provider's own clock, as its answers tell it.

        By this computer's clock where no answer has told it.
        """
        ...

    def body(self, request: PodRequest) -> dict[str, Any]:
        """What `create` would send, without sending it."""
        ...

    def create(self, request: PodRequest) -> Pod:
        """Rent a machine.

        Never blindly repeated: after a timeout or an unreadable answer the pod is looked up by its
        name, and a TryAgainError says that it could not be settled. Raises NoCapacityError (try
        another candidate) and LaunchError (wrong request, no balance: stop).
        """
        ...

    def get(self, pod_id: str) -> Pod | None:
        """The pod, None if it is gone."""
        ...

    def list(self) -> builtins.list[Pod]:
        """All pods of the account, whoever made them."""
        ...

    def terminate(self, pod_id: str) -> None:
        """End a pod and its billing; one that is gone already is fine."""
        ...

    def logs(self, pod_id: str, after: str | None = None) -> Iterator[LogLine]:
        """The live log behind `after`, until the connection ends.

        Raises OSError or TryAgainError where it drops, NotImplementedError where the provider's
        API has no logs.
        """
        ...

    def offers(
        self, candidates: Sequence[Candidate], min_cuda: str | None = None
    ) -> builtins.list[Offer]:
        """Stock and price of each candidate now, in the order given.

        The stock of GPUs is that of the hosts whose driver has CUDA `min_cuda` or a newer one, as
        far as the provider tells.
        """
        ...

    def catalog(self, kind: Kind, cloud: Cloud = "SECURE") -> builtins.list[Offer]:
        """All machines of a kind in a cloud (one GPU, or the smallest CPU size)."""
        ...

    def billing(self, pod_ids: Sequence[str]) -> builtins.list[BillingRecord]:
        """The billing records there are so far; they lag by minutes to hours."""
        ...
