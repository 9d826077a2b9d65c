"""Looks at the whole set-up, and says for each part what was found or what to do."""

import os
from collections.abc import Callable

from rich.table import Table

from deploy import docker
from deploy.plan import NEEDED_ENV, TERMINATE_KEY
from deploy.settings import Settings
from moola.errors import MoolaError
from moola.specs import JOBS
from moola.store import open_store

Row = tuple[str, bool, str]  # what, whether it is in order, what was found or what to do


def examine(settings: Settings) -> list[Row]:
    """Specs and store always; the engine for --on docker; keys, images and the provider for --on runpod."""
    rows = [_try("specs", _shipped_specs), _try(f"store {settings.store}", lambda: _probe_store(settings))]
    if settings.on == "docker":
        rows += docker.doctor({job: settings.image(job) or name for job, name in docker.IMAGES.items()})
    if settings.on == "runpod":
        rows += _variables() + [_try(f"image for {job}", lambda job=job: _digest(settings, job)) for job in JOBS]
        rows.append(_try("RunPod", lambda: _provider(settings)))
    return rows


def doctor_table(rows: list[Row]) -> Table:
    """For people."""
    table = Table("what", "", "found, or what to do")
    for what, ok, text in rows:
        table.add_row(what, "[green]ok[/]" if ok else "[red]no[/]", text)
    return table


def _try(what: str, look: Callable[[], str]) -> Row:
    try:
        return what, True, look()
    except MoolaError as error:
        return what, False, str(error)


def _shipped_specs() -> str:
    for kind in JOBS.values():
        kind()
    return ", ".join(JOBS)


def _probe_store(settings: Settings) -> str:
    probes = open_store(settings.store).check()
    missing = [probe.name for probe in probes if not probe.ok]
    return (
        "all it can be asked for" if not missing else f"usable, without {', '.join(missing)}: `store check` says more"
    )


def _variables() -> list[Row]:
    rows: list[Row] = [("RUNPOD_API_KEY", bool(os.environ.get("RUNPOD_API_KEY")), "of the account, for this computer")]
    for name in NEEDED_ENV:
        text = "goes to the machine; or a secret of the provider: --set machine.secrets." + name + "=NAME"
        rows.append((name, bool(os.environ.get(name)), text))
    text = "a restricted key (pods only) with which a machine ends itself; without it the pod's own key is tried"
    return [*rows, (TERMINATE_KEY, bool(os.environ.get(TERMINATE_KEY)), text)]


def _digest(settings: Settings, job: str) -> str:
    from deploy.registry import with_digest

    return with_digest(settings.image(job), job)


def _provider(settings: Settings) -> str:
    from deploy.runpod import open_pods

    pods = open_pods(settings.pods)
    return f"the key works; {len(pods.list())} machines in the account"
