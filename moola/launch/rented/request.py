"""The request for a machine: built apart from being sent, so that a dry run can show it."""

import os
import re
import time
from collections.abc import Mapping
from typing import Any

from moola.errors import DataError
from moola.launch.rented.plan import Plan, deadline_of, machine_json
from moola.launch.rented.store_access import TOKEN, token_travels
from moola.launch.settings import Settings
from moola.providers.base import Offer, PodRequest
from moola.providers.runpod.account import TERMINATE_KEY, is_secret_reference, secret_reference
from moola.runs.authority import NEVER_ON_A_MACHINE
from moola.runs.launches import Launch, new_launch
from moola.specs import MachineConfig
from moola.store.s3_access import resolve_access
from moola.text import quoted

DEADLINE = "MOOLA_DEADLINE"  # Unix seconds
NEEDED_ENV = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
SECRET_ENV = (*NEEDED_ENV, TOKEN, TERMINATE_KEY)
OTHER_ENV = ("AWS_MAX_ATTEMPTS",)  # passed on if it is set
HIDDEN = "***"
HOW_TO_RESTRICT = "Make a restricted key of its own in the account's settings, for pods only."
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
SECRET_NAME = re.compile(r"[A-Za-z0-9_]+")


def pod_request(settings: Settings, launch: Launch, offer: Offer, deadline: float) -> PodRequest:
    """The exact request for a candidate; building it sends nothing.

    Raises DataError as `pod_environment` does.
    """
    machine = launch.machine_config()
    return PodRequest(
        name=launch.pod_name,
        image=launch.image,
        candidate=offer.candidate,
        disk_gb=machine.disk_gb,
        env=pod_environment(settings, launch, machine, deadline),
        data_centers=machine.data_centers,
        min_cuda=machine.min_cuda,
        registry=machine.registry,
    )


def first_request(settings: Settings, plan: Plan) -> PodRequest:
    """The request that would be sent first, for a launch that nobody has claimed.

    Raises DataError as `pod_environment` does.
    """
    machine = machine_json(plan.machine)
    launch = new_launch(settings.store, plan.run_id, 1, plan.job, plan.image, machine)
    takeable = [choice for choice in plan.choices if not choice.why_not]
    choice = takeable[0] if takeable else plan.choices[0]
    deadline = deadline_of(plan.machine, choice.price, spent=0.0, now=time.time())
    return pod_request(settings, launch, choice.offer, deadline)


def pod_environment(
    settings: Settings,
    launch: Launch,
    machine: MachineConfig,
    deadline: float,
    environ: Mapping[str, str] = os.environ,
) -> dict[str, str]:
    """The variables that the machine is given; `deadline` in Unix seconds.

    Where the spec names a secret of the provider, a reference to it stands in place of the value.
    Endpoint, region and addressing of the store are those that this computer uses.
    Raises DataError if the store cannot be reached from a rented machine: a folder, or keys that
    nobody gave; and if a key that no machine may have would be among them.
    """
    if not settings.store.startswith("s3://"):
        raise DataError(
            f"a rented machine needs a store it can reach: s3://bucket/prefix, got {settings.store}"
        )

    credentials = _credentials(machine, environ)
    n_gpus = machine.gpu.count if machine.gpu is not None else 0
    return {
        **resolve_access().environment(),
        **credentials,
        "AWS_EC2_METADATA_DISABLED": "true",
        "MOOLA_STORE": settings.store,
        "MOOLA_JOB": launch.job,
        "MOOLA_RUN": launch.run_id,
        "MOOLA_ATTEMPT": launch.attempt,
        "MOOLA_LAUNCH": str(launch.n),
        DEADLINE: f"{deadline:.0f}",
        "MOOLA_BEAT_S": f"{settings.watch.beat_s:g}",
        "MOOLA_GPUS": str(n_gpus),
        "MOOLA_IMAGE_DIGEST": launch.image.rpartition("@")[2],
        "PYTHONUNBUFFERED": "1",
    }


def _credentials(machine: MachineConfig, environ: Mapping[str, str]) -> dict[str, str]:
    """The keys that the machine is given: of the store, and the one with which it ends itself."""
    names = [*NEEDED_ENV, *OTHER_ENV, TERMINATE_KEY]
    if token_travels(machine, environ):
        names.append(TOKEN)
    credentials = {name: environ[name] for name in names if environ.get(name, "").strip()}
    for name, secret in machine.secrets.items():
        _check_secret(name, secret)
        credentials[name] = secret_reference(secret)

    missing = [name for name in NEEDED_ENV if name not in credentials]
    if missing:
        raise DataError(
            f"the machine needs {' and '.join(missing)}: set it here, or name a secret of the "
            f"provider: --set machine.secrets.{missing[0]}=NAME"
        )

    for kept in NEVER_ON_A_MACHINE:
        _require_kept_away(kept, credentials, environ)
    return credentials


def _check_secret(name: str, secret: str) -> None:
    """Raises DataError for a variable that a machine may not have, or names that are none."""
    for text in (name, secret):
        if text.upper() in NEVER_ON_A_MACHINE:
            raise DataError(
                f"machine.secrets may not name {text}: whoever has it can rent in your name, "
                "so it is never given to a machine"
            )
    if not VARIABLE.fullmatch(name) or not SECRET_NAME.fullmatch(secret):
        raise DataError(
            "machine.secrets takes a variable's name and a secret's name, letters, digits and _ "
            f"alone, got {quoted(name)}: {quoted(secret)}"
        )


def _require_kept_away(
    kept: str, credentials: Mapping[str, str], environ: Mapping[str, str]
) -> None:
    """Raises DataError if the value of the key `kept` is among those that a machine would get."""
    value = environ.get(kept, "").strip()
    for name, credential in credentials.items():
        if value and value == credential.strip():
            raise DataError(
                f"{name} is the same key as {kept}, which is never given to a machine: whoever has "
                f"it can rent in your name. {HOW_TO_RESTRICT if name == TERMINATE_KEY else ''}"
            )


def shown_request(body: dict[str, Any], environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """A request that may be printed: without the values of secrets, with the references to them.

    They are the values of SECRET_ENV in its `env`, and wherever else they stand in a text: a
    GraphQL query holds the whole environment.
    """
    public: dict[str, Any] = {}
    for name, value in body.items():
        public[name] = without_secrets(value, environ) if isinstance(value, str) else value

    env = dict(body.get("env", {}))
    for name in SECRET_ENV:
        if name in env and not is_secret_reference(env[name]):
            env[name] = HIDDEN
    return {**public, "env": env}


def without_secrets(text: str, environ: Mapping[str, str] = os.environ) -> str:
    """A text without the values of SECRET_ENV that this computer has."""
    for name in SECRET_ENV:
        value = environ.get(name)
        if value:
            text = text.replace(value, HIDDEN)
    return text
