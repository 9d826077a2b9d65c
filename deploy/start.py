"""Starts a job where it is asked to run: on this machine, in a container on it, or on a rented one."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from deploy.ahead import Process
from deploy.settings import Settings
from deploy.tail import byte_bar
from moola.errors import DataError
from moola.machine import require_writable
from moola.runs import put_input, read_manifest, submit
from moola.specs import MachineConfig
from moola.store import Store, open_store


@dataclass(frozen=True)
class Order:
    """One run that is asked for; `document` is its spec.json, `inputs` the local files it reads."""

    job: str
    run_id: str
    document: Mapping[str, Any]
    inputs: Mapping[str, Path]
    machine: MachineConfig
    yes: bool = False  # spend money without asking
    dry_run: bool = False
    ahead: Process | None = None  # the job's process on this machine, if it was started already

    def inputs_not_in(self, store: Store) -> dict[str, int]:
        """name -> bytes of the inputs that would have to be uploaded."""
        items = {name: self.document["inputs"][name] for name in self.inputs}
        heads = {name: store.head(item["key"]) for name, item in items.items()}
        return {
            item["name"]: item["size"]
            for name, item in items.items()
            if (head := heads[name]) is None or head.size != item["size"]
        }


def start(settings: Settings, order: Order) -> None:
    """Submit a run and see it through; a committed one is named and not computed again. Exits with the job's code."""
    if order.dry_run and settings.on != "runpod":
        _print_json(
            {"run": order.run_id, "store": settings.store, "on": settings.on, "spec.json": dict(order.document)}
        )
        return
    store = open_store(settings.store)
    if read_manifest(store, order.run_id) is not None:
        typer.echo(
            f"{order.run_id} is already committed in {settings.store}: same spec, inputs and code. "
            "--force computes it again."
        )
        return
    run = _prepared(settings, store, order)
    if order.dry_run:
        return
    for name, path in order.inputs.items():
        item = order.document["inputs"][name]
        with byte_bar(f"upload {item['name']}", item["size"]) as advance:
            put_input(store, path, item, advance)
    submit(store, order.run_id, dict(order.document))
    exit_code = run()
    if exit_code:
        raise typer.Exit(exit_code)
    then = ("verify", "pull") if order.job == "precompute" else ("pull",)
    typer.echo(
        "\n  ".join([f"committed {order.run_id}", *(f"python deploy/launch.py {name} {order.run_id}" for name in then)])
    )


def _prepared(settings: Settings, store: Store, order: Order) -> Callable[[], int]:
    """What runs the submitted job; everything that can be refused is refused before this returns."""
    if settings.on == "runpod":
        return _rented(settings, store, order)
    require_writable(settings.work)
    if settings.on == "docker":
        from deploy import docker

        image = docker.find_image(settings.image(order.job) or docker.IMAGES[order.job])
        return lambda: docker.run_to_end(settings, store, order.job, order.run_id, image)
    from deploy import local

    return lambda: local.run_to_end(settings, store, order.job, order.run_id, order.ahead)


def _rented(settings: Settings, store: Store, order: Order) -> Callable[[], int]:
    """Show the plan and ask; nothing has been sent or paid for until then."""
    from deploy import plan as plans
    from deploy.providers import open_pods
    from deploy.registry import with_digest
    from deploy.remote import Remote

    pods = open_pods(settings.pods)
    image = with_digest(settings.image(order.job), order.job)
    offers = pods.offers(plans.candidates(order.machine, pods))
    plan = plans.Plan(
        run_id=order.run_id,
        job=order.job,
        image=image,
        machine=order.machine,
        choices=plans.choose(order.machine, offers),
        uploads=order.inputs_not_in(store),
    )
    body = pods.body(plans.first_request(settings, plan))
    console = Console(stderr=True)
    console.print(plans.plan_table(plan))
    console.print(plans.plan_text(plan), highlight=False, soft_wrap=True)
    plans.require_affordable(order.machine, plan.choices)
    if order.dry_run:
        _print_json({"run": order.run_id, "request": plans.shown_request(body), "spec.json": dict(order.document)})
    elif not order.yes:
        _ask(f"rent a machine for at most {plan.most_it_can_cost():.2f} USD?")
    remote = Remote(settings, store, pods, order.run_id, console)
    return lambda: remote.attended(lambda: remote.launch(order.job, image, order.machine))


def _ask(question: str) -> None:
    """Raises DataError where nobody can answer, and ends the command at a no."""
    if not sys.stdin.isatty():
        raise DataError(f"{question} Nobody can answer here: add --yes")
    if not typer.confirm(question, err=True):
        raise typer.Exit(0)


def _print_json(document: dict[str, Any]) -> None:
    import json

    typer.echo(json.dumps(document, indent=2, default=str))
