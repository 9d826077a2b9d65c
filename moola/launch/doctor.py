"""Checks the whole set-up, and says for each part what was found or what to do."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from moola.errors import DataError, MoolaError
from moola.launch import docker
from moola.launch.rented.image_digest import with_digest
from moola.launch.rented.request import NEEDED_ENV
from moola.launch.settings import Settings
from moola.providers import open_pods, ray_cluster
from moola.providers.runpod.account import TERMINATE_KEY
from moola.specs import JOBS, MachineConfig
from moola.store import open_store

ACCOUNT_KEY = "RUNPOD_API_KEY"


class Finding(NamedTuple):
    """One part of the set-up, whether it is in order, and what was found or what to do."""

    part: str
    ok: bool
    note: str


def examine(
    settings: Settings,
    machines: Mapping[str, MachineConfig] | None = None,
) -> list[Finding]:
    """Specs and store always; for docker the engine and images, for ray the cluster; for runpod
    keys, images and the provider.

    `machines` is what would be rented, by job; the shipped specs say it where it is left out.
    Nothing is changed or rented.
    """
    findings = [
        _finding("specs", _check_shipped_specs),
        _finding(f"store {settings.store}", partial(_check_store, settings)),
    ]
    if settings.on == "docker":
        images = {job: settings.image(job) or name for job, name in docker.IMAGES.items()}
        findings += examine_docker(images)
    if settings.on == "ray":
        findings.append(_finding("Ray", ray_cluster.describe))
    if settings.on == "runpod":
        shipped = {job: spec_type().machine for job, spec_type in JOBS.items()}
        findings += _examine_runpod(settings, machines or shipped)
    return findings


def examine_docker(images: Mapping[str, str] = docker.IMAGES) -> list[Finding]:
    """The engine, the image of each job and the GPUs of this machine; `images`: job -> name."""
    engine = _finding("docker", lambda: f"engine {docker.engine_version()}")
    if not engine.ok:
        return [engine]

    findings = [engine]
    for job, name in images.items():
        findings.append(_finding(f"image for {job}", partial(_check_local_image, name)))
    gpus = docker.gpus() or ["none: training runs on the CPU where the spec allows it"]
    findings.append(Finding("GPUs", True, "; ".join(gpus)))
    return findings


def _examine_runpod(
    settings: Settings,
    machines: Mapping[str, MachineConfig],
) -> list[Finding]:
    findings = _examine_variables()
    if settings.store.startswith("s3://"):
        check_store = partial(_check_reachable, settings, machines)
        findings.append(_finding("store from a machine", check_store))
    for job, machine in machines.items():
        check_image = partial(with_digest, settings.image(job), job, machine.registry)
        findings.append(_finding(f"image for {job}", check_image))
    findings.append(_finding(f"RunPod: {ACCOUNT_KEY}", partial(_check_account_key, settings)))

    restricted_key = os.environ.get(TERMINATE_KEY)
    if restricted_key:
        check_key = partial(_check_restricted_key, restricted_key)
        findings.append(_finding(f"RunPod: {TERMINATE_KEY}", check_key))
    return findings


def _examine_variables() -> list[Finding]:
    notes = {ACCOUNT_KEY: "of the account, for this computer"}
    for name in NEEDED_ENV:
        notes[name] = (
            f"goes to the machine; or a secret of the provider: --set machine.secrets.{name}=NAME"
        )
    notes[TERMINATE_KEY] = (
        "a restricted key (pods only) with which a machine ends itself; without it the pod's own "
        "key is tried"
    )
    return [Finding(name, bool(os.environ.get(name)), note) for name, note in notes.items()]


def _finding(part: str, check: Callable[[], str]) -> Finding:
    """What a check returns; what it raises is what to do."""
    try:
        return Finding(part, True, check())
    except MoolaError as error:
        return Finding(part, False, str(error))


def _check_shipped_specs() -> str:
    for spec_type in JOBS.values():
        spec_type()
    return ", ".join(JOBS)


def _check_store(settings: Settings) -> str:
    if settings.on == "runpod" and not settings.store.startswith("s3://"):
        raise DataError("a rented machine cannot reach a folder: MOOLA_STORE=s3://bucket/prefix")

    check = open_store(settings.store).check()
    check.usable_profile()
    missing = [probe.name for probe in check.probes if not probe.ok]
    if missing:
        return f"usable, without {', '.join(missing)}: `moola store check` says more"
    return "all that a store can do"


def _check_reachable(settings: Settings, machines: Mapping[str, MachineConfig]) -> str:
    """By what is sent to a machine; a session token is compared with how long each may run."""
    from moola.launch.rented.store_access import require_reachable, store_warnings

    access = require_reachable(open_pods(settings.pods))
    warnings = {
        warning
        for machine in machines.values()
        for warning in store_warnings(access, machine, os.environ)
    }
    place = f"{access.endpoint or 'AWS S3'}, region {access.region}"
    return "; ".join([place, *sorted(warnings)])


def _check_local_image(name: str) -> str:
    return f"{name}, {docker.find_image(name).digest}"


def _check_account_key(settings: Settings) -> str:
    pods = open_pods(settings.pods)
    n_machines = len(pods.list())
    n_gpu_types = len(pods.catalog("gpu"))
    return f"it sees {n_machines} machines and {n_gpu_types} types of GPU"


def _check_restricted_key(key: str) -> str:
    n_machines = len(open_pods("rest", key).list())
    return f"it sees {n_machines} machines"
