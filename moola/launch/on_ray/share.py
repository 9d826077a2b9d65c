"""What a member takes of a node, by its spec and by what the cluster has."""

from collections.abc import Sequence

from moola.errors import DataError
from moola.jobs.prepare import PreparedRun
from moola.launch.capacity import MEMORY_OF_A_JOB_GB
from moola.providers.ray_cluster import Node, Share
from moola.specs import CpuMachine


def uses_gpus(run: PreparedRun) -> bool:
    """May the run use GPUs, by its spec?"""
    device = run.document.spec.get("device")
    return run.job == "train" and device != "cpu" and run.machine.gpu is not None


def share_of(run: PreparedRun, nodes: Sequence[Node]) -> Share:
    """What a run takes of a node of a cluster.

    A run with GPUs takes as many as its machine has, and their part of the node's cores. One
    without takes the cores of its machine, or all of the largest node where that has fewer. Raises
    DataError for a run that must have a GPU where there is none.
    """
    if uses_gpus(run) and run.machine.gpu is not None:
        count = run.machine.gpu.count
        fitting = [node for node in nodes if node.gpus >= count]
        if fitting:
            cores = min(int(node.cores / node.gpus * count) for node in fitting)
            return Share(max(cores, 1), count, _memory_gb(fitting))
        if run.document.spec.get("device") == "cuda":
            raise DataError(
                f"device: cuda needs a node with {count} GPUs, and no node of the Ray cluster has "
                "them: set machine.gpu.count, or --set device=auto"
            )

    cpu = run.machine.cpu or CpuMachine()
    largest = int(max((node.cores for node in nodes), default=0))
    cores = min(cpu.vcpus, largest) if largest else cpu.vcpus  # none yet: the cluster grows
    return Share(cores, 0, _memory_gb(nodes))


def room_for(share: Share, nodes: Sequence[Node]) -> int:
    """How many such shares the nodes have room for, one at least."""
    return max(sum(_room_on(node, share) for node in nodes), 1)


def _room_on(node: Node, share: Share) -> int:
    room = node.cores // share.cores
    if share.gpus:
        room = min(room, node.gpus // share.gpus)
    return int(min(room, node.memory_gb // share.memory_gb))


def _memory_gb(nodes: Sequence[Node]) -> float:
    """As for a job here; all of the largest node where that has less."""
    largest = max((node.memory_gb for node in nodes), default=0.0)
    return min(MEMORY_OF_A_JOB_GB, largest) if largest else MEMORY_OF_A_JOB_GB
