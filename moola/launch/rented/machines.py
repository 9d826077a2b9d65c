"""The machine of a launch, as the provider shows it: which pod, since when, until when at most.

What a record in the store claims about a machine is not believed where money hangs on it: the pod
is found by its name, its age by the provider's clock, and its deadline by caps of this side.
"""

import contextlib
import math

from moola.errors import ArtifactError, LaunchError, TryAgainError
from moola.launch.rented.context import RunContext
from moola.launch.rented.plan import deadline_of
from moola.launch.rented.request import DEADLINE
from moola.providers.base import Kind, Pod, PodApi
from moola.runs.launches import POD, Launch, RentedMachine, launch_key, record_rented
from moola.text import quoted

LATEST_S = 253_402_000_000.0  # Unix seconds: just before the year 10000, in every time zone


def find_pod(pods: PodApi, launch: Launch) -> Pod | None:
    """The launch's pod in the provider's list."""
    for pod in pods.list():
        if pod.name == launch.pod_name:
            return pod
    return None


def created_at(run: RunContext, launch: Launch, pod: Pod) -> float:
    """When the pod was made, in Unix seconds by the provider's clock.

    Where the provider does not tell, it was made when the launch was written, by the store's time,
    or earlier if its container has been up for longer.
    """
    if pod.created is not None:
        return pod.created.timestamp()

    record = run.store.get_dated(launch_key(launch.run_id, launch.n))
    launch_age_s = record.age_s if record is not None else None
    return run.pods.now() - max(launch_age_s or 0.0, pod.uptime_s or 0.0)


def deadline(run: RunContext, launch: Launch, pod: Pod) -> float:
    """When the pod must have ended, in Unix seconds by the provider's clock.

    That is what it was told, and never later than its caps allow, counted from its creation. The
    caps of a launch without a proof are not believed beyond `longest_run_s`.
    """
    created = created_at(run, launch, pod)
    machine = launch.machine_config()
    limits = [
        deadline_of(machine, pod.price_per_hour, spent=0.0, now=created),
        _told_deadline(pod),
    ]
    if not run.is_trusted(launch):
        limits.append(created + run.watch.longest_run_s)
    return max(0.0, min(limits))


def latest_end(run: RunContext, pod: Pod, *, is_damaged: bool) -> float:
    """When a pod must have gone of whose launch there is no record, or a damaged one."""
    age_s = pod.uptime_s or 0.0
    if pod.created is not None:
        age_s = run.pods.now() - pod.created.timestamp()

    latest = run.pods.now() - age_s + run.watch.longest_run_s
    if is_damaged:
        latest = min(latest, _told_deadline(pod))
    return latest + run.watch.grace_s


def _told_deadline(pod: Pod) -> float:
    """The deadline in the environment that the pod was made with."""
    try:
        told = float(pod.env.get(DEADLINE, ""))
    except ValueError:
        return LATEST_S
    return LATEST_S if math.isnan(told) else min(told, LATEST_S)


def rented_machine(run: RunContext, launch: Launch, pod: Pod) -> RentedMachine:
    """The machine that a launch got, by what the provider shows."""
    machine = launch.machine_config()
    kind: Kind = "cpu" if machine.gpu is None else "gpu"
    count = 0
    if machine.cpu is not None:
        count = machine.cpu.vcpus
    elif machine.gpu is not None:
        count = machine.gpu.count

    return RentedMachine(
        pod_id=pod.id,
        pod_name=pod.name,
        provider=run.pods.provider,
        kind=kind,
        type_id=pod.type_id or "unknown",
        count=count,
        cloud=machine.cloud,
        data_center=pod.data_center,
        price_per_hour=max(pod.price_per_hour, 0.0),
        created=created_at(run, launch, pod),
        deadline=deadline(run, launch, pod),
    )


def record(run: RunContext, launch: Launch, pod: Pod) -> RentedMachine:
    """Record what was rented, for people and for costs; -> the machine as the provider shows it."""
    machine = rented_machine(run, launch, pod)
    record_rented(run.store, launch, machine)
    return machine


def confirmed(run: RunContext, launch: Launch, recorded: RentedMachine) -> RentedMachine:
    """A recorded machine, by what the provider shows of it.

    One that is not listed (any more) is taken as recorded, but for its deadline. Raises
    ArtifactError where the record names a pod of another name.
    """
    with contextlib.suppress(LaunchError, TryAgainError):
        pod = find_pod(run.pods, launch) or run.pods.get(recorded.pod_id)
        if pod is not None and pod.name != launch.pod_name:
            raise ArtifactError(
                f"{launch.key(POD)} in {run.store.url} is damaged: pod {pod.id} is "
                f"{quoted(pod.name)}, and not {launch.pod_name}"
            )
        if pod is not None:
            return rented_machine(run, launch, pod)

    max_runtime_s = launch.machine_config().max_runtime.total_seconds()
    if not run.is_trusted(launch):
        max_runtime_s = min(max_runtime_s, run.watch.longest_run_s)
    latest = run.pods.now() + max_runtime_s
    return recorded.model_copy(
        update={
            "created": min(recorded.created, run.pods.now()),
            "deadline": min(recorded.deadline, latest),
        }
    )
