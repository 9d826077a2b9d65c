"""The variables of a member's job on a node: where the store is, its keys, the job's threads."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from moola.errors import DataError
from moola.launch.capacity import thread_environment
from moola.launch.console import print_text, terminal
from moola.launch.docker import is_on_loopback
from moola.launch.local import job_environment
from moola.launch.settings import Settings
from moola.providers.ray_cluster import Cluster, Share
from moola.runs.workdir import DEFAULT_WORK, work_folder
from moola.store import Store
from moola.store.s3_access import resolve_access, resolve_keys

PASSED_ON = ("AWS_MAX_ATTEMPTS", "MOOLA_BEAT_S", "MOOLA_DEBUG")  # where they are set here
# Of a node, and of no use beside the keys and the place that are sent; an empty one is unset.
NOT_THE_NODES = (
    "AWS_CA_BUNDLE",
    "AWS_CONFIG_FILE",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_PROFILE",
    "AWS_SESSION_TOKEN",
    "AWS_SHARED_CREDENTIALS_FILE",
)


def store_environment(
    settings: Settings, store: Store, cluster: Cluster, longest: timedelta
) -> dict[str, str]:
    """By which a node finds the store as this computer does; {} where it has it all by itself.

    The keys are those that were resolved here; where there are none, the node's own. Raises
    DataError for a store that only this computer reaches, and for keys that end within `longest`.
    """
    if cluster.is_own:
        return {}
    if not settings.store.startswith("s3://"):
        if not cluster.is_here():
            text = f"the store {store.url} is a folder: all nodes must share it under this path"
            print_text(text, terminal())
        return {}

    access = resolve_access()
    if is_on_loopback(access.endpoint) and not cluster.is_here():
        raise DataError(
            f"nodes of the Ray cluster that are other computers cannot reach the store's endpoint "
            f"{access.endpoint}, this computer's own address: set AWS_ENDPOINT_URL_S3 to one that "
            "they reach, or use --on local"
        )
    warning = access.token_warning(longest, datetime.now(UTC))
    if warning is not None:
        print_text(f"warning: {warning}", terminal())

    keys = resolve_keys()
    own = dict.fromkeys(NOT_THE_NODES, "") | {"AWS_EC2_METADATA_DISABLED": "true"} if keys else {}
    return {**own, **access.environment(), **keys}


def member_environment(
    settings: Settings, store: Store, run_id: str, share: Share, environ: Mapping[str, str]
) -> dict[str, str]:
    """The variables of a member's job beside the store's; MOOLA_ATTEMPT is the node's to choose."""
    is_default_work = settings.work == work_folder(DEFAULT_WORK)
    work = DEFAULT_WORK if is_default_work else str(settings.work.absolute())
    passed_on = {name: environ[name] for name in PASSED_ON if environ.get(name)}
    variables = {
        **job_environment(settings, run_id, ""),
        **thread_environment(share.cores, environ),
        **passed_on,
        "MOOLA_STORE": store.url,
        "MOOLA_WORK": work,
        "MOOLA_GPUS": str(share.gpus),
    }
    return variables if share.gpus else {**variables, "CUDA_VISIBLE_DEVICES": ""}
