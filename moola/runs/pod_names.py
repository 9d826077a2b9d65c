"""Names of rented pods: each tells the run, the launch and the store that it belongs to.

Only a holder of the account's key can give a pod a name. So a pod is ended only if its own name
says that it belongs to this store's launch; what a record in some store claims is not enough.
"""

import hashlib
import re
from typing import NamedTuple

NAME_PREFIX = "moola-"  # of every pod's name
TAG_DIGITS = 8  # hex digits of a store's tag

_POD_NAME = re.compile(
    NAME_PREFIX
    + r"(?P<run>[a-z][a-z0-9_]{0,31}-[0-9a-f]{12}(?:-[0-9a-f]{4,16})?)"
    + r"-a(?P<n>[1-9][0-9]{0,2})"
    + rf"(?:-(?P<tag>[0-9a-f]{{{TAG_DIGITS}}}))?"  # earlier versions left it out
    + r"-[0-9a-f]{4}"
)


class PodName(NamedTuple):
    """What a pod's name tells; `store_tag` is None in a name that an earlier version gave."""

    run_id: str
    n: int
    store_tag: str | None


def store_tag(store_url: str) -> str:
    """A short digest of a store's URL, as it stands in the names of its pods."""
    return hashlib.sha256(store_url.encode()).hexdigest()[:TAG_DIGITS]


def new_pod_name(run_id: str, n: int, store_url: str, token: str) -> str:
    """The name of launch n's pod; `token` is four hex digits that make it unique."""
    return f"{NAME_PREFIX}{run_id}-a{n}-{store_tag(store_url)}-{token}"


def parse_pod_name(name: str) -> PodName | None:
    """What the name of a moola pod tells; None for any other name."""
    match = _POD_NAME.fullmatch(name)
    if match is None:
        return None
    return PodName(match["run"], int(match["n"]), match["tag"])
