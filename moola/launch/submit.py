"""Submits a prepared run and follows it until it ends.

In this order: checked, shown, uploaded, submitted, run. Whatever can be refused is refused before
anything is sent.
"""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import typer

from moola.errors import DataError
from moola.jobs.prepare import PreparedRun
from moola.launch.console import confirm, print_json, print_table, print_text, terminal
from moola.launch.endings import Endings, require_told
from moola.launch.progress import byte_bar
from moola.launch.settings import Settings
from moola.providers.base import PodApi
from moola.runs.about import NO_ABOUT, About, add_about
from moola.runs.environment import beat_s
from moola.runs.heartbeat import BEAT_S
from moola.runs.reading import read_manifest
from moola.runs.submit import put_input, read_spec_document, submit
from moola.runs.workdir import require_writable
from moola.store import Store, open_store

if TYPE_CHECKING:  # each place to run is imported only where it is chosen
    from moola.launch.rented.plan import Plan

COMMANDS_AFTER = {"precompute": ("verify", "pull"), "train": ("pull",)}

RunToEnd = Callable[[], int]  # runs the submitted job and shows its log; -> exit code


def submit_and_follow(
    settings: Settings,
    run: PreparedRun,
    *,
    dry_run: bool = False,
    yes: bool = False,
    about: About = NO_ABOUT,
    detach: bool = False,
) -> None:
    """Submit a run and follow it; one that is committed already is named and not computed again.

    `yes` spends money without asking. `about` is what people call the run. `detach` leaves a rented
    run to `moola tend` once a launch is claimed. Raises typer.Exit with the job's exit code if that
    is not 0, and with 0 where the question is answered with no. Raises DataError for --on ray.
    """
    if settings.on == "ray":
        raise DataError(
            f"--on ray is for the runs of a sweep: moola sweep {run.job} ... --on ray; one "
            "run goes --on local, docker or runpod"
        )
    if dry_run and settings.on != "runpod":
        show_dry_run(run, store=settings.store, on=settings.on)
        return

    require_told(settings)
    store = open_store(settings.store)
    if read_manifest(store, run.run_id) is not None:
        read_spec_document(store, run.run_id)  # is that of the run
        if about:
            add_about(store, run.run_id, about)
        print_text(
            f"{run.run_id} is already committed in {settings.store}: same spec, inputs and code. "
            "--force computes it again."
        )
        return

    if settings.on == "runpod":
        run_to_end = _check_runpod(settings, store, run, dry_run=dry_run, yes=yes, detach=detach)
    elif settings.on == "docker":
        run_to_end = _check_docker(settings, store, run)
    else:
        run_to_end = _check_local(settings, store, run)
    if dry_run:
        return

    upload_inputs(store, run)
    submit(store, run.run_id, run.document)
    if about:
        add_about(store, run.run_id, about)
    try:
        exit_code = run_to_end()
    finally:
        Endings(settings).tell(store, run.run_id)
    if exit_code:
        raise typer.Exit(exit_code)
    if detach:
        return
    _show_commands_after(run)


def show_dry_run(run: PreparedRun, **details: object) -> None:
    """Print what would run, as JSON."""
    print_json({"run": run.run_id, **details, "spec.json": run.document.fields()})


def _check_local(settings: Settings, store: Store, run: PreparedRun) -> RunToEnd:
    from moola.launch import local

    require_writable(settings.work)
    beat_s(os.environ, BEAT_S)  # the job would refuse it, but only once all is uploaded
    return lambda: local.run_to_end(settings, store, run.job, run.run_id)


def _check_docker(settings: Settings, store: Store, run: PreparedRun) -> RunToEnd:
    from moola.launch import docker

    require_writable(settings.work)
    image = docker.find_image(settings.image(run.job) or docker.IMAGES[run.job])
    return lambda: docker.run_to_end(settings, store, run.job, run.run_id, image)


def _check_runpod(
    settings: Settings,
    store: Store,
    run: PreparedRun,
    *,
    dry_run: bool,
    yes: bool,
    detach: bool,
) -> RunToEnd:
    """Show what would be rented, and ask; nothing has been sent or paid for until then."""
    from moola.launch.rented import plan as plans
    from moola.launch.rented.image_digest import with_digest
    from moola.launch.rented.request import first_request, shown_request
    from moola.launch.rented.session import Session
    from moola.launch.rented.terms import Terms
    from moola.providers import open_pods

    pods = open_pods(settings.pods)
    image = with_digest(settings.image(run.job), run.job, run.machine.registry)
    plan = make_plan(settings, store, run, pods, image)
    request = pods.body(first_request(settings, plan))

    console = terminal()
    print_table(plans.plan_table(plan), console)
    print_text(plans.plan_text(plan), console)
    plans.require_affordable(run.machine, plan.choices)
    if dry_run:
        show_dry_run(run, request=shown_request(request))
    elif not yes and not confirm(f"rent a machine for at most {plan.most_it_can_cost():.2f} USD?"):
        raise typer.Exit(0)

    session = Session(settings, store, pods, run.run_id, console)
    if detach:
        return lambda: session.detach(Terms(run.job, image, plans.machine_json(run.machine)))
    return lambda: session.attended(lambda: session.run(run.job, image, run.machine))


def make_plan(
    settings: Settings, store: Store, run: PreparedRun, pods: PodApi, image: str
) -> "Plan":
    """What a rented run would be. Raises DataError or LaunchError where it could not be rented."""
    from moola.launch.rented.plan import Plan, candidates, choose
    from moola.launch.rented.store_access import require_reachable, store_warnings

    warnings: tuple[str, ...] = ()
    if settings.store.startswith("s3://"):  # another one is refused with the request
        warnings = store_warnings(require_reachable(pods), run.machine, os.environ)
    offers = pods.offers(candidates(run.machine, pods), run.machine.min_cuda)
    return Plan(
        run_id=run.run_id,
        job=run.job,
        image=image,
        machine=run.machine,
        choices=choose(run.machine, offers),
        uploads=_inputs_to_upload(store, run),
        warnings=warnings,
    )


def _inputs_to_upload(store: Store, run: PreparedRun) -> dict[str, int]:
    """File name -> bytes of the inputs that the store does not have yet."""
    sizes = {}
    for name in run.inputs:
        item = run.input_file(name)
        stored = store.head(item.key)
        if stored is None or stored.size != item.size:
            sizes[item.name] = item.size
    return sizes


def upload_inputs(store: Store, run: PreparedRun) -> None:
    """Upload what a run reads and the store does not have."""
    for name, path in run.inputs.items():
        item = run.input_file(name)
        with byte_bar(f"upload {item.name}", item.size) as advance:
            put_input(store, path, item, advance)


def _show_commands_after(run: PreparedRun) -> None:
    commands = [f"  moola {name} {run.run_id}" for name in COMMANDS_AFTER[run.job]]
    print_text("\n".join([f"committed {run.run_id}", *commands]))
