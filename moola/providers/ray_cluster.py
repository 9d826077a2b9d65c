"""A Ray cluster, for tasks that take so many cores, GPUs and so much memory of a node.

Ray is imported here alone. It says where tasks run; what becomes of a run is in the store.
"""

import contextlib
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from ipaddress import ip_address
from typing import Any, NamedTuple

from moola.errors import DataError, LaunchError, TryAgainError
from moola.text import quoted, shortened

ADDRESS = "RAY_ADDRESS"
OWN = "local"  # Ray's word for a cluster that this process starts, and that ends with it
CONNECT_S = 5.0
ANSWER_S = 45.0  # for all of it: Ray itself waits four minutes, and then ends the process
OBJECT_STORE_BYTES = 80 << 20  # the least that Ray takes: no task hands over data
BYTES_PER_GB = 1e9

# For what this process starts and for Ray in it, in the place of Ray's defaults.
VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # as it will be by default; Ray warns until then
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # or `uv run` sends the current folder to the cluster
    "RAY_task_oom_retries": "0",  # or a job that needs too much memory is tried without end
    "RAY_worker_niceness": "0",  # a job is no less urgent than one that is run without Ray
}
PROBE = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
"""


class Node(NamedTuple):
    """A computer of a cluster that is alive."""

    address: str
    cores: float
    gpus: float
    memory_gb: float


class Share(NamedTuple):
    """What a task takes of its node."""

    cores: int
    gpus: int
    memory_gb: float


class TaskEnd(NamedTuple):
    """What a task returned, None where it did not; `words` then say why."""

    result: Any
    words: str


@dataclass(frozen=True)
class Task:
    """A task that was given to a cluster."""

    _ref: Any

    def has_ended(self) -> bool:
        """Also when it was lost for good, or cancelled."""
        import ray

        ended, _ = ray.wait([self._ref], timeout=0)
        return bool(ended)

    def end(self) -> TaskEnd:
        """How it ended; blocks until then."""
        import ray

        try:
            return TaskEnd(ray.get(self._ref), "")
        except ray.exceptions.RayTaskError as error:
            return TaskEnd(None, f"{type(error.cause).__name__}: {error.cause}")
        except ray.exceptions.TaskCancelledError:
            return TaskEnd(None, "cancelled")
        except ray.exceptions.RayError as error:
            first_line, *_ = [*str(error).strip().splitlines(), ""]
            return TaskEnd(None, f"Ray lost it: {type(error).__name__} {first_line}")

    def cancel(self, *, force: bool) -> None:
        """Interrupt it, or keep it from beginning. With `force` its process is ended."""
        import ray

        with contextlib.suppress(ray.exceptions.RayError):  # of one that has just ended
            ray.cancel(self._ref, force=force, recursive=False)


class Cluster:
    """A cluster that this process is connected to; `is_own`: it was started for this process."""

    def __init__(self, *, is_own: bool) -> None:
        self.is_own = is_own
        self._remote: dict[Callable[..., Any], Any] = {}

    def nodes(self) -> list[Node]:
        """Those that are alive now."""
        import ray

        return [
            Node(
                node["NodeManagerAddress"],
                node["Resources"].get("CPU", 0.0),
                node["Resources"].get("GPU", 0.0),
                node["Resources"].get("memory", 0.0) / BYTES_PER_GB,
            )
            for node in ray.nodes()
            if node["Alive"]
        ]

    def is_here(self) -> bool:
        """Are all nodes, as far as there are any yet, this computer?"""
        import ray

        here = ray.util.get_node_ip_address()
        return self.is_own or all(
            node.address == here or ip_address(node.address).is_loopback for node in self.nodes()
        )

    def start(
        self,
        work: Callable[[Mapping[str, Any]], Any],
        order: Mapping[str, Any],
        share: Share,
        *,
        name: str,
        further_tries: int,
    ) -> Task:
        """Run `work(order)` on some node, later if there is no room now.

        Where the node is lost or `work` raises TryAgainError it is run again, up to so many times.
        The order is an argument of the task: nothing of it is in Ray's lists.
        """
        import ray

        if work not in self._remote:
            self._remote[work] = ray.remote(work)
        options = {
            "name": name,
            "num_cpus": share.cores,
            "num_gpus": share.gpus,
            "memory": int(share.memory_gb * BYTES_PER_GB),
            "max_retries": further_tries,
            "retry_exceptions": [TryAgainError],
        }
        return Task(self._remote[work].options(**options).remote(dict(order)))


@contextlib.contextmanager
def open_cluster(cores: int, *, with_gpus: bool) -> Iterator[Cluster]:
    """The cluster of RAY_ADDRESS; without one, one of this computer with so many cores.

    Raises DataError where Ray is not installed or the address is none, TryAgainError where nothing
    answers there, LaunchError where it does not start or does not take this computer.
    """
    require_ray()
    os.environ.update(VARIABLES)
    address = os.environ.get(ADDRESS, "").strip() or OWN
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == OWN:
        options |= {
            "num_cpus": cores,
            "num_gpus": None if with_gpus else 0,  # None: as many as there are
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
        }
    else:
        _require_address(address)
        _require_answer(address)

    import ray

    try:
        ray.init(address=address, **options)
    except Exception as error:  # Ray raises whatever it likes
        raise _not_joined(address, str(error)) from error
    try:
        yield Cluster(is_own=address == OWN)
    finally:
        ray.shutdown()


def describe() -> str:
    """Ray's version, and what the cluster of RAY_ADDRESS has. Raises as `open_cluster` does."""
    require_ray()
    version = metadata.version("ray")
    if not os.environ.get(ADDRESS, "").strip():
        return f"{version}; each sweep starts a cluster of this computer ({ADDRESS} is not set)"
    with open_cluster(cores=1, with_gpus=False) as cluster:
        nodes = cluster.nodes()
    cores = sum(node.cores for node in nodes)
    gpus = sum(node.gpus for node in nodes)
    return f"{version}; {len(nodes)} nodes with {cores:g} cores and {gpus:g} GPUs"


