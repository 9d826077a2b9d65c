"""Whether a rented machine will reach the store, with keys that last as long as it may run."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

from moola.providers.base import PodApi
from moola.specs import MachineConfig
from moola.store.s3_access import S3Access, resolve_access

TOKEN = "AWS_SESSION_TOKEN"
KEY_ID = "AWS_ACCESS_KEY_ID"


def require_reachable(pods: PodApi) -> S3Access:
    """How this computer reaches the store; a machine that `pods` makes can do so, too.

    Raises DataError for an endpoint that only this computer or its network can reach, unless that
    is where the machines are.
    """
    access = resolve_access()
    if not pods.machines_are_local:
        access.require_reachable()
    return access


def store_warnings(
    access: S3Access, machine: MachineConfig, environ: Mapping[str, str]
) -> tuple[str, ...]:
    """What a person should know of the keys that the machine is given.

    Raises DataError for a session token that ends before the machine has to.
    """
    if TOKEN in machine.secrets:  # its value is the provider's, and so is its end
        access = replace(access, has_token=True, expires=None)
    elif not token_travels(machine, environ):
        return ()

    warning = access.token_warning(machine.max_runtime, datetime.now(UTC))
    return () if warning is None else (warning,)


def token_travels(machine: MachineConfig, environ: Mapping[str, str]) -> bool:
    """Is this computer's session token sent? It belongs to this computer's access key alone."""
    return bool(environ.get(TOKEN, "").strip()) and KEY_ID not in machine.secrets
