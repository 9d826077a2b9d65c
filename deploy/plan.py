"""What a rented run would be, before anything is paid for or sent: image, candidates, prices, caps, the request."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from deploy.pods import Candidate, Offer, PodApi, PodRequest
from deploy.settings import Settings
from moola.errors import DataError, LaunchError
from moola.launches import Launch
from moola.specs import MachineConfig, duration_text

STORE_ENV = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL",
    "AWS_DEFAULT_REGION",
    "AWS_MAX_ATTEMPTS",
)
NEEDED_ENV = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
TERMINATE_KEY = "RUNPOD_TERMINATE_API_KEY"  # a restricted key with which the machine ends itself
SECRET_ENV = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", TERMINATE_KEY)


@dataclass(frozen=True)
class Choice:
    """A candidate as it stands now; `why_not` says why it would not be taken, "" if it would."""

    offer: Offer
    why_not: str

    @property
    def price(self) -> float:
        """USD per hour of the whole machine."""
        return self.offer.price_per_hour or 0.0


@dataclass(frozen=True)
class Plan:
    """All that is known of a rented run before it is asked for."""

    run_id: str
    job: str
    image: str
    machine: MachineConfig
    choices: tuple[Choice, ...]
    uploads: Mapping[str, int]  # inputs that are not in the store yet, with their size in bytes

    def most_it_can_cost(self) -> float:
        """USD: the dearest candidate for the longest time, never more than max_spend."""
        hours = self.machine.max_runtime.total_seconds() / 3600
        prices = [choice.price for choice in self.choices if not choice.why_not.startswith("price")]
        tries = 1 + self.machine.retry.times
        return min(self.machine.max_spend, max(prices, default=0.0) * hours * tries)


def candidates(machine: MachineConfig, pods: PodApi) -> list[Candidate]:
    """What to ask for, in order. For `gpu.types: null` the catalog decides: enough memory, the cheapest first."""
    if machine.cpu is not None:
        return [Candidate("cpu", flavor, machine.cpu.vcpus, machine.cloud) for flavor in machine.cpu.flavors]
    gpu = machine.gpu
    assert gpu is not None
    if gpu.types is not None:
        return [Candidate("gpu", type_id, gpu.count, machine.cloud) for type_id in gpu.types]
    found = [offer for offer in pods.catalog("gpu", machine.cloud) if offer.memory_gb >= gpu.min_memory_gb]
    priced = [(offer.price_per_hour, offer) for offer in found if offer.price_per_hour is not None]
    fitting = [(price, offer) for price, offer in priced if price * gpu.count <= machine.max_price_per_hour]
    if not fitting:
        raise LaunchError(
            f"machine: no GPU has at least {gpu.min_memory_gb:g} GB and costs at most "
            f"{machine.max_price_per_hour:g} USD/h ({len(found)} types have the memory)"
        )
    fitting.sort(key=lambda pair: pair[0])
    return [Candidate("gpu", offer.candidate.type_id, gpu.count, machine.cloud) for _, offer in fitting]


def choose(machine: MachineConfig, offers: Sequence[Offer]) -> tuple[Choice, ...]:
    """Each offer, and whether it would be taken now."""
    return tuple(Choice(offer, _why_not(machine, offer)) for offer in offers)


def _why_not(machine: MachineConfig, offer: Offer) -> str:
    if offer.price_per_hour is None:
        return "not offered"
    if offer.price_per_hour > machine.max_price_per_hour:
        return f"price above max_price_per_hour {machine.max_price_per_hour:g}"
    if offer.stock == "none":
        return "out of stock"
    if machine.data_centers and offer.data_centers and not set(machine.data_centers) & set(offer.data_centers):
        return "not in " + ", ".join(machine.data_centers)
    return ""


def require_affordable(machine: MachineConfig, choices: Sequence[Choice]) -> None:
    """Raises LaunchError if no candidate is offered within the price cap: waiting for one would change nothing."""
    if all(choice.why_not.startswith(("price", "not offered")) for choice in choices):
        prices = ", ".join(f"{one.offer.name} {one.price:g}" for one in choices if one.offer.price_per_hour) or "none"
        raise LaunchError(
            f"machine: no candidate costs at most max_price_per_hour {machine.max_price_per_hour:g} USD/h: {prices}"
        )


def pod_environment(
    settings: Settings, launch: Launch, machine: MachineConfig, deadline: float, environ: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """What the machine is told. Values that are secret are names of the provider's secrets where the spec gives one.

    Raises DataError if the store cannot be reached from a rented machine: a folder, or keys that nobody gave.
    """
    if not settings.store.startswith("s3://"):
        raise DataError(f"a rented machine needs a store it can reach: s3://bucket/prefix, got {settings.store}")
    names = {name: environ[name] for name in (*STORE_ENV, TERMINATE_KEY) if environ.get(name)}
    names |= {name: f"{{{{ RUNPOD_SECRET_{secret} }}}}" for name, secret in machine.secrets.items()}
    missing = [name for name in NEEDED_ENV if name not in names]
    if missing:
        raise DataError(
            f"the machine needs {' and '.join(missing)}: set it here, or name a secret of the provider: "
            f"--set machine.secrets.{missing[0]}=NAME"
        )
    gpus = machine.gpu.count if machine.gpu is not None else 0
    return {
        **names,
        "AWS_EC2_METADATA_DISABLED": "true",
        "MOOLA_STORE": settings.store,
        "MOOLA_JOB": launch.job,
        "MOOLA_RUN": launch.run_id,
        "MOOLA_ATTEMPT": launch.attempt,
        "MOOLA_LAUNCH": str(launch.n),
        "MOOLA_DEADLINE": f"{deadline:.0f}",
        "MOOLA_BEAT_S": f"{settings.watch.beat_s:g}",
        "MOOLA_GPUS": str(gpus),
        "MOOLA_IMAGE_DIGEST": launch.image.rpartition("@")[2],
        "PYTHONUNBUFFERED": "1",
    }


def pod_request(settings: Settings, launch: Launch, offer: Offer, deadline: float) -> PodRequest:
    """The exact request for a candidate; building it sends nothing."""
    machine = MachineConfig.model_validate(launch.machine)
    return PodRequest(
        name=launch.pod_name,
        image=launch.image,
        candidate=offer.candidate,
        disk_gb=machine.disk_gb,
        env=pod_environment(settings, launch, machine, deadline),
        data_centers=machine.data_centers,
        min_cuda=machine.gpu.min_cuda if machine.gpu is not None else None,
        registry=machine.registry,
    )


def deadline_of(machine: MachineConfig, price_per_hour: float, spent: float, now: float) -> float:
    """When an attempt must have ended, Unix seconds: after max_runtime, or where max_spend would be reached."""
    affordable_s = max(machine.max_spend - spent, 0.0) / price_per_hour * 3600 if price_per_hour else float("inf")
    return now + min(machine.max_runtime.total_seconds(), affordable_s)


def first_request(settings: Settings, plan: Plan) -> PodRequest:
    """The request that would be sent first, with a launch that nobody has claimed. Raises DataError as
    `pod_environment` does."""
    name, now = f"moola-{plan.run_id}-a1-0000", time.time()
    launch = Launch(1, plan.run_id, "ATTEMPT", name, now, plan.job, plan.image, machine_json(plan.machine))
    choice = next((choice for choice in plan.choices if not choice.why_not), plan.choices[0])
    return pod_request(settings, launch, choice.offer, deadline_of(plan.machine, choice.price, 0.0, now))


def machine_json(machine: MachineConfig) -> dict[str, Any]:
    """As it stands in a launch."""
    return machine.model_dump(mode="json")


def shown_request(body: dict[str, Any]) -> dict[str, Any]:
    """A request without the values of secrets."""
    hidden = {name: "***" for name in SECRET_ENV if name in body.get("env", {})}
    secret_names = {k: v for k, v in body.get("env", {}).items() if v.startswith("{{ RUNPOD_SECRET_")}
    return {**body, "env": {**body.get("env", {}), **hidden, **secret_names}}


def plan_table(plan: Plan) -> Table:
    """For people: candidates in the order they are tried, what each costs, and why one would not be taken."""
    table = Table("", "machine", "", "USD/h", "stock", "", title=f"{plan.job} {plan.run_id}")
    for number, choice in enumerate(plan.choices, 1):
        offer = choice.offer
        size = f"{offer.candidate.count} {'GPU' if offer.candidate.kind == 'gpu' else 'vCPU'}, {offer.memory_gb:g} GB"
        price = "-" if offer.price_per_hour is None else f"{offer.price_per_hour:.3f}"
        table.add_row(str(number), offer.name, size, price, offer.stock, choice.why_not)
    return table


def plan_text(plan: Plan) -> str:
    """What the table does not say: image, uploads, caps."""
    machine, n_retries = plan.machine, plan.machine.retry.times
    uploads = ", ".join(f"{name} {size / 1e6:,.1f} MB" for name, size in plan.uploads.items()) or "nothing"
    return (
        f"image      {plan.image}\nto upload  {uploads}\n"
        f"caps       {duration_text(machine.max_runtime)} an attempt, {n_retries} further attempts, "
        f"{machine.max_spend:g} USD in all; waits {duration_text(machine.max_wait_for_capacity)} for a machine\n"
        f"the most this run can cost: {plan.most_it_can_cost():.2f} USD"
    )
