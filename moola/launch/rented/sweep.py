"""A sweep on rented machines: several at once, under one budget that all launchers share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import typer

from moola.errors import EXIT_CANCELLED, DataError
from moola.jobs.prepare import PreparedRun
from moola.launch.console import confirm, print_table, print_text, terminal
from moola.launch.endings import MemberEndings, require_told
from moola.launch.member_progress import MemberProgress
from moola.launch.rented.budget import dearest_price, most_of_one_machine
from moola.launch.rented.image_digest import with_digest
from moola.launch.rented.members import RentedMembers, say_left_alone
from moola.launch.rented.plan import machine_json, plan_table, plan_text, require_affordable
from moola.launch.rented.request import first_request, shown_request
from moola.launch.rented.terms import Terms
from moola.launch.settings import Settings
from moola.launch.submit import make_plan, show_dry_run
from moola.launch.sweep import Sweep, finish, runs_left, submit_group
from moola.providers import open_pods
from moola.providers.base import PodApi
from moola.runs.groups import MAX_MEMBERS, Budget
from moola.store import Store, open_store


@dataclass(frozen=True)
class Caps:
    """What a person allows a sweep. None: as much as the plan says.

    machines      at once by this command
    max_machines  at once by all launchers of the group
    max_spend     USD, of all runs and launchers together
    """

    machines: int
    max_machines: int | None = None
    max_spend: float | None = None


def run_rented_sweep(
    settings: Settings,
    sweep: Sweep,
    caps: Caps,
    *,
    detach: bool = False,
    dry_run: bool = False,
    yes: bool = False,
) -> None:
    """Show the plan, ask, submit what is not committed, and see it through on rented machines.

    With `detach` it returns once everything is uploaded and a launch of each run is claimed.
    """
    require_told(settings)
    store = open_store(settings.store)
    left = runs_left(store, sweep)
    if not left:
        submit_group(store, sweep, left)
        finish(store, sweep, {})
        return

    pods = open_pods(settings.pods)
    run = _one_machine(left)
    terms, request = _show_plan(settings, store, pods, sweep, run, len(left), caps)
    if dry_run:
        show_dry_run(run, group=sweep.group.id, request=request)
        return
    assert terms.budget is not None
    question = f"rent machines for at most {terms.budget.max_spend:.2f} USD?"
    if not yes and not confirm(question):
        raise typer.Exit(0)

    submit_group(store, sweep, left)
    titles = {run.run_id: sweep.titles[run.run_id] for run in left}
    members = RentedMembers(settings, store, pods, terms, caps.machines)
    if detach:
        members.claim(list(titles))
        print_text(f"{len(titles)} runs can be left: moola tend sees them through", terminal())
        return

    endings = MemberEndings(settings, store, sweep.name, sweep.titles)
    try:
        with MemberProgress(terminal(), store, titles, endings.tell) as progress:
            exit_codes = members.run(list(titles), progress)
    except KeyboardInterrupt:
        say_left_alone(sweep.group.id)
        raise typer.Exit(EXIT_CANCELLED) from None
    finish(store, sweep, exit_codes)


def _show_plan(
    settings: Settings,
    store: Store,
    pods: PodApi,
    sweep: Sweep,
    run: PreparedRun,
    n_runs: int,
    caps: Caps,
) -> tuple[Terms, dict[str, Any]]:
    """Show what would be rented for each run, and for all.

    -> (the terms of the launches, the request for the first machine as it may be shown). Raises
    DataError for a budget in which no machine has room.
    """
    image = with_digest(settings.image(run.job), run.job, run.machine.registry)
    plan = make_plan(settings, store, run, pods, image)
    request = pods.body(first_request(settings, plan))  # refused here, before anything is sent
    require_affordable(run.machine, plan.choices)

    price = dearest_price(run.machine, plan.choices)
    most_of_one = most_of_one_machine(run.machine, price, settings.watch.grace_s)
    budget = _budget(sweep, n_runs * plan.most_it_can_cost(), most_of_one, caps)
    print_table(plan_table(plan), terminal())
    print_text(plan_text(plan), terminal())
    print_text(
        f"{n_runs} runs of {budget.group}, {caps.machines} machines at once by this command; "
        f"all launchers together at most {budget.max_machines} machines and "
        f"{budget.max_spend:.2f} USD",
        terminal(),
    )
    terms = Terms(run.job, image, machine_json(run.machine), budget)
    return terms, shown_request(request)


def _one_machine(runs: Sequence[PreparedRun]) -> PreparedRun:
    """A run whose machine is that of all. Raises DataError for machines that differ."""
    first = runs[0]
    if any(run.machine != first.machine for run in runs):
        raise DataError("a sweep must rent the same machine for all runs: sweep over no machine.*")
    return first


def _budget(sweep: Sweep, most_of_all: float, most_of_one: float, caps: Caps) -> Budget:
    """The budget of the group. Raises DataError for one in which no machine has room. USD."""
    if caps.max_spend is not None and most_of_one > caps.max_spend:
        raise DataError(
            f"--max-spend {caps.max_spend:g} must have room for one machine, which may cost "
            f"{most_of_one:.2f} USD: allow more, or shorten it with --set machine.max_runtime=30m"
        )
    return Budget(
        group=sweep.group.id,
        max_spend=caps.max_spend or max(most_of_all, most_of_one),
        max_machines=min(caps.max_machines or caps.machines, MAX_MEMBERS),
    )
