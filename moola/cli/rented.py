"""The commands for runs on rented machines: attach, reap and cost."""

from typing import TYPE_CHECKING, Annotated

import typer

from moola.cli.options import JsonOption, RunArgument, StoreOption, read_settings
from moola.errors import TryAgainError

if TYPE_CHECKING:
    from moola.launch.rented.session import Session


def open_session(run: str, store: str | None) -> "Session":
    """A run's rented machines, from its id, the store and the provider's key."""
    from moola.launch.rented.session import Session
    from moola.providers import open_pods
    from moola.runs.reading import find_run
    from moola.store import open_store

    settings = read_settings(store)
    run_store = open_store(settings.store)
    return Session(settings, run_store, open_pods(settings.pods), find_run(run_store, run))


def attach(run: RunArgument, store: StoreOption = None) -> None:
    """Take over a run on a rented machine.

    From any computer; it does everything that the command which started the run would do. A launch
    without a proof by a holder of the account's key is shown, and asked about, before another
    machine is rented for it.
    """
    from moola.launch.endings import Endings

    session = open_session(run, store)
    try:
        exit_code = session.attended(session.attach)
    finally:
        context = session.context
        endings = Endings(context.settings)
        endings.tell(context.store, context.run_id)
        endings.tell_groups(context.store)
    raise typer.Exit(exit_code)


def reap(store: StoreOption = None) -> None:
    """Terminate machines whose run is over.

    Terminates moola pods whose run has finished, expired or gone silent; for cron. Exit 75 if one
    could not be terminated, or a record of it is damaged.
    """
    from moola.launch.console import print_table, print_text
    from moola.launch.endings import Endings
    from moola.launch.rented import reap as reaping
    from moola.providers import open_pods
    from moola.store import open_store

    settings = read_settings(store)
    pods = open_pods(settings.pods)
    run_store = open_store(settings.store)
    reaped = reaping.reap(settings, run_store, pods)
    endings = Endings(settings)
    for run_id in {one.run_id for one in reaped if one.ended and one.run_id}:
        endings.tell(run_store, run_id)
    endings.tell_groups(run_store)

    print_table(reaping.reap_table(reaped))
    n_ended = sum(one.ended for one in reaped)
    print_text(f"{len(reaped)} machines found, {n_ended} ended")
    if any(one.failed for one in reaped):
        raise typer.Exit(TryAgainError.exit_code)


def tend(
    follow: Annotated[bool, typer.Option("--follow", help="go on, pass after pass")] = False,
    store: StoreOption = None,
) -> None:
    """See all open runs on rented machines through.

    One pass, for cron: does what `reap` does, asks for machines that launches wait for, records
    how runs ended, and retries as their specs allow. It rents only what carries a proof by a holder
    of the account's key. Any number may run at once. Exit 75 as for `reap`.
    """
    from moola.launch.console import print_table, print_text
    from moola.launch.rented import reap as reaping
    from moola.launch.rented import tend as tending
    from moola.providers import open_pods
    from moola.store import open_store

    settings = read_settings(store)
    run_store = open_store(settings.store)
    pods = open_pods(settings.pods)
    if follow:
        tending.tend_on(settings, run_store, pods)

    done = tending.tend(settings, run_store, pods)
    print_table(reaping.reap_table(done.reaped))
    print_table(tending.tend_table(done.tended))
    print_text(f"{len(done.reaped)} machines found, {len(done.tended)} runs open")
    if done.has_failed:
        raise typer.Exit(TryAgainError.exit_code)


def cost(run: RunArgument, as_json: JsonOption = False, store: StoreOption = None) -> None:
    """Show what a run's machines cost.

    Price x time so far, beside the provider's billing records once they have arrived.
    """
    from moola.launch.console import print_json, print_table
    from moola.launch.rented.costs import cost_of_run, cost_table

    run_context = open_session(run, store).context
    found = cost_of_run(run_context.store, run_context.pods, run_context.run_id)
    if as_json:
        print_json(found.fields())
    else:
        print_table(cost_table(found))
