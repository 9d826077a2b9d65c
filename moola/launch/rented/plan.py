"""What a rented run would be, before anything is paid for: image, candidates, prices, caps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from moola.errors import DataError, LaunchError
from moola.providers.base import Candidate, Offer, PodApi
from moola.specs import GpuMachine, MachineConfig, duration_text

SECONDS_PER_HOUR = 3600
NOT_OFFERED = "not offered"
TOO_DEAR = "price above max_price_per_hour"


@dataclass(frozen=True)
class Choice:
    """A candidate as it stands now; `why_not` is why it would not be taken, "" if it would."""

    offer: Offer
    why_not: str

    @property
    def price(self) -> float:
        """USD per hour of the whole machine."""
        return self.offer.price_per_hour or 0.0

    @property
    def is_too_dear(self) -> bool:
        return self.why_not.startswith(TOO_DEAR)


@dataclass(frozen=True)
class Plan:
    """All that is known of a rented run before a machine is asked for."""

    run_id: str
    job: str
    image: str
    machine: MachineConfig
    choices: tuple[Choice, ...]
    uploads: Mapping[str, int]  # name -> bytes of the inputs that are not in the store yet
    warnings: tuple[str, ...] = ()

    def most_it_can_cost(self) -> float:
        """USD: the dearest candidate for the longest time, never more than max_spend."""
        machine = self.machine
        hours = machine.max_runtime.total_seconds() / SECONDS_PER_HOUR
        attempts = 1 + machine.retry.times
        prices = [choice.price for choice in self.choices if not choice.is_too_dear]
        return min(machine.max_spend, max(prices, default=0.0) * hours * attempts)


def candidates(machine: MachineConfig, pods: PodApi) -> list[Candidate]:
    """What to ask for, in order. For `gpu.types: null` the catalog decides.

    Raises DataError for data centers of the community cloud: a create that names one is refused as
    if nothing were free, though the catalog shows stock there (runpod/runpodctl#326).
    """
    if machine.cloud == "COMMUNITY" and machine.data_centers:
        raise DataError(
            "machine.cloud: COMMUNITY and machine.data_centers exclude each other, got "
            f"{', '.join(machine.data_centers)}: community hosts are in no data center that can be "
            "asked for. Leave data_centers empty, or --set machine.cloud=SECURE"
        )

    if machine.cpu is not None:
        vcpus = machine.cpu.vcpus
        return [Candidate("cpu", flavor, vcpus, machine.cloud) for flavor in machine.cpu.flavors]

    gpu = machine.gpu
    assert gpu is not None
    type_ids = gpu.types if gpu.types is not None else _fitting_gpu_types(machine, gpu, pods)
    return [Candidate("gpu", type_id, gpu.count, machine.cloud) for type_id in type_ids]


def _fitting_gpu_types(machine: MachineConfig, gpu: GpuMachine, pods: PodApi) -> list[str]:
    """The catalog's types with enough memory within the price cap, the cheapest first.

    Raises LaunchError if there is none.
    """
    large_enough = [
        offer
        for offer in pods.catalog("gpu", machine.cloud)
        if offer.memory_gb >= gpu.min_memory_gb
    ]
    priced: list[tuple[float, str]] = []
    for offer in large_enough:
        price = offer.price_per_hour
        if price is not None and price * gpu.count <= machine.max_price_per_hour:
            priced.append((price, offer.candidate.type_id))

    if not priced:
        raise LaunchError(
            f"machine: no GPU has at least {gpu.min_memory_gb:g} GB and costs at most "
            f"{machine.max_price_per_hour:g} USD/h ({len(large_enough)} types have the memory)"
        )
    priced.sort(key=lambda pair: pair[0])
    return [type_id for _, type_id in priced]


def choose(machine: MachineConfig, offers: Sequence[Offer]) -> tuple[Choice, ...]:
    """Each offer, and whether it would be taken now."""
    return tuple(Choice(offer, _why_not(machine, offer)) for offer in offers)


def _why_not(machine: MachineConfig, offer: Offer) -> str:
    if offer.price_per_hour is None:
        return NOT_OFFERED
    if offer.price_per_hour > machine.max_price_per_hour:
        return f"{TOO_DEAR} {machine.max_price_per_hour:g}"
    if offer.stock == "none":
        return "out of stock"

    is_placed = bool(machine.data_centers and offer.data_centers)
    if is_placed and set(machine.data_centers).isdisjoint(offer.data_centers):
        return "not in " + ", ".join(machine.data_centers)
    return ""


def require_affordable(machine: MachineConfig, choices: Sequence[Choice]) -> None:
    """Raises LaunchError if no candidate is within the price cap: waiting would change nothing."""
    if not all(choice.is_too_dear or choice.why_not == NOT_OFFERED for choice in choices):
        return

    priced = [choice for choice in choices if choice.offer.price_per_hour]
    prices = ", ".join(f"{choice.offer.name} {choice.price:g}" for choice in priced)
    raise LaunchError(
        "machine: no candidate costs at most max_price_per_hour "
        f"{machine.max_price_per_hour:g} USD/h: {prices or 'none'}"
    )


def deadline_of(machine: MachineConfig, price_per_hour: float, spent: float, now: float) -> float:
    """When an attempt must have ended: after max_runtime, or where max_spend would be reached.

    USD in, Unix seconds in and out.
    """
    affordable_s = float("inf")
    if price_per_hour:
        left_to_spend = max(machine.max_spend - spent, 0.0)
        affordable_s = left_to_spend / price_per_hour * SECONDS_PER_HOUR
    return now + min(machine.max_runtime.total_seconds(), affordable_s)


def machine_json(machine: MachineConfig) -> dict[str, Any]:
    """As it stands in a launch."""
    return machine.model_dump(mode="json")


def plan_table(plan: Plan) -> Table:
    """For people: the candidates in the order they are tried, each with its price or a reason."""
    table = Table("", "machine", "", "USD/h", "stock", "", title=f"{plan.job} {plan.run_id}")
    for number, choice in enumerate(plan.choices, 1):
        offer = choice.offer
        unit = "GPU" if offer.candidate.kind == "gpu" else "vCPU"
        size = f"{offer.candidate.count} {unit}, {offer.memory_gb:g} GB"
        price = "-" if offer.price_per_hour is None else f"{offer.price_per_hour:.3f}"
        table.add_row(str(number), offer.name, size, price, offer.stock, choice.why_not)
    return table


def plan_text(plan: Plan) -> str:
    """What the table does not tell: image, uploads, caps, warnings."""
    machine = plan.machine
    uploads = ", ".join(f"{name} {size / 1e6:,.1f} MB" for name, size in plan.uploads.items())
    max_runtime = duration_text(machine.max_runtime)
    max_wait = duration_text(machine.max_wait_for_capacity)
    warnings = "".join(f"\nwarning: {warning}" for warning in plan.warnings)
    hosts = ""
    if machine.min_cuda is not None:
        hosts = f"hosts      with drivers for CUDA {machine.min_cuda} or newer; stock is of those\n"
    return (
        f"image      {plan.image}\n"
        f"{hosts}"
        f"to upload  {uploads or 'nothing'}\n"
        f"caps       {max_runtime} an attempt, {machine.retry.times} further attempts, "
        f"{machine.max_spend:g} USD in all; waits {max_wait} for a machine\n"
        f"the most this run can cost: {plan.most_it_can_cost():.2f} USD"
        f"{warnings}"
    )
