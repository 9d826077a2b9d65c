"""A Ray cluster of two nodes on this machine, in a process of its own, one of which can be killed.

`python -m tests.ray_nodes` prints the address and the second node's process as JSON. The line
`kill` on its standard input kills that node, `kept` asks what Ray keeps; the input's end is the
cluster's.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from tests import watchdog

NODE = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80 << 20}
# No keys of the launcher's: a node is another computer.
VARIABLES = {"HOME", "PATH", "LANG", "TMPDIR", "VIRTUAL_ENV", watchdog.VARIABLE}


class RayNodes:
    """A running cluster; `raylet` is the process of the node that can be killed."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        assert process.stdout is not None
        started = json.loads(process.stdout.readline())
        self.address: str = started["address"]
        self.session: str = started["session"]
        self.raylet = str(started["raylet"])

    def kill_node(self) -> None:
        """As a computer that is switched off; returns when it is gone."""
        assert self._ask("kill") == "killed"

    def kept(self) -> str:
        """What Ray's head keeps of jobs and tasks, for its lists and its dashboard."""
        return self._ask("kept")

    def _ask(self, command: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(command, file=self._process.stdin, flush=True)
        answer: str = json.loads(self._process.stdout.readline())
        return answer


@contextlib.contextmanager
def running_ray_nodes() -> Iterator[RayNodes]:
    environment = {name: value for name, value in os.environ.items() if name in VARIABLES}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.ray_nodes"],
        env={**environment, "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield RayNodes(process)
    finally:
        process.communicate()


def main() -> None:
    from ray.cluster_utils import Cluster

    head: dict[str, Any] = {**NODE, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    node = cluster.add_node(**NODE)
    (raylet,) = node.all_processes["raylet"]
    session = cluster.head_node.get_session_dir_path()
    started = {"address": cluster.address, "session": session, "raylet": raylet.process.pid}
    print(json.dumps(started), flush=True)

    for line in sys.stdin:
        answer = "killed"
        if line == "kept\n":
            answer = kept(cluster.address)
        else:
            cluster.remove_node(node, allow_graceful=False)
        print(json.dumps(answer), flush=True)
    cluster.shutdown()


def kept(address: str) -> str:
    """The tables of jobs and tasks, and every key and value, as Ray encodes them."""
    import ray
    from ray._private.state import state
    from ray.experimental import internal_kv

    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    accessor = state._connect_and_get_accessor()
    tables = [*accessor.get_task_events(), *accessor.get_job_table()]
    for key in internal_kv._internal_kv_list(b""):
        tables += [key, internal_kv._internal_kv_get(key) or b""]
    ray.shutdown()
    return "\n".join(repr(table) for table in tables)


if __name__ == "__main__":
    main()
