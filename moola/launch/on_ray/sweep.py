"""A sweep on a Ray cluster: that of RAY_ADDRESS, or one of this computer that is started for it."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from moola.jobs.prepare import PreparedRun
from moola.launch.capacity import this_computer
from moola.launch.console import print_text, terminal
from moola.launch.endings import MemberEndings, require_told
from moola.launch.local import job_arguments
from moola.launch.member_progress import MemberProgress
from moola.launch.on_ray.environment import member_environment, store_environment
from moola.launch.on_ray.members import MemberOrder, RayMembers
from moola.launch.on_ray.share import room_for, share_of, uses_gpus
from moola.launch.settings import Settings
from moola.launch.sweep import NOTHING_LEFT, Ended, Sweep, finish, runs_left, submit_group
from moola.providers.ray_cluster import Cluster, Share, open_cluster, require_ray
from moola.runs.environment import beat_s
from moola.runs.heartbeat import BEAT_S
from moola.specs import MachineConfig
from moola.store import Store, open_store


def run_ray_sweep(settings: Settings, sweep: Sweep, *, parallel: int | None = None) -> None:
    """Submit the runs that are not committed, and run them on the cluster.

    Raises typer.Exit with the exit code of the first run that failed; what `open_cluster`,
    `share_of` and `store_environment` raise, before anything is sent.
    """
    require_ray()
    require_told(settings)
    store = open_store(settings.store)
    left = runs_left(store, sweep)
    if not left:
        submit_group(store, sweep, left)
        finish(store, sweep, {})
        return

    with open_runner(settings, store, left, parallel) as runner:
        ended = runner.run_left(sweep, left)
    finish(store, sweep, ended.exit_codes)


@contextlib.contextmanager
def open_runner(
    settings: Settings, store: Store, runs: Sequence[PreparedRun], parallel: int | None
) -> "Iterator[RayRunner]":
    """The cluster while the block runs, for runs such as these. Raises as `run_ray_sweep`."""
    beat_s(os.environ, BEAT_S)  # the jobs would refuse it, but only once all is uploaded
    with_gpus = any(map(uses_gpus, runs))
    with open_cluster(this_computer().cores, with_gpus=with_gpus) as cluster:
        yield RayRunner(settings, store, cluster, parallel)


@dataclass(frozen=True)
class RayRunner:
    """A cluster; `parallel` runs in flight, or as many as there is room for."""

    settings: Settings
    store: Store
    cluster: Cluster
    parallel: int | None

    def at_once(self, runs: Sequence[PreparedRun]) -> int:
        """How many of these runs are run at once."""
        at_once, _ = _shares(self.cluster, runs, self.parallel)
        return at_once

    def run(self, sweep: Sweep) -> Ended:
        """Submit the runs that are not committed, and run them to their end."""
        left = runs_left(self.store, sweep)
        return self.run_left(sweep, left) if left else NOTHING_LEFT

    def run_left(self, sweep: Sweep, left: Sequence[PreparedRun]) -> Ended:
        """Submit these runs, which are not committed, and run them to their end."""
        members = ray_members(self.settings, self.store, self.cluster, left, self.parallel)
        submit_group(self.store, sweep, left)
        _say_how(self.cluster, members)
        titles = {run.run_id: sweep.titles[run.run_id] for run in left}
        endings = MemberEndings(self.settings, self.store, sweep.name, sweep.titles)
        with MemberProgress(terminal(), self.store, titles, endings.tell) as progress:
            exit_codes = members.run(list(titles), progress)
        return Ended(exit_codes, progress.is_stopped)


def ray_members(
    settings: Settings,
    store: Store,
    cluster: Cluster,
    runs: Sequence[PreparedRun],
    parallel: int | None,
) -> RayMembers:
    """What is asked of the cluster for each run. Raises DataError for what it cannot give."""
    at_once, shares = _shares(cluster, runs, parallel)
    longest = max(run.machine.max_runtime for run in runs)
    shared = store_environment(settings, store, cluster, longest)
    orders = {}
    for run in runs:
        share = shares[run.run_id]
        environment = member_environment(settings, store, run.run_id, share, os.environ)
        tries = further_tries(run.machine)
        orders[run.run_id] = MemberOrder(share, tries, {**environment, **shared})
    return RayMembers(cluster, store, job_arguments(runs[0].job), orders, at_once)


def _shares(
    cluster: Cluster, runs: Sequence[PreparedRun], parallel: int | None
) -> tuple[int, dict[str, Share]]:
    """(how many runs at once, run id -> its share of a node)."""
    nodes = cluster.nodes()
    shares = {run.run_id: share_of(run, nodes) for run in runs}
    if not cluster.is_own:
        return parallel or min(room_for(share, nodes) for share in shares.values()), shares

    # The cores of this computer are shared out as for --on local.
    capacity = this_computer()
    n_gpus = int(sum(node.gpus for node in nodes)) if any(map(uses_gpus, runs)) else 0
    at_once = parallel or capacity.jobs_at_once(min(len(runs), n_gpus or len(runs)))
    cores = capacity.threads_of_each(at_once)
    return at_once, {run_id: share._replace(cores=cores) for run_id, share in shares.items()}


def further_tries(machine: MachineConfig) -> int:
    """How often a member is run again whose node was lost, as its spec allows."""
    return machine.retry.times if "infra_lost" in machine.retry.on else 0


def _say_how(cluster: Cluster, members: RayMembers) -> None:
    share = next(iter(members.orders.values())).share
    nodes = cluster.nodes()
    where = "this computer" if cluster.is_own else f"{len(nodes)} nodes"
    parts = [f"{share.cores} cores", f"{share.memory_gb:g} GB"]
    if share.gpus:
        parts.append(f"{share.gpus} GPUs")
    print_text(f"Ray on {where}: {members.parallel} at once, each {', '.join(parts)}", terminal())
