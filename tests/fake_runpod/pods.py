"""A pod as the fake keeps it: what was asked for, where it stands, what it has cost."""

import json
import re
import secrets
import shlex
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tests.fake_runpod.logs import Log

if TYPE_CHECKING:
    from tests.fake_runpod.container import Container

ACTIONS = {
    "PROVISIONING": ["stop", "terminate"],
    "STARTING": ["stop", "terminate"],
    "RUNNING": ["stop", "restart", "terminate"],
    "EXITED": ["start", "terminate"],
    "ERROR": ["start", "terminate"],
}
NO_CAPACITY = (
    "There are no longer any instances available with the requested specifications. "
    "Please refresh and try again."
)
DISK_PER_GB_HOUR = 0.10 / 730  # USD; container disk costs nothing while the pod is stopped


class RefusedError(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, detail: str, errors: list[str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.errors = status, detail, errors


@dataclass
class Wanted:
    """A create request of either API. `count` is GPUs or vCPUs, None where it was left out."""

    name: str
    image: str
    kind: str
    machine: str
    count: int | None
    clouds: tuple[str, ...] = ("SECURE",)
    data_centers: tuple[str, ...] = ()
    disk: int = 50
    args: str = ""
    env: dict[str, str] = field(default_factory=dict, repr=False)
    ports: list[str] = field(default_factory=list)
    registry: str | None = None
    mounts: dict[str, Any] = field(default_factory=dict)
    template: str | None = None
    cuda_allowed: list[str] = field(default_factory=list)
    cuda_min: str | None = None


@dataclass
class Spell:
    """A stretch of time at one price, in seconds of the fake's clock and USD per hour."""

    start: float
    compute_per_hour: float
    disk_per_hour: float
    end: float | None = None

    def hours(self, since: float, until: float) -> float:
        """Of it between two moments."""
        return (
            max(
                0.0,
                min(until, self.end if self.end is not None else until) - max(since, self.start),
            )
            / 3600
        )


@dataclass
class Pod:
    """`status` is the observed one; `gone`: terminated or lost, in no list any more.

    `env` is as it was sent.
    """

    id: str
    wanted: Wanted
    cloud: str
    data_center: str
    cuda: str | None
    memory: int
    price_per_hour: float
    log: Log
    status: str = "PROVISIONING"
    gone: bool = False
    boots: int = 0
    booted_at: float | None = None  # on the fake's clock
    last_uptime: int | None = None  # lingers on a pod that was stopped, as was seen
    last_change: str = "Rented by User"
    created: datetime = field(default_factory=lambda: datetime.now(UTC))
    started: datetime | None = None
    api_key: str = field(default_factory=lambda: new_key(), repr=False)
    faults: dict[str, str] = field(default_factory=dict)  # kind -> its text
    spells: list[Spell] = field(default_factory=list)
    container: "Container | None" = field(default=None, repr=False)

    @property
    def name(self) -> str:
        return self.wanted.name

    @property
    def env(self) -> dict[str, str]:
        return self.wanted.env

    @property
    def run(self) -> str:
        """What groups the pods of one run: MOOLA_RUN, or the name where there is none."""
        return self.env.get("MOOLA_RUN", self.name)

    @property
    def entrypoint(self) -> list[str] | None:
        return split_args(self.wanted.args)[0]

    @property
    def cmd(self) -> list[str]:
        return split_args(self.wanted.args)[1]

    @property
    def alive(self) -> bool:
        """Is it being billed as a machine?"""
        return not self.gone and self.status not in ("EXITED", "TERMINATED")

    def meter(self, now: float) -> None:
        """End the spell that runs, and start one if the pod is alive."""
        if self.spells and self.spells[-1].end is None:
            self.spells[-1].end = now
        if self.alive:
            self.spells.append(Spell(now, self.price_per_hour, self.wanted.disk * DISK_PER_GB_HOUR))

    def billed(self, since: float, until: float) -> tuple[float, float]:
        """USD for (compute, disk) between two moments of the fake's clock."""
        spells = [(spell, spell.hours(since, until)) for spell in self.spells]
        return sum(s.compute_per_hour * h for s, h in spells), sum(
            s.disk_per_hour * h for s, h in spells
        )

    def uptime(self, now: float) -> int:
        return 0 if self.booted_at is None else int(now - self.booted_at)

    def shown(self, now: float) -> dict[str, Any]:
        """As REST v2 shows it."""
        wanted = self.wanted
        uptime = self.uptime(now) if self.status == "RUNNING" else self.last_uptime
        size = {
            "id": wanted.machine,
            ("count" if wanted.kind == "gpu" else "vcpuCount"): wanted.count,
        }
        runtime: dict[str, Any] = {
            "uptime": uptime,
            "cpu": {"util": 50},
            "memory": {"util": 20},
            "ports": [],
        }
        if wanted.kind == "gpu":
            runtime["gpus"] = [{"util": 50, "memoryUtil": 20}] * (wanted.count or 1)
        return {
            "id": self.id,
            "name": wanted.name,
            "status": self.status,
            "actions": ACTIONS[self.status],
            "image": wanted.image,
            "args": wanted.args,
            "disk": wanted.disk,
            "mounts": wanted.mounts,
            "ports": wanted.ports,
            "env": wanted.env,
            "registry": wanted.registry,
            wanted.kind: size if wanted.kind == "gpu" else {**size, "memory": self.memory},
            "cloud": self.cloud,
            "dataCenterId": self.data_center,
            "cudaVersion": self.cuda,
            "ssh": {"proxy": None, "direct": None},
            "template": wanted.template,
            "cost": self.price_per_hour if self.alive else 0.0,
            "locked": False,
            "runtime": None if uptime is None else runtime,
            "createdAt": stamp(self.created),
            "startedAt": self.started and stamp(self.started),
            "globalNetworking": {"enabled": False},
        }


def new_id() -> str:
    return "".join(secrets.choice("abcdefghijkmnpqrstuvwxyz0123456789") for _ in range(14))


def new_key() -> str:
    return f"rpa_{secrets.token_hex(20)}"


def stamp(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def epoch(clock_s: float, clock_now: float) -> datetime:
    """A moment of the fake's clock as a time of day, for billing records."""
    return datetime.fromtimestamp(time.time() + clock_s - clock_now, UTC)


def split_args(args: str) -> tuple[list[str] | None, list[str]]:
    """(entry point or None for the image's, cmd).

    JSON {"entrypoint", "cmd"} is used as it is, anything else is split as a shell would.
    """
    if args.lstrip().startswith("{"):
        try:
            given = json.loads(args)
            return given.get("entrypoint"), given.get("cmd", [])
        except json.JSONDecodeError:
            pass
    return None, shlex.split(args)


def substituted(env: dict[str, str], known: dict[str, str]) -> dict[str, str]:
    """The environment with {{ RUNPOD_SECRET_x }} replaced, for the process alone.

    An unknown name stays as it is.
    """
    pattern = re.compile(r"\{\{\s*RUNPOD_SECRET_(\w+)\s*\}\}")
    return {k: pattern.sub(lambda m: known.get(m[1], m[0]), v) for k, v in env.items()}