def require_ray() -> None:
    """Raises DataError where Ray is not installed."""
    if find_spec("ray") is None:
        raise DataError("--on ray needs the package ray: pip install 'moola[ray]'")


def _require_address(address: str) -> None:
    """Raises DataError for what is no address of a cluster, TryAgainError for a closed port."""
    if address == "auto":
        return
    match = re.fullmatch(r"(?:([\w.-]+)|\[([\da-fA-F:]+)\]):(\d{1,5})", address)
    if match is None or not 0 < int(match[3]) < 1 << 16:
        raise DataError(
            f"{ADDRESS} must be HOST:PORT of a cluster whose node this computer is (the port that "
            f"`ray start --head` shows) or auto, got {quoted(address)}"
        )
    try:
        socket.create_connection((match[1] or match[2], int(match[3])), CONNECT_S).close()
    except OSError as error:
        raise _silent(address, str(error)) from error


def _require_answer(address: str) -> None:
    """Connect in a process of its own, which is ended where there is no answer."""
    command = [sys.executable, "-c", PROBE, address]
    try:
        done = subprocess.run(command, capture_output=True, timeout=ANSWER_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise _silent(address, f"no word of Ray within {ANSWER_S:g} s") from error
    if done.returncode == 0:
        return

    *_, last_line = ["", *done.stderr.decode(errors="replace").strip().splitlines()]
    raise _not_joined(address, last_line)


def _not_joined(address: str, reason: str) -> LaunchError:
    if address == OWN:
        return LaunchError(f"Ray did not start a cluster here: {reason}")
    return LaunchError(f"the Ray cluster of {ADDRESS}={address} was not joined: {reason}")


def _silent(address: str, reason: str) -> TryAgainError:
    return TryAgainError(
        f"no Ray cluster answers at {ADDRESS}={shortened(address)} ({reason}): start it with `ray "
        f"start --head`, or unset {ADDRESS} for a cluster of this computer alone"
    )
