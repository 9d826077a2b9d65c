"""What a launcher may rent: what it has shown, or what a launch asks for that can be trusted.

A launch in the store can be written by anyone who can write there. What it asks for is rented only
if it carries a proof by a holder of the account's key, or if a person has seen it and said yes.
"""

import sys
from dataclasses import dataclass
from typing import Any

import typer
from pydantic import ValidationError
from rich.table import Table
from rich.text import Text

from moola.errors import DataError, LaunchError
from moola.launch.console import print_table
from moola.launch.rented.context import RunContext
from moola.launch.rented.plan import machine_json
from moola.runs.authority import SIGNING_KEY
from moola.runs.groups import Budget
from moola.runs.launches import Launch, launch_key
from moola.specs import MachineConfig, PrecomputeSpec, TrainSpec, duration_text, read_spec
from moola.text import quoted

SPECS: dict[str, type[PrecomputeSpec] | type[TrainSpec]] = {
    "precompute": PrecomputeSpec,
    "train": TrainSpec,
}


@dataclass(frozen=True)
class Terms:
    """What to rent for a run. `machine` is MachineConfig as JSON."""

    job: str
    image: str
    machine: dict[str, Any]
    budget: Budget | None = None  # of the group that the run is launched for

    @classmethod
    def of_launch(cls, launch: Launch) -> "Terms":
        """As a launch asks for it. Raises LaunchError for a machine that this version lacks."""
        try:
            MachineConfig.model_validate(launch.machine)
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            field = ".".join(map(str, ("machine", *fault["loc"])))
            raise LaunchError(
                f"{launch_key(launch.run_id, launch.n)} asks for a machine that this version of "
                f"moola does not know: {quoted(field)}: {fault['msg']}"
            ) from None
        return cls(launch.job, launch.image, launch.machine, launch.budget)

    def machine_config(self) -> MachineConfig:
        return MachineConfig.model_validate(self.machine)


def accepted_terms(run: RunContext, launch: Launch, *, may_ask: bool = True) -> Terms:
    """What a launch asks for, if it may be rented without having been shown here.

    A launch without a proof is shown beside what this computer would rent, and asked about; no
    option answers that question. Raises LaunchError where the answer is no, or nobody can answer.
    """
    terms = Terms.of_launch(launch)
    if run.is_trusted(launch):
        return terms

    if may_ask:
        print_table(comparison(run, terms), run.console)
    question = (
        f"launch {launch.n} of {run.run_id} carries no proof by a holder of this account's key: "
        "whoever can write to the store may have written it. Rent what it asks for?"
    )
    if not may_ask or not sys.stdin.isatty():
        raise LaunchError(
            f"{question} Nobody can answer here. Launch the run again with the command that made "
            f"it, or attach where a person can answer, or set {SIGNING_KEY} to the value that it "
            "was launched with"
        )
    if not typer.confirm(question, err=True):
        raise LaunchError(f"launch {launch.n} of {run.run_id} was not accepted: nothing is rented")
    return terms


def comparison(run: RunContext, terms: Terms) -> Table:
    """What the stored launch asks for, beside what this computer's spec and settings would."""
    table = Table("", "in the store", "here", title=f"what to rent for {run.run_id}")
    stored = _rows(terms)
    here = _rows(_local_terms(run, terms.job))
    for name, value in stored.items():
        other = here.get(name, "-")
        style = "" if value == other else "bold"
        table.add_row(name, Text(value, style), Text(other))
    return table


def _local_terms(run: RunContext, job: str) -> Terms | None:
    """What the shipped spec and the settings here would rent; None for a job that has none."""
    from moola.jobs.prepare import shipped_spec  # reads pandas, for a question that is rare

    kind = SPECS.get(job)
    if kind is None:
        return None
    try:
        machine = read_spec(kind, shipped_spec(job)).machine
    except DataError:
        return None
    return Terms(job, run.settings.image(job) or "none set", machine_json(machine))


def _rows(terms: Terms | None) -> dict[str, str]:
    """Name -> text, fit for a terminal whatever stands in it."""
    if terms is None:
        return {}

    machine = terms.machine_config()
    if machine.gpu is not None:
        size = f"{machine.gpu.count} GPU"
        types = machine.gpu.types or (f"any with {machine.gpu.min_memory_gb:g} GB",)
    else:
        assert machine.cpu is not None
        size = f"{machine.cpu.vcpus} vCPU"
        types = machine.cpu.flavors
    secrets = [f"{name} from {secret}" for name, secret in sorted(machine.secrets.items())]

    return {
        "image": _plain(terms.image),
        "machine": _plain(f"{size}: {', '.join(types)}"),
        "cloud": f"{machine.cloud} {_plain(', '.join(machine.data_centers))}".strip(),
        "disk": f"{machine.disk_gb} GB",
        "registry": _plain(machine.registry or "none"),
        "max_price_per_hour": f"{machine.max_price_per_hour:g} USD",
        "max_runtime": duration_text(machine.max_runtime),
        "max_spend": f"{machine.max_spend:g} USD",
        "further attempts": str(machine.retry.times),
        "secrets": _plain(", ".join(secrets) or "none"),
        "budget": _budget_text(terms.budget),
    }


def _budget_text(budget: Budget | None) -> str:
    if budget is None:
        return "of the run alone"
    return f"{budget.max_spend:g} USD and {budget.max_machines} machines for {budget.group}"


def _plain(text: str) -> str:
    """One line of printable characters."""
    return "".join(character if character.isprintable() else "?" for character in text)
