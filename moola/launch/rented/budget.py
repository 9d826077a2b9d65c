"""Money set aside in a group's ledger before a machine is asked for, and settled after its end."""

import contextlib
from collections.abc import Sequence

from moola.errors import ArtifactError, LaunchError
from moola.launch.rented.context import RunContext
from moola.launch.rented.plan import SECONDS_PER_HOUR, Choice, candidates, choose, deadline_of
from moola.providers.base import PodStatus
from moola.runs.group_ledger import GroupLedger, LedgerEntry, Room
from moola.runs.groups import Budget
from moola.runs.launches import Launch, cost_of
from moola.runs.protocol import STATUS
from moola.runs.records import State
from moola.specs import MachineConfig


def ledger_of(run: RunContext, budget: Budget) -> GroupLedger:
    """The ledger of the group, read and written with this launcher's key."""
    return GroupLedger(run.store, budget.group, run.signing_key())


def reserve(run: RunContext, launch: Launch, budget: Budget) -> Room:
    """Set aside the most that a launch can cost.

    Raises LaunchError where the budget will never have room for it.
    """
    price, usd = _most_of(run, launch)
    ledger = ledger_of(run, budget)
    room = ledger.reserve(launch, budget, usd, price)
    if not room.is_free:
        _settle_abandoned(run, ledger)
        room = ledger.reserve(launch, budget, usd, price)
    if not room.is_free and not room.may_come:
        raise LaunchError(hopeless_text(room, budget))
    return room


def room_for(run: RunContext, launch: Launch, budget: Budget) -> Room:
    """Whether there is room for one more launch like this one; sets nothing aside."""
    _, usd = _most_of(run, launch)
    ledger = ledger_of(run, budget)
    ledger.refresh()
    room = ledger.room("", budget, usd)
    if not room.is_free:
        _settle_abandoned(run, ledger)
        room = ledger.room("", budget, usd)
    return room


def _most_of(run: RunContext, launch: Launch) -> tuple[float, float]:
    """(USD per hour of the dearest machine, USD of it for the longest time) of a launch."""
    machine = launch.machine_config()
    offers = run.pods.offers(candidates(machine, run.pods), machine.min_cuda)
    price = dearest_price(machine, choose(machine, offers))
    return price, most_of_one_machine(machine, price, run.watch.grace_s)


def hopeless_text(room: Room, budget: Budget) -> str:
    """Why a launch ends for which the budget will never have room, and what to do."""
    return (
        f"the budget of {budget.group} has no room for another machine: {room.why_not}. Give the "
        "sweep a higher --max-spend, or its machines less: --set machine.max_runtime=30m"
    )


def dearest_price(machine: MachineConfig, choices: Sequence[Choice]) -> float:
    """USD per hour of the dearest machine that may be had; the price cap where none has a price."""
    prices = [choice.price for choice in choices if choice.price and not choice.is_too_dear]
    return max(prices, default=machine.max_price_per_hour)


def most_of_one_machine(machine: MachineConfig, price_per_hour: float, grace_s: float) -> float:
    """USD: from its creation to its deadline, and the time it may take to end it then."""
    longest_s = deadline_of(machine, price_per_hour, spent=0.0, now=0.0) + grace_s
    return price_per_hour * longest_s / SECONDS_PER_HOUR


def held_for(run: RunContext, budget: Budget) -> frozenset[str]:
    """Names of the pods for which a budget has money set aside."""
    ledger = ledger_of(run, budget)
    ledger.refresh()
    return frozenset(ledger.held())


def settle(run: RunContext, launch: Launch) -> None:
    """Record what a launch has cost whose machine has gone. Nothing where it has no budget."""
    if launch.budget is None:
        return

    ledger = ledger_of(run, launch.budget)
    ledger.refresh()
    entry = ledger.held().get(launch.pod_name)
    if entry is not None:
        ledger.settle(launch, _cost(run, ledger, entry, launch))


def _cost(run: RunContext, ledger: GroupLedger, entry: LedgerEntry, launch: Launch) -> float:
    """USD: as this launcher has paid it; of another's machine, the most that it can have cost."""
    is_own = launch == run.claimed.get(launch.n)
    if is_own and not run.ledger.has_requested(launch.n):
        return 0.0
    if is_own and run.final_state(launch) == State.NO_CAPACITY:  # each request was refused
        return 0.0
    own = run.ledger.cost_of(launch.n) if is_own else None
    if own is not None:
        return own

    age_s = ledger.age_s(entry)
    if age_s is None:
        return entry.usd
    recorded = 0.0
    with contextlib.suppress(ArtifactError):
        recorded = cost_of(run.store, launch, run.pods.now())["cost"]
    by_its_age = entry.price_per_hour * max(age_s, 0.0) / SECONDS_PER_HOUR
    return min(entry.usd, max(recorded, by_its_age))


def _settle_abandoned(run: RunContext, ledger: GroupLedger) -> None:
    """Settle launches whose launcher did not live to do it: they have ended, and have no pod."""
    over = [
        (entry, launch)
        for entry in ledger.held().values()
        if (launch := _ended_launch(run, entry)) is not None
    ]
    if not over:
        return

    alive = {pod.name for pod in run.pods.list() if pod.status is not PodStatus.GONE}
    for entry, launch in over:
        if launch.pod_name not in alive:
            ledger.settle(launch, _cost(run, ledger, entry, launch))


def _ended_launch(run: RunContext, entry: LedgerEntry) -> Launch | None:
    """The launch of a reservation, if it ended so long ago that a machine would be listed.

    None where a record of it is damaged: its money stays aside.
    """
    try:
        launch = Launch.read(run.store, entry.run_id, entry.launch)
        if launch is None or launch.pod_name != entry.pod_name:
            return None
        if run.final_state(launch) is None:
            return None
    except ArtifactError:
        return None
    dated = run.store.get_dated(launch.key(STATUS))
    age_s = None if dated is None else dated.age_s
    return launch if age_s is not None and age_s > run.watch.settle_s else None
