"""How an account of RunPod is reached: address, keys, and names of its secrets."""

import os
import re

from moola import __version__
from moola.errors import AuthError

PROVIDER = "runpod"
BASE_URL = "https://api.runpod.io"
USER_AGENT = f"moola/{__version__}"  # the edge turns some default agents away
READ_TIMEOUT_S = 30.0

API_KEY = "RUNPOD_API_KEY"  # environment: the account's key, or in a pod that pod's own
TERMINATE_KEY = "RUNPOD_TERMINATE_API_KEY"  # a restricted key with which a machine ends itself
BASE_URL_VARIABLE = "RUNPOD_API_BASE_URL"  # also the `runpod` package's
NO_KEY = f"no key for RunPod: set {API_KEY}"

SECRET_PREFIX = "{{ RUNPOD_SECRET_"
SECRET_REFERENCE = re.compile(r"\{\{\s*RUNPOD_SECRET_(\w+)\s*\}\}")


def is_local(base_url: str) -> bool:
    """Is an address one that only this computer or its network can reach?"""
    from moola.store.s3_access import unreachable_reason  # boto3, half a second

    return unreachable_reason(base_url) is not None


def secret_reference(name: str) -> str:
    """What stands in a pod's environment for one of the account's secrets; RunPod fills it in."""
    return f"{SECRET_PREFIX}{name} }}}}"


def is_secret_reference(value: str) -> bool:
    return value.startswith(SECRET_PREFIX)


def secret_names(value: str) -> list[str]:
    """The secrets that a variable's value refers to."""
    return SECRET_REFERENCE.findall(value)


def end_by_hand(pod_id: str) -> str:
    """The command by which a person ends a pod that moola leaves alone."""
    return f'curl -X DELETE -H "Authorization: Bearer ${API_KEY}" {BASE_URL}/v2/pods/{pod_id}'


def checked_key(key: str | None) -> str | None:
    """The key of the argument or of RUNPOD_API_KEY, None if there is none.

    Raises AuthError for one that no HTTP header can hold.
    """
    key = (key or os.environ.get(API_KEY, "")).strip()
    if key and not re.fullmatch(r"[!-~]+", key):
        raise AuthError(f"{API_KEY} has a blank or a character that is not ASCII in it")
    return key or None
