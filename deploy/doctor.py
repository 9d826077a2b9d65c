"""Looks at the whole set-up, and says for each part what was found or what to do."""

import os
from collections.abc import Callable
from functools import partial

from rich.table import Table

from deploy import docker
from deploy.plan import NEEDED_ENV, TERMINATE_KEY
from deploy.providers import open_pods
from deploy.registry import with_digest
from deploy.settings import Settings
from moola.errors import DataError, MoolaError
from moola.specs import JOBS
from moola.store import open_store

Row = tuple[str, bool, str]  # what, whether it is in order, what was found or what to do


def examine(settings: Settings) -> list[Row]:
    """Specs and store always; the engine for --on docker; keys, images and the provider for --on runpod."""
    rows = [_try("specs", _shipped_specs), _try(f"store {settings.store}", partial(_probe_store, settings))]
    if settings.on == "docker":
        rows += docker.doctor({job: settings.image(job) or name for job, name in docker.IMAGES.items()})
    if settings.on == "runpod":
        rows += _variables()
        rows += [_try(f"image for {job}", partial(with_digest, settings.image(job), job)) for job in JOBS]
        rows.append(_try("RunPod: RUNPOD_API_KEY", partial(_account_key, settings)))
        if restricted := os.environ.get(TERMINATE_KEY):
            rows.append(_try(f"RunPod: {TERMINATE_KEY}", partial(_restricted_key, restricted)))
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
    if settings.on == "runpod" and not settings.store.startswith("s3://"):
        raise DataError("a rented machine cannot reach a folder: MOOLA_STORE=s3://bucket/prefix")
    missing = [probe.name for probe in open_store(settings.store).check() if not probe.ok]
    return f"usable, without {', '.join(missing)}: `store check` says more" if missing else "all it can be asked for"


def _variables() -> list[Row]:
    rows: list[Row] = [("RUNPOD_API_KEY", bool(os.environ.get("RUNPOD_API_KEY")), "of the account, for this computer")]
    for name in NEEDED_ENV:
        text = f"goes to the machine; or a secret of the provider: --set machine.secrets.{name}=NAME"
        rows.append((name, bool(os.environ.get(name)), text))
    text = "a restricted key (pods only) with which a machine ends itself; without it the pod's own key is tried"
    return [*rows, (TERMINATE_KEY, bool(os.environ.get(TERMINATE_KEY)), text)]


def _account_key(settings: Settings) -> str:
    pods = open_pods(settings.pods)
    n_machines, n_types = len(pods.list()), len(pods.catalog("gpu"))
    return f"it sees {n_machines} machines and {n_types} types of GPU"


def _restricted_key(key: str) -> str:
    return f"it sees {len(open_pods('rest', key).list())} machines"
