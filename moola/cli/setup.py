"""The commands for setting up: doctor and spec."""

from typing import Annotated, Literal

import typer

from moola.cli.options import (
    ImageOption,
    JsonOption,
    OnOption,
    SetOption,
    SpecOption,
    StoreOption,
    read_settings,
    spec_overrides,
)
from moola.errors import EXIT_USAGE

Job = Literal["precompute", "train"]
MachineSetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="a field of what is rented: machine...."),
]


def doctor(
    on: OnOption = None,
    image: ImageOption = None,
    set_: MachineSetOption = None,
    as_json: JsonOption = False,
    store: StoreOption = None,
) -> None:
    """Check the whole set-up.

    Says for each part what to do; exit 2 if something is missing.
    """
    from moola.cli.tables import findings_table
    from moola.jobs.prepare import shipped_spec
    from moola.launch.console import print_json, print_table
    from moola.launch.doctor import examine
    from moola.specs import JOBS, read_spec

    overrides = spec_overrides(set_, {})
    for field in overrides:
        if not field.startswith("machine."):
            raise typer.BadParameter(f"doctor takes machine.FIELD=VALUE alone, got {field!r}")
    machines = {
        job: read_spec(spec_type, shipped_spec(job), overrides).machine
        for job, spec_type in JOBS.items()
    }
    findings = examine(read_settings(store, on=on, image=image), machines)
    is_ready = all(finding.ok for finding in findings)
    if as_json:
        parts = [finding._asdict() for finding in findings]
        print_json({"ok": is_ready, "parts": parts})
    else:
        print_table(findings_table(findings))
    if not is_ready:
        raise typer.Exit(EXIT_USAGE)


def show_spec(
    job: Annotated[Job, typer.Argument(help="whose spec")],
    spec: SpecOption = None,
    set_: SetOption = None,
    as_json: JsonOption = True,  # noqa: ARG001
) -> None:
    """Print the resolved spec of a job, and its JSON schema, always as JSON."""
    from moola.jobs.prepare import shipped_spec
    from moola.launch.console import print_json
    from moola.specs import JOBS, read_spec

    spec_type = JOBS[job]
    resolved = read_spec(spec_type, spec or shipped_spec(job), spec_overrides(set_, {}))
    print_json(
        {
            "spec": resolved.model_dump(mode="json"),
            "schema": spec_type.model_json_schema(),
        }
    )
